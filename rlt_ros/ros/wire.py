"""What every control tick sends, between core's types and the bytes that DDS carries.

rclpy fills and reads a message field by field, which takes a third of what a message costs its process. A node in the
loop subscribes with `raw=True`, publishes bytes, and converts here; whoever else hears the topics gets ordinary
messages. Whatever is not plain little-endian CDR (another rmw, another machine) goes through rclpy.

The layouts are those of msg/ActionChunk.msg, msg/Proprio.msg and geometry_msgs: CDR aligns each value to its own size, counted from
behind the 4 bytes that say how the rest is written.
"""

from __future__ import annotations

from itertools import chain
from math import isfinite
from struct import Struct, pack, unpack_from
from struct import error as StructError
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.serialization import deserialize_message

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.msg import ActionChunk, Proprio
from rlt_ros.ros.conversions import check_chunk, chunk_from_msg, numbers_of, proprio_from_msg, stamp_ns, vector

_PLAIN = b"\x00\x01"  # little-endian CDR; two bytes of options follow, which are without meaning here
_STAMP = Struct("<iII")  # sec, nanosec, length of frame_id with its final zero
_CHUNK = Struct("<qqIB3xQHHI")  # tick .. action_dim, number of actions
_PROPRIO = Struct("<qI")  # tick, number of values
# The same from the first byte on, with an empty frame_id: that takes a zero, and three to the next multiple of 8.
_WHOLE_CHUNK = Struct("<2sxxiII4xqqIB3xQHHI")
_WHOLE_PROPRIO = Struct("<2sxxiII4xqI")
_NUMBERS = {PoseStamped: Struct("<7d"), TwistStamped: Struct("<6d"), WrenchStamped: Struct("<6d")}
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
    count = chunk.steps * chunk.action_dim
    return _WHOLE_CHUNK.pack(
        _PLAIN, *divmod(clock.stamp_ns(chunk.tick), _SECOND_NS), 1, chunk.tick, chunk.observation_tick, chunk.episode,
        chunk.source, chunk.policy_version, chunk.steps, chunk.action_dim, count,
    ) + pack(f"<{count}f", *chain.from_iterable(chunk.rows))  # fmt: skip


def proprio_from_wire(data: bytes, size: int | None = None) -> tuple[int, tuple[float, ...]]:
    """The bytes of a Proprio: (tick, values [P], SI); ValueError as of proprio_from_msg, or when they end early."""
    if data[:2] != _PLAIN:
        tick, array = proprio_from_msg(_by_rclpy(data, Proprio), size)
        return tick, tuple(array.tolist())
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
