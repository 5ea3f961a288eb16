"""What the controllers hear from the safety node, and each path from a candidate to the simulated arm."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from rlt_ros.core.chunks import Source
from rlt_ros.core.kinematics import Arm
from rlt_ros.core.proprioception import yaw_of
from rlt_ros.msg import ActionChunk, Proprio, SafetyState
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.sim_node import SimNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header, packed, stamp_ns

CONFIG = Path(__file__).resolve().parents[2] / "config"
URDF = Path(__file__).resolve().parents[2] / "rlt_ros" / "sim" / "assets" / "ethernet.urdf"
JOINTS = [f"joint{i}" for i in range(1, 7)]
ARM = {"arm__urdf": str(URDF), "arm__tip": "tcp", "arm__joints": JOINTS}
LIMITS = {"limits__command_timeout_s": 0.04, "watch_joints": False}  # of the Ethernet task
AT = np.array([0.05, 0.1, -0.1, 0.02, 0.03, 0.1])
UP = [0.0, 0.0, 0.5, 0.0]


def task_file(folder: Path, names: list[str], scale: list[float]) -> str:
    """A task with other actions than the Ethernet task's, and no tool to limit."""
    task = yaml.safe_load((CONFIG / "tasks" / "ethernet.yaml").read_text())
    task |= {"name": "other", "action": {"names": names, "scale": scale}}
    task["limits"] |= {name: None for name in task["limits"] if name not in ("action_limit", "max_step_change")}
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(task))
    return str(path)


def joint_state(names=JOINTS, positions=AT) -> JointState:
    return JointState(name=list(names), position=packed(np.array(positions), "d"))


def following(heard: list, names=JOINTS, positions=AT):
    """joint_state of an arm that has done the first tick of the newest trajectory that was `heard`."""
    at = dict(zip(names, positions, strict=True))

    def state() -> JointState:
        if heard:
            at.update(zip(heard[-1].joint_names, heard[-1].points[0].positions, strict=True))
        return joint_state(at, list(at.values()))

    return state


class Gate:
    """A safety node with an interface, proprioception, a robot's joints and pose, and a candidate a turn."""

    def __init__(self, start, peer, **parameters) -> None:
        self.peer, self.driven = peer, -1
        self.node = start(SafetyNode, **LIMITS, **parameters)
        self.executed = peer.hear(ActionChunk, "command/executed")
        self.candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
        self.proprio = peer.say(Proprio, "proprio", qos.SENSOR)
        self.joints = peer.node.create_publisher(JointState, "driver/joint_states", qos.SENSOR).publish
        self.poses = peer.node.create_publisher(PoseStamped, "driver/pose", qos.SENSOR).publish

    def drive(self, action=UP, steps: int = 3, state=None, pose=None) -> None:
        self.proprio(self.peer.proprio(self.peer.tick()))
        self.joints(joint_state() if state is None else state() if callable(state) else state)
        if pose is not None:
            self.poses(pose)
        self.candidate(self.peer.chunk(self.peer.tick(), action, steps))

    def until(self, condition, what: str, timeout_s: float = 20.0, **fields) -> None:
        def turn() -> bool:
            if self.peer.tick() > self.driven:  # one a tick, as the actor
                self.driven = self.peer.tick()
                self.drive(**fields)
            return condition()

        self.peer.graph.spin_until(turn, what, timeout_s)

    def moving(self) -> bool:
        return bool(self.executed) and self.executed[-1].source == Source.VLA


def tool(position=(0.45, 0.0, 0.12), quaternion=(0.0, 0.0, 0.0, 1.0), frame="base_link") -> PoseStamped:
    msg = PoseStamped()
    msg.header.frame_id = frame
    p, q = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z = (float(v) for v in position)
    q.x, q.y, q.z, q.w = (float(v) for v in quaternion)
    return msg


# --- what is sent


def test_trajectory_is_what_its_controller_takes_and_moves_the_tool_up(start, peer):
    gate = Gate(start, peer, interface="joint_trajectory", **ARM)
    heard = peer.hear(JointTrajectory, "driver/joint_trajectory")
    moves = lambda: [msg for msg in heard if len(msg.points) == 3 and np.any(msg.points[0].velocities)]  # noqa: E731
    gate.until(moves, "a trajectory of three points", state=following(heard))
    msg, period_ns = moves()[0], peer.clock.period_ns
    assert msg.joint_names == JOINTS
    assert stamp_ns(msg.header.stamp) % period_ns == 0
    assert [stamp_ns(point.time_from_start) for point in msg.points] == [period_ns, 2 * period_ns, 3 * period_ns]
    assert not np.any(msg.points[-1].velocities)
    arm = Arm(URDF.read_text(), "base_link", "tcp", JOINTS)
    heights = [arm.pose(point.positions)[0][2] for point in msg.points]
    np.testing.assert_allclose(np.diff(heights), 0.5 * 0.0015, rtol=0.02)


