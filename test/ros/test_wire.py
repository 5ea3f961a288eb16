"""The bytes of what is sent at the rate of the control or the cameras: the same as rclpy's, from anybody, and never a crash."""

import struct
from array import array

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.observations import TokenFrame
from rlt_ros.msg import ActionChunk, Proprio, RLState
from rlt_ros.ros import wire
from rlt_ros.ros.conversions import chunk_to_msg, header, image_to_msg, numbers_of, proprio_to_msg, state_to_msg

CLOCK = ControlClock(50.0)
NS = 1_790_000_000_123_456_789
FRAMES = ["", "b", "base", "base_link", "a_rather_long_name"]  # of lengths that are aligned in different ways


def chunk(steps: int = 3) -> Chunk:
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 4))
    return Chunk(CLOCK.tick(NS), actions, CLOCK.tick(NS) - 7, Source.HUMAN, episode=4_000_000_000, policy_version=2**63)


def fields(chunk: Chunk) -> tuple:
    return (chunk.tick, chunk.observation_tick, chunk.source, chunk.episode, chunk.policy_version, chunk.actions.shape,
            chunk.actions.tolist())  # fmt: skip


@pytest.mark.parametrize("steps", [0, 1, 3, 50])
def test_a_chunks_bytes_are_read_by_rclpy(steps: int) -> None:
    assert deserialize_message(wire.chunk_to_wire(chunk(steps), CLOCK), ActionChunk) == chunk_to_msg(chunk(steps), CLOCK)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_rclpys_bytes_of_a_chunk_are_read(frame: str, steps: int) -> None:
    data = bytes(serialize_message(chunk_to_msg(chunk(steps), CLOCK, frame)))
    assert fields(wire.chunk_from_wire(data, 4)) == fields(chunk(steps))


def test_proprioceptions_bytes_are_read_by_rclpy() -> None:
    values = np.linspace(-3, 3, 14, dtype=np.float32)
    assert deserialize_message(wire.proprio_to_wire(values, CLOCK, NS), Proprio) == proprio_to_msg(values, CLOCK, NS)


@pytest.mark.parametrize("frame", FRAMES)
def test_rclpys_bytes_of_proprioception_are_read(frame: str) -> None:
    values = np.linspace(-3, 3, 14, dtype=np.float32)
    data = bytes(serialize_message(proprio_to_msg(values, CLOCK, NS, frame)))
    assert wire.proprio_from_wire(data, 14) == (CLOCK.tick(NS), tuple(values.tolist()))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("msg_type", [PoseStamped, TwistStamped, WrenchStamped])
def test_a_drivers_bytes_are_read(frame: str, msg_type: type) -> None:
    msg = msg_type(header=header(NS, frame))
    parts = {PoseStamped: ("pose", "position", "orientation"), TwistStamped: ("twist", "linear", "angular"),
             WrenchStamped: ("wrench", "force", "torque")}[msg_type]  # fmt: skip
    for i, name in enumerate(parts[1:]):
        part = getattr(getattr(msg, parts[0]), name)
        for j, axis in enumerate(part.get_fields_and_field_types()):
            setattr(part, axis, 10.0 * i + j)
    ns, numbers = wire.numbers_from_wire(bytes(serialize_message(msg)), msg_type)
    assert ns == NS
    assert numbers == numbers_of(msg) == (0, 1, 2, 10, 11, 12, 13)[: len(numbers)]


@pytest.mark.parametrize("frame", FRAMES)
def test_rclpys_bytes_of_a_state_are_read_and_the_other_way_round(frame: str) -> None:
    made = TokenFrame(CLOCK.tick(NS), np.linspace(-1, 1, 33), np.linspace(-3, 3, 14))
    msg = state_to_msg(made, CLOCK, NS)
    assert deserialize_message(wire.state_to_wire(made, NS), RLState) == msg
    msg.header.frame_id = frame
    read = wire.state_from_wire(bytes(serialize_message(msg)), 33, 14)
    assert (read.tick, read.token.tolist(), read.proprio.tolist()) == (
        made.tick, made.token.tolist(), made.proprio.tolist())  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "bayer_rggb8"])
def test_rclpys_bytes_of_an_image_are_read(frame: str, encoding: str) -> None:
    data = array("B", range(60))
    msg = Image(header=header(NS, frame), height=4, width=5, encoding=encoding, is_bigendian=1, step=15, data=data)
    read = wire.image_from_wire(bytes(serialize_message(msg)))
    assert read[:-1] == (NS, frame, 4, 5, encoding, 1, 15) and bytes(read.data) == bytes(data)


