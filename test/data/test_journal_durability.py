"""What a journal promises when processes are killed, disks fill up and power goes."""

import errno
import os
import random
import signal
import subprocess
import time

import pytest

from rlt_ros.data import journal as module
from rlt_ros.data.changes import read_changes, record_change
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.data.journal import Journal, JournalError, JournalWriter, journal_files, read_journal

TYPE, TEXT = "rlt_ros/msg/Transition", "uint64 sequence"


def content(sequence: int) -> bytes:
    """What entry `sequence` of these tests holds, of some 0 to 4 kB."""
    return random.Random(sequence).randbytes(random.Random(sequence).randrange(4000)) + b"end"


def fill(journal: Journal, count: int) -> None:
    for _ in range(count):
        journal.append(content(journal.next_sequence), 1)


def stored(folder, warn=lambda text: None) -> dict[int, bytes]:
    return {entry.sequence: entry.data for entry in read_journal(folder, warn=warn)}


@pytest.fixture
def disk(monkeypatch):
    """What reaches the platter: bytes of each file at its last sync, and a switch that makes syncs fail."""

    class Disk:
        syncs, broken = 0, False

    def fdatasync(descriptor: int) -> None:
        if Disk.broken:
            raise OSError(errno.EIO, "Input/output error")
        Disk.syncs += 1

    monkeypatch.setattr(module.os, "fdatasync", fdatasync)
    return Disk


# --- sync_ms


def test_with_0_everything_is_synced_before_it_is_given_out(tmp_path, disk):
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=0)
    fill(j, 3)
    assert j.take(10) == []  # written, not synced
    j.sync(within_s=0.05)
    assert disk.syncs == 1 and len(j.take(10)) == 3  # one sync for all of them
    j.rewind(0)
    fill(j, 1)
    assert len(j.take(10)) == 3  # what is safe is given out again, the new one is not


def test_with_n_nothing_is_older_than_that_without_a_sync(tmp_path, disk, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=200)
    fill(j, 1)
    assert len(j.take(10)) == 1  # a kill does not lose it
    unsynced, ages = [100.0], []
    for _ in range(40):  # the replay node comes by every 50 ms, and an entry must not get too old until it comes again
        now[0] += 0.05
        fill(j, 1)
        unsynced.append(now[0])
        before = disk.syncs
        j.sync(within_s=0.05)
        ages.append(now[0] - unsynced[0])
        unsynced = [] if disk.syncs > before else unsynced
    assert max(ages) < 0.2 + 1e-6 and 6 < disk.syncs < 14
    synced = disk.syncs
    now[0] += 10.0
    j.sync()
    j.sync()
    assert disk.syncs <= synced + 1  # nothing new: no sync


def test_with_minus_1_the_operating_system_decides(tmp_path, disk):
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=-1)
    fill(j, 5)
    j.sync()
    assert len(j.take(10)) == 5
    j.close()
    assert disk.syncs == 0


@pytest.mark.parametrize("sync_ms", [0, 200])
def test_closing_syncs_the_rest(tmp_path, disk, sync_ms):
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=sync_ms)
    fill(j, 2)
    j.close()
    assert disk.syncs == 1


@pytest.mark.parametrize("sync_ms", [0, 200])
def test_what_a_failed_sync_leaves_in_doubt_is_written_again(tmp_path, disk, sync_ms):
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=sync_ms)
    fill(j, 2)
    j.sync(within_s=1.0)
    fill(j, 3)
    disk.broken = True
    for _ in range(3):
        with pytest.raises(JournalError, match="sync: Input/output error"):
            j.sync(within_s=1.0)
    assert len(j.take(10)) == (2 if sync_ms == 0 else 5)
    disk.broken = False
    fill(j, 1)
    j.sync(within_s=1.0)
    journal_files(tmp_path)[0].unlink()  # the file in doubt turns out to be gone
    assert stored(tmp_path) == {i: content(i) for i in range(2, 6)}
    assert len(j.take(10)) == (4 if sync_ms == 0 else 1)


# --- files


def test_files_are_of_bounded_size_and_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 20_000)
    j = Journal(tmp_path, TYPE, TEXT, sync_ms=0, keep=2)
    fill(j, 40)
    j.sync()
    files = journal_files(tmp_path)
    assert len(files) > 3 and all(path.stat().st_size < 30_000 for path in files)
    assert all(path.read_bytes().endswith(module.MCAP0_MAGIC) for path in files[:-1])
    j.rewind(0)
    assert j.take(100) == [content(i) for i in range(40)]


def test_what_was_added_since_a_rewind_is_given_out_too(tmp_path):
    j = Journal(tmp_path, TYPE, TEXT, keep=2)
    fill(j, 5)
    j.rewind(0)
    taken = j.take(1)
    while len(taken) < 30:
        fill(j, 1 if j.next_sequence < 30 else 0)
        taken += j.take(1)
    assert taken == [content(i) for i in range(30)]


# --- a full disk

FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal_durability import TEXT, TYPE, Journal, JournalError, content, fill
journal = Journal(Path(sys.argv[1]), TYPE, TEXT, sync_ms=int(sys.argv[3]))
fill(journal, 5)
size = journal._writer.size
limit = lambda bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
limit(size + 3000)  # Python ignores SIGXFSZ: write says EFBIG, after as many bytes as there was room for
try:
    while True:
        fill(journal, 1)
except JournalError as error:
    print(error)
limit(100)  # a file can be begun, no entry can
for _ in range(3):
    try:
        fill(journal, 1)
        print("stored what cannot be stored")
    except JournalError as error:
        print(error)
