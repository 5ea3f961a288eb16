"""The last check before the controller: what may move the robot, and how much."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

import numpy as np

from rlt_ros.core.chunks import Chunk, Source

# A command has actions for so many ticks after its own, for a controller whose next command comes late: the two periods
# after which a watchdog stops a robot.
BRIDGED_TICKS = 2


@dataclass(frozen=True)
class Limits:
    """Limits of one robot and task.  None has a default: what is not thought about must not pass.

    Positions and forces are read from proprioception: the first three values are the tool's position in the base frame,
    and the first three actions move it along the same axes.  A task whose actions are no such motion says so by setting
    both walls of the workspace, or max_force, to None (null in a task file): they are then not checked.
    """

    action_limit: float  # largest normalised action, at most 1
    max_step_change: float  # largest change of a normalised action from one tick to the next (2.0: no limit)
    workspace_lower: tuple[float, float, float] | None  # m, base frame
    workspace_upper: tuple[float, float, float] | None  # m, base frame
    max_force: float | None  # N, norm of the measured force
    force_index: int  # place of Fx in proprioception, followed by Fy, Fz
    command_timeout_s: float  # age, by receive time, at which a command is stale (two control periods)

    def __post_init__(self) -> None:
        def expect(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ValueError(f"limits.{name}: got {getattr(self, name)}, expected {expected}")

        walls = (self.workspace_lower, self.workspace_upper)
        expect("workspace_lower", (walls[0] is None) == (walls[1] is None), "null exactly where workspace_upper is")
        for name in () if walls[0] is None else ("workspace_lower", "workspace_upper"):
            value = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, value)
            expect(name, len(value) == 3 and bool(np.isfinite(value).all()), "three finite numbers (m)")
        expect("workspace_upper", all(u > l for l, u in zip(self.workspace_lower or (), self.workspace_upper or ())),
               f"more than workspace_lower {self.workspace_lower} on each axis")
        expect("action_limit", 0.0 < self.action_limit <= 1.0, "more than 0, at most 1")
        for name in ("max_step_change", "command_timeout_s"):
            expect(name, getattr(self, name) > 0.0, "more than 0")
        expect("max_force", self.max_force is None or self.max_force > 0.0, "more than 0, or null")
        expect("force_index", int(self.force_index) == self.force_index and self.force_index >= 0, "an index from 0")

    @classmethod
    def from_mapping(cls, values: dict) -> Limits:
        """From a parameter file; ValueError names a missing or unknown key."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"limits: unknown key '{key}', expected {', '.join(known)}")
        for key in known:
            if key not in values:
                raise ValueError(f"limits: '{key}' is missing; every limit must be set, to null where there is nothing to limit")
        return cls(**values)


