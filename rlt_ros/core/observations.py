"""Which token and which reference belong to a state: one rule for the actor, the replay and the evaluator."""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from rlt_ros.core.chunks import Chunk
from rlt_ros.core.finite import all_finite


@dataclass(frozen=True, eq=False)
class TokenFrame:
    """RL token and proprioception of one camera frame.  token: float32 [D].  proprio: float32 [P], SI, at the frame."""

    tick: int
    token: np.ndarray
    proprio: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "tick", int(self.tick))
        for name in ("token", "proprio"):
            values = np.array(getattr(self, name), dtype=np.float32)
            if values.ndim != 1 or not all_finite(values):
                raise ValueError(f"{name} of frame {self.tick}: shape {values.shape}, expected a finite vector")
            values.flags.writeable = False
            object.__setattr__(self, name, values)


def rl_proprio(now: Sequence[float] | np.ndarray, at_frame: np.ndarray, angles: Sequence[int] = ()) -> np.ndarray:
    """Proprioception of the RL state, float32 [2P]: now, and how far the robot moved since the token's frame.

    The second half lets the networks make up for the age of the token.  angles: indices of angles (rad) that wrap
    around, for which that is the shorter way: a tool that faces the base has a yaw of now pi, now -pi.
    """
    now = np.asarray(now, dtype=np.float32)
    at_frame = np.asarray(at_frame, dtype=np.float32)
    if now.shape != at_frame.shape:
        raise ValueError(f"proprioception: {now.shape} now, {at_frame.shape} at the frame; expected the same size")
    moved = now - at_frame
    for i in angles:
        if abs(moved[i]) > np.pi:
            moved[i] -= np.float32(2.0 * np.pi) * np.sign(moved[i])
    return np.concatenate((now, moved))


def _candidates(ticks: Sequence[int], tick: int, since_tick: int, max_age_ticks: int, until: int) -> range:
    """Indices into the ascending `ticks`, newest first, of the observations that a state at `tick` may use."""
    oldest = max(since_tick, tick - max_age_ticks)
    return range(bisect_right(ticks, until) - 1, bisect_left(ticks, oldest) - 1, -1)


class _ByTick:
    """The newest `keep` things in order of their observation tick, whatever order they came in."""

    def __init__(self, latency_ticks: int, max_age_ticks: int, keep: int):
        if not 0 <= latency_ticks <= max_age_ticks:
            raise ValueError(f"latency_ticks {latency_ticks}, max_age_ticks {max_age_ticks}: expected 0 <= L <= age")
        self.latency_ticks = latency_ticks
        self.max_age_ticks = max_age_ticks
        self.keep = keep
        self._ticks: list[int] = []
        self._items: list = []

    def __len__(self) -> int:
        return len(self._ticks)

    def _put(self, tick: int, item) -> None:
        index = bisect_left(self._ticks, tick)
        if index < len(self._ticks) and self._ticks[index] == tick:
            self._items[index] = item
            return
        self._ticks.insert(index, tick)
        self._items.insert(index, item)
        if len(self._ticks) > self.keep:
            del self._ticks[0], self._items[0]

    def _usable(self, tick: int, since_tick: int, until: int | None):
        until = tick - self.latency_ticks if until is None else until
        for index in _candidates(self._ticks, tick, since_tick, self.max_age_ticks, until):
            yield self._items[index]

    def forget_before(self, tick: int) -> None:
        """Drop what was observed before `tick`."""
        index = bisect_left(self._ticks, tick)
        del self._ticks[:index], self._items[:index]


class TokenBuffer(_ByTick):
    """Token frames by tick.  A state at tick t has the newest frame f with since_tick <= f <= t - latency_ticks,
    and none when t - f > max_age_ticks."""

    def __init__(self, latency_ticks: int, max_age_ticks: int, keep: int = 256):
        super().__init__(latency_ticks, max_age_ticks, keep)

    def add(self, frame: TokenFrame) -> None:
        self._put(frame.tick, frame)

    def at(self, tick: int, since_tick: int, until: int | None = None) -> TokenFrame | None:
        """The frame of a state at `tick`.  since_tick: start of the episode.  until: newest frame allowed where it is
        known that the actor had no newer one (default tick - latency_ticks)."""
        return next(self._usable(tick, since_tick, until), None)


class ReferenceBuffer(_ByTick):
    """Reference chunks by observation tick, chosen by the rule of TokenBuffer and sliced to the state's tick."""

    def __init__(self, latency_ticks: int, max_age_ticks: int, keep: int = 64):
        super().__init__(latency_ticks, max_age_ticks, keep)

    def add(self, chunk: Chunk) -> None:
        self._put(chunk.observation_tick, chunk)

    def at(self, tick: int, since_tick: int, steps: int, until: int | None = None) -> tuple[Chunk, np.ndarray] | None:
        """The newest usable chunk that covers tick .. tick+steps-1, and those actions, [steps, A]."""
        chunk = self.covering(tick, since_tick, steps, until)
        return None if chunk is None else (chunk, chunk.slice(tick, steps))

    def covering(self, tick: int, since_tick: int, steps: int, until: int | None = None) -> Chunk | None:
        """That chunk alone."""
        for chunk in self._usable(tick, since_tick, until):
            if chunk.covers(tick, steps):
                return chunk
        return None
