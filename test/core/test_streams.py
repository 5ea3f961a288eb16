"""Timing of streams, and troubles that are told once."""

import pytest

from rlt_ros.core.streams import ClockOffset, StampError, StampWatch, Troubles

MS, S = 1_000_000, 1_000_000_000
NOW = 1_700_000_000 * S


def steady(watch: StampWatch, count: int, begin: int = NOW, period: int = 40 * MS) -> int:
    """A stream without faults; the stamp of its last message."""
    for i in range(count):
        watch.note(begin + i * period, begin + i * period + 5 * MS)
    return begin + (count - 1) * period


def test_steady_stream_has_its_rate_and_no_losses():
    watch = StampWatch(0.1)
    steady(watch, 50)
    assert watch.rate_hz == pytest.approx(25.0) and watch.lost == 0 and watch.loss == 0.0
    assert watch.delay_s == pytest.approx(0.005)


def test_gaps_count_what_is_missing_against_the_measured_rate():
    watch = StampWatch(0.1)
    last = steady(watch, 20)
    watch.note(last + 3 * 40 * MS, last + 3 * 40 * MS)
    assert watch.lost == 2 and watch.loss == pytest.approx(2 / 22)
    steady(watch, 5, last + 4 * 40 * MS)
    assert watch.lost == 2


def test_jitter_is_no_loss_and_neither_is_a_long_silence():
    watch = StampWatch(0.1)
    at = NOW
    for i in range(40):
        at += (40 + (15 if i % 2 else -15)) * MS
        watch.note(at, at)
    watch.note(at + 5 * S, at + 5 * S)
    assert watch.lost == 0


def test_rate_that_changes_for_good_is_followed():
    watch = StampWatch(0.1, window=20)
    last = steady(watch, 20)
    steady(watch, 60, last + 80 * MS, 80 * MS)
    lost = watch.lost
    steady(watch, 20, last + 61 * 80 * MS, 80 * MS)
    assert watch.rate_hz == pytest.approx(12.5) and watch.lost == lost and watch.loss == 0.0


@pytest.mark.parametrize("back", [0, 1, 1 * S])
def test_stamp_that_is_not_newer_is_refused(back):
    watch = StampWatch(0.1)
    last = steady(watch, 3)
    with pytest.raises(StampError, match="second publisher") as caught:
        watch.note(last - back, last + 40 * MS)
    assert caught.value.kind == "order" and watch.refused["order"] == 1


def test_old_message_is_refused_but_a_clock_that_was_set_back_is_followed():
    watch = StampWatch(0.1)
    last = steady(watch, 3)
    with pytest.raises(StampError):
        watch.note(last - 10 * S, last)
    assert watch.note(last - 10 * S, last - 10 * S + 5 * MS) is True
    assert watch.note(last - 10 * S + 40 * MS, last - 10 * S + 45 * MS) is False
    assert watch.lost == 0


@pytest.mark.parametrize("kind", [ClockOffset, StampWatch])
def test_stamp_in_the_future_is_refused_and_does_not_make_the_next_look_old(kind):
    watch = kind(0.1)
    with pytest.raises(StampError, match="3600.000 s ahead of this computer's clock, expected at most 0.1 s"):
        watch.note(NOW + 3600 * S, NOW)
    assert watch.note(NOW + 40 * MS, NOW + 45 * MS) is False
    assert watch.refused == {"ahead": 1}


@pytest.mark.parametrize("kind", [ClockOffset, StampWatch])
def test_stamp_that_was_never_set_is_named(kind):
    watch = kind(0.1)
    with pytest.raises(StampError, match="stamp is 0"):
        watch.note(0, NOW)
    watch.note(NOW, NOW)
    with pytest.raises(StampError, match="stamp is 0"):
        watch.note(0, NOW)


def test_clock_behind_shows_as_delay():
    clock = ClockOffset(0.1)
    for i in range(10):
        clock.note(NOW + i * MS, NOW + i * MS + 300 * MS)
    assert clock.delay_s == pytest.approx(0.3)


def test_streams_of_two_senders_on_one_topic_may_be_a_little_out_of_order():
    clock = ClockOffset(0.1)
    assert clock.note(NOW, NOW) is clock.note(NOW - 10 * MS, NOW) is False


def test_trouble_is_told_once_however_often_it_comes():
    troubles = Troubles(hold_s=2.0)
    told = []
    for step in range(100):
        troubles.note("dark", f"is black for {step}", step * 0.1)
        told += troubles.news(step * 0.1).values()
    assert told == ["is black for 0"] and troubles.current(9.9) == {"dark": "is black for 99"}
    assert troubles.news(12.0) == {} and troubles.current(12.0) == {}
    troubles.note("dark", "again", 13.0)
    assert troubles.news(13.0) == {"dark": "again"}


def test_trouble_that_comes_and_goes_within_the_hold_is_one():
    troubles = Troubles(hold_s=2.0)
    told = []
    for step in range(20):
        if step % 2:
            troubles.note("loss", "loses", step)
        told += troubles.news(step).values()
    assert told == ["loses"]
