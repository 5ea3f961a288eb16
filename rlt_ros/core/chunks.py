"""Action chunks on the grid of the control clock: what every part that moves the robot exchanges."""
from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


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


@dataclass(frozen=True, eq=False)
class Chunk:
    """Actions for consecutive control ticks.

    actions: float32 [T, A], normalised (-1..1 is the task's action scale per tick); T may be 0 (a release).
    tick: tick of actions[0].  observation_tick: tick of the frame that the actions were computed from.
    The array is copied and made read-only.  Raises ValueError on a wrong shape or non-finite values.
    """

    tick: int
    actions: np.ndarray
    observation_tick: int
    source: Source
    episode: int = 0
    policy_version: int = 0

    def __post_init__(self) -> None:
        actions = np.array(self.actions, dtype=np.float32)
        if actions.ndim != 2 or actions.shape[1] == 0:
            raise ValueError(f"chunk at tick {self.tick}: actions are {actions.shape}, expected [steps, action_dim]")
        if not np.isfinite(actions).all():
            raise ValueError(f"chunk at tick {self.tick}: actions are not finite; a chunk must be finite to be sent")
        actions.flags.writeable = False
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "tick", int(self.tick))
        object.__setattr__(self, "observation_tick", int(self.observation_tick))
        object.__setattr__(self, "source", Source(self.source))

    @property
    def steps(self) -> int:
        return self.actions.shape[0]

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
