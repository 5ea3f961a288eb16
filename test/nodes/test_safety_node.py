"""The last word before the robot."""

import os
import signal
import subprocess

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Phase
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, SafetyState
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.ros import qos

LIMITS = {"limits__action_limit": 1.0, "limits__max_step_change": 2.0, "limits__command_timeout_s": 0.04}
UP = [0.0, 0.0, 0.5, 0.0]


@pytest.fixture
def gate(start, peer):
    """An active safety node; `drive()` sends proprioception and a candidate for the present tick."""
    node = start(SafetyNode, **LIMITS)
    node.heard = peer.hear(ActionChunk, "command/executed")
    candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    proprio = peer.say(Proprio, "proprio", qos.SENSOR)

    def drive(action: list[float] = UP, steps: int = 3) -> None:
        proprio(peer.proprio(peer.tick()))
        candidate(peer.chunk(peer.tick(), action, steps))

    node.drive = drive
    return node


def moving(heard: list) -> bool:
    return bool(heard) and heard[-1].source == Source.VLA


def holding(heard: list) -> bool:
    return bool(heard) and heard[-1].source == Source.HOLD and not np.any(heard[-1].actions)


def driven(gate) -> bool:
    gate.drive()
    return moving(gate.heard)


def test_robot_is_held_until_somebody_commands(graph, gate):
    graph.spin_until(lambda: len(gate.heard) > 2, "the watchdog")
    assert all(msg.source == Source.HOLD for msg in gate.heard)


def test_candidate_is_let_through_and_its_silence_holds_the_robot(graph, gate):
    graph.spin_until(lambda: driven(gate), "motion")
    assert list(gate.heard[-1].actions[:4]) == UP
    graph.spin_until(lambda: holding(gate.heard), "the hold after the last candidate", timeout_s=2.0)


def test_each_tick_is_executed_once(graph, gate):
    graph.spin_until(lambda: driven(gate) and len(gate.heard) > 20, "commands")
    ticks = [msg.tick for msg in gate.heard]
    assert ticks == sorted(set(ticks))


def test_emergency_stop_stays_until_a_person_releases_it(graph, gate, peer):
    states = peer.hear(SafetyState, "safety/state", qos.STATE)
    graph.spin_until(lambda: driven(gate), "motion")
    assert peer.call(Trigger, "safety/stop").success
    first = len(gate.heard)

    def commanded_in_vain() -> bool:
        gate.drive()
        return len(gate.heard) > first + 25

    graph.spin_until(commanded_in_vain, "25 ticks under the stop")
    assert all(msg.source == Source.HOLD for msg in gate.heard[first + 1 :])
    graph.spin_until(lambda: states[-1].estop and states[-1].reason == "estop", "the state")
    assert peer.call(Trigger, "safety/release").success
    graph.spin_until(lambda: driven(gate), "motion after the release")


def test_candidate_that_is_not_finite_is_counted_and_never_executed(graph, gate, peer):
    graph.spin_until(lambda: driven(gate), "motion")
    say = peer.say(ActionChunk, "command/candidate", qos.COMMAND)

    def refused() -> bool:
        bad = peer.chunk(peer.tick(), UP)
        bad.actions[2] = float("nan")
        say(bad)
        return gate.gate.counts["malformed"] > 0

    graph.spin_until(refused, "the refusal")
    graph.spin_until(lambda: holding(gate.heard), "the hold")
    assert all(np.isfinite(msg.actions).all() for msg in gate.heard)


def test_missing_limit_fails_at_configure_with_its_name(make):
    node = make(SafetyNode, **{key: value for key, value in LIMITS.items() if "action_limit" not in key})
    assert "'action_limit' is missing" in node.configure_error


def test_twist_interface_sends_metres_per_second_and_ends_with_zero(graph, start, peer, stop):
    node = start(SafetyNode, interface="twist", **LIMITS)
    twists = peer.hear(TwistStamped, "driver/delta_twist_cmds")
    candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    proprio = peer.say(Proprio, "proprio", qos.SENSOR)

    def rising() -> bool:
        proprio(peer.proprio(peer.tick()))
        candidate(peer.chunk(peer.tick(), UP, 3))
        return bool(twists) and twists[-1].twist.linear.z > 0.0

    graph.spin_until(rising, "a twist")
    assert twists[-1].twist.linear.z == pytest.approx(0.5 * 0.0015 / 0.02, rel=1e-5)
    count = len(twists)
    stop(node)
    graph.spin_until(lambda: len(twists) > count and twists[-1].twist.linear.z == 0.0, "the last, zero twist")


def test_killed_actor_leaves_the_robot_still(graph, gate, peer, python):
    """The actor as a process that drives, then SIGKILL: nothing of it moves the robot any longer."""
    code = "import sys; from rlt_ros.ros.run import main; sys.exit(main('actor_node'))"
    actor = subprocess.Popen([python, "-c", code], env=os.environ, start_new_session=True)
    try:
        # A process of its own, which has torch to load: on a busy machine that alone takes most of a minute.
        episode = peer.say(EpisodeState, "episode/state", qos.STATE, timeout_s=120.0)
        reference = peer.say(ActionChunk, "vla/reference", qos.EVENT)
        proprio = peer.say(Proprio, "proprio", qos.SENSOR)
        began = peer.tick()

        def moved() -> bool:
            tick = peer.tick()
            episode(peer.episode(Phase.APPROACH, start_tick=began))
            proprio(peer.proprio(tick))
            if tick % 5 == 0:
                reference(peer.chunk(tick, UP, 50))
            return moving(gate.heard)

        graph.spin_until(moved, "motion by the actor", timeout_s=40.0)
        os.kill(actor.pid, signal.SIGKILL)
        killed = peer.tick()

        def held() -> bool:
            proprio(peer.proprio(peer.tick()))
            return holding(gate.heard)

        graph.spin_until(held, "the hold", timeout_s=2.0)
        graph.spin_until(lambda: (held(), gate.heard[-1].tick > killed + 15)[1], "ticks after the hold", timeout_s=5.0)
        # The last candidate reaches at most three ticks: its own and two more.
        assert all(msg.source == Source.HOLD for msg in gate.heard if msg.tick > killed + 2)
    finally:
        actor.kill()
        actor.wait()


def test_twist_of_a_task_with_other_actions_fails_at_configure(make):
    error = make(SafetyNode, task="reacher", interface="twist", **LIMITS).configure_error
    assert "interface 'twist'" in error and "shoulder, elbow" in error