class SafetyGate:
    """Lets through what is safe and holds the robot still otherwise.

    Causes in `counts`, one per refused chunk or per changed or held tick:
      refused chunks  malformed, wrong_size, empty, old_tick
      held ticks      estop, no_command, stale, exhausted (the chunk has no action for this tick), no_proprio, force;
                    no_joints, tracking (what `outside` says)
      changed ticks   range, step_change, workspace, force
    `reason` is the cause that holds the last tick, "" when it was not held.  `outside` may be set to a cause that holds
    for what the gate does not see: the controller's own state.  Not thread-safe.
    """

    CAUSES = (
        "malformed", "wrong_size", "empty", "old_tick",
        "estop", "no_command", "stale", "exhausted", "no_proprio", "force", "range", "step_change", "workspace",
        "no_joints", "tracking",
    )

    def __init__(self, limits: Limits, action_dim: int, action_scale: Sequence[float]):
        self.limits = limits
        self.action_dim = action_dim
        self.action_scale = np.asarray(action_scale, dtype=np.float64)  # m or rad per tick at action 1
        if self.action_scale.shape != (action_dim,):
            raise ValueError(f"action_scale: got {self.action_scale.size} numbers for {action_dim} actions, expected one each")
        if action_dim < 3 and not (limits.workspace_lower is None and limits.max_force is None):
            raise ValueError(f"limits: workspace_* and max_force need three or more actions of which the first three translate "
                             f"the tool, the task has {action_dim}; set them to null in the task file")
        # What of the proprioception the limits read: position first, force from force_index on.
        self.proprio_needed = max(0 if limits.workspace_lower is None else 3,
                                  0 if limits.max_force is None else limits.force_index + 3)
        self.counts = {cause: 0 for cause in self.CAUSES}
        self.reason = ""
        self.outside = ""
        self.stopped = False
        self._chunk: Chunk | None = None
        self._received_s = -np.inf
        self._last = np.zeros(action_dim, dtype=np.float32)

    def refuse(self, cause: str) -> None:
        """Count a command that could not even be made a Chunk (cause "malformed": wrong shape, not finite)."""
        self.counts[cause] += 1

    def offer(self, chunk: Chunk, received_s: float) -> bool:
        """A candidate, with its receive time on the monotonic clock; False when it is refused (the last one stays)."""
        if chunk.actions.shape[1] != self.action_dim:
            self.refuse("wrong_size")
            return False
        if chunk.steps == 0:
            self.refuse("empty")
            return False
        # A sender that was silent for long may have restarted on another clock: let it begin anew.
        silent = received_s - self._received_s > self.limits.command_timeout_s
        if self._chunk is not None and chunk.tick < self._chunk.tick and not silent:
            self.refuse("old_tick")
            return False
        self._chunk = chunk
        self._received_s = received_s
        return True

    def step(self, tick: int, now_s: float, proprio: np.ndarray | None) -> Chunk:
        """What the controller gets for `tick` and, as far as the candidate reaches, for the next BRIDGED_TICKS, should
        their own commands come late; zeros with source HOLD when anything is wrong.

        now_s: monotonic clock.  proprio: float32 [P] now, None when it is missing or stale.
        """
        chunk = self._chunk
        self.reason = self._why_hold(tick, now_s, proprio)
        action = np.zeros(self.action_dim, dtype=np.float32)
        if not self.reason:
            action = self._limit_force(self._limit_motion(chunk.slice(tick, 1)[0], proprio), proprio)
        if self.reason:
            self._last = np.zeros(self.action_dim, dtype=np.float32)
            self.counts[self.reason] += 1
            still = np.zeros((1 + BRIDGED_TICKS, self.action_dim), dtype=np.float32)
            return Chunk(tick, still, tick, Source.HOLD, chunk.episode if chunk else 0)
        self._last = action
        actions = np.array([action, *self._next(chunk, tick, proprio)])
        return Chunk(tick, actions, chunk.observation_tick, chunk.source, chunk.episode, chunk.policy_version)

    def _next(self, chunk: Chunk, tick: int, proprio: np.ndarray) -> list[np.ndarray]:
        """The actions for the ticks after, limited for where those before them will lead; none from the first that would
        be held."""
        last, counts = self._last, dict(self.counts)  # those ticks are counted when they come
        then, following = np.array(proprio, dtype=np.float64), []
        for later in range(tick + 1, tick + 1 + BRIDGED_TICKS):
            if not chunk.covers(later):
                break
            if self.proprio_needed:
                then[:3] += self._last[:3] * self.action_scale[:3]
            allowed = self._limit_force(self._limit_motion(chunk.slice(later, 1)[0], then), then)
            if self.reason:
                break
            following.append(allowed)
            self._last = allowed
        self._last, self.counts, self.reason = last, counts, ""
        return following

    def estop(self) -> None:
        """Hold until release_estop(), whatever comes."""
        self.stopped = True

    def release_estop(self) -> None:
        """Only a person calls this.  Commands from before the release are not carried out."""
        self.stopped = False
        self._chunk = None

    def _why_hold(self, tick: int, now_s: float, proprio: np.ndarray | None) -> str:
        if self.stopped:
            return "estop"
        if self._chunk is None:
            return "no_command"
        if now_s - self._received_s > self.limits.command_timeout_s:
            return "stale"
        if not self._chunk.covers(tick):
            return "exhausted"
        if proprio is None or len(proprio) < self.proprio_needed or not np.isfinite(proprio).all():
            return "no_proprio"
        return self.outside

    def _limit_motion(self, wanted: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        limits = self.limits
        action = wanted.clip(-limits.action_limit, limits.action_limit)
        if (action != wanted).any():
            self.counts["range"] += 1
        change = (action - self._last).clip(-limits.max_step_change, limits.max_step_change)
        if (np.abs(action - self._last) > limits.max_step_change).any():
            self.counts["step_change"] += 1
            action = self._last + change
        if limits.workspace_lower is None:
            return action
        motion = action[:3] * self.action_scale[:3]  # m
        after = np.asarray(proprio[:3], dtype=np.float64) + motion
        leaves = (after > limits.workspace_upper) & (motion > 0) | (after < limits.workspace_lower) & (motion < 0)
        if leaves.any():
            self.counts["workspace"] += 1
            action = action.copy()
            action[:3][leaves] = 0.0
        return action

    def _limit_force(self, action: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        """Over max_force only a retreat along the base's +z is let through, without its other components; else hold."""
        i = self.limits.force_index
        if self.limits.max_force is None or np.linalg.norm(proprio[i:i + 3]) <= self.limits.max_force:
            return action
        rise = action[2] if action[2] * self.action_scale[2] > 0 else 0.0
        if rise == 0.0:
            self.reason = "force"  # counted as held
            return action
        self.counts["force"] += 1
        retreat = np.zeros_like(action)
        retreat[2] = rise
        return retreat
