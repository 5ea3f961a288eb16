"""Camera ingestion."""

import numpy as np
from sensor_msgs.msg import Image

from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_from_msg, image_to_msg


def test_big_bgr_picture_comes_out_as_a_small_square_in_rgb(graph, start, peer):
    start(CameraNode, image_size=32)
    heard = peer.hear(Image, "camera/wrist/image", qos.SENSOR)
    say = peer.say(Image, "driver/wrist/image", qos.SENSOR)
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 0] = 200
    message = image_to_msg(picture, 7_000_000_123)
    message.encoding = "bgr8"  # so that the first channel is blue

    def arrived() -> bool:
        say(message)
        return bool(heard)

    graph.spin_until(arrived, "a picture")
    small = image_from_msg(heard[0])
    assert small.shape == (32, 32, 3)
    assert (small == [0, 0, 200]).all()
    assert (heard[0].header.stamp.sec, heard[0].header.stamp.nanosec) == (7, 123)


def test_camera_that_never_comes_is_reported_by_name(graph, start):
    node = start(CameraNode, max_silence_s=0.1)
    graph.spin_until(lambda: "camera 'wrist' has sent no usable picture" in node.problem, "the report")
    assert "driver/wrist/image" in node.problem


def test_wrong_encoding_is_dropped_and_still_counts_as_silence(graph, start, peer):
    node = start(CameraNode, max_silence_s=0.2)
    say = peer.say(Image, "driver/wrist/image", qos.SENSOR)

    def reported() -> bool:
        say(Image(encoding="bayer_rggb8", height=4, width=4, step=4, data=bytes(16)))
        return node.rejected["driver/wrist/image"] > 0 and "camera 'wrist'" in node.problem

    graph.spin_until(reported, "the report")
