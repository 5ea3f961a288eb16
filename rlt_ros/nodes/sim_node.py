"""The simulator in the place of a robot: cameras, driver topics and the controllers that robots have."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from rlt_ros.core.chunks import Chunk
from rlt_ros.core.episode import Phase
from rlt_ros.core.kinematics import Arm
from rlt_ros.core.latest import LatestWorker
from rlt_ros.core.limits import BRIDGED_TICKS
from rlt_ros.msg import ActionChunk, EpisodeState, SimTruth
from rlt_ros.ros import priority, qos
from rlt_ros.ros.conversions import chunk_from_msg, header, image_to_msg, packed, stamp_ns
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.outputs import INTERFACES
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.simulated_clock import SimulatedClock
from rlt_ros.sim import controllers
from rlt_ros.sim.controllers import Waypoint
from rlt_ros.sim.task import TaskEnv, load_task

BASE = "base_link"
RESTART_S = 0.3  # that the driver neither hears nor speaks after a reset, with other interfaces than chunk
# Never closed nor collected: their OpenGL contexts belong to tick threads that have ended.
_ENVIRONMENTS: list[TaskEnv] = []


class SimNode(RltNode):
    """Step a task's environment in real time, once a control tick.

    At `phase` of tick t it executes the action for t; what comes out is the state at the start of tick t + 1 and is
    stamped so. Pictures are drawn in another thread where the environment can be drawn later, else after the state.

    With use_sim_time it sets /clock, and time waits for every node (rlt_ros/ros/simulated_clock.py).

    It follows command/executed (ActionChunk), or with another `interface` what that controller hears on a robot, as
    that controller would (rlt_ros/sim/controllers.py): driver/delta_twist_cmds, driver/target_pose,
    driver/joint_trajectory or driver/commands.

    Subscribes: one of those, episode/state.  Service: sim/reset (Trigger).
    Publishes: driver/pose, driver/twist, driver/wrench, driver/joint_states, driver/<camera>/image,
    sim/truth (SimTruth), /clock.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        seed: int = parameter(0, "of the first scene; each reset takes the next", low=0)
        phase: float = parameter(0.65, "part of the tick after which its action is executed", low=0.1, high=0.95)
        camera_every: int = parameter(2, "ticks from picture to picture", unit="ticks", low=1)
        interface: str = parameter("chunk", "controller that the robot has, as the safety node's", choices=INTERFACES)
        command: str = parameter("position", "what forward_command takes", choices=("position", "velocity"))
        reset_with_episode: bool = parameter(
            False, "the next scene when an episode is reset: for a person who has the episode's buttons only"
        )
        realtime_factor: float = parameter(
            1.0, "with use_sim_time: simulated over real time at most; 0: as fast as the nodes can", low=0.0
        )
        patience_s: float = parameter(
            2.5, "with use_sim_time: of real time, that a silent node is waited for", unit="s", low=0.1
        )

    def on_configure_(self) -> None:
        p = self.params
        self.task = load_task(p.task)
        if p.rate_hz != self.task.rate:
            raise ParameterError(
                f"parameter 'rate_hz' is {p.rate_hz:g}, expected {self.task.rate:g}, the rate of task"
                f" '{self.task.name}': what is simulated in a tick is the task's; take a task file of that rate"
            )
        self.env = TaskEnv(self.task, p.seed)
        _ENVIRONMENTS.append(self.env)
        self.stepping = threading.Lock()  # guards the environment
        self.scene = p.seed
        self.commands: deque[Chunk] = deque(maxlen=8)
        self.critical = False
        self.phase: int | None = None
        self.silent_until_s = 0.0
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
        if p.interface == "chunk":
            self.subscribe(ActionChunk, "command/executed", self.on_executed, qos.RECORD)
        else:
            self.connect()
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.trigger("sim/reset", self.on_reset)
        # Drawing takes a good part of a tick: the next command must not have to wait for it.
        self.clock: SimulatedClock | None = None
        if self.simulated_time:
            self.clock = SimulatedClock(self, time.time_ns(), p.patience_s, self.get_logger().warning)
        else:
            self.every_tick(self.on_tick, p.phase, apart=True)
        self.painter = LatestWorker("painter", self.paint, self.fail, prepare=lambda: priority.apply("ordinary"))
        self.on_undo(self.painter.close)
        self.painting = threading.Lock()  # the environment must not be reset meanwhile

    def now_ns(self) -> int:
        return self.clock.now_ns if self.clock is not None else super().now_ns()

    def on_activate_(self) -> None:
        if self.clock is not None:
            self.clock.open()
            thread = threading.Thread(target=self.run, name="simulated_time", daemon=True)
            self.on_undo(lambda: (self.clock.close(), thread.join()))
            thread.start()

    def run(self) -> None:
        """Simulated time: one tick after the other, not faster than `realtime_factor`."""
        tick, factor = self.control.tick(self.now_ns()) + 1, self.params.realtime_factor
        phase_ns = round(self.params.phase * self.control.period_ns)
        due_s = time.monotonic()
        try:
            while self.clock.advance(self.control.stamp_ns(tick) + phase_ns):
                if factor > 0.0:
                    # Time that was lost is not caught up with.
                    due_s = max(due_s + self.control.period_s / factor, time.monotonic() - self.control.period_s)
                    time.sleep(max(0.0, due_s - time.monotonic()))
                self.on_tick(tick)
                tick += 1
        except Exception as error:
            self.fail(error)

    def on_executed(self, msg: ActionChunk) -> None:
        self.commands.append(chunk_from_msg(msg, self.task.action_dim))

    def connect(self) -> None:
        """Let the arm hear what its controller hears."""
        plant = self.env.env.unwrapped
        if not hasattr(plant, "target"):
            raise ValueError(
                f"interface '{self.params.interface}': the environment {self.task.environment} has no arm under a "
                "Cartesian controller; use interface 'chunk'"
            )
        self.arm = Arm(plant.urdf.read_text(encoding="utf-8"), plant.base, plant.tip, plant.joint_names)
        self.heard_tick = -1
        self.take_over()
        msg_type, topic, hear = {
            "twist": (TwistStamped, "driver/delta_twist_cmds", self.hear_twist),
            "pose": (PoseStamped, "driver/target_pose", self.hear_pose),
            "joint_trajectory": (JointTrajectory, "driver/joint_trajectory", self.hear_trajectory),
            "forward_command": (Float64MultiArray, "driver/commands", self.hear_values),
        }[self.params.interface]

        def on_command(msg: object) -> None:
            with self.stepping:
                if self.now_s() < self.silent_until_s:
                    return
                hear(msg)
                self.heard_tick = self.control.tick(self.now_ns())

        self.subscribe(msg_type, topic, on_command, qos.EVENT)

    def take_over(self) -> None:
        """A controller that has just been activated: it holds the arm where it is."""
        joints, kind = self.env.observation()["joint_position"], self.params.interface
        forward = controllers.ForwardPositions if self.params.command == "position" else controllers.ForwardVelocities
        self.controller = {
            "twist": lambda: controllers.ServoTwist(BASE),
            "pose": lambda: controllers.CompliancePose(BASE),
            "joint_trajectory": lambda: controllers.JointTrajectories(self.arm.names, joints),
            "forward_command": lambda: forward(len(joints), joints),
        }[kind]()

    def hear_twist(self, msg: TwistStamped) -> None:
        v, w = msg.twist.linear, msg.twist.angular
        self.controller.command(msg.header.frame_id, stamp_ns(msg.header.stamp), (v.x, v.y, v.z, w.x, w.y, w.z))

    def hear_pose(self, msg: PoseStamped) -> None:
        p, q = msg.pose.position, msg.pose.orientation
        self.controller.command(msg.header.frame_id, (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))

    def hear_trajectory(self, msg: JointTrajectory) -> None:
        points = [Waypoint(stamp_ns(p.time_from_start), p.positions, p.velocities) for p in msg.points]
        self.controller.command(self.now_ns(), stamp_ns(msg.header.stamp), msg.joint_names, points)

    def hear_values(self, msg: Float64MultiArray) -> None:
        self.controller.command(msg.data)

    def follow(self, tick: int) -> np.ndarray:
        """The normalised action [A] that takes the plant's target where the controller wants it after the tick."""
        self.count(self.heard_tick != tick, tick - self.heard_tick > BRIDGED_TICKS, tick)
        plant = controllers.Plant(
            arm=self.arm,
            target=self.env.env.unwrapped.target,
            joints=self.env.observation()["joint_position"],
            now_ns=self.now_ns(),
            end_ns=self.control.stamp_ns(tick + 1),
            period_s=self.control.period_s,
        )
        return self.controller.step(plant) / self.task.action_scale

    def on_episode(self, msg: EpisodeState) -> None:
        self.critical = msg.phase == Phase.CRITICAL
        before, self.phase = self.phase, msg.phase
        if self.params.reset_with_episode and msg.phase == Phase.IDLE and before not in (None, Phase.IDLE):
            self.on_reset()

    def on_reset(self) -> str:
        with self.stepping, self.painting:
            self.scene += 1
            self.env.reset(self.scene)
            if self.params.interface != "chunk":
                self.take_over()
                # As a driver that is started anew, deaf and dumb: nobody may go on from targets of the last scene.
                self.silent_until_s = self.now_s() + RESTART_S
        return f"scene {self.scene}"

    def on_tick(self, tick: int) -> None:
        with self.stepping:
            self.step(tick)

    def step(self, tick: int) -> None:
        begin, now_s = time.monotonic(), self.now_s()
        self.starts.append((tick, begin))
        self.env.step(self.action(tick) if self.params.interface == "chunk" else self.follow(tick))
        if now_s >= self.silent_until_s:
            self.send_state(tick + 1)
        self.step_ms.append(1e3 * (time.monotonic() - begin))
        if (tick + 1) % self.params.camera_every == self.camera_offset:
            moment = self.env.moment()
            if moment is None or self.clock is not None:  # time waits for the picture
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
        self.count(command is None or command.tick != tick, command is None, tick)
        return np.zeros(self.task.action_dim, np.float32) if command is None else command.slice(tick, 1)[0]

    def count(self, late: bool, without: bool, tick: int) -> None:
        """Count in the critical phase whether a tick's command was late, and whether there was none to go on with."""
        if not self.critical:
            return
        self.critical_ticks += 1
        self.bridged += late and not without
        self.without_fresh += without
        if without:
            self.get_logger().warning(
                f"tick {tick}: no command ({self.without_fresh} of {self.critical_ticks} critical ticks so far)",
                throttle_duration_sec=2.0,
            )

    def send_state(self, tick: int) -> None:
        seen = self.env.observation()
        top = header(self.control.stamp_ns(tick), BASE)
        joint_keys = [key.key for key in self.task.state if key.key not in ("pose", "twist", "wrench")]
        # One number a name; whoever reads a velocity finds it in the other field.
        names = [f"{key}_{i}" for key in joint_keys for i in range(np.size(seen[key]))]
        positions = velocities = [np.ravel(seen[key]) for key in joint_keys]
        arm_joints = getattr(self.env.env.unwrapped, "joint_names", ())
        if arm_joints and (self.params.arm.joints or self.params.interface != "chunk"):  # named as by the arm's driver
            names += arm_joints
            positions, velocities = [*positions, seen["joint_position"]], [*velocities, seen["joint_velocity"]]
        if names:
            positions, velocities = (packed(np.concatenate(part), "d") for part in (positions, velocities))
            self.joints.publish(JointState(header=top, name=names, position=positions, velocity=velocities))
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
        if factor < 0.98 and self.clock is None:
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
