"""Recordings of messages (MCAP, also of rosbag2) as demonstrations: one episode a recording, or cut by episode/state.

Every message goes through what camera_node and proprio_node do with it live (rlt_ros.core.ingest): the same pictures
and the same vectors come out. DemoError names file, topic, message and time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.writer import MCAP0_MAGIC
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray

from rlt_ros.core.chunks import ControlClock
from rlt_ros.core.episode import Outcome
from rlt_ros.core.ingest import CameraIngest, ProprioIngest
from rlt_ros.core.pictures import PictureError, compressed_size
from rlt_ros.core.proprioception import ProprioError, yaw_of
from rlt_ros.core.streams import StampError
from rlt_ros.data import demos, resample
from rlt_ros.data.journal import journal_files
from rlt_ros.data.mapping import DemoError, Mapping, load_mapping
from rlt_ros.data.recording import FOLDER, MAPPING, TASK, read_attachments, read_file
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio
from rlt_ros.ros.conversions import chunk_from_msg, proprio_from_msg, stamp_ns
from rlt_ros.ros.ingest import add_reading, small_picture

TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage,
         "sensor_msgs/msg/JointState": JointState, "geometry_msgs/msg/PoseStamped": PoseStamped,
         "geometry_msgs/msg/TwistStamped": TwistStamped, "geometry_msgs/msg/WrenchStamped": WrenchStamped,
         "std_msgs/msg/Float64MultiArray": Float64MultiArray, "std_msgs/msg/Bool": Bool,
         "rlt_ros/msg/ActionChunk": ActionChunk}  # fmt: skip
TYPES_OWN = TYPES | {"rlt_ros/msg/Proprio": Proprio, "rlt_ros/msg/EpisodeState": EpisodeState}
_PICTURES = (Image, CompressedImage)
_STREAMS = {"pose": (PoseStamped,), "twist": (TwistStamped,), "wrench": (WrenchStamped,), "joint_states": (JointState,)}
# kind of action -> messages that can say it
_ACTIONS = {"normalised": (ActionChunk, TwistStamped, JointState, Float64MultiArray),
            "velocity": (TwistStamped, JointState, Float64MultiArray),
            "position": (PoseStamped, JointState, Float64MultiArray), "delta": ()}  # fmt: skip
_DAMAGE = (McapError, OSError, ValueError, EOFError, AssertionError)
_DENSE = 0.9  # part of the ticks that must have a vector of their own for them to be taken as they are
_AROUND_NS = 1_000_000_000  # before and after an episode, for messages that come early or late


@dataclass(frozen=True)
class Recording:
    """The files of one episode, in their order."""

    path: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Cut:
    """One episode within a recording of this package; ticks, critical -1 where nobody marked it."""

    number: int  # as the operator saw it
    start: int
    end: int
    critical: int


class Session:
    """A recording of this package: its files, and the episodes that were kept in it.

    Attributes:
        cuts: the kept ones, in order.  notes: what a person should know.
    """

    def __init__(self, source: Path, mapping: Mapping) -> None:
        """DemoError when there is no recording, or nothing was kept in it, or it is of another rate than the task."""
        topic, clock = mapping.episodes, ControlClock(mapping.task.rate)
        self.path, self.files = Path(source), own_files(source)
        if not self.files:
            raise DemoError(f"{source}: no recording ({FOLDER}/*.mcap); give the session that was recorded in")
        self.notes: list[str] = []
        self.topics: dict[str, str] = {}
        self._spans: list[tuple[Path, int, int]] = []  # file, from when to when
        last: dict[tuple[int, int], EpisodeState] = {}  # what was said last of an episode: labels can be taken back
        for path in self.files:
            begin_ns = end_ns = 0
            for where, kind, log_ns, data in read_file(path, self.notes.append):
                if where == mapping.proprio and where not in self.topics and TYPES_OWN.get(kind) is Proprio:
                    _expect_rate(path, data, clock, mapping)
                self.topics[where] = kind
                begin_ns, end_ns = begin_ns or log_ns, max(end_ns, log_ns)
                if where != topic:
                    continue
                if TYPES_OWN.get(kind) is not EpisodeState:
                    raise DemoError(f"{path}: {topic} is a {kind}, expected rlt_ros/msg/EpisodeState for 'episodes'")
                msg = deserialize_message(data, EpisodeState)
                if msg.start_tick >= 0:
                    last[msg.episode, msg.start_tick] = msg
            self._spans.append((path, begin_ns, end_ns))
        kept = [msg for msg in last.values() if msg.outcome == Outcome.SUCCESS]
        others = Counter(Outcome(msg.outcome).name.lower() for msg in last.values() if msg.outcome != Outcome.SUCCESS)
        if "none" in others:
            others["not ended"] = others.pop("none")
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(others.items()))
        if not kept:
            raise DemoError(
                f"{source}: nothing was kept in it ({told or f'no episode on {topic}'}); only episodes that end in"
                " success are demonstrations"
            )
        if told:
            self.notes.append(f"left out, as they did not end in success: {told}")
        self.cuts = [
            Cut(msg.episode, msg.start_tick, msg.end_tick, msg.critical_tick)
            for msg in sorted(kept, key=lambda msg: msg.start_tick)
        ]

    def messages(self, begin_ns: int, end_ns: int) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, when it was received, CDR bytes) of what came between two times."""
        for path, first_ns, last_ns in self._spans:
            if first_ns <= end_ns and begin_ns <= last_ns:
                yield from (found for found in read_file(path) if begin_ns <= found[2] <= end_ns)