@pytest.mark.parametrize("interface", ["joint_trajectory", "forward_command"])
def test_joint_targets_stay_on_the_leash_and_without_jumps_while_the_arm_is_stuck(start, peer, interface):
    gate = Gate(start, peer, interface=interface, output__leash_joint=0.02, **ARM)
    topic = {"joint_trajectory": (JointTrajectory, "driver/joint_trajectory"),
             "forward_command": (Float64MultiArray, "driver/commands")}[interface]
    heard = peer.hear(*topic)
    first = lambda msg: np.array(msg.points[0].positions if interface == "joint_trajectory" else msg.data)  # noqa: E731
    away = lambda: np.abs(first(heard[-1]) - AT).max()  # noqa: E731
    gate.until(lambda: heard and away() > 0.0199, "the end of the leash", action=[1, 0.5, 0.5, 1])
    gate.until(lambda: len(heard) > 30, "targets", action=[1, 0.5, 0.5, 1])
    targets = np.array([first(msg) for msg in heard])
    assert np.abs(targets - AT).max() <= 0.02 + 1e-9
    assert np.abs(np.diff(targets, axis=0)).max() < 0.025  # 0.02 rad of yaw a tick are joint 6's


@pytest.mark.parametrize(
    ("parameters", "msg_type", "topic", "same"),
    [
        ({"interface": "twist"}, TwistStamped, "driver/delta_twist_cmds",
         lambda m: [m.twist.linear.x, m.twist.linear.y, m.twist.linear.z, m.twist.angular.z]),
        ({"interface": "pose"}, PoseStamped, "driver/target_pose",
         lambda m: [m.pose.position.x, m.pose.position.y, m.pose.position.z, m.pose.orientation.z]),
        ({"interface": "joint_trajectory"}, JointTrajectory, "driver/joint_trajectory",
         lambda m: [*m.points[-1].positions, *m.points[0].velocities]),
        ({"interface": "forward_command"}, Float64MultiArray, "driver/commands", lambda m: list(m.data)),
        ({"interface": "forward_command", "output__command": "velocity"}, Float64MultiArray, "driver/commands",
         lambda m: list(m.data)),
    ],
)  # fmt: skip
def test_on_hold_each_controller_is_told_to_stand_still_again_and_again(
    start, peer, graph, parameters, msg_type, topic, same
):
    gate = Gate(start, peer, **parameters, **ARM)
    heard = peer.hear(msg_type, topic)
    velocities = "twist" in topic or parameters.get("output__command") == "velocity"
    moves = lambda: np.any(same(heard[-1])) if velocities else same(heard[-1]) != same(heard[0])  # noqa: E731
    gate.until(lambda: gate.moving() and len(heard) > 5 and moves(), "motion")
    peer.call(Trigger, "safety/stop")
    gate.until(lambda: gate.executed[-1].source == Source.HOLD, "the hold")
    count = len(heard)
    gate.until(lambda: len(heard) > count + 15, "commands under the stop")
    still = [same(msg) for msg in heard[count + 2 :]]
    assert all(values == still[0] for values in still)
    if topic != "driver/target_pose":
        speeds = still[0] if velocities else still[0][6:]
        assert not np.any(speeds)


@pytest.mark.parametrize("interface", ["pose", "joint_trajectory", "forward_command"])
def test_emergency_stop_is_where_the_arm_is_and_not_where_it_was_to_go(start, peer, interface):
    gate = Gate(start, peer, interface=interface, **ARM)
    at = Arm(URDF.read_text(), "base_link", "tcp", JOINTS).pose(AT)[0] if interface == "pose" else AT
    if interface == "pose":
        heard = peer.hear(PoseStamped, "driver/target_pose")
        last = lambda: np.array([getattr(heard[-1].pose.position, axis) for axis in "xyz"])  # noqa: E731
    elif interface == "joint_trajectory":
        heard = peer.hear(JointTrajectory, "driver/joint_trajectory")
        last = lambda: np.array(heard[-1].points[-1].positions)  # noqa: E731
    else:
        heard = peer.hear(Float64MultiArray, "driver/commands")
        last = lambda: np.array(heard[-1].data)  # noqa: E731
    gate.until(lambda: heard and np.abs(last() - at).max() > 0.005, "a target that a stuck arm is behind")
    peer.call(Trigger, "safety/stop")
    gate.until(lambda: np.abs(last() - at).max() < 1e-9, "the target where the arm is", timeout_s=5.0)


