"""The journal of a session: every transition, in MCAP files that ros2 bag and Foxglove open. Imports no ROS.

A file is never opened twice for writing: each start of the replay node begins `journal/NNNN.mcap`, so that a file that
a killed process left without its end can only lose its torn tail.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mcap.exceptions import McapError
from mcap.records import Message
from mcap.stream_reader import CRCValidationError, StreamReader
from mcap.writer import CompressionType, Writer

TOPIC = "replay"


class JournalError(RuntimeError):
    """The journal cannot be used; the text says which file, what is wrong and what to do."""


class Entry(NamedTuple):
    """One journalled message: its sequence number and its CDR bytes."""

    sequence: int
    data: bytes


class JournalWriter:
    """Appends CDR messages to one new MCAP file; each is with the operating system before `append` returns.

    Args:
        folder: the session's `journal` folder, made if missing.
        schema_name: ROS 2 type, for instance `rlt_ros/msg/Transition`.
        schema_text: its definition and those it needs, in MCAP's `ros2msg` form.

    Raises:
        JournalError: the file cannot be written.
    """

    def __init__(self, folder: Path, schema_name: str, schema_text: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{_next_number(folder):04d}.mcap"
            self._file = self.path.open("xb")
        except OSError as error:
            raise JournalError(f"journal folder {folder}: {error}; choose a writable session folder") from error
        # One chunk a message: a killed process loses nothing that `append` acknowledged, and the file has an index.
        self._writer = Writer(self._file, chunk_size=1, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library="rlt_ros")
        schema = self._writer.register_schema(schema_name, "ros2msg", schema_text.encode())
        self._channel = self._writer.register_channel(TOPIC, "cdr", schema)
        self._file.flush()

    def append(self, entry: Entry, stamp_ns: int) -> None:
        """Write one message. Raises JournalError when the disk refuses it."""
        try:
            self._writer.add_message(self._channel, stamp_ns, entry.data, stamp_ns, entry.sequence)
            self._file.flush()
        except OSError as error:
            raise JournalError(f"journal {self.path}: {error}; nothing more is recorded until this is solved") from error

    def close(self) -> None:
        """Write the index and close; a file without it is still readable."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()


def read_journal(folder: Path, first: int = 0, warn=lambda text: None) -> Iterator[Entry]:
    """Entries with a sequence number of at least `first`, in order, over all files of a session.

    What a killed process left torn at the end of a file is skipped, and `warn` is told. An entry whose number does not
    follow is a duplicate and is skipped too.
    """
    last = first - 1
    for path in journal_files(folder):
        with path.open("rb") as stream:
            records = StreamReader(stream, validate_crcs=True, record_size_limit=1 << 30).records
            try:
                for record in records:
                    if isinstance(record, Message) and record.sequence > last:
                        last = record.sequence
                        yield Entry(record.sequence, record.data)
            except (McapError, CRCValidationError, ValueError) as error:
                if path.stat().st_size > 0:
                    warn(f"journal {path}: torn after sequence {last} ({type(error).__name__}); read up to there")


def last_sequence(folder: Path, warn=lambda text: None) -> int:
    """The newest sequence number in a session's journal; -1 for an empty one."""
    return max((entry.sequence for entry in read_journal(folder, warn=warn)), default=-1)


def journal_files(folder: Path) -> list[Path]:
    """The session's MCAP files in the order they were written."""
    return sorted(folder.glob("[0-9]*.mcap"))


def _next_number(folder: Path) -> int:
    return max((int(path.stem) for path in journal_files(folder)), default=0) + 1
