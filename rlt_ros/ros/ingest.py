"""Drivers' messages to the ingest of core: what the nodes do live and `rlt demos import` does with a recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from rlt_ros.core import pictures
from rlt_ros.core.proprioception import ProprioAssembler


def small_picture(msg: Image | CompressedImage, size: int, crop: Sequence[int] = ()) -> np.ndarray:
    """A message's picture as uint8 [size, size, 3] in RGB order; PictureError when it is malformed."""
    if isinstance(msg, CompressedImage):
        return pictures.shrink_compressed(msg.data.tobytes(), size, crop)
    return pictures.shrink_raw(msg.encoding, msg.height, msg.width, msg.step, msg.data, size, crop,
                               bool(msg.is_bigendian))


def add_reading(assembler: ProprioAssembler, stream: str, msg: Any, tick: int, ns: int) -> None:
    """A message of the stream pose, twist, wrench or joint_states into the assembler; ProprioError."""
    if stream == "pose":
        p, q = msg.pose.position, msg.pose.orientation
        assembler.add_pose(tick, ns, (p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
    elif stream == "twist":
        v = msg.twist.linear
        assembler.add_twist(tick, ns, (v.x, v.y, v.z), msg.twist.angular.z)
    elif stream == "wrench":
        f, t = msg.wrench.force, msg.wrench.torque
        assembler.add_wrench(tick, ns, (f.x, f.y, f.z), (t.x, t.y, t.z))
    else:
        assembler.add_joint_states(tick, ns, msg.name, msg.position, msg.velocity)
