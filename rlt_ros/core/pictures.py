"""Pictures of any camera to small RGB ones, and what is wrong with them. Pure numpy and OpenCV.

OpenCV is imported where it is used: nodes that only hand RGB on need not load it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_PIXELS = 40_000_000  # of a compressed picture: 8K and some; 120 MB when decoded

_SPOILT = 0.99  # part of a picture that must be dark, or blown out, for it to show nothing


class PictureError(ValueError):
    """A picture that cannot be used; the text names what it has, what was expected and what to do."""


@dataclass(frozen=True)
class _Layout:
    """How an encoding lies in memory: bytes a pixel, rows of it a row of the picture, and cv2's code to RGB.

    first: the values of a pixel are colours, so that shrinking before the conversion gives the same, for less.
    even: width and height must be multiples of this.
    """

    channels: int
    code: str
    first: bool = False
    rows: float = 1.0
    even: tuple[int, int] = (1, 1)


# OpenCV names a Bayer pattern by its second row, ROS by its first.
_LAYOUTS = {
    "rgb8": _Layout(3, "", True), "bgr8": _Layout(3, "BGR2RGB", True), "rgba8": _Layout(4, "RGBA2RGB", True),
    "bgra8": _Layout(4, "BGRA2RGB", True), "mono8": _Layout(1, "GRAY2RGB", True),
    "bayer_rggb8": _Layout(1, "BayerBG2RGB"), "bayer_bggr8": _Layout(1, "BayerRG2RGB"),
    "bayer_gbrg8": _Layout(1, "BayerGR2RGB"), "bayer_grbg8": _Layout(1, "BayerGB2RGB"),
    "yuyv": _Layout(2, "YUV2RGB_YUYV", even=(2, 1)), "uyvy": _Layout(2, "YUV2RGB_UYVY", even=(2, 1)),
    "nv12": _Layout(1, "YUV2RGB_NV12", rows=1.5, even=(2, 2)),
    "nv21": _Layout(1, "YUV2RGB_NV21", rows=1.5, even=(2, 2)),
}  # fmt: skip
_ALIASES = {"yuv422_yuy2": "yuyv", "yuv422": "uyvy"}
_DEEP = {name[:-1] + "16" for name in _LAYOUTS if name.endswith("8")}  # the same with two bytes a value
ENCODINGS = (*_LAYOUTS, *sorted(_DEEP), *_ALIASES)


def to_rgb(encoding: str, height: int, width: int, step: int, data: Sequence[int],
           big_endian: bool = False) -> np.ndarray:
    """A raw picture as uint8 [height, width, 3] in RGB order, a copy of its own.

    Args:
        encoding: one of ENCODINGS, the names of sensor_msgs/image_encodings. Of 16 bits the high byte is kept.
        step: bytes a row, padding included. `data` is a buffer of bytes.
        big_endian: of values of 16 bits.

    Raises:
        PictureError: another encoding, or sizes that disagree.
    """
    layout, pixels = _view(encoding, height, width, step, data, big_endian)
    rgb = _convert(pixels, layout)
    return rgb.copy() if not layout.code else rgb


def shrink_raw(encoding: str, height: int, width: int, step: int, data: Sequence[int], size: int,
               crop: Sequence[int] = (), big_endian: bool = False) -> np.ndarray:
    """As `to_rgb`, cut and shrunk to uint8 [size, size, 3] as `shrink` does; the cheapest order of the two is taken."""
    layout, pixels = _view(encoding, height, width, step, data, big_endian)
    if layout.first:
        return _convert(shrink(pixels, size, crop), layout)
    return shrink(_convert(pixels, layout), size, crop)


def shrink(picture: np.ndarray, size: int, crop: Sequence[int] = ()) -> np.ndarray:
    """The centre square of a picture uint8 [h, w] or [h, w, c], or of its part `crop`, as [size, size] or [.., c].

    crop: x, y, width, height [px] of the region of interest; empty: all. PictureError when the picture is too small.
    """
    import cv2

    part = cut(picture, crop)
    if part.shape[:2] == (size, size):
        return np.ascontiguousarray(part)
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


def cut(picture: np.ndarray, crop: Sequence[int] = ()) -> np.ndarray:
    """The part of a picture that `shrink` looks at, a view."""
    left, top, side = _square(picture.shape[1], picture.shape[0], crop)
    return picture[top : top + side, left : left + side]


def _square(width: int, height: int, crop: Sequence[int]) -> tuple[int, int, int]:
    """left, top and side [px] of the centre square of a part of a picture."""
    x, y, w, h = crop or (0, 0, width, height)
    if x + w > width or y + h > height:
        raise PictureError(f"picture is {width}x{height}, too small for crop [{x}, {y}, {w}, {h}] (x, y, width,"
                           " height); change crop or the size that the camera sends")
    side = min(w, h)
    return x + (w - side) // 2, y + (h - side) // 2, side


def _view(encoding: str, height: int, width: int, step: int, data: Sequence[int],
          big_endian: bool) -> tuple[_Layout, np.ndarray]:
    """The layout, and the bytes as [rows, width] or [rows, width, channels] without a copy where there are 8 bits."""
    known = _ALIASES.get(encoding, encoding)
    deep = known in _DEEP
    layout = _LAYOUTS.get(known[:-2] + "8" if deep else known)
    if layout is None:
        raise PictureError(f"image encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)};"
                           " let the camera driver publish one of those")
    row, rows = width * layout.channels * (2 if deep else 1), math.ceil(height * layout.rows)
    if not height or not width or step < row or len(data) != rows * step:
        raise PictureError(f"image {encoding} {width}x{height} has {len(data)} bytes in rows of {step}, expected"
                           f" {rows} rows of at least {row} bytes; the driver's step or data is wrong")
    if width % layout.even[0] or height % layout.even[1]:
        raise PictureError(f"image {encoding} is {width}x{height}, expected multiples of"
                           f" {layout.even[0]}x{layout.even[1]}; let the camera driver send such a size")
    size, high = (2, 0 if big_endian else 1) if deep else (1, 0)
    shape, strides = (rows, width, layout.channels), (step, size * layout.channels, size)
    pixels = np.ndarray(shape, np.uint8, buffer=data, offset=high, strides=strides)
    if deep:
        pixels = np.ascontiguousarray(pixels)  # OpenCV wants the values of a row side by side
    return layout, pixels if layout.channels > 1 else pixels[..., 0]


def _convert(pixels: np.ndarray, layout: _Layout) -> np.ndarray:
    if not layout.code:
        return pixels
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, "COLOR_" + layout.code))


def shrink_compressed(data: bytes, size: int, crop: Sequence[int] = ()) -> np.ndarray:
    """A JPEG or PNG as `shrink` makes it, RGB uint8 [size, size, 3].

    The size is read before anything is decoded. A JPEG is decoded at a half, quarter or eighth where that suffices.

    Raises:
        PictureError: neither JPEG nor PNG, cut off, damaged, or more than MAX_PIXELS.
    """
    import cv2

    kind, width, height = compressed_size(data)
    if not 0 < width * height <= MAX_PIXELS:
        raise PictureError(f"{kind} picture is {width}x{height}, expected at most {MAX_PIXELS / 1e6:g} million pixels;"
                           " let the camera send smaller ones")
    left, top, side = _square(width, height, crop)
    parts = next(n for n in (8, 4, 2, 1) if n == 1 or kind == "JPEG" and side >= n * size
                 and not any(value % n for value in (left, top, side)))
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
             8: cv2.IMREAD_REDUCED_COLOR_8}[parts] | cv2.IMREAD_IGNORE_ORIENTATION  # fmt: skip
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(f"{kind} picture cannot be decoded: {error.err}; look at the driver and its"
                           " network") from None
    if bgr is None or bgr.shape[:2] != (-(-height // parts), -(-width // parts)):
        raise PictureError(f"{kind} picture of {width}x{height} is damaged; look at the driver and the network")
    left, top, side = left // parts, top // parts, side // parts
    return cv2.cvtColor(shrink(bgr[top : top + side, left : left + side], size), cv2.COLOR_BGR2RGB)


def compressed_size(data: bytes) -> tuple[str, int, int]:
    """("JPEG" or "PNG", width, height) of a whole file, from its header; PictureError when it is not one."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        if b"IEND" not in data[-64:]:
            raise PictureError(f"PNG picture of {len(data)} bytes is cut off; look at the driver and the network")
        return "PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] != b"\xff\xd8":
        raise PictureError(f"compressed picture begins with {data[:4].hex(' ') or 'nothing'}, expected JPEG or PNG;"
                           " set the driver's compression format to one of them")
    if b"\xff\xd9" not in data[-64:]:
        raise PictureError(f"JPEG picture of {len(data)} bytes is cut off; look at the driver and the network")
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            return "JPEG", int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker in (0xD9, 0xDA):  # the end, or pixels, without a header before them
            break
        alone = marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise PictureError(f"JPEG picture of {len(data)} bytes has no frame header; look at the driver and the network")


