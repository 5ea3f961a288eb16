"""Embeddings on disk: computed once, for what they were computed from, whole or not at all."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest
import torch

from rlt_ros.training import embeddings as module
from rlt_ros.training.processes import Processes


@pytest.fixture
def get(eyes, frames, tmp_path):
    """get(checkpoint, dtype, frames): the embeddings, and what was said."""

    def got(checkpoint="abc", dtype="float32", of=frames, cache=tmp_path / "cache"):
        said = []
        return module.embeddings(eyes, of, checkpoint, cache, Processes(), dtype, said.append), " ".join(said)

    return got


def test_the_vla_looks_once_at_each_picture(get, eyes, frames, tmp_path):
    first, said = get()
    assert "no embeddings yet; 48 pictures go through the VLA once" in said and eyes.looked == len(frames)
    again, said = get()
    assert "the embeddings of 48 pictures are there" in said and eyes.looked == len(frames)
    assert isinstance(again, np.memmap) and again.dtype == np.float16 and again.shape == (48, 12, 16)
    memory, said = get(cache=None)
    assert said == "" and eyes.looked == 2 * len(frames)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, memory)
    direct = module.embed(eyes, frames.images([17]), Processes()).numpy()
    np.testing.assert_allclose(first[17:18], direct, atol=2e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "demos"]


def test_embeddings_of_something_else_are_computed_again(get, eyes, frames, folder, read_frames, episode):
    get()
    for arguments, words in (({"checkpoint": "def"}, "another VLA checkpoint"), ({"dtype": "bfloat16"}, "precision")):
        before = eyes.looked
        assert words in get(**arguments)[1] and eyes.looked == before + len(frames)
        get()
    changed = episode(folder, 0)
    changed["images"] = 255 - changed["images"]
    np.savez(folder / "episode_000000.npz", **changed)
    values, said = get(of=read_frames(folder))
    assert "of other demonstrations" in said and "checkpoint" not in said
    now = module.embed(eyes, changed["images"][:1], Processes()).numpy()
    np.testing.assert_allclose(values[:1], now, atol=2e-3)


def cut(cache):
    path = cache / "embeddings.npy"
    os.truncate(path, path.stat().st_size - 100)


def flip(cache):
    with (cache / "embeddings.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


@pytest.mark.parametrize("damage", [
    cut, flip, lambda cache: (cache / "embeddings.json").unlink(), lambda cache: (cache / "embeddings.npy").unlink(),
    lambda cache: (cache / "embeddings.json").write_text('{"about"'),
    lambda cache: (cache / "embeddings.json").write_text("[]"),
], ids=["cut off", "changed", "no description", "no array", "half a description", "another description"])  # fmt: skip
def test_damaged_embeddings_are_computed_again(get, tmp_path, damage):
    whole = np.array(get()[0])
    damage(tmp_path / "cache")
    again, said = get()
    assert "the embeddings there are damaged" in said
    np.testing.assert_array_equal(again, whole)


def test_a_folder_of_something_else_is_left_alone(get, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no cache of embeddings, there is 'thesis.txt' in it"):
        get()
    assert (tmp_path / "cache" / "thesis.txt").read_text() == "years of work"


def test_embeddings_that_are_not_finite_name_the_picture_and_leave_what_was_there(get, eyes, frames, tmp_path):
    before = np.array(get()[0])
    whole = eyes.prefix

    def broken(values):
        cache, z = whole(values)
        z = z.clone()
        z[29] = float("inf")
        return cache, z

    eyes.prefix = broken
    with pytest.raises(ValueError, match=r"episode_000002.npz, picture 5 \(tick 25\): the VLA's embeddings are"):
        get(checkpoint="def")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "demos"]
    again, said = get()
    assert "are there" in said
    np.testing.assert_array_equal(again, before)


def test_a_full_disk_is_told_before_the_work_and_nothing_is_left(get, eyes, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="the embeddings take 0.00 GB, .* GB are free .No space left on device."):
        get()
    assert eyes.looked == 0 and [p.name for p in tmp_path.iterdir()] == ["demos"]


def test_two_runs_do_not_write_the_same_embeddings(get, tmp_path):
    part = tmp_path / ".cache.part"
    part.mkdir()
    other = os.open(part, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another run computes these embeddings now"):
        get()
    os.close(other)  # it was killed, and left a part
    assert len(get()[0]) == 48 and not part.exists()


def test_the_hash_of_a_checkpoint_is_of_the_vla_and_not_of_the_token(tmp_path):
    for name, text in (("model.safetensors", "weights"), ("config.json", "{}"), ("rlt.json", "{}")):
        (tmp_path / name).write_text(text)
    before = module.hash_checkpoint(tmp_path)
    (tmp_path / "token.json").write_text(json.dumps({"layers": 2}))
    (tmp_path / "token.safetensors").write_text("a token")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "state.json").write_text("{}")
    (tmp_path / "training" / "state.pt").write_text("half a token")
    (tmp_path / "token_report.md").write_text("what it is worth")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("scalars")
    assert module.hash_checkpoint(tmp_path) == before
    (tmp_path / "rlt.json").write_text('{"instruction": "another"}')
    assert module.hash_checkpoint(tmp_path) != before


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "weights/model.onnx", "merges.txt", "config.yaml"])
def test_the_hash_is_of_weights_in_any_format(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("weights")
    before = module.hash_checkpoint(tmp_path)
    (tmp_path / name).write_text("trained on")
    assert module.hash_checkpoint(tmp_path) != before


def test_the_hash_is_also_of_what_the_checkpoint_names(tmp_path, eyes):
    folder, base = tmp_path / "mine", tmp_path / "base"
    for path in (folder, base / "tokenizer"):
        path.mkdir(parents=True)
    (folder / "rlt.json").write_text("{}")
    (base / "model.safetensors").write_text("weights")
    alone = module.hash_checkpoint(folder, eyes)
    eyes.sources = [folder, base]
    before = module.hash_checkpoint(folder, eyes)
    assert before != alone
    (base / "tokenizer" / "tokenizer.json").write_text("{}")
    after = module.hash_checkpoint(folder, eyes)
    assert after != before
    eyes.sources = [base / "model.safetensors"]
    assert module.hash_checkpoint(folder, eyes) not in (alone, after)


def test_what_is_not_there_is_zero(get, eyes, frames):
    eyes.absent = 3
    seen = torch.from_numpy(np.array(get()[0]))
    assert (seen[:, 9:] == 0).all() and (module.there(seen).sum(1) == 9).all()


def test_a_back_end_that_is_a_torch_module_is_moved(eyes):
    module.move(eyes, torch.device("meta"))
    assert eyes.device.type == "meta" and eyes.model["head"].weight.is_meta
    fixed = object()
    module.move(fixed, torch.device("meta"))
