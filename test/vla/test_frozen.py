"""The shipped VLA: loads as any checkpoint, answers pixels, and refuses what does not fit with words that help."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rlt_ros.training.embeddings import move
from rlt_ros.vla import VLAError, load
from rlt_ros.vla.frozen import CHECKPOINTS


def test_shapes_are_as_announced(vla, scene):
    reference, token = vla.infer(*scene)
    assert reference.shape == (vla.horizon, vla.action_dim) == (50, 4)
    assert token.shape == (vla.token_dim,)
    assert np.isfinite(reference).all() and np.abs(reference).max() <= 1


def test_the_same_noise_gives_the_same_chunk(vla, scene):
    chunks = []
    for seed in (3, 3, 4):
        vla.seed(seed)
        chunks.append(vla.infer(*scene)[0])
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[2])


def test_batched_tokens_are_those_of_single_frames(vla, scene):
    images, proprio = scene
    other = {name: picture[::-1].copy() for name, picture in images.items()}
    batch = vla.tokens([(images, proprio), (other, proprio)])
    assert np.allclose(batch[0], vla.infer(images, proprio)[1], atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 0.1  # it looks at the pixels


@pytest.mark.parametrize("joined", [False, True])
def test_all_is_computed_where_the_model_is(joined):
    """On torch's device without memory, which mixes with no other, as a GPU does not."""
    model = load("ethernet").backend
    move(model, torch.device("meta"))
    seen = np.zeros((2, len(model.cameras), model.image_size, model.image_size, 3), np.uint8)
    embeddings, _, own = model.look(seen)
    guide = (torch.zeros(2, model.horizon, model.action_dim), torch.ones(2, model.horizon, 1)) if joined else None
    chunk = model.chunk(own, np.zeros((2, model.proprio_dim), np.float32), torch.Generator().manual_seed(0), guide)
    assert embeddings.device.type == chunk.device.type == "meta"
    assert chunk.shape == (2, model.horizon, model.action_dim)


def test_the_decoder_needs_the_shipped_token():
    report = json.loads((CHECKPOINTS / "ethernet" / "token_report.json").read_text())
    assert report["reconstruction_zeroed"] > 2 * report["reconstruction_true"]
    assert report["reconstruction_shuffled"] > 2 * report["reconstruction_true"]


@pytest.mark.parametrize(
    ("images", "proprio", "said"),
    [
        ({"wrist": np.zeros((96, 96, 3), np.uint8)}, np.zeros(14), "camera 'base' is missing"),
        (
            {c: np.zeros((96, 96, 3), np.float32) for c in ("wrist", "base")},
            np.zeros(14),
            "camera 'wrist': got float32",
        ),
        ({c: np.zeros((96, 96, 3), np.uint8) for c in ("wrist", "base")}, np.full(14, np.nan), "14 finite numbers"),
        ({c: np.zeros((96, 96, 3), np.uint8) for c in ("wrist", "base")}, np.zeros(7), "14 finite numbers"),
    ],
)
def test_observations_that_do_not_fit_are_refused(vla, images, proprio, said):
    with pytest.raises(VLAError, match=said):
        vla.infer(images, proprio)


def test_pictures_of_another_size_are_fitted(vla, scene):
    images, proprio = scene
    large = {name: np.repeat(np.repeat(picture, 2, 0), 2, 1) for name, picture in images.items()}
    assert np.allclose(vla.tokens([(large, proprio)])[0], vla.tokens([(images, proprio)])[0], atol=1e-3)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "rlt.json", "token.json", "token.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINTS / "ethernet", folder)
    (folder / name).write_bytes(b"{damaged")
    with pytest.raises(VLAError, match=str(folder)):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(VLAError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model", lambda w: w.pop("action_out_proj.weight"), "missing keys: .*action_out_proj.weight"),
        ("model", lambda w: w.update(extra=np.zeros(2, np.float16)), "unexpected keys: .*extra"),
        ("model", lambda w: w.update({"action_out_proj.bias": np.zeros(5, np.float16)}), "mismatched keys: .*action_out_proj.bias.*5.*4"),
        ("token", lambda w: w.pop("encoder.layers.0.linear1.bias"), "missing .*encoder.layers.0.linear1.bias"),
        ("token", lambda w: w.update(extra=np.zeros(2, np.float16)), "unexpected .*extra"),
    ],
)
def test_weights_that_are_missing_or_unknown_are_named(tmp_path, name, change, says):
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINTS / "ethernet", folder)
    path = folder / f"{name}.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(VLAError, match=f"{path}: .*{says}"):
        load(folder)


def test_a_checkpoint_that_does_not_exist_tells_which_are_shipped():
    with pytest.raises(VLAError, match="ethernet"):
        load("/no/such/folder")
