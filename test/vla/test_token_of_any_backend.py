"""`rlt train token` over back ends other than the small π0."""

import json
import shutil

import numpy as np
import pytest
import torch

from rlt_ros.cli.main import main
from rlt_ros.data import demos
from rlt_ros.vla import load

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"pi0": 96, "smolvla": 64, "my_vla": 32}  # of an embedding


@pytest.fixture
def folder(tmp_path):
    """Two demonstrations of the Ethernet task."""
    made, random = tmp_path / "demos", np.random.default_rng(0)
    made.mkdir()
    for number in range(2):
        at = np.arange(30)
        demos.save(
            made / f"episode_{number:06d}.npz", iter(random.integers(0, 256, (6, 2, 96, 96, 3), dtype=np.uint8)), 6,
            frame_tick=at[::5], proprio=random.normal(size=(30, 14)).astype(np.float32),
            action=np.sin(at[:, None] / 9 + np.arange(4)).astype(np.float32), success=np.asarray(True),
            critical_tick=np.asarray(20),
        )  # fmt: skip
    return made


@pytest.fixture
def model(request, tmp_path):
    """model(kind): a folder with a VLA of random weights, and without a token."""

    def made(kind):
        name = {"my_vla": "other_vla"}.get(kind, f"{kind}_folder")
        found = request.getfixturevalue(name)
        folder = tmp_path / "model"
        shutil.copytree(getattr(found, "folder", found), folder)
        for path in folder.glob("token.*"):
            path.unlink()
        return folder

    return made


@pytest.fixture
def command(folder, tmp_path):
    return ["train", "token", "--demos", str(folder), "--out", str(tmp_path / "out"), "--steps", "2", "--batch", "2",
            "--every", "1", "--resnet-steps", "0", "--threads", "1"]  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_its_token_is_trained_reported_and_loaded(command, model, tmp_path, capsys, kind):
    torch.manual_seed(0)  # the toy of the documents begins at random each time
    folder = model(kind)
    assert main([*command, "--model", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "12 pictures go through the VLA once" in said and "What the RL token is worth" in said
    vla = load(tmp_path / "out")
    images = {name: np.full((96, 96, 3), 90, np.uint8) for name in ("wrist", "base")}
    reference, token = vla.infer(images, np.zeros(14, np.float32))
    assert reference.shape == (50, 4) and token.shape == (SIZES[kind],) and np.isfinite(token).all()
    if kind == "pi0":  # the same again, from weights that lie elsewhere
        (tmp_path / "mine").mkdir()
        settings = json.loads((folder / "rlt.json").read_text()) | {"checkpoint": "../model"}
        (tmp_path / "mine" / "rlt.json").write_text(json.dumps(settings))
        more = ["--model", str(tmp_path / "mine"), "--out", str(tmp_path / "narrow"), "--width", "16", "--no-report"]
        assert main([*command, *more]) == 0
        assert "of another VLA checkpoint" in capsys.readouterr().out
        vla = load(tmp_path / "narrow")
        assert vla.infer(images, np.zeros(14, np.float32))[1].shape == (vla.token_dim,) == (16,)


@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
def test_one_that_offers_no_loss_is_not_fine_tuned(command, model, tmp_path, capsys, kind):
    assert main([*command, "--model", str(model(kind)), "--alpha", "1"]) == 1
    told = capsys.readouterr().err
    assert f"--alpha 1: the back end 'lerobot_{kind}' of" in told and "no flow-matching loss" in told
    assert not (tmp_path / "out").exists()