@pytest.mark.parametrize("parameters", [{"interface": "joint_trajectory"}, {"interface": "forward_command"},
                                        {"interface": "forward_command", "output__command": "velocity"}])
def test_joint_commands_keep_to_the_robot_files_limits(start, peer, tmp_path, parameters):
    """They are narrower than the URDF's, for cables; the arm lags behind its targets."""
    task = task_file(tmp_path, JOINTS, [0.02] * 6)
    gate = Gate(start, peer, task=task, output__leash_joint=0.15, limits__joint_margin=0.05,
                limits__joint_velocity=[0.7] * 6, limits__joint_lower=[-0.3] * 6, limits__joint_upper=[0.3] * 6,
                **ARM, **parameters)  # fmt: skip
    velocity = "output__command" in parameters
    if parameters["interface"] == "joint_trajectory":
        heard, at = peer.hear(JointTrajectory, "driver/joint_trajectory"), AT.copy()
        sent = lambda: [point.positions for point in heard[-1].points]  # noqa: E731
    else:
        heard, at = peer.hear(Float64MultiArray, "driver/commands"), AT.copy()
        sent = lambda: [heard[-1].data]  # noqa: E731
    done, furthest = 0, [0.0]

    def state() -> JointState:
        nonlocal done
        if len(heard) > done:
            done = len(heard)
            furthest.append(np.max(sent()))
            wanted = np.array(sent()[0])
            at[:] += wanted * 0.5 * peer.clock.period_s if velocity else (wanted - at) * 0.2
        return joint_state(positions=at)

    full = {"action": [1.0] * 6, "state": state}
    gate.until(lambda: np.max(at) > (0.2 if velocity else 0.24), "the way to the limit", **full)
    gate.until(lambda: done > 100, "commands", **full)
    assert max(furthest) <= (0.7 if velocity else 0.25) + 1e-9


@pytest.mark.parametrize("interface", ["pose", "joint_trajectory", "forward_command"])
def test_joints_that_are_silent_hold_the_gate_and_say_so(start, peer, graph, interface):
    gate = Gate(start, peer, interface=interface, **ARM)
    states = peer.hear(SafetyState, "safety/state", qos.STATE)
    gate.until(gate.moving, "motion")

    def without_joints() -> bool:
        gate.proprio(peer.proprio(peer.tick()))
        gate.candidate(peer.chunk(peer.tick(), UP, 3))
        return gate.executed[-1].source == Source.HOLD and states[-1].reason == "no_joints"

    graph.spin_until(without_joints, "the hold")
    gate.until(gate.moving, "motion when the joints are back")


@pytest.mark.parametrize(
    "bad",
    [
        joint_state(positions=[np.nan, *AT[1:]]),
        joint_state(positions=[*AT[:5], np.inf]),
        joint_state(positions=AT[:5]),
        joint_state(names=JOINTS[:5], positions=AT[:5]),
        joint_state(names=[*JOINTS[:5], "other"]),
    ],
)
def test_joint_states_that_are_wrong_move_nothing(start, peer, graph, bad):
    gate = Gate(start, peer, interface="joint_trajectory", **ARM)
    heard = peer.hear(JointTrajectory, "driver/joint_trajectory")
    count = lambda: len(gate.executed)  # noqa: E731
    gate.until(lambda: count() > 10, "ticks", state=bad)
    assert not heard and all(msg.source == Source.HOLD for msg in gate.executed)
    gate.until(lambda: gate.moving() and bool(heard), "motion with good ones")
    assert all(np.isfinite([*p.positions, *p.velocities]).all() for msg in heard for p in msg.points)


