"""What a session looked like: pictures, phases, actions and states in MCAP files for Foxglove. Imports no ROS.

Beside the journal, which is what the learner trains on, this is to be looked at: `recording/NNNN.mcap`, many topics a
file. Messages are kept in chunks, so a killed process loses what came in the last CHUNK_BYTES, a second or a few; the
rest of its file is whole. Files are of bounded size, and the oldest go when all together are too large.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, Writer

from rlt_ros.data.journal import DAMAGE, Pending, journal_files, next_number

FOLDER = "recording"
MAPPING, TASK = "mapping.yaml", "task.yaml"  # what a recording has within it, to be read as demonstrations
FILE_BYTES = 32 << 20
CHUNK_BYTES = 32 << 10


class RecordingError(RuntimeError):
    """The recording cannot be written; the text says which file, what is wrong and what to do."""


class Recording:
    """Writes CDR messages of several topics into a session's `recording` folder.

    After a RecordingError the file is closed with what was whole, and the next `add` begins another.

    Args:
        folder: made if missing.
        schemas: topic -> (ROS 2 type such as `rlt_ros/msg/Proprio`, its definition in MCAP's `ros2msg` form).
        most_bytes: of all files together; the oldest are deleted for it, never the one that is being written. 0: none.
        file_bytes: after which a new file begins.
        attachments: name -> text that every file has with it.
    """

    def __init__(
        self,
        folder: Path,
        schemas: dict[str, tuple[str, str]],
        most_bytes: int,
        file_bytes: int = FILE_BYTES,
        attachments: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._schemas = folder, schemas
        self._most_bytes, self._file_bytes = most_bytes, file_bytes
        self._attachments = attachments or {}
        self.messages = 0
        self._file, self._size = -1, 0
        self.path = folder
        self._begin()

    def add(self, topic: str, data: bytes, log_ns: int, publish_ns: int) -> None:
        """Store one message, received at `log_ns` and stamped `publish_ns`. RecordingError when the disk refuses it."""
        if self._file < 0:
            self._begin()
        elif self._size > self._file_bytes:
            self.close()
            self._begin()
        self._writer.add_message(self._channels[topic], log_ns, data, max(0, publish_ns), self.messages)
        self.messages += 1
        self._flush()

    def close(self) -> None:
        """Write what is pending and the index, when the disk takes them; a file without is still readable."""
        if self._file < 0:
            return
        try:
            self._writer.finish()
            self._flush()
        except RecordingError:
            pass
        self._end()

    def bytes(self) -> int:
        """Size of all files of the folder."""
        return sum(path.stat().st_size for path in journal_files(self.folder))

    def _begin(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            self.path = self.folder / f"{next_number(self.folder):04d}.mcap"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordingError(
                f"recording folder {self.folder}: {error.strerror}; make room there or choose a writable session folder"
            ) from error
        self._size, self._pending = 0, Pending()
        self._writer = Writer(self._pending, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library="rlt_ros")
        for name, text in self._attachments.items():
            self._writer.add_attachment(0, time.time_ns(), name, "text/plain", text.encode())
        known: dict[str, int] = {}
        self._channels = {}
        for topic, (name, text) in self._schemas.items():
            if name not in known:
                known[name] = self._writer.register_schema(name, "ros2msg", text.encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", known[name])
        self._flush()

    def _make_room(self) -> None:
        """Delete the oldest files until one more fits."""
        files = journal_files(self.folder)
        sizes = [path.stat().st_size for path in files]
        while self._most_bytes and files and sum(sizes) + self._file_bytes > self._most_bytes:
            files.pop(0).unlink()
            sizes.pop(0)

    def _flush(self) -> None:
        """Hand whole records to the operating system, all or nothing."""
        data = self._pending.take()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._size += len(data)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            self._end()
            raise RecordingError(f"recording {self.path}: {error.strerror}; make room on that disk") from error

    def _end(self) -> None:
        os.close(self._file)
        self._file = -1


def read_recording(folder: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(topic, ROS 2 type, ns when it was received, CDR bytes) of a session's recording, file after file.

    A file that ends in the middle, of a killed process, is read as far as it goes.
    """
    for path in journal_files(folder):
        yield from read_file(path)


def read_file(
    path: Path, warn: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[str, str, int, bytes]]:
    """The same of one file, as far as it is whole; `warn` is told when that is not to its end."""
    schemas, channels = {}, {}
    with path.open("rb") as file:
        try:
            for record in StreamReader(file, emit_chunks=False, validate_crcs=True).records:
                kind = type(record).__name__
                if kind == "Schema":
                    schemas[record.id] = record.name
                elif kind == "Channel":
                    channels[record.id] = (record.topic, schemas[record.schema_id])
                elif kind == "Message":
                    yield *channels[record.channel_id], record.log_time, record.data
        except DAMAGE as error:
            warn(f"{path} is torn ({str(error) or type(error).__name__}); what is whole before that is read")


def read_attachments(path: Path) -> dict[str, str]:
    """Name -> text of what a file has with it; empty for a file without, or that is none of this package."""
    found = {}
    with path.open("rb") as file:
        try:
            for record in StreamReader(file, emit_chunks=True).records:
                kind = type(record).__name__
                if kind == "Attachment":
                    found[record.name] = record.data.decode("utf-8", errors="replace")
                elif kind == "Chunk":  # ours stand before the first
                    break
        except DAMAGE:
            pass
    return found
