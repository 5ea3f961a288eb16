import numpy as np
import pytest

from rlt_ros.core.chunks import Source
from rlt_ros.core.joining import FADE_TICKS, Join, Prefix, References, blend, ramp


def rising(n, start=0.0):
    """[n, 2]: each action tells its place, in hundredths."""
    return np.stack([start + np.arange(n) / 100] * 2, axis=1).astype(np.float32)


# --- what a new reference must agree with


def test_what_is_executed_anyway_is_frozen_the_rest_counts_less_and_less_and_the_end_is_free():
    weights = Prefix(rising(40), frozen=5).weights(50)
    assert weights.shape == (50,) and (weights[:5] == 1).all() and not weights[40:].any()
    assert (np.diff(weights[4:41]) < 0).all() and weights[5] > 0.9 and weights[39] < 0.01


def test_weights_fall_exponentially():
    weights = Prefix(rising(30), frozen=0).weights(40)
    left = 10 / 31  # of the way, at the twentieth of thirty
    assert weights[20] == pytest.approx(left * (np.exp(left) - 1) / (np.e - 1), rel=1e-5)


@pytest.mark.parametrize("frozen", [3, 4, 9])
def test_a_prefix_that_ends_within_what_is_frozen_leaves_the_rest_free(frozen):
    weights = Prefix(rising(3), frozen).weights(8)
    assert (weights[:3] == 1).all() and not weights[3:].any()


def test_a_prefix_longer_than_the_reference_is_cut():
    prefix = Prefix(rising(9), frozen=2)
    assert prefix.weights(4).shape == (4,) and np.array_equal(prefix.target(4), rising(9)[:4])


def test_the_target_is_the_prefix_and_nothing_after_it():
    target = Prefix(rising(3), frozen=1).target(5)
    assert target.dtype == np.float32 and np.array_equal(target[:3], rising(3)) and not target[3:].any()


# --- blending


def test_a_blend_begins_as_the_one_before_and_ends_as_the_new_one():
    before, new = np.full((40, 2), 0.5, np.float32), np.full((50, 2), -0.5, np.float32)
    joined = blend(Prefix(before, frozen=5), new, steps=9)
    assert (joined[:5] == 0.5).all() and (joined[14:] == -0.5).all()
    assert np.allclose(np.diff(joined[4:15, 0]), -0.1, atol=1e-6)  # from the last frozen one to the first new one
    assert (new == -0.5).all()  # what was given is as it was


def test_a_blend_ends_where_the_one_before_ends():
    joined = blend(Prefix(np.full((6, 2), 0.5, np.float32), frozen=5), np.zeros((50, 2), np.float32), steps=9)
    assert joined[5, 0] == pytest.approx(0.45) and not joined[6:].any()


# --- the ramp of commands


def test_a_chunk_begins_with_the_last_action_and_is_itself_after_equal_steps():
    joined = ramp(np.full((10, 2), 0.5, np.float32), np.array([-0.5, 0.5], np.float32), 4)
    assert np.allclose(joined[:, 0], [-0.5, -0.25, 0.0, 0.25] + [0.5] * 6) and np.allclose(joined[:, 1], 0.5)


def test_a_ramp_keeps_the_chunks_own_motion():
    chunk = rising(10)
    joined = ramp(chunk, chunk[0] + 0.4, 4)
    assert np.allclose((joined - chunk)[:, 0], [0.4, 0.3, 0.2, 0.1] + [0.0] * 6, atol=1e-6)


def test_a_ramp_stays_within_what_an_action_may_be():
    chunk = np.linspace([0.0], [1.0], 5).astype(np.float32)
    assert ramp(chunk, np.array([1.0], np.float32), 4).max() == 1.0


@pytest.mark.parametrize("steps", [4, 50])
def test_a_ramp_is_no_longer_than_the_chunk(steps):
    joined = ramp(np.zeros((4, 1), np.float32), np.ones(1, np.float32), steps)
    assert np.allclose(joined[:, 0], [1.0, 0.75, 0.5, 0.25])


def test_a_chunk_of_one_action_can_be_joined():
    for bold in (False, True):
        assert np.allclose(ramp(np.zeros((1, 1), np.float32), np.ones(1, np.float32), 4, bold), 1.0)


def test_a_bold_chunk_changes_no_more_at_the_seam_than_inside():
    chunk = np.zeros((10, 3), np.float32)
    chunk[6:, 0], chunk[6:, 1] = 0.3, 0.1
    joined = ramp(chunk, np.array([0.5, -0.5, 0.2], np.float32), 4, bold=True)
    assert np.allclose(joined[0], [0.2, -0.2, 0.0])  # the largest change inside, 0.3, from the last action
    assert np.allclose(joined[:5, 0], [0.2, 0.15, 0.1, 0.05, 0.0], atol=1e-6)


