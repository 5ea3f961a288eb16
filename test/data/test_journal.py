"""The journal on disk, without ROS."""

import pytest
from mcap.reader import make_reader

from rlt_ros.data.journal import Journal, JournalError, JournalWriter, journal_files, last_sequence, read_journal

TYPE, TEXT = "rlt_ros/msg/Transition", "uint64 sequence"


def journal(folder, **kwargs) -> Journal:
    return Journal(folder, TYPE, TEXT, **kwargs)


def fill(journal: Journal, count: int) -> None:
    for _ in range(count):
        journal.append(f"entry {journal.next_sequence}".encode(), 1)


def test_entry_is_on_disk_when_append_returns(tmp_path):
    j = journal(tmp_path)
    fill(j, 3)
    assert [e.data for e in read_journal(tmp_path)] == [
        b"entry 0",
        b"entry 1",
        b"entry 2",
    ]  # not closed: as if killed now


def test_finished_file_is_an_indexed_mcap_that_says_what_is_in_it(tmp_path):
    j = journal(tmp_path)
    fill(j, 3)
    j.close()
    with journal_files(tmp_path)[0].open("rb") as file:
        summary = make_reader(file).get_summary()
    (schema,), (channel,) = summary.schemas.values(), summary.channels.values()
    assert (schema.name, schema.encoding, schema.data) == (TYPE, "ros2msg", TEXT.encode())
    assert (channel.topic, channel.message_encoding) == ("replay", "cdr")
    assert summary.statistics.message_count == 3


def test_each_start_writes_a_new_file_and_goes_on_counting(tmp_path):
    fill(journal(tmp_path), 3)
    second = journal(tmp_path)
    assert second.next_sequence == 3
    fill(second, 2)
    assert [path.name for path in journal_files(tmp_path)] == ["0001.mcap", "0002.mcap"]
    assert [e.sequence for e in read_journal(tmp_path)] == [0, 1, 2, 3, 4]


def test_torn_tail_is_skipped_with_a_warning_wherever_it_is_torn(tmp_path):
    j = journal(tmp_path)
    fill(j, 2)
    path = journal_files(tmp_path)[0]
    complete = path.stat().st_size
    fill(j, 1)
    content = path.read_bytes()
    for size in range(complete + 1, len(content)):
        path.write_bytes(content[:size])
        warnings = []
        found = last_sequence(tmp_path, warnings.append)
        assert found == 2 or (found == 1 and str(path) in warnings[0])  # 2 where only its index is torn
    path.write_bytes(content[: complete + 20])
    assert journal(tmp_path).next_sequence == 2


def test_one_wrong_byte_costs_at_most_its_own_entry(tmp_path):
    j = journal(tmp_path)
    path = journal_files(tmp_path)[0]
    ends = [path.stat().st_size]
    for _ in range(4):
        fill(j, 1)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    for at in range(len(content)):
        for wrong in (content[at] ^ 1, content[at] ^ 128, 0, 15):
            path.write_bytes(content[:at] + bytes([wrong]) + content[at + 1 :])
            warnings = []
            found = [entry.sequence for entry in read_journal(tmp_path, warn=warnings.append)]
            hit = next(i for i, end in enumerate(ends) if at < end) - 1
            assert set(range(4)) - {max(0, hit)} <= set(found), (at, wrong, found)
            assert len(found) == 4 or str(path) in warnings[0]


def test_file_that_is_no_journal_is_reported_and_harms_nobody(tmp_path):
    fill(journal(tmp_path), 2)
    (tmp_path / "0002.mcap").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "notes.mcap").write_text("not ours")
    warnings = []
    second = journal(tmp_path, warn=warnings.append)
    assert second.next_sequence == 2 and "0002.mcap: does not begin as an MCAP file does" in warnings[0]
    fill(second, 1)
    assert [entry.sequence for entry in read_journal(tmp_path)] == [0, 1, 2]


def test_journal_file_that_cannot_be_read_is_named(tmp_path):
    fill(journal(tmp_path), 2)
    (tmp_path / "0002.mcap").mkdir()
    with pytest.raises(JournalError, match="0002.mcap: .*make it readable or take it away"):
        journal(tmp_path)


def test_file_of_a_process_that_died_at_once_harms_nobody(tmp_path):
    fill(journal(tmp_path), 2)
    (tmp_path / "0002.mcap").write_bytes(b"")
    assert journal(tmp_path).next_sequence == 2


def test_entries_are_given_out_once_and_again_after_a_rewind(tmp_path):
    j = journal(tmp_path)
    fill(j, 5)
    assert j.take(3) == [b"entry 0", b"entry 1", b"entry 2"]
    assert j.take(10) == [b"entry 3", b"entry 4"]
    assert j.take(10) == []
    j.rewind(9)  # still to come: nothing changes
    j.rewind(3)
    fill(j, 1)
    assert j.take(10) == [b"entry 3", b"entry 4", b"entry 5"]


def test_what_memory_no_longer_has_comes_from_the_files(tmp_path):
    first = journal(tmp_path)
    fill(first, 4)
    first.close()
    j = journal(tmp_path, keep=2)
    fill(j, 6)
    j.rewind(0)
    taken = j.take(3) + j.take(100)
    assert taken == [f"entry {i}".encode() for i in range(10)]


def test_without_a_folder_only_memory_is_used():
    j = journal(None, keep=3)
    fill(j, 5)
    assert j.given == 0
    j.rewind(0)
    assert j.take(10) == [b"entry 2", b"entry 3", b"entry 4"]
    assert j.holes == {0: 2} and j.given == 5


def test_what_is_lost_is_found_while_giving_out_the_rest(tmp_path):
    for _ in range(4):
        j = journal(tmp_path)
        fill(j, 10)
        j.close()
    journal_files(tmp_path)[2].unlink()
    journal_files(tmp_path)[0].unlink()
    j = journal(tmp_path)
    assert (j.begins, j.given) == (40, 40)
    fill(j, 2)
    assert len(j.take(100)) == 2 and not j.holes
    j.rewind(5)
    assert len(j.take(100)) == 22
    assert j.holes == {5: 10, 20: 30} and (j.begins, j.given) == (40, 42)


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "journal").write_text("")
    with pytest.raises(JournalError, match="journal folder .*choose a writable session folder"):
        JournalWriter(tmp_path / "journal", TYPE, TEXT)
