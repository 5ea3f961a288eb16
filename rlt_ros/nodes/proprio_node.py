"""Proprioception ingestion: the robot's streams in, one vector a control tick out."""

import time
from dataclasses import dataclass

from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import JointState

from rlt_ros.core.proprioception import ProprioAssembler
from rlt_ros.msg import Proprio
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import proprio_to_msg, stamp_ns
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.ros.robot import JointBook, load_arm
from rlt_ros.sim.task import load_task


class ProprioNode(RltNode):
    """Join pose, twist, wrench and joint states in the order of the task's `state`.

    Subscribes, as far as the task needs them: driver/pose (PoseStamped, tool in the base), driver/twist (TwistStamped),
    driver/wrench (WrenchStamped), driver/joint_states (JointState); with pose_from_joints the last of these in place of
    the first.  Publishes: proprio (Proprio), at most once a tick.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        derive_twist: bool = parameter(False, "compute the twist from two poses, for robots that publish none")
        joints: dict = parameter(
            {}, "joints.<part of the task's state>: names in the joint states, in the order wanted"
        )
        pose_from_joints: bool = parameter(
            False, "compute the pose from driver/joint_states and arm.urdf, for robots that publish none"
        )
        max_silence_s: float = parameter(0.5, "proprioception that is late by more is reported", unit="s", low=0.0)

    def on_configure_(self) -> None:
        layout = [(key.key, key.size) for key in load_task(self.params.task).state]
        self.assembler = ProprioAssembler(layout, self.params.joints, self.params.derive_twist)
        self.output = self.publish(Proprio, "proprio", qos.SENSOR)
        self.joined_s = time.monotonic()
        needed = set(self.assembler.streams)
        self.arm = None
        if self.params.pose_from_joints and "pose" in needed:
            self.arm = load_arm(self.params.arm, "parameter 'pose_from_joints'")
            self.book = JointBook(self.arm.names)
            needed = needed - {"pose"} | {"joint_states"}
        for stream, msg_type, callback in (
            ("pose", PoseStamped, self.on_pose),
            ("twist", TwistStamped, self.on_twist),
            ("wrench", WrenchStamped, self.on_wrench),
            ("joint_states", JointState, self.on_joint_states),
        ):
            if stream in needed and not (stream == "twist" and self.params.derive_twist):
                self.subscribe(msg_type, f"driver/{stream}", callback, qos.SENSOR)
        self.every(0.25, self.report_silence)

    def on_pose(self, msg: PoseStamped) -> None:
        p, q = msg.pose.position, msg.pose.orientation
        self.assembler.add_pose(*self.when(msg), (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        self.send()

    def on_twist(self, msg: TwistStamped) -> None:
        v = msg.twist.linear
        self.assembler.add_twist(*self.when(msg), (v.x, v.y, v.z), msg.twist.angular.z)
        self.send()

    def on_wrench(self, msg: WrenchStamped) -> None:
        f, t = msg.wrench.force, msg.wrench.torque
        self.assembler.add_wrench(*self.when(msg), (f.x, f.y, f.z), (t.x, t.y, t.z))
        self.send()

    def on_joint_states(self, msg: JointState) -> None:
        if self.arm is not None:
            self.book.add(msg)
            joints = self.book.values(self.arm.names, time.monotonic() - self.params.max_silence_s)
            if joints is not None and set(self.arm.names) & set(msg.name):
                self.assembler.add_pose(*self.when(msg), *self.arm.pose(joints))
        if "joint_states" in self.assembler.streams:
            self.assembler.add_joint_states(*self.when(msg), msg.name, msg.position, msg.velocity)
        self.send()

    def when(self, msg) -> tuple[int, int]:
        ns = stamp_ns(msg.header.stamp)
        return self.control.tick(ns), ns

    def send(self) -> None:
        joined = self.assembler.join()
        if joined is not None:
            _, ns, values = joined
            self.joined_s = time.monotonic()
            self.output.publish(proprio_to_msg(values, self.control, ns))

    def report_silence(self) -> None:
        silent_s = time.monotonic() - self.joined_s
        missing = self.assembler.waiting_for()
        problem = ""
        if silent_s > self.params.max_silence_s:
            topics = ", ".join(f"driver/{name}" for name in missing) or "the driver's topics"
            problem = f"no proprioception for {silent_s:.1f} s: nothing usable on {topics}"
            if not self.problem:
                self.get_logger().warning(problem)
        self.problem = problem
