"""Every fault that the tests put into a running graph, with what must come of it.

table.py writes the table of docs/safety.md from the same entries.
"""

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import spoils
from rclpy.node import Node
from rig import CLOCK, STILL_TICKS, WIRED, Rig
from spoils import Changed, Late, Swapped

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Phase
from rlt_ros.msg import ActionChunk, SafetyState
from rlt_ros.panel.link import SILENT_S
from rlt_ros.ros import qos

# --- what the robot does


@dataclass(frozen=True)
class Held:
    """The gate holds the robot after so long at most, and it stands as long as the fault lasts."""

    within_s: float

    @property
    def text(self) -> str:
        return f"held within {self.within_s:g} s"

    def follows(self, rig: Rig, since_tick: int) -> int:
        """Wait for it; the first tick of it."""
        rig.until(lambda: rig.held_from(since_tick) is not None, "the hold")
        tick = rig.held_from(since_tick)
        # This process was perhaps not served for a while, and so were others.
        late_s = (tick - since_tick - 1) * CLOCK.period_s - 2 * rig.pause_s
        assert late_s <= self.within_s, f"held after {late_s:.2f} s, expected at most {self.within_s} s"
        return tick

    def lasts(self, rig: Rig, tick: int, end_tick: int) -> None:
        """It was so from `tick` until the fault ended."""
        moving = [e.tick - tick for e in rig.executed if tick < e.tick < end_tick and e.moving]
        assert not moving, f"commands of motion {moving} ticks after the hold"
        stood(rig, tick + 2, end_tick)


@dataclass(frozen=True)
class Stands:
    """Nobody commands any more: the robot comes to the end of its last command."""

    within_s: float = 0.06

    @property
    def text(self) -> str:
        return f"stands after {self.within_s:g} s: no more commands"

    def follows(self, rig: Rig, since_tick: int) -> int:
        rig.until(lambda: rig.poses[-1][0] > since_tick + 30, "the robot's poses")
        commanded = max(e.tick for e in rig.executed)
        assert commanded <= since_tick + 1, f"a command {commanded - since_tick} ticks after the end"
        return commanded + round(self.within_s / CLOCK.period_s)

    def lasts(self, rig: Rig, tick: int, end_tick: int) -> None:
        stood(rig, tick + 1, end_tick)


@dataclass(frozen=True)
class GoesOn:
    """The robot goes on, moved by one of these, for longer than what it had before the fault could last."""

    sources: tuple = (Source.ACTOR, Source.VLA)
    text: str = "goes on"
    within_s: float = 0.0
    lasts_s: float = 0.2

    def follows(self, rig: Rig, since_tick: int) -> int:
        old_tick = since_tick + round(self.lasts_s / CLOCK.period_s)
        rig.until(lambda: rig.driven_by(*self.sources, since_tick=old_tick), "motion under the fault")
        first = next(e.tick for e in rig.executed if e.tick > since_tick and e.source in self.sources)
        late_s = (first - since_tick - 1) * CLOCK.period_s - 2 * rig.pause_s
        assert not self.within_s or late_s <= self.within_s, f"after {late_s:.2f} s"
        return first

    def lasts(self, rig: Rig, tick: int, end_tick: int) -> None:
        allowed = (*self.sources, Source.HOLD)  # a busy machine may be late for a tick
        others = {e.source.name for e in rig.executed if tick <= e.tick < end_tick and e.source not in allowed}
        assert not others, f"moved by {others}"


STEERED_ON = GoesOn((Source.HUMAN,))


def stood(rig: Rig, tick: int, end_tick: int) -> None:
    """The robot itself was in one place."""
    places = [place for of, place in rig.poses if tick <= of < end_tick]
    assert not places or np.ptp(places, axis=0).max() < 1e-9, f"it moved by {np.ptp(places, axis=0)} m"


# --- what the operator is told: before(rig) remembers, seen(rig, before) is True when it was said since


@dataclass(frozen=True)
class Reason:
    """The gate's reason to hold, which the panel shows in words."""

    cause: str

    @property
    def text(self) -> str:
        return f"gate: `{self.cause}`"

    def before(self, rig: Rig) -> int:
        return len(rig.safety)

    def seen(self, rig: Rig, before: int) -> bool:
        return any(state.holding and state.reason == self.cause for state in rig.safety[before:])


