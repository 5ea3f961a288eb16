"""The recorder: writes down what a session looked like, to be opened in Foxglove."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from rlt_ros.data.recording import FOLDER, Recording, RecordingError
from rlt_ros.msg import ActionChunk, EpisodeState, LearnerStatus, Proprio, SafetyState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_from_msg, packed
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.sim.task import load_task

# Written down as they come. Best effort where the publisher has many: nobody may wait for a recorder.
TOPICS = MappingProxyType(
    {
        "episode/state": (EpisodeState, qos.STATE),
        "safety/state": (SafetyState, qos.STATE),
        "learner/status": (LearnerStatus, qos.EVENT),
        "proprio": (Proprio, qos.RECORD),
        "vla/reference": (ActionChunk, qos.RECORD),
        "actor/chunk": (ActionChunk, qos.RECORD),
        "human/command": (ActionChunk, qos.RECORD),
        "command/executed": (ActionChunk, qos.RECORD),
        "/diagnostics": (DiagnosticArray, qos.RECORD),
    }
)
RETRY_S = 2.0  # between two tries to write to a disk that refuses
MEGA = 1_000_000
SLACK = 0.1  # of the time between two pictures: cameras do not tick exactly


def picture_topic(camera: str) -> str:
    """Where the pictures of a camera stand in a recording."""
    return f"/camera/{camera}/image/compressed"


def type_name(msg_type: type) -> str:
    """`package/msg/Name` of a message class."""
    return f"{msg_type.__module__.split('.')[0]}/msg/{msg_type.__name__}"


class RecorderNode(RltNode):
    """Record pictures, phases, actions and states of a session; what is recorded is for people, not for the learner.

    Subscribes: camera/<camera>/image (Image) and TOPICS.  Writes: <session>/recording/*.mcap, where pictures are JPEG
    on /camera/<camera>/image/compressed and the others stand under their names, without a namespace.

    While the disk refuses, what comes is not kept, and the node goes on by itself when the disk takes it again.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        images_hz: float = parameter(5.0, "pictures of each camera; 0: none", unit="Hz", low=0.0, high=100.0)
        jpeg_quality: int = parameter(80, "of the pictures", low=1, high=100)
        max_mb: float = parameter(
            2000.0, "all files of a session together; the oldest are deleted for it", unit="MB", low=70.0
        )

    def on_configure_(self) -> None:
        p = self.params
        if not p.session:
            raise ParameterError("parameter 'session' is empty; give the session's folder, where the recording belongs")
        cameras = load_task(p.task).cameras if p.images_hz else ()
        kinds = {self.place_of(topic): kind for topic, (kind, _) in TOPICS.items()}
        kinds |= {picture_topic(camera): CompressedImage for camera in cameras}
        schemas = {topic: (type_name(kind), ros2msg(type_name(kind))) for topic, kind in kinds.items()}
        self.recording = Recording(Path(p.session) / FOLDER, schemas, round(p.max_mb * MEGA))
        self.retry_s, self.lost = 0.0, 0
        self.next_ns = dict.fromkeys(cameras, 0)
        for topic, (kind, profile) in TOPICS.items():
            self.subscribe(kind, topic, partial(self.keep, self.place_of(topic)), profile, raw=True)
        for camera in cameras:
            self.subscribe(Image, f"camera/{camera}/image", partial(self.on_image, camera), qos.SENSOR)

    def on_cleanup_(self) -> None:
        self.recording.close()

    @staticmethod
    def place_of(topic: str) -> str:
        """Name in the recording: one session is one robot, whatever its namespace, and a layout fits them all."""
        return "/" + topic.lstrip("/")

    def on_image(self, camera: str, msg: Image) -> None:
        now_ns, every_ns = self.now_ns(), 1e9 / self.params.images_hz
        if now_ns < self.next_ns[camera] - SLACK * every_ns and self.next_ns[camera] - now_ns < 2 * every_ns:
            return
        self.next_ns[camera] = max(self.next_ns[camera] + round(every_ns), now_ns)
        image = cv2.cvtColor(image_from_msg(msg), cv2.COLOR_RGB2BGR)
        done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.params.jpeg_quality])
        if not done:
            raise ValueError(f"image of {msg.width}x{msg.height} cannot be made a JPEG")
        small = CompressedImage(header=msg.header, format="jpeg", data=packed(jpeg, "B"))
        self.keep(picture_topic(camera), serialize_message(small))

    def keep(self, topic: str, data: bytes) -> None:
        """Write a CDR message down; all that are recorded begin with a header."""
        if self.now_s() < self.retry_s:
            self.lost += 1
            return
        if len(data) < 12:
            raise ValueError(f"{len(data)} bytes, expected a header of 12 at least")
        order = "little" if data[1] & 1 else "big"
        sec, nanosec = int.from_bytes(data[4:8], order, signed=True), int.from_bytes(data[8:12], order)
        try:
            self.recording.add(topic, data, self.now_ns(), sec * 1_000_000_000 + nanosec)
        except RecordingError as error:
            self.lost += 1
            self.retry_s = self.now_s() + RETRY_S
            self.problem = f"{error}; nothing is recorded until then. It goes on by itself"
            self.get_logger().error(self.problem, throttle_duration_sec=10.0)
            return
        if self.problem:
            self.get_logger().warning(f"recording again; {self.lost} messages were lost so far")
            self.problem = ""

    def on_diagnostics_(self) -> dict:
        return {
            "file": self.recording.path.name,
            "messages": self.recording.messages,
            "lost": self.lost,
            "size_mb": round(self.recording.bytes() / MEGA, 1),
        }
