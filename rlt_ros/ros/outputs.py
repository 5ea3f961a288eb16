"""From the gate to the robot's controllers: what each kind hears, and what makes it stand still.

The interface `chunk` needs nothing of this: command/executed is its command. An output is asked every tick, before the
gate decides, whether it could send (`cause`), and is then given what the gate let through (`send`); on a hold it sends
what makes its controller stand still, each tick again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.kinematics import JointLimits
from rlt_ros.core.limits import Limits
from rlt_ros.core.rotations import quaternion_of
from rlt_ros.core.targets import ActionLayout, GripperTarget, JointTargets, PoseTarget, tracking_error
from rlt_ros.ros import qos
from rlt_ros.ros.control_messages import controller_state_type
from rlt_ros.ros.conversions import header, packed, stamp_ns
from rlt_ros.ros.parameters import ParameterError, parameter
from rlt_ros.ros.robot import JointBook, load_arm

if TYPE_CHECKING:
    from rlt_ros.ros.node import RltNode

INTERFACES = ("chunk", "twist", "pose", "joint_trajectory", "forward_command")
CORRECTION = 3.0  # 1/s, of how far the joints are from their target, in a velocity command


@dataclass(frozen=True, kw_only=True)
class OutputParameters:
    """How a controller is commanded."""

    leash_m: float = parameter(0.01, "interface pose: target at most so far from the tool", unit="m", low=1e-4,
                               high=0.2)
    leash_rad: float = parameter(0.1, "the same of its orientation", unit="rad", low=1e-3, high=1.0)
    leash_joint: float = parameter(0.02, "joint targets at most so far from the joints", unit="rad or m", low=1e-4)
    command: str = parameter("position", "what forward_command commands", choices=("position", "velocity"))
    lead_s: float = parameter(0.0, "a trajectory's points are later by this: a controller that hears late", unit="s",
                              low=0.0, high=0.5)
    max_tracking_error: float = parameter(
        0.0, "hold while the controller's report has a larger error; 0: not looked at", unit="rad or m", low=0.0
    )


@dataclass(frozen=True, kw_only=True)
class GripperParameters:
    """How a gripper is commanded, for tasks with an action of that name."""

    interface: str = parameter("none", "its controller", choices=("none", "joint_trajectory", "forward_command"))
    joint: str = parameter("", "its joint in driver/joint_states")
    lower: float = parameter(0.0, "least opening", unit="m or rad")
    upper: float = parameter(0.0, "largest opening", unit="m or rad")
    leash: float = parameter(1.0, "target at most so far from the measured opening", unit="m or rad", low=1e-4)


class Output(Protocol):
    """One controller."""

    def cause(self, now_s: float) -> tuple[str, str]:
        """Why the gate must hold, one of its causes (`no_joints`, `tracking`, ""), and more of it (monotonic time)."""

    def send(self, chunk: Chunk) -> None:
        """Command what the gate let through for chunk.tick; source HOLD: stand still."""

    def stop(self) -> None:
        """Let the next hold be where the robot is now, not where it was to go: an emergency stop."""

    def forget(self) -> None:
        """Begin where the robot is: somebody else may have moved it."""


def make(node: "RltNode", task: Any, book: JointBook) -> list[Output]:
    """The outputs of a node with the parameters interface, frame_id, output, gripper and proprio_timeout_s.

    task: what the actions are (name, action_names, action_scale).  book: told which joints are wanted, and filled by
    the node.  ParameterError when the parameters do not fit the interface.
    """
    layout = ActionLayout.of(task.action_names, node.params.arm.joints)
    scale = np.asarray(task.action_scale, float)
    interface, gripper = node.params.interface, node.params.gripper.interface
    joint_wise = interface in ("joint_trajectory", "forward_command")
    if node.params.output.max_tracking_error and not joint_wise:
        raise ParameterError(f"parameter 'output.max_tracking_error' is {node.params.output.max_tracking_error:g}, but "
                             f"with interface '{interface}' no controller reports it; set it to 0, or use "
                             "joint_trajectory")
    if interface == "chunk":
        return []
    has = f"task '{task.name}' has {len(task.action_names)}: {', '.join(task.action_names)}"
    if not layout.motion and not (joint_wise and layout.joints):
        also = " or one named as each of arm.joints" if joint_wise else ""
        raise ParameterError(f"interface '{interface}' takes the actions x, y, z and yaw{also}, {has}; "
                             "use interface 'chunk'")
    if (layout.gripper is None) != (gripper == "none"):
        raise ParameterError(f"parameter 'gripper.interface' is '{gripper}', but {has}; expected "
                             f"{'none' if layout.gripper is None else 'joint_trajectory or forward_command'}")
    outputs: list[Output] = []
    if interface == "twist":
        outputs.append(TwistOutput(node, layout, scale))
    elif interface == "pose":
        outputs.append(PoseOutput(node, layout, scale, book))
    else:
        outputs.append(JointOutput(node, layout, scale, book))
    if layout.gripper is not None:
        outputs.append(GripperOutput(node, layout, scale, book))
    return outputs


class TwistOutput:
    """A velocity of the tool: MoveIt Servo. It stops by itself when it hears nothing (incoming_command_timeout)."""

    def __init__(self, node: "RltNode", layout: ActionLayout, scale: np.ndarray) -> None:
        self.node, self.index = node, list(layout.motion)
        self.per_s = scale[self.index] / node.control.period_s
        self.topic = node.publish(TwistStamped, "driver/delta_twist_cmds", qos.COMMAND)

    def cause(self, now_s: float) -> tuple[str, str]:
        return "", ""

    def stop(self) -> None:
        pass

    forget = stop

    def send(self, chunk: Chunk) -> None:
        x, y, z, yaw = [*(chunk.actions[0][self.index] * self.per_s).tolist(), 0.0][:4]
        msg = TwistStamped(header=header(self.node.now_ns(), self.node.params.frame_id))
        msg.twist.linear.x, msg.twist.linear.y, msg.twist.linear.z, msg.twist.angular.z = x, y, z, yaw
        self.topic.publish(msg)


class PoseOutput:
    """A target of the tool: a Cartesian compliance controller. It keeps the last one when it hears nothing."""

    def __init__(self, node: "RltNode", layout: ActionLayout, scale: np.ndarray, book: JointBook) -> None:
        self.node, self.book, self.index = node, book, list(layout.motion)
        self.scale = scale[self.index]
        params = node.params.output
        self.target = PoseTarget(params.leash_m, params.leash_rad, workspace(node.limits))
        self.stop = self.forget = self.target.forget
        self.arm = load_arm(node.params.arm, "interface 'pose'") if node.params.arm.urdf else None
        self.measured: tuple | None = None
        self.measured_s = -np.inf
        if self.arm is None:
            node.subscribe(PoseStamped, "driver/pose", self.on_pose, qos.SENSOR)
        else:
            book.want(self.arm.names)
        self.topic = node.publish(PoseStamped, "driver/target_pose", qos.COMMAND)

    def on_pose(self, msg: PoseStamped) -> None:
        if msg.header.frame_id not in ("", self.node.params.frame_id):
            raise ValueError(
                f"driver/pose is in the frame '{msg.header.frame_id}', expected '{self.node.params.frame_id}', in "
                "which actions and targets are; set frame_id, or arm.urdf to compute the pose"
            )
        if ns := stamp_ns(msg.header.stamp):
            self.node.expect_recent("driver/pose", self.node.control.tick(ns), self.node.params.max_age_ticks)
        p, q = msg.pose.position, msg.pose.orientation
        position, quaternion = (p.x, p.y, p.z), (q.x, q.y, q.z, q.w)
        if not np.isfinite([*position, *quaternion]).all() or np.linalg.norm(quaternion) < 1e-6:
            raise ValueError(f"driver/pose is {position}, {quaternion}, expected finite numbers and a quaternion")
        self.measured, self.measured_s = (position, quaternion), self.node.now_s()

    def cause(self, now_s: float) -> tuple[str, str]:
        oldest_s = now_s - self.node.params.proprio_timeout_s
        if self.arm is not None:
            joints = self.book.values(self.arm.names, oldest_s)
            measured = None if joints is None else self.arm.pose(joints)
        else:
            measured = self.measured if self.measured_s >= oldest_s else None
        if measured is None:
            self.target.forget()  # who knows where the tool is when it is seen again
            return "no_joints", "too old on driver/pose" if self.arm is None else ""
        return "" if self.target.observe(*measured) else "tracking", ""

    def send(self, chunk: Chunk) -> None:
        target = self.target.step(chunk.actions[0][self.index] * self.scale)
        if target is None:
            return
        msg = PoseStamped(header=header(self.node.now_ns(), self.node.params.frame_id))
        p, q = msg.pose.position, msg.pose.orientation
        p.x, p.y, p.z = target[0].tolist()
        q.x, q.y, q.z, q.w = quaternion_of(target[1]).tolist()
        self.topic.publish(msg)


class JointOutput:
    """Joints: joint_trajectory_controller, or forward_command_controller with positions or velocities.

    A trajectory has a point a tick as far as the gate's command reaches and ends at rest, so that its controller stops
    there when it hears nothing; positions stay; velocities stay too, which is why they need a driver with a time-out.
    """

    def __init__(self, node: "RltNode", layout: ActionLayout, scale: np.ndarray, book: JointBook) -> None:
        params, wanted = node.params.output, f"interface '{node.params.interface}'"
        self.node, self.book, self.names = node, book, list(node.params.arm.joints)
        arm = None
        if layout.motion or node.params.arm.urdf:
            arm = load_arm(node.params.arm, wanted)
        free = [JointLimits(-np.inf, np.inf, np.inf)] * len(self.names)
        limits = narrowed(arm.limits if arm is not None else free, node.limits)
        self.index = list(layout.joints or layout.motion)
        self.scale = scale[self.index]
        self.fastest = np.array([limit.velocity for limit in limits])
        book.want(self.names)
        self.targets = JointTargets(limits, params.leash_joint, node.control.period_s, None if layout.joints else arm,
                                    workspace(node.limits))
        self.stop = self.forget = self.targets.forget
        self.max_error, self.error, self.error_s = params.max_tracking_error, np.inf, -np.inf
        if self.max_error:
            node.subscribe(controller_state_type("parameter 'output.max_tracking_error'"), "driver/controller_state",
                           self.on_controller_state, qos.SENSOR)
        self.trajectory = node.params.interface == "joint_trajectory"
        self.velocity = not self.trajectory and params.command == "velocity"
        if self.velocity:
            node.get_logger().warning("forwarded velocities stay when this node dies: the driver must have a time-out")
        if self.trajectory:
            self.topic = node.publish(JointTrajectory, "driver/joint_trajectory", qos.COMMAND)
        else:
            self.topic = node.publish(Float64MultiArray, "driver/commands", qos.COMMAND)

    def on_controller_state(self, msg: Any) -> None:
        self.error = tracking_error(self.names, msg.joint_names, msg.error.positions)
        self.error_s = self.node.now_s()

    def cause(self, now_s: float) -> tuple[str, str]:
        oldest_s = now_s - self.node.params.proprio_timeout_s
        joints = self.book.values(self.names, oldest_s)
        if joints is None:
            self.targets.forget()  # who knows where the arm is when it is seen again
            return "no_joints", ""
        near = self.targets.observe(joints)
        if self.max_error and self.error_s < oldest_s:
            return "no_joints", "too old on driver/controller_state"
        if self.max_error and self.error > self.max_error:
            return "tracking", (f"driver/controller_state has an error of {self.error:.3g}, more than"
                                f" output.max_tracking_error ({self.max_error:g})")
        return "" if near else "tracking", ""

    def send(self, chunk: Chunk) -> None:
        held = chunk.source == Source.HOLD
        if self.velocity and held:  # whatever is known of the joints
            self.targets.forget()
            self.topic.publish(Float64MultiArray(data=packed(np.zeros(len(self.names)), "d")))
            return
        actions = chunk.actions[: None if self.trajectory else 1, self.index] * self.scale
        plan = self.targets.plan(chunk.tick, actions)
        if plan is None:
            return
        if self.trajectory:
            self.topic.publish(self.as_trajectory(chunk.tick, plan))
        elif self.velocity:
            wanted = (plan.positions[0] - plan.start) / self.node.control.period_s
            wanted += CORRECTION * (plan.start - self.targets.measured)
            self.topic.publish(Float64MultiArray(data=packed(wanted.clip(-self.fastest, self.fastest), "d")))
        else:
            self.topic.publish(Float64MultiArray(data=packed(plan.positions[0], "d")))

    def as_trajectory(self, tick: int, plan: Any) -> JointTrajectory:
        """Stamped with the beginning of the tick; point i is where the joints are at the end of tick + i."""
        clock, lead_ns = self.node.control, round(self.node.params.output.lead_s * 1e9)
        points = plan.positions, plan.velocities
        return trajectory_msg(clock.stamp_ns(tick), clock.period_ns, lead_ns, self.names, *points)


class GripperOutput:
    """A gripper's opening, as a position for a forward_command_controller or a joint_trajectory_controller."""

    def __init__(self, node: "RltNode", layout: ActionLayout, scale: np.ndarray, book: JointBook) -> None:
        params = node.params.gripper
        if not params.joint or not params.lower < params.upper:
            raise ParameterError(f"gripper: joint is {params.joint!r}, lower {params.lower}, upper {params.upper}; "
                                 "expected a joint of driver/joint_states and lower < upper")
        self.node, self.book, self.joint = node, book, params.joint
        book.want([self.joint])
        self.index, self.scale = layout.gripper, float(scale[layout.gripper])
        self.target = GripperTarget(params.lower, params.upper, params.leash)
        self.forget = self.target.forget
        self.trajectory = params.interface == "joint_trajectory"
        if self.trajectory:
            self.topic = node.publish(JointTrajectory, "driver/gripper/joint_trajectory", qos.COMMAND)
        else:
            self.topic = node.publish(Float64MultiArray, "driver/gripper/commands", qos.COMMAND)

    def cause(self, now_s: float) -> tuple[str, str]:
        measured = self.book.values([self.joint], now_s - self.node.params.proprio_timeout_s)
        if measured is None:
            return "no_joints", ""
        self.target.observe(float(measured[0]))
        return "", ""

    def stop(self) -> None:
        """It does not let go of what it holds."""

    def send(self, chunk: Chunk) -> None:
        target = self.target.step(float(chunk.actions[0][self.index]) * self.scale)
        if target is None:
            return
        if self.trajectory:
            clock = self.node.control
            point = np.array([[target]])
            stamp_ns = clock.stamp_ns(chunk.tick)
            self.topic.publish(trajectory_msg(stamp_ns, clock.period_ns, 0, [self.joint], point, 0 * point))
        else:
            self.topic.publish(Float64MultiArray(data=packed([target], "d")))


