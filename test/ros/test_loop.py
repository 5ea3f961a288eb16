"""The tick loop and its statistics with times as numbers, the thread with a bounded condition."""

import threading
import time

import pytest

from rlt_ros.core.chunks import ControlClock
from rlt_ros.ros.loop import LoopThread, PeriodStatistics, TickLoop

MS = 1_000_000
CLOCK = ControlClock(50.0)


def test_phase_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="phase of the loop is 1.0"):
        TickLoop(print, CLOCK, 1.0)


def test_statistics_measure_the_period_error() -> None:
    statistics = PeriodStatistics(0.020)
    for now in (0.0, 0.020, 0.041, 0.060, 0.090):
        statistics.record(now)
    statistics.record(0.150, skipped=2)
    summary = statistics.summary()
    assert (summary["ticks"], summary["missed"], summary["late_5ms"]) == (6, 2, 2)
    assert summary["period_error_max_ms"] == pytest.approx(40.0)
    assert 1.0 <= summary["period_error_p50_ms"] <= 1.011


def test_percentiles_are_of_all_ticks_since_the_reset() -> None:
    statistics, now = PeriodStatistics(0.002), 0.0
    for i in range(40_001):
        now += 0.002 + (0.004 if i % 500 == 250 else 0.0001)
        statistics.record(now)
    summary = statistics.summary()
    assert summary["ticks"] == 40_001 and summary["period_error_max_ms"] == pytest.approx(4.0)
    assert summary["period_error_p99_ms"] == pytest.approx(0.1, abs=0.011)
    assert summary["period_error_p999_ms"] == pytest.approx(4.0, abs=0.011)
    statistics.record(now + 10.0)
    assert statistics.summary()["period_error_max_ms"] == pytest.approx(9998.0)
    statistics.reset()
    assert statistics.summary() == {"ticks": 0, "missed": 0, "late_5ms": 0}


def test_statistics_without_ticks_have_no_percentiles() -> None:
    assert PeriodStatistics(0.02).summary() == {"ticks": 0, "missed": 0, "late_5ms": 0}


def test_thread_ticks_until_stopped_and_starts_again() -> None:
    ticks, enough = [], threading.Event()

    def tick(number: int) -> None:
        ticks.append(number)
        if len(ticks) % 5 == 0:
            enough.set()

    thread = LoopThread(TickLoop(tick, ControlClock(200.0)))
    for _ in range(2):
        enough.clear()
        thread.start()
        assert enough.wait(10.0)
        thread.stop()
    assert ticks == sorted(set(ticks))


def test_thread_hands_over_the_exception_that_ends_it() -> None:
    errors, seen = [], threading.Event()
    loop = TickLoop(lambda tick: 1 / 0, ControlClock(200.0))
    thread = LoopThread(loop, on_error=lambda e: (errors.append(e), seen.set()))
    thread.start()
    assert seen.wait(10.0) and isinstance(errors[0], ZeroDivisionError)
    thread.stop()


def test_clock_that_is_set_back_while_the_thread_sleeps_does_not_stop_it() -> None:
    shift_ns, ticks, done = 0, [], threading.Event()

    def now_ns() -> int:
        return time.time_ns() + shift_ns

    def tick(number: int) -> None:
        nonlocal shift_ns
        ticks.append(number)
        if len(ticks) == 3:
            shift_ns = -3600 * 10**9
        if len(ticks) == 8:
            done.set()

    thread = LoopThread(TickLoop(tick, ControlClock(100.0), phase=0.5), now_ns)
    thread.start()
    try:
        assert done.wait(10.0), f"only the ticks {ticks}"
    finally:
        thread.stop()
    hour = 3600 * 100
    assert ticks[3] <= ticks[2] - hour + 5 and ticks[3:] == sorted(set(ticks[3:]))


@pytest.fixture
def ticks() -> list[int]:
    return []


@pytest.fixture
def loop(ticks: list[int]) -> TickLoop:
    """A loop at phase 0.5 of ticks of 20 ms, at 1000 ms, which is the beginning of tick 50."""
    made = TickLoop(ticks.append, CLOCK, phase=0.5)
    made.start()
    made.advance(1000 * MS)
    return made


