"""Action chunks on the grid of the control clock: what every part that moves the robot exchanges."""
from __future__ import annotations

from enum import IntEnum
from itertools import chain
from struct import pack

import numpy as np

from rlt_ros.core.finite import all_finite, fit_float32


class ControlClock:
    """Turns ROS-clock stamps (ns) into control ticks and back; tick = floor(stamp / period)."""

    def __init__(self, rate_hz: float):
        if not rate_hz > 0:
            raise ValueError(f"control rate: got {rate_hz} Hz, expected more than 0")
        self.rate_hz = float(rate_hz)
        self.period_ns = round(1e9 / rate_hz)
        self.period_s = self.period_ns * 1e-9

    def tick(self, stamp_ns: int) -> int:
        """The tick that contains `stamp_ns`."""
        return int(stamp_ns) // self.period_ns

    def stamp_ns(self, tick: int) -> int:
        """The first nanosecond of `tick`."""
        return int(tick) * self.period_ns


class Source(IntEnum):
    """Who chose an action."""

    HOLD = 0
    VLA = 1
    ACTOR = 2
    HUMAN = 3


Rows = tuple[tuple[float, ...], ...]


class Chunk:
    """Actions for consecutive control ticks; not to be changed after it was made.

    actions: float32 [T, A], normalised (-1..1 is the task's action scale per tick); T may be 0 (a release).
    rows: the same as Python's numbers.  tick: tick of actions[0].  observation_tick: tick of the frame that the actions
    were computed from.  Raises ValueError on a wrong shape or non-finite values.

    A control tick handles a dozen numbers, for which numpy takes several times as long as tuples do, most of all in a
    process that has just been woken.  So a chunk keeps the form that it was given, and makes the other when asked.
    """

    __slots__ = ("tick", "observation_tick", "source", "episode", "policy_version", "steps", "action_dim", "_actions",
                 "_rows")

    def __init__(self, tick: int, actions: np.ndarray | Rows, observation_tick: int, source: Source, episode: int = 0,
                 policy_version: int = 0) -> None:
        """actions: anything that numpy takes, which is copied, or a tuple of tuples of Python's floats."""
        self.tick = int(tick)
        self.observation_tick = int(observation_tick)
        self.source = source if type(source) is Source else Source(source)
        self.episode, self.policy_version = episode, policy_version
        if type(actions) is tuple and actions and type(actions[0]) is tuple:
            self._take_rows(actions)
        else:
            self._take_array(np.array(actions, dtype=np.float32))

    def _take_rows(self, rows: Rows) -> None:
        self.steps, self.action_dim = len(rows), len(rows[0])
        if not self.action_dim or any([len(row) != self.action_dim for row in rows]):
            raise ValueError(f"chunk at tick {self.tick}: actions are rows of {[len(row) for row in rows]} numbers,"
                             " expected [steps, action_dim]")
        if not fit_float32(chain.from_iterable(rows)):
            raise self._not_finite()
        self._rows, self._actions = rows, None

    def _take_array(self, actions: np.ndarray) -> None:
        if actions.ndim != 2 or actions.shape[1] == 0:
            raise ValueError(f"chunk at tick {self.tick}: actions are {actions.shape}, expected [steps, action_dim]")
        if not all_finite(actions):
            raise self._not_finite()
        actions.flags.writeable = False
        self.steps, self.action_dim = actions.shape
        self._actions, self._rows = actions, None

    def _not_finite(self) -> ValueError:
        return ValueError(f"chunk at tick {self.tick}: actions are not finite; a chunk must be finite to be sent")

    @property
    def actions(self) -> np.ndarray:
        if self._actions is None:
            self._actions = np.array(self._rows, dtype=np.float32)
            self._actions.flags.writeable = False
        return self._actions

    @property
    def rows(self) -> Rows:
        if self._rows is None:
            self._rows = tuple(map(tuple, self._actions.tolist()))
        return self._rows

    def packed(self) -> bytes:
        """The actions as little-endian float32, row-major."""
        if self._actions is not None:
            return self._actions.astype("<f4", copy=False).tobytes()
        return pack(f"<{self.steps * self.action_dim}f", *chain.from_iterable(self._rows))

    def __repr__(self) -> str:
        return (f"Chunk({self.tick}..{self.end - 1} of {self.source.name}, observed at {self.observation_tick}, episode"
                f" {self.episode}, policy {self.policy_version}: {self.rows})")

    @property
    def end(self) -> int:
        """The tick after the last action."""
        return self.tick + self.steps

    def covers(self, tick: int, steps: int = 1) -> bool:
        return self.tick <= tick and tick + steps <= self.end

    def slice(self, tick: int, steps: int) -> np.ndarray:
        """Actions for ticks tick .. tick+steps-1, [steps, A]; ValueError when the chunk does not cover them all."""
        if not self.covers(tick, steps):
            raise ValueError(f"chunk covers ticks {self.tick}..{self.end - 1}, asked for {tick}..{tick + steps - 1}")
        start = tick - self.tick
        return self.actions[start:start + steps]
