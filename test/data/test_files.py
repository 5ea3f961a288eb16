"""What is written whole, and what is read although it is damaged."""

import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from rlt_ros.cli import practice
from rlt_ros.data.changes import FILE as CHANGES
from rlt_ros.data.changes import read_changes, record_change
from rlt_ros.data.episodes import FILE as EPISODES
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.data.files import write_whole


@contextmanager
def full_after(size: int):
    """A disk that takes so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path) -> None:
    path = tmp_path / "sub" / "a.json"
    write_whole(path, "before")
    with full_after(100), pytest.raises(OSError):
        write_whole(path, "x" * 1000)
    assert path.read_text() == "before" and os.listdir(path.parent) == ["a.json"]
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"


def test_a_full_disk_does_not_cost_a_session_its_parameters(tmp_path, monkeypatch) -> None:
    args = SimpleNamespace(
        task="ethernet", session=tmp_path / "s", episodes=1, minutes=1.0, seed=0, model="", speed=None, realtime=False,
        record=False, no_eval=True, eval_episodes=1,
    )  # fmt: skip
    monkeypatch.setattr(practice, "practise", lambda session, args: 0)
    monkeypatch.setattr(practice.signal, "signal", lambda *_: None)
    assert practice.run(args) == 0
    before = (args.session / "config.yaml").read_text()
    with full_after(2000), pytest.raises(OSError):
        practice.run(args)
    assert (args.session / "config.yaml").read_text() == before


def test_a_damaged_line_costs_itself_only(tmp_path) -> None:
    for index in (1, 2):
        append_episode(tmp_path, EpisodeRecord(index, "success", 5, 9, 0, 0))
        record_change(tmp_path, "actor_node", "beta", index)
        for name in (EPISODES, CHANGES):
            with (tmp_path / name).open("ab") as file:
                file.write(b"\xff\xfe\x80\n")
    assert [episode.index for episode in read_episodes(tmp_path)] == [1, 2]
    assert [change["value"] for change in read_changes(tmp_path)] == [1, 2]
