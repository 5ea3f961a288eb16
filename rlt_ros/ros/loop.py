"""What happens once a control tick, aligned to the ticks of the ROS clock.

Every process of the graph ticks at the same moments, to absolute deadlines, so that a phase offset orders them (proprio
before actor before safety). A loop is called by whoever spins the node, who waits for messages no longer than until
`next_ns`; with simulated time by /clock; or by a thread of its own (LoopThread), where a tick takes long.
"""

import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from rlt_ros.core.chunks import ControlClock


class PeriodStatistics:
    """Period error of a loop: how far the time between two ticks is from the nominal period. Thread-safe."""

    LATE_S = 0.005  # a tick whose period is off by more than this counts as late
    BIN_S, BINS = 1e-5, 20_000  # of the histogram: the percentiles are too large by at most this; the last bin is open

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts = array("Q", bytes(8 * self.BINS))
            self._largest_s = 0.0
            self._last_s: float | None = None
            self.ticks = self.missed = self.late = 0

    def record(self, now_s: float, skipped: int = 0) -> None:
        """Note a tick that began at monotonic time `now_s` after `skipped` ticks that were not run at all."""
        with self._lock:
            self.ticks += 1
            self.missed += skipped
            if self._last_s is not None:
                error = abs(now_s - self._last_s - self._period_s)
                self._counts[min(int(error / self.BIN_S), self.BINS - 1)] += 1
                self._largest_s = max(self._largest_s, error)
                self.late += error > self.LATE_S
            self._last_s = now_s

    def summary(self) -> dict[str, float]:
        """Return ticks, missed and late, and the error's p50, p99, p99.9 and max in ms, all since reset."""
        with self._lock:
            errors, largest_s = self._counts[:], self._largest_s
            counts = {"ticks": self.ticks, "missed": self.missed, "late_5ms": self.late}
        errors = np.cumsum(errors)
        if not errors[-1]:
            return counts
        bins = np.searchsorted(errors, np.array([0.5, 0.99, 0.999]) * errors[-1])
        p50, p99, p999 = (1e3 * min(largest_s, (1 + int(i)) * self.BIN_S) for i in bins)
        return counts | {"period_error_p50_ms": p50, "period_error_p99_ms": p99, "period_error_p999_ms": p999,
                         "period_error_max_ms": 1e3 * largest_s}


class TickLoop:
    """Calls `function(tick)` once a tick, `phase` of the period after it began: from advance(), from start() to stop().

    What comes in may spare the wait, and with it the wake-up: `hurry` says that a tick has all that it waits for, `done`
    that it has been done. A tick whose moment has passed by less than a period is still called, older ones are skipped.

    Attributes:
        next_ns: ROS time of the next call; None while stopped, and before the first `advance`.
        statistics: of the calls, and of what was `done` instead.
    """

    def __init__(self, function: Callable[[int], Any], control: ControlClock, phase: float = 0.0,
                 now_s: Callable[[], float] = time.monotonic) -> None:
        """`phase` in [0, 1); `now_s` is a clock that nobody sets, for the statistics."""
        if not 0.0 <= phase < 1.0:
            raise ValueError(f"phase of the loop is {phase}, expected a part of the period in [0, 1)")
        self.statistics = PeriodStatistics(control.period_ns * 1e-9)
        self.next_ns: int | None = None
        self.period_ns = control.period_ns
        self._offset_ns = round(phase * control.period_ns)
        self._function = function
        self._now_s = now_s
        self._running = False
        self._last: int | None = None  # the newest tick that was called, or is not to be called
        self._hurried = -1

    def start(self) -> None:
        """Begin with the next `advance`; a loop that runs already is left alone."""
        if not self._running:
            self.statistics.reset()
            self._running, self._last, self._hurried = True, None, -1

    def stop(self) -> None:
        """Call no more."""
        self._running, self.next_ns = False, None

    def advance(self, now_ns: int) -> None:
        """It is `now_ns`: call the function for the tick that is due, if any."""
        # Further ahead than two periods is what a clock that was set back has left behind.
        if not self._running or self.next_ns is not None and now_ns < self.next_ns < now_ns + 2 * self.period_ns:
            return
        tick, due_ns = self._next(now_ns)
        if due_ns <= now_ns:
            called_s, skipped, self._last = self._now_s(), tick - self._last - 1, tick
            self._function(tick)
            self.statistics.record(called_s, skipped)
            tick, due_ns = self._next(now_ns)
        if self._running:  # the function may have stopped the loop
            self.next_ns = due_ns

    def hurry(self, tick: int, now_ns: int) -> None:
        """Ticks up to `tick` have what they wait for: each is called as soon as it has begun, at once where it has."""
        self._hurried, self.next_ns = tick, None
        self.advance(now_ns)

    def done(self, tick: int) -> None:
        """What is to happen in `tick` has happened: it is not called."""
        if self.next_ns is not None and tick > self._last:
            self.statistics.record(self._now_s(), tick - self._last - 1)
            self._last = tick
            self.next_ns = (tick + 1) * self.period_ns + self._offset_ns

    def _next(self, now_ns: int) -> tuple[int, int]:
        """(tick, ROS time in ns at which to call it): the first one after the last that is not yet over."""
        tick = (now_ns - self._offset_ns) // self.period_ns
        if self._last is None or tick < self._last - 1:  # a beginning, or a clock that was set back by more than a tick
            self._last, self._hurried = tick, -1  # on a boundary, not in the middle of a tick
        # A tick that can be called overtakes those that still wait.
        tick = max(tick, self._last + 1, min(self._hurried, now_ns // self.period_ns))
        return tick, tick * self.period_ns + (self._offset_ns if tick > self._hurried else 0)


class LoopThread:
    """A thread that sleeps until a loop is due and calls it, from start() to stop()."""

    def __init__(self, loop: TickLoop, now_ns: Callable[[], int] = time.time_ns,
                 on_error: Callable[[BaseException], None] | None = None) -> None:
        """`now_ns` is the ROS clock; `on_error` gets the exception that ends the loop."""
        self.loop, self._now_ns, self._on_error = loop, now_ns, on_error
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start ticking; a loop that runs already is left alone."""
        if self._thread is None:
            self._stop.clear()
            self.loop.start()
            self._thread = threading.Thread(target=self._run, name="tick_loop", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Stop after the tick that is running; raise RuntimeError when it does not end within `timeout_s`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        if thread is not threading.current_thread():
            thread.join(timeout_s)
            if thread.is_alive():
                raise RuntimeError(f"the tick that is running did not end within {timeout_s} s")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.loop.advance(self._now_ns())
                # A period at most, as a clock may be set meanwhile. Finer than Event.wait, which has a condition.
                time.sleep(max(0, min(self.loop.next_ns - self._now_ns(), self.loop.period_ns)) * 1e-9)
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        finally:
            self.loop.stop()
