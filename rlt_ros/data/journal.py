"""The journal of a session: every transition, in MCAP files that ros2 bag and Foxglove open. Imports no ROS.

A file is never opened twice for writing: each start of the replay node begins `journal/NNNN.mcap`, and so does a disk
that took no more and has space again. What a killed process or a full disk left torn is at most the end of one file.

What survives: an entry is with the operating system before it is given out, so a killed process loses nothing that was
given out, whatever `sync_ms` is. A power cut or a crash of the operating system loses, of what was given out,

    sync_ms = 0     nothing: an entry is on the disk before it is given out; what is given out at once shares a sync
    sync_ms = N     at most what is younger than N ms, and than the time that the disk takes to sync
    sync_ms = -1    what the operating system had not yet written by itself, on Linux up to about 30 s
"""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Header, Message, MessageIndex, Schema
from mcap.stream_reader import CRCValidationError, breakup_chunk
from mcap.writer import MCAP0_MAGIC, CompressionType, Writer

TOPIC = "replay"
# A writer keeps the index of its file in memory until the end: files of bounded size bound that, and what damage costs.
FILE_BYTES = 16 << 20
_RECORD = struct.Struct("<BQ")  # opcode, length
_KINDS = {
    Opcode.HEADER: Header,
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
    Opcode.MESSAGE: Message,
    Opcode.CHUNK: Chunk,
    Opcode.MESSAGE_INDEX: MessageIndex,
}
_DATA_END_BYTES = 4
DAMAGE = (McapError, CRCValidationError, ValueError, OverflowError, RuntimeError, struct.error)
_CHUNK = struct.Struct("<QQQIIQ")  # first and last time, size, CRC-32, length of the name "" of no compression, size


class JournalError(RuntimeError):
    """The journal cannot be used; the text says which file, what is wrong and what to do."""


class Entry(NamedTuple):
    """One journalled message: its sequence number and its CDR bytes."""

    sequence: int
    data: bytes


class JournalWriter:
    """Appends CDR messages to one new MCAP file; each is with the operating system before `append` returns.

    After a JournalError the file holds all entries before it, whole, and takes no more: close it and make another.

    Args:
        folder: the session's `journal` folder, made if missing.
        schema_name: ROS 2 type, for instance `rlt_ros/msg/Transition`.
        schema_text: its definition and those it needs, in MCAP's `ros2msg` form.

    Raises:
        JournalError: the file cannot be written.
    """

    def __init__(self, folder: Path, schema_name: str, schema_text: str) -> None:
        self.entries = 0
        self.size = 0  # bytes in the file, all of them whole records
        self.path, self._file = folder, -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{next_number(folder):04d}.mcap"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._new = Pending()
            # One chunk a message: a killed process loses nothing that `append` acknowledged, and the file has an index.
            self._writer = Writer(self._new, chunk_size=1, compression=CompressionType.NONE)
            self._writer.start(profile="ros2", library="rlt_ros")
            schema = self._writer.register_schema(schema_name, "ros2msg", schema_text.encode())
            self._channel = self._writer.register_channel(TOPIC, "cdr", schema)
            self._flush()
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
                self.path.unlink(missing_ok=True)
            raise JournalError(
                f"journal folder {folder}: {error.strerror}; make room there or choose a writable session folder"
            ) from error

    def append(self, entry: Entry, stamp_ns: int) -> None:
        """Write one message. Raises JournalError when the disk refuses it."""
        self._writer.add_message(self._channel, stamp_ns, entry.data, stamp_ns, entry.sequence)
        try:
            self._flush()
        except OSError as error:
            raise JournalError(f"journal {self.path}: {error.strerror}; make room on that disk") from error
        self.entries += 1

    def sync(self) -> None:
        """Return when everything is on the disk. Raises JournalError when nobody knows whether it is."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise JournalError(f"journal {self.path}: sync: {error.strerror}; check that disk") from error

    def sync_folder(self) -> None:
        """The same for the name of the file; its content alone could not be found again."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise JournalError(f"journal {self.path}: sync: {error.strerror}; check that disk") from error

    def give_up(self) -> None:
        """Close after a JournalError; a file without entries goes away, so that they do not pile up on a full disk."""
        self.close(index=False)
        if not self.entries:
            self.path.unlink(missing_ok=True)

    def close(self, index: bool = True) -> None:
        """Write the index, when asked to and the disk takes it, and close; a file without it is still readable."""
        if self._file < 0:
            return
        try:
            if index:
                self._writer.finish()
                self._flush()
        except OSError:
            pass
        finally:
            os.close(self._file)
            self._file = -1

    def _flush(self) -> None:
        """Write what is pending, all or nothing."""
        data = self._new.take()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self.size += len(data)
        except OSError:
            os.ftruncate(self._file, self.size)  # takes no space, and gives some back
            raise


