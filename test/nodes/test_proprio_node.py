"""Proprioception ingestion."""

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import JointState

from rlt_ros.msg import Proprio
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header
from rlt_ros.sim.task import task_folder


@pytest.fixture
def robot(peer):
    """Publishes the three streams of a tick with the same stamp."""
    says = [
        peer.say(t, f"driver/{n}", qos.SENSOR)
        for t, n in ((PoseStamped, "pose"), (TwistStamped, "twist"), (WrenchStamped, "wrench"))
    ]

    def send(tick: int, x: float = 0.45, force: float = 3.0) -> None:
        top = header(peer.clock.stamp_ns(tick))
        pose, twist, wrench = PoseStamped(header=top), TwistStamped(header=top), WrenchStamped(header=top)
        pose.pose.position.x = x
        pose.pose.orientation.z, pose.pose.orientation.w = float(np.sin(0.1)), float(np.cos(0.1))
        twist.twist.linear.y = 0.25
        wrench.wrench.force.z = force
        for say, message in zip(says, (pose, twist, wrench), strict=True):
            say(message)

    return send


def test_streams_of_a_tick_become_one_vector(graph, start, peer, request):
    start(ProprioNode)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    robot = request.getfixturevalue("robot")
    tick = peer.tick()

    def arrived() -> bool:
        nonlocal tick
        tick += 1
        robot(tick)
        return bool(heard)

    graph.spin_until(arrived, "proprioception")
    values = np.array(heard[0].values)
    assert values.shape == (14,)
    np.testing.assert_allclose(values[[0, 3, 5, 10]], [0.45, 0.2, 0.25, 3.0], atol=1e-6)


def test_reading_that_is_not_finite_is_dropped_and_the_next_good_one_published(graph, start, peer, request):
    node = start(ProprioNode)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    robot = request.getfixturevalue("robot")
    tick = peer.tick()

    def dropped() -> bool:
        nonlocal tick
        tick += 1
        robot(tick, force=float("nan"))
        return node.rejected["driver/wrench"] > 0

    graph.spin_until(dropped, "the drop")
    assert not heard

    def arrived() -> bool:
        nonlocal tick
        tick += 1
        robot(tick)
        return bool(heard)

    graph.spin_until(arrived, "proprioception")


def test_robot_that_is_silent_is_reported_with_its_topics(graph, start):
    node = start(ProprioNode, max_silence_s=0.05)
    graph.spin_until(lambda: "nothing usable on driver/pose, driver/twist, driver/wrench" in node.problem, "the report")


def test_joint_names_that_do_not_match_are_named(graph, start, peer, tmp_path):
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    task |= {"state": [{"key": "joint_position", "size": 2}], "vla_state": ["joint_position"], "limits": {}}
    path = tmp_path / "joints.yaml"
    path.write_text(yaml.safe_dump(task))
    node = start(ProprioNode, task=str(path), joints__joint_position=["elbow", "wrist"])
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    say = peer.say(JointState, "driver/joint_states", qos.SENSOR)

    def dropped() -> bool:
        say(
            JointState(header=header(peer.clock.stamp_ns(peer.tick())), name=["wrist", "shoulder"], position=[1.0, 2.0])
        )
        return node.rejected["driver/joint_states"] > 0

    graph.spin_until(dropped, "the drop")

    def arrived() -> bool:
        say(JointState(header=header(peer.clock.stamp_ns(peer.tick())), name=["wrist", "elbow"], position=[1.0, 2.0]))
        return bool(heard)

    graph.spin_until(arrived, "proprioception")
    assert list(heard[0].values) == [2.0, 1.0]  # in the order of the parameter


def test_joints_that_do_not_fit_the_task_fail_at_configure(make, tmp_path):
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    task |= {"state": [{"key": "joint_position", "size": 6}], "vla_state": ["joint_position"], "limits": {}}
    path = tmp_path / "joints.yaml"
    path.write_text(yaml.safe_dump(task))
    node = make(ProprioNode, task=str(path), joints__joint_position=["elbow"])
    assert "'joint_position' has 1 values, the task wants 6" in node.configure_error
