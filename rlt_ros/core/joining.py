"""How a chunk goes on from the one before it, which the robot is executing while the new one is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from rlt_ros.core.chunks import Chunk, Source

FADE_TICKS = 10  # ticks after the frozen ones in which the reference before loses its say

# What a reference is computed with, from the prefix it is to go on from: (actions [H, A], token [D]).
Look = Callable[["Prefix | None"], tuple[np.ndarray, np.ndarray]]


class Join(str, Enum):
    """How a new reference is joined to the one before."""

    RTC = "rtc"  # real-time chunking, arXiv 2506.07339: what will have been executed is given, the rest is inpainted
    BLEND = "blend"  # cross-fade from the one before
    NONE = "none"  # each reference is sampled for itself; only the commander joins what it commands


DEFAULT_JOIN = Join.NONE


@dataclass(frozen=True, eq=False)
class Prefix:
    """What the reference before says about the ticks of a new one, from its first on.

    actions: float32 [N, A].  frozen: so many of them will have been executed before the new one can be used.
    """

    actions: np.ndarray
    frozen: int

    def weights(self, horizon: int) -> np.ndarray:
        """How much each of `horizon` actions must agree with the one before, float32 [H] in [0, 1].

        1 for those that are executed anyway, exponentially less after them, 0 where the one before says nothing.
        """
        covered = min(len(self.actions), horizon)
        frozen = min(self.frozen, covered)
        left = (covered - np.arange(horizon)).clip(0) / (covered - frozen + 1)  # of the way to where it ends
        soft = left * np.expm1(left) / (np.e - 1)
        return np.where(np.arange(horizon) < frozen, 1.0, soft).astype(np.float32)

    def target(self, horizon: int) -> np.ndarray:
        """The actions to agree with, float32 [H, A]; zeros (of no weight) where the one before says nothing."""
        target = np.zeros((horizon, self.actions.shape[1]), np.float32)
        covered = self.actions[:horizon]
        target[: len(covered)] = covered
        return target


def blend(prefix: Prefix, actions: np.ndarray, steps: int) -> np.ndarray:
    """`actions` [H, A] faded in over `steps` ticks, from the first that can be executed on."""
    before = prefix.actions[: len(actions)]
    keep = 1.0 - (np.arange(len(before)) - prefix.frozen + 1) / (steps + 1)
    keep = keep.clip(0.0, 1.0)[:, None].astype(np.float32)
    joined = np.array(actions, dtype=np.float32)
    joined[: len(before)] = keep * before + (1.0 - keep) * joined[: len(before)]
    return joined


class References:
    """Makes references, each joined to the one before where the robot executes that one.

    joined: how many were.
    """

    def __init__(self, join: Join | str) -> None:
        self.join = Join(join)
        self.joined = 0
        self._last: Chunk | None = None
        self._first = False  # whether that was the first of its episode

    def next(self, look: Look, tick: int, ahead: int, episode: int, driver: Source | None) -> tuple[Chunk, np.ndarray]:
        """Reference and RL token [D] of the frame of `tick`.  ahead: ticks until the reference is first used.

        driver: who moved the robot last, as far as is known.  Where it was not the reference (a person, the actor, or
        nobody), the reference before says nothing of where the robot goes, and nothing is joined.  But a robot that
        stands for want of the first reference is about to execute that.
        """
        follows = driver is Source.VLA or driver is Source.HOLD and self._first
        prefix = self._before(tick, ahead, episode) if follows else None
        actions, token = look(prefix if self.join is Join.RTC else None)
        if prefix is not None and self.join is Join.BLEND:
            actions = blend(prefix, actions, FADE_TICKS)
        self._first = self._last is None or self._last.episode != episode
        self._last = Chunk(tick, np.clip(actions, -1.0, 1.0), tick, Source.VLA, episode)
        self.joined += prefix is not None
        return self._last, token

    def _before(self, tick: int, ahead: int, episode: int) -> Prefix | None:
        last = self._last
        if self.join is Join.NONE or last is None or last.episode != episode or not last.tick <= tick < last.end:
            return None
        return Prefix(last.slice(tick, min(last.end - tick, ahead + FADE_TICKS)), ahead)


def ramp(actions: np.ndarray, last: np.ndarray, steps: int, bold: bool = False) -> np.ndarray:
    """`actions` [T, A] begun from the action `last` [A] before them; the shift fades out over `steps` ticks.

    bold: they are only shifted so far that the largest change of an axis is inside, not at the seam.  A chunk that
    makes large changes inside would lose its aim if it were smoothed where it begins.
    """
    steps, gap = min(steps, len(actions)), last - actions[0]
    shift = gap
    if bold:
        # Of the changes during the ramp those count that it does not take away from.
        changes = np.diff(actions, axis=0)
        sizes = np.abs(changes)
        sizes[:steps] = np.maximum(0.0, -np.sign(gap) * changes[:steps])
        inside = sizes.max(initial=0.0)
        shift = gap - gap.clip(-inside, inside)
    fade = 1.0 - np.arange(steps, dtype=np.float32) / steps
    joined = np.array(actions, dtype=np.float32)
    joined[:steps] += fade[:, None] * shift
    return joined.clip(-1.0, 1.0)