@dataclass(frozen=True)
class Cause:
    """What the gate counts."""

    cause: str

    @property
    def text(self) -> str:
        return f"gate counts `{self.cause}`"

    def count(self, rig: Rig) -> int:
        newest = rig.safety[-1]
        return dict(zip(newest.causes, newest.counts, strict=True)).get(self.cause, 0)

    before = count

    def seen(self, rig: Rig, before: int) -> bool:
        return self.count(rig) > before


@dataclass(frozen=True)
class Says:
    """A node's diagnostics are a warning with these words."""

    node: str
    words: str

    @property
    def text(self) -> str:
        return f"{self.node}: “{self.words}”"

    def said(self, rig: Rig) -> bool:
        return self.words in rig.health[self.node].message

    def before(self, rig: Rig) -> None:
        rig.until(lambda: not self.said(rig), f"the end of an earlier '{self.words}'")

    def seen(self, rig: Rig, _before: None) -> bool:
        return self.said(rig)


@dataclass(frozen=True)
class Counts:
    """A number in a node's diagnostics rises."""

    node: str
    key: str

    @property
    def text(self) -> str:
        return f"{self.node} counts `{self.key}`"

    def count(self, rig: Rig) -> int:
        return int(rig.health[self.node].values.get(self.key, 0))

    before = count

    def seen(self, rig: Rig, before: int) -> bool:
        return self.count(rig) > before


@dataclass(frozen=True)
class Silent:
    """The panel shows the node as silent."""

    node: str

    @property
    def text(self) -> str:
        return f"panel: {self.node} silent"

    def before(self, rig: Rig) -> None:
        return None

    def seen(self, rig: Rig, _before: None) -> bool:
        return time.monotonic() - rig.health[self.node].heard_s > SILENT_S


# --- how it recovers


@dataclass(frozen=True)
class Recovery:
    """What is done once the fault is over, so that the robot goes on."""

    text: str
    act: Callable[[Rig], None] = lambda rig: None


def touch_dead_man(rig: Rig) -> None:
    rig.ready(steering=True)
    rig.steering = False


def begin_again(rig: Rig) -> None:
    tick = rig.tick()
    rig.until(lambda: rig.episode.phase == Phase.IDLE, "a node that knows of no episode")
    rig.until(lambda: rig.tick() > tick + STILL_TICKS, "ticks without an episode")
    assert not any(e.moving for e in rig.executed if e.tick > tick)
    rig.begin_episode()


def release(rig: Rig) -> None:
    rig.until(lambda: rig.reason() == "estop", "the stop to last")
    rig.call("safety/release", lambda: not rig.safety[-1].estop)


def recorded(node: str) -> Callable[[Rig], None]:
    return lambda rig: rig.until(lambda: rig.health[node].message == "active", "the end of the alarm")


BY_ITSELF = Recovery("by itself")
NOTHING_TO_DO = Recovery("nothing to do")
START = Recovery("start the node again")

# --- how it is done: begin(rig) returns what ends it


def on(topic: str, make: Callable[[], Callable]) -> Callable[[Rig], Callable[[], None]]:
    """A fault of the messages of a topic."""

    def begin(rig: Rig) -> Callable[[], None]:
        wire = rig.wires[topic]
        wire.since_tick, wire.fault = None, make()
        rig.until(lambda: wire.since_tick is not None, f"a message on {topic}")
        rig.since_tick = wire.since_tick
        return lambda: setattr(wire, "fault", None)

    return begin


def killed(node: str) -> Callable[[Rig], Callable[[], None]]:
    def begin(rig: Rig) -> Callable[[], None]:
        rig.signal(node, signal.SIGKILL)
        rig.since_tick = rig.tick()
        return lambda: rig.restart(node)

    return begin


def hanging(node: str) -> Callable[[Rig], Callable[[], None]]:
    def begin(rig: Rig) -> Callable[[], None]:
        rig.signal(node, signal.SIGSTOP)
        rig.since_tick = rig.tick()
        return lambda: rig.signal(node, signal.SIGCONT)

    return begin


