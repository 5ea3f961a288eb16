"""Camera ingestion: by topic, from devices and files, and what is refused or reported."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import CompressedImage, Image

from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.ros import processes, qos
from rlt_ros.ros.conversions import header, image_from_msg, image_to_msg, packed, stamp_ns

MS, S = 1_000_000, 1_000_000_000
RED, GREEN, BLUE = (220, 30, 20), (20, 200, 40), (30, 40, 210)


def plain(colour=GREEN, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


class Driver:
    """A camera driver at 40 Hz: call `send` as often as you like."""

    PERIOD_NS = 25 * MS

    def __init__(self, peer, name: str = "wrist", msg_type: type = Image, topic: str = "image") -> None:
        self.say = peer.say(msg_type, f"driver/{name}/{topic}", qos.SENSOR)
        self.count = 0
        self.random = np.random.default_rng(0)
        self.stamps: list[int] = []
        self.next_ns = 0

    def send(self, picture: np.ndarray | None = None, noise=True, offset_ns=0, change=lambda m: m) -> None:
        now = time.time_ns()
        if now < self.next_ns:
            return
        self.next_ns = now + self.PERIOD_NS
        picture = plain() if picture is None else picture
        if noise:
            picture = picture.copy()
            picture[::7] += self.random.integers(0, 10, picture[::7].shape, dtype=np.uint8)
        self.stamps.append(now + offset_ns)
        self.say(change(image_to_msg(picture, self.stamps[-1], "lens")))


@pytest.fixture
def pictures(peer):
    """Everything that comes out for the wrist camera."""
    return peer.hear(Image, "camera/wrist/image", qos.SENSOR)


def test_big_bgr_picture_comes_out_as_a_small_square_in_rgb_with_its_own_stamp(graph, start, peer, pictures):
    start(CameraNode, image_size=32)
    driver = Driver(peer)

    def bgr(message: Image) -> Image:
        message.encoding = "bgr8"  # so that what was written as red is blue
        return message

    graph.spin_until(lambda: (driver.send(plain(RED), False, change=bgr), pictures)[1], "a picture")
    small = image_from_msg(pictures[0])
    assert small.shape == (32, 32, 3)
    assert (small == RED[::-1]).all()
    assert stamp_ns(pictures[0].header.stamp) in driver.stamps and pictures[0].header.frame_id == "lens"


def test_camera_that_never_comes_is_reported_by_name(graph, start):
    node = start(CameraNode, max_silence_s=0.1)
    graph.spin_until(lambda: "camera 'wrist' has sent no usable picture" in node.problem, "the report")
    assert "driver/wrist/image" in node.problem


def test_wrong_encoding_is_dropped_with_what_is_accepted_and_counts_as_silence(graph, start, peer, pictures):
    node = start(CameraNode, max_silence_s=0.2)
    driver = Driver(peer)

    def depth(message: Image) -> Image:
        message.encoding = "32FC1"
        return message

    def reported() -> bool:
        driver.send(change=depth)
        return "has sent no usable picture" in node.problem and "32FC1" in node.problem

    graph.spin_until(reported, "the report")
    assert node.rejected["driver/wrist/image"] > 0 and not pictures
    assert "camera 'wrist'" in node.problem and "expected one of rgb8, bgr8" in node.problem
    assert "let the camera driver publish one of those" in node.problem


def test_cameras_may_differ(graph, start, peer, pictures):
    start(CameraNode, image_size=16, cameras__wrist__transport="compressed", cameras__wrist__crop=[0, 0, 24, 24])
    base = peer.hear(Image, "camera/base/image", qos.SENSOR)
    raw = Driver(peer, "base")
    picture = plain(RED)
    picture[:24, :24] = GREEN
    say = peer.say(CompressedImage, "driver/wrist/image/compressed", qos.SENSOR)
    data = packed(cv2.imencode(".png", picture[..., ::-1])[1], "B")

    def arrived() -> bool:
        raw.send(plain(BLUE), noise=False)
        say(CompressedImage(header=header(time.time_ns()), format="png", data=data))
        return bool(pictures and base)

    graph.spin_until(arrived, "pictures of both")
    assert (image_from_msg(pictures[0]) == GREEN).all() and (image_from_msg(base[0]) == BLUE).all()


def test_malformed_jpegs_are_dropped_and_the_next_good_one_comes(graph, start, peer, pictures):
    node = start(CameraNode, transport="compressed")
    say = peer.say(CompressedImage, "driver/wrist/image/compressed", qos.SENSOR)
    good = cv2.imencode(".jpg", plain(BLUE))[1].tobytes()

    def dropped() -> bool:
        for data in (good[: len(good) // 2], b"", b"\xff\xd8\xff", bytes(1000)):
            say(CompressedImage(header=header(time.time_ns()), format="jpeg", data=data))
        return node.rejected["driver/wrist/image/compressed"] > 8

    graph.spin_until(dropped, "the drops")
    assert not pictures
    send = lambda: say(CompressedImage(header=header(time.time_ns()), data=good))  # noqa: E731
    graph.spin_until(lambda: (send(), pictures)[1], "the good one")


@pytest.mark.parametrize(("parameters", "message"), [
    ({"cameras__wirst__transport": "raw"}, "'cameras.wirst': the task 'ethernet' has no such camera, expected one of"),
    ({"cameras__wrist__transport": "udp"}, "cameras.wrist: parameter 'transport' is 'udp', expected str one of"),
    ({"cameras__wrist__flip": True}, "cameras.wrist: unknown parameter 'flip'"),
    ({"cameras__wrist__crop": [1, 2, 3]}, r"'crop' is [1, 2, 3], expected [x, y, width, height]"),
    ({"crop": [0, 0, 0, 10]}, "'crop' is [0, 0, 0, 10]"),
    ({"cameras__base__transport": "device"}, "cameras.base: parameter 'source' is empty, expected the device to read"),
    ({"transport": "file", "source": "/nowhere.mp4"}, "source '/nowhere.mp4' is not there; expected a video file or"),
    ({"transport": "file", "source": "/etc/hostname"}, "video file /etc/hostname does not open"),
    ({"transport": "device", "source": "0", "fourcc": "JPEG2000"}, "'fourcc' is 'JPEG2000', expected four letters"),
])  # fmt: skip
def test_parameters_that_cannot_be_meant_fail_at_configure(make, parameters, message):
    assert message in make(CameraNode, **parameters).configure_error


# Faults of a camera


@pytest.mark.parametrize(("robot", "freeze_s"), [("sim", 0.0), ("ur5e", 0.25)])
def test_pictures_freeze_on_a_robot_and_not_in_the_simulator_which_has_no_noise(graph, robot, freeze_s):
    share = Path(processes.__file__).parents[2]
    (row,) = (process for process in processes.select(robot, "human") if process.name == "camera_node")
    arguments = processes.arguments(row, processes.parameter_files(share, robot), {"task": "ethernet"}, "left")
    node = graph.add(CameraNode("camera_node", cli_args=arguments))
    node.trigger_configure()
    assert node.configure_error == ""
    assert node.cameras["wrist"].settings.freeze_s == freeze_s


def test_pictures_that_are_blown_out_are_refused(graph, start, peer, pictures):
    node = start(CameraNode)
    driver = Driver(peer)
    says, nothing = "camera 'wrist' is blown out; look at", plain((255, 255, 255))
    graph.spin_until(lambda: (driver.send(nothing, False), says in node.problem)[1], "the report")
    assert not pictures
    graph.spin_until(lambda: (driver.send(), pictures)[1], "a picture")


def test_drivers_clock_that_is_ahead_is_refused_and_behind_is_reported(graph, start, peer, pictures):
    node = start(CameraNode)
    driver = Driver(peer)
    says = "ahead of this computer's clock, expected at most 0.1 s; synchronise"
    graph.spin_until(lambda: (driver.send(offset_ns=10 * S), says in node.problem)[1], "the report")
    assert not pictures and "camera 'wrist'" in node.problem
    says = "old on arrival, more than max_delay_s (0.1 s)"
    graph.spin_until(lambda: (driver.send(offset_ns=-S // 2), says in node.problem)[1], "the other report")
    assert pictures and node.cameras["wrist"].stamps.delay_s == pytest.approx(0.5, abs=0.2)


def test_picture_without_a_stamp_is_refused(graph, start, peer, pictures):
    node = start(CameraNode)
    say = peer.say(Image, "driver/wrist/image", qos.SENSOR)
    graph.spin_until(lambda: (say(image_to_msg(plain(), 0)), "the header stamp is 0" in node.problem)[1], "the report")
    assert not pictures


def test_lost_pictures_are_counted_against_the_measured_rate(graph, start, peer, pictures):
    node = start(CameraNode, max_loss=0.2)
    say = peer.say(Image, "driver/wrist/image", qos.SENSOR)
    random, stamps = np.random.default_rng(0), node.cameras["wrist"].stamps
    stamp, sent_s, count = time.time_ns() - 10 * S, 0.0, 0  # stamps, not the time of sending, tell what is missing

    def send(missing: int = 0) -> None:
        """The next picture, once the one before was seen: none may be lost but those that the test leaves out."""
        nonlocal stamp, sent_s, count
        if stamps.seen < count and time.monotonic() - sent_s < 0.5:
            return
        stamp, sent_s, count = stamp + 40 * MS * (1 + missing), time.monotonic(), stamps.seen + 1
        say(image_to_msg(random.integers(50, 200, (48, 64, 3), dtype=np.uint8), stamp))

    graph.spin_until(lambda: (send(), stamps.seen >= 40)[1], "a measured rate")
    assert stamps.rate_hz == pytest.approx(25.0)
    lost = stamps.lost

    def reported() -> bool:
        send(3 if count % 4 == 0 else 0)
        return "of its pictures, more than max_loss (0.2)" in node.problem

    graph.spin_until(reported, "the report")
    assert stamps.lost > lost + 5


def test_repeated_and_reordered_pictures_are_refused(graph, start, peer, pictures):
    node = start(CameraNode)
    driver = Driver(peer)
    graph.spin_until(lambda: (driver.send(), len(pictures) > 3)[1], "pictures")
    old = image_to_msg(plain(), driver.stamps[0])

    def refused() -> bool:
        driver.say(old)
        return node.cameras["wrist"].stamps.refused["order"] > 3

    graph.spin_until(refused, "the refusals")
    assert len({stamp_ns(m.header.stamp) for m in pictures}) == len(pictures)
    graph.spin_until(lambda: "look for a second publisher on the topic" in node.problem, "the report")


def test_camera_at_ten_times_the_rate_is_thinned_out(graph, start, peer, pictures):
    node = start(CameraNode)
    say = peer.say(Image, "driver/wrist/image", qos.SENSOR)
    stamp, random = time.time_ns() - 10 * S, np.random.default_rng(0)

    def send() -> bool:
        nonlocal stamp
        stamp += 3 * MS
        say(image_to_msg(random.integers(50, 200, (48, 64, 3), dtype=np.uint8), stamp))
        return node.cameras["wrist"].refused["too_many"] > 20 and len(pictures) > 5

    graph.spin_until(send, "pictures")
    stamps = sorted(stamp_ns(m.header.stamp) for m in pictures)
    assert min(np.diff(stamps)) >= 10 * MS  # twice the control rate


def test_diagnostics_name_the_camera_the_trouble_and_the_counts(graph, start, peer):
    start(CameraNode, max_silence_s=0.2)
    heard = peer.hear(DiagnosticArray, "/diagnostics")
    driver = Driver(peer)

    def told() -> list:
        driver.send(plain((0, 0, 0)), noise=False)
        mine = [status for msg in heard for status in msg.status if status.name.endswith("camera_node")]
        return [s for s in mine if s.level == DiagnosticStatus.WARN and "is black" in s.message]

    graph.spin_until(lambda: bool(told()), "the diagnostics")
    status = told()[-1]
    assert "camera 'base' has sent no usable picture" in status.message
    values = {item.key: item.value for item in status.values}
    assert int(values["wrist refused_dark"]) > 0 and "wrist rate_hz" in values and "base lost" in values


# Devices and files


@pytest.fixture
def video(tmp_path):
    """video(colours, name): a video file of one picture a colour, 25 a second."""

    def written(colours, name: str = "film.avi") -> str:
        path = tmp_path / name
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
        assert writer.isOpened()
        for colour in colours:
            writer.write(plain(colour[::-1]))
        writer.release()
        return str(path)

    return written


def colours(messages) -> list[str]:
    """The names of the plain pictures that came, without repetition."""
    names = {"red": RED, "green": GREEN, "blue": BLUE}
    seen = [image_from_msg(m).reshape(-1, 3).mean(axis=0) for m in messages]
    called = [min(names, key=lambda name: np.abs(names[name] - mean).max()) for mean in seen]
    return [name for i, name in enumerate(called) if i == 0 or called[i - 1] != name]


def test_video_file_is_played_in_a_circle_with_stamps_of_now(graph, start, peer, pictures, video):
    path = video([RED, RED, GREEN, BLUE])
    node = start(CameraNode, image_size=16, cameras__wrist__transport="file", cameras__wrist__source=path)
    graph.spin_until(lambda: len(colours(pictures)) > 7, "two rounds")
    order = colours(pictures)
    begin = order.index("red")
    assert order[begin : begin + 4] == ["red", "green", "blue", "red"]
    stamps = [stamp_ns(m.header.stamp) for m in pictures]
    assert stamps == sorted(set(stamps)) and 0 <= time.time_ns() - stamps[-1] < 5 * S
    # Played at its own speed: no faster, however slow the machine is.
    assert np.median(np.diff(stamps)) > 30 * MS
    assert "25 Hz" in node.on_diagnostics_()["wrist source"]


def test_video_that_ends_is_reported(graph, start, pictures, video):
    node = start(CameraNode, transport="file", source=video([RED, GREEN]), loop=False)
    graph.spin_until(lambda: "has ended; set loop: true" in node.problem, "the report")


def test_folder_of_pictures_is_shown_in_the_order_of_names(graph, start, pictures, tmp_path):
    for name, colour in (("b.png", GREEN), ("a.png", RED), ("c.png", BLUE)):
        cv2.imwrite(str(tmp_path / name), plain(colour[::-1]))
    (tmp_path / "notes.txt").write_text("not a picture")
    own = {"cameras__wrist__transport": "file", "cameras__wrist__source": str(tmp_path)}
    node = start(CameraNode, image_size=16, fps=20.0, **own)
    graph.spin_until(lambda: len(colours(pictures)) > 6, "two rounds")
    order = colours(pictures)
    begin = order.index("red")
    assert order[begin : begin + 3] == ["red", "green", "blue"]
    assert "3 pictures" in node.on_diagnostics_()["wrist source"]


def test_damaged_picture_of_a_folder_is_named(graph, start, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    node = start(CameraNode, cameras__wrist__transport="file", cameras__wrist__source=str(tmp_path))
    graph.spin_until(lambda: "a.png cannot be read" in node.problem, "the report")


def test_crop_outside_of_what_a_device_gives_is_reported(graph, start, pictures, video):
    node = start(CameraNode, cameras__wrist__transport="device", cameras__wrist__source=video([RED] * 50),
                 cameras__wrist__crop=[0, 0, 640, 480])  # fmt: skip
    graph.spin_until(lambda: "picture is 64x48, too small for crop [0, 0, 640, 480]" in node.problem, "the report")
    assert not pictures


def test_device_that_vanishes_is_named_and_read_again_when_it_is_back(graph, start, pictures, video, tmp_path):
    """A file stands for the device: OpenCV opens both, its end is what unplugging looks like."""
    path = video([RED, GREEN, BLUE] * 20)
    node = start(CameraNode, image_size=16, cameras__wrist__transport="device", cameras__wrist__source=path)
    graph.spin_until(lambda: bool(pictures), "pictures")
    graph.spin_until(lambda: f"camera 'wrist' has no pictures: device {path} has gone" in node.problem, "the report")
    capture = node.cameras["wrist"].capture
    graph.spin_until(lambda: capture.reconnects > 0, "the device opened again")
    (tmp_path / "film.avi").rename(tmp_path / "unplugged.avi")
    graph.spin_until(lambda: f"device {path} is not there; plug it in" in node.problem, "the other report")
    (tmp_path / "unplugged.avi").rename(tmp_path / "film.avi")
    seen = len(pictures)
    graph.spin_until(lambda: len(pictures) > seen, "pictures again")


def test_device_that_is_not_there_at_first_is_waited_for(graph, start, pictures, video, tmp_path):
    node = start(CameraNode, cameras__wrist__transport="device", cameras__wrist__source=str(tmp_path / "film.avi"))
    graph.spin_until(lambda: "is not there; plug it in" in node.problem, "the report")
    video([RED, GREEN, BLUE] * 20)
    graph.spin_until(lambda: bool(pictures), "pictures")


def test_capture_ends_with_the_node(graph, start, stop, video):
    node = start(CameraNode, cameras__wrist__transport="file", cameras__wrist__source=video([RED, GREEN]))
    capture = node.cameras["wrist"].capture
    stop(node)
    assert not capture._thread.is_alive()


# What the robot does