def test_a_chunk_as_bold_as_its_seam_is_left_alone():
    chunk = np.tile(np.float32([[0.5], [-0.5]]), (5, 1))
    assert np.array_equal(ramp(chunk, np.array([-0.5], np.float32), 4, bold=True), chunk)


def test_what_the_ramp_takes_away_from_does_not_count_as_bold():
    chunk = np.zeros((10, 1), np.float32)
    chunk[1:] = 0.3  # the chunk's only change is up, and the last action is above it
    joined = ramp(chunk, np.array([0.5], np.float32), 4, bold=True)
    assert joined[0] == 0.5 and np.allclose(joined[4:], 0.3)


def test_the_seam_is_never_the_largest_change():
    random = np.random.default_rng(0)
    for _ in range(200):
        chunk = random.uniform(-0.3, 0.3, 4) + 0.1 * random.standard_normal((10, 4)).cumsum(0)
        last = random.uniform(-0.3, 0.3, 4)
        joined = ramp(chunk.clip(-0.9, 0.9), last, 4, bold=True)
        assert np.abs(joined[0] - last).max() <= np.abs(np.diff(joined, axis=0)).max() + 1e-6


# --- which references are joined


class Vla:
    """Answers with a constant; remembers what it was asked to go on from."""

    def __init__(self, value=0.0):
        self.value, self.prefixes = value, []

    def __call__(self, prefix):
        self.prefixes.append(prefix)
        return np.full((50, 2), self.value, np.float32), np.zeros(3, np.float32)


def two(join, driver=Source.VLA, tick=20, episode=1):
    """References of ticks 0 and 10 with actions 0.5, then one with actions -0.5, used five ticks later."""
    references = References(join)
    for at in (0, 10):
        references.next(Vla(0.5), at, 5, 1, None)
    vla = Vla(-0.5)
    chunk, _ = references.next(vla, tick, 5, episode, driver)
    return chunk, vla.prefixes[0], references.joined


def test_real_time_chunking_is_given_the_actions_of_the_one_before_for_its_own_ticks():
    references = References("rtc")
    first = rising(50)
    references.next(lambda prefix: (first, np.zeros(3)), 10, 5, 1, None)
    vla = Vla()
    references.next(vla, 22, 5, 1, Source.VLA)
    assert vla.prefixes[0].frozen == 5 and np.array_equal(vla.prefixes[0].actions, first[12:27])  # 10 more


def test_a_blend_asks_for_an_ordinary_reference_and_fades_it_in():
    chunk, prefix, joined = two("blend")
    assert prefix is None and joined == 1
    assert (chunk.actions[:5] == 0.5).all() and (chunk.actions[5 + FADE_TICKS:] == -0.5).all()
    assert np.abs(np.diff(chunk.actions[:, 0])).max() < 0.1


@pytest.mark.parametrize("join", ["rtc", "blend"])
@pytest.mark.parametrize("why", [
    dict(driver=None), dict(driver=Source.HOLD), dict(driver=Source.HUMAN), dict(driver=Source.ACTOR),  # went elsewhere
    dict(episode=2),  # the last episode's
    dict(tick=60),  # it has ended
    dict(tick=9),  # it begins later: the clock was set back
])
def test_nothing_is_joined_to_what_the_robot_does_not_do(join, why):
    chunk, prefix, joined = two(join, **why)
    assert prefix is None and joined == 0 and (chunk.actions == -0.5).all()


def test_a_robot_that_waits_for_its_first_reference_will_execute_it():
    references = References("rtc")
    joined = []
    for tick, episode in ((0, 1), (10, 1), (20, 1), (100, 2), (110, 2)):
        references.next(Vla(), tick, 5, episode, Source.HOLD)
        joined.append(references.joined)
    assert joined == [0, 1, 1, 1, 2]


def test_none_joins_nothing():
    chunk, prefix, joined = two("none")
    assert prefix is None and joined == 0 and (chunk.actions == -0.5).all()


def test_references_are_clipped_and_carry_frame_and_episode():
    references = References(Join.NONE)
    chunk, token = references.next(Vla(3.0), 10, 5, 7, None)
    assert (chunk.actions == 1.0).all() and token.shape == (3,)
    assert (chunk.tick, chunk.observation_tick, chunk.episode, chunk.source) == (10, 10, 7, Source.VLA)


def test_a_way_of_joining_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="glue"):
        References("glue")