def _expect_rate(path: Path, data: bytes, clock: ControlClock, mapping: Mapping) -> None:
    msg = deserialize_message(data, Proprio)
    tick = clock.tick(stamp_ns(msg.header.stamp))
    if msg.tick != tick:
        raise DemoError(
            f"{path}: {mapping.proprio} has tick {msg.tick} where the stamp is of tick {tick} at {clock.rate_hz:g} Hz:"
            f" it was recorded at another rate than that of the task '{mapping.task.name}'"
        )


def own_files(source: Path) -> list[Path]:
    """The files of a recording of this package: of a session, of its folder of recordings, or the file itself."""
    source = Path(source)
    if source.is_file():
        return [_mcap(source)]
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    return journal_files(folder)


def _mcap(path: Path) -> Path:
    """The path, if that is an MCAP file by its first bytes; DemoError for another."""
    with path.open("rb") as file:
        if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise DemoError(f"{path}: is no MCAP file; `ros2 bag convert` makes one of other recordings")
    return path


def own_mapping_of(source: Path, task: str | None = None) -> Mapping:
    """The mapping that a recording of this package has within it; `task` goes before its own. DemoError without one."""
    files = own_files(source)
    found = read_attachments(files[0]) if files else {}
    if MAPPING not in found:
        raise DemoError(f"{source}: no recording of rlt_ros with a mapping of its own; give a mapping file with --map")
    with tempfile.TemporaryDirectory() as folder:
        for name in (MAPPING, TASK):
            (Path(folder) / name).write_text(found.get(name, ""), encoding="utf-8")
        mapping = load_mapping(Path(folder) / MAPPING, task)
    return replace(mapping, path=files[0] / MAPPING)


def recordings(source: Path) -> list[Recording]:
    """What there is at a path: an MCAP file, a folder of rosbag2, or a folder of either. DemoError without any."""
    source = Path(source)
    if source.is_file():
        return [Recording(source, (_mcap(source),))]
    if (source / "metadata.yaml").is_file():
        return [_bag(source)]
    bags = [_bag(path.parent) for path in sorted(source.glob("*/metadata.yaml"))]
    found = bags + [Recording(path, (_mcap(path),)) for path in sorted(source.glob("*.mcap"))]
    if not found:
        older = next(source.glob("**/*.db3"), None) if source.is_dir() else None
        raise DemoError(
            f"{source}: no recordings (*.mcap, or folders with metadata.yaml)"
            + (f"; {older.name} is SQLite: `ros2 bag convert` makes MCAP of it" if older else "")
        )
    return found


