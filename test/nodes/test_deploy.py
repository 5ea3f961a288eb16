"""`rlt deploy` as a user starts it: a practised session in the simulator, with nobody who hands over."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlt_ros.cli.main import main
from rlt_ros.core.handover import Approach, train
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.rl_token import RLToken
from rlt_ros.core.td3 import TD3Config
from rlt_ros.data.handover import save_classifier
from rlt_ros.sim.task import task_folder

PATIENCE_S = 240.0  # a busy machine takes its time to import torch


@pytest.fixture
def session(tmp_path, checkpoint) -> Path:
    """Practised on the Ethernet task with a critical phase of a second: a policy that passes its reference through, and
    presses 70 mm above the base."""
    values = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    task = tmp_path / "short.yaml"
    task.write_text(yaml.safe_dump(values | {"critical_timeout": 1.0, "approach_timeout": 20.0}))
    folder = tmp_path / "session"
    token = RLToken.load(checkpoint).config.embedding_dim
    learner = Learner(TD3Config(hidden=(8,)), Dims(token, 28, 4, 10), folder)
    learner.version = 3
    learner.save()
    config = yaml.safe_load((task_folder().parent / "practice.yaml").read_text())
    config["/**"]["ros__parameters"] |= {"task": str(task), "session": str(folder)}
    config["/**/vla_node"]["ros__parameters"]["model"] = str(checkpoint)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_classifier(folder, *train([approach(i, token) for i in range(25)]))
    return folder


def approach(number: int, token: int) -> Approach:
    start = 1000 * number
    ticks = start + 10 * np.arange(12)
    proprios = np.zeros((12, 14))
    proprios[:, 2] = np.linspace(0.10, 0.03, 12)
    return Approach(number, start, start + 45, 0.02, ticks, ticks + 5, np.zeros((12, token)), proprios)


def test_a_practised_session_runs_without_learner_replay_and_hand_over_by_a_person(python, session, tmp_path) -> None:
    out, before = tmp_path / "deploy.json", sorted(p.name for p in session.iterdir())
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [python, "-c", code, "deploy", "--session", str(session), "--episodes", "1", "--speed", "0",
         "--json", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it stops the nodes
        pytest.fail(f"no end after {PATIENCE_S} s: {process.communicate(timeout=30.0)[0]}")
    assert process.returncode == 0 and "0 never handed over" in told, told
    found = json.loads(out.read_text())
    assert (found["episodes"], found["hand_over"], found["never_handed_over"]) == (1, "learned", 0)
    # The untrained VLA plugs nothing in; where it drifts to, the person may give up before the time is over.
    assert found["outcomes"] in (["TIMEOUT"], ["FAILURE"]) and 1 <= found["critical_steps"][0] <= 50
    assert found["wilson_low"] == 0.0 < found["wilson_high"] < 1.0
    # Nothing is learned, recorded or changed.
    assert sorted({p.name for p in session.iterdir()} - set(before)) == [".lock", "deploy"]
    logs = {p.stem for p in (session / "deploy" / "log").glob("*_node.log")}
    assert {"handover_node", "actor_node", "safety_node", "episode_node"} <= logs
    assert not logs & {"learner_node", "replay_node"}


def test_a_session_that_lacks_something_is_refused_before_anything_starts(session, tmp_path, capsys) -> None:
    assert main(["deploy", "--session", str(tmp_path / "nowhere")]) == 1
    assert "practise first" in capsys.readouterr().err
    (session / "handover" / "classifier.safetensors").unlink()
    assert main(["deploy", "--session", str(session)]) == 1
    assert "has no hand-over classifier" in capsys.readouterr().err
    assert main(["deploy", "--session", str(session), "--episodes", "0"]) == 2
    assert not (session / "deploy").exists()