def test_joints_of_any_order_and_in_several_messages_are_put_together(start, peer, graph):
    gate = Gate(start, peer, interface="forward_command", **ARM)
    heard = peer.hear(Float64MultiArray, "driver/commands")

    def sent() -> bool:
        gate.proprio(peer.proprio(peer.tick()))
        gate.joints(joint_state(["finger", *JOINTS[:2][::-1]], [0.7, *AT[:2][::-1]]))
        gate.joints(joint_state(JOINTS[2:], AT[2:]))
        return bool(heard)

    graph.spin_until(sent, "a command")
    np.testing.assert_allclose(heard[0].data, AT, atol=1e-12)


def test_arm_that_was_moved_by_hand_holds_the_gate_then_stays_where_it_is(start, peer, graph):
    gate = Gate(start, peer, interface="forward_command", **ARM)
    heard = peer.hear(Float64MultiArray, "driver/commands")
    gate.until(gate.moving, "motion")
    moved = AT + 0.4
    first = len(gate.executed)
    held = lambda: any(msg.source == Source.HOLD for msg in gate.executed[first:])  # noqa: E731
    gate.until(held, "the hold", state=joint_state(positions=moved))
    assert gate.node.gate.counts["tracking"] > 0
    near = lambda at: [np.abs(np.array(msg.data) - at).max() <= 0.02 + 1e-9 for msg in heard]  # noqa: E731
    gate.until(lambda: sum(near(moved)) > 3, "commands from there", state=joint_state(positions=moved))
    there = near(moved)
    assert there == sorted(there)  # never back
    assert all(np.logical_or(there, near(AT)))  # and never anywhere else


def test_pose_comes_from_the_driver_where_there_is_no_urdf(start, peer):
    gate = Gate(start, peer, interface="pose")
    heard = peer.hear(PoseStamped, "driver/target_pose")
    down = (1.0, 0.0, 0.0, 0.0)  # a tool that points down
    gate.until(lambda: len(heard) > 3 and gate.moving(), "targets", pose=tool(quaternion=down))
    assert heard[-1].header.frame_id == "base_link"
    assert 0.12 < heard[-1].pose.position.z <= 0.13 + 1e-9  # moved, by a leash at most
    q = heard[-1].pose.orientation
    np.testing.assert_allclose(np.abs([q.x, q.y, q.z, q.w]), down, atol=1e-9)


@pytest.mark.parametrize(
    "pose",
    [
        tool(frame="base"),
        tool(position=(np.nan, 0, 0)),
        tool(quaternion=(0, 0, 0, 0)),
        tool(quaternion=(0, 0, np.inf, 1)),
    ],
)
def test_pose_that_is_wrong_moves_nothing(start, peer, pose):
    gate = Gate(start, peer, interface="pose")
    heard = peer.hear(PoseStamped, "driver/target_pose")
    gate.until(lambda: gate.node.rejected["driver/pose"] > 5 and len(gate.executed) > 10, "rejected poses", pose=pose)
    assert not heard and all(msg.source == Source.HOLD for msg in gate.executed)


def test_actions_that_are_joints_move_those_joints_and_the_gripper_its_own(start, peer, tmp_path):
    task = task_file(tmp_path, ["joint2", "gripper", "joint1"], [0.01, 0.004, 0.02])
    gate = Gate(start, peer, interface="joint_trajectory", task=task, arm__joints=["joint1", "joint2"],
                gripper__interface="forward_command", gripper__joint="finger", gripper__upper=0.04)  # fmt: skip
    arm = peer.hear(JointTrajectory, "driver/joint_trajectory")
    grip = peer.hear(Float64MultiArray, "driver/gripper/commands")
    state = following(arm, ["finger", "joint1", "joint2"], [0.02, 0.3, -0.4])
    moves = lambda: [msg for msg in arm if len(msg.points) == 3 and np.any(msg.points[0].velocities)]  # noqa: E731
    gate.until(moves, "motion", action=[0.5, -1.0, -0.25], state=state)
    points = np.array([point.positions for point in moves()[0].points])
    np.testing.assert_allclose(np.diff(points, axis=0), np.tile([-0.005, 0.005], (2, 1)), atol=1e-7)
    gate.until(lambda: grip and grip[-1].data[0] == 0.0, "a closed gripper", action=[0.5, -1.0, -0.25], state=state)
    steps = np.diff([msg.data[0] for msg in grip])
    assert steps.min() >= -0.004 - 1e-7 and steps.max() <= 0.0
    peer.call(Trigger, "safety/stop")
    count = len(grip)
    gate.until(lambda: len(grip) > count + 5, "commands on hold", action=[0.0, 1.0, 0.0], state=state)
    assert {msg.data[0] for msg in grip[count + 1 :]} == {0.0}  # the grip stays


