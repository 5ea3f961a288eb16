"""The last check before the controller: what may move the robot, and how much."""
from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from math import hypot, inf, isfinite
from typing import Sequence

import numpy as np

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.commander import human_timeout_steps
from rlt_ros.core.kinematics import Arm, JointLimits
from rlt_ros.core.observations import ReferenceBuffer

# A command has actions for so many ticks after its own, for a controller whose next command comes late: the two periods
# after which a watchdog stops a robot.
BRIDGED_TICKS = 2
WATCHDOG_PERIODS = 2

LINEAR, ANGULAR = ("x", "y", "z"), ("roll", "pitch", "yaw")
REACTIONS = ("hold", "retreat")
# At a singularity the arm is slowed down to this share and no further: it must be able to leave.
SLOWEST = 0.1
# Least squares of the prediction. Small, so that it rather promises too fast a joint than too slow a one.
DAMPING = 0.001
_EXACT = 1.0 + 1e-6  # float32 actions that stand exactly at a limit are not over it
_STILL_RAD = 1e-6  # a joint that moves less is not on its way anywhere

_MOTION = ("max_linear_velocity", "max_angular_velocity", "max_linear_acceleration", "max_angular_acceleration")
_TOOL = (*_MOTION, "workspace_lower", "max_force")


@dataclass(frozen=True)
class Limits:
    """Limits of one robot and task.  What is not thought about must not pass: those without a default must be given.

    None (null in a task file) says that there is nothing to limit: for a task whose actions move no tool, or a robot
    whose joints are not watched.  Positions and forces are read from proprioception: the tool's position in the base
    frame, which the actions called x, y, z move along the same axes, and the force.
    """

    action_limit: float  # largest normalised action, at most 1
    max_step_change: float  # largest change of a normalised action from one tick to the next (2.0: no limit)
    max_linear_velocity: float | None  # m/s, norm over x, y, z
    max_angular_velocity: float | None  # rad/s, norm over roll, pitch, yaw
    max_linear_acceleration: float | None  # m/s2, norm of the change of velocity over the period
    max_angular_acceleration: float | None  # rad/s2
    max_deviation: float | None  # normalised, each action of the actor from the reference's of the same tick
    workspace_lower: tuple[float, float, float] | None  # m, base frame
    workspace_upper: tuple[float, float, float] | None  # m, base frame
    max_force: float | None  # N, norm of the measured force
    force_index: int | None  # place of Fx in proprioception, followed by Fy, Fz; None: it has no force
    pose_index: int | None = 0  # place of the tool's x, followed by y, z; None: it has no pose
    # With max_force
    force_reaction: str | None = None  # "hold", or "retreat": the gate itself backs off
    retreat_direction: tuple[float, float, float] | None = None  # base frame, away from what is pushed
    # With force_reaction "retreat"
    retreat_velocity: float | None = None  # m/s
    retreat_distance: float | None = None  # m from where the force came up; then hold
    # With joints; those of the URDF hold too, the narrower one wins
    joint_margin: float | None = None  # rad or m before a joint's limit from which on it may only go back
    min_singular_value: float | None = None  # of the Jacobian; where the smallest is below it the arm is slowed down
    joint_lower: tuple[float, ...] | None = None  # rad or m, one a joint
    joint_upper: tuple[float, ...] | None = None
    joint_velocity: tuple[float, ...] | None = None  # rad/s or m/s
    # By receive time
    command_timeout_s: float | None = None  # s, age at which a command is stale; None: two control periods
    slow_watchdog: bool = False  # command_timeout_s may be more than two control periods

    def __post_init__(self) -> None:
        def expect(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"limits.{name}: got {getattr(self, name)}, expected {expected}")

        def number(value: object) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool)

        def vector(name: str, size: int | None, expected: str) -> None:
            value = getattr(self, name)
            if value is None:
                return
            good = not isinstance(value, (str, float, int)) and all(number(v) for v in value)
            expect(name, good and size in (None, len(value)) and all(isfinite(v) for v in value), expected)
            object.__setattr__(self, name, tuple(float(v) for v in value))

        for name in (*_MOTION, "max_deviation", "max_force", "retreat_velocity", "retreat_distance", "joint_margin",
                     "min_singular_value", "command_timeout_s"):
            value = getattr(self, name)
            expect(name, value is None or number(value) and 0.0 < value < inf, "more than 0, or null")
        expect("action_limit", number(self.action_limit) and 0.0 < self.action_limit <= 1.0, "more than 0, at most 1")
        expect("max_step_change", number(self.max_step_change) and self.max_step_change > 0.0, "more than 0")
        expect("slow_watchdog", isinstance(self.slow_watchdog, bool), "true or false")
        for name in ("workspace_lower", "workspace_upper", "retreat_direction"):
            vector(name, 3, "three finite numbers" + (" (m)" if "workspace" in name else ""))
        for name in ("joint_lower", "joint_upper", "joint_velocity"):
            vector(name, None, "finite numbers, one a joint")
        expect("joint_velocity", min(self.joint_velocity or (1.0,)) > 0.0, "more than 0 for each joint")
        lower, upper = self.workspace_lower, self.workspace_upper
        expect("workspace_lower", (lower is None) == (upper is None), "null exactly where workspace_upper is")
        expect("workspace_upper", all(u > l for l, u in zip(lower or (), upper or ())),
               f"more than workspace_lower {lower} on each axis")
        for name in ("force_index", "pose_index"):
            value = getattr(self, name)
            expect(name, value is None or isinstance(value, int) and value >= 0, "an index from 0")
        for name, part, index in (("workspace_lower", "pose", self.pose_index),
                                  ("max_force", "wrench", self.force_index)):
            expect(name, getattr(self, name) is None or index is not None,
                   f"null, as the task's state has no '{part}' to judge it by; or add that to the state")
        if self.max_force is not None:
            given = "as max_force is set"
            expect("force_reaction", self.force_reaction in REACTIONS, f"{' or '.join(REACTIONS)}, {given}")
            expect("retreat_direction", any(self.retreat_direction or ()), f"a direction in the base frame, {given}")
        if self.force_reaction == "retreat" and self.max_force is not None:
            for name in ("retreat_velocity", "retreat_distance"):
                expect(name, getattr(self, name) is not None, "a number, as force_reaction is 'retreat'")
            expect("workspace_lower", lower is not None,
                   "a workspace, as force_reaction is 'retreat': a wrong force sensor must not drive the arm away")

    @classmethod
    def from_mapping(cls, values: dict) -> Limits:
        """From a parameter file; ValueError names missing and unknown keys."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"limits: unknown key '{key}', expected {', '.join(known)}")
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        if missing:
            said = ", ".join(f"'{name}' is missing" for name in missing)
            raise ValueError(
                f"limits: {said}; every limit must be set, in the task file under 'limits' or in the robot file"
                " under safety_node 'limits' (null in the task file where there is nothing to limit)"
            )
        return cls(**values)


class JointGuard:
    """How actions move the joints, and what of it the joints allow.

    names: in the order of joint vectors.  lower, upper: float64 [n], rad or m, the margin taken off.  velocity: [n],
    rad/s or m/s.
    """

    def __init__(self, limits: Limits, names: Sequence[str], action_names: Sequence[str], action_scale: Sequence[float],
                 period_s: float, urdf: str = "", base: str = "", tip: str = ""):
        """Joint limits from `limits` and, where it is given, from the text of a `urdf`: the narrower one of each.

        Actions called x, y, z, roll, pitch, yaw move the URDF's frame `tip` in `base`; actions called as a joint move
        that.  ValueError names what is missing or does not fit.
        """
        self.names = tuple(names)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"joints: {list(self.names)} has a name twice")
        self._arm = Arm(urdf, base, tip, names) if urdf else None
        found = self._arm.limits if self._arm else (JointLimits(-inf, inf, inf),) * len(names)
        bounds = {}
        for key, said, narrower in (("joint_lower", [j.lower for j in found], np.maximum),
                                    ("joint_upper", [j.upper for j in found], np.minimum),
                                    ("joint_velocity", [j.velocity for j in found], np.minimum)):
            own = getattr(limits, key)
            if own is not None and len(own) != len(names):
                raise ValueError(f"limits.{key}: got {len(own)} numbers, expected one for each of {', '.join(names)}")
            if own is None and (key == "joint_velocity" or not urdf):
                lacking = [name for name, value in zip(names, said) if not isfinite(value)]
                if lacking:
                    raise ValueError(f"limits: '{key}' is missing, and {'the' if urdf else 'no'} URDF says"
                                     f" {'nothing' if urdf else 'it'} for {', '.join(lacking)}")
            bounds[key] = np.array(said if own is None else narrower(said, own), dtype=np.float64)
        if limits.joint_margin is None:
            raise ValueError("limits: 'joint_margin' is missing; joints are watched, and must stay off their limits")
        self.lower = bounds["joint_lower"] + limits.joint_margin
        self.upper = bounds["joint_upper"] - limits.joint_margin
        for name, lower, upper in zip(names, self.lower, self.upper):
            if not lower < upper:
                raise ValueError(f"limits: joint '{name}' may move from {lower:.3f} to {upper:.3f} (the margin of"
                                 f" {limits.joint_margin} taken off), expected lower < upper")
        self.velocity = bounds["joint_velocity"]
        # As lists: for so few numbers Python is faster than numpy.
        self.bounds = list(zip(self.lower.tolist(), self.upper.tolist()))
        self.most = (self.velocity * period_s).tolist()  # in a tick
        self.min_singular_value = limits.min_singular_value
        self.direct = not any(name in LINEAR + ANGULAR for name in action_names)
        rows = self.names if self.direct else LINEAR + ANGULAR
        self._unit = np.zeros((len(rows), len(action_names)))  # [rows, A]: what an action of 1 moves in a tick
        for i, (name, scale) in enumerate(zip(action_names, action_scale)):
            if name in rows:
                self._unit[rows.index(name), i] = scale
        if not self._unit.any():
            raise ValueError(f"joints: the task's actions {', '.join(action_names)} are neither joints of"
                             f" {', '.join(names)} nor a motion {', '.join(LINEAR + ANGULAR)} of the tool")
        if self.direct:
            return
        if self._arm is None:
            raise ValueError(
                f"joints: the task moves the tool ({', '.join(action_names)}); what that does to joints says"
                " the robot's URDF: set 'urdf'"
            )
        if self.min_singular_value is None:
            raise ValueError("limits: 'min_singular_value' is missing; near a singularity the arm must slow down")

    def at(self, joints: np.ndarray) -> tuple[np.ndarray, float]:
        """At these joints [n]: [n, A], rad or m that an action of 1 moves each in a tick, and the share of the speed
        that the nearness of a singularity leaves."""
        if self.direct:
            return self._unit, 1.0
        inverse, smallest = self._arm.inverse(joints, DAMPING)
        return inverse @ self._unit, min(1.0, max(SLOWEST, smallest / self.min_singular_value))


@dataclass
class _Robot:
    """Where the robot is, or will be."""

    place: list[float]  # m, base frame; empty where nothing reads it
    force: list[float]  # N
    joints: list[float]  # rad or m; empty where they are not watched
    moves: list[list[float]]  # [n][A], of JointGuard.at
    share: float

    def turned(self, action: list[float]) -> list[float]:
        """How far `action` moves each joint in a tick."""
        return [sum([m * a for m, a in zip(row, action)]) for row in self.moves]


class SafetyGate:
    """Lets through what is safe and holds the robot still otherwise.

    Causes in `counts`, one per refused message or per changed or held tick:
      refused   malformed, wrong_size, empty, old_tick, wrong_joints (joint states)
      held      estop, two_publishers, no_command, stale, exhausted (the chunk has no action for this tick),
                teleop_lost, episode_lost, no_proprio, no_joints, no_reference, force, joint_limit,
                tracking (what `outside` says)
      changed   deviation, range, velocity, step_change, acceleration, workspace, singularity, joint_velocity, force,
                retreat, and joint_limit where actions move joints
    `reason` is the cause that holds the last tick, "" when it was not held; `detail` says more of it, "" when there is
    no more.  `outside` may be set to a cause, and its detail, that holds for what the gate does not see: the
    controller's own state.  Not thread-safe.
    """

    CAUSES = (
        "malformed", "wrong_size", "empty", "old_tick", "wrong_joints",
        "estop", "two_publishers", "no_command", "stale", "exhausted", "teleop_lost", "episode_lost", "no_proprio",
        "no_joints", "no_reference", "force", "retreat", "deviation", "range", "velocity", "step_change",
        "acceleration", "workspace", "singularity", "joint_velocity", "joint_limit", "tracking",
    )

    def __init__(
        self,
        limits: Limits,
        action_names: Sequence[str],
        action_scale: Sequence[float],
        period_s: float,
        *,
        watch_joints: bool = False,
        latency_ticks: int = 0,
        max_age_ticks: int = 35,
        episode_timeout_s: float = 1.0,
    ):
        """action_scale: [A], m or rad a tick at action 1.  watch_joints: hold until `joints` is set and measured.

        latency_ticks, max_age_ticks: which reference belongs to a tick, by the rule of ReferenceBuffer; the age is that
        of the actor's rule and the length of its chunk.
        """
        self.limits, self.period_s = limits, period_s
        self.action_names = tuple(action_names)
        self.action_dim = len(self.action_names)
        if len(action_scale) != self.action_dim:
            raise ValueError(f"action_scale: got {len(action_scale)} numbers for {self.action_dim} actions, expected"
                             " one each")
        self._scale = [float(v) for v in action_scale]
        if not all(isfinite(v) and v for v in self._scale):
            raise ValueError(f"action_scale: got {self._scale}, expected finite numbers other than 0")
        tool = [name for name in _TOOL if getattr(limits, name) is not None]
        if tool and not set(LINEAR) <= set(self.action_names):
            raise ValueError(f"limits.{tool[0]}: got {getattr(limits, tool[0])}, but workspace, velocity, acceleration"
                             " and force are limited for actions x, y, z of a tool, and the task has"
                             f" {', '.join(self.action_names)}; set them to null in the task file")
        self._xyz = [self.action_names.index(name) for name in LINEAR] if tool else []
        turns = [i for i, name in enumerate(self.action_names) if name in ANGULAR] if tool else []
        per_tick = lambda value, periods: inf if value is None else value * period_s**periods * _EXACT  # noqa: E731
        self._parts = [  # indices of actions, their largest motion in a tick, and its largest change
            (part, per_tick(velocity, 1), per_tick(acceleration, 2))
            for part, velocity, acceleration in (
                (self._xyz, limits.max_linear_velocity, limits.max_linear_acceleration),
                (turns, limits.max_angular_velocity, limits.max_angular_acceleration))
            if part and (velocity is not None or acceleration is not None)]
        self.command_timeout_s = limits.command_timeout_s or WATCHDOG_PERIODS * period_s
        if self.command_timeout_s > WATCHDOG_PERIODS * period_s * _EXACT and not limits.slow_watchdog:
            raise ValueError(f"limits.command_timeout_s: got {self.command_timeout_s} s, expected at most"
                             f" {WATCHDOG_PERIODS} control periods of {period_s:g} s; leave it out, or say"
                             " limits.slow_watchdog: true")
        self.human_timeout_s = (human_timeout_steps(period_s) + 1) * period_s
        self.episode_timeout_s = episode_timeout_s
        # Up to where the limits read the proprioception.
        self.proprio_needed = max(0 if limits.workspace_lower is None else limits.pose_index + 3,
                                  0 if limits.max_force is None else limits.force_index + 3)
        if limits.retreat_direction is not None:
            length = hypot(*limits.retreat_direction)
            self._away = [v / length for v in limits.retreat_direction]
        self.watch_joints = watch_joints
        self.joints: JointGuard | None = None
        self.rivals = ""  # who sends where one alone may send; "": nobody else
        self.repeated = 0  # candidates for a tick that had one already, or older: two senders look so
        self.counts = {cause: 0 for cause in self.CAUSES}
        self.reason = self.detail = ""
        self.outside = "", ""
        self.stopped = False
        self._ages = latency_ticks, max_age_ticks
        self._human_s = self._episode_s = -inf
        self._running = False
        self._still = ((0.0,) * self.action_dim,) * (1 + BRIDGED_TICKS)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was commanded and what it was compared with: the robot stood still, or the clock was set back.

        The emergency stop stays as it is.
        """
        self._references = ReferenceBuffer(*self._ages)
        self._chunk: Chunk | None = None
        self._received_s = -inf
        self._last = [0.0] * self.action_dim
        self._pushed_at: list[float] | None = None  # where the force came up

    # --- what comes in ----------------------------------------

    def refuse(self, cause: str) -> None:
        """Count a message that could not even be read (cause "malformed": wrong shape, not finite; "wrong_joints")."""
        self.counts[cause] += 1

    def offer(self, chunk: Chunk, received_s: float) -> bool:
        """A candidate, with its receive time on the monotonic clock; False when it is refused (the last one stays)."""
        if chunk.action_dim != self.action_dim:
            self.refuse("wrong_size")
            return False
        if chunk.steps == 0:
            self.refuse("empty")
            return False
        # A sender that was silent for long may have restarted on another clock: let it begin anew.
        silent = received_s - self._received_s > self.command_timeout_s
        if self._chunk is not None and not silent:
            self.repeated += chunk.tick <= self._chunk.tick
            if chunk.tick < self._chunk.tick:
                self.refuse("old_tick")
                return False
        self._chunk = chunk
        self._received_s = received_s
        return True

    def add_reference(self, chunk: Chunk) -> None:
        """A chunk of the VLA, heard from itself; ValueError when it is of another size."""
        if chunk.action_dim != self.action_dim:
            raise ValueError(f"reference: {chunk.action_dim} actions a step, expected {self.action_dim}")
        self._references.add(chunk)

    def hear_human(self, now_s: float) -> None:
        """The human's gamepad was heard, by itself."""
        self._human_s = now_s

    def hear_episode(self, running: bool, now_s: float) -> None:
        """The episode's state was heard."""
        self._running, self._episode_s = running, now_s

    def estop(self) -> None:
        """Hold until release_estop(), whatever comes."""
        self.stopped = True

    def release_estop(self) -> None:
        """Only a person calls this.  Commands from before the release are not carried out."""
        self.stopped = False
        self._chunk = None

    # --- what goes out ----------------------------------------

    def step(self, tick: int, now_s: float, proprio: Sequence[float] | np.ndarray | None,
             joints: np.ndarray | None = None) -> Chunk:
        """What the controller gets for `tick` and, as far as the candidate reaches, for the next BRIDGED_TICKS, should
        their own commands come late; zeros with source HOLD when anything is wrong.

        now_s: monotonic clock.  proprio: [P] now, SI, joints: float64 [n] in the order of the guard's names; None
        when missing or stale.
        """
        chunk, self.detail = self._chunk, ""
        if isinstance(proprio, np.ndarray):
            proprio = proprio.tolist()
        self.reason = self._why_hold(tick, now_s, proprio, joints)
        actions: list[list[float]] = []
        if not self.reason:
            robot = self._robot(proprio, joints)
            actions = self._allowed(chunk, tick, robot)
        if self.reason:
            self._last = [0.0] * self.action_dim
            self.counts[self.reason] += 1
            return Chunk(tick, self._still, tick, Source.HOLD, chunk.episode if chunk else 0)
        return Chunk(tick, tuple(map(tuple, actions)), chunk.observation_tick, chunk.source, chunk.episode,
                     chunk.policy_version)

    def _allowed(self, chunk: Chunk, tick: int, robot: _Robot) -> list[list[float]]:
        """The action of `tick` and those of the ticks after, each limited for where those before it will lead; none
        from the first that would be held."""
        first = self._allow(chunk, tick, robot)
        if self.reason:
            return []
        counts, actions = dict(self.counts), [first]  # the ticks to come are counted when they come
        for later in range(tick + 1, tick + 1 + BRIDGED_TICKS):
            self._last = actions[-1]
            self._advance(robot, actions[-1])
            if not chunk.covers(later):
                break
            action = self._allow(chunk, later, robot)
            if self.reason:
                break
            actions.append(action)
        self._last, self.counts, self.reason, self.detail = first, counts, "", ""
        return actions

    def _why_hold(self, tick: int, now_s: float, proprio: Sequence[float] | None, joints: np.ndarray | None) -> str:
        chunk = self._chunk
        if self.stopped:
            return "estop"
        if self.rivals:
            self.detail = self.rivals
            return "two_publishers"
        if chunk is None:
            return "no_command"
        if now_s - self._received_s > self.command_timeout_s:
            return "stale"
        if not chunk.covers(tick):
            return "exhausted"
        if chunk.source is Source.HUMAN:
            if now_s - self._human_s > self.human_timeout_s:
                return "teleop_lost"
        elif self._running and now_s - self._episode_s > self.episode_timeout_s:
            return "episode_lost"
        if proprio is None or len(proprio) < self.proprio_needed or not isfinite(sum(proprio)):
            return "no_proprio"
        if self.watch_joints and (self.joints is None or joints is None):
            self.detail = "joint states are missing or too old" if self.joints else "no robot description yet"
            return "no_joints"
        cause, self.detail = self.outside
        return cause

    def _robot(self, proprio: Sequence[float], joints: np.ndarray | None) -> _Robot:
        limits, at, i = self.limits, self.limits.pose_index, self.limits.force_index
        place = [] if limits.workspace_lower is None else list(proprio[at:at + 3])
        force = list(proprio[i:i + 3]) if limits.max_force is not None else []
        if self.joints is None:
            return _Robot(place, force, [], [], 1.0)
        moves, share = self.joints.at(joints)
        return _Robot(place, force, joints.tolist(), moves.tolist(), share)

    def _advance(self, robot: _Robot, action: list[float]) -> None:
        for axis, i in enumerate(self._xyz if robot.place else ()):
            robot.place[axis] += action[i] * self._scale[i]
        robot.joints = [q + moved for q, moved in zip(robot.joints, robot.turned(action))]

    def _allow(self, chunk: Chunk, tick: int, robot: _Robot) -> list[float]:
        """The action of `tick`, limited; sets `reason` when it may not be carried out at all."""
        wanted = list(chunk.rows[tick - chunk.tick])
        pushed = self._away_from_force(wanted, chunk.source, robot)
        if self.reason:
            return wanted
        if chunk.source is Source.HOLD:  # at once, as every hold
            return [0.0] * self.action_dim
        if pushed is not None:
            wanted = pushed
        elif chunk.source is Source.ACTOR and self.limits.max_deviation is not None:
            found = self._references.covering(tick, tick - self._references.max_age_ticks, 1)
            if found is None:
                self.reason = "no_reference"
                return wanted
            far = self.limits.max_deviation
            near = [min(max(a, r - far), r + far) for a, r in zip(wanted, found.rows[tick - found.tick])]
            wanted = self._changed("deviation", wanted, near)
        return self._limit_joints(self._limit_workspace(self._limit_motion(wanted), robot), robot)

    def _changed(self, cause: str, before: list[float], after: list[float]) -> list[float]:
        if after != before:
            self.counts[cause] += 1
        return after

    def _limit_motion(self, wanted: list[float]) -> list[float]:
        """Range, velocity and their changes.

        The last action was within range and velocity, and both are convex: a part of the way from there to another
        action within them stays within them. So what belongs together is shortened by one factor.
        """
        most, last, scale = self.limits.action_limit, self._last, self._scale
        action = self._changed("range", wanted, [min(max(a, -most), most) for a in wanted])
        for part, furthest, _ in self._parts:
            moved = hypot(*[action[i] * scale[i] for i in part])
            if moved > furthest:
                self.counts["velocity"] += 1
                action = [a * furthest / moved if i in part else a for i, a in enumerate(action)]
        most = self.limits.max_step_change
        if any(abs(a - b) > most * _EXACT for a, b in zip(action, last)):
            self.counts["step_change"] += 1
            shares = [1.0 if abs(a - b) <= most else most / abs(a - b) for a, b in zip(action, last)]
            for part, _, _ in self._parts:
                least = min([shares[i] for i in part])
                shares = [least if i in part else share for i, share in enumerate(shares)]
            action = [b + (a - b) * share for a, b, share in zip(action, last, shares)]
        for part, _, furthest in self._parts:
            change = hypot(*[(action[i] - last[i]) * scale[i] for i in part])
            if change > furthest:
                self.counts["acceleration"] += 1
                share = furthest / change
                action = [b + (a - b) * share if i in part else a for i, (a, b) in enumerate(zip(action, last))]
        return action

    def _limit_workspace(self, action: list[float], robot: _Robot) -> list[float]:
        """Without the components that lead out of the box or further away from it."""
        lower, upper = self.limits.workspace_lower, self.limits.workspace_upper
        if lower is None:
            return action
        kept = action
        for axis, i in enumerate(self._xyz):
            motion = action[i] * self._scale[i]  # m
            after = robot.place[axis] + motion
            if after > upper[axis] and motion > 0.0 or after < lower[axis] and motion < 0.0:
                kept = list(kept)
                kept[i] = 0.0
        return self._changed("workspace", action, kept)

    def _limit_joints(self, action: list[float], robot: _Robot) -> list[float]:
        """Slower near a singularity and where a joint would be too fast; nothing further towards a joint's limit."""
        guard = self.joints
        if guard is None:
            return action
        if robot.share < 1.0:
            action = self._changed("singularity", action, [a * robot.share for a in action])
        turned = robot.turned(action)
        fastest = max([abs(turn) / most for turn, most in zip(turned, guard.most)])
        if fastest > _EXACT:
            self.counts["joint_velocity"] += 1
            action, turned = [a / fastest for a in action], [turn / fastest for turn in turned]
        beyond = [
            i for i, (q, turn, (lower, upper)) in enumerate(zip(robot.joints, turned, guard.bounds))
            if q + turn > upper and turn > _STILL_RAD or q + turn < lower and turn < -_STILL_RAD
        ]
        if not beyond:
            return action
        i = beyond[0]
        bound = guard.bounds[i][turned[i] > 0.0]
        self.detail = f"{guard.names[i]} is at {robot.joints[i]:.3f}, its bound is {bound:.3f}; move it back"
        if not guard.direct:  # one joint less would be a motion of the tool that nobody asked for
            self.reason = "joint_limit"
            return action
        names = [guard.names[j] for j in beyond]
        kept = [0.0 if name in names else a for name, a in zip(self.action_names, action)]
        return self._changed("joint_limit", action, kept)

    def _away_from_force(self, wanted: list[float], source: Source, robot: _Robot) -> list[float] | None:
        """Over max_force: the action that backs off, or the reason to hold.  None while the force is small."""
        limits = self.limits
        if limits.max_force is None or hypot(*robot.force) <= limits.max_force:
            self._pushed_at = None
            return None
        if self._pushed_at is None:
            self._pushed_at = list(robot.place)
        if limits.force_reaction == "retreat":
            gone = sum((p - q) * d for p, q, d in zip(robot.place, self._pushed_at, self._away))
            # A robot that nobody drives does not begin to move because somebody leans on it.
            if source is Source.HOLD or gone >= limits.retreat_distance:
                self.reason = "force"
                return None
            cause, metres = "retreat", limits.retreat_velocity * self.period_s
        else:
            cause = "force"
            metres = self._backs_off(wanted)
            if metres <= 0.0:
                self.reason = "force"
                return None
        self.counts[cause] += 1
        # From rest: what still pushed is not slowed down but ended.
        self._last = self._along(max(0.0, self._backs_off(self._last)))
        return self._along(metres)

    def _backs_off(self, action: list[float]) -> float:
        """Metres in a tick along retreat_direction."""
        return sum(action[i] * self._scale[i] * d for i, d in zip(self._xyz, self._away))

    def _along(self, metres: float) -> list[float]:
        """The action that moves the tool by so much in retreat_direction, or as far as the range lets it."""
        action = [0.0] * self.action_dim
        for i, d in zip(self._xyz, self._away):
            action[i] = metres * d / self._scale[i]
        over = max(abs(a) for a in action) / self.limits.action_limit
        return action if over <= 1.0 else [a / over for a in action]