@pytest.mark.parametrize("frame", FRAMES)
def test_an_images_bytes_are_read_by_rclpy(frame: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    data = wire.image_to_wire(rgb, NS, frame)
    assert deserialize_message(data, Image) == image_to_msg(rgb, NS, frame)
    with pytest.raises(ValueError, match="expected uint8"):
        wire.image_to_wire(rgb[..., 0], NS)


def test_bytes_of_a_big_endian_computer_are_read() -> None:
    data = b"\x00\x00\x00\x00" + struct.pack(">iII4xqI2f", 17, 5, 1, 850, 2, 1.5, -2.5)
    assert wire.proprio_from_wire(data) == (850, (1.5, -2.5))


def readers() -> list:
    pose = bytes(serialize_message(PoseStamped(header=header(NS, "base"))))
    return [
        pytest.param(wire.chunk_to_wire(chunk(), CLOCK), wire.chunk_from_wire, id="chunk"),
        pytest.param(wire.proprio_to_wire(np.ones(14), CLOCK, NS), wire.proprio_from_wire, id="proprio"),
        pytest.param(pose, lambda data: wire.numbers_from_wire(data, PoseStamped), id="pose"),
        pytest.param(
            wire.state_to_wire(TokenFrame(1, np.ones(9), np.ones(14)), NS), wire.state_from_wire, id="state"
        ),
        pytest.param(
            wire.image_to_wire(np.zeros((2, 3, 3), np.uint8), NS, "camera"), wire.image_from_wire, id="image"
        ),
    ]


@pytest.mark.parametrize("data, read", readers())
def test_bytes_that_end_early_are_refused_wherever_they_end(data: bytes, read) -> None:
    for size in range(4, len(data)):
        with pytest.raises(ValueError, match=f"of {size} bytes ends early"):
            read(data[:size])


@pytest.mark.parametrize("data, read", readers())
def test_bytes_that_are_no_message_are_refused(data: bytes, read) -> None:
    for rest in (b"", b"\x00", b"\x00\x01", b"\x07\x07\x07\x07" + data[4:], b"\x00\x00" + data[2:20]):
        with pytest.raises(ValueError):
            read(rest)


@pytest.mark.parametrize("data, read", readers())
def test_lengths_that_lie_are_refused(data: bytes, read) -> None:
    """A frame_id, or a list, of more bytes than there are."""
    for begin in range(4, len(data) - 3):
        lying = data[:begin] + b"\xff\xff\xff\x7f" + data[begin + 4 :]
        try:
            read(lying)
        except ValueError:
            pass  # anything else would end the process


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    msg = chunk_to_msg(chunk(), CLOCK)
    msg.actions[5] = bad
    with pytest.raises(ValueError, match="not finite"):
        wire.chunk_from_wire(bytes(serialize_message(msg)))
    data = bytes(serialize_message(proprio_to_msg(np.array([0.0, bad]), CLOCK, NS)))
    with pytest.raises(ValueError, match="values is not finite"):
        wire.proprio_from_wire(data)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="action_dim is 4, expected 7"):
        wire.chunk_from_wire(wire.chunk_to_wire(chunk(), CLOCK), 7)
    with pytest.raises(ValueError, match="has 14 values, expected 20"):
        wire.proprio_from_wire(wire.proprio_to_wire(np.ones(14), CLOCK, NS), 20)
    msg = chunk_to_msg(chunk(), CLOCK)
    msg.steps = 2
    with pytest.raises(ValueError, match="actions has 12 values, expected 8"):
        wire.chunk_from_wire(bytes(serialize_message(msg)))
    msg.steps, msg.source = 3, 9
    with pytest.raises(ValueError, match="source is 9, expected 0..3"):
        wire.chunk_from_wire(bytes(serialize_message(msg)))


@pytest.mark.parametrize("frame", [*FRAMES, "größe"])
def test_the_frame_of_a_drivers_bytes_is_read(frame: str) -> None:
    data = serialize_message(PoseStamped(header=header(NS, frame)))
    assert wire.frame_from_wire(data, PoseStamped) == frame
    with pytest.raises(ValueError, match="ends early"):
        wire.frame_from_wire(data[:12], PoseStamped)
