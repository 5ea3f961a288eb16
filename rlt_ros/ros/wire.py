"""What is sent at the rate of the control or of the cameras, between core's types and the bytes that DDS carries.

rclpy fills and reads a message field by field, which takes a third of what a message costs its process. A node in the
loop subscribes with `raw=True`, publishes bytes, and converts here; whoever else hears the topics gets ordinary
messages. Whatever is not plain little-endian CDR (another rmw, another machine) goes through rclpy.

The layouts are those of msg/ActionChunk.msg, msg/Proprio.msg and so on: CDR aligns each value to its own size, counted from
behind the 4 bytes that say how the rest is written.
"""

from __future__ import annotations

from array import array
from math import isfinite
from struct import Struct, pack, unpack_from
from struct import error as StructError
from typing import Any, NamedTuple

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.observations import TokenFrame
from rlt_ros.msg import ActionChunk, Proprio, RLState
from rlt_ros.ros.conversions import (
    check_chunk,
    check_rgb,
    chunk_from_msg,
    numbers_of,
    proprio_from_msg,
    stamp_ns,
    state_from_msg,
    token_frame,
    vector,
)

_PLAIN = b"\x00\x01"  # little-endian CDR; two bytes of options follow, which are without meaning here
_STAMP = Struct("<iII")  # sec, nanosec, length of frame_id with its final zero
_CHUNK = Struct("<qqIB3xQHHI")  # tick .. action_dim, number of actions
_PROPRIO = Struct("<qI")  # tick, number of values
# The same from the first byte on, with an empty frame_id: that takes a zero, and three to the next multiple of 8.
_WHOLE_CHUNK = Struct("<2sxxiII4xqqIB3xQHHI")
_WHOLE_PROPRIO = Struct("<2sxxiII4xqI")
_NUMBERS = {PoseStamped: Struct("<7d"), TwistStamped: Struct("<6d"), WrenchStamped: Struct("<6d")}
_COUNT = Struct("<I")
_SIZE = Struct("<III")  # height, width, length of encoding with its final zero
_STEP = Struct("<II")  # step, number of bytes
_SECOND_NS = 1_000_000_000


def _behind_header(data: bytes) -> int:
    """Where in `data` the field after the header begins, which is 8 bytes wide."""
    begin = 4 + _STAMP.size + _STAMP.unpack_from(data, 4)[2]
    return begin + (4 - begin) % 8


def _by_rclpy(data: bytes, msg_type: type) -> Any:
    try:
        return deserialize_message(data, msg_type)
    except Exception as error:  # rmw's own, which says little
        raise ValueError(f"{msg_type.__name__} of {len(data)} bytes cannot be read: {error}") from None


def numbers_from_wire(data: bytes, msg_type: type) -> tuple[int, tuple[float, ...]]:
    """The bytes of a driver's pose, twist or wrench: (stamp in ns, numbers_of the message); ValueError as below."""
    if data[:2] != _PLAIN:
        msg = _by_rclpy(data, msg_type)
        return stamp_ns(msg.header.stamp), numbers_of(msg)
    try:
        sec, nanosec, _ = _STAMP.unpack_from(data, 4)
        return sec * _SECOND_NS + nanosec, _NUMBERS[msg_type].unpack_from(data, _behind_header(data))
    except StructError as error:
        raise ValueError(f"{msg_type.__name__} of {len(data)} bytes ends early: {error}") from None


def frame_from_wire(data: bytes, msg_type: type) -> str:
    """The frame_id of the same bytes."""
    if data[:2] != _PLAIN:
        return _by_rclpy(data, msg_type).header.frame_id
    try:
        begin = 4 + _STAMP.size
        return data[begin : begin + _STAMP.unpack_from(data, 4)[2] - 1].decode(errors="replace")
    except StructError as error:
        raise ValueError(f"{msg_type.__name__} of {len(data)} bytes ends early: {error}") from None


def chunk_from_wire(data: bytes, action_dim: int | None = None) -> Chunk:
    """The bytes of an ActionChunk as chunk_from_msg gives it; ValueError when they end early, too."""
    if data[:2] != _PLAIN:
        return chunk_from_msg(_by_rclpy(data, ActionChunk), action_dim)
    try:
        begin = _behind_header(data)
        tick, observation_tick, episode, source, version, steps, width, count = _CHUNK.unpack_from(data, begin)
        values = unpack_from(f"<{count}f", data, begin + _CHUNK.size)
    except StructError as error:
        raise ValueError(f"ActionChunk of {len(data)} bytes ends early: {error}") from None
    check_chunk(tick, source, steps, width, count, action_dim)
    # Without a step there are no rows that would tell how wide it is.
    rows = tuple([values[i : i + width] for i in range(0, count, width)]) or np.zeros((0, width))
    return Chunk(tick, rows, observation_tick, Source(source), episode, version)


def chunk_to_wire(chunk: Chunk, clock: ControlClock) -> bytes:
    """The bytes of chunk_to_msg(chunk, clock)."""
    return _WHOLE_CHUNK.pack(
        _PLAIN, *divmod(clock.stamp_ns(chunk.tick), _SECOND_NS), 1, chunk.tick, chunk.observation_tick, chunk.episode,
        chunk.source, chunk.policy_version, chunk.steps, chunk.action_dim, chunk.steps * chunk.action_dim,
    ) + chunk.packed()  # fmt: skip


