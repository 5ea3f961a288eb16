"""The last word before the robot: let through what is safe, hold still otherwise."""

import time
from dataclasses import dataclass

import numpy as np

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.limits import Limits, SafetyGate
from rlt_ros.msg import ActionChunk, Proprio, SafetyState
from rlt_ros.ros import outputs, qos
from rlt_ros.ros.conversions import chunk_from_msg, chunk_to_msg, header, proprio_from_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task


class SafetyNode(RltNode):
    """Check each candidate the moment it comes; when none comes for a tick, the watchdog bridges it or holds.

    Subscribes: command/candidate (ActionChunk), proprio (Proprio).
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
        proprio_timeout_s: float = parameter(0.1, "proprioception older than this stops the robot", unit="s", low=0.02)
        limits: dict = parameter({}, "limits.<name>: replaces the task file's limit of that name")

    def on_configure_(self) -> None:
        task = load_task(self.params.task)
        layout = {"force_index": task.wrench_index}
        self.limits = Limits.from_mapping({**layout, **task.limits, **self.params.limits})
        self.gate = SafetyGate(self.limits, task.action_dim, task.action_scale)
        self.action_dim = task.action_dim
        self.outputs = outputs.make(self, task)
        self.proprio: np.ndarray | None = None
        self.proprio_s = -np.inf
        self.sent_tick = -1
        self.reported: tuple = ()
        self.executed = self.publish(ActionChunk, "command/executed", qos.COMMAND)
        self.state = self.publish(SafetyState, "safety/state", qos.STATE)
        self.subscribe(ActionChunk, "command/candidate", self.on_candidate, qos.COMMAND)
        self.subscribe(Proprio, "proprio", self.on_proprio, qos.SENSOR)
        self.trigger("safety/stop", self.on_stop)
        self.trigger("safety/release", self.on_release)
        self.every_tick(self.on_watchdog, self.params.watchdog_phase)
        self.every(1.0, lambda: self.report(force=True))

    def on_deactivate_(self) -> None:
        tick = self.control.tick(self.now_ns())
        self.send(Chunk(tick, np.zeros((1, self.action_dim), np.float32), tick, Source.HOLD))

    def on_proprio(self, msg: Proprio) -> None:
        _, self.proprio = proprio_from_msg(msg)
        self.proprio_s = time.monotonic()

    def on_candidate(self, msg: ActionChunk) -> None:
        try:
            chunk = chunk_from_msg(msg)
        except ValueError:
            self.gate.refuse("malformed")
            raise
        self.gate.offer(chunk, time.monotonic())
        if self.sent_tick < chunk.tick <= self.control.tick(self.now_ns()) + 1:
            self.step(chunk.tick)

    def on_watchdog(self, tick: int) -> None:
        if self.sent_tick < tick:
            self.step(tick)

    def step(self, tick: int) -> None:
        now_s = time.monotonic()
        self.gate.outside = next(filter(None, [output.cause(now_s) for output in self.outputs]), "")
        known = now_s - self.proprio_s <= self.params.proprio_timeout_s
        self.send(self.gate.step(tick, now_s, self.proprio if known else None))

    def send(self, chunk: Chunk) -> None:
        self.sent_tick = chunk.tick
        self.executed.publish(chunk_to_msg(chunk, self.control))
        for output in self.outputs:
            output.send(chunk)
        self.report()

    def on_stop(self) -> str:
        self.gate.estop()
        self.step(max(self.sent_tick, self.control.tick(self.now_ns())))
        self.get_logger().warning("emergency stop; call safety/release to go on")
        return "stopped; call safety/release to go on"

    def on_release(self) -> str:
        self.gate.release_estop()
        self.report()
        return "released"

    def report(self, force: bool = False) -> None:
        """Publish the state when it changed, or when `force`d."""
        present = (self.gate.stopped, bool(self.gate.reason), self.gate.reason)
        if force or present != self.reported:
            self.reported = present
            causes = [cause for cause, count in self.gate.counts.items() if count]
            self.state.publish(
                SafetyState(
                    header=header(self.now_ns()),
                    estop=present[0],
                    holding=present[1],
                    reason=present[2],
                    causes=causes,
                    counts=[self.gate.counts[cause] for cause in causes],
                )
            )
