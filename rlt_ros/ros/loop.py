"""A loop that runs once a control tick, aligned to the ticks of the ROS clock.

A plain thread that sleeps to absolute deadlines: half the CPU of an executor's timer at the same jitter, and every
process of the graph ticks at the same moment, so that a phase offset orders them (proprio before actor before safety).
With simulated time nothing sleeps: /clock calls.
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


class TickSchedule:
    """Which tick is next, and when. Pure: time goes in as a number."""

    def __init__(self, clock: ControlClock, phase: float = 0.0) -> None:
        """`phase` in [0, 1) is the part of the period that passes from a tick's stamp to its run."""
        if not 0.0 <= phase < 1.0:
            raise ValueError(f"phase of the loop is {phase}, expected a part of the period in [0, 1)")
        self._clock = clock
        self._offset_ns = round(phase * clock.period_ns)

    def next(self, now_ns: int, last_tick: int | None) -> tuple[int, int]:
        """Return (tick, ROS time in ns at which to run it): the first one after `last_tick` that is not yet over.

        A tick whose moment has passed by less than a period is still run, at once; older ones are skipped. A ROS clock
        that jumped back by more than a tick starts afresh.
        """
        tick = self._clock.tick(now_ns - self._offset_ns)
        if last_tick is None or tick < last_tick - 1:
            tick += 1  # start on a boundary, not in the middle of a tick
        else:
            tick = max(tick, last_tick + 1)
        return tick, self._clock.stamp_ns(tick) + self._offset_ns


class TickLoop:
    """Calls `function(tick)` once a tick in a thread of its own, from start() to stop()."""

    def __init__(self, function: Callable[[int], Any], clock: ControlClock, phase: float = 0.0,
                 now_ns: Callable[[], int] = time.time_ns,
                 on_error: Callable[[BaseException], None] | None = None,
                 later: Callable[[int], Any] | None = None, later_phase: float = 0.0) -> None:
        """`now_ns` is the ROS clock; `on_error` gets the exception that ends the loop.

        later: called with the same tick at `later_phase` of it, unless `function` returned True.
        """
        if later is not None and not phase < later_phase < 1.0:
            raise ValueError(f"later phase of the loop is {later_phase}, expected more than {phase} and less than 1")
        self._later, self._later_ns = later, round((later_phase - phase) * clock.period_ns)
        self.statistics = PeriodStatistics(clock.period_ns * 1e-9)
        self._period_ns = clock.period_ns
        self._function = function
        self._schedule = TickSchedule(clock, phase)
        self._now_ns = now_ns
        self._on_error = on_error
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start ticking; a loop that runs already is left alone."""
        if self._thread is None:
            self._stop.clear()
            self.statistics.reset()
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
        last: int | None = None
        try:
            while True:
                tick, due_ns = self._schedule.next(self._now_ns(), last)
                if self._stopped_at(due_ns):
                    return
                if self._set_back(due_ns):
                    continue
                self.statistics.record(time.monotonic(), 0 if last is None else max(0, tick - last - 1))
                last = tick
                if self._function(tick) is not True and self._later is not None:
                    if self._stopped_at(due_ns + self._later_ns):
                        return
                    if not self._set_back(due_ns + self._later_ns):
                        self._later(tick)
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _stopped_at(self, due_ns: int) -> bool:
        """Sleep until then, a period at most; whether the loop has been stopped."""
        wait_ns = min(due_ns - self._now_ns(), self._period_ns)
        if wait_ns > 0:
            time.sleep(wait_ns * 1e-9)  # finer than Event.wait, which goes through a condition
        return self._stop.is_set()

    def _set_back(self, due_ns: int) -> bool:
        """Whether the clock went back meanwhile: what has been waited for is in the future again."""
        return due_ns - self._now_ns() > self._period_ns // 2


class ClockedLoop:
    """TickLoop by a simulated clock: whoever hears the clock calls `advance`, and that calls `function(tick)`.

    Attributes:
        next_ns: ROS time of the next call; None while stopped and before the clock is known.
    """

    def __init__(self, function: Callable[[int], None], control: ControlClock, phase: float = 0.0) -> None:
        self.statistics = PeriodStatistics(control.period_ns * 1e-9)
        self.next_ns: int | None = None
        self._function = function
        self._schedule = TickSchedule(control, phase)
        self._running = False
        self._last: int | None = None

    def start(self) -> None:
        """Follow the clock from the next `advance` on; a loop that runs already is left alone."""
        if not self._running:
            self.statistics.reset()
            self._running, self._last = True, None

    def stop(self) -> None:
        """Follow it no longer."""
        self._running, self.next_ns = False, None

    def advance(self, now_ns: int) -> None:
        """The clock is at `now_ns`: call the function for the tick that is due, if any; older ones are skipped."""
        if not self._running:
            return
        tick, due_ns = self._schedule.next(now_ns, self._last)
        if self._last is None or tick <= self._last:  # a beginning, or a clock that was set back
            self._last = tick - 1  # this one is due, however far the clock jumps now
        if due_ns <= now_ns:
            self.statistics.record(now_ns * 1e-9, max(0, tick - self._last - 1))
            self._last = tick
            self._function(tick)
            tick, due_ns = self._schedule.next(now_ns, tick)
        if self._running:  # the function may have stopped the loop
            self.next_ns = due_ns
