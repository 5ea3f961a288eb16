"""`rlt bench` at tiny sizes: that each benchmark prints what it is for. How fast is not a test's business."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rlt_ros import bench
from rlt_ros.bench import learner, weights
from rlt_ros.cli.main import main
from rlt_ros.core.networks import Dims
from rlt_ros.core.td3 import TD3Config


def measured(capsys, tmp_path: Path, *arguments: str) -> dict:
    """The figures of a benchmark, as printed and as written."""
    assert main(["bench", *arguments, "--json", str(tmp_path / "result.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "result.json").read_text()) == printed
    assert printed["name"] == arguments[0] and printed["machine"]["cores"] >= 1
    return printed["metrics"]


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(learner, "ROWS", 64)


TINY = ("--rounds", "2", "--updates", "2", "--batch", "16", "--token", "8")


def test_learner_is_compared_with_matrix_products_and_says_how_to_get_the_other(capsys, tmp_path, monkeypatch, small):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # importing it fails
    found = measured(capsys, tmp_path, "learner", *TINY)
    assert found["updates_per_s"] > 0 and 0 < found["gemm_fraction"]
    assert found["gemm_gflop_per_s"] > 0 and found["dtype"] == "float32" and found["batch"] == 16
    assert found["ratio_sb3"] is None
    assert "not installed" in found["sb3"] and learner.INSTALL in found["sb3"]


def test_learner_is_compared_with_another_that_is_installed(capsys, tmp_path, monkeypatch, small):
    calls = []

    class TD3:
        def __init__(self, policy, env, **settings):
            self.replay_buffer = types.SimpleNamespace(add=lambda *row: calls.append("add"))
            assert settings["policy_kwargs"]["net_arch"] == [256, 256]
            assert env.observation_space.shape == (8 + 28 + 40,) and env.action_space.shape == (40,)

        def set_logger(self, _logger):
            pass

        def train(self, gradient_steps, batch_size):
            calls.append((gradient_steps, batch_size))

    for name, content in (
        ("stable_baselines3", {"TD3": TD3, "__version__": "0"}),
        ("stable_baselines3.common", {}),
        ("stable_baselines3.common.logger", {"Logger": lambda **_: None}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    found = measured(capsys, tmp_path, "learner", *TINY)
    assert found["ratio_sb3"] > 0 and found["sb3"] == "0"
    assert calls.count("add") == 64 and calls.count((2, 16)) == 3  # a warm-up and two rounds


def test_products_are_those_of_one_update_and_no_others():
    config, dims = TD3Config(hidden=(8, 8), batch_size=4), Dims(token=3, rl_proprio=2, action=1, chunk=5)
    products = learner.Products(config, dims, "cpu", __import__("torch").float32)
    actor = 10 * 8 + 8 * 8 + 8 * 5 + 5 * 5  # multiplications a row, the reference's way past the network included
    critic = 10 * 8 + 8 * 8 + 8
    always = actor + 2 * critic + 2 * (critic + critic + 8 * 8 + 8)
    delayed = actor + critic + (8 + 8 * 8 + 5 * 8) + actor + (8 * 8 + 8 * 5)
    assert products.flop == 2 * 4 * (always + delayed / 2)
    products.run(2)


def test_replay_tells_inserts_and_memory(capsys, tmp_path, ros):
    found = measured(capsys, tmp_path, "replay", "--token", "512", "--steps", "600", "--seconds", "0.4", "--batch", "8")
    for name in ("", "_fsync"):
        assert found[f"transitions{name}_per_s"] == pytest.approx(25.0 * found[f"transitions{name}_over_one_robot"])
        assert found[f"insert{name}_p99_ms"] > 0
    assert found["steps_stored"] == 600 and found["sample_ms"] > 0
    assert 1.0 < found["memory_over_fp16_tokens"] < 4.0


def test_next_state_of_a_transition_is_the_state_of_a_later_one():
    from rlt_ros.bench.replay import noise
    from rlt_ros.sim.task import load_task

    task = load_task("ethernet")
    first, later = noise(0, 6, task), noise(5, 6, task)
    assert later.tick == first.tick + first.steps
    assert (first.next_token == later.token).all() and (first.next_proprio == later.proprio).all()


def test_weights_are_followed_from_publish_to_use_over_dds(python):
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    arguments = ("--seconds", "3", "--hz", "5", "--batch", "8", "--burners", "1", "--token", "8")
    result = subprocess.run(  # in a process of its own, as it takes a ROS domain of its own
        [python, "-c", code, "bench", "weights", *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["metrics"]
    assert found["versions"] >= 1 and found["learner_updates_per_s"] > 0
    for name in ("publish_to_use", "use_to_boundary", "publish_to_first_chunk"):
        assert 0 < found[f"{name}_p50_ms"] <= found[f"{name}_p99_ms"] <= found[f"{name}_max_ms"]
    assert (
        found["publish_to_first_chunk_max_ms"] > found["use_to_boundary_max_ms"]
    )  # of one version: longer by the way to the actor


def test_moments_of_weights_are_joined_by_version_and_a_half_written_line_is_left(tmp_path):
    (tmp_path / "moments.jsonl").write_text(
        '{"version": 1, "published": 5, "accepted": 7}\n{"version": 1, "used": 9}\n{"version": 2, "publ'
    )
    assert weights.read(tmp_path) == {1: {"published": 5, "accepted": 7, "used": 9}}


def test_contestants_take_turns_and_are_compared_round_by_round():
    order = []
    seconds = bench.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3 and len(seconds["a"]) == 3
    assert bench.ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    assert bench.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0 and bench.percentile([1.0, 2.0], 99) == 2.0


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--burners", "-1"), ("--steps", "1")])
def test_sizes_that_make_no_sense_are_wrong_usage(wrong, capsys):
    assert main(["bench", "learner", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_help_has_an_example_of_each(capsys):
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"rlt bench {name}" in out for name in ("control", "learner", "weights", "replay", "all"))
