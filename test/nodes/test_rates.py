"""The graph at other rates than 50 Hz: every node takes them, and a command follows each tick."""

import time
from collections import Counter

import numpy as np
import pytest
import yaml

from rlt_ros.bench.robot import Robot
from rlt_ros.core.chunks import ControlClock, Source
from rlt_ros.msg import ActionChunk
from rlt_ros.nodes.actor_node import ActorNode
from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.learner_node import LearnerNode
from rlt_ros.nodes.operator_node import OperatorNode
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.nodes.replay_node import ReplayNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.sim_node import SimNode
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.nodes.vla_node import VlaNode
from rlt_ros.sim.task import load_task, task_folder


@pytest.fixture
def task_of(tmp_path):
    """task_of(rate): the Ethernet task with ticks of that rate, as a file."""

    def made(rate: float) -> str:
        task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
        task["rate"], task["environment"]["arguments"] = rate, {"rate": rate}
        task["action"]["scale"] = [scale * 50.0 / rate for scale in task["action"]["scale"]]
        task["limits"]["max_linear_acceleration"] = task["limits"]["max_angular_acceleration"] = 1e4
        path = tmp_path / f"at_{rate:g}.yaml"
        path.write_text(yaml.safe_dump(task))
        return str(path)

    return made


@pytest.mark.parametrize("rate", [250.0, 500.0])
def test_every_node_takes_the_rate(make, checkpoint, task_of, rate):
    for node_class, own in (
        (CameraNode, {}), (ProprioNode, {}), (SafetyNode, {}), (ActorNode, {}), (EpisodeNode, {}), (ReplayNode, {}),
        (LearnerNode, {}), (OperatorNode, {}), (SimNode, {}), (TeleopNode, {}),
        (VlaNode, {"model": str(checkpoint), "trace": False}),
    ):  # fmt: skip
        node = make(node_class, rate_hz=rate, task=task_of(rate), **own)
        assert node.configure_error == "" and node.control.rate_hz == rate


def test_simulator_of_another_rate_than_its_task_fails_at_configure(make):
    error = make(SimNode, rate_hz=250.0).configure_error
    assert "'rate_hz' is 250, expected 50, the rate of task 'ethernet'" in error


def test_commands_of_the_actor_reach_the_robot_at_250_hz(graph, start, peer, task_of):
    """Time-outs are long, for busy machines; how well it keeps time is for `rlt bench control --rate`."""
    rate = 250.0
    path, clock = task_of(rate), ControlClock(rate)
    own = {"rate_hz": rate, "task": path, "proprio_timeout_s": 2.0, "episode_timeout_s": 2.0}
    # A pause of this process must not make what was said before it too old.
    own |= {"max_age_ticks": int(2 * rate)}
    start(ProprioNode, rate_hz=rate, task=path)
    start(SafetyNode, **own, limits__command_timeout_s=0.5, limits__slow_watchdog=True)
    actor = start(ActorNode, **own)
    robot = Robot(peer.node, load_task(path), clock, token=6, chunk_steps=10, latency_ticks=5)
    executed, sent = peer.hear(ActionChunk, "command/executed"), 0
    graph.spin_until(robot.ready, "the nodes")

    def driven() -> Counter:
        nonlocal sent
        tick = clock.tick(time.time_ns())
        for each in range(max(sent + 1, tick - 100), tick + 1):  # none of the chunks' ticks is left out
            robot.think(each)
        if tick // 5 != sent // 5:
            robot.sense(clock.stamp_ns(tick))
        sent = tick
        return Counter(msg.source for msg in executed)

    graph.spin_until(lambda: driven()[Source.ACTOR] > 30, "commands of the actor", timeout_s=60.0)
    acted = [msg for msg in executed if msg.source == Source.ACTOR]
    assert all(np.isfinite(msg.actions).all() and msg.policy_version == 1 for msg in acted)
    ticks = [msg.tick for msg in executed]
    assert ticks == sorted(set(ticks))
    assert actor.commander.human_timeout == round(0.1 * rate)
