"""The journal of a session: every transition, in MCAP files that ros2 bag and Foxglove open. Imports no ROS.

A file is never opened twice for writing: each start of the replay node begins `journal/NNNN.mcap`, so that a file that
a killed process left without its end can only lose its torn tail.
"""

from __future__ import annotations

import struct
from collections import deque
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
            raise JournalError(
                f"journal {self.path}: {error}; nothing more is recorded until this is solved"
            ) from error

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
            except (McapError, CRCValidationError, ValueError, struct.error) as error:
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


class Journal:
    """What the replay node keeps: the writer, and a cursor from which entries are given out in order.

    An entry is given out only after it was written. Whoever missed some asks with `rewind`, and everything from there
    on comes again, from the files where memory no longer has it. Without a folder nothing is stored, and only the
    newest `keep` entries can be asked for.
    """

    def __init__(
        self, folder: Path | None, schema_name: str, schema_text: str, keep: int = 4000, warn=lambda text: None
    ) -> None:
        self.next_sequence = 0
        self._folder = folder
        self._writer: JournalWriter | None = None
        if folder is not None:
            self.next_sequence = 1 + last_sequence(folder, warn)
            self._writer = JournalWriter(folder, schema_name, schema_text)
        self._recent: deque[Entry] = deque(maxlen=keep)
        self._cursor = self.next_sequence
        self._reader: Iterator[Entry] | None = None

    def append(self, data: bytes, stamp_ns: int) -> None:
        """Store the entry `next_sequence`. Raises JournalError when the disk refuses it; nothing is given out then."""
        entry = Entry(self.next_sequence, data)
        if self._writer is not None:
            self._writer.append(entry, stamp_ns)
        self._recent.append(entry)
        self.next_sequence += 1

    def rewind(self, sequence: int) -> None:
        """Give out again everything from `sequence` on; one that is still to come changes nothing."""
        if sequence < self._cursor:
            self._cursor, self._reader = sequence, None

    def take(self, most: int) -> list[bytes]:
        """The next entries to give out, at most so many."""
        taken: list[bytes] = []
        while self._cursor < self.next_sequence and len(taken) < most:
            entry = self._at_cursor()
            self._cursor = entry.sequence + 1
            taken.append(entry.data)
        return taken

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

    def _at_cursor(self) -> Entry:
        """The entry at the cursor, or the next one there is; there is one."""
        oldest = self._recent[0].sequence if self._recent else self.next_sequence
        if self._cursor < oldest and self._folder is not None:
            self._reader = self._reader or read_journal(self._folder, self._cursor)
            entry = next(self._reader, None)
            if entry is not None:
                return entry
        self._reader = None
        if not self._recent:
            raise JournalError(f"journal {self._folder}: sequence {self._cursor} is missing; was a file removed?")
        return self._recent[max(0, self._cursor - oldest)]