def test_gripper_as_a_trajectory(start, peer, tmp_path):
    task = task_file(tmp_path, ["x", "y", "z", "gripper"], [0.001, 0.001, 0.001, 0.002])
    gate = Gate(start, peer, interface="twist", task=task, gripper__interface="joint_trajectory",
                gripper__joint="finger", gripper__upper=0.04)  # fmt: skip
    heard = peer.hear(JointTrajectory, "driver/gripper/joint_trajectory")
    state = joint_state(["finger"], [0.02])
    gate.until(lambda: bool(heard) and heard[-1].points[0].positions[0] > 0.03, "an opening gripper",
               action=[0, 0, 0, 1.0], state=state)  # fmt: skip
    assert heard[-1].joint_names == ["finger"] and list(heard[-1].points[0].velocities) == [0.0]


# --- what does not fit is said at configure


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"interface": "joint_trajectory"}, "'arm.urdf' is not set, interface 'joint_trajectory' needs it"),
        ({"interface": "joint_trajectory", "arm__urdf": str(URDF)}, "'arm.joints' is not set"),
        ({"interface": "joint_trajectory"} | ARM | {"arm__urdf": "/nowhere.urdf"}, "No such file"),
        ({"interface": "joint_trajectory"} | ARM | {"arm__urdf": "<robot"}, "arm: URDF: not XML"),
        ({"interface": "forward_command"} | ARM | {"arm__joints": ["elbow"]}, "no moving joint 'elbow', it has joint1"),
        ({"interface": "pose"} | ARM | {"arm__tip": "flange"}, "no link 'flange'"),
        ({"interface": "pose", "output__leash_m": 0.0}, "'output.leash_m' is 0.0"),
        ({"interface": "pose", "output__max_tracking_error": 0.1}, "with interface 'pose' no controller reports it"),
        ({"output__max_tracking_error": 0.1}, "with interface 'chunk' no controller reports it"),
        ({"interface": "ros_control"}, "one of ['chunk', 'twist', 'pose', 'joint_trajectory', 'forward_command']"),
        ({"interface": "pose", "task": "reacher"}, "'pose' takes the actions x, y, z and yaw, task 'reacher'"),
        ({"interface": "joint_trajectory", "task": "reacher"} | ARM, "or one named as each of arm.joints"),
        ({"interface": "twist", "gripper__interface": "forward_command"}, "'gripper.interface' is 'forward_command'"),
    ],
)
def test_what_does_not_fit_fails_at_configure(make, parameters, said):
    assert said in make(SafetyNode, **LIMITS, **parameters).configure_error


def test_gripper_without_an_output_or_a_joint_fails_at_configure(make, tmp_path):
    task = task_file(tmp_path, ["x", "y", "z", "gripper"], [0.001, 0.001, 0.001, 0.002])
    node = make(SafetyNode, interface="twist", task=task, **LIMITS)
    assert "expected joint_trajectory or forward_command" in node.configure_error
    node = make(SafetyNode, interface="twist", task=task, gripper__interface="forward_command", **LIMITS)
    assert "gripper: joint is ''" in node.configure_error


# --- the controller's own report, whose message not every machine has


class Tracked(Gate):
    """A gate whose controller reports `error` [6] of the joints `reported` each turn; None: it is silent."""

    def __init__(self, start, peer) -> None:
        messages = pytest.importorskip("control_msgs.msg", reason="control_msgs is not installed; the wheels have none")
        super().__init__(start, peer, interface="joint_trajectory", output__max_tracking_error=0.1, **ARM)
        self.report = messages.JointTrajectoryControllerState
        self.say = peer.say(self.report, "driver/controller_state", qos.SENSOR)
        self.states = peer.hear(SafetyState, "safety/state", qos.STATE)
        self.diagnostics = peer.hear(DiagnosticArray, "/diagnostics")
        self.error, self.reported = None, JOINTS

    def drive(self, **fields) -> None:
        if self.error is not None:
            msg = self.report(joint_names=self.reported)
            msg.error.positions = packed(np.broadcast_to(np.array(self.error, float), len(self.reported)), "d")
            self.say(msg)
        super().drive(**fields)

    def until_held(self, reason: str, words: str) -> None:
        """Until the robot is held, and the operator was told why."""

        def held() -> bool:
            newest = [s for msg in self.diagnostics[-20:] for s in msg.status if s.name == "safety_node"][-1:]
            told = bool(self.states) and self.states[-1].reason == reason and newest and words in newest[0].message
            return bool(told) and self.executed[-1].source == Source.HOLD

        self.until(held, f"the hold for {reason}, told with '{words}'")

    def until_moving(self) -> None:
        self.error, self.reported = 0.01, JOINTS
        self.until(self.moving, "motion")


