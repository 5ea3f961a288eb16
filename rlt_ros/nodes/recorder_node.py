"""The recorder: writes down what a session looked like, to be opened in Foxglove or to be learned from."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState

from rlt_ros.data.mapping import own_mapping
from rlt_ros.data.recording import FILE_BYTES, FOLDER, MAPPING, TASK, Recording, RecordingError
from rlt_ros.msg import ActionChunk, EpisodeState, LearnerStatus, Proprio, SafetyState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_from_msg, packed, stamp_ns
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.sim.task import load_task, task_file

# Written down as they come. Best effort where the publisher has many: nobody may wait for a recorder.
TOPICS = MappingProxyType(
    {
        "episode/state": (EpisodeState, qos.HISTORY),
        "safety/state": (SafetyState, qos.HISTORY),
        "learner/status": (LearnerStatus, qos.EVENT),
        "proprio": (Proprio, qos.RECORD),
        "vla/reference": (ActionChunk, qos.RECORD),
        "actor/chunk": (ActionChunk, qos.RECORD),
        "human/command": (ActionChunk, qos.RECORD),
        "command/executed": (ActionChunk, qos.RECORD),
        "/diagnostics": (DiagnosticArray, qos.RECORD),
    }
)
# What the robot's driver says, with its own stamps, before anything of ours joins it.
DRIVER = MappingProxyType(
    {
        "driver/pose": (PoseStamped, qos.RECORD),
        "driver/twist": (TwistStamped, qos.RECORD),
        "driver/wrench": (WrenchStamped, qos.RECORD),
        "driver/joint_states": (JointState, qos.RECORD),
    }
)
LEAST_MB = 2 * FILE_BYTES / 1_000_000
RETRY_S = 2.0  # between two tries to write to a disk that refuses
MEGA = 1_000_000
SLACK = 0.1  # of the time between two pictures: cameras do not tick exactly


def picture_topic(camera: str) -> str:
    """Where the pictures of a camera stand in a recording."""
    return f"/camera/{camera}/image/compressed"


def type_name(msg_type: type) -> str:
    """`package/msg/Name` of a message class."""
    return f"{msg_type.__module__.split('.')[0]}/msg/{msg_type.__name__}"


def message_class(name: str) -> type:
    """The class of `package/msg/Name`; ParameterError when it is not installed."""
    package, _, kind = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise ParameterError(f"parameter 'topics': no message '{name}' here, expected package/msg/Name of a package"
                             " that is installed") from None


class RecorderNode(RltNode):
    """Record pictures, phases, actions and states of a session: for people, and a person's demonstrations.

    Subscribes: camera/<camera>/image (Image), TOPICS, and as parameters say DRIVER and others.  Writes:
    <session>/recording/*.mcap, where pictures are JPEG or PNG on /camera/<camera>/image/compressed and the others stand
    under their names, without a namespace. Every file has the task file, the parameter files and a mapping for `rlt
    demos import` within it.

    While the disk refuses, what comes is not kept, and the node goes on by itself when the disk takes it again.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        images_hz: float = parameter(5.0, "pictures of each camera; 0: none", unit="Hz", low=0.0, high=100.0)
        picture_format: str = parameter("jpeg", "of the pictures; png loses nothing", choices=("jpeg", "png"))
        jpeg_quality: int = parameter(80, "of the pictures", low=1, high=100)
        max_mb: float = parameter(
            2000.0, "all files of a session together; the oldest are deleted for it; 0: none is deleted", unit="MB",
            low=0.0,
        )  # fmt: skip
        driver: bool = parameter(False, "record what the robot's driver says, too")
        topics: list[str] = parameter(
            [], "more to record, each a topic and its type: /servo/twist geometry_msgs/msg/TwistStamped"
        )
        embed: list[str] = parameter([], "files that every recording has within it, such as those of parameters")

    def on_configure_(self) -> None:
        p = self.params
        if not p.session:
            raise ParameterError("parameter 'session' is empty; give the session's folder, where the recording belongs")
        if 0.0 < p.max_mb < LEAST_MB:
            raise ParameterError(f"parameter 'max_mb' is {p.max_mb:g} MB, expected {LEAST_MB:.0f} or more, or 0")
        cameras = load_task(p.task).cameras if p.images_hz else ()
        topics = dict(TOPICS) | (dict(DRIVER) if p.driver else {}) | self.more()
        kinds = {self.place_of(topic): kind for topic, (kind, _) in topics.items()}
        kinds |= {picture_topic(camera): CompressedImage for camera in cameras}
        schemas = {topic: (type_name(kind), ros2msg(type_name(kind))) for topic, kind in kinds.items()}
        self.recording = Recording(
            Path(p.session) / FOLDER, schemas, round(p.max_mb * MEGA), attachments=self.attachments(cameras)
        )
        self.retry_s, self.lost = 0.0, 0
        self.next_ns = dict.fromkeys(cameras, 0)
        for topic, (kind, profile) in topics.items():
            keep = partial(self.keep, self.place_of(topic), stamped="header" in kind.get_fields_and_field_types())
            self.subscribe(kind, topic, keep, profile, raw=True)
        for camera in cameras:
            self.subscribe(Image, f"camera/{camera}/image", partial(self.on_image, camera), qos.SENSOR)

    def on_cleanup_(self) -> None:
        self.recording.close()

    def more(self) -> dict[str, tuple[type, object]]:
        """Topic -> (type, QoS) of the parameter `topics`."""
        found: dict[str, tuple[type, object]] = {}
        for entry in self.params.topics:
            topic, *kind = entry.split()
            if len(kind) != 1:
                raise ParameterError(f"parameter 'topics' has {entry!r}, expected a topic and its type, such as"
                                     " '/servo/twist geometry_msgs/msg/TwistStamped'")
            found[topic] = message_class(kind[0]), qos.RECORD
        return found

    def attachments(self, cameras: Iterable[str]) -> dict[str, str]:
        """Name -> text of what tells how this was recorded; those that are needed to read it lie beside it, too."""
        p = self.params
        own = {TASK: task_file(p.task).read_text(encoding="utf-8")}
        if cameras:
            own[MAPPING] = own_mapping(cameras, TASK)
        try:
            files = {f"parameters/{i}_{Path(name).name}": Path(name).read_text(encoding="utf-8")
                     for i, name in enumerate(p.embed, 1)}  # fmt: skip
        except (OSError, UnicodeDecodeError) as error:
            raise ParameterError(f"parameter 'embed': {error}; give text files that are there") from None
        folder = Path(p.session) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in own.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise RecordingError(f"recording folder {folder}: {error.strerror}; choose a writable session") from error
        return own | files

    @staticmethod
    def place_of(topic: str) -> str:
        """Name in the recording: one session is one robot, whatever its namespace, and a layout fits them all."""
        return "/" + topic.lstrip("/")

    def on_image(self, camera: str, msg: Image) -> None:
        # By the stamps: what was late comes in a bunch.
        ns, every_ns, form = stamp_ns(msg.header.stamp), 1e9 / self.params.images_hz, self.params.picture_format
        if ns < self.next_ns[camera] - SLACK * every_ns and self.next_ns[camera] - ns < 2 * every_ns:
            return
        image = cv2.cvtColor(image_from_msg(msg), cv2.COLOR_RGB2BGR)
        self.next_ns[camera] = max(self.next_ns[camera] + round(every_ns), ns)
        how = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, self.params.jpeg_quality], "png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}
        done, small = cv2.imencode(f".{form}", image, how[form])
        if not done:
            raise ValueError(f"image of {msg.width}x{msg.height} cannot be made a {form}")
        small = CompressedImage(header=msg.header, format=form, data=packed(small, "B"))
        self.keep(picture_topic(camera), serialize_message(small))

    def keep(self, topic: str, data: bytes, stamped: bool = True) -> None:
        """Write a CDR message down; one that is `stamped` begins with a header."""
        if self.now_s() < self.retry_s:
            self.lost += 1
            return
        sent_ns = now_ns = self.now_ns()
        if stamped:
            if len(data) < 12:
                raise ValueError(f"{len(data)} bytes, expected a header of 12 at least")
            order = "little" if data[1] & 1 else "big"
            sec, nanosec = int.from_bytes(data[4:8], order, signed=True), int.from_bytes(data[8:12], order)
            sent_ns = sec * 1_000_000_000 + nanosec
        try:
            self.recording.add(topic, data, now_ns, sent_ns)
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