def workspace(limits: Limits) -> tuple | None:
    """Its two corners."""
    return None if limits.workspace_lower is None else (limits.workspace_lower, limits.workspace_upper)


def narrowed(limits: Sequence[JointLimits], own: Limits) -> list[JointLimits]:
    """A URDF's limits and those of the robot's file, the margin taken off: what no joint target leads out of."""
    margin = own.joint_margin or 0.0
    lower, upper, velocity = (
        given if given is not None else [far] * len(limits)
        for given, far in ((own.joint_lower, -np.inf), (own.joint_upper, np.inf), (own.joint_velocity, np.inf))
    )
    try:
        return [JointLimits(max(limit.lower, low) + margin, min(limit.upper, high) - margin, min(limit.velocity, most))
                for limit, low, high, most in zip(limits, lower, upper, velocity, strict=True)]
    except ValueError:
        raise ParameterError(f"limits.joint_lower, joint_upper and joint_velocity: expected {len(limits)} numbers each,"
                             f" one for each of arm.joints") from None


def trajectory_msg(
    stamp_ns: int, period_ns: int, lead_ns: int, names: list[str], positions: np.ndarray, velocities: np.ndarray
) -> JointTrajectory:
    """Points [n, J], one a period; the first is due a period and `lead_ns` after the stamp."""
    points = []
    for i, (position, velocity) in enumerate(zip(positions, velocities)):
        seconds, ns = divmod(lead_ns + (i + 1) * period_ns, 1_000_000_000)
        points.append(JointTrajectoryPoint(positions=packed(position, "d"), velocities=packed(velocity, "d"),
                                           time_from_start=Duration(sec=seconds, nanosec=ns)))
    return JointTrajectory(header=header(stamp_ns), joint_names=names, points=points)