@pytest.fixture
def tracked(start, peer):
    return Tracked(start, peer)


def test_a_small_tracking_error_goes_on_and_a_large_one_holds(tracked):
    tracked.until_moving()
    tracked.error = [0.09, -0.09, 0.0, 0.0, 0.0, 0.0]
    count = len(tracked.executed)
    moved = lambda: sum(msg.source == Source.VLA for msg in tracked.executed[count:])  # noqa: E731
    tracked.until(lambda: moved() > 20, "motion under the limit")
    assert tracked.node.gate.counts["tracking"] == 0
    tracked.error = [0.0, 0.0, -0.2, 0.0, 0.0, 0.0]
    tracked.until_held("tracking", "driver/controller_state has an error of 0.2, more than output.max_tracking_error")
    tracked.until_moving()


@pytest.mark.parametrize("error, joints",
                         [(np.nan, JOINTS), ([0, 0, 0, 0, 0, np.inf], JOINTS), (0.0, JOINTS[:5]), (0.0, ["elbow"])])
def test_a_report_without_a_finite_error_of_each_joint_holds(tracked, error, joints):
    tracked.until_moving()
    tracked.error, tracked.reported = error, joints
    tracked.until_held("tracking", "driver/controller_state has an error of inf")


def test_a_controller_that_falls_silent_holds_whatever_it_said_last(tracked):
    tracked.until_moving()
    tracked.error = None
    tracked.until_held("no_joints", "too old on driver/controller_state")
    tracked.until_moving()


def test_nothing_moves_before_the_first_report(tracked):
    tracked.until(lambda: tracked.node.gate.counts["no_joints"] > 20, "held ticks")
    assert all(msg.source == Source.HOLD for msg in tracked.executed)


