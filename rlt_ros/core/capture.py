"""Pictures straight from a device, a video file or a folder, through OpenCV, in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".tif", ".tiff"}  # suffixes of a folder's pictures
_USUAL_HZ = 30.0  # of a file that does not say


class CaptureError(ValueError):
    """A source that cannot be opened; the text names it and says what to do."""


@dataclass(frozen=True)
class Wanted:
    """What to read and how; 0 or "" leaves it to the source.

    source: device (/dev/video0, an index, or a URL that OpenCV opens), video file, or folder of pictures.
    width, height [px], fps [1/s], fourcc (pixel format on the wire, such as MJPG): asked of a device, which may give
    others. fps: for a file the speed at which it is played.
    loop: begin again at a file's end.
    """

    source: str
    width: int = 0
    height: int = 0
    fps: float = 0.0
    fourcc: str = ""
    loop: bool = True


class Source(Protocol):
    """An opened device or file."""

    period_s: float  # between pictures that are played; 0: the source itself waits for the next
    told: str  # what it gives, in words

    def read(self) -> tuple[np.ndarray, float] | None:
        """(picture uint8 [h, w, 3] in BGR order, its age in s), or None at the end or when the device is gone."""

    def close(self) -> None:
        """Let it go."""


class DeviceSource:
    """A device that OpenCV opens. Raises CaptureError when it is not there or busy."""

    period_s = 0.0

    def __init__(self, wanted: Wanted) -> None:
        import cv2

        path = Path(wanted.source)
        if path.is_absolute() and not path.exists():  # OpenCV would wait and write lines to the terminal
            raise CaptureError(f"device {wanted.source} is not there; plug it in, or look for it with: ls /dev/video*")
        where = int(wanted.source) if wanted.source.isdecimal() else wanted.source
        self._capture = cv2.VideoCapture(where, cv2.CAP_V4L2 if path.is_char_device() else cv2.CAP_ANY)
        if not self._capture.isOpened():
            self._capture.release()
            raise CaptureError(f"device {wanted.source} does not open; is another program using it, and are you in its"
                               " group (video)?")
        # The pixel format first: it decides which sizes and rates there are.
        for name, value in (("FOURCC", cv2.VideoWriter_fourcc(*wanted.fourcc) if wanted.fourcc else 0),
                            ("FRAME_WIDTH", wanted.width), ("FRAME_HEIGHT", wanted.height), ("FPS", wanted.fps),
                            ("BUFFERSIZE", 1)):
            if value:
                self._capture.set(getattr(cv2, "CAP_PROP_" + name), value)
        self._msec = cv2.CAP_PROP_POS_MSEC if self._capture.getBackendName() == "V4L2" else None
        get = self._capture.get
        self.told = (f"{get(cv2.CAP_PROP_FRAME_WIDTH):.0f}x{get(cv2.CAP_PROP_FRAME_HEIGHT):.0f}"
                     f" at {get(cv2.CAP_PROP_FPS):g} Hz")

    def read(self) -> tuple[np.ndarray, float] | None:
        if not self._capture.grab():
            return None
        now_s = time.monotonic()
        age_s = driver_age_s(self._capture.get(self._msec), now_s) if self._msec is not None else 0.0
        good, picture = self._capture.retrieve()
        return (picture, age_s + time.monotonic() - now_s) if good else None

    def close(self) -> None:
        self._capture.release()


def driver_age_s(driver_ms: float, now_s: float) -> float:
    """Age of a picture [s] by V4L2's stamp, where that counts on this machine's monotonic clock; else 0."""
    age_s = now_s - driver_ms * 1e-3
    return age_s if 0.0 <= age_s < 1.0 else 0.0


class VideoSource:
    """A video file, played at its own speed or at `fps`. Raises CaptureError when OpenCV cannot read it."""

    def __init__(self, wanted: Wanted) -> None:
        import cv2

        self._capture = cv2.VideoCapture(wanted.source)
        if not self._capture.isOpened():
            raise CaptureError(f"video file {wanted.source} does not open; expected one that OpenCV reads (mp4, avi)")
        rate_hz = wanted.fps or self._capture.get(cv2.CAP_PROP_FPS) or _USUAL_HZ
        self.period_s = 1.0 / rate_hz
        self.told = f"{wanted.source} at {rate_hz:g} Hz"

    def read(self) -> tuple[np.ndarray, float] | None:
        good, picture = self._capture.read()
        return (picture, 0.0) if good else None

    def close(self) -> None:
        self._capture.release()


class FolderSource:
    """The pictures of a folder in the order of their names, at `fps` or 30 a second. CaptureError without any."""

    def __init__(self, wanted: Wanted) -> None:
        self._files = sorted(path for path in Path(wanted.source).iterdir() if path.suffix.lower() in PICTURES)
        if not self._files:
            raise CaptureError(f"folder {wanted.source} has no pictures; expected files ending in"
                               f" {', '.join(sorted(PICTURES))}")
        self._next = 0
        self.period_s = 1.0 / (wanted.fps or _USUAL_HZ)
        self.told = f"{len(self._files)} pictures of {wanted.source} at {1 / self.period_s:g} Hz"

    def read(self) -> tuple[np.ndarray, float] | None:
        import cv2

        if self._next == len(self._files):
            return None
        file = self._files[self._next]
        self._next += 1
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:
            raise CaptureError(f"picture {file} cannot be read; it is damaged, or gone: take it out of the folder")
        return picture, 0.0

    def close(self) -> None:
        """Nothing is open."""


def file_source(wanted: Wanted) -> Source:
    """The source of a file or folder; CaptureError when it is not there or unreadable."""
    path = Path(wanted.source)
    if not path.exists():
        raise CaptureError(f"source {wanted.source!r} is not there; expected a video file or a folder of pictures")
    return FolderSource(wanted) if path.is_dir() else VideoSource(wanted)


class Capture:
    """Reads a source in a thread of its own from start() to close(), and opens it again when it is gone.

    Attributes:
        trouble: why there are no pictures now, or "".
        told: what the source gives, once it is open.
        reconnects: times that it was opened again after it had vanished.
    """

    def __init__(self, wanted: Wanted, open_source: Callable[[Wanted], Source],
                 deliver: Callable[[np.ndarray, float], None], on_error: Callable[[BaseException], None],
                 retry_s: float = 1.0) -> None:
        """`deliver(picture, age_s)` is called for each; `on_error` gets what ends the thread."""
        self._wanted, self._open, self._deliver, self._on_error = wanted, open_source, deliver, on_error
        self._retry_s = retry_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self.trouble = self.told = ""
        self.reconnects = 0

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Stop; a driver that does not return from its read is left alone with its thread after `timeout_s`."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        opened = False
        try:
            while not self._stop.is_set():
                try:
                    source = self._open(self._wanted)
                except CaptureError as error:
                    self.trouble = str(error)
                    self._stop.wait(self._retry_s)
                    continue
                self.reconnects += opened and not source.period_s
                opened, self.told = True, source.told
                try:
                    count = self._play(source)
                finally:
                    source.close()
                if source.period_s and not self._wanted.loop:
                    self.trouble = f"{self._wanted.source} has ended; set loop: true to play it again"
                    return
                if not source.period_s and not self._stop.is_set():
                    self.trouble = f"device {self._wanted.source} has gone; it is opened again when it is back"
                if not source.period_s or not count:
                    self._stop.wait(self._retry_s)
        except BaseException as error:
            self._on_error(error)

    def _play(self, source: Source) -> int:
        """Hand on pictures until there are no more; how many there were."""
        count, due_s = 0, time.monotonic()
        while not self._stop.is_set():
            try:
                seen = source.read()
            except CaptureError as error:
                self.trouble = str(error)
                return count
            if seen is None:
                return count
            count += 1
            self.trouble = ""
            self._deliver(*seen)
            # Played to absolute deadlines; a source that cannot keep up is not hurried afterwards.
            due_s = max(due_s + source.period_s, time.monotonic() - source.period_s)
            self._stop.wait(max(0.0, due_s - time.monotonic()) if source.period_s else 0.0)
        return count
