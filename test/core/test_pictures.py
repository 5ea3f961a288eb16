"""Every encoding to RGB, and what is wrong with pictures."""

import cv2
import numpy as np
import pytest

from rlt_ros.core import pictures
from rlt_ros.core.pictures import PictureError, PictureWatch, compressed_size, shrink, shrink_compressed
from rlt_ros.core.pictures import shrink_raw, to_rgb

COLOURS = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (30, 40, 210), "grey": (128, 128, 128)}
HEIGHT, WIDTH = 32, 48
MS = 1_000_000


def quarters() -> np.ndarray:
    """Four known colours, one in each quarter, RGB [32, 48, 3]."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (row, column), colour in zip(((0, 0), (0, 1), (1, 0), (1, 1)), COLOURS.values(), strict=True):
        rgb[row * 16 : row * 16 + 16, column * 24 : column * 24 + 24] = colour
    return rgb


def middles(rgb: np.ndarray) -> np.ndarray:
    """The colour in the middle of each quarter [4, 3]."""
    height, width = rgb.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return np.array([rgb[row, column] for row in rows for column in columns], int)


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor with a Bayer pattern such as rggb sees of a picture."""
    out = np.zeros(rgb.shape[:2], np.uint8)
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(colour)]
    return out


def yuv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y [h, w], U and V [h/2, w/2] of a picture, by OpenCV."""
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    h, w = rgb.shape[:2]
    u, v = planes[h:].reshape(2, h // 2, w // 2)
    return planes[:h], u, v


def encoded(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """A picture as the bytes of an encoding, uint8 [rows, bytes]; written without the code under test."""
    name = {"yuv422_yuy2": "yuyv", "yuv422": "uyvy"}.get(encoding, encoding)
    if name.endswith("16"):
        low = encoded(rgb, name[:-2] + "8")
        return np.stack([np.full_like(low, 77), low], axis=-1).reshape(len(low), -1)  # little endian: 77 is noise
    y, u, v = yuv(rgb)
    if name in ("yuyv", "uyvy"):
        chroma = np.stack([u, v], axis=-1).repeat(2, axis=0).reshape(HEIGHT, WIDTH)
        pair = (y, chroma) if name == "yuyv" else (chroma, y)
        return np.stack(pair, axis=-1).reshape(HEIGHT, -1)
    if name in ("nv12", "nv21"):
        pair = (u, v) if name == "nv12" else (v, u)
        return np.vstack([y, np.stack(pair, axis=-1).reshape(HEIGHT // 2, WIDTH)])
    if name.startswith("bayer_"):
        return mosaic(rgb, name[6:10])
    alpha = np.full(rgb.shape[:2] + (1,), 9, np.uint8)
    out = {"rgb8": rgb, "bgr8": rgb[..., ::-1], "rgba8": np.dstack([rgb, alpha]),
           "mono8": rgb.mean(axis=2).astype(np.uint8), "bgra8": np.dstack([rgb[..., ::-1], alpha])}[name]  # fmt: skip
    return out.reshape(len(rgb), -1)


def padded(rows: np.ndarray, by: int = 5) -> np.ndarray:
    """Rows with bytes behind them that belong to nothing."""
    return np.hstack([rows, np.full((len(rows), by), 250, np.uint8)])


@pytest.mark.parametrize("encoding", pictures.ENCODINGS)
def test_known_colours_come_out_of_every_encoding_with_padding(encoding):
    rgb = quarters()
    rows = padded(encoded(rgb, encoding))
    expected = middles(rgb)
    if "mono" in encoding:
        expected = np.repeat(expected.mean(axis=1).astype(int)[:, None], 3, axis=1)
    got = to_rgb(encoding, HEIGHT, WIDTH, rows.shape[1], rows.tobytes())
    assert got.shape == (HEIGHT, WIDTH, 3) and got.dtype == np.uint8
    np.testing.assert_allclose(middles(got), expected, atol=4)  # YUV rounds
    small = shrink_raw(encoding, HEIGHT, WIDTH, rows.shape[1], rows.tobytes(), 16)
    centre = rgb[:, 8:40]
    expected = middles(centre)
    if "mono" in encoding:
        expected = np.repeat(expected.mean(axis=1).astype(int)[:, None], 3, axis=1)
    np.testing.assert_allclose(middles(small), expected, atol=4)


def test_high_byte_is_found_in_big_endian_values():
    rgb = quarters()
    little = encoded(rgb, "rgb16").reshape(HEIGHT, WIDTH * 3, 2)
    big = np.ascontiguousarray(little[..., ::-1]).reshape(HEIGHT, -1)
    np.testing.assert_array_equal(to_rgb("rgb16", HEIGHT, WIDTH, big.shape[1], big.tobytes(), big_endian=True), rgb)
    assert not np.array_equal(to_rgb("rgb16", HEIGHT, WIDTH, big.shape[1], big.tobytes()), rgb)


@pytest.mark.parametrize(("encoding", "code"), [
    ("bgr8", cv2.COLOR_BGR2RGB), ("bgra8", cv2.COLOR_BGRA2RGB), ("yuyv", cv2.COLOR_YUV2RGB_YUY2),
    ("uyvy", cv2.COLOR_YUV2RGB_UYVY), ("nv12", cv2.COLOR_YUV2RGB_NV12), ("bayer_rggb8", cv2.COLOR_BayerBG2RGB),
])  # fmt: skip
def test_noise_is_converted_and_shrunk_as_opencv_does_it(encoding, code):
    random = np.random.default_rng(0)
    channels = {"bgr8": 3, "bgra8": 4, "yuyv": 2, "uyvy": 2}.get(encoding, 1)
    rows = HEIGHT * 3 // 2 if encoding == "nv12" else HEIGHT
    data = random.integers(0, 256, (rows, WIDTH, channels), dtype=np.uint8)
    whole = cv2.cvtColor(data.squeeze(), code)
    np.testing.assert_array_equal(to_rgb(encoding, HEIGHT, WIDTH, WIDTH * channels, data.tobytes()), whole)
    expected = cv2.resize(whole[:, 8:40], (8, 8), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(shrink_raw(encoding, HEIGHT, WIDTH, WIDTH * channels, data.tobytes(), 8), expected)


def test_region_of_interest_is_what_is_looked_at():
    small = shrink(quarters(), 8, crop=[24, 0, 24, 16])
    assert (small == COLOURS["green"]).all()


def test_region_outside_of_the_picture_is_refused_with_both_sizes():
    with pytest.raises(PictureError, match=r"48x32, too small for crop \[30, 0, 24, 16\]"):
        shrink(quarters(), 8, crop=[30, 0, 24, 16])


@pytest.mark.parametrize(("change", "message"), [
    ({"encoding": "32FC1"}, "'32FC1', expected one of rgb8, bgr8"),
    ({"encoding": "8UC3"}, "'8UC3', expected one of"),
    ({"data": b"123"}, "has 3 bytes in rows of 144, expected 32 rows of at least 144 bytes"),
    ({"step": 143, "data": bytes(143 * 32)}, "rows of 143, expected 32 rows of at least 144"),
    ({"step": 0, "data": b""}, "rows of 0"),
    ({"width": 0}, "image rgb8 0x32"),
    ({"encoding": "yuyv", "width": 47, "step": 94, "data": bytes(94 * 32)}, "is 47x32, expected multiples of 2x1"),
    ({"encoding": "nv12", "height": 31, "step": 48, "data": bytes(48 * 47)}, "is 48x31, expected multiples of 2x2"),
    ({"height": 4_000_000_000, "width": 4_000_000_000}, "expected 4000000000 rows"),
])  # fmt: skip
def test_malformed_picture_is_refused_with_what_was_expected(change, message):
    given = dict(encoding="rgb8", height=HEIGHT, width=WIDTH, step=3 * WIDTH, data=bytes(HEIGHT * WIDTH * 3)) | change
    with pytest.raises(PictureError, match=message):
        to_rgb(**given)


def test_small_picture_does_not_change_with_the_bytes_it_came_from():
    data = bytearray(quarters().tobytes())
    got = to_rgb("rgb8", HEIGHT, WIDTH, 3 * WIDTH, data)
    data[:] = bytes(len(data))
    assert got.any()


# Compressed


def photo(height: int = 480, width: int = 640) -> np.ndarray:
    """A picture RGB with something in it, that JPEG can hold."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 50), x * 255 / width]).astype(np.uint8)


