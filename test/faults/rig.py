"""A whole graph of real nodes, each a process, with wires between them that tests can put faults on.

What a node publishes on a wired topic goes to sent/<topic>; the wire hands it on to <topic>, where the others listen.
The simulator moves a toy arm and the VLA is a toy (toys.py); all else is what a robot runs.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from ament_index_python.packages import get_package_prefix
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.experimental import EventsExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState, Joy
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import ControlClock, Source
from rlt_ros.core.episode import Phase
from rlt_ros.msg import ActionChunk, EpisodeState, PolicyWeights, Proprio, RLState, SafetyState
from rlt_ros.ros import processes, qos
from rlt_ros.ros.conversions import stamp_ns
from rlt_ros.ros.supervisor import Command, Supervisor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLOCK = ControlClock(50.0)
PATIENCE_S = 60.0  # for what takes a second on an idle machine
START_S = 180.0
ENOUGH_TICKS, STILL_TICKS = 15, 10  # of motion, and of stillness, that are believed

# topic -> (type, QoS, who publishes it)
WIRED = {
    "driver/wrist/image": (Image, qos.SENSOR, "sim_node"),
    "driver/pose": (PoseStamped, qos.SENSOR, "sim_node"),
    "driver/wrench": (WrenchStamped, qos.SENSOR, "sim_node"),
    "driver/joint_states": (JointState, qos.SENSOR, "sim_node"),
    "proprio": (Proprio, qos.SENSOR, "proprio_node"),
    "vla/reference": (ActionChunk, qos.EVENT, "vla_node"),
    "vla/rl_state": (RLState, qos.EVENT, "vla_node"),
    "command/candidate": (ActionChunk, qos.COMMAND, "actor_node"),
    "human/command": (ActionChunk, qos.COMMAND, "teleop_node"),
    "learner/weights": (PolicyWeights, qos.STATE, "learner_node"),
}
# Tighter than those of the simulated arm, so that they are met.
LIMITS = {
    "action_limit": 0.6, "max_step_change": 0.5, "max_linear_velocity": 0.06, "max_angular_velocity": 0.6,
    "max_linear_acceleration": 2.0, "max_angular_acceleration": 20.0, "max_deviation": 0.3, "joint_margin": 0.1,
    "min_singular_value": 0.05,
}  # fmt: skip
SCALE = np.array([0.0015, 0.0015, 0.0015, 0.02])  # m and rad a tick, of the Ethernet task
ARM = {"urdf": str(ROOT / "rlt_ros/sim/assets/ethernet.urdf"), "tip": "tcp",
       "joints": [f"joint{i}" for i in range(1, 7)]}  # fmt: skip
# Small, and hardly learning: in a task without rewards that would be chance.
TD3 = {"hidden": [16, 16], "batch_size": 8, "min_buffer": 16, "warm_transitions": 20, "warm_updates": 10,
       "warm_successes": 0, "utd": 1.0, "actor_lr": 1e-6}  # fmt: skip
PARAMETERS = {
    "/**": {"arm": ARM},
    "/**/camera_node": {"image_size": 32, "max_silence_s": 0.3},
    "/**/vla_node": {"trace": False},
    "/**/actor_node": {"exploration_std": 0.0},
    "/**/safety_node": {"limits": LIMITS},
    "/**/learner_node": {"publish_hz": 10.0, "stale_s": 1.0, "td3": TD3},
}
NODES = ("camera_node", "proprio_node", "teleop_node", "safety_node", "episode_node", "replay_node", "recorder_node",
         "handover_node", "vla_node", "actor_node", "learner_node", "sim_node")  # fmt: skip
DEADMAN, AXIS, STICK = 5, 1, 0.3  # as config/practice.yaml maps the gamepad

Fault = Callable[[object], Iterable]  # what goes on in place of a message


class Wire:
    """Hands on one topic's messages, through `fault` where there is one."""

    def __init__(self, node: Node, topic: str) -> None:
        msg_type, profile, _ = WIRED[topic]
        self.fault: Fault | None = None
        self.since_tick: int | None = None  # of the first message that the fault met
        self.newest = self.first = None
        self.publish = node.create_publisher(msg_type, topic, profile).publish
        node.create_subscription(msg_type, f"sent/{topic}", self.on_message, profile)

    def on_message(self, msg) -> None:  # noqa: ANN001
        self.newest = msg
        if self.first is None:
            self.first = msg
        fault = self.fault
        if fault is None:
            self.publish(msg)
            return
        if self.since_tick is None:
            self.since_tick = CLOCK.tick(time.time_ns())
        for changed in fault(msg):
            self.publish(changed)

    def pump(self) -> None:
        """Hand on what waited for its time."""
        for msg in getattr(self.fault, "due", tuple)():
            self.publish(msg)


@dataclass(frozen=True)
class Executed:
    """What the gate said for one tick."""

    tick: int
    source: Source
    actions: np.ndarray  # float32 [steps, A]

    @property
    def moving(self) -> bool:
        return self.source != Source.HOLD and bool(np.any(self.actions[0]))


@dataclass(frozen=True)
class Health:
    """A node's newest diagnostics."""

    message: str
    values: dict
    heard_s: float


