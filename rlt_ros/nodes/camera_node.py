"""Camera ingestion: big pictures of any driver in, small RGB pictures out."""

import time
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import Image

from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_from_msg, image_to_msg, stamp_ns
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task


class CameraNode(RltNode):
    """Shrink every camera's pictures to what the VLA looks at, so that big ones stay out of Python's other processes.

    Subscribes: driver/<camera>/image (Image: rgb8, bgr8, rgba8, bgra8 or mono8).
    Publishes: camera/<camera>/image (Image, rgb8, stamped as the driver's).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        image_size: int = parameter(96, "side of the published square picture", unit="px", low=8, high=1024)
        max_silence_s: float = parameter(1.0, "a camera that is silent for longer is reported", unit="s", low=0.0)

    def on_configure_(self) -> None:
        self.heard_s: dict[str, float] = {}
        self.outputs = {}
        for name in load_task(self.params.task).cameras:
            self.heard_s[name] = time.monotonic()
            self.outputs[name] = self.publish(Image, f"camera/{name}/image", qos.SENSOR)
            self.subscribe(Image, f"driver/{name}/image", lambda msg, name=name: self.on_image(name, msg), qos.SENSOR)
        self.every(0.5, self.report_silence)

    def on_image(self, name: str, msg: Image) -> None:
        try:
            picture = image_from_msg(msg)
        except ValueError as error:
            raise ValueError(f"camera '{name}': {error}") from None
        self.heard_s[name] = time.monotonic()
        picture = square(picture, self.params.image_size)
        self.outputs[name].publish(image_to_msg(picture, stamp_ns(msg.header.stamp), msg.header.frame_id))

    def report_silence(self) -> None:
        now_s = time.monotonic()
        silent = [
            f"camera '{name}' has sent no usable picture on driver/{name}/image for {now_s - heard:.1f} s"
            for name, heard in self.heard_s.items()
            if now_s - heard > self.params.max_silence_s
        ]
        if silent and not self.problem:
            self.get_logger().warning("; ".join(silent))
        self.problem = "; ".join(silent)


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The centre of a picture uint8 [h, w, 3] as [size, size, 3]."""
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return cv2.resize(picture[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