def _bag(folder: Path) -> Recording:
    path = folder / "metadata.yaml"
    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]["relative_file_paths"]
        files = tuple(folder / name for name in names)
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DemoError(f"{path}: {error!r}; expected what `ros2 bag` writes: `ros2 bag reindex` mends it") from None
    for file in files:
        if file.suffix != ".mcap":
            raise DemoError(f"{file}: expected an MCAP file; `ros2 bag convert` makes one")
        if not file.is_file():
            raise DemoError(f"{file}: is not there, but {path} names it")
    return Recording(folder, files)


def import_mcap(
    source: Path, mapping: Mapping, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, list[str]]:
    """Import recordings into the new folder `out`; it is there whole or, after any error, not at all.

    Returns the number of episodes, and what a person should know.  DemoError, ValueError.
    """
    _fits(mapping)
    notes: Counter[str] = Counter()
    with demos.new_folder(out) as folder:
        session = Session(source, mapping) if mapping.episodes else None
        found = session.cuts if session is not None else recordings(source)
        chosen = [(i, part) for i, part in enumerate(found) if i not in mapping.skip]
        what = "recordings" if session is None else "episodes"
        if unknown := [number for number in mapping.skip if not 0 <= number < len(found)]:
            raise DemoError(f"{source}: skip has {unknown[0]}, there are the {what} 0 to {len(found) - 1}")
        if not chosen:
            raise DemoError(f"{source}: skip in {mapping.path} leaves none of {len(found)} {what}")
        for done, (number, part) in enumerate(chosen, 1):
            if session is None:
                reader = Episode(mapping, part)
            else:
                name = Path(f"{session.path}, episode {part.number} (--skip {number})")
                reader = Episode(mapping, Recording(name, tuple(session.files)), session, part)
            episode, said = reader.read()
            notes.update(said)
            images = episode.pop("images")
            demos.save(folder / f"episode_{number:06d}.npz", images, len(images), **episode)
            progress(done, len(chosen))
        told = [f"{text}: {count} of {len(chosen)} {what}" for text, count in notes.items()]
        told += session.notes if session is not None else []
        demos.note_origin(folder, source, mapping, told)
    return len(chosen), told


def _fits(mapping: Mapping) -> None:
    """DemoError when a mapping says what only a LeRobot dataset can have."""
    where = f"mapping {mapping.path}"
    if mapping.kind == "delta":
        raise DemoError(
            f"{where}: action.kind is delta, expected velocity, position or normalised for messages, which"
            " have no frames"
        )
    if mapping.tasks:
        raise DemoError(f"{where}: tasks chooses episodes of a LeRobot dataset; recordings have no task strings")
    for part, source in mapping.state.items():
        if source.factor != (1.0,):
            raise DemoError(
                f"{where}: state.{part}.unit: messages are taken as the nodes take them, in SI; mend the driver"
            )
    topics: dict[str, str] = {}
    for part, source in mapping.state.items():
        stream = mapping.assembler().stream_of(part)
        if topics.setdefault(stream, source.source) != source.source:
            raise DemoError(
                f"{where}: state.{part} comes from {source.source}, but others of {stream} from"
                f" {topics[stream]}; one topic is listened to, as live"
            )


@dataclass
class _Action:
    """What was commanded."""

    stamps: list[int] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    by_tick: dict[int, np.ndarray] = field(default_factory=dict)  # of ActionChunk