def task_file(folder: Path) -> Path:
    """The Ethernet task with the toy arm, whose episodes do not end by themselves."""
    task = yaml.safe_load((ROOT / "config/tasks/ethernet.yaml").read_text())
    task |= {
        "environment": {"id": "toys:Arm"}, "cameras": {"wrist": "obs:wrist", "base": "obs:base"}, "hand_over": {},
        "failure": {}, "critical_timeout": 1e5, "approach_timeout": 1e5,
    }  # fmt: skip
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def start_commands(folder: Path) -> list[Command]:
    """The processes of the table, wired."""
    delay = folder / "delay"
    delay.write_text("0")
    own = PARAMETERS | {"/**/vla_node": PARAMETERS["/**/vla_node"] | {"model": str(delay)}}
    parameters = folder / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({node: {"ros__parameters": values} for node, values in own.items()}))
    files = [ROOT / "config" / "practice.yaml", parameters]
    shared = processes.shared_parameters(str(folder / "session"), str(task_file(folder)))
    found = []
    for row in processes.TABLE:
        if row.name not in NODES or "practice" not in row.modes or row.name == "camera_node" and row.where == "sim":
            continue
        wires = tuple((topic, f"sent/{topic}") for topic, (_, _, owner) in WIRED.items() if owner == row.name)
        program = HERE / "toys.py" if row.name == "vla_node" else (
            Path(get_package_prefix("rlt_ros")) / "lib" / "rlt_ros" / row.name)  # fmt: skip
        row = replace(row, remappings=wires, work=row.work.replace("background", "ordinary"))  # the tests wait for it
        argv = [str(program), *processes.arguments(row, files, shared)]
        modules = ("torch",) if row.name == "vla_node" else row.modules
        path = {"PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        found.append(Command(row.name, argv, row.environment() | path, modules))
    return found


class Rig:
    """The graph, running, with an episode in its critical phase; what it says is kept in lists."""

    def __init__(self, folder: Path) -> None:
        self.delay = folder / "delay"
        (folder / "session").mkdir()
        self.supervisor = Supervisor(start_commands(folder), folder / "log")
        self.buried: set[str] = set()  # killed by a test
        self.executed: list[Executed] = []
        self.unsafe: list[str] = []
        self.poses: list[tuple[int, np.ndarray]] = []  # the truth: before the wire
        self.safety: list[SafetyState] = []
        self.health: dict[str, Health] = {}
        self.episode = EpisodeState()
        self.joystick, self.steering = True, False
        self.since_tick = 0  # when the present fault began
        self.pause_s = 0.0  # the longest that this process was kept from its messages
        self.node = Node("wire")
        self.wires = {topic: Wire(self.node, topic) for topic in WIRED}
        self.node.create_subscription(ActionChunk, "command/executed", self.on_executed, qos.REPLAY)
        self.node.create_subscription(PoseStamped, "sent/driver/pose", self.on_pose, qos.RECORD)
        self.node.create_subscription(SafetyState, "safety/state", self.safety.append, qos.STATE)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, qos.REPLAY)
        self.node.create_subscription(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.joy = self.node.create_publisher(Joy, "joy", qos.EVENT)
        self.node.create_timer(0.05, self.send_joy)
        self.callers = {name: self.node.create_client(Trigger, name) for name in (
            "episode/start", "episode/hand_over", "episode/reset", "safety/stop", "safety/release")}  # fmt: skip
        self.executor = EventsExecutor()
        self.executor.add_node(self.node)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.spin, name="rig", daemon=True)

    def __enter__(self) -> "Rig":
        self.thread.start()
        try:
            self.supervisor.start()
            self.until(lambda: set(NODES) <= set(self.health), "all nodes", START_S)
            self.begin_episode()
            self.until(lambda: self.driven_by(Source.ACTOR), "the first weights", START_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.supervisor.stop()
        self.ended.set()
        self.thread.join(5.0)
        self.executor.remove_node(self.node)
        self.executor.shutdown()
        self.node.destroy_node()

    # In the thread of the wires

    def spin(self) -> None:
        while not self.ended.is_set():
            began_s = time.monotonic()
            self.executor.spin_once(0.01)
            for wire in self.wires.values():
                wire.pump()
            self.pause_s = max(self.pause_s, time.monotonic() - began_s - 0.01)

    def on_executed(self, msg: ActionChunk) -> None:
        new = Executed(msg.tick, Source(msg.source), np.array(msg.actions, np.float32).reshape(-1, msg.action_dim))
        before = self.executed[-1] if self.executed else None
        if wrong := unsafe(new, before):
            self.unsafe.append(f"tick {new.tick}: {wrong}")
        self.executed.append(new)

    def on_pose(self, msg: PoseStamped) -> None:
        p = msg.pose.position
        self.poses.append((CLOCK.tick(stamp_ns(msg.header.stamp)), np.array([p.x, p.y, p.z])))

    def on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            values = {item.key: item.value for item in status.values}
            self.health[status.name] = Health(status.message, values, time.monotonic())

    def on_episode(self, msg: EpisodeState) -> None:
        self.episode = msg

    def send_joy(self) -> None:
        axes, buttons = [0.0] * 8, [0] * 12
        if self.steering:
            axes[AXIS], buttons[DEADMAN] = STICK if time.monotonic() % 1.0 < 0.5 else -STICK, 1  # to and fro
        if self.joystick:
            self.joy.publish(Joy(axes=axes, buttons=buttons))

    # For tests

    def tick(self) -> int:
        """The present control tick."""
        return CLOCK.tick(time.time_ns())

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `condition()`; fail when that takes too long, or a process dies that no test killed."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            died = [death for death in self.supervisor.dead() if death.name not in self.buried]
            assert not died, f"{', '.join(map(str, died))}, waiting for {what}"
            if time.monotonic() > deadline_s:
                said = {name: health.message for name, health in self.health.items() if health.message != "active"}
                pytest.fail(f"waited {timeout_s} s for {what}; the gate says '{self.reason()}', nodes say {said}")
            time.sleep(0.005)

    def reason(self) -> str:
        """Why the gate holds the robot."""
        return self.safety[-1].reason if self.safety else ""

    def driven_by(self, *sources: Source, since_tick: int = 0) -> bool:
        """Whether the robot moves in so many ticks after another, up to now, for one of `sources`."""
        newest = self.executed[-ENOUGH_TICKS:]
        return (
            len(newest) == ENOUGH_TICKS
            and newest[0].tick > since_tick
            and self.tick() - newest[-1].tick < 5
            and all(e.moving and e.source in (sources or MOVING) for e in newest)
        )

    def held_from(self, since_tick: int) -> int | None:
        """The first tick from `since_tick` on from which the robot is held up to now; None while it is not."""
        after = [e for e in self.executed[-3000:] if e.tick >= since_tick]
        last = next((i for i in reversed(range(len(after))) if after[i].moving), -1)
        return after[last + 1].tick if len(after) - last > STILL_TICKS else None

    def set_delay(self, seconds: float) -> None:
        """How long the VLA takes from its next inference on; written whole, as it may be read at any time."""
        new = self.delay.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.delay)

    def call(self, service: str, seen: Callable[[], object]) -> None:
        """Call a service, as a person does: again when it does not do what it should."""
        asked_s = 0.0

        def done() -> bool:
            nonlocal asked_s
            if not seen() and self.callers[service].service_is_ready() and time.monotonic() - asked_s > 1.0:
                asked_s = time.monotonic()
                self.callers[service].call_async(Trigger.Request())
            return bool(seen())

        self.until(done, f"what {service} does")

    def begin_episode(self) -> None:
        """Into the critical phase of an episode."""
        if self.episode.phase in (Phase.APPROACH, Phase.ENDED):
            self.call("episode/reset", lambda: self.episode.phase == Phase.IDLE)
        if self.episode.phase == Phase.IDLE:
            self.call("episode/start", lambda: self.episode.phase == Phase.APPROACH)
        self.call("episode/hand_over", lambda: self.episode.phase == Phase.CRITICAL)

    def ready(self, steering: bool) -> None:
        """The robot moves for the actor, or for the person who steers."""
        self.pause_s, self.steering = 0.0, steering
        wanted = Source.HUMAN if steering else Source.ACTOR
        self.until(lambda: self.driven_by(wanted), f"motion by the {wanted.name} before the fault")

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a node's process; a killed one is dead when this returns."""
        os.kill(self.supervisor.pids[name], number)
        if number == signal.SIGKILL:
            self.buried.add(name)
            self.until(lambda: name in [death.name for death in self.supervisor.dead()], f"the end of {name}")

    def restart(self, name: str) -> None:
        """Start a killed node's process again, and wait until it says that it is there."""
        began_s = time.monotonic()
        self.supervisor.restart(name)
        self.buried.discard(name)
        self.until(lambda: self.health[name].heard_s > began_s, f"{name} to come back")


MOVING = (Source.VLA, Source.ACTOR, Source.HUMAN)


def unsafe(new: Executed, before: Executed | None) -> str:
    """What is wrong with a command that follows another, or ""."""
    tiny = 1e-5
    if not np.isfinite(new.actions).all():
        return f"not finite: {new.actions}"
    if np.abs(new.actions).max() > LIMITS["action_limit"] + tiny:
        return f"over action_limit: {new.actions}"
    metres = np.linalg.norm(new.actions[:, :3] * SCALE[:3], axis=1) / CLOCK.period_s
    if metres.max() > LIMITS["max_linear_velocity"] + tiny:
        return f"{metres} m/s"
    if before is None or new.tick != before.tick + 1 or not new.moving:  # a hold is at once
        return f"tick {new.tick} after {before.tick}" if before is not None and new.tick < before.tick else ""
    change = new.actions[0] - before.actions[0]
    if np.abs(change).max() > LIMITS["max_step_change"] + tiny:
        return f"jumps by {change}"
    metres = np.linalg.norm(change[:3] * SCALE[:3]) / CLOCK.period_s**2
    return f"accelerates by {metres} m/s2" if metres > LIMITS["max_linear_acceleration"] * (1 + tiny) else ""
