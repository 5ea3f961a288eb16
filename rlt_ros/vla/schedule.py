"""Which camera frames the VLA looks at, and how thoroughly. Pure Python; the vla node is wiring around it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from rlt_ros.core.chunks import Source


@dataclass
class FrameSet:
    """The pictures of all cameras at one control tick, with the proprioception of that tick."""

    tick: int
    stamp_ns: int
    images: dict[str, np.ndarray]  # uint8 [h, w, 3] RGB
    proprio: np.ndarray | None = None  # float32 [P]
    driver: Source | None = None  # who drove the robot when it came; None: unknown


class FrameJoiner:
    """Joins the cameras' newest pictures to frame sets.

    Cameras that are not synchronised are joined when their stamps differ by at most `max_skew_ns`; the set has the
    oldest stamp of them. Stamps that go back by more than a second come from a clock that was set: it begins afresh.

    Attributes:
        skew_ns: how far the newest pictures were apart when the last one came.
        unmatched: pictures that were replaced before they were in a set.
    """

    RESTART_NS = 1_000_000_000
    APART = 10  # pictures a camera without a set, from which on the cameras count as apart

    def __init__(self, cameras: Sequence[str], period_ns: int, max_skew_ns: int) -> None:
        self.cameras = tuple(cameras)
        self.period_ns = period_ns
        self.max_skew_ns = max_skew_ns
        self._newest: dict[str, tuple[int, np.ndarray]] = {}
        self._joined_ns = -1
        self._since = 0  # pictures since the last set
        self._waiting: set[str] = set()  # cameras whose newest picture was in no set
        self.skew_ns = self.unmatched = 0

    def add(self, camera: str, stamp_ns: int, image: np.ndarray) -> FrameSet | None:
        """Take one picture; return the set that it completes, if any."""
        if stamp_ns < self._joined_ns - self.RESTART_NS:
            self._newest.clear()
            self._joined_ns = -1
        self._newest[camera] = (stamp_ns, image)
        self.unmatched += camera in self._waiting
        self._waiting.add(camera)
        self._since += 1
        if len(self._newest) < len(self.cameras):
            return None
        stamps = [stamp for stamp, _ in self._newest.values()]
        oldest = min(stamps)
        self.skew_ns = max(stamps) - oldest
        if self.skew_ns > self.max_skew_ns or oldest <= self._joined_ns:
            return None
        self._joined_ns = oldest
        self._since = 0
        self._waiting.clear()
        return FrameSet(oldest // self.period_ns, oldest, {name: self._newest[name][1] for name in self.cameras})

    def waiting_for(self) -> list[str]:
        """Cameras that have never delivered."""
        return [name for name in self.cameras if name not in self._newest]

    def trouble(self) -> str:
        """Why there are no sets, in a sentence; "" while there are some."""
        if missing := self.waiting_for():
            return f"no picture yet from {', '.join(missing)}"
        if self._since < self.APART * len(self.cameras):
            return ""
        behind = min(self._newest, key=lambda name: self._newest[name][0])
        return (f"camera '{behind}' is {self.skew_ns * 1e-6:.0f} ms behind the newest picture of the others, more than"
                f" max_skew_s ({self.max_skew_ns * 1e-9:g} s); see what camera_node says of it, synchronise the"
                " cameras, or raise max_skew_s")


class Schedule:
    """Decides for each frame: full inference (a new reference) or the token only.

    A chunk boundary b needs a reference and a token from a frame of at most b - L (L = latency_ticks), and the newest
    such frame is the best: it gets the full inference. With frames every second tick and L = 5, C = 10 these are the
    ticks with f % 10 == 5. Cameras that hit no such tick use their last frame before it.

    A VLA that takes longer than L is asked earlier; one that takes longer than a chunk gets the newest frame any time.
    """

    def __init__(self, chunk_steps: int, latency_ticks: int) -> None:
        self.chunk_steps = chunk_steps
        self.expect(latency_ticks)
        self._last_tick: int | None = None
        self.interval = 1  # ticks from frame to frame

    def expect(self, ticks: int) -> None:
        """From now on a reference is there `ticks` after its frame, or is not used before."""
        self.ticks = ticks
        self.phase = -ticks % self.chunk_steps

    @property
    def always(self) -> bool:
        """Whether the VLA is slower than a chunk: there is always a next reference to be asked for."""
        return self.ticks > self.chunk_steps

    def ahead(self, tick: int) -> int:
        """So many ticks after its frame's is the first boundary that a reference of `tick` serves."""
        return self.ticks + (self.phase - tick) % self.chunk_steps

    def is_full(self, tick: int) -> bool:
        """True when no later frame can be expected before the next tick that needs a reference."""
        if self._last_tick is not None and tick > self._last_tick:  # slower than chunks: each frame is the newest
            self.interval = min(tick - self._last_tick, self.chunk_steps)
        self._last_tick = tick
        to_go = (self.phase - tick) % self.chunk_steps
        return self.always or to_go < self.interval


