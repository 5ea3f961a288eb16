"""Video files through PyAV: pictures at given times, and files that are written picture by picture."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Codecs whose pictures between two key pictures need nothing from outside, but for the open groups that are looked for.
_GROUPED = {"h264", "av1", "vp9", "mpeg4", "mjpeg"}


class VideoError(ValueError):
    """A video that cannot be read; `frame` is how many of the wanted pictures came before that."""

    def __init__(self, text: str, frame: int) -> None:
        super().__init__(text)
        self.frame = frame


class Video:
    """One video file. VideoError when it does not open.

    Attributes:
        width, height: of its pictures [px].
    """

    def __init__(self, path: Path) -> None:
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError, OSError) as error:
            raise VideoError(
                f"the video does not open ({error}); it is cut off or damaged: fetch it again", 0
            ) from None
        self.width, self.height = self._stream.codec_context.width, self._stream.codec_context.height
        self._stream.codec_context.thread_count = 1  # episodes are read side by side; a frame in flight delays a jump
        self._stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a picture made up
        self._grouped = self._stream.codec_context.codec.canonical_name in _GROUPED
        self._unit_s = float(self._stream.time_base)
        self._to_rgb = VideoReformatter()  # a new one for each picture would take six times as long

    def close(self) -> None:
        self._container.close()

    def pictures(self, times_s: Sequence[float], tolerance_s: float) -> Iterator[np.ndarray]:
        """RGB uint8 [h, w, 3] at each of the times, which grow; VideoError where there is none within the tolerance.

        What lies between is not decoded where the file allows that.
        """
        times, at = list(times_s), 0
        try:
            for seconds, frame in self.frames(times, tolerance_s):
                picture = None
                while at < len(times) and times[at] <= seconds + tolerance_s:
                    if times[at] < seconds - tolerance_s:
                        raise VideoError(
                            f"the video has no picture at {times[at]:.4f} s; it was cut or frames were dropped",
                            at,
                        )
                    if picture is None:
                        picture = _view(self._to_rgb.reformat(frame, format="rgb24"))
                    at += 1
                    yield picture
                if at == len(times):
                    return
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"the video cannot be decoded after {times[at]:.4f} s ({error}); it is damaged: fetch it again", at
            ) from None
        if at < len(times):
            raise VideoError(f"the video ends before {times[at]:.4f} s; it is cut off: fetch it again", at)

    def frames(self, times: list[float], tolerance_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time [s], frame as it was decoded) of at least the wanted ones that are there, in their order."""
        if not times:
            return
        codec, fresh, wanted = self._stream.codec_context, True, 0
        self._container.seek(max(0, int((times[0] - tolerance_s) / self._unit_s)), stream=self._stream, backward=True)
        codec.flush_buffers()
        for group in self._groups():
            stamps = [packet.pts * self._unit_s for packet in group]
            if min(stamps) < stamps[0] - 1e-9 and self._grouped:  # open: it shows what needs the group before
                self._grouped = False
                yield from self.frames(times[wanted:], tolerance_s)
                return
            while wanted < len(times) and times[wanted] < min(stamps) - tolerance_s:
                wanted += 1  # of an earlier group
            if wanted == len(times):
                break
            if self._grouped and times[wanted] > max(stamps) + tolerance_s:
                if not fresh:
                    yield from self._decoded(None)
                    codec.flush_buffers()
                    fresh = True
                continue
            fresh = False
            if self._grouped and stamps == sorted(stamps):  # nothing after the last wanted one is needed for it
                last = times[bisect_right(times, stamps[-1] + tolerance_s) - 1]
                group = [packet for packet, stamp in zip(group, stamps, strict=True) if stamp <= last + tolerance_s]
            for packet in group:
                try:
                    yield from self._decoded(packet)
                except av.InvalidDataError:
                    # Where groups are open, the pictures before the first key picture need some that were not decoded.
                    if self._grouped or packet.pts * self._unit_s >= times[0] - tolerance_s:
                        raise
        if not fresh:
            yield from self._decoded(None)
            codec.flush_buffers()

    def _decoded(self, packet: av.Packet | None) -> Iterator[tuple[float, av.VideoFrame]]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.EOFError:
            return
        for frame in frames:
            if frame.pts is not None:
                yield frame.pts * self._unit_s, frame

    def _groups(self) -> Iterator[list[av.Packet]]:
        """Packets from a key picture to before the next, in the order of decoding."""
        group: list[av.Packet] = []
        for packet in self._container.demux(self._stream):
            if packet.pts is None:  # the end
                continue
            if packet.is_corrupt:  # the file ends within it
                break
            if packet.is_keyframe and group:
                yield group
                group = []
            if group or packet.is_keyframe:
                group.append(packet)
        if group:
            yield group


def _view(frame: av.VideoFrame) -> np.ndarray:
    """The pixels of an rgb24 frame, uint8 [h, w, 3], where they are: a copy of them would take as long as a cut."""
    plane = frame.planes[0]
    return np.ndarray((frame.height, frame.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))


class VideoWriter:
    """An mp4 of H.264, yuv420p: pictures uint8 [h, w, 3] of even sizes at `fps` [1/s], the first at 0 s.

    Every second picture is a key picture, so that a trainer gets any of them quickly; crf 18 is hard to tell from the
    original.
    """

    CODEC, PIXELS = "h264", "yuv420p"

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count = path, 0
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, self.PIXELS
        self._stream.codec_context.gop_size, self._stream.codec_context.max_b_frames = 2, 0
        self._stream.codec_context.time_base = Fraction(1, fps)

    def add(self, picture: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self.count, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
