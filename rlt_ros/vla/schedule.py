"""Which camera frames the VLA looks at, and how thoroughly. Pure Python; the vla node is wiring around it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class FrameSet:
    """The pictures of all cameras at one control tick, with the proprioception of that tick."""

    tick: int
    stamp_ns: int
    images: dict[str, np.ndarray]  # uint8 [h, w, 3] RGB
    proprio: np.ndarray | None = None  # float32 [P]


class FrameJoiner:
    """Joins the cameras' newest pictures to frame sets.

    Cameras that are not synchronised are joined when their stamps differ by at most `max_skew_ns`; the set has the
    oldest stamp of them.
    """

    def __init__(self, cameras: Sequence[str], period_ns: int, max_skew_ns: int) -> None:
        self.cameras = tuple(cameras)
        self.period_ns = period_ns
        self.max_skew_ns = max_skew_ns
        self._newest: dict[str, tuple[int, np.ndarray]] = {}
        self._joined_ns = -1

    def add(self, camera: str, stamp_ns: int, image: np.ndarray) -> FrameSet | None:
        """Take one picture; return the set that it completes, if any."""
        self._newest[camera] = (stamp_ns, image)
        if len(self._newest) < len(self.cameras):
            return None
        stamps = [stamp for stamp, _ in self._newest.values()]
        oldest = min(stamps)
        if max(stamps) - oldest > self.max_skew_ns or oldest <= self._joined_ns:
            return None
        self._joined_ns = oldest
        return FrameSet(oldest // self.period_ns, oldest, {name: self._newest[name][1] for name in self.cameras})

    def waiting_for(self) -> list[str]:
        """Cameras that have never delivered."""
        return [name for name in self.cameras if name not in self._newest]


class Schedule:
    """Decides for each frame: full inference (a new reference) or the token only.

    A chunk boundary b needs a reference and a token from a frame of at most b - L (L = latency_ticks), and the newest
    such frame is the best: it gets the full inference. With frames every second tick and L = 5, C = 10 these are the
    ticks with f % 10 == 5. Cameras that hit no such tick use their last frame before it.
    """

    def __init__(self, chunk_steps: int, latency_ticks: int) -> None:
        self.chunk_steps = chunk_steps
        self.phase = -latency_ticks % chunk_steps
        self._last_tick: int | None = None
        self._interval = 1

    def is_full(self, tick: int) -> bool:
        """True when no later frame can be expected before the next tick that needs a reference."""
        if self._last_tick is not None and 0 < tick - self._last_tick < self.chunk_steps:
            self._interval = tick - self._last_tick
        self._last_tick = tick
        to_go = (self.phase - tick) % self.chunk_steps
        return to_go < self._interval


class FrameQueue:
    """Hands frames from the callbacks to the worker: references first, the newest one only; the others in one batch."""

    def __init__(self, keep: int = 8) -> None:
        self._condition = threading.Condition()
        self._full: FrameSet | None = None
        self._others: deque[FrameSet] = deque(maxlen=keep)
        self._closed = False
        self.dropped = 0  # frames that nobody had time for

    def put(self, frame: FrameSet, full: bool) -> None:
        """Offer a frame; a reference that still waits is replaced."""
        with self._condition:
            if full:
                self.dropped += self._full is not None
                self._full = frame
            else:
                self.dropped += len(self._others) == self._others.maxlen
                self._others.append(frame)
            self._condition.notify()

    def take(self) -> tuple[FrameSet | None, list[FrameSet]] | None:
        """Wait for work: (frame for a reference, []) or (None, frames for tokens); None when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._full is not None or self._others)
            if self._closed:
                return None
            if self._full is not None:
                full, self._full = self._full, None
                return full, []
            others = list(self._others)
            self._others.clear()
            return None, others

    def open(self) -> None:
        """Start afresh, empty."""
        with self._condition:
            self._closed, self._full = False, None
            self._others.clear()

    def close(self) -> None:
        """Let the worker go."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
