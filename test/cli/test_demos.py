"""`rlt demos import|export|inspect|prior` from the command line."""

import numpy as np
import pytest
import yaml
from rclpy.serialization import deserialize_message

from rlt_ros.cli.main import main
from rlt_ros.data import demos
from rlt_ros.data.journal import read_journal
from rlt_ros.msg import Transition
from rlt_ros.sim.task import task_file, task_folder
from rlt_ros.vla.frozen import CHECKPOINTS


@pytest.fixture
def folder(tmp_path):
    """Two demonstrations of the Ethernet task in which the robot goes where it is told to."""
    made, random = tmp_path / "demos", np.random.default_rng(0)
    made.mkdir()
    for number in range(2):
        at = np.arange(60)
        action = np.stack([np.sin(at / 9 + i) * 0.5 for i in range(4)], 1).astype(np.float32)
        pose = np.cumsum(np.vstack([np.zeros(4), action[:-1] * [0.0015, 0.0015, 0.0015, 0.02]]), 0) + [0.45, 0, 0.1, 0]
        proprio = np.concatenate([pose, np.zeros((60, 10))], 1).astype(np.float32)
        images = random.integers(40, 200, (12, 2, 32, 32, 3), dtype=np.uint8)
        demos.save(
            made / f"episode_{number:06d}.npz",
            iter(images),
            12,
            frame_tick=at[::5],
            proprio=proprio,
            action=action,
            success=np.asarray(True),
            critical_tick=np.asarray(20),
        )
    return made


def test_export_import_and_inspect_follow_each_other(tmp_path, folder, capsys):
    assert main(["demos", "export", "--to", "lerobot", str(folder), "--out", str(tmp_path / "lerobot")]) == 0
    assert "2 episodes, 120 frames at 50 Hz" in capsys.readouterr().out
    mapping = tmp_path / "lerobot/meta/rlt_mapping.yaml"
    command = ["demos", "import", "--from", "lerobot", str(tmp_path / "lerobot"), "--map", str(mapping)]
    assert main([*command, "--out", str(tmp_path / "back"), "--processes", "1"]) == 0
    assert "2 episodes of" in capsys.readouterr().out
    assert main(["demos", "inspect", str(tmp_path / "back")]) == 0
    out = capsys.readouterr().out
    assert "2 episodes, 2 successful, 24 pictures" in out and "nothing wrong was found" in out
    assert (tmp_path / "back/inspect.png").is_file()
    assert main([*command, "--out", str(tmp_path / "back")]) == 1
    assert "is there already, and nothing is written over" in capsys.readouterr().err


def test_inspect_ends_with_1_when_something_is_wrong(folder, capsys):
    episode = demos.read(folder / "episode_000001.npz")
    episode["proprio"][7, 3] = np.nan
    np.savez(folder / "episode_000001.npz", **episode)
    assert main(["demos", "inspect", str(folder), "--task", "ethernet", "--plot", str(folder / "x.png")]) == 1
    assert "WRONG, not finite: " in (out := capsys.readouterr().out) and "frame 7: pose[3] is nan" in out


def test_prior_of_another_model_and_timing_is_whole_or_not_there(tmp_path, folder, capsys):
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text()) | {"name": "cups"}
    (tmp_path / "cups.yaml").write_text(yaml.safe_dump(task))
    session = tmp_path / "sessions" / "prior"
    command = ["demos", "prior", "--task", str(tmp_path / "cups.yaml"), "--out", str(folder), "--session", str(session)]
    assert main(command) == 1
    assert "VLA checkpoint 'cups': no such folder" in capsys.readouterr().err and not session.exists()
    command += ["--model", str(CHECKPOINTS / "ethernet")]
    good = demos.read(folder / "episode_000001.npz")
    spoilt = good["proprio"].copy()
    spoilt[40:] = np.nan
    np.savez(folder / "episode_000001.npz", **good | {"proprio": spoilt})
    assert main(command) == 1
    assert "episode_000001.npz: tick 40: proprio is [nan" in capsys.readouterr().err and not session.parent.exists()
    np.savez(folder / "episode_000001.npz", **good)
    assert main([*command, "--chunk-steps", "6", "--stride", "3"]) == 0
    entries = list(read_journal(session / "journal"))
    assert len(entries) >= 24 and len(deserialize_message(entries[0].data, Transition).rewards) == 6
    assert f"{len(entries)} transitions of 2 demonstrations" in capsys.readouterr().out
    assert [path.name for path in session.iterdir()] == ["journal"]
    assert main(command) == 2
    assert "a session is never written over" in capsys.readouterr().err


def test_prior_of_nothing_says_why_and_leaves_nothing(tmp_path, folder, capsys):
    for path in folder.iterdir():
        np.savez(path, **demos.read(path) | {"critical_tick": np.asarray(-1)})
    assert main(["demos", "prior", "--out", str(folder), "--session", str(tmp_path / "prior")]) == 1
    assert "no transitions of 2 demonstrations: none was a success and came to the critical" in capsys.readouterr().err
    assert not (tmp_path / "prior").exists()


@pytest.mark.parametrize(("command", "code", "says"), [
    (["import", "--from", "lerobot", "nowhere", "--map", "so101_lerobot", "--out", "o"], 1, "nowhere/meta/info.json"),
    (["import", "--from", "mcap", "nowhere", "--map", "tool_mcap", "--out", "o"], 1, "nowhere: no recordings (*.mcap"),
    (["import", "nowhere", "--map", "m", "--out", "o"], 2, "required: --from"),
    (["export", "--to", "lerobot", "nowhere", "--out", "o"], 1, "nowhere: no demonstrations"),
    (["import", "--from", "mcap", "nowhere", "--map", "nosuch"], 2, "no such file; there are: so101_lerobot"),
    (["inspect", "nowhere"], 1, "nowhere: no demonstrations"),
    (["record", "--task", "reacher"], 2, "the scripted demonstrator knows the Ethernet task only; --teleop"),
])  # fmt: skip
def test_wrong_usage_says_what_is_missing(tmp_path, monkeypatch, capsys, command, code, says):
    monkeypatch.chdir(tmp_path)
    assert main(["demos", *command]) == code
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["import", "export", "inspect"])
def test_help_has_examples(capsys, what):
    assert main(["demos", what, "--help"]) == 0
    assert f"rlt demos {what}" in capsys.readouterr().out.split("examples:")[1]


def test_what_cannot_be_recorded_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(task_file("ethernet").read_text())
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(values | {"environment": {"id": "rlt_ros.sim.ethernet:Nope"}}))
    assert main(["demos", "record", "--task", "t.yaml", "--episodes", "1", "--processes", "1"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]
