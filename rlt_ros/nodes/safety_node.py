"""The last word before the robot: let through what is safe, hold still otherwise."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.commander import human_timeout_steps
from rlt_ros.core.episode import Phase
from rlt_ros.core.limits import BRIDGED_TICKS, JointGuard, Limits, SafetyGate
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, SafetyState
from rlt_ros.ros import outputs, qos
from rlt_ros.ros.conversions import chunk_from_msg, header, stamp_ns
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.rivals import Sender, who_else_sends
from rlt_ros.ros.robot import DESCRIPTION, JointBook, urdf_text
from rlt_ros.ros.wire import chunk_from_wire, chunk_to_wire, proprio_from_wire
from rlt_ros.sim.task import load_task

FAREWELL_S = 0.1  # for the last command to be acknowledged by who acknowledges
# What the operator reads while one of these holds the robot; the others are part of every session.
EXPLAIN = {
    "two_publishers": "two nodes send on a topic that one alone may send on: stop one of them",
    "teleop_lost": "a person steers, but human/command is silent: is teleop_node alive?",
    "episode_lost": "an episode runs, but episode/state is silent: is episode_node alive?",
    "no_joints": "where the robot's joints or its tool are is not known: is its driver alive?",
    "no_reference": "the actor moves without a reference to compare it with: is vla_node alive?",
    "joint_limit": "a joint would come too near to its limit",
    "tracking": "the robot is far from where it was told to go: is it blocked, or its controller stopped?",
}


class SafetyNode(RltNode):
    """Check each candidate the moment it comes; when none comes for a tick, the watchdog bridges it or holds.

    Subscribes: command/candidate (ActionChunk), proprio (Proprio), vla/reference (ActionChunk), human/command
    (ActionChunk), episode/state, its own safety/state to notice a second gate, and with `arm.joints`
    driver/joint_states (JointState) and, where `arm.urdf` says so, robot_description (String).
    Publishes: command/executed (ActionChunk, one a tick), safety/state (SafetyState, latched), and what the controller
    of the `interface` hears (rlt_ros/ros/outputs.py).  Services: safety/stop (latches), safety/release.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        interface: str = parameter(
            "chunk", "what the robot listens to: command/executed itself, or its controller", choices=outputs.INTERFACES
        )
        frame_id: str = parameter("base_link", "frame of the actions, and of twists and poses that are sent")
        output: outputs.OutputParameters = parameter(group=outputs.OutputParameters)
        gripper: outputs.GripperParameters = parameter(group=outputs.GripperParameters)
        watchdog_phase: float = parameter(
            0.35, "part of the tick after which a missing candidate is bridged", low=0.1, high=0.9
        )
        proprio_timeout_s: float = parameter(
            0.1, "proprioception, or joint states, older than this stop the robot", unit="s", low=0.02
        )
        limits: dict = parameter({}, "limits.<name>: replaces the task file's limit of that name")
        episode_timeout_s: float = parameter(
            1.0, "episode/state (5 Hz) silent for longer in a running episode: hold", unit="s", low=0.3
        )
        watch_joints: bool = parameter(
            True, "where arm.joints are set: hold without joint states, and limit the joints by limits.joint_*"
        )

    gate: SafetyGate | None = None

    def on_configure_(self) -> None:
        self.task = task = load_task(self.params.task)
        p = self.params
        own = {name: None if value == "null" else value for name, value in p.limits.items()}  # as ROS reads a YAML null
        self.limits = Limits.from_mapping({**task.layout, **task.limits, **own})
        self.watched = p.arm.joints if p.watch_joints else []
        # An emergency stop outlives a clean-up, and with a session the process.
        self.latch = Path(p.session).expanduser() / "emergency_stop" if p.session else None
        stopped = self.gate is not None and self.gate.stopped or self.latch is not None and self.latch.exists()
        self.gate = SafetyGate(
            self.limits,
            task.action_names,
            task.action_scale,
            self.control.period_s,
            watch_joints=bool(self.watched),
            latency_ticks=p.latency_ticks,
            max_age_ticks=max(p.max_age_ticks, p.latency_ticks) + p.chunk_steps,
            episode_timeout_s=p.episode_timeout_s,
        )
        self.gate.stopped = stopped
        self.book = JointBook(self.watched)
        self.described = self.unusable = ""  # the robot description in use; why the one that came cannot be
        given = [f"limits.{key}" for key in p.limits if key.startswith("joint_")]
        if given and not p.arm.joints:
            raise ParameterError(f"'{given[0]}' is set, but 'arm.joints' is empty; name the joints of the arm")
        if self.watched and p.arm.urdf != DESCRIPTION:
            self.watch(urdf_text(p.arm.urdf))
        self.action_dim = task.action_dim
        self.outputs = outputs.make(self, task, self.book)
        self.proprio: tuple[float, ...] | None = None
        self.proprio_s = -np.inf
        self.proprio_tick = -1
        self.sent_tick = -1
        self.reported: tuple = ()
        self.rivals: dict[Sender, str] = {}
        self.reference_tick = self.human_tick = -1
        self.episodes: tuple = None, None  # what the newest two different states said
        self.stamps: deque[tuple[int, int]] = deque(maxlen=20)  # of this gate's own newest states
        self.executed = self.publish(ActionChunk, "command/executed", qos.COMMAND)
        self.moving = [self.executed, *(output.topic for output in self.outputs)]  # on these the gate alone may send
        self.state = self.publish(SafetyState, "safety/state", qos.STATE)
        # Each of these has one sender; of two, neither knows what the other does.
        sender = lambda *heard, chance=1, **how: Sender(self, self.subscribe(*heard, **how), chance)  # noqa: E731
        self.candidate_from = sender(
            ActionChunk, "command/candidate", self.on_candidate, qos.NEWEST, raw=True, chance=0
        )
        self.proprio_from = sender(Proprio, "proprio", self.on_proprio, qos.SENSOR, raw=True)
        self.reference_from = sender(ActionChunk, "vla/reference", self.on_reference, qos.EVENT)
        # What a person who takes over does is said at once, and again at its tick's own time.
        self.human_from = sender(ActionChunk, "human/command", self.on_human, qos.COMMAND, chance=5)
        self.episode_from = sender(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.state_from = sender(SafetyState, "safety/state", self.on_state, qos.STATE, chance=0)
        if self.book.names:
            self.subscribe(JointState, "driver/joint_states", self.on_joint_states, qos.SENSOR)
        if self.watched and p.arm.urdf == DESCRIPTION:
            self.subscribe(String, DESCRIPTION, self.on_description, qos.STATE)
        self.trigger("safety/stop", self.on_stop, always=True)
        self.trigger("safety/release", self.on_release)
        self.watchdog = self.every_tick(self.on_watchdog, self.params.watchdog_phase)
        self.every(1.0, lambda: self.report(force=True))
        self.every(0.2, self.look_for_second_actor)
        self.every(1.0, self.look_for_rivals, wall=True)

    def watch(self, urdf: str) -> None:
        """Watch the joints with the text of a URDF, "" without one; ValueError says what does not fit."""
        arm = self.params.arm
        self.gate.joints = JointGuard(
            self.limits, self.watched, self.task.action_names, self.task.action_scale, self.control.period_s,
            urdf, arm.base, arm.tip,
        )  # fmt: skip

    def owed_ns(self) -> int | None:
        return self.control.stamp_ns(self.proprio_tick + 1) if self.proprio_tick >= 0 else None

    def on_activate_(self) -> None:
        """Whatever moved the arm meanwhile: from rest, from where it is now."""
        self.begin_anew()
        for output in self.outputs:
            output.forget()

    def begin_anew(self) -> None:
        """No command of before is carried out."""
        self.gate.begin_anew()
        self.sent_tick = -1

    def on_deactivate_(self) -> None:
        tick = self.control.tick(self.now_ns())
        self.send(Chunk(tick, np.zeros((1, self.action_dim), np.float32), tick, Source.HOLD))
        # The end of a publisher may overtake what it said last, which its readers drop then.
        for topic in self.moving:
            topic.wait_for_all_acked(Duration(seconds=FAREWELL_S))

    def on_proprio(self, data: bytes) -> None:
        tick, proprio = proprio_from_wire(data, self.task.proprio_dim)
        self.expect_recent("proprioception", tick, self.params.max_age_ticks)
        self.proprio_from.doubled += tick <= self.proprio_tick
        self.proprio_tick, self.proprio = tick, proprio
        self.proprio_s = self.now_s()

    def on_reference(self, msg: ActionChunk) -> None:
        self.expect_recent("reference", msg.observation_tick, None)
        self.reference_from.doubled += msg.observation_tick <= self.reference_tick
        self.reference_tick = msg.observation_tick
        self.gate.add_reference(chunk_from_msg(msg, self.task.action_dim))

    def on_human(self, msg: ActionChunk) -> None:
        chunk = chunk_from_msg(msg, self.task.action_dim)  # what cannot be read, or is late, is no sign of life
        self.human_from.doubled += chunk.tick <= self.human_tick
        self.human_tick = chunk.tick
        self.expect_recent("human command", chunk.tick, human_timeout_steps(self.control.period_s))
        self.gate.hear_human(self.now_s())

    def on_episode(self, msg: EpisodeState) -> None:
        said = msg.episode, msg.phase, msg.outcome, msg.start_tick
        if said != self.episodes[1]:
            self.episode_from.doubled += said == self.episodes[0]  # to and fro: one node does not go back
            self.episodes = self.episodes[1], said
        self.gate.hear_episode(Phase(msg.phase) in (Phase.APPROACH, Phase.CRITICAL), self.now_s())

    def on_description(self, msg: String) -> None:
        if self.gate.joints is not None:
            if msg.data != self.described:
                raise ValueError("another robot description than the one in use; restart the safety node to take it")
            return
        try:
            self.watch(msg.data)
        except ValueError as error:
            self.unusable = str(error)
            raise
        self.described = msg.data

    def on_joint_states(self, msg: JointState) -> None:
        try:
            if ns := stamp_ns(msg.header.stamp):  # some drivers write none
                self.expect_recent("joint states", self.control.tick(ns), self.params.max_age_ticks)
            self.book.add(msg, self.now_s())
            if lacking := self.lacking():
                has = ", ".join(msg.name) or "no names"
                raise ValueError(f"joint states have no {', '.join(lacking)}; they have {has}")
        except ValueError:
            self.gate.refuse("wrong_joints")
            raise

    def lacking(self) -> list[str]:
        """The joints that are wanted and too old."""
        return self.book.lacking(self.now_s() - self.params.proprio_timeout_s)

    def on_state(self, msg: SafetyState) -> None:
        self.state_from.doubled += (msg.header.stamp.sec, msg.header.stamp.nanosec) not in self.stamps

    def look_for_second_actor(self) -> None:
        """Oftener than for others, as what it sends is a motion."""
        self.candidate_from.doubled, self.gate.repeated = self.gate.repeated, 0
        self.judge(self.candidate_from)

    def look_for_rivals(self) -> None:
        self.judge(self.proprio_from, self.reference_from, self.human_from, self.episode_from, self.state_from)

    def judge(self, *senders: Sender) -> None:
        """Look at `senders`: the gate holds while there are two on any topic."""
        self.rivals |= {sender: sender.look() for sender in senders}
        self.gate.rivals = "; ".join(filter(None, self.rivals.values()))

    def on_candidate(self, data: bytes) -> None:
        try:
            chunk = chunk_from_wire(data)
        except ValueError:
            self.gate.refuse("malformed")
            raise
        self.gate.offer(chunk, self.now_s())
        now = self.control.tick(self.now_ns())
        if self.sent_tick < chunk.tick and now - BRIDGED_TICKS <= chunk.tick <= now + 1:
            self.step(chunk.tick)

    def on_watchdog(self, tick: int) -> None:
        # By more than a candidate may be early. Not by `tick`: after a hang the loop is behind, not the clock.
        if self.control.tick(self.now_ns()) < self.sent_tick - 1:
            self.get_logger().error("the clock was set back: the robot is held until commands of its time come")
            self.begin_anew()
        if self.sent_tick < tick:
            self.step(tick)

    def step(self, tick: int) -> None:
        now_s = self.now_s()
        causes = [output.cause(now_s) for output in self.outputs]
        self.gate.outside = next((found for found in causes if found[0]), ("", ""))
        oldest_s = now_s - self.params.proprio_timeout_s
        proprio = self.proprio if self.proprio_s >= oldest_s else None
        joints = self.book.values(self.watched, oldest_s) if self.watched else None
        self.send(self.gate.step(tick, now_s, proprio, joints))

    def send(self, chunk: Chunk) -> None:
        self.sent_tick = chunk.tick
        self.executed.publish(chunk_to_wire(chunk, self.control))
        for output in self.outputs:
            output.send(chunk)
        self.watchdog.done(chunk.tick)
        self.report()

    def on_stop(self) -> str:
        self.gate.estop()
        if self.active:
            for output in self.outputs:
                output.stop()
            self.step(max(self.sent_tick, self.control.tick(self.now_ns())))
        self.note_stop(self.latch.touch if self.latch else None)
        self.get_logger().warning("emergency stop; call safety/release to go on")
        return "stopped; call safety/release to go on"

    def on_release(self) -> str:
        self.gate.release_estop()
        self.note_stop((lambda: self.latch.unlink(missing_ok=True)) if self.latch else None)
        self.report()
        return "released"

    def note_stop(self, note: Callable[[], None] | None) -> None:
        """In the session, for a gate that is started after this one died; the robot has been told before."""
        try:
            if note is not None:
                note()
        except OSError as error:
            self.get_logger().error(f"{self.latch}: {error}; a gate that is started again will not know of this")

    def report(self, force: bool = False) -> None:
        """Publish the state when it changed, or when `force`d."""
        present = (self.gate.stopped, bool(self.gate.reason), self.gate.reason)
        if force or present != self.reported:
            self.reported = present
            causes = [cause for cause, count in self.gate.counts.items() if count]
            top = header(self.now_ns())
            self.stamps.append((top.stamp.sec, top.stamp.nanosec))
            self.state.publish(
                SafetyState(
                    header=top,
                    estop=present[0],
                    holding=present[1],
                    reason=present[2],
                    causes=causes,
                    counts=[self.gate.counts[cause] for cause in causes],
                )
            )

    def on_diagnostics_(self) -> dict:
        reason, detail = self.gate.reason, self.gate.detail
        if reason == "no_joints" and self.watched and self.gate.joints is None:
            detail = self.unusable or f"no robot description on {DESCRIPTION} yet"
        elif reason == "no_joints":
            lacking = ", ".join(self.lacking())
            detail = f"driver/joint_states has no {lacking}" if lacking else detail or "nothing on driver/joint_states"
        self.problem = f"{EXPLAIN[reason]}{f' ({detail})' if detail else ''}" if reason in EXPLAIN else ""
        past = "; ".join(filter(None, [who_else_sends(self, topic) for topic in self.moving]))
        if past and not self.problem:
            self.problem = f"another node can move the robot past this gate: {past}; stop it"
        counted = {f"gate_{cause}": count for cause, count in self.gate.counts.items() if count}
        return {"holding": reason, "holding_detail": detail, "estop": self.gate.stopped} | counted
