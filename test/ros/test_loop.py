"""The tick loop: schedule and statistics with simulated time, the thread with a bounded condition."""

import threading
import time

import pytest

from rlt_ros.core.chunks import ControlClock
from rlt_ros.ros.loop import ClockedLoop, PeriodStatistics, TickLoop, TickSchedule

MS = 1_000_000
CLOCK = ControlClock(50.0)


def test_first_tick_starts_on_a_boundary() -> None:
    assert TickSchedule(CLOCK).next(1005 * MS, None) == (51, 1020 * MS)


def test_phase_moves_the_run_not_the_tick() -> None:
    schedule = TickSchedule(CLOCK, phase=0.5)
    assert schedule.next(1005 * MS, None) == (50, 1010 * MS)
    assert schedule.next(1010 * MS, 50) == (51, 1030 * MS)


def test_waking_a_little_early_does_not_repeat_a_tick() -> None:
    assert TickSchedule(CLOCK).next(1020 * MS - 1, 51) == (52, 1040 * MS)


def test_late_tick_runs_at_once_and_older_ones_are_skipped() -> None:
    tick, due = TickSchedule(CLOCK).next(1105 * MS, 51)
    assert tick == 55 and due < 1105 * MS


def test_clock_that_jumps_back_starts_afresh() -> None:
    assert TickSchedule(CLOCK).next(505 * MS, 51) == (26, 520 * MS)


def test_phase_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="phase of the loop is 1.0"):
        TickSchedule(CLOCK, 1.0)


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


def test_loop_ticks_until_stopped_and_starts_again() -> None:
    ticks, enough = [], threading.Event()

    def tick(number: int) -> None:
        ticks.append(number)
        if len(ticks) % 5 == 0:
            enough.set()

    loop = TickLoop(tick, ControlClock(200.0))
    for _ in range(2):
        enough.clear()
        loop.start()
        assert enough.wait(10.0)
        loop.stop()
    assert ticks == sorted(set(ticks))


def test_loop_hands_over_the_exception_that_ends_it() -> None:
    errors, seen = [], threading.Event()
    loop = TickLoop(lambda tick: 1 / 0, ControlClock(200.0), on_error=lambda e: (errors.append(e), seen.set()))
    loop.start()
    assert seen.wait(10.0) and isinstance(errors[0], ZeroDivisionError)
    loop.stop()


def test_clocked_loop_ticks_when_the_clock_says_so_and_tells_when_it_is_next() -> None:
    ticks: list[int] = []
    loop = ClockedLoop(ticks.append, CLOCK, phase=0.5)
    loop.advance(1000 * MS)
    assert ticks == [] and loop.next_ns is None  # not started
    loop.start()
    loop.advance(1000 * MS)
    assert ticks == [] and loop.next_ns == 1010 * MS
    loop.advance(1009 * MS)
    loop.advance(1010 * MS)
    loop.advance(1010 * MS)  # the same again
    assert ticks == [50] and loop.next_ns == 1030 * MS
    loop.stop()
    loop.advance(1030 * MS)
    assert ticks == [50] and loop.next_ns is None


def test_clocked_loop_skips_the_ticks_that_the_clock_jumped_over() -> None:
    ticks: list[int] = []
    loop = ClockedLoop(ticks.append, CLOCK)
    loop.start()
    for now in (1000, 1020, 1100, 500, 520):
        loop.advance(now * MS)
    assert ticks == [51, 55, 26]  # and starts afresh where it jumps back
    assert loop.statistics.missed == 3


def test_loop_calls_later_with_the_same_tick_unless_the_tick_is_done() -> None:
    first, second, enough = [], [], threading.Event()

    def tick(number: int) -> bool:
        first.append(number)
        if len(first) == 10:
            enough.set()
        return number % 2 == 0

    def later(number: int) -> None:
        second.append((number, time.time_ns() >= clock.stamp_ns(number) + clock.period_ns // 2, first[-1]))

    clock = ControlClock(200.0)
    loop = TickLoop(tick, clock, later=later, later_phase=0.5)
    loop.start()
    assert enough.wait(10.0)
    loop.stop()
    odd = [number for number in first if number % 2]
    assert second == [(number, True, number) for number in odd[: len(second)]] and len(second) >= len(odd) - 1


@pytest.mark.parametrize("later_phase", [0.0, 0.3, 1.0])
def test_loop_refuses_a_later_phase_that_is_not_later_in_the_tick(later_phase: float) -> None:
    with pytest.raises(ValueError, match=f"later phase of the loop is {later_phase}, expected more than 0.3"):
        TickLoop(print, ControlClock(200.0), phase=0.3, later=print, later_phase=later_phase)


def test_clock_that_is_set_back_while_the_loop_sleeps_does_not_stop_it() -> None:
    """Neither before a tick nor between its two calls is what was waited for waited for again."""
    clock, shift_ns, ticks, late = ControlClock(100.0), 0, [], []
    done = threading.Event()

    def now_ns() -> int:
        return time.time_ns() + shift_ns

    def tick(number: int) -> bool:
        nonlocal shift_ns
        ticks.append(number)
        if len(ticks) == 3:
            shift_ns = -3600 * 10**9  # while the second call of this tick is waited for
        if len(ticks) == 8:
            done.set()
        return False

    loop = TickLoop(tick, clock, now_ns=now_ns, later=late.append, later_phase=0.5)
    loop.start()
    try:
        assert done.wait(10.0), f"only the ticks {ticks}"
    finally:
        loop.stop()
    hour = 3600 * 100
    assert ticks[3] <= ticks[2] - hour + 5 and ticks[3:] == sorted(set(ticks[3:]))
    assert ticks[2] not in late and late[-1] < ticks[2] - hour + 100
