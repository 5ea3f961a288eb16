"""The simulator in the place of a robot, and the simulated person in that of the operator."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, Joy
from std_srvs.srv import Trigger

from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, SimTruth
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.operator_node import OperatorNode
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.sim_node import SimNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import stamp_ns


@pytest.fixture
def sim(start):
    return start(SimNode)


def test_pictures_hit_the_ticks_that_chunk_boundaries_need(graph, sim, peer):
    pictures = peer.hear(Image, "driver/wrist/image", qos.SENSOR)
    graph.spin_until(lambda: len(pictures) > 4, "pictures")
    assert {stamp_ns(msg.header.stamp) % peer.clock.period_ns for msg in pictures} == {0}
    assert {peer.clock.tick(stamp_ns(msg.header.stamp)) % 2 for msg in pictures} == {1}  # b - L = 10 n - 5
    assert (pictures[0].height, pictures[0].width, pictures[0].encoding) == (96, 96, "rgb8")


def test_tool_follows_the_executed_chunk_and_stands_still_without_one(graph, sim, peer):
    poses = peer.hear(PoseStamped, "driver/pose", qos.SENSOR)
    say = peer.say(ActionChunk, "command/executed", qos.COMMAND)
    graph.spin_until(lambda: bool(poses), "a pose")
    height = poses[-1].pose.position.z

    def risen() -> bool:
        say(peer.chunk(peer.tick(), [0.0, 0.0, 0.5, 0.0], 3))
        return poses[-1].pose.position.z > height + 0.01

    graph.spin_until(risen, "the rise")
    count = len(poses)
    graph.spin_until(lambda: len(poses) > count + 25, "poses without commands")
    still = [msg.pose.position.z for msg in poses[-5:]]
    assert max(still) - min(still) < 2e-4


def test_reset_makes_another_scene(graph, sim, peer):
    truths = peer.hear(SimTruth, "sim/truth", qos.SENSOR)
    graph.spin_until(lambda: bool(truths), "the truth")
    before = list(truths[-1].offset)
    assert peer.call(Trigger, "sim/reset").success
    graph.spin_until(lambda: np.abs(np.subtract(truths[-1].offset, before)).max() > 1e-3, "another scene")


def test_critical_ticks_without_a_command_are_counted(graph, sim, peer):
    say = peer.say(EpisodeState, "episode/state", qos.STATE)
    say(peer.episode(Phase.CRITICAL, start_tick=0, critical_tick=1))
    graph.spin_until(lambda: sim.without_fresh > 3, "missing commands")
    assert sim.critical_ticks == sim.without_fresh


def test_any_gymnasium_task_is_served_and_moved_through_the_safety_node(graph, start, peer):
    """Reacher: two joint torques, one array of joint states, no tool, no workspace."""
    limits = {
        "limits__action_limit": 1.0,
        "limits__max_step_change": 2.0,
        "limits__command_timeout_s": 0.2,
        "limits__slow_watchdog": True,
    }
    start(SimNode, task="reacher")
    start(ProprioNode, task="reacher")
    start(SafetyNode, task="reacher", proprio_timeout_s=1.0, **limits)
    pictures = peer.hear(Image, "driver/view/image", qos.SENSOR)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    say = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    graph.spin_until(lambda: bool(pictures) and bool(heard), "pictures and proprioception")
    assert (pictures[0].height, pictures[0].width, pictures[0].encoding) == (96, 96, "rgb8")
    assert len(heard[0].values) == 10

    def moved() -> bool:
        say(peer.chunk(peer.tick(), [1.0, -1.0], 3))
        return np.abs(np.subtract(heard[-1].values, heard[0].values))[:4].max() > 0.1  # cosines and sines of the joints

    graph.spin_until(moved, "motion")


class Fake:
    """Truth as the test wants it, and the answers of a simulator."""

    def __init__(self, peer) -> None:
        self.peer, self.resets = peer, 0
        peer.node.create_service(Trigger, "sim/reset", self.on_reset)
        self.joy = peer.hear(Joy, "joy")
        self.states = peer.hear(EpisodeState, "episode/state", qos.STATE)
        self.truth = peer.say(SimTruth, "sim/truth", qos.SENSOR)

    def on_reset(self, _request, response):
        self.resets += 1
        response.success = True
        return response

    def show(self, **fields) -> None:
        self.truth(SimTruth(tick=self.peer.tick(), offset=[0.002, 0.0, 0.01], **fields))

    def until(self, graph, condition, what: str, **fields) -> None:
        graph.spin_until(lambda: (self.show(**fields), condition())[1], what)


HASTY = {"reaction_s": [0.05, 0.1], "rest_s": 0.1}


@pytest.fixture
def fake(start, peer):
    def made(**habits) -> Fake:
        start(EpisodeNode)
        made.node = start(OperatorNode, **(HASTY | habits))
        return Fake(peer)

    return made


def test_person_resets_starts_hands_over_and_labels(graph, fake):
    f = fake(episodes=1, intervention_share=0.0)
    phase = lambda: f.states[-1].phase if f.states else None  # noqa: E731
    f.until(graph, lambda: phase() == Phase.APPROACH, "the start")
    assert f.resets == 1
    f.until(graph, lambda: phase() == Phase.CRITICAL, "the hand-over", critical=True)
    f.until(graph, lambda: phase() == Phase.ENDED, "the label", critical=True, success=True)
    assert f.states[-1].outcome == Outcome.SUCCESS
    assert f.states[-1].end_tick > f.states[-1].critical_tick
    graph.spin_until(lambda: fake.node.done, "the end of the practice")


def test_person_says_failure_when_the_plug_is_beyond_repair(graph, fake):
    f = fake(intervention_share=0.0)
    f.until(graph, lambda: bool(f.states) and f.states[-1].phase == Phase.CRITICAL, "the hand-over", critical=True)
    f.until(graph, lambda: f.states[-1].outcome == Outcome.FAILURE, "the label", critical=True, failure=True)


def test_person_takes_over_towards_the_jack_and_lets_go(graph, fake):
    f = fake(intervention_share=1.0, intervention_s=[1.0, 1.2])
    f.until(graph, lambda: any(msg.buttons[5] for msg in f.joy), "the dead-man", critical=True)
    held = [msg for msg in f.joy if msg.buttons[5]]
    assert held[0].axes[1] < 0.0  # the plug is 2 mm off along +x
    f.until(graph, lambda: not f.joy[-1].buttons[5], "the release", critical=True)


def test_person_does_one_by_hand_after_failures(graph, fake):
    f = fake(intervention_share=0.0, helps_after=1)
    phase = lambda: f.states[-1].phase if f.states else None  # noqa: E731
    f.until(graph, lambda: phase() == Phase.CRITICAL, "the hand-over", critical=True)
    f.until(graph, lambda: phase() == Phase.ENDED, "the label", critical=True, failure=True)
    assert not any(msg.buttons[5] for msg in f.joy)
    f.until(graph, lambda: phase() == Phase.CRITICAL, "the next hand-over", critical=True)
    begin = len(f.joy)
    f.until(graph, lambda: len(f.joy) > begin + 60, "a second by hand", critical=True)
    held = [bool(msg.buttons[5]) for msg in f.joy[begin:]]
    assert all(held[held.index(True) :]) and sum(held) > 40  # and does not let go
    assert f.joy[-1].axes[1] < 0.0  # the plug is 2 mm off along +x


def test_person_waits_for_the_nodes_that_it_was_told(graph, fake):
    f = fake(wait_for=["vla_node"])
    count = len(f.states)
    f.until(graph, lambda: len(f.states) > count + 5, "a second")
    assert f.resets == 0 and "waiting for vla_node" in fake.node.problem


def test_person_who_comes_to_a_practice_that_runs_waits_for_nobody(graph, fake, peer):
    """As one that is started again while a node warns of something."""
    f = fake(wait_for=["vla_node"], intervention_share=0.0)
    assert peer.call(Trigger, "episode/start").success
    f.until(graph, lambda: bool(f.states) and f.states[-1].phase == Phase.CRITICAL, "the hand-over", critical=True)