def test_loop_calls_each_tick_at_its_moment_and_tells_when_it_is_next(ticks, loop) -> None:
    assert ticks == [] and loop.next_ns == 1010 * MS
    loop.advance(1009 * MS)
    loop.advance(1010 * MS)
    loop.advance(1010 * MS)  # the same again
    assert ticks == [50] and loop.next_ns == 1030 * MS
    loop.stop()
    loop.advance(1030 * MS)
    assert ticks == [50] and loop.next_ns is None


def test_loop_that_is_not_started_does_nothing(ticks) -> None:
    loop = TickLoop(ticks.append, CLOCK)
    loop.advance(1000 * MS)
    loop.hurry(50, 1000 * MS)
    loop.done(50)
    assert ticks == [] and loop.next_ns is None


def test_loop_begins_on_a_boundary(ticks) -> None:
    loop = TickLoop(ticks.append, CLOCK)
    loop.start()
    loop.advance(1005 * MS)
    assert ticks == [] and loop.next_ns == 1020 * MS


def test_who_wakes_a_little_early_does_not_repeat_a_tick(ticks, loop) -> None:
    loop.advance(1010 * MS)
    loop.advance(1030 * MS - 1)
    assert ticks == [50] and loop.next_ns == 1030 * MS


def test_late_tick_is_called_at_once(ticks, loop) -> None:
    loop.advance(1029 * MS)
    assert ticks == [50] and loop.next_ns == 1030 * MS


def test_loop_skips_the_ticks_that_the_clock_jumped_over(ticks) -> None:
    loop = TickLoop(ticks.append, CLOCK)
    loop.start()
    for now in (1000, 1020, 1100, 500, 520):
        loop.advance(now * MS)
    assert ticks == [51, 55, 26]  # and starts afresh where it jumps back
    assert loop.statistics.missed == 3


def test_tick_that_has_all_it_waits_for_is_called_at_once(ticks, loop) -> None:
    loop.hurry(50, 1003 * MS)
    assert ticks == [50] and loop.next_ns == 1030 * MS
    loop.hurry(50, 1005 * MS)  # the same again
    loop.advance(1010 * MS)
    assert ticks == [50]


def test_tick_that_has_all_it_waits_for_before_it_begins_is_called_when_it_begins(ticks, loop) -> None:
    loop.hurry(50, 1003 * MS)
    loop.hurry(51, 1017 * MS)
    assert ticks == [50] and loop.next_ns == 1020 * MS
    loop.advance(1020 * MS)
    assert ticks == [50, 51] and loop.next_ns == 1050 * MS


def test_tick_that_can_be_called_overtakes_one_that_still_waits(ticks, loop) -> None:
    loop.hurry(50, 1001 * MS)
    loop.hurry(52, 1041 * MS)  # tick 51 had been called at 1030 by a loop that was not late
    assert ticks == [50, 52] and loop.statistics.missed == 1


def test_what_an_old_tick_waited_for_does_not_hurry_the_present_one(ticks, loop) -> None:
    loop.hurry(49, 1003 * MS)
    assert ticks == [] and loop.next_ns == 1010 * MS


def test_tick_that_has_been_done_is_not_called_but_counts(ticks, loop) -> None:
    loop.done(50)
    assert loop.next_ns == 1030 * MS
    loop.advance(1010 * MS)
    assert ticks == [] and loop.statistics.ticks == 1
    loop.done(49)  # an older one
    loop.advance(1030 * MS)
    assert ticks == [51]


def test_clock_that_is_set_back_forgets_what_was_hurried_and_done(ticks, loop) -> None:
    loop.hurry(50, 1003 * MS)
    loop.done(51)
    loop.hurry(80, 1030 * MS)
    loop.advance(500 * MS)
    assert ticks == [50] and loop.next_ns == 510 * MS
    loop.advance(510 * MS)
    assert ticks == [50, 25]
