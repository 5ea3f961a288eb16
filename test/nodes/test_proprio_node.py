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
    """send(): publishes the three streams with the same stamp, once a tick."""
    says = {
        name: peer.say(kind, f"driver/{name}", qos.SENSOR)
        for kind, name in ((PoseStamped, "pose"), (TwistStamped, "twist"), (WrenchStamped, "wrench"))
    }
    sent = 0

    def send(x: float = 0.45, force: float = 3.0, offset_s: float = 0.0, **late_s: float) -> None:
        nonlocal sent
        if peer.tick() == sent:
            return
        sent = peer.tick()
        pose, twist, wrench = PoseStamped(), TwistStamped(), WrenchStamped()
        pose.pose.position.x = x
        pose.pose.orientation.z, pose.pose.orientation.w = float(np.sin(0.1)), float(np.cos(0.1))
        twist.twist.linear.y = 0.25
        wrench.wrench.force.z = force
        for name, message in (("pose", pose), ("twist", twist), ("wrench", wrench)):
            message.header = header(peer.clock.stamp_ns(sent) + round((offset_s - late_s.get(name, 0.0)) * 1e9))
            says[name](message)

    return send


def test_streams_of_a_tick_become_one_vector(graph, start, peer, request):
    start(ProprioNode)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    robot = request.getfixturevalue("robot")
    graph.spin_until(lambda: (robot(), heard)[1], "proprioception")
    values = np.array(heard[0].values)
    assert values.shape == (14,)
    np.testing.assert_allclose(values[[0, 3, 5, 10]], [0.45, 0.2, 0.25, 3.0], atol=1e-6)


def test_drivers_clock_that_is_behind_is_reported(graph, start, request):
    node = start(ProprioNode)
    robot = request.getfixturevalue("robot")
    says = "driver/pose is 0.5"
    graph.spin_until(lambda: (robot(offset_s=-0.5), says in node.problem)[1], "the report")
    assert "more than max_delay_s (0.05 s); synchronise the clocks" in node.problem


def test_stream_that_lags_behind_the_others_is_named(graph, start, peer, request):
    node = start(ProprioNode)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    robot = request.getfixturevalue("robot")
    graph.spin_until(lambda: (robot(wrench=0.08), "'wrench' (driver/wrench)" in node.problem)[1], "the report")
    assert "0.080 s behind the other readings, more than max_skew_s (0.05 s)" in node.problem
    assert heard and float(node.on_diagnostics_()["skew_ms"]) == pytest.approx(80.0, abs=0.1)


def test_repeated_old_reading_changes_nothing(graph, start, peer, request):
    node = start(ProprioNode)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    robot = request.getfixturevalue("robot")
    graph.spin_until(lambda: (robot(), len(heard) > 2)[1], "proprioception")
    old = PoseStamped(header=header(peer.clock.stamp_ns(peer.tick() - 500)))
    old.pose.orientation.w = 1.0
    say, refused = peer.say(PoseStamped, "driver/pose", qos.SENSOR), node.clocks["pose"].refused
    graph.spin_until(lambda: (say(old), robot(), refused["order"] > 5)[2], "the refusals")
    assert all(m.values[0] == np.float32(0.45) for m in heard)
    count = len(heard)
    graph.spin_until(lambda: (robot(), len(heard) > count)[1], "more proprioception")
    assert np.all(np.diff([m.tick for m in heard]) > 0)


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


def test_arm_and_gripper_in_joint_states_of_their_own_with_velocities_that_nobody_sends(graph, start, peer, tmp_path):
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    state = [{"key": "joint_position", "size": 2}, {"key": "joint_velocity", "size": 2}, {"key": "gripper", "size": 1}]
    task |= {"state": state, "vla_state": ["joint_position"], "limits": {}}
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(task))
    arm = ["shoulder", "elbow"]
    joints = {"joints__joint_position": arm, "joints__joint_velocity": arm, "joints__gripper": ["finger"]}
    start(ProprioNode, task=str(path), **joints)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    say = peer.say(JointState, "driver/joint_states", qos.SENSOR)
    begin, sent = peer.tick(), 0

    def moving() -> bool:
        nonlocal sent
        if peer.tick() != sent:
            sent = peer.tick()
            top, moved = header(peer.clock.stamp_ns(sent)), (sent - begin) * 0.02
            say(JointState(header=top, name=["elbow", "shoulder"], position=[0.5 * moved, -1.0 * moved]))
            say(JointState(header=top, name=["finger"], position=[0.04], velocity=[0.0]))
        return len(heard) > 2

    graph.spin_until(moving, "proprioception")
    values = np.array(heard[-1].values)
    np.testing.assert_allclose(values[2:], [-1.0, 0.5, 0.04], atol=1e-4)
    assert values[0] == pytest.approx(-2 * values[1])


@pytest.mark.parametrize("stream", ["pose", "twist"])
def test_pose_or_twist_of_another_frame_is_refused_and_told(graph, start, peer, stream):
    """In UR's `base` x and y have the other sign: the walls would be on the wrong side."""
    node = start(ProprioNode, frame_id="base_link")
    kind = {"pose": PoseStamped, "twist": TwistStamped}[stream]
    say, message = peer.say(kind, f"driver/{stream}", qos.SENSOR), kind()

    def sent(frame: str) -> None:
        message.header = header(peer.clock.stamp_ns(peer.tick()), frame)
        if stream == "pose":
            message.pose.orientation.w = 1.0
        say(message)

    refused = lambda: node.rejected[f"driver/{stream}"]  # noqa: E731
    graph.spin_until(lambda: (sent("base"), refused())[1], "the refusal")
    graph.spin_until(lambda: f"driver/{stream}: it is in the frame 'base', expected 'base_link'" in node.problem, "word")
    assert stream in node.assembler.waiting_for()
    for frame in ("base_link", ""):
        node.assembler.restart()
        graph.spin_until(lambda: (sent(frame), stream not in node.assembler.waiting_for())[1], "a reading")  # noqa: B023
