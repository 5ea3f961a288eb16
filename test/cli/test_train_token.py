"""`rlt train token` and `rlt train report` with a small π0."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from rlt_ros.cli.main import main
from rlt_ros.data import demos
from rlt_ros.vla import load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """Three demonstrations of the Ethernet task."""
    made, random = tmp_path / "demos", np.random.default_rng(0)
    made.mkdir()
    for number in range(3):
        at = np.arange(40)
        demos.save(
            made / f"episode_{number:06d}.npz",
            iter(random.integers(0, 256, (8, 2, 96, 96, 3), dtype=np.uint8)),
            8,
            frame_tick=at[::5],
            proprio=random.normal(size=(40, 14)).astype(np.float32),
            action=np.sin(at[:, None] / 9 + np.arange(4)).astype(np.float32),
            success=np.asarray(True),
            critical_tick=np.asarray(20),
        )
    return made


@pytest.fixture
def command(folder, checkpoint, tmp_path):
    return ["train", "token", "--demos", str(folder), "--model", str(checkpoint), "--out", str(tmp_path / "out"),
            "--steps", "3", "--batch", "4", "--every", "1", "--resnet-steps", "1", "--threads", "1"]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_token_is_trained_and_reported_and_nodes_can_load_it(command, checkpoint, tmp_path, capsys):
    before, out = content(checkpoint), tmp_path / "out"
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "16 pictures of 3 successful episodes, and 8 held out; 1 process on" in said
    assert "no embeddings yet; 24 pictures go through the VLA once" in said
    assert content(checkpoint) == before and content(out)["model.safetensors"] == before["model.safetensors"]
    images = {name: np.zeros((96, 96, 3), np.uint8) for name in ("wrist", "base")}
    reference, token = load(out).infer(images, np.zeros(14, np.float32))
    assert reference.shape == (50, 4) and token.shape == (96,) and np.isfinite(token).all()
    found = json.loads((out / "token_report.json").read_text())
    assert "reconstruction_shuffled" in found and "action_readout_r2" in found
    assert "| action chunk, R² |" in (out / "token_report.md").read_text()

    assert main([*command, "--no-report"]) == 0  # the same again
    said = capsys.readouterr().out
    assert "the embeddings of 24 pictures are there" in said and "is finished; this one begins anew" in said

    (out / "token_report.json").unlink()
    report = ["train", "report", *command[2:8], *command[12:]]  # without --steps and --batch
    assert main(report) == 0 and "What the RL token is worth" in capsys.readouterr().out
    again = json.loads((out / "token_report.json").read_text())
    assert again["reconstruction_true"] == pytest.approx(found["reconstruction_true"], rel=0.02)
    (out / "training" / "state.pt").unlink()
    assert main(report) == 0 and "No reconstruction: the decoder of this token was not kept" in capsys.readouterr().out


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_vla_that_learns_along_is_published_with_its_token(command, checkpoint, tmp_path, tune):
    before, out = content(checkpoint), tmp_path / "out"
    more = ["--alpha", "0.5", "--tune", tune, "--vla-lr", "0.01", "--no-report"]
    assert main([*command, *more]) == 0
    after = content(out)
    assert content(checkpoint) == before and after["model.safetensors"] != before["model.safetensors"]
    assert after["rlt.json"] == before["rlt.json"] and not (tmp_path / "demos" / "embeddings").exists()
    load(out)
    assert main([*command, *more, "--out", str(checkpoint)]) == 2  # its source would be lost
    assert content(checkpoint) == before


def test_ctrl_c_saves_and_the_same_command_goes_on(command, tmp_path, python, capsys):
    long = [part if part != "3" else "100000" for part in command] + ["--no-report"]
    out = tmp_path / "out"
    process = subprocess.Popen([python, "-m", "rlt_ros.cli.main", *long], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list((out / "tensorboard").glob("events*")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command goes on from there" in said
    assert [path.name for path in (out / "training").iterdir()] == ["state.pt"] and not (out / "token.json").exists()
    assert main([*command, "--no-report"]) == 1
    assert "unfinished training" in (told := capsys.readouterr().err) and "steps 100000 there, 3 now" in told
    assert main([*command, "--no-report", "--restart"]) == 0
    assert (out / "token.json").is_file()


def test_accelerate_starts_it_in_several_processes(command, tmp_path, python):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [python, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
                "--main_process_port", str(port), "-m", "rlt_ros.cli.main"]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([*launcher, *command, "--no-report"], capture_output=True, text=True, timeout=300,
                           env=environment)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("held out; 2 processes on cpu") == 1
    load(tmp_path / "out")


def broken(folder: Path) -> None:
    episode = demos.read(folder / "episode_000001.npz")
    episode["proprio"][7, 3] = np.nan
    np.savez(folder / "episode_000001.npz", **episode)


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--demos", "nowhere"], 1, "nowhere: no demonstrations (episode_*.npz); make them with `rlt demos record`"),
    (["--model", "nowhere"], 1, "nowhere: no VLA checkpoint"),
    (["--task", "reacher"], 1, "the VLA wants camera 'wrist', the task of these demonstrations has view"),
    (["--batch", "64"], 1, "batch is 64, but there are only 16 samples"),
    (["--minutes", "1", "2"], 2, "unrecognized arguments: 2"),
    (["--every", "0"], 2, "--every: got '0', expected a whole number, at least 1"),
])  # fmt: skip
def test_wrong_use_says_what_is_needed(command, tmp_path, capsys, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert main([*command, *arguments]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "demos" / "embeddings").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["vla", "--scenes", "256"], "--scenes 256: expected more than the 256 that are held out"),
    (["vla", "--minutes", "1"], "--minutes: expected 3 arguments"),
    (["report", "--every", "0"], "--every: got '0', expected a whole number, at least 1"),
    (["report", "--alpha", "1"], "unrecognized arguments: --alpha 1"),
    (["vla", "--set", "beta=1"], "unrecognized arguments: --set beta=1"),
])  # fmt: skip
def test_numbers_that_leave_nothing_are_wrong_use(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_number_that_is_none_is_named_before_anything_is_computed(command, folder, tmp_path, capsys):
    broken(folder)
    assert main(command) == 1
    assert "episode_000001.npz, picture 1, tick 7: proprio[3] is nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (folder / "embeddings").exists()


def test_a_gpu_that_is_not_there_is_wrong_usage(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "token", "--device", "cuda"]) == 2
    assert "--device is 'cuda', but torch finds no GPU here" in capsys.readouterr().err