def proprio_from_wire(data: bytes, size: int | None = None) -> tuple[int, tuple[float, ...]]:
    """The bytes of a Proprio: (tick, values [P], SI); ValueError as of proprio_from_msg, or when they end early."""
    if data[:2] != _PLAIN:
        tick, numbers = proprio_from_msg(_by_rclpy(data, Proprio), size)
        return tick, tuple(numbers.tolist())
    try:
        begin = _behind_header(data)
        tick, count = _PROPRIO.unpack_from(data, begin)
        values = unpack_from(f"<{count}f", data, begin + _PROPRIO.size)
    except StructError as error:
        raise ValueError(f"Proprio of {len(data)} bytes ends early: {error}") from None
    if count != size is not None or not isfinite(sum(values)):
        vector(f"Proprio at tick {tick}: values", values, size)  # says what is wrong
    return tick, values


def proprio_to_wire(values: np.ndarray, clock: ControlClock, ns: int) -> bytes:
    """The bytes of proprio_to_msg(values, clock, ns)."""
    return _WHOLE_PROPRIO.pack(_PLAIN, *divmod(ns, _SECOND_NS), 1, clock.tick(ns), len(values)) + pack(
        f"<{len(values)}f", *values.tolist()
    )


def state_from_wire(data: bytes, token_dim: int | None = None, proprio_dim: int | None = None) -> TokenFrame:
    """The bytes of an RLState as state_from_msg gives it; ValueError when they end early, too."""
    if data[:2] != _PLAIN:
        return state_from_msg(_by_rclpy(data, RLState), token_dim, proprio_dim)
    try:
        begin = _behind_header(data)
        tick, count = _PROPRIO.unpack_from(data, begin)
        begin += _PROPRIO.size
        token = np.frombuffer(data, "<f4", count, begin)
        begin += 4 * count
        proprio = np.frombuffer(data, "<f4", _COUNT.unpack_from(data, begin)[0], begin + 4)
    except (StructError, ValueError) as error:
        raise ValueError(f"RLState of {len(data)} bytes ends early: {error}") from None
    return token_frame(tick, token, proprio, token_dim, proprio_dim)


def state_to_wire(frame: TokenFrame, ns: int) -> bytes:
    """The bytes of an RLState of a frame that was taken at ROS time `ns`."""
    token, proprio = frame.token.astype("<f4", copy=False), frame.proprio.astype("<f4", copy=False)
    head = _WHOLE_PROPRIO.pack(_PLAIN, *divmod(ns, _SECOND_NS), 1, frame.tick, token.size)
    return b"".join((head, token.tobytes(), _COUNT.pack(proprio.size), proprio.tobytes()))


class WireImage(NamedTuple):
    """An Image message, as far as anybody reads it; its fields are called as there."""

    ns: int
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview | array


def image_from_wire(data: bytes) -> WireImage:
    """The bytes of an Image, without a copy of its pixels; ValueError when they end early."""
    if data[:2] != _PLAIN:
        m = _by_rclpy(data, Image)
        return WireImage(stamp_ns(m.header.stamp), m.header.frame_id, m.height, m.width, m.encoding, m.is_bigendian,
                         m.step, m.data)  # fmt: skip
    try:
        sec, nanosec, length = _STAMP.unpack_from(data, 4)
        begin = 4 + _STAMP.size
        frame_id = data[begin : begin + length - 1].decode("utf-8", "replace")
        begin += length
        begin += -begin % 4
        height, width, length = _SIZE.unpack_from(data, begin)
        begin += _SIZE.size
        encoding, is_bigendian = data[begin : begin + length - 1].decode("utf-8", "replace"), data[begin + length]
        begin += length + 1
        begin += -begin % 4
        step, count = _STEP.unpack_from(data, begin)
    except (StructError, IndexError) as error:
        raise ValueError(f"Image of {len(data)} bytes ends early: {error}") from None
    begin += _STEP.size
    if count > len(data) - begin:
        raise ValueError(f"Image of {len(data)} bytes ends early: it says that {count} of them are pixels")
    pixels = memoryview(data)[begin : begin + count]
    return WireImage(sec * _SECOND_NS + nanosec, frame_id, height, width, encoding, is_bigendian, step, pixels)


def image_to_wire(rgb: np.ndarray, ns: int, frame_id: str = "") -> bytes:
    """The bytes of image_to_msg(rgb, ns, frame_id)."""
    check_rgb(rgb)
    height, width, _ = rgb.shape
    name = frame_id.encode() + b"\0"
    head = _PLAIN + b"\0\0" + _STAMP.pack(*divmod(ns, _SECOND_NS), len(name)) + name
    head += bytes(-len(head) % 4) + _SIZE.pack(height, width, 5) + b"rgb8\0\0"  # the last one: is_bigendian
    head += bytes(-len(head) % 4) + _STEP.pack(3 * width, rgb.size)
    return head + rgb.tobytes()
