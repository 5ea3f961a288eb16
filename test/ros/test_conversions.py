"""Messages to core types and back, and what is refused."""

import numpy as np
import pytest

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.replay import Transition
from rlt_ros.msg import ActionChunk
from rlt_ros.ros import conversions

CLOCK = ControlClock(50.0)
RNG = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def transition(**changes: object) -> Transition:
    fields = dict(sequence=3, episode=2, tick=1000, token=values(64), proprio=values(28), reference=values(10, 4),
                  action=values(10, 4), rewards=np.eye(10, dtype=np.float32)[3], steps=4, next_token=values(64),
                  next_proprio=values(28), next_reference=values(10, 4), terminated=True, truncated=False,
                  sources=np.full(10, 2, np.uint8), token_age_ticks=6, policy_version=9)
    return Transition(**(fields | changes))


def test_chunk_survives_the_wire() -> None:
    chunk = Chunk(123, values(10, 4), 118, Source.ACTOR, episode=4, policy_version=7)
    msg = conversions.chunk_to_msg(chunk, CLOCK, "base")
    assert conversions.stamp_ns(msg.header.stamp) == CLOCK.stamp_ns(123) and msg.header.frame_id == "base"
    back = conversions.chunk_from_msg(msg, 4)
    assert (back.tick, back.observation_tick, back.source, back.episode, back.policy_version) == (123, 118, 2, 4, 7)
    np.testing.assert_array_equal(back.actions, chunk.actions)


def test_release_is_a_chunk_without_steps() -> None:
    msg = conversions.chunk_to_msg(Chunk(5, np.zeros((0, 4)), 5, Source.HUMAN), CLOCK)
    assert conversions.chunk_from_msg(msg, 4).steps == 0


@pytest.mark.parametrize("change, message", [
    ({"steps": 2}, "actions has 4 values, expected 8"),
    ({"action_dim": 7}, "action_dim is 7, expected 4"),
    ({"action_dim": 0}, "action_dim is 0"),
    ({"source": 9}, "source is 9, expected 0..3"),
    ({"actions": [float("nan"), 0.0, 0.0, 0.0]}, "actions are not finite"),
])
def test_malformed_chunk_is_refused_by_name(change: dict, message: str) -> None:
    fields = {"tick": 1, "steps": 1, "action_dim": 4, "actions": [0.0] * 4} | change
    with pytest.raises(ValueError, match=message):
        conversions.chunk_from_msg(ActionChunk(**fields), 4)


def test_transition_survives_the_wire() -> None:
    sent = transition()
    got = conversions.transition_from_msg(conversions.transition_to_msg(sent, "monday", CLOCK))
    for name, value in vars(sent).items():
        np.testing.assert_array_equal(getattr(got, name), value, err_msg=name)


@pytest.mark.parametrize("name, size", [("reference", 39), ("rewards", 9), ("sources", 9), ("next_token", 63)])
def test_transition_of_wrong_size_is_refused_by_name(name: str, size: int) -> None:
    msg = conversions.transition_to_msg(transition(), "monday", CLOCK)
    setattr(msg, name, getattr(msg, name)[:size])
    with pytest.raises(ValueError, match=name):
        conversions.transition_from_msg(msg)


def test_state_and_proprio_survive_the_wire() -> None:
    frame = TokenFrame(50, values(64), values(14))
    back = conversions.state_from_msg(conversions.state_to_msg(frame, CLOCK), 64, 14)
    np.testing.assert_array_equal(back.token, frame.token)
    tick, proprio = conversions.proprio_from_msg(conversions.proprio_to_msg(frame.proprio, CLOCK, 1_010_000_000), 14)
    assert tick == 50
    np.testing.assert_array_equal(proprio, frame.proprio)
    with pytest.raises(ValueError, match="expected 32"):
        conversions.state_from_msg(conversions.state_to_msg(frame, CLOCK), 32, 14)


def test_image_survives_the_wire() -> None:
    rgb = RNG.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(conversions.image_from_msg(conversions.image_to_msg(rgb, 1, "camera")), rgb)


def test_bgr_image_with_padded_rows_becomes_rgb() -> None:
    rgb = RNG.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    msg = conversions.image_to_msg(rgb, 1)
    rows = np.zeros((4, 20), np.uint8)
    rows[:, :15] = rgb[:, :, ::-1].reshape(4, 15)
    msg.encoding, msg.step, msg.data = "bgr8", 20, conversions.packed(rows, "B")
    np.testing.assert_array_equal(conversions.image_from_msg(msg), rgb)


def test_unknown_encoding_is_refused_with_the_known_ones() -> None:
    msg = conversions.image_to_msg(np.zeros((2, 2, 3), np.uint8), 1)
    msg.encoding = "16UC1"
    with pytest.raises(ValueError, match="'16UC1', expected one of rgb8"):
        conversions.image_from_msg(msg)


def test_truncated_image_is_refused() -> None:
    msg = conversions.image_to_msg(np.zeros((2, 2, 3), np.uint8), 1)
    msg.data = msg.data[:-1]
    with pytest.raises(ValueError, match="has 11 bytes in rows of 6"):
        conversions.image_from_msg(msg)


def test_float_image_is_not_sent() -> None:
    with pytest.raises(ValueError, match="float64"):
        conversions.image_to_msg(np.zeros((2, 2, 3)), 1)
