import numpy as np
import pytest

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.observations import ReferenceBuffer, TokenBuffer, TokenFrame, rl_proprio


def frame(tick):
    return TokenFrame(tick, np.full(3, tick), np.full(2, tick))


def reference(observed, steps=50):
    return Chunk(observed, observed + np.arange(steps, dtype=np.float32)[:, None], observed, Source.VLA)


def tokens(*ticks, latency=5, age=25, keep=256):
    buffer = TokenBuffer(latency, age, keep)
    for tick in ticks:
        buffer.add(frame(tick))
    return buffer


def references(*ticks, steps=50):
    buffer = ReferenceBuffer(5, 25)
    for tick in ticks:
        buffer.add(reference(tick, steps))
    return buffer


def test_the_newest_frame_that_is_latency_old_is_taken():
    assert tokens(90, 95, 96).at(100, since_tick=0).tick == 95


def test_frames_may_come_out_of_order():
    assert tokens(95, 85, 96, 90).at(100, since_tick=0).tick == 95
    assert tokens(95, 85, 96, 90).at(99, since_tick=0).tick == 90


def test_a_token_older_than_the_age_limit_is_refused():
    assert tokens(75).at(100, since_tick=0).tick == 75
    assert tokens(74).at(100, since_tick=0) is None


def test_a_token_from_before_the_episode_is_refused():
    assert tokens(94).at(100, since_tick=95) is None
    assert tokens(95).at(100, since_tick=95).tick == 95


def test_a_frame_again_replaces_the_first():
    buffer = tokens(90)
    buffer.add(TokenFrame(90, np.zeros(3), np.zeros(2)))
    assert len(buffer) == 1 and not buffer.at(100, 0).token.any()


def test_what_the_actor_did_not_have_can_be_left_out():
    assert tokens(90, 93, 95).at(100, 0, until=93).tick == 93


def test_the_buffer_keeps_the_newest_frames_only():
    assert len(tokens(*range(20), keep=4)) == 4
    assert tokens(*range(20), keep=4).at(24, 0).tick == 19


def test_forgetting_drops_what_is_older():
    buffer = tokens(80, 90, 95)
    buffer.forget_before(90)
    assert len(buffer) == 2 and buffer.at(94, 0) is None


def test_a_late_reference_is_sliced_to_the_tick_of_the_state():
    chunk, actions = references(80, 90).at(97, since_tick=0, steps=10)
    assert chunk.observation_tick == 90
    assert np.array_equal(actions[:, 0], np.arange(97, 107))


def test_a_newer_reference_that_does_not_reach_far_enough_gives_way_to_an_older_one():
    buffer = references(80)
    buffer.add(reference(90, steps=12))
    chunk, actions = buffer.at(97, since_tick=0, steps=10)
    assert chunk.observation_tick == 80 and actions[0, 0] == 97


def test_no_reference_covers_the_chunk():
    assert references(80, steps=26).at(97, since_tick=0, steps=10) is None


def test_a_reference_from_before_the_episode_is_refused():
    assert references(90).at(97, since_tick=91, steps=10) is None


def test_rl_proprio_is_now_and_the_change_since_the_frame():
    assert np.allclose(rl_proprio([1.0, 2.0], [0.5, 2.5]), [1.0, 2.0, 0.5, -0.5])
    with pytest.raises(ValueError, match="same size"):
        rl_proprio(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("token", [np.array([1.0, np.nan]), np.zeros((2, 2))])
def test_a_token_that_is_no_finite_vector_is_refused(token):
    with pytest.raises(ValueError, match="token of frame 7"):
        TokenFrame(7, token, np.zeros(2))


def test_a_latency_above_the_age_limit_is_refused():
    with pytest.raises(ValueError, match="latency_ticks 30"):
        TokenBuffer(30, 25)


def test_a_turn_past_the_end_of_an_angles_range_is_a_small_one():
    now, before = [0.1, -3.1, 3.1], np.array([0.3, 3.1, -3.1], np.float32)
    assert np.allclose(rl_proprio(now, before)[3:], [-0.2, -6.2, 6.2])
    assert np.allclose(rl_proprio(now, before, [1, 2])[3:], [-0.2, 2 * np.pi - 6.2, 6.2 - 2 * np.pi], atol=1e-6)
