"""Pictures at given times of video files of every kind that is met."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rlt_ros.data.video import Video, VideoError

FPS, FRAMES = 30, 120
KINDS = {
    "h264 as lerobot": ("libx264", {"g": "2"}),
    "h264 with long groups and pictures in both directions": ("libx264", {"g": "30", "bf": "3"}),
    "h264 with open groups": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "av1 as lerobot": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
    "hevc": ("libx265", {"g": "12"}),
}


def picture(frame: int) -> np.ndarray:
    """A plain picture whose brightness is the frame's."""
    return np.full((64, 96, 3), 20 + 2 * (frame % 110), np.uint8)


def write(path, codec: str, options: dict, frames: int = FRAMES) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_of_each_time_is_found_whatever_is_skipped(tmp_path, kind):
    write(tmp_path / "video.mp4", *KINDS[kind])
    video = Video(tmp_path / "video.mp4")
    for wanted in (list(range(FRAMES)), list(range(40, 100, 7)), [3, 4, 31, 32, 33, 95, 109], [50, 50, 51], [0], []):
        found = list(video.pictures([frame / FPS for frame in wanted], 0.5 / FPS))
        shades = [float(p.mean()) for p in found]
        assert shades == pytest.approx([20 + 2 * (frame % 110) for frame in wanted], abs=1.9)
    video.close()


def test_a_time_past_the_end_says_which(tmp_path):
    write(tmp_path / "video.mp4", *KINDS["h264 as lerobot"], frames=50)
    with pytest.raises(VideoError, match="the video ends before 1.6667 s; it is cut off") as error:
        list(Video(tmp_path / "video.mp4").pictures([1.0, 1.5, 50 / FPS, 2.0], 0.5 / FPS))
    assert error.value.frame == 2


def test_a_picture_that_was_dropped_says_which(tmp_path):
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "2", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for i in [*range(20), *range(25, 40)]:
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no picture at 0.7333 s; it was cut or frames were dropped") as error:
        list(Video(tmp_path / "video.mp4").pictures([18 / FPS, 22 / FPS, 30 / FPS], 0.5 / FPS))
    assert error.value.frame == 1