def compressed(rgb: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "size", "off"), [(".png", 96, 0), (".jpg", 96, 4), (".jpg", 200, 4), (".jpg", 480, 6)]
)
def test_compressed_picture_is_what_the_raw_one_is(suffix, size, off):
    rgb = photo()
    got = shrink_compressed(compressed(rgb, suffix), size)
    assert np.abs(got.astype(int) - shrink(rgb, size)).max() <= off


def test_region_of_a_compressed_picture_that_no_power_of_two_divides():
    rgb = photo()
    got = shrink_compressed(compressed(rgb, ".jpg"), 32, crop=[33, 21, 301, 299])
    assert np.abs(got.astype(int) - shrink(rgb, 32, [33, 21, 301, 299])).max() <= 4


def test_size_is_read_without_decoding():
    assert compressed_size(compressed(photo(30, 50), ".jpg")) == ("JPEG", 50, 30)
    assert compressed_size(compressed(photo(30, 50), ".png")) == ("PNG", 50, 30)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_picture_that_was_cut_off_is_refused_at_whatever_byte(suffix):
    data = compressed(photo(60, 80), suffix)
    for length in {0, 1, 2, 8, 20, 24, 30, len(data) // 2, len(data) - 1, len(data) - 12}:
        with pytest.raises(PictureError):
            shrink_compressed(data[:length], 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_bytes_never_raise_anything_but_a_picture_error(suffix):
    data, random = compressed(photo(60, 80), suffix), np.random.default_rng(0)
    for _ in range(200):
        bad = np.frombuffer(data, np.uint8).copy()
        bad[random.integers(0, len(bad), 4)] = random.integers(0, 256, 4)
        try:
            assert shrink_compressed(bad.tobytes(), 8).shape == (8, 8, 3)
        except PictureError:
            pass


def test_random_bytes_are_refused_with_how_they_begin():
    with pytest.raises(PictureError, match="begins with 01 02 03 04, expected JPEG or PNG"):
        shrink_compressed(bytes([1, 2, 3, 4] * 50), 8)
    with pytest.raises(PictureError, match="begins with nothing"):
        shrink_compressed(b"", 8)
    with pytest.raises(PictureError, match="has no frame header"):
        shrink_compressed(b"\xff\xd8" + bytes(100) + b"\xff\xd9", 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_decompression_bomb_is_refused_before_it_is_decoded(suffix, monkeypatch):
    decoded = []
    monkeypatch.setattr(cv2, "imdecode", lambda *args: decoded.append(args))
    data = bytearray(compressed(photo(30, 50), suffix))
    if suffix == ".png":
        data[16:24] = (60_000).to_bytes(4, "big") * 2
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(PictureError, match="60000x60000, expected at most 40 million pixels"):
        shrink_compressed(bytes(data), 8)
    assert not decoded


# What pictures show


def test_same_picture_for_too_long_is_frozen_until_it_changes():
    watch = PictureWatch(0.25, 10, 250)
    picture = quarters()
    assert [watch.judge(picture, 1_000 * MS + at * MS) for at in (0, 100, 200, 250)] == [""] * 4
    assert watch.judge(picture, 1_300 * MS) == "frozen" and watch.same_s == pytest.approx(0.3)
    other = picture.copy()
    other[3, 4, 1] += 1  # one bit
    assert watch.judge(other, 1_400 * MS) == "" and watch.same_s == 0.0


def test_noiseless_camera_may_be_excused_from_freezing():
    watch = PictureWatch(0.0, 10, 250)
    assert [watch.judge(quarters(), at * 1_000 * MS) for at in range(1, 5)] == [""] * 4


def test_black_and_blown_out_pictures_are_told_from_dim_and_bright_ones():
    watch = PictureWatch(0.25, 10, 250)
    shade = lambda value: np.full((32, 32, 3), value, np.uint8)  # noqa: E731
    assert watch.judge(shade(9), 1) == "dark"
    assert watch.judge(shade(11), 2) == ""
    assert watch.judge(shade(249), 3) == ""
    assert watch.judge(shade(251), 4) == "bright"
    lamp = shade(0)
    lamp[:4, :4] = 200  # 1.6 % of it
    assert watch.judge(lamp, 5) == ""


def test_levels_can_be_switched_off():
    watch = PictureWatch(0.25, 0, 255)
    assert watch.judge(np.zeros((4, 4, 3), np.uint8), 1) == ""
    assert watch.judge(np.full((4, 4, 3), 255, np.uint8), 2) == ""
