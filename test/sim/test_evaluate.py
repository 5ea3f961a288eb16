"""Evaluation of any task and any session, end to end in lock-step: an episode or two with an untrained VLA."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from rlt_ros.cli.main import main
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.core.td3 import TD3Config
from rlt_ros.sim import evaluate as module
from rlt_ros.sim.evaluate import evaluate, load_policy, session_settings
from rlt_ros.sim.lockstep import LockStep, Timing
from rlt_ros.sim.task import load_task
from rlt_ros.vla.train import new_pi0

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reacher(tmp_path_factory):
    """A VLA of the real classes for Gymnasium's Reacher, untrained."""
    folder, task = tmp_path_factory.mktemp("reacher"), load_task("reacher")
    random = np.random.default_rng(0)
    frames = SimpleNamespace(
        proprio=random.normal(size=(20, task.proprio_dim)).astype(np.float32),
        actions=random.uniform(-0.5, 0.5, (20, 50, task.action_dim)).astype(np.float32))
    torch.manual_seed(0)
    policy = new_pi0(task, frames)
    policy.save(folder)
    RLToken(TokenConfig(policy.embedding_dim, policy.image_tokens, action_values=100)).save(folder)
    return folder


def session_of(folder, token: int, config: dict | None = None, **settings) -> str:
    dims = Dims(token=token, rl_proprio=20, action=2, chunk=(config or {}).get("chunk_steps", 10))
    Learner(TD3Config(**settings), dims, folder).save()
    if config is not None:
        model = config.pop("model")
        stride = {"stride": config.pop("stride")}
        content = {
            "/**": {"ros__parameters": config | {"rate_hz": 50.0}},
            "/**/vla_node": {"ros__parameters": {"model": model}},
            "/**/replay_node": {"ros__parameters": stride},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return str(folder)


def test_any_gymnasium_task_is_evaluated(reacher, tmp_path):
    out = tmp_path / "result.json"
    arguments = [
        "--task",
        "reacher",
        "--policy",
        "base",
        "--checkpoint",
        str(reacher),
        "--episodes",
        "2",
        "--threads",
        "1",
    ]
    assert main(["eval", *arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["task"] == "reacher" and result["episodes"] == 2
    assert 0 < max(result["critical_steps"]) <= 200 and result["max_force_p95"] == 0.0


def test_a_session_is_evaluated_as_it_was_practised(reacher, tmp_path, monkeypatch):
    timing = {"chunk_steps": 6, "latency_ticks": 4, "max_age_ticks": 20, "stride": 3}
    session = session_of(tmp_path, 96, timing | {"model": str(reacher)}, hidden=(8,), ensemble=3, layer_norm=False)
    before_joining = Timing(6, 4, 20, 3, join_ticks=0, join="none")
    assert session_settings(tmp_path) == (before_joining, str(reacher))
    used = []
    monkeypatch.setattr(module, "LockStep", lambda *args, **more: used.append(args) or LockStep(*args, **more))
    result = evaluate("reacher", session, episodes=1)
    assert result["episodes"] == 1
    assert used[0][2] == before_joining
    assert used[0][3] is not None


def test_a_session_is_evaluated_with_its_chunks_joined_as_they_were(tmp_path):
    sections = {"/**": {"chunk_steps": 6}, "/**/actor_node": {"join_ticks": 7}, "/**/vla_node": {"join": "blend"}}
    content = {name: {"ros__parameters": values} for name, values in sections.items()}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert session_settings(tmp_path)[0] == Timing(chunk_steps=6, join_ticks=7, join="blend")


def test_a_session_without_config_has_the_defaults(tmp_path):
    session_of(tmp_path, 96)
    assert session_settings(tmp_path) == (Timing(), "")
    assert load_policy(tmp_path)[0].dims.chunk == 10


def test_a_session_of_another_task_is_refused_with_both_sizes(reacher, tmp_path):
    session = session_of(tmp_path, 7)
    with pytest.raises(ValueError, match="token=7.*needs.*token=96"):
        evaluate("reacher", session, episodes=1, checkpoint=reacher)


def test_a_folder_without_practice_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="practise first"):
        load_policy(tmp_path)


def test_a_task_that_says_nothing_about_limits_is_refused(reacher, tmp_path):
    from rlt_ros.sim.task import task_folder

    content = yaml.safe_load((task_folder() / "reacher.yaml").read_text())
    del content["limits"]["max_force"]
    path = tmp_path / "reacher.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="'max_force' is missing"):
        evaluate(str(path), episodes=1, checkpoint=reacher)
