"""What two cameras cost in camera_node: processor time of the node, over the time that passed.

    . setup/env.sh && export FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds.xml   # or every second picture is lost
    python3 bench/cameras.py [--encoding bgr8|rgb8|yuyv|bayer_rggb8|jpeg] [--seconds 20] [--rate 30]
"""

import argparse
import os
import subprocess
import sys
import time

import cv2
import numpy as np

HEIGHT, WIDTH, CAMERAS = 480, 640, ("wrist", "base")
_BYTES = {"bgr8": 3, "rgb8": 3, "yuyv": 2, "bayer_rggb8": 1}


def messages(encoding: str) -> list:
    """Ten pictures with noise."""
    from sensor_msgs.msg import CompressedImage, Image

    from rlt_ros.ros.conversions import packed

    random = np.random.default_rng(0)
    scene = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    made = []
    for _ in range(10):
        noisy = cv2.add(scene, random.integers(0, 6, scene.shape, np.uint8))
        if encoding == "jpeg":
            made.append(CompressedImage(format="jpeg", data=packed(cv2.imencode(".jpg", noisy)[1], "B")))
        else:
            step = WIDTH * _BYTES[encoding]
            pixels = noisy.reshape(HEIGHT, -1)[:, :step]
            made.append(Image(encoding=encoding, height=HEIGHT, width=WIDTH, step=step, data=packed(pixels, "B")))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoding", default="bgr8", choices=(*_BYTES, "jpeg"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=30.0, help="pictures a second and camera")
    args = parser.parse_args()
    transport = ["-p", "transport:=compressed"] if args.encoding == "jpeg" else []
    program = "from rlt_ros.ros.run import main; raise SystemExit(main('camera_node'))"
    node = subprocess.Popen([sys.executable, "-c", program, "--ros-args", "-r", "__node:=camera_node", *transport])
    import rclpy
    from sensor_msgs.msg import Image

    from rlt_ros.ros import qos
    from rlt_ros.ros.conversions import stamp_msg

    rclpy.init(args=[sys.argv[0]])
    peer, made, heard = rclpy.create_node("drivers"), messages(args.encoding), []
    suffix = "/compressed" if args.encoding == "jpeg" else ""
    outputs = [peer.create_publisher(type(made[0]), f"driver/{name}/image{suffix}", qos.SENSOR) for name in CAMERAS]
    for name in CAMERAS:
        peer.create_subscription(Image, f"camera/{name}/image", lambda msg: heard.append(1), qos.SENSOR)
    sent, begin_s, due_s, before = 0, None, time.monotonic(), 0.0
    try:
        while begin_s is None or time.monotonic() - begin_s < args.seconds:
            if begin_s is None and len(heard) > 40:  # it runs; now measure
                begin_s, before, sent = time.monotonic(), cpu_s(node.pid), 0
                heard.clear()
            due_s += 1.0 / args.rate
            for output in outputs:
                message = made[sent // len(CAMERAS) % len(made)]
                message.header.stamp = stamp_msg(time.time_ns())
                output.publish(message)
                sent += 1
            while time.monotonic() < due_s:
                rclpy.spin_once(peer, timeout_sec=max(0.0, due_s - time.monotonic()))
        share = 100 * (cpu_s(node.pid) - before) / (time.monotonic() - begin_s)
        each_ms = 10 * share * args.seconds / max(1, len(heard))
        print(f"{args.encoding}: camera_node takes {share:.1f} % of a core, {each_ms:.2f} ms a picture;"
              f" {len(heard)} of {sent} pictures came out")
    finally:
        node.terminate()
        node.wait(20)
    return 0


def cpu_s(pid: int) -> float:
    """Processor time of a process so far [s]."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
