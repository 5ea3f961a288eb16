import numpy as np
import pytest

from rlt_ros.core.chunks import Chunk, ControlClock, Source


def chunk(tick=100, steps=10, **kwargs):
    actions = np.arange(steps * 2, dtype=np.float32).reshape(steps, 2)
    return Chunk(**{"tick": tick, "actions": actions, "observation_tick": tick - 5, "source": Source.VLA} | kwargs)


def test_tick_is_the_floor_of_the_stamp():
    clock = ControlClock(50.0)
    assert clock.period_ns == 20_000_000
    assert clock.tick(1_999_999_999) == 99
    assert clock.tick(2_000_000_000) == 100
    assert clock.tick(clock.stamp_ns(12345)) == 12345


def test_tick_is_exact_for_stamps_beyond_the_precision_of_a_float():
    clock = ControlClock(50.0)
    stamp = 1_790_000_000_000_000_000  # about the year 2026, in ns
    assert clock.tick(stamp) == 89_500_000_000
    assert clock.tick(stamp - 1) == 89_500_000_000 - 1


@pytest.mark.parametrize("rate", [0.0, -50.0, float("nan")])
def test_a_rate_that_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="control rate"):
        ControlClock(rate)


def test_slice_gives_the_actions_of_the_asked_ticks():
    assert np.array_equal(chunk().slice(103, 2), [[6, 7], [8, 9]])
    assert chunk().slice(100, 10).shape == (10, 2)


@pytest.mark.parametrize("tick, steps", [(99, 2), (100, 11), (109, 2), (110, 1)])
def test_slice_outside_the_chunk_names_the_numbers(tick, steps):
    with pytest.raises(ValueError, match=f"100..109, asked for {tick}..{tick + steps - 1}"):
        chunk().slice(tick, steps)


def test_end_is_the_tick_after_the_last_action():
    assert chunk().end == 110
    assert chunk().covers(109) and not chunk().covers(110)


def test_an_empty_chunk_is_a_release():
    assert chunk(actions=np.zeros((0, 4))).steps == 0


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (3, 0)])
def test_actions_that_are_not_steps_by_action_are_refused(shape):
    with pytest.raises(ValueError, match="expected \\[steps, action_dim\\]"):
        chunk(actions=np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        chunk(actions=[[0.0, bad]])


def test_a_chunk_does_not_change_with_the_array_it_was_made_from():
    actions = np.zeros((2, 2), dtype=np.float32)
    made = chunk(actions=actions)
    actions[:] = 1.0
    assert not made.actions.any()
    with pytest.raises(ValueError):
        made.actions[0, 0] = 1.0
