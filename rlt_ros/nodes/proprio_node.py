"""Proprioception ingestion: the robot's streams in, one vector a control tick out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import JointState

from rlt_ros.core.ingest import ProprioIngest
from rlt_ros.core.proprioception import ProprioAssembler
from rlt_ros.core.streams import Troubles
from rlt_ros.msg import Proprio
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import stamp_ns
from rlt_ros.ros.ingest import add_numbers, add_reading
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.ros.robot import JointBook, load_arm
from rlt_ros.ros.wire import frame_from_wire, numbers_from_wire, proprio_to_wire
from rlt_ros.sim.task import load_task


class ProprioNode(RltNode):
    """Join pose, twist, wrench and joint states in the order of the task's `state`.

    Subscribes, as far as the task needs them: driver/pose (PoseStamped, tool in the base), driver/twist (TwistStamped),
    driver/wrench (WrenchStamped), driver/joint_states (JointState); with pose_from_joints the last of these in place of
    the first.  Publishes: proprio (Proprio), at most once a tick.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        frame_id: str = parameter(
            "base_link", "frame of driver/pose and driver/twist, in which the actions are; one without a name passes"
        )
        derive_twist: bool = parameter(False, "compute the twist from poses, for robots that publish none")
        velocity_filter_s: float = parameter(
            0.02, "time constant of the low pass on velocities that are computed", unit="s", low=0.0, high=1.0
        )
        joints: dict = parameter(
            {}, "joints.<part of the task's state>: names in the joint states, in the order wanted"
        )
        pose_from_joints: bool = parameter(
            False, "compute the pose from driver/joint_states and arm.urdf, for robots that publish none"
        )
        max_silence_s: float = parameter(0.5, "proprioception that is late by more is reported", unit="s", low=0.0)
        max_ahead_s: float = parameter(0.1, "a reading stamped further in the future is refused", unit="s", low=0.0)
        max_delay_s: float = parameter(0.05, "readings older than this on arrival are reported", unit="s", low=0.0)
        max_skew_s: float = parameter(0.05, "parts of a vector further apart than this are reported", unit="s", low=0.0)

    def on_configure_(self) -> None:
        p = self.params
        layout = [(key.key, key.size) for key in load_task(p.task).state]
        self.assembler = ProprioAssembler(layout, p.joints, p.derive_twist, p.velocity_filter_s)
        needed = set(self.assembler.streams)
        self.arm = None
        if p.pose_from_joints and "pose" in needed:
            self.arm = load_arm(p.arm, "parameter 'pose_from_joints'")
            self.book = JointBook(self.arm.names)
            needed = needed - {"pose"} | {"joint_states"}
        self.ingest = ProprioIngest(self.assembler, needed, p.max_ahead_s, self.clock_advice)
        self.clocks = self.ingest.clocks
        self.troubles = Troubles()
        self.output = self.publish(Proprio, "proprio", qos.SENSOR)
        self.joined_s = self.now_s()
        self.silent = False
        self.skew_s = 0.0
        for stream, msg_type in (("pose", PoseStamped), ("twist", TwistStamped), ("wrench", WrenchStamped)):
            if stream in self.clocks:
                self.hear(stream, msg_type)
        if "joint_states" in self.clocks:
            self.subscribe(JointState, "driver/joint_states", self.on_joint_states, qos.SENSOR)
        self.every(0.25, self.report)

    def hear(self, stream: str, msg_type: type) -> None:
        """Use a driver's pose, twist or wrench, which come with every tick: as bytes."""
        mine = "", self.params.frame_id

        def use(data: bytes) -> None:
            # A force is judged by its size, whatever its frame; a place in another frame is another place.
            if msg_type is not WrenchStamped and (frame := frame_from_wire(data, msg_type)) not in mine:
                text = f"it is in the frame '{frame}', expected '{mine[1]}', in which the actions are"
                self.troubles.note(f"{stream} refused", f"driver/{stream}: {text}", self.now_s())
                raise ValueError(f"{text}; set frame_id of proprio_node and safety_node, or send it in that frame")
            ns, numbers = numbers_from_wire(data, msg_type)
            self.take(stream, ns, lambda: add_numbers(self.assembler, stream, numbers, self.control.tick(ns), ns))

        self.subscribe(msg_type, f"driver/{stream}", use, qos.SENSOR, raw=True)

    def on_joint_states(self, msg: JointState) -> None:
        ns = stamp_ns(msg.header.stamp)
        self.take("joint_states", ns, lambda: self.add_joint_states(msg, ns))

    def take(self, stream: str, ns: int, add: Callable[[], None]) -> None:
        """Add what came at `ns`; what is wrong with it reaches the diagnostics too."""
        try:
            joined = self.ingest.take(stream, ns, self.now_ns(), add)
        except ValueError as error:
            self.troubles.note(f"{stream} refused", f"driver/{stream}: {error}", self.now_s())
            raise
        if joined is not None:
            self.send(*joined)

    def add_joint_states(self, msg: JointState, ns: int) -> None:
        if self.arm is not None:
            self.book.add(msg, ns)
            seen_ns = self.book.oldest(self.arm.names)  # a pose is as old as the joint that was seen the longest ago
            if seen_ns is not None and set(self.arm.names) & set(msg.name):
                pose = self.arm.pose(self.book.values(self.arm.names, seen_ns))
                self.assembler.add_pose(self.control.tick(seen_ns), seen_ns, *pose)
        if "joint_states" in self.assembler.streams:
            add_reading(self.assembler, "joint_states", msg, self.control.tick(ns), ns)

    def send(self, tick: int, ns: int, values: np.ndarray) -> None:
        self.joined_s = self.now_s()
        self.skew_s = skew_s = self.assembler.skew_ns * 1e-9
        if skew_s > self.params.max_skew_s:
            slowest = self.assembler.slowest()
            self.troubles.note(
                "skew",
                f"'{slowest}' (driver/{self.assembler.stream_of(slowest)}) is {skew_s:.3f} s behind the other readings,"
                f" more than max_skew_s ({self.params.max_skew_s:g} s); look at that driver's rate and clock",
                self.joined_s,
            )
        self.output.publish(proprio_to_wire(values, self.control, ns))

    def report(self) -> None:
        now_s = self.now_s()
        for stream, clock in self.clocks.items():
            if clock.delay_s > self.params.max_delay_s:
                self.troubles.note(
                    f"{stream} delay",
                    f"driver/{stream} is {clock.delay_s:.3f} s old on arrival, more than max_delay_s"
                    f" ({self.params.max_delay_s:g} s); {self.clock_advice} or find what delays it",
                    now_s,
                )
        for kind, text in self.troubles.news(now_s).items():
            if not kind.endswith("refused"):  # the base has logged it
                self.get_logger().warning(text)
        problems = list(self.troubles.current(now_s).values())
        silent_s = now_s - self.joined_s
        if silent_s > self.params.max_silence_s:
            missing = sorted({self.assembler.stream_of(part) for part in self.assembler.waiting_for()})
            topics = ", ".join(f"driver/{name}" for name in missing) or "the driver's topics"
            problems.insert(0, f"no proprioception for {silent_s:.1f} s: nothing usable on {topics}")
            if not self.silent:
                self.get_logger().warning(problems[0])
        self.silent = silent_s > self.params.max_silence_s
        self.problem = "; ".join(problems)

    def on_diagnostics_(self) -> dict:
        values: dict = {"skew_ms": round(self.skew_s * 1e3, 1)}
        for stream, clock in self.clocks.items():
            values[f"{stream} delay_ms"] = round(clock.delay_s * 1e3, 1)
            values |= {f"{stream} refused_{kind}": count for kind, count in clock.refused.items()}
        return values
