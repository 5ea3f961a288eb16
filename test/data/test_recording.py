"""Files of a recording: bounded, whole after a kill, and going on after a full disk."""

import resource

import pytest
from mcap.reader import make_reader

from rlt_ros.data.journal import journal_files
from rlt_ros.data.recording import CHUNK_BYTES, Recording, RecordingError, read_recording

SCHEMAS = {"/a": ("pkg/msg/A", "uint8[] data"), "/b": ("pkg/msg/A", "uint8[] data")}
MESSAGE = bytes(1000)


def fill(recording: Recording, messages: int, start: int = 0) -> None:
    for number in range(start, start + messages):
        recording.add("/a" if number % 2 else "/b", MESSAGE, 1000 + number, number)


def numbers(folder) -> list[int]:
    return [log_ns - 1000 for _, _, log_ns, _ in read_recording(folder)]


def test_a_closed_recording_is_an_indexed_file(tmp_path):
    recording = Recording(tmp_path, SCHEMAS, 1 << 30)
    fill(recording, 100)
    recording.close()
    with recording.path.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
        assert summary.statistics.message_count == 100
        assert {channel.topic for channel in summary.channels.values()} == {"/a", "/b"}
        found = [(channel.topic, schema.name, message.publish_time) for schema, channel, message in
                 reader.iter_messages(topics=["/a"])]
    assert found == [("/a", "pkg/msg/A", number) for number in range(1, 100, 2)]


def test_a_killed_process_loses_the_last_chunk_at_most(tmp_path):
    recording = Recording(tmp_path, SCHEMAS, 1 << 30)
    fill(recording, 200)  # and no close
    kept = numbers(tmp_path)
    assert kept == list(range(len(kept))) and (200 - len(kept)) * len(MESSAGE) <= CHUNK_BYTES + len(MESSAGE)
    torn = recording.path.read_bytes()[:-100]
    recording.path.write_bytes(torn)
    assert numbers(tmp_path) == kept[: len(numbers(tmp_path))] and len(numbers(tmp_path)) >= len(kept) - 40


def test_the_oldest_files_go_when_all_are_too_large(tmp_path):
    most, one = 400_000, 100_000
    recording = Recording(tmp_path, SCHEMAS, most, one)
    for start in range(0, 2000, 100):
        fill(recording, 100, start)
        assert recording.bytes() <= most + CHUNK_BYTES + 10_000  # and the index of a file
    recording.close()
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 2000)) and kept[0] > 1000
    assert journal_files(tmp_path)[0].name != "0001.mcap"


def test_another_start_begins_another_file(tmp_path):
    for start in (0, 50):
        recording = Recording(tmp_path, SCHEMAS, 1 << 30)
        fill(recording, 50, start)
        recording.close()
    assert [path.name for path in journal_files(tmp_path)] == ["0001.mcap", "0002.mcap"]
    assert numbers(tmp_path) == list(range(100))


def test_a_full_disk_is_named_and_the_recording_goes_on_when_there_is_room(tmp_path):
    recording = Recording(tmp_path, SCHEMAS, 1 << 30)
    fill(recording, 100)
    before = recording.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + CHUNK_BYTES // 2, hard))
    try:
        with pytest.raises(RecordingError, match="0001.mcap: File too large; make room on that disk"):
            fill(recording, 100, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "0001.mcap").stat().st_size == before  # nothing half
    fill(recording, 100, 200)
    recording.close()
    kept = numbers(tmp_path)
    assert [path.name for path in journal_files(tmp_path)] == ["0001.mcap", "0002.mcap"]
    assert kept[-100:] == list(range(200, 300))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "recording").write_text("a file")
    with pytest.raises(RecordingError, match=r"recording folder .*recording: File exists; make room there"):
        Recording(tmp_path / "recording", SCHEMAS, 1 << 30)