def test_without_control_msgs_a_limit_of_the_tracking_error_fails_at_configure(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs.msg", None)  # as where it is not installed
    node = make(SafetyNode, interface="joint_trajectory", output__max_tracking_error=0.1, **LIMITS, **ARM)
    assert "'output.max_tracking_error' needs the messages of control_msgs" in node.configure_error


# --- the whole path, with the simulated arm

PATHS = {
    "chunk": {},
    "twist": {},
    "pose": {"output__leash_m": 0.006, "output__leash_rad": 0.08},
    "joint_trajectory": {},
    "forward_command": {},
    "velocity": {"output__command": "velocity"},
}
SCALE = np.array([0.0015, 0.0015, 0.0015, 0.02])


class Whole:
    """Simulator, proprioception and gate; `steer()` sends one candidate a tick."""

    def __init__(self, start, peer, path: str, proprio_timeout_s: float = 1.0) -> None:
        interface = "forward_command" if path == "velocity" else path
        command = {"command": "velocity"} if path == "velocity" else {}
        start(SimNode, interface=interface, **command)
        start(ProprioNode)
        limits = LIMITS | {"limits__command_timeout_s": 0.2, "limits__slow_watchdog": True}
        self.safety = start(SafetyNode, interface=interface, proprio_timeout_s=proprio_timeout_s, **limits, **ARM,
                            **PATHS[path])  # fmt: skip
        self.peer = peer
        self.poses = peer.hear(PoseStamped, "driver/pose", qos.SENSOR)
        self.executed = peer.hear(ActionChunk, "command/executed")
        self.candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
        self.tick = -1
        peer.graph.spin_until(lambda: len(self.poses) > 3 and len(self.executed) > 3, "poses")

    def where(self) -> np.ndarray:
        p, q = self.poses[-1].pose.position, self.poses[-1].pose.orientation
        return np.array([p.x, p.y, p.z, yaw_of([q.x, q.y, q.z, q.w])])

    def steer(self, action) -> None:
        if self.peer.tick() > self.tick:
            self.tick = self.peer.tick()
            self.candidate(self.peer.chunk(self.tick, list(action), 3))

    def rest(self, poses: int) -> None:
        """So many poses later."""
        count = len(self.poses)
        self.peer.graph.spin_until(lambda: len(self.poses) > count + poses, "poses")


@pytest.mark.parametrize("path", PATHS)
def test_each_path_takes_the_arm_to_the_goal_and_holds_it_there(graph, start, peer, path):
    """Steered by eye, since a busy machine loses ticks; test_controllers.py has the paths tick for tick."""
    whole = Whole(start, peer, path)
    goal = whole.where() + [0.012, -0.008, 0.015, 0.15]

    def there() -> bool:
        error = goal - whole.where()
        whole.steer((0.2 * error / SCALE).clip(-0.5, 0.5))
        return np.linalg.norm(error[:3]) < 3e-4 and abs(error[3]) < 4e-3

    graph.spin_until(there, "the goal", 40.0)
    whole.rest(25)
    error = whole.where() - goal
    assert np.linalg.norm(error[:3]) < 3e-3 and abs(error[3]) < 5e-2  # late ticks take it past
    still = whole.where()
    whole.rest(15)
    assert np.abs(whole.where() - still)[:3].max() < 2e-4


@pytest.mark.parametrize("path", ["twist", "pose", "joint_trajectory", "forward_command"])
def test_arm_stands_still_when_the_gate_dies(graph, start, peer, path):
    """By Servo's time-out, or where the last command leads; forwarded velocities have none of these."""
    whole = Whole(start, peer, path)
    arm = Arm(URDF.read_text(), "base_link", "tcp", JOINTS)
    msg_type, topic, leads_to = {
        "twist": (TwistStamped, "driver/delta_twist_cmds", lambda msg: None),
        "pose": (PoseStamped, "driver/target_pose", lambda msg: msg.pose.position.z),
        "joint_trajectory": (JointTrajectory, "driver/joint_trajectory",
                             lambda msg: arm.pose(msg.points[-1].positions)[0][2]),
        "forward_command": (Float64MultiArray, "driver/commands", lambda msg: arm.pose(msg.data)[0][2]),
    }[path]
    heard = peer.hear(msg_type, topic)
    whole.safety.on_deactivate_ = lambda: None  # its death, not its end: no last command
    begin = whole.where()
    graph.spin_until(lambda: (whole.steer([0, 0, 1.0, 0]), whole.where()[2] > begin[2] + 0.01)[1], "the rise")
    whole.safety.trigger_deactivate()
    whole.rest(40)
    still = whole.where()
    whole.rest(15)
    assert np.abs(whole.where() - still).max() < 2e-4
    end = leads_to(heard[-1])
    assert end is None or still[2] < end + 1e-3  # a trajectory that came too late was refused: it may be short of it


def test_forwarded_velocity_goes_on_when_the_gate_dies(graph, start, peer):
    """The documented behaviour of that controller, and why it is not for a driver without a time-out."""
    whole = Whole(start, peer, "velocity")
    whole.safety.on_deactivate_ = lambda: None
    begin = whole.where()
    risen = lambda: whole.where()[2] > begin[2] + 0.005 and not whole.safety.gate.reason  # noqa: E731
    graph.spin_until(lambda: (whole.steer([0, 0, 0.5, 0]), risen())[1], "the rise")
    whole.safety.trigger_deactivate()
    at_death = whole.where()
    graph.spin_until(lambda: whole.where()[2] > at_death[2] + 0.01, "the arm to go on")


def test_reset_of_the_scene_does_not_drag_the_arm_back(graph, start, peer):
    whole = Whole(start, peer, "joint_trajectory", proprio_timeout_s=0.1)
    heard = peer.hear(JointTrajectory, "driver/joint_trajectory")
    arm = Arm(URDF.read_text(), "base_link", "tcp", JOINTS)
    for _ in range(3):
        before = whole.where()
        assert peer.call(Trigger, "sim/reset").success
        whole.rest(40)
        assert np.abs(whole.where() - before)[:3].max() > 1e-3  # another scene starts elsewhere
    graph.spin_until(lambda: bool(heard), "commands")
    target = arm.pose(heard[-1].points[-1].positions)[0]
    assert np.linalg.norm(target - whole.where()[:3]) < 1e-3  # it stands at its target
    still = whole.where()
    whole.rest(20)
    assert np.abs(whole.where() - still).max() < 2e-4


def test_pose_from_joints_is_the_drivers(graph, start, peer):
    start(SimNode, arm__joints=JOINTS)
    node = start(ProprioNode, pose_from_joints=True, **ARM)
    poses = peer.hear(PoseStamped, "driver/pose", qos.SENSOR)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    assert "driver/pose" not in [sub.topic_name.removeprefix("/") for sub in node.subscriptions]

    def both() -> list:
        stamps = {stamp_ns(msg.header.stamp): msg for msg in poses}
        return [(stamps[key], msg) for msg in heard if (key := stamp_ns(msg.header.stamp)) in stamps]

    graph.spin_until(lambda: len(both()) > 5, "poses of the same moment")
    for pose, msg in both():
        p, q = pose.pose.position, pose.pose.orientation
        np.testing.assert_allclose(msg.values[:4], [p.x, p.y, p.z, yaw_of([q.x, q.y, q.z, q.w])], atol=1e-5)


def test_pose_from_joints_is_as_old_as_the_oldest_of_them(graph, start, peer):
    """A driver that sends the arm's joints in two messages, of which one ends."""
    node = start(ProprioNode, pose_from_joints=True, **ARM)
    heard = peer.hear(Proprio, "proprio", qos.SENSOR)
    joints = peer.say(JointState, "driver/joint_states", qos.SENSOR)
    twist, wrench = (peer.say(kind, f"driver/{name}", qos.SENSOR) for kind, name in
                     ((TwistStamped, "twist"), (WrenchStamped, "wrench")))  # fmt: skip
    sent_tick = -1

    def send(*parts: slice) -> None:
        nonlocal sent_tick
        if peer.tick() == sent_tick:
            return
        sent_tick = peer.tick()
        top = header(peer.clock.stamp_ns(sent_tick))
        twist(TwistStamped(header=top))
        wrench(WrenchStamped(header=top))
        for part in parts:
            msg = joint_state(JOINTS[part], AT[part])
            msg.header.stamp = top.stamp
            joints(msg)

    first, last = slice(0, 3), slice(3, 6)
    graph.spin_until(lambda: (send(first, last), len(heard) > 5)[1], "proprioception")
    position, quaternion = Arm(URDF.read_text(), "base_link", "tcp", JOINTS).pose(AT)
    np.testing.assert_allclose(heard[-1].values[:4], [*position, yaw_of(quaternion)], atol=1e-6)
    ended_tick = sent_tick
    graph.spin_until(lambda: (send(first), "no proprioception" in node.problem)[1], "its end")
    assert heard[-1].tick <= ended_tick and not node.rejected


def test_pose_from_joints_needs_a_urdf(make):
    node = make(ProprioNode, pose_from_joints=True)
    assert "'arm.urdf' is not set, parameter 'pose_from_joints' needs it" in node.configure_error


@pytest.mark.parametrize(
    ("interface", "msg_type", "topic", "bad"),
    [
        ("twist", TwistStamped, "driver/delta_twist_cmds", TwistStamped()),
        ("pose", PoseStamped, "driver/target_pose", tool(frame="tool0")),
        ("joint_trajectory", JointTrajectory, "driver/joint_trajectory", JointTrajectory(joint_names=JOINTS)),
        ("forward_command", Float64MultiArray, "driver/commands", Float64MultiArray(data=packed([0.0], "d"))),
    ],
)
def test_simulated_controller_refuses_and_counts(graph, start, peer, interface, msg_type, topic, bad):
    sim = start(SimNode, interface=interface)
    say = peer.say(msg_type, topic, qos.COMMAND)
    graph.spin_until(lambda: (say(bad), sim.rejected[topic] > 2)[1], "refused commands")


def test_controllers_of_an_arm_need_one(make):
    assert "has no arm under a Cartesian controller" in make(SimNode, task="reacher", interface="pose").configure_error


def test_another_node_that_can_command_the_controller_is_named(start, peer, graph):
    gate = Gate(start, peer, interface="twist")
    node, said = gate.node, peer.hear(DiagnosticArray, "/diagnostics")
    problem = lambda: [s.message for m in said for s in m.status if s.name == "safety_node"][-1:]  # noqa: E731
    gate.until(lambda: problem() == ["active"], "a gate that is alone")
    joystick = graph.add(Node("joystick"))
    joystick.create_publisher(TwistStamped, "driver/delta_twist_cmds", qos.COMMAND)
    wanted = "another node can move the robot past this gate: /joystick on /driver/delta_twist_cmds; stop it"
    gate.until(lambda: problem() == [wanted], "its name")
    assert gate.moving()