print(journal.next_sequence)
limit(resource.RLIM_INFINITY)
fill(journal, 5)
journal.close()
print(journal.next_sequence)
"""


@pytest.mark.parametrize("sync_ms", [-1, 0, 200])
def test_full_disk_is_named_loses_nothing_and_space_that_comes_back_is_used(python, tmp_path, sync_ms):
    here = os.path.dirname(__file__)
    command = [python, "-c", FULL, str(tmp_path), here, str(sync_ms)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, *others, full_at, end = done.stdout.splitlines()
    assert first == f"journal {tmp_path / '0001.mcap'}: File too large; make room on that disk"
    assert others == 3 * [f"journal {tmp_path / '0002.mcap'}: File too large; make room on that disk"]
    assert 5 <= int(full_at) == int(end) - 5
    warnings = []
    assert stored(tmp_path, warnings.append) == {i: content(i) for i in range(int(end))}
    assert not warnings  # the torn end was taken away
    assert [path.name for path in journal_files(tmp_path)] == ["0001.mcap", "0002.mcap"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_really_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        j = Journal(tmp_path / "journal", TYPE, TEXT, sync_ms=200)
        with pytest.raises(JournalError, match="No space left on device; make room"):
            fill(j, 1000)
        with pytest.raises(JournalError, match="No space left on device; make room"):
            fill(j, 1000)
        full = j.next_sequence
        assert stored(tmp_path / "journal") == {i: content(i) for i in range(full)}
        subprocess.run(["mount", "-o", "remount,size=1m", str(tmp_path)], check=True)
        fill(j, 10)
        j.close()
        assert stored(tmp_path / "journal") == {i: content(i) for i in range(full + 10)}
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_list_of_episodes_is_whole_after_a_full_disk(python, tmp_path):
    append_episode(tmp_path, EpisodeRecord(1, "success", 10, 20, 0, 0))
    full = (tmp_path / "episodes.jsonl").stat().st_size + 10
    code = (
        "import resource, sys; from pathlib import Path; from rlt_ros.data.episodes import *;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({full}, {full}));"
        "append_episode(Path(sys.argv[1]), EpisodeRecord(2, 'success', 10, 20, 0, 0))"
    )
    done = subprocess.run([python, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stderr
    append_episode(tmp_path, EpisodeRecord(3, "failure", 10, 20, 0, 0))
    assert [record.index for record in read_episodes(tmp_path)] == [1, 3]


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
    for index in (1, 2):
        append_episode(tmp_path, EpisodeRecord(index, "success", 10, 20, 0, 0))
    for value in (0.1, 0.2):
        record_change(tmp_path, "actor_node", "exploration_std", value)
    for name in ("episodes.jsonl", "changes.jsonl"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 5)
    append_episode(tmp_path, EpisodeRecord(3, "failure", 10, 20, 0, 0))
    record_change(tmp_path, "actor_node", "exploration_std", 0.3)
    assert [record.index for record in read_episodes(tmp_path)] == [1, 3]
    assert [change["value"] for change in read_changes(tmp_path)] == [0.1, 0.3]


@pytest.mark.parametrize("where", ["", "journal", "journal/0001.mcap"])
def test_folder_that_cannot_be_written_is_named(tmp_path, where):
    """A file, or for the file a folder, in the place: nobody's rights help, not even root's."""
    session = tmp_path / "session"
    place = session / where
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True) if where.endswith(".mcap") else place.write_text("")
    with pytest.raises(JournalError, match=f"{session}.*(writable session folder|take it away)"):
        Journal(session / "journal", TYPE, TEXT)


def test_file_that_somebody_else_makes_is_not_overwritten(tmp_path, monkeypatch):
    JournalWriter(tmp_path, TYPE, TEXT).close()
    before = journal_files(tmp_path)[0].read_bytes()
    monkeypatch.setattr(module, "next_number", lambda folder: 1)
    with pytest.raises(JournalError, match="File exists"):
        JournalWriter(tmp_path, TYPE, TEXT)
    assert journal_files(tmp_path)[0].read_bytes() == before


# --- SIGKILL

WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal_durability import TEXT, TYPE, Journal, fill
journal = Journal(Path(sys.argv[1]), TYPE, TEXT, sync_ms=int(sys.argv[3]))
while True:
    fill(journal, 1)
    journal.sync(within_s=0.05)
    for _ in journal.take(10):
        os.write(1, b"%d\\n" % (journal._cursor - 1))
"""
KILLS = 24


def test_killed_writer_loses_nothing_that_it_gave_out(python, tmp_path):
    """One journal, many lives, each ended by SIGKILL at a random moment."""
    chance, given_out, kills = random.Random(0), 0, 0
    for life in range(KILLS):
        arguments = [str(tmp_path), os.path.dirname(__file__), str((-1, 0, 200)[life % 3])]
        writer = subprocess.Popen([python, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)
        first = writer.stdout.readline()  # it writes
        assert first, "the writer ended by itself"
        time.sleep(chance.uniform(0.0, 0.1))  # the moment of the kill is what is random here
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate(timeout=30)
        kills += writer.returncode == -signal.SIGKILL
        lines = (first + rest).split("\n")[:-1]  # whole ones
        assert int(lines[0]) == given_out  # goes on where the last life ended, or further
        given_out = int(lines[-1]) + 1
        found = stored(tmp_path)
        assert [i for i in range(given_out) if found.get(i) != content(i)] == []
        given_out = max(found) + 1  # written and not yet given out is stored, too
    assert kills == KILLS and given_out > 10 * KILLS
