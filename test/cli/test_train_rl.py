"""`rlt train rl` on a recorded session."""

from pathlib import Path

import pytest
import yaml
from rclpy.serialization import serialize_message

from rlt_ros.cli.main import main
from rlt_ros.core.chunks import ControlClock
from rlt_ros.core.learner import Learner, checkpoint_dims, load_actor
from rlt_ros.core.td3 import TD3Config
from rlt_ros.core.transition import Transition
from rlt_ros.data.journal import Journal
from rlt_ros.ros.conversions import transition_to_msg
from rlt_ros.ros.definitions import ros2msg

TYPE = "rlt_ros/msg/Transition"


@pytest.fixture
def session(transition):
    """session(folder, transitions): a recorded one."""
    return lambda folder, transitions: recorded(folder, [transition(i) for i in range(transitions)])


def recorded(folder: Path, transitions: list[Transition]) -> Path:
    journal = Journal(folder / "journal", TYPE, ros2msg(TYPE))
    for t in transitions:
        journal.append(serialize_message(transition_to_msg(t, folder.name, ControlClock(50.0))), t.tick)
    journal.close()
    config = {"/**": {"ros__parameters": {"task": "ethernet"}},
              "/**/learner_node": {"ros__parameters": {"td3": {"hidden": [8, 8], "batch_size": 8, "min_buffer": 8}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_an_actor_is_trained_on_what_was_recorded(tmp_path, capsys, session) -> None:
    first, earlier, out = session(tmp_path / "a", 30), session(tmp_path / "b", 12), tmp_path / "out"
    command = ["train", "rl", "--session", str(first), "--prior", str(earlier), "--out", str(out)]
    assert main([*command, "--set", "utd=2", "prior_fraction=0.5"]) == 0
    assert "60 updates on 30 transitions and 12 of prior data" in capsys.readouterr().out
    actor, version = load_actor(out / "checkpoints" / "learner.ckpt")
    assert actor.hidden == (8, 8) and version == 1
    assert (out / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert main(command) == 2  # never written over
    assert "there is a session already" in capsys.readouterr().err


def test_practice_that_goes_on_in_the_new_folder_is_learned_from(tmp_path, session, transition) -> None:
    out = tmp_path / "out"
    assert main(["train", "rl", "--session", str(session(tmp_path / "a", 30)), "--out", str(out)]) == 0
    config = TD3Config(hidden=(8, 8), batch_size=8, min_buffer=8, utd=2.0)
    learner = Learner(config, checkpoint_dims(out / "checkpoints" / "learner.ckpt"), out)
    learner.load()
    for i in range(12):  # its journal begins at 0
        learner.add(transition(i))
    assert learner.transitions == 30 + 12


@pytest.mark.parametrize("updates", [3, 400])
def test_practice_that_goes_on_owes_what_its_own_transitions_are_due(tmp_path, session, transition, updates) -> None:
    out, recorded = tmp_path / "out", session(tmp_path / "a", 30)
    command = ["train", "rl", "--session", str(recorded), "--out", str(out), "--updates", str(updates)]
    assert main([*command, "--set", "utd=2"]) == 0
    config = TD3Config(hidden=(8, 8), batch_size=8, min_buffer=8, utd=2.0, warm_successes=0)
    learner = Learner(config, checkpoint_dims(out / "checkpoints" / "learner.ckpt"), out)
    learner.load()
    for i in range(12):
        learner.add(transition(i))
    assert learner.updates == updates and learner.due() == 2 * 12


@pytest.mark.parametrize("arguments, code, words", [
    ([], 2, "required: --session, --out"),
    (["--session", "nowhere", "--out", "out"], 1, "has no journal"),
])
def test_wrong_use_says_what_is_needed(tmp_path, monkeypatch, capsys, arguments, code, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "rl", *arguments]) == code
    assert words in capsys.readouterr().err


def test_an_empty_journal_and_a_wrong_setting_are_errors(tmp_path, capsys, session) -> None:
    empty = session(tmp_path / "a", 0)
    assert main(["train", "rl", "--session", str(empty), "--out", str(tmp_path / "o")]) == 1
    assert "the journal has no transitions" in capsys.readouterr().err
    full = session(tmp_path / "b", 3)
    assert main(["train", "rl", "--session", str(full), "--out", str(tmp_path / "p"), "--set", "betta=1"]) == 1
    assert "unknown key 'betta'" in capsys.readouterr().err


def test_a_session_that_is_not_there_has_no_presses_to_learn_from(tmp_path, capsys) -> None:
    assert main(["train", "handover", "--session", str(tmp_path / "nowhere")]) == 2
    assert f"--session {tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err
