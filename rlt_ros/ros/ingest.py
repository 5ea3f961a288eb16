"""Drivers' messages to the ingest of core: what the nodes do live and `rlt demos import` does with a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from rlt_ros.core import pictures
from rlt_ros.core.proprioception import ProprioAssembler
from rlt_ros.ros.conversions import numbers_of
from rlt_ros.ros.wire import WireImage


def small_picture(msg: Image | WireImage | CompressedImage, size: int, crop: Sequence[int] = ()) -> np.ndarray:
    """A message's picture as uint8 [size, size, 3] in RGB order; PictureError when it is malformed."""
    if isinstance(msg, CompressedImage):
        return pictures.shrink_compressed(msg.data.tobytes(), size, crop)
    return pictures.shrink_raw(msg.encoding, msg.height, msg.width, msg.step, msg.data, size, crop,
                               bool(msg.is_bigendian))


def add_reading(assembler: ProprioAssembler, stream: str, msg: Any, tick: int, ns: int) -> None:
    """A message of the stream pose, twist, wrench or joint_states into the assembler; ProprioError."""
    if stream == "joint_states":
        assembler.add_joint_states(tick, ns, msg.name, msg.position, msg.velocity)
    else:
        add_numbers(assembler, stream, numbers_of(msg), tick, ns)


def add_numbers(
    assembler: ProprioAssembler, stream: str, numbers: tuple[float, ...], tick: int, ns: int
) -> None:
    """The numbers of a pose, twist or wrench likewise."""
    if stream == "pose":
        assembler.add_pose(tick, ns, numbers[:3], numbers[3:])
    elif stream == "twist":
        assembler.add_twist(tick, ns, numbers[:3], numbers[5])
    else:
        assembler.add_wrench(tick, ns, numbers[:3], numbers[3:])
