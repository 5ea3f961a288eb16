"""Camera ingestion: big pictures of any driver, device or file in, small RGB pictures out."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from rlt_ros.core import pictures
from rlt_ros.core.capture import Capture, CaptureError, DeviceSource, Wanted, file_source
from rlt_ros.core.ingest import CameraIngest
from rlt_ros.core.streams import StampError, Troubles
from rlt_ros.ros import parameters, qos
from rlt_ros.ros.conversions import stamp_ns
from rlt_ros.ros.ingest import small_picture
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.wire import image_from_wire, image_to_wire
from rlt_ros.sim.task import load_task

# What is said of a picture that is refused.
_SAYS = {
    "frozen": "repeats the same picture, bit for bit, for {same_s:.2f} s; look at its driver, or set its freeze_s to 0"
    " if it has no noise",
    "dark": "is black; look at its cap, the light and its exposure",
    "bright": "is blown out; look at the light and its exposure",
}


@dataclass(frozen=True, kw_only=True)
class CameraParameters:
    """What can be said of one camera, as cameras.<name>.<parameter>, or of all."""

    transport: str = parameter("raw", "where the pictures come from: driver/<camera>/image,"
                               " driver/<camera>/image/compressed, or `source` through OpenCV",
                               choices=("raw", "compressed", "device", "file"))
    source: str = parameter("", "device (/dev/video0, an index, a URL), or video file or folder of pictures")
    width: int = parameter(0, "asked of a device; 0: its own", unit="px", low=0)
    height: int = parameter(0, "asked of a device; 0: its own", unit="px", low=0)
    fps: float = parameter(0.0, "asked of a device, or speed at which a file is played; 0: its own", unit="Hz", low=0.0)
    fourcc: str = parameter("", "pixel format asked of a device, such as MJPG; empty: its own")
    loop: bool = parameter(True, "begin a file again at its end")
    crop: list[int] = parameter([], "x, y, width, height of the part that is looked at; empty: all", unit="px", low=0)
    max_silence_s: float = parameter(1.0, "a camera that is silent for longer is reported", unit="s", low=0.0)
    freeze_s: float = parameter(0.25, "the same picture, bit for bit, for longer is refused; 0: off", unit="s", low=0.0)
    dark_level: int = parameter(10, "a picture whose values are all darker is refused; 0: off", low=0, high=255)
    bright_level: int = parameter(250, "a picture whose values are all brighter is refused; 255: off", low=0, high=255)
    max_ahead_s: float = parameter(0.1, "a picture stamped further in the future is refused", unit="s", low=0.0)
    max_delay_s: float = parameter(0.1, "pictures older than this on arrival are reported", unit="s", low=0.0)
    max_loss: float = parameter(0.1, "a larger part of the pictures missing is reported", low=0.0, high=1.0)


def _raise(error: Exception) -> Any:
    raise error


class Camera:
    """One camera's settings, watches and counts."""

    def __init__(self, name: str, settings: CameraParameters, shortest_ns: int, advice: str) -> None:
        self.name, self.settings = name, settings
        self.ingest = CameraIngest(shortest_ns, settings.max_ahead_s, settings.freeze_s, settings.dark_level,
                                   settings.bright_level, advice)
        self.stamps, self.watch, self.refused = self.ingest.stamps, self.ingest.watch, self.ingest.refused
        self.troubles = Troubles()
        self.heard_s = 0.0  # by the node's now_s()
        self.output: Any = None
        self.capture: Capture | None = None

    @property
    def place(self) -> str:
        """Where its pictures come from, in words."""
        suffix = {"raw": "", "compressed": "/compressed"}.get(self.settings.transport)
        return self.settings.source if suffix is None else f"driver/{self.name}/image{suffix}"

    def note(self, kind: str, text: str, now_s: float) -> None:
        self.troubles.note(kind, f"camera '{self.name}' {text}", now_s)