def slow_vla(seconds: float) -> Callable[[Rig], Callable[[], None]]:
    def begin(rig: Rig) -> Callable[[], None]:
        rig.since_tick = rig.tick()
        rig.set_delay(seconds)
        return lambda: rig.set_delay(0.0)

    return begin


def unplugged(rig: Rig) -> Callable[[], None]:
    rig.since_tick, rig.joystick = rig.tick(), False

    def end() -> None:
        rig.steering, rig.joystick = False, True

    return end


def stopped(rig: Rig) -> Callable[[], None]:
    rig.since_tick = rig.tick()
    rig.call("safety/stop", lambda: rig.safety[-1].estop)
    return lambda: None


def rival(topic: str, spoil: Callable = lambda msg: msg) -> Callable[[Rig], Callable[[], None]]:
    """A second node that sends on the topic: what comes there, spoilt."""

    def begin(rig: Rig) -> Callable[[], None]:
        node = Node("rival")
        msg_type, profile, _ = WIRED[topic]
        publisher = node.create_publisher(msg_type, topic, profile)

        def both(msg) -> tuple:  # noqa: ANN001
            publisher.publish(spoil(msg))
            return (msg,)

        unwire = on(topic, lambda: both)(rig)

        def end() -> None:
            unwire()
            node.destroy_node()

        return end

    return begin


def wild(msg: ActionChunk) -> ActionChunk:
    return ActionChunk(
        header=msg.header, tick=msg.tick, source=msg.source, steps=1, action_dim=4, actions=[1.0, -1.0, 1.0, -1.0]
    )


def two(topic: str) -> tuple:
    """What the operator is told of two nodes on a topic."""
    return Reason("two_publishers"), Says("safety_node", f"{topic}: 2 publishers")


def second_gate(rig: Rig) -> Callable[[], None]:
    """Or whoever says what a gate does."""
    node = Node("rival")
    node.create_publisher(SafetyState, "safety/state", qos.STATE)
    rig.since_tick = rig.tick()
    return node.destroy_node


def full_disk(node: str) -> Callable[[Rig], Callable[[], None]]:
    """The node's files may not grow, which is what a full disk looks like to it."""

    def begin(rig: Rig) -> Callable[[], None]:
        pid = rig.supervisor.pids[node]
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        rig.since_tick = rig.tick()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
        return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    return begin


@dataclass(frozen=True)
class Fault:
    """One row: what is done to the graph, and what must come of it."""

    group: str
    name: str
    begin: Callable[[Rig], Callable[[], None]]
    robot: Held | Stands | GoesOn
    told: tuple = ()
    recovery: Recovery = BY_ITSELF
    steering: bool = field(default=False)  # a person steers when it comes


AGED = 0.9  # s: a reference of max_age_ticks, the chunk that was planned with it, and what was under way
SEES_ON = GoesOn(lasts_s=AGED)
RIVALS, ALONE = Held(1.2), Recovery("by itself when one of them ends")
NO_REFERENCE = Says("actor_node", "no fresh reference")


