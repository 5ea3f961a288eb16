"""Scenes for the grounding stage: made once, and only those that were asked for."""

import numpy as np
import pytest

from rlt_ros.sim.scenes import grounding_scenes


def put(path, count: int, **rest) -> None:
    np.savez(path, images=np.zeros((count, 2, 8, 8, 3), np.uint8), offsets=np.zeros((count, 4)), **rest)


def test_scenes_are_made_once(tmp_path):
    path = tmp_path / "demos" / "scenes.npz"
    images, offsets = grounding_scenes(path, 3, seed=5, processes=1)
    assert len(images) == len(offsets) == 3 and [p.name for p in path.parent.iterdir()] == ["scenes.npz"]
    again = grounding_scenes(path, 3, seed=5, processes=0)  # nobody could make them
    assert np.array_equal(again[0], images) and np.array_equal(again[1], offsets)


def test_other_scenes_than_asked_for_are_not_taken(tmp_path):
    path = tmp_path / "scenes.npz"
    put(path, 500)  # as they once were, of seed 0
    assert len(grounding_scenes(path, 500)[0]) == 500
    with pytest.raises(ValueError, match=f"{path}: has 500 scenes of seed 0, expected 20000 of seed 0; delete it"):
        grounding_scenes(path, 20_000)
    put(path, 500, seed=np.asarray(4))
    with pytest.raises(ValueError, match="has 500 scenes of seed 4, expected 500 of seed 5"):
        grounding_scenes(path, 500, seed=5)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path}: cannot be read .*; delete it"):
        grounding_scenes(path, 500)


def test_scenes_that_are_not_written_whole_are_not_there(tmp_path, monkeypatch):
    path = tmp_path / "scenes.npz"

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        grounding_scenes(path, 1, processes=1)
    assert not list(tmp_path.iterdir())