class CameraNode(RltNode):
    """Shrink every camera's pictures to what the VLA looks at, so that big ones stay out of Python's other processes.

    Subscribes, as `transport` says: driver/<camera>/image (Image), driver/<camera>/image/compressed (CompressedImage).
    Publishes: camera/<camera>/image (Image, rgb8, with the stamp of the driver's), nothing of what is refused.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(CameraParameters, SharedParameters):
        image_size: int = parameter(96, "side of the published square picture", unit="px", low=8, high=1024)
        cameras: dict = parameter({}, "cameras.<name>.<any parameter of one camera>: what differs for that camera")

    def on_configure_(self) -> None:
        cv2.setNumThreads(1)  # pictures are small work: more threads cost more than they save
        names = list(load_task(self.params.task).cameras)
        unknown = sorted(set(self.params.cameras) - set(names))
        if unknown:
            raise ParameterError(f"parameter 'cameras.{unknown[0]}': the task '{self.params.task}' has no such camera,"
                                 f" expected one of {', '.join(names)}")
        shortest_ns = self.control.period_ns // 2
        self.cameras = {name: Camera(name, self.settings(name), shortest_ns, self.clock_advice) for name in names}
        for name, camera in self.cameras.items():
            camera.output = self.publish(Image, f"camera/{name}/image", qos.SENSOR)
            if camera.settings.transport == "raw":
                self.subscribe(Image, camera.place, self.using_raw(camera), qos.SENSOR, raw=True)
            elif camera.settings.transport == "compressed":
                self.subscribe(CompressedImage, camera.place, self.using(camera), qos.SENSOR)
        self.every(0.5, self.report)

    def settings(self, name: str) -> CameraParameters:
        """What holds for a camera: its own, else what is said of all; ParameterError when it is wrong."""
        owner, p = f"{self.get_name()}: cameras.{name}", self.params
        usual = {field.name: getattr(p, field.name) for field in dataclasses.fields(CameraParameters)}
        found = parameters.build(CameraParameters, usual | p.cameras.get(name, {}), owner)
        if found.crop and (len(found.crop) != 4 or not found.crop[2] * found.crop[3]):
            raise ParameterError(f"{owner}: parameter 'crop' is {found.crop}, expected [x, y, width, height] in px")
        if found.fourcc and len(found.fourcc) != 4:
            raise ParameterError(f"{owner}: parameter 'fourcc' is {found.fourcc!r}, expected four letters such as MJPG")
        if found.transport in ("device", "file") and not found.source:
            raise ParameterError(f"{owner}: parameter 'source' is empty, expected the {found.transport} to read;"
                                 f" it is required with transport '{found.transport}'")
        if found.transport == "file":  # a device may be plugged in later, a file that is not there is a slip of the pen
            try:
                file_source(self.wanted(found)).close()
            except CaptureError as error:
                raise ParameterError(f"{owner}: {error}") from None
        return found

    @staticmethod
    def wanted(settings: CameraParameters) -> Wanted:
        return Wanted(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Wanted)})

    def on_activate_(self) -> None:
        for camera in self.cameras.values():
            camera.heard_s = self.now_s()
            if camera.settings.transport in ("device", "file"):
                opener = DeviceSource if camera.settings.transport == "device" else file_source
                camera.capture = Capture(self.wanted(camera.settings), opener, self.taking(camera), self.fail)
                self.on_undo(camera.capture.close)
                camera.capture.start()

    def using_raw(self, camera: Camera) -> Callable[[bytes], None]:
        """The same of a raw picture, whose pixels are not copied before they are shrunk."""
        size, crop = self.params.image_size, camera.settings.crop

        def use(data: bytes) -> None:
            msg = image_from_wire(data)
            self.take(camera, msg.ns, msg.frame_id, lambda: small_picture(msg, size, crop))

        return use

    def using(self, camera: Camera) -> Callable[[Any], None]:
        """What is done with each message of a camera."""
        size, crop = self.params.image_size, camera.settings.crop

        def use(msg: Any) -> None:
            self.take(camera, stamp_ns(msg.header.stamp), msg.header.frame_id, lambda: small_picture(msg, size, crop))

        return use

    def taking(self, camera: Camera) -> Callable[[np.ndarray, float], None]:
        """What is done with each picture of a capture, in its thread."""

        def take(bgr: np.ndarray, age_s: float) -> None:
            ns = self.now_ns() - round(age_s * 1e9)
            # The work is done before the lock is taken; what went wrong is raised again where it is counted.
            try:
                small = pictures.shrink(bgr, self.params.image_size, camera.settings.crop)
                rgb = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB if small.ndim == 2 else cv2.COLOR_BGR2RGB)
                answer = lambda: rgb  # noqa: E731
            except ValueError as error:
                answer = functools.partial(_raise, error)
            with self._lock:
                if not self.active:
                    return
                try:
                    self.take(camera, ns, camera.name, answer)
                except ValueError as error:
                    self.reject(camera.place, error)

        return take

    def take(self, camera: Camera, ns: int, frame_id: str, small: Callable[[], np.ndarray]) -> None:
        """Publish a picture of ROS time `ns`, unless something is wrong with it; ValueError when it is malformed."""
        now_s = self.now_s()
        try:
            picture, wrong = camera.ingest.take(ns, self.now_ns(), small)
        except StampError as error:
            camera.note(error.kind, f"on {camera.place}: {error}", now_s)
            return
        except ValueError as error:
            camera.note("malformed", f"on {camera.place}: {error}", now_s)
            raise ValueError(f"camera '{camera.name}': {error}") from None
        if wrong == "too_many":
            return
        camera.heard_s = now_s
        if picture is None:
            camera.note(wrong, _SAYS[wrong].format(same_s=camera.watch.same_s) + "; its pictures are refused", now_s)
            return
        camera.output.publish(image_to_wire(picture, ns, frame_id))

    def report(self) -> None:
        now_s, found = self.now_s(), []
        for camera in self.cameras.values():
            self.look_at(camera, now_s)
            for kind, text in camera.troubles.news(now_s).items():
                if kind != "malformed":  # the base has logged it
                    self.get_logger().warning(text)
            found += camera.troubles.current(now_s).values()
        self.problem = "; ".join(found)

    def look_at(self, camera: Camera, now_s: float) -> None:
        """Note what is seen over many pictures only."""
        s, stamps = camera.settings, camera.stamps
        if camera.capture is not None and camera.capture.trouble:
            camera.note("gone", f"has no pictures: {camera.capture.trouble}", now_s)
        if now_s - camera.heard_s > s.max_silence_s:
            camera.note("silent", f"has sent no usable picture on {camera.place} for {now_s - camera.heard_s:.1f} s;"
                        " look at its driver and its remapping", now_s)
            return
        if stamps.delay_s > s.max_delay_s:
            camera.note("delay", f"sends pictures that are {stamps.delay_s:.3f} s old on arrival, more than max_delay_s"
                        f" ({s.max_delay_s:g} s); {self.clock_advice} or find what delays it", now_s)
        if stamps.loss > s.max_loss:
            camera.note("loss", f"loses {100 * stamps.loss:.0f} % of its pictures, more than max_loss ({s.max_loss:g});"
                        " look at its cable, the network and the processor's load; big raw pictures need"
                        " config/fastdds.xml", now_s)

    def on_diagnostics_(self) -> dict:
        values: dict = {}
        for name, camera in self.cameras.items():
            stamps = camera.stamps
            values |= {f"{name} rate_hz": round(stamps.rate_hz, 1), f"{name} delay_ms": round(stamps.delay_s * 1e3, 1),
                       f"{name} lost": stamps.lost, f"{name} same_s": round(camera.watch.same_s, 2)}
            values |= {f"{name} refused_{kind}": count for kind, count in (camera.refused + stamps.refused).items()}
            if camera.capture is not None:
                values |= {f"{name} reconnects": camera.capture.reconnects, f"{name} source": camera.capture.told}
        return values