class PictureWatch:
    """Finds pictures of a camera that show nothing new, or nothing.

    Attributes:
        same_s: how long the newest picture has been the same, bit for bit, by the stamps [s].
    """

    def __init__(self, freeze_s: float, dark_level: int, bright_level: int) -> None:
        """freeze_s [s]: the same picture for longer is frozen, 0: never. Levels 0 to 255; 0 and 255: never."""
        self._freeze_s, self._dark, self._bright = freeze_s, dark_level, bright_level
        self._last = b""
        self._since_ns = 0
        self.same_s = 0.0

    def judge(self, picture: np.ndarray, stamp_ns: int) -> str:
        """What is wrong with a picture uint8 [h, w, 3]: `frozen`, `dark`, `bright`, or nothing ("")."""
        pixels = picture.tobytes()
        if pixels != self._last or stamp_ns < self._since_ns:
            self._last, self._since_ns = pixels, stamp_ns
        self.same_s = (stamp_ns - self._since_ns) * 1e-9
        if np.count_nonzero(picture < self._dark) >= _SPOILT * picture.size:
            return "dark"
        if np.count_nonzero(picture > self._bright) >= _SPOILT * picture.size:
            return "bright"
        return "frozen" if self._freeze_s and self.same_s > self._freeze_s else ""