class Pending:
    """What the MCAP writer writes to: bytes on their way to the file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        self._parts.append(bytes(data))
        self._size += len(data)

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def read_journal(folder: Path, first: int = 0, warn=lambda text: None) -> Iterator[Entry]:
    """Entries with a sequence number of at least `first`, in order, over all files of a session.

    What is damaged, or torn at the end of a file by a kill or a full disk, is skipped, and `warn` is told; everything
    else is read. An entry whose number does not follow is a duplicate and is skipped too.
    """
    last = first - 1
    for path in journal_files(folder):
        for entry in _read_file(path, warn):
            if entry.sequence > last:
                last = entry.sequence
                yield entry


def last_sequence(folder: Path, warn=lambda text: None) -> int:
    """The newest sequence number in a session's journal; -1 for an empty one."""
    for path in reversed(journal_files(folder)):
        found = max((entry.sequence for entry in _read_file(path, warn)), default=-1)
        if found >= 0:
            return found
    return -1


def journal_files(folder: Path) -> list[Path]:
    """The session's MCAP files in the order they were written."""
    return sorted((path for path in folder.glob("*.mcap") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def next_number(folder: Path) -> int:
    return max((int(path.stem) for path in journal_files(folder)), default=0) + 1


def _read_file(path: Path, warn) -> Iterator[Entry]:
    """The whole entries of one file, in their order."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return  # of a process that died at once
            if file.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                warn(f"journal {path}: does not begin as an MCAP file does; reading what is whole in it")
            last = -1
            while (at := file.tell()) < size:
                try:
                    entries = _read_record(file, size)
                except DAMAGE as error:
                    found = _next_chunk(file, at + 1, size)
                    after = "torn" if found == size else f"{found - at} bytes damaged"
                    warn(f"journal {path}: {after} at byte {at}, after sequence {last} ({error}); the rest is read")
                    file.seek(found)
                    continue
                if entries is None:
                    return
                for entry in entries:
                    last = entry.sequence
                    yield entry
    except OSError as error:
        raise JournalError(f"journal {path}: {error.strerror}; make it readable or take it away") from error


def _read_record(file: BinaryIO, size: int) -> list[Entry] | None:
    """The entries in the record at the file's position; None where the data end. McapError or ValueError for damage.

    A record of the wrong size would swallow whole ones behind it, one of another kind would hide an entry: only what
    a journal is made of passes.
    """
    head = file.read(_RECORD.size)
    opcode, length = _RECORD.unpack(head) if len(head) == _RECORD.size else (0, size)
    if length > size - file.tell():
        raise ValueError("half a record")
    if opcode == Opcode.DATA_END and length == _DATA_END_BYTES:
        return None
    if opcode not in _KINDS:
        raise ValueError(f"no record of a journal has opcode {opcode}")
    content = ReadDataStream(io.BytesIO(file.read(length)))
    record = Message.read(content, length) if opcode == Opcode.MESSAGE else _KINDS[opcode].read(content)
    if content.count != length:
        raise ValueError(f"a record of {content.count} bytes says that it has {length}")
    records = breakup_chunk(record, validate_crc=True) if opcode == Opcode.CHUNK else [record]
    return [Entry(record.sequence, record.data) for record in records if isinstance(record, Message)]


def _next_chunk(file: BinaryIO, start: int, size: int) -> int:
    """Where the next whole chunk of our kind begins; `size` when there is none."""
    file.seek(start)
    data = file.read()  # files are small
    at = data.find(bytes([Opcode.CHUNK]))
    while at >= 0:
        begin = at + _RECORD.size
        if begin + _CHUNK.size <= len(data):
            _, length = _RECORD.unpack_from(data, at)
            _, _, whole, crc, name, stored = _CHUNK.unpack_from(data, begin)
            content = begin + _CHUNK.size
            plausible = name == 0 and whole == stored == length - _CHUNK.size and content + whole <= len(data)
            if plausible and zlib.crc32(memoryview(data)[content : content + whole]) == crc:
                return start + at
        at = data.find(bytes([Opcode.CHUNK]), at + 1)
    return size


class Journal:
    """What the replay node keeps: the writer, and a cursor from which entries are given out in order.

    An entry is given out only after it was written, and with `sync_ms` 0 synced. Whoever missed some asks with
    `rewind`, and everything from there on comes again, from the files where memory no longer has it. Without a folder
    nothing is stored, and only the newest `keep` entries can be asked for. `holes` has what nobody needs to ask for.

    When the disk refuses, `append` and `sync` raise JournalError and may be called again at any time: they begin a new
    file and go on where the last whole entry was. `take` goes on meanwhile with what is safe.
    """

    def __init__(
        self,
        folder: Path | None,
        schema_name: str,
        schema_text: str,
        keep: int = 4000,
        warn=lambda text: None,
        sync_ms: float = -1,
    ) -> None:
        self.next_sequence = 0
        self._folder, self._schema, self._warn = folder, (schema_name, schema_text), warn
        self._sync_ms = sync_ms if folder is not None else -1
        self._writer: JournalWriter | None = None
        # Written and not synced, with their stamps: should a sync fail, nobody knows what of them is on the disk.
        self._unsynced: deque[tuple[Entry, int]] = deque()
        self._unsynced_s = 0.0  # since when there are any
        if folder is not None:
            self.next_sequence = 1 + last_sequence(folder, warn)
            self._begin_file()
        self._recent: deque[Entry] = deque(maxlen=keep)
        self._cursor = self.next_sequence
        self.begins = self.given = self.next_sequence  # the first number of this run; all below `given` were given out
        self.holes: dict[int, int] = {}  # number -> the next one that there is, wherever entries turned out to be lost
        self._reader: Iterator[Entry] | None = None

    def append(self, data: bytes, stamp_ns: int) -> None:
        """Store the entry `next_sequence`. Raises JournalError when the disk refuses it; it has no number then."""
        entry = Entry(self.next_sequence, data)
        if self._folder is not None:
            self._write(entry, stamp_ns)
        if self._sync_ms >= 0:
            self._unsynced_s = self._unsynced_s if self._unsynced else time.monotonic()
            self._unsynced.append((entry, stamp_ns))
        self._recent.append(entry)
        self.next_sequence += 1

    def sync(self, within_s: float = 0.0) -> None:
        """Sync what `sync_ms` wants on the disk by `within_s` from now. Raises JournalError when the disk refuses."""
        if not self._unsynced or time.monotonic() + within_s < self._unsynced_s + 1e-3 * self._sync_ms:
            return
        try:
            if self._writer is None:
                self._begin_file()
            self._writer.sync()
        except JournalError:
            self._give_up_file()
            raise
        self._unsynced.clear()

    def rewind(self, sequence: int) -> None:
        """Give out again everything from `sequence` on; one that is still to come changes nothing."""
        if sequence < self._cursor:
            self._cursor, self._reader = sequence, None

    def take(self, most: int) -> list[bytes]:
        """The next entries to give out, at most so many."""
        safe = self._unsynced[0][0].sequence if self._unsynced and self._sync_ms == 0 else self.next_sequence
        taken: list[bytes] = []
        while self._cursor < safe and len(taken) < most:
            entry = self._at_cursor()
            if entry.sequence >= safe:
                break
            if entry.sequence > self._cursor:
                self.holes[self._cursor] = entry.sequence
            self._cursor = entry.sequence + 1
            taken.append(entry.data)
        self.given = max(self.given, self._cursor)
        return taken

    def close(self) -> None:
        """Sync by the policy and finish the file. Raises JournalError when what was given out may be lost."""
        try:
            self.sync(within_s=float("inf"))
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _write(self, entry: Entry, stamp_ns: int) -> None:
        try:
            if self._writer is not None and self._writer.size >= FILE_BYTES:
                self.sync(within_s=float("inf"))
                self._writer.close()
                self._writer = None
            if self._writer is None:
                self._begin_file()
            self._writer.append(entry, stamp_ns)
        except JournalError:
            self._give_up_file()
            raise

    def _begin_file(self) -> None:
        """A new file, with what nobody knows to be on the disk; readers skip what they meet twice."""
        self._writer = JournalWriter(self._folder, *self._schema)
        if self._sync_ms >= 0:
            self._writer.sync_folder()
        for entry, stamp_ns in self._unsynced:
            self._writer.append(entry, stamp_ns)

    def _give_up_file(self) -> None:
        if self._writer is not None:
            self._writer.give_up()
            self._writer = None

    def _at_cursor(self) -> Entry:
        """The entry at the cursor, or the next one there is; there is one."""
        oldest = self._recent[0].sequence if self._recent else self.next_sequence
        if self._cursor < oldest and self._folder is not None:
            # A reader sees its last file as it was when it came there: a second look finds what was added since.
            for reader in (self._reader, None):
                self._reader = reader or read_journal(self._folder, self._cursor)
                entry = next(self._reader, None)
                if entry is not None and entry.sequence < oldest:
                    return entry
        self._reader = None
        if not self._recent:
            raise JournalError(f"journal {self._folder}: sequence {self._cursor} is missing; was a file removed?")
        return self._recent[max(0, self._cursor - oldest)]
