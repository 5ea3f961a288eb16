"""The simulator in the place of a robot: cameras, driver topics and a controller that follows command/executed."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import Image, JointState

from rlt_ros.core.chunks import Chunk
from rlt_ros.core.episode import Phase
from rlt_ros.core.latest import LatestWorker
from rlt_ros.msg import ActionChunk, EpisodeState, SimTruth
from rlt_ros.ros import priority, qos
from rlt_ros.ros.conversions import chunk_from_msg, header, image_to_msg, packed
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import TaskEnv, load_task

BASE = "base_link"
# Never closed nor collected: their OpenGL contexts belong to tick threads that have ended.
_ENVIRONMENTS: list[TaskEnv] = []


class SimNode(RltNode):
    """Step a task's environment in real time, once a control tick.

    At `phase` of tick t it executes the action for t; what comes out is the state at the start of tick t + 1 and is
    stamped so. Pictures are drawn in another thread where the environment can be drawn later, after the state where not.

    Subscribes: command/executed (ActionChunk), episode/state.  Service: sim/reset (Trigger).
    Publishes: driver/pose, driver/twist, driver/wrench, driver/joint_states, driver/<camera>/image,
    sim/truth (SimTruth).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        seed: int = parameter(0, "of the first scene; each reset takes the next", low=0)
        phase: float = parameter(0.65, "part of the tick after which its action is executed", low=0.1, high=0.95)
        camera_every: int = parameter(2, "ticks from picture to picture", unit="ticks", low=1)

    def on_configure_(self) -> None:
        p = self.params
        self.task = load_task(p.task)
        self.env = TaskEnv(self.task, p.seed)
        _ENVIRONMENTS.append(self.env)
        self.stepping = threading.Lock()  # guards the environment
        self.scene = p.seed
        self.commands: deque[Chunk] = deque(maxlen=8)
        self.critical = False
        self.critical_ticks = self.without_fresh = self.bridged = 0
        self.starts: deque[tuple[int, float]] = deque(maxlen=100)
        self.step_ms: deque[float] = deque(maxlen=500)
        self.paint_ms: deque[float] = deque(maxlen=500)
        # Frames must hit the ticks from which the chunk boundaries take their token: b - L.
        self.camera_offset = (p.chunk_steps - p.latency_ticks) % p.camera_every
        self.poses = self.publish(PoseStamped, "driver/pose", qos.SENSOR)
        self.twists = self.publish(TwistStamped, "driver/twist", qos.SENSOR)
        self.wrenches = self.publish(WrenchStamped, "driver/wrench", qos.SENSOR)
        self.joints = self.publish(JointState, "driver/joint_states", qos.SENSOR)
        self.truths = self.publish(SimTruth, "sim/truth", qos.SENSOR)
        self.images = {name: self.publish(Image, f"driver/{name}/image", qos.SENSOR) for name in self.task.cameras}
        # Deep, and the last few are kept: when a tick is late, its command and the next one's may both be there.
        self.subscribe(ActionChunk, "command/executed", self.on_executed, qos.REPLAY)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.trigger("sim/reset", self.on_reset)
        # Drawing takes a good part of a tick: the next command must not have to wait for it.
        self.every_tick(self.on_tick, p.phase, locked=False)
        self.painter = LatestWorker("painter", self.paint, self.fail, prepare=lambda: priority.apply("ordinary"))
        self.on_undo(self.painter.close)
        self.painting = threading.Lock()  # the environment must not be reset meanwhile

    def on_executed(self, msg: ActionChunk) -> None:
        self.commands.append(chunk_from_msg(msg, self.task.action_dim))

    def on_episode(self, msg: EpisodeState) -> None:
        self.critical = msg.phase == Phase.CRITICAL

    def on_reset(self) -> str:
        with self.stepping, self.painting:
            self.scene += 1
            self.env.reset(self.scene)
        return f"scene {self.scene}"

    def on_tick(self, tick: int) -> None:
        with self.stepping:
            self.step(tick)

    def step(self, tick: int) -> None:
        begin = time.monotonic()
        self.starts.append((tick, begin))
        self.env.step(self.action(tick))
        self.send_state(tick + 1)
        self.step_ms.append(1e3 * (time.monotonic() - begin))
        if (tick + 1) % self.params.camera_every == self.camera_offset:
            moment = self.env.moment()
            if moment is None:
                self.paint((tick + 1, None))
            else:
                self.painter.put((tick + 1, moment))

    def paint(self, what: tuple[int, object | None]) -> None:
        """Draw and publish the pictures of a tick."""
        tick, moment = what
        begin = time.monotonic()
        with self.painting:
            pictures = self.env.images(moment)
        for name, picture in pictures.items():
            self.images[name].publish(image_to_msg(picture, self.control.stamp_ns(tick), name))
        self.paint_ms.append(1e3 * (time.monotonic() - begin))

    def action(self, tick: int) -> np.ndarray:
        """The newest command's action for this tick [A]; hold when it has none, as a controller does on a time-out."""
        command = next((chunk for chunk in reversed(tuple(self.commands)) if chunk.covers(tick)), None)
        if self.critical:
            self.critical_ticks += 1
            self.bridged += command is not None and command.tick != tick
            self.without_fresh += command is None
            if command is None:
                self.get_logger().warning(
                    f"tick {tick}: no command ({self.without_fresh} of {self.critical_ticks} critical ticks so far)",
                    throttle_duration_sec=2.0,
                )
        return np.zeros(self.task.action_dim, np.float32) if command is None else command.slice(tick, 1)[0]

    def send_state(self, tick: int) -> None:
        seen = self.env.observation()
        top = header(self.control.stamp_ns(tick), BASE)
        joint_keys = [key.key for key in self.task.state if key.key not in ("pose", "twist", "wrench")]
        if joint_keys:
            values = np.concatenate([np.ravel(seen[key]) for key in joint_keys])
            names = [f"{key}_{i}" for key in joint_keys for i in range(np.size(seen[key]))]
            # One number a name; whoever reads a velocity finds it in the other field.
            both = packed(values, "d")
            self.joints.publish(JointState(header=top, name=names, position=both, velocity=both))
        if "twist" in seen:
            msg = TwistStamped(header=top)
            v = msg.twist.linear
            v.x, v.y, v.z, msg.twist.angular.z = (float(value) for value in seen["twist"])
            self.twists.publish(msg)
        if "wrench" in seen:
            msg = WrenchStamped(header=top)
            f, t = msg.wrench.force, msg.wrench.torque
            f.x, f.y, f.z, t.x, t.y, t.z = (float(value) for value in seen["wrench"])
            self.wrenches.publish(msg)
        if "pose" in seen:
            msg = PoseStamped(header=top)
            p, q = msg.pose.position, msg.pose.orientation
            p.x, p.y, p.z, yaw = (float(value) for value in seen["pose"])
            q.z, q.w = float(np.sin(yaw / 2)), float(np.cos(yaw / 2))
            self.poses.publish(msg)
        truth = self.env.truth()
        self.truths.publish(
            SimTruth(
                header=top,
                tick=tick,
                **truth,
                offset=[float(v) for v in self.env.info().get("offset", ())],
                critical=self.env.critical(),
                success=self.env.success(),
                failure=self.env.failure(),
                realtime_factor=self.realtime_factor(),
            )
        )

    def realtime_factor(self) -> float:
        """Simulated over real time, over the last two seconds."""
        if len(self.starts) < 2:
            return 1.0
        seconds = self.starts[-1][1] - self.starts[0][1]
        return (len(self.starts) - 1) * self.control.period_s / seconds if seconds > 0 else 1.0

    def on_diagnostics_(self) -> dict:
        factor = self.realtime_factor()
        self.problem = ""
        if factor < 0.98:
            self.problem = (
                f"the simulation runs at {factor:.2f} of real time: this machine is too slow or too busy for it"
            )
            self.get_logger().warning(self.problem, throttle_duration_sec=10.0)
        ms = lambda values, q: round(float(np.percentile(values, q)), 2) if values else 0.0  # noqa: E731
        return {
            "realtime_factor": round(factor, 3),
            "critical_ticks": self.critical_ticks,
            "ticks_bridged": self.bridged,
            "ticks_without_fresh_command": self.without_fresh,
            "step_ms_p50": ms(self.step_ms, 50),
            "step_ms_p99": ms(self.step_ms, 99),
            "paint_ms_p50": ms(self.paint_ms, 50),
            "paint_ms_p99": ms(self.paint_ms, 99),
            "pictures_dropped": self.painter.dropped,
        }