class Episode:
    """One recording on its way to a demonstration."""

    def __init__(
        self, mapping: Mapping, recording: Recording, session: Session | None = None, cut: Cut | None = None
    ) -> None:
        """session, cut: the recording is of this package, and the episode a part of it."""
        self.mapping, self.task, self.recording = mapping, mapping.task, recording
        self.session, self.cut = session, cut
        self.types = TYPES_OWN if mapping.proprio or mapping.episodes else TYPES
        self.clock = ControlClock(self.task.rate)
        shortest_ns = self.clock.period_ns // 2
        self.cameras = {
            name: CameraIngest(shortest_ns, freeze_s=c.freeze_s, dark_level=c.dark_level, bright_level=c.bright_level)
            for name, c in mapping.cameras.items()
        }
        # camera -> multiple of `every` -> newest picture until that tick
        self.pictures: dict[str, dict[int, tuple[int, np.ndarray]]] = {name: {} for name in mapping.cameras}
        assembler = mapping.assembler()
        self.ingest = ProprioIngest(assembler, assembler.streams)
        self.joined: list[tuple[int, int, np.ndarray]] = []
        self.action = _Action()
        self.true: dict[str, list[int]] = {}  # topic of success or critical -> stamps of what is above
        self.refused: Counter[str] = Counter()
        self.file, self.at = recording.path, ""

    def wrong(self, text: str) -> DemoError:
        return DemoError(f"{self.file}: {self.at}{text}")

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """(what demos.save takes, notes)."""
        uses = self._uses()
        seen = self._topics(set(uses)) if self.session is None else self.session.topics.keys()
        missing = [topic for topic in uses if topic not in seen]
        if missing:
            raise self.wrong(
                f"no messages on {missing[0]}, which {self.mapping.path} names for {uses[missing[0]][0][0]};"
                f" there are: {', '.join(sorted(seen))}"
            )
        begin_ns = 0
        counts: Counter[str] = Counter()
        for topic, kind, log_ns, data in self._messages(uses):
            begin_ns = begin_ns or log_ns
            counts[topic] += 1
            self.at = f"{topic}, message {counts[topic] - 1} at {(log_ns - begin_ns) * 1e-9:.3f} s: "
            try:
                msg = deserialize_message(data, kind)
            except Exception as error:  # whatever rclpy makes of bytes that are no such message
                raise self.wrong(
                    f"is no {kind.__name__} ({error}); the file is damaged or of another version"
                ) from None
            ns = stamp_ns(msg.header.stamp) if hasattr(msg, "header") else log_ns
            for what, take in uses[topic]:
                try:
                    take(msg, ns, log_ns)
                except StampError as error:  # as live
                    self.refused[f"{what}: messages with wrong stamps ({error.kind}) are left out, as live"] += 1
                except (PictureError, ProprioError) as error:
                    raise self.wrong(f"{what}: {error}") from None
        self.at = ""
        return self._demonstration()

    def _uses(self) -> dict[str, list[tuple[str, Callable[[Any, int, int], None]]]]:
        """Topic -> (what it is used for, what takes its messages)."""
        mapping, uses = self.mapping, {}
        for name, source in mapping.cameras.items():
            uses.setdefault(source.source, []).append((f"camera '{name}'", self._camera(name)))
        for stream, topic in mapping.streams.items():
            uses.setdefault(topic, []).append((f"state ({stream})", self._stream(stream)))
        if mapping.proprio:
            uses.setdefault(mapping.proprio, []).append(("state", self._vector))
        uses.setdefault(mapping.action.source, []).append(("action", self._command))
        for what, when in (("success", mapping.success), ("critical", mapping.critical)):
            if when.source and when.source not in self.true:
                self.true[when.source] = []
                uses.setdefault(when.source, []).append((what, self._truth(when.source, when.above)))
        return uses

    def _camera(self, name: str) -> Callable[[Any, int, int], None]:
        source, ingest, kept = self.mapping.cameras[name], self.cameras[name], self.pictures[name]
        every, size = self.mapping.every, self.mapping.size

        def take(msg: Any, ns: int, received_ns: int) -> None:
            self._expect(msg, _PICTURES)
            if self.cut is not None and self.clock.tick(ns) < self.cut.start:
                return  # the scene may have been another one
            side = size or _side(msg, source.crop)
            picture, wrong = ingest.take(ns, received_ns, lambda: small_picture(msg, side, source.crop))
            if picture is not None:
                kept[-(-self.clock.tick(ns) // every)] = ns, picture
            elif wrong != "too_many":
                self.refused[f"camera '{name}': pictures are left out ({wrong}), as live"] += 1

        return take

    def _stream(self, stream: str) -> Callable[[Any, int, int], None]:
        assembler = self.ingest.assembler

        def take(msg: Any, ns: int, received_ns: int) -> None:
            self._expect(msg, _STREAMS[stream])
            joined = self.ingest.take(
                stream, ns, received_ns, lambda: add_reading(assembler, stream, msg, self.clock.tick(ns), ns)
            )
            if joined is not None:
                if self.joined and joined[0] <= self.joined[-1][0]:
                    raise self.wrong("the clock was set back within the recording; cut it there")
                self.joined.append(joined)

        return take

    def _vector(self, msg: Any, ns: int, received_ns: int) -> None:
        self._expect(msg, (Proprio,))
        try:
            tick, values = proprio_from_msg(msg, self.task.proprio_dim)
        except ValueError as error:
            raise self.wrong(f"state: {error}; was it recorded for another task than '{self.task.name}'?") from None
        if self.joined and tick <= self.joined[-1][0]:
            raise StampError("order", "not newer than the one before")
        if self.cut is None or self.cut.start <= tick <= self.cut.end:
            self.joined.append((tick, ns, values))

    def _truth(self, topic: str, above: float) -> Callable[[Any, int, int], None]:
        def take(msg: Any, ns: int, received_ns: int) -> None:
            self._expect(msg, (Bool,))
            if float(msg.data) > above:
                self.true[topic].append(ns)

        return take

    def _command(self, msg: Any, ns: int, received_ns: int) -> None:
        mapping, names = self.mapping, self.task.action_names
        self._expect(msg, _ACTIONS[mapping.kind], f"an action of kind {mapping.kind}")
        if isinstance(msg, ActionChunk):
            try:
                chunk = chunk_from_msg(msg)
            except ValueError as error:
                raise self.wrong(f"action: {error}") from None
            if chunk.actions.shape[1] != len(names):
                raise self._another(chunk.actions.shape[1], "numbers without names")
            for i, action in enumerate(chunk.actions):
                self.action.by_tick[chunk.tick + i] = action
            return
        has, values = _values(msg, mapping.kind)
        # Names that are others than the task's must be picked: their number alone says little.
        pick = list(mapping.action.pick or (names if set(names) <= set(has) else [] if has else range(len(values))))
        if len(pick) != len(names):
            raise self._another(len(values), ", ".join(has) or "numbers without names")
        index = {name: i for i, name in enumerate(has)}
        try:
            chosen = np.array([values[index[p] if isinstance(p, str) else p] for p in pick])
        except (KeyError, IndexError):
            raise self._another(len(values), ", ".join(has) or "numbers without names") from None
        chosen = chosen * np.array(mapping.action.factor)
        if not np.isfinite(chosen).all():
            raise self.wrong(
                f"action: {chosen.tolist()} is not finite; cut the recording there, or leave it out by skip"
            )
        if self.action.stamps and ns < self.action.stamps[-1]:
            raise StampError("order", "older than the one before")
        self.action.stamps.append(ns)
        self.action.values.append(chosen)

    def _another(self, count: int, has: str) -> DemoError:
        names = self.task.action_names
        return self.wrong(
            f"action has {count} values ({has}), the task '{self.task.name}' has {len(names)}"
            f" ({', '.join(names)}): another action space; action.pick says which, if any fit"
        )

    def _expect(self, msg: Any, kinds: tuple[type, ...], what: str = "this use") -> None:
        if not isinstance(msg, kinds):
            raise self.wrong(
                f"is a {type(msg).__name__}, expected for {what}: {', '.join(kind.__name__ for kind in kinds)}"
            )

    def _open(self, path: Path) -> Any:
        self.file = path
        try:
            return path.open("rb")
        except OSError as error:
            raise self.wrong(f"{error.strerror}") from None

    def _topics(self, wanted: set[str]) -> set[str]:
        """Topics with messages; DemoError for a file that is not whole and for a wanted topic of unknown type."""
        seen = set()
        for path in self.recording.files:
            with self._open(path) as stream:
                try:
                    summary = SeekingReader(stream).get_summary()
                except _DAMAGE as error:
                    raise self._torn(error) from None
                if summary is None or summary.statistics is None:
                    raise self._torn("it has no summary")
                for channel in summary.channels.values():
                    if not summary.statistics.channel_message_counts.get(channel.id, 0):
                        continue
                    seen.add(channel.topic)
                    if channel.topic not in wanted:
                        continue
                    schema = summary.schemas.get(channel.schema_id)
                    self._type(channel.topic, schema.name if schema is not None else "nothing")
                    if channel.message_encoding != "cdr":
                        raise self.wrong(
                            f"{channel.topic} is encoded as {channel.message_encoding!r}, expected 'cdr' of ROS 2"
                        )
        return seen

    def _type(self, topic: str, name: str) -> type:
        if name not in self.types:
            raise self.wrong(f"{topic} is a {name}, which cannot be imported; expected one of: {', '.join(self.types)}")
        return self.types[name]

    def _torn(self, error: object) -> DemoError:
        return self.wrong(
            f"cannot be read to its end ({error or 'cut off'}); the file is cut off or damaged: `mcap"
            " recover` mends what is there"
        )

    def _messages(self, topics: dict) -> Iterator[tuple[str, type, int, bytes]]:
        if self.session is not None and self.cut is not None:
            begin_ns, end_ns = (self.clock.stamp_ns(tick) for tick in (self.cut.start, self.cut.end + 1))
            for topic, name, log_ns, data in self.session.messages(begin_ns - _AROUND_NS, end_ns + _AROUND_NS):
                if topic in topics:
                    yield topic, self._type(topic, name), log_ns, data
            return
        for path in self.recording.files:
            with self._open(path) as stream:
                try:
                    for schema, channel, message in SeekingReader(stream, validate_crcs=True).iter_messages(
                        list(topics)
                    ):
                        yield channel.topic, self.types[schema.name], message.log_time, message.data
                except DemoError:
                    raise
                except _DAMAGE as error:
                    raise self._torn(error) from None

    # --- at the ticks --------------------------------------------------------------------------------------------

    def _demonstration(self) -> tuple[dict[str, Any], list[str]]:
        self.file = self.recording.path
        mapping, task, period_ns = self.mapping, self.task, self.clock.period_ns
        if len(self.joined) < 2:
            missing = [self.mapping.proprio] if self.mapping.proprio else self.ingest.assembler.waiting_for()
            missing = missing or ["more than one tick"]
            raise self.wrong(
                f"the state never comes together: nothing usable of {', '.join(missing)}; the episode is empty"
            )
        stamps = np.array([ns for _, ns, _ in self.joined])
        gaps = np.diff(stamps)
        if gaps.max() > mapping.max_gap_s * 1e9:
            raise self._gap("the state", int(stamps[np.argmax(gaps)]), gaps.max() * 1e-9)
        frames = self._frames(int(self.joined[0][0]), int(self.joined[-1][0]))
        first, last = frames[0] * mapping.every, int(self.joined[-1][0])
        if self.cut is not None:
            self._expect_all_of(self.cut, first, last)
        ticks = np.arange(first, last + 1)
        if len(ticks) < 2:
            raise self.wrong("pictures and state have less than two ticks in common; the episode is empty")
        notes = [text for text in self.refused]
        known, values = np.array([tick for tick, _, _ in self.joined]), np.stack([v for _, _, v in self.joined])
        if len(known) >= _DENSE * (known[-1] - known[0] + 1):
            proprio = resample.interpolate(ticks, known, values, mapping.angles)
            there = np.searchsorted(ticks, known[known >= first])
            proprio[there] = values[known >= first]  # as they are: the way by angles may round
        else:
            notes.append(f"the state is resampled from {1e9 / np.median(gaps):.3g} to {task.rate:g} Hz, linearly")
            at = np.clip(ticks * period_ns, stamps[0], stamps[-1]) - stamps[0]
            proprio = resample.interpolate(at * 1e-9, (stamps - stamps[0]) * 1e-9, values, mapping.angles)
        action = self._actions(ticks, notes)
        critical = mapping.critical
        if self.cut is not None:
            critical_tick = min(max(self.cut.critical - first, 0), len(ticks) - 1) if self.cut.critical >= 0 else -1
        elif critical.source:
            true = [self.clock.tick(ns) for ns in self.true[critical.source]]
            critical_tick = min(max(min(true) - first, 0), len(ticks) - 1) if true else -1
        elif critical.before_end_s is not None:
            critical_tick = max(0, len(ticks) - round(critical.before_end_s * task.rate))
        else:
            critical_tick = 0 if critical.constant else -1
        success = bool(self.true[mapping.success.source]) if mapping.success.source else bool(mapping.success.constant)
        shown = [[self.pictures[name][frame][1] for name in mapping.cameras] for frame in frames]
        if len(sizes := {picture.shape[:2] for pictures in shown for picture in pictures}) > 1:
            raise self.wrong(f"pictures of several sizes ({sorted(sizes)}) and pictures.size 0: give a size, in px")
        images = np.stack(shown)
        return dict(
            images=images, frame_tick=np.array(frames) * mapping.every - first, proprio=proprio,
            action=np.clip(action, -1.0, 1.0), success=np.asarray(success), critical_tick=np.asarray(critical_tick),
            instruction=np.asarray(task.instruction),
        ), notes  # fmt: skip

    def _expect_all_of(self, cut: Cut, first: int, last: int) -> None:
        """DemoError when the recording lacks the beginning or the end of its episode."""
        most_s = self.mapping.max_gap_s + self.mapping.every * self.clock.period_s
        for what, ticks in (("beginning", first - cut.start), ("end", cut.end - last)):
            if ticks * self.clock.period_s > most_s:
                raise self.wrong(
                    f"{ticks * self.clock.period_s:.2f} s of pictures or state are missing at its {what}, more than"
                    f" {most_s:g} s: the recorder, a camera or the robot's driver was silent; leave it out"
                )

    def _frames(self, first: int, last: int) -> list[int]:
        """The multiples of `every` ticks from where all cameras are there to the state's end; DemoError for a gap."""
        every, frames = self.mapping.every, []
        for name, kept in self.pictures.items():  # a picture serves until the next
            held: tuple[int, np.ndarray] | None = None
            for number in range(min(kept, default=0), last // every + 1):
                held = kept.setdefault(number, held) if held is not None else kept.get(number)
        for number in range(-(-first // every), last // every + 1):
            there = {name: kept.get(number) for name, kept in self.pictures.items()}
            oldest_ns = self.clock.stamp_ns(number * every) - round(self.mapping.max_gap_s * 1e9)
            late = [name for name, found in there.items() if found is None or found[0] < oldest_ns]
            if late and frames:
                found = there[late[0]]
                assert found is not None  # a picture serves until the next
                raise self._gap(
                    f"camera '{late[0]}'", found[0], 1e-9 * (self.clock.stamp_ns(number * every) - found[0])
                )
            if not late:
                frames.append(number)
        if not frames:
            silent = [name for name, kept in self.pictures.items() if not kept]
            raise self.wrong(
                f"no tick has pictures of all cameras and the state; usable ones are missing of"
                f" {', '.join(silent) or 'all at the same time'}"
                + (f" ({'; '.join(self.refused)})" if self.refused else "")
            )
        return frames

    def _gap(self, what: str, ns: int, seconds: float) -> DemoError:
        told = f" ({'; '.join(self.refused)})" if self.refused else ""
        since = (ns - self.joined[0][1]) * 1e-9
        return self.wrong(
            f"{what} says nothing for {seconds:.2f} s from {since:.2f} s (stamp {ns * 1e-9:.3f}) on, more than"
            f" max_gap ({self.mapping.max_gap_s:g} s){told}; cut the recording there, or leave it out by"
            " skip"
        )

    def _actions(self, ticks: np.ndarray, notes: list[str]) -> np.ndarray:
        """Normalised actions [T, A]; zero, which means hold, where nothing was commanded."""
        task, mapping, action = self.task, self.mapping, self.action
        out = np.zeros((len(ticks), task.action_dim), np.float32)
        scale = np.array(task.action_scale)
        if action.by_tick:
            known = np.array([tick in action.by_tick for tick in ticks.tolist()])
            for i in np.flatnonzero(known):
                out[i] = action.by_tick[int(ticks[i])]
        else:
            stamps = np.array(action.stamps)
            # What came within a tick is of that tick; a target's way between two messages is known at its beginning.
            ends = ticks * self.clock.period_ns + (0 if mapping.kind == "position" else self.clock.period_ns - 2000)
            times, ends_s = (stamps - stamps[0]) * 1e-9, (ends - stamps[0]) * 1e-9
            out = resample.actions(ends_s, times, np.stack(action.values), mapping.kind, scale, task.action_names)
            age = ends_s - times[resample.newest(ends_s, times)]
            known = (age >= 0) & ((age <= mapping.max_gap_s) | (mapping.kind == "position"))
            out[~known] = 0.0
        if not known.any():
            raise self.wrong(
                f"no command on {mapping.action.source} in the time of state and pictures; the episode is empty"
            )
        if not known.all():
            notes.append("ticks without a command count as hold (zeros)")
        over = np.abs(out).max(1) > 1 + 1e-4
        if over.mean() > mapping.max_clipped:
            i = int(np.argmax(np.abs(out).max(1)))
            which = int(np.argmax(np.abs(out[i])))
            raise self.wrong(
                f"frame {i} ({i * self.clock.period_s:.2f} s): action '{task.action_names[which]}' is"
                f" {abs(out[i, which]):.3g} of full action, and {100 * over.mean():.1f} % of the ticks are over"
                f" 1, more than max_clipped ({100 * mapping.max_clipped:g} %); look at action.unit and"
                " action.kind in the mapping and at action.scale of the task"
            )
        if over.any():
            notes.append("actions over full action are clipped")
        return out


def _side(msg: Any, crop: tuple[int, ...]) -> int:
    """Side [px] of the square that a picture has as it is."""
    if crop:
        return min(crop[2:])
    if isinstance(msg, CompressedImage):
        return min(compressed_size(msg.data.tobytes())[1:])
    return min(msg.width, msg.height)


def _values(msg: Any, kind: str) -> tuple[list[str], list[float]]:
    """(names, values in SI) of a command."""
    if isinstance(msg, TwistStamped):
        v, w = msg.twist.linear, msg.twist.angular
        return ["x", "y", "z", "roll", "pitch", "yaw"], [v.x, v.y, v.z, w.x, w.y, w.z]
    if isinstance(msg, PoseStamped):
        p, q = msg.pose.position, msg.pose.orientation
        return ["x", "y", "z", "yaw"], [p.x, p.y, p.z, yaw_of((q.x, q.y, q.z, q.w))]
    if isinstance(msg, JointState):
        return list(msg.name), list(msg.velocity if kind == "velocity" else msg.position)
    return [], list(msg.data)