def faults() -> list[Fault]:
    """All of them, in the order of the table."""
    found: list[Fault] = []

    def group(title: str, *rows: tuple) -> None:
        for name, begin, robot, told, recovery, *steering in rows:
            found.append(Fault(title, name, begin, robot, told, recovery, bool(steering)))

    start_and_begin = Recovery("start the node again, then an episode", begin_again)
    start_and_touch = Recovery("start the node again, touch the dead-man", touch_dead_man)
    group(
        "Processes",
        ("camera_node is killed", killed("camera_node"), Held(AGED),
         (Says("vla_node", "is camera_node alive"), NO_REFERENCE), START),
        ("proprio_node is killed", killed("proprio_node"), Held(0.1), (Reason("no_proprio"),), START),
        ("vla_node is killed", killed("vla_node"), Held(AGED), (NO_REFERENCE, Silent("vla_node")), START),
        ("actor_node is killed", killed("actor_node"), Held(0.06), (Reason("stale"),), START),
        ("actor_node hangs", hanging("actor_node"), Held(0.06), (Reason("stale"),), BY_ITSELF),
        ("safety_node is killed", killed("safety_node"), Stands(), (Silent("safety_node"),), START),
        ("safety_node hangs", hanging("safety_node"), Stands(), (Silent("safety_node"),), BY_ITSELF),
        ("teleop_node is killed while a person steers", killed("teleop_node"), Held(0.14),
         (Says("actor_node", "human command lost"),), start_and_touch, True),
        ("episode_node is killed", killed("episode_node"), Held(1.0), (Reason("episode_lost"),), start_and_begin),
        ("replay_node is killed", killed("replay_node"), GoesOn(), (Says("learner_node", "is replay_node alive"),),
         START),
        ("replay_node's disk is full", full_disk("replay_node"), GoesOn(), (Says("replay_node", "make room"),),
         Recovery("by itself when there is room", recorded("replay_node"))),
        ("learner_node is killed", killed("learner_node"), GoesOn(), (Silent("learner_node"),), START),
        ("handover_node is killed", killed("handover_node"), GoesOn(), (Silent("handover_node"),), START),
        ("recorder_node is killed", killed("recorder_node"), GoesOn(), (Silent("recorder_node"),), START),
        ("recorder_node's disk is full", full_disk("recorder_node"), GoesOn(), (Says("recorder_node", "make room"),),
         Recovery("by itself when there is room", recorded("recorder_node"))),
        ("the robot's driver is killed", killed("sim_node"), Held(0.1),
         (Reason("no_proprio"), Says("proprio_node", "no proprioception for")), START),
    )  # fmt: skip
    topic = "command/candidate"
    group(
        "`command/candidate`, from the actor",
        ("silent", on(topic, lambda: spoils.silent), Held(0.06), (Reason("stale"),), BY_ITSELF),
        ("0.2 s late", on(topic, lambda: Late(0.2)), Held(0.06), (Reason("exhausted"),), BY_ITSELF),
        ("twice", on(topic, lambda: spoils.twice), GoesOn(), (), NOTHING_TO_DO),
        ("in the wrong order", on(topic, Swapped), GoesOn(), (Cause("old_tick"),), BY_ITSELF),
        ("sizes disagree", on(topic, lambda: Changed(spoils.shorter("actions"))), Held(0.06),
         (Reason("stale"), Cause("malformed")), BY_ITSELF),
        ("of a robot with fewer actions", on(topic, lambda: Changed(spoils.one_action_less)), Held(0.06),
         (Reason("stale"), Cause("wrong_size")), BY_ITSELF),
        ("not finite", on(topic, lambda: Changed(spoils.put("actions", spoils.NAN, 2))), Held(0.06),
         (Reason("stale"), Cause("malformed")), BY_ITSELF),
        ("out of all range", on(topic, lambda: Changed(spoils.put("actions", 1e6))), GoesOn(),
         (Cause("deviation"),), BY_ITSELF),
        ("at ten times the rate", on(topic, lambda: spoils.ten_times), GoesOn(), (), NOTHING_TO_DO),
        ("a second node sends it", rival(topic, wild), Held(0.3), two(topic), ALONE),
        ("a second gate", second_gate, RIVALS, two("safety/state"), ALONE),
    )  # fmt: skip
    topic = "proprio"
    group(
        "`proprio`",
        ("silent", on(topic, lambda: spoils.silent), Held(0.1), (Reason("no_proprio"),), BY_ITSELF),
        ("0.7 s late", on(topic, lambda: Late(0.7)), Held(0.1),
         (Reason("no_proprio"), Counts("safety_node", "rejected proprio"),
          Says("vla_node", "no proprioception of the pictures' time")), BY_ITSELF),
        ("twice", on(topic, lambda: spoils.twice), GoesOn(), (), NOTHING_TO_DO),
        ("in the wrong order", on(topic, Swapped), GoesOn(), (), BY_ITSELF),
        ("of another size", on(topic, lambda: Changed(spoils.shorter("values"))), Held(0.1),
         (Reason("no_proprio"), Counts("safety_node", "rejected proprio")), BY_ITSELF),
        ("not finite", on(topic, lambda: Changed(spoils.put("values", spoils.NAN, 5))), Held(0.1),
         (Reason("no_proprio"), Counts("safety_node", "rejected proprio")), BY_ITSELF),
        ("at ten times the rate", on(topic, lambda: spoils.ten_times), GoesOn(), (), NOTHING_TO_DO),
        ("a second node sends it", rival(topic), RIVALS, two(topic), ALONE),
    )  # fmt: skip
    clock, wrong = Recovery("by itself when the clock is right"), "driver/joint_states"
    group(
        "The robot's driver",
        ("`driver/pose` is silent", on("driver/pose", lambda: spoils.silent), Held(0.14),
         (Reason("no_proprio"), Says("proprio_node", "no proprioception for")), BY_ITSELF),
        ("`driver/pose` is not finite",
         on("driver/pose", lambda: Changed(lambda msg: setattr(msg.pose.position, "x", spoils.NAN))), Held(0.14),
         (Reason("no_proprio"), Says("proprio_node", "are not all finite")), BY_ITSELF),
        ("the clock of `driver/pose` jumps 10 s ahead", on("driver/pose", lambda: Changed(spoils.stamped(10.0))),
         Held(0.14), (Reason("no_proprio"), Says("proprio_node", "ahead of this computer's clock")), clock),
        ("the clock of `driver/pose` jumps 10 s back", on("driver/pose", lambda: Changed(spoils.stamped(-10.0))),
         Held(0.14), (Reason("no_proprio"), Says("proprio_node", "older than the one before")), clock),
        ("joint states are silent", on(wrong, lambda: spoils.silent), Held(0.1),
         (Reason("no_joints"), Says("safety_node", "driver/joint_states has no joint1")), BY_ITSELF),
        ("joint states have other names", on(wrong, lambda: Changed(spoils.other_names)), Held(0.1),
         (Reason("no_joints"), Cause("wrong_joints")), BY_ITSELF),
        ("the force is over its limit", on("driver/wrench", lambda: Changed(spoils.pushed)), Held(0.08),
         (Reason("force"),), BY_ITSELF),
    )  # fmt: skip
    topic = "driver/wrist/image"
    group(
        "Pictures of one camera",
        ("silent", on(topic, lambda: spoils.silent), Held(AGED),
         (Says("camera_node", "camera 'wrist' has sent no usable picture"), NO_REFERENCE), BY_ITSELF),
        ("0.7 s late", on(topic, lambda: Late(0.7)), Held(AGED),
         (Says("camera_node", "old on arrival"), NO_REFERENCE), BY_ITSELF),
        ("twice", on(topic, lambda: spoils.twice), SEES_ON,
         (Says("camera_node", "older than the one before"),), BY_ITSELF),
        ("in the wrong order", on(topic, Swapped), SEES_ON,
         (Says("camera_node", "older than the one before"),), BY_ITSELF),
        ("shorter than they say", on(topic, lambda: Changed(spoils.shorter("data"))), Held(AGED),
         (Says("camera_node", "the driver's step or data is wrong"), NO_REFERENCE), BY_ITSELF),
        ("at ten times the rate", on(topic, lambda: spoils.ten_pictures), SEES_ON,
         (Counts("camera_node", "wrist refused_too_many"),), BY_ITSELF),
        ("frozen", on(topic, lambda: Changed(spoils.Frozen())), Held(AGED + 0.25),
         (Says("camera_node", "camera 'wrist' repeats the same picture"), NO_REFERENCE), BY_ITSELF),
        ("black", on(topic, lambda: Changed(spoils.black)), Held(AGED),
         (Says("camera_node", "camera 'wrist' is black"), NO_REFERENCE), BY_ITSELF),
    )  # fmt: skip
    topic = "vla/reference"
    refused = Counts("actor_node", f"rejected {topic}")
    group(
        "The VLA and its `vla/reference`",
        ("silent", on(topic, lambda: spoils.silent), Held(AGED), (NO_REFERENCE,), BY_ITSELF),
        ("0.2 s late", on(topic, lambda: Late(0.2)), SEES_ON, (), BY_ITSELF),
        ("twice", on(topic, lambda: spoils.twice), SEES_ON, (), NOTHING_TO_DO),
        ("in the wrong order", on(topic, Swapped), SEES_ON, (), BY_ITSELF),
        ("of a robot with fewer actions", on(topic, lambda: Changed(spoils.one_action_less)), Held(AGED),
         (NO_REFERENCE, refused), BY_ITSELF),
        ("not finite", on(topic, lambda: Changed(spoils.put("actions", spoils.NAN))), Held(AGED),
         (NO_REFERENCE, refused), BY_ITSELF),
        ("at ten times the rate", on(topic, lambda: spoils.ten_times), SEES_ON, (), NOTHING_TO_DO),
        ("a second node sends it", rival(topic), RIVALS, two(topic), ALONE),
        ("tokens (`vla/rl_state`) are not finite", on("vla/rl_state", lambda: Changed(spoils.put("token", spoils.NAN))),
         Held(AGED), (Says("actor_node", "no fresh RL token"), Counts("actor_node", "rejected vla/rl_state")),
         BY_ITSELF),
        ("an inference takes 0.21 s, longer than a chunk", slow_vla(0.21), SEES_ON,
         (Counts("vla_node", "late_references"),), BY_ITSELF),
        ("an inference takes 2 s", slow_vla(2.0), Held(AGED), (NO_REFERENCE,), BY_ITSELF),
    )  # fmt: skip
    topic, lost = "human/command", Says("actor_node", "human command lost")
    group(
        "A person steers",
        ("the gamepad falls silent", unplugged, GoesOn(text="the steering ends within 0.4 s, the actor goes on",
                                                       within_s=0.4),
         (Says("teleop_node", "the gamepad is silent"),), Recovery("by itself when it is heard again"), True),
        ("`human/command` is silent", on(topic, lambda: spoils.silent), Held(0.14), (lost,), BY_ITSELF, True),
        ("0.5 s late", on(topic, lambda: Late(0.5)), Held(0.14), (lost, Counts("actor_node", f"rejected {topic}")),
         BY_ITSELF, True),
        ("twice", on(topic, lambda: spoils.twice), STEERED_ON, (), NOTHING_TO_DO, True),
        ("in the wrong order", on(topic, Swapped), STEERED_ON, (), BY_ITSELF, True),
        ("of a robot with fewer actions", on(topic, lambda: Changed(spoils.one_action_less)), Held(0.14),
         (lost, Counts("actor_node", f"rejected {topic}")), BY_ITSELF, True),
        ("not finite", on(topic, lambda: Changed(spoils.put("actions", spoils.NAN))), Held(0.14),
         (lost, Counts("actor_node", f"rejected {topic}")), BY_ITSELF, True),
        ("at ten times the rate", on(topic, lambda: spoils.ten_times), STEERED_ON, (), NOTHING_TO_DO, True),
        ("a second node sends it", rival(topic), RIVALS, two(topic), ALONE, True),
    )  # fmt: skip
    topic, better = "learner/weights", Recovery("by itself with the next good weights")

    def weights(change: Callable) -> Callable:
        return on(topic, lambda: Changed(change))

    def refused(cause: str) -> tuple:
        return (Says("actor_node", f"weights rejected ({cause})"), Counts("actor_node", f"weights_refused_{cause}"))

    group(
        "The learner's weights",
        ("not finite", weights(spoils.repacked(spoils.not_finite)), GoesOn(), refused("non-finite"), better),
        ("another checksum", weights(spoils.wrong_checksum), GoesOn(), refused("checksum"), better),
        ("another architecture", weights(spoils.repacked(spoils.another_architecture)), GoesOn(), refused("shapes"),
         better),
        ("of an older version", weights(lambda msg: setattr(msg, "version", 1)), GoesOn(), refused("stale"), better),
        ("a policy gone wild", weights(spoils.repacked(spoils.wild)), GoesOn(), (Cause("deviation"),), better),
        ("a policy that gives no finite actions", weights(spoils.repacked(spoils.endless)), Held(0.5),
         (Says("actor_node", "expected finite"),), better),
        ("at ten times the rate", on(topic, lambda: spoils.ten_times), GoesOn(), (), NOTHING_TO_DO),
    )  # fmt: skip
    group(
        "A person",
        ("presses the emergency stop", stopped, Held(0.1), (Reason("estop"),), Recovery("`safety/release`", release)),
    )
    return found