class Forecast:
    """When the next frame for a reference will be here, and so how many others fit before it. Times in ns.

    Used from two threads: it only appends and reads.
    """

    ALL = 1_000  # room for whatever waits
    OVERDUE_TICKS = 2  # a frame that is later than this is not waited for

    def __init__(self, chunk_steps: int, period_ns: int) -> None:
        self._chunk_steps, self._period_ns = chunk_steps, period_ns
        self._delays: deque[int] = deque(maxlen=20)  # from a frame's tick to its arrival
        self._costs: deque[float] = deque(maxlen=20)  # of one of the others
        self._full_tick: int | None = None

    def arrived(self, tick: int, full: bool, now_ns: int) -> None:
        """A frame of `tick` has come, for a reference or not."""
        self._delays.append(now_ns - tick * self._period_ns)
        if full:
            self._full_tick = tick

    def took(self, duration_ns: float, frames: int) -> None:
        """`frames` of the others were done in `duration_ns`."""
        self._costs.append(duration_ns / frames)

    @property
    def delay_ms(self) -> float:
        """From the beginning of a frame's tick to its arrival, median of the newest."""
        return median(self._delays) / 1e6 if self._delays else 0.0

    def room(self, now_ns: int) -> int:
        """How many of the others can be done before the next frame for a reference comes."""
        if self._full_tick is None or not self._costs:
            return self.ALL
        due_ns = (self._full_tick + self._chunk_steps) * self._period_ns + median(tuple(self._delays)) - now_ns
        if due_ns < -self.OVERDUE_TICKS * self._period_ns:
            return self.ALL
        return max(0, int(due_ns // median(tuple(self._costs))))


class Latency:
    """How long references take, from the beginning of their frame's tick until they are there. Times in ns.

    As long as little is known it is what the configuration promises. Single ones that took far longer than the others
    (the first of a model, a pause of the machine) say nothing about the next and are left out. Used from two threads.
    """

    ENOUGH = 5
    FAR = 3.0  # times the median
    TRAVEL_NS = 2_000_000  # from here to whoever uses it

    def __init__(self, period_ns: int, promised_ticks: int) -> None:
        self._period_ns, self._promised = period_ns, promised_ticks
        self._newest: deque[int] = deque(maxlen=50)

    def took(self, duration_ns: int) -> None:
        """A reference was there so long after its frame's tick began."""
        self._newest.append(max(0, duration_ns))  # a camera whose clock is ahead takes no less than no time

    @property
    def ns(self) -> int:
        """What 4 of 5 keep: asking all of them earlier, for a late one in twenty, would cost more than it saves."""
        newest = sorted(self._newest)
        if len(newest) < self.ENOUGH:
            return self._promised * self._period_ns
        usual = [duration for duration in newest if duration <= self.FAR * newest[len(newest) // 2]]
        return usual[-(-4 * len(usual) // 5) - 1] + self.TRAVEL_NS

    @property
    def ticks(self) -> int:
        """The same in ticks, rounded up: the least `latency_ticks` that is kept."""
        return -(-self.ns // self._period_ns)


def needed_age(latency_ticks: int, chunk_steps: int) -> int:
    """Ticks that references must be allowed to age where they come `latency_ticks` after their frame.

    The next one is as late as this one, and a boundary may just have missed it.
    """
    return latency_ticks + max(latency_ticks, chunk_steps)


class FrameQueue:
    """Hands frames from the callbacks to the worker: references first, the newest one only; the others in batches."""

    PATIENCE_S = 0.01  # how long to wait before asking again whether there is room for the others

    def __init__(self, keep: int = 8) -> None:
        self._condition = threading.Condition()
        self._full: FrameSet | None = None
        self._others: deque[FrameSet] = deque(maxlen=keep)
        self._closed = False
        self._served = False  # one of the others, since the last reference
        self._taken: list[int] = []  # ticks
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

    def take(self, room: Callable[[], int] = lambda: 1_000) -> tuple[FrameSet | None, list[FrameSet]] | None:
        """Wait for work: (frame for a reference, []) or (None, frames for tokens); None when closed.

        room: how many of the others can be done before the next reference is due, which must not wait for them. One of
        them is done between two references in any case, so that a slow model does not starve the learner.
        """
        with self._condition:
            while True:
                self._condition.wait_for(lambda: self._closed or self._full is not None or self._others)
                if self._closed:
                    return None
                if self._full is not None:
                    full, self._full = self._full, None
                    self._served = False
                    self._taken = [full.tick]
                    return full, []
                if (most := room() if self._served else max(1, room())) > 0:
                    self._served = True
                    others = [self._others.popleft() for _ in range(min(most, len(self._others)))]
                    self._taken = [frame.tick for frame in others]
                    return None, others
                self._condition.wait_for(lambda: self._closed or self._full is not None, self.PATIENCE_S)

    def done(self) -> None:
        """What was taken is finished."""
        with self._condition:
            self._taken = []

    def oldest(self) -> int | None:
        """The earliest tick of a frame that waits or is not finished; None when there is none."""
        with self._condition:
            waiting = [frame.tick for frame in (self._full, *self._others) if frame is not None]
            return min(self._taken + waiting, default=None)

    def open(self) -> None:
        """Start afresh, empty."""
        with self._condition:
            self._closed, self._full, self._served = False, None, False
            self._others.clear()
            self._taken = []

    def close(self) -> None:
        """Let the worker go."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
