"""`rlt bench` at tiny sizes: that each benchmark prints what it is for. How fast is not a test's business."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rlt_ros import bench
from rlt_ros.bench import control, importing, learner, panel, token, training, weights
from rlt_ros.cli.main import main
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.td3 import TD3Config
from rlt_ros.ros.stored import stored_transitions


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


def test_import_is_compared_with_decoding_alone(capsys, tmp_path, monkeypatch):
    for name, value in {"EPISODE_S": 1, "FILE_EPISODES": 2, "HEIGHT": 64, "WIDTH": 96}.items():
        monkeypatch.setattr(importing, name, value)
    sizes = ("--minutes", "0.04", "--codec", "h264", "--processes", "1", "--folder", str(tmp_path))
    found = measured(capsys, tmp_path, "import", *sizes)
    assert found["episodes"] == 3 and found["frames"] == 90 and found["pictures"] == 60
    assert found["seconds"] > found["decode_needed_seconds"] > 0 and found["import_over_decode_all"] > 1
    assert found["seconds_per_hour"] == pytest.approx(1200 * found["seconds"])
    assert 50 < found["memory_mb"] < 1000 and found["video_mb"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"result.json"}


def test_import_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="rlt demos import ended with 1: .*nowhere/meta/info.json"):
        importing.run_import(tmp_path / "nowhere", tmp_path / "out", 1)


def test_weights_are_followed_from_publish_to_use_over_dds(python):
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    arguments = ("--seconds", "6", "--hz", "5", "--batch", "8", "--burners", "1", "--token", "8")
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


def in_a_process(python, *arguments: str) -> dict:
    """The figures of a benchmark that takes a ROS domain of its own."""
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    command = [python, "-c", code, "bench", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    assert f"benchmark {arguments[0]}" in result.stderr  # who waits is told what for
    return json.loads(result.stdout)["metrics"]


def test_latency_is_compared_with_bare_nodes_over_dds(python):
    found = in_a_process(python, "latency", "--seconds", "4", "--token", "8")
    for way in ("chain", "same_hops", "ping_pong", "ahead_total", "ahead_wait", "ahead_after_wait"):
        assert 0 < found[f"{way}_p50_ms"] <= found[f"{way}_p99_ms"]
    assert found["chain_over_ping_pong_p99"] == pytest.approx(found["chain_p99_ms"] / found["ping_pong_p99_ms"])
    assert found["ahead_wait_p50_ms"] < found["ahead_total_p50_ms"]
    assert found["cpu_actor_safety_percent"] > 0 and {"actor_node", "relay_echo"} <= set(found["nodes"])


def test_presses_in_the_panel_are_timed_until_the_episode_has_changed(python):
    found = in_a_process(python, "panel", "--seconds", "4")
    assert found["presses"] >= 2 and found["unanswered"] == 0
    assert 0 < found["press_to_state_p50_ms"] <= found["press_to_state_max_ms"] < 4000
    assert found["panel_cpu_percent"] > 0


def test_a_press_that_is_being_noted_is_left(tmp_path):
    (tmp_path / "presses").write_text('{"button": "start", "ms": 3.5}\n{"button": "hand')
    assert panel.read(tmp_path / "presses") == [{"button": "start", "ms": 3.5}]
    assert panel.read(tmp_path / "nothing") == []


def test_latency_of_a_task_without_these_streams_is_refused(capsys):
    assert main(["bench", "latency", "--task", "reacher"]) == 1
    assert "task 'reacher' has the state observation" in capsys.readouterr().err


def test_a_press_of_the_dead_man_is_timed_until_the_robot_is_the_persons_and_back(python):
    found = in_a_process(python, "human", "--seconds", "4", "--token", "8")
    assert found["presses"] > 2 and found["releases"] > 2 and found["cpu_teleop_percent"] > 0
    for name in ("press_to_human", "release_to_actor"):
        assert 0 < found[f"{name}_p50_ms"] <= found[f"{name}_p99_ms"] <= found[f"{name}_max_ms"]
        assert found[f"{name}_p99_periods"] == pytest.approx(found[f"{name}_p99_ms"] / 20.0)
    assert 0 < found["press_to_command_p50_ms"] < found["press_to_human_p99_ms"]


def test_a_press_on_a_task_without_an_arm_is_refused(capsys):
    assert main(["bench", "human", "--task", "reacher"]) == 1
    assert "task 'reacher' has no arm with pose, twist and wrench to steer" in capsys.readouterr().err


def test_token_is_compared_with_the_prefix_of_the_same_frames(python):
    found = in_a_process(python, "token", "--seconds", "4")
    assert found["frames"] > 0 and found["frames_with_reference"] > 0
    assert found["image_to_token_p50_ms"] > found["part_prefix_ms"] > 0 and found["prefix_alone_p50_ms"] > 0


def test_parts_of_a_tokens_way_add_up_and_references_are_apart():
    moments = {part: i * 1_000_000 for i, part in enumerate(token.PARTS)}
    frames = [{"tick": 5, "full": False, "alone_ms": 4.0} | moments, {"tick": 10, "full": True} | moments]
    found = token.figures(frames)
    assert found["image_to_token_p50_ms"] == 8.0 and found["image_to_token_over_prefix_p50"] == 2.0
    assert [value for name, value in found.items() if name.startswith("part_")] == [1.0] * 8
    with pytest.raises(RuntimeError, match="0 frames with a token alone and 1 with a reference .* more --seconds"):
        token.figures(frames[1:])


def test_loop_is_measured_at_any_rate_beside_one_that_does_nothing(python):
    found = in_a_process(python, "control", "--rate", "100", "--minutes", "0.05", "--token", "8")
    assert found["rate_hz"] == 100.0 and found["nodes"] == ["proprio_node", "safety_node", "actor_node"]
    assert found["period_error_p999_over_bare_loop"] > 0 and found["cpu_actor_safety_percent"] > 0
    assert 0 < found["ticks"] < 100 * 30 and found["commands"] > 0


def test_practice_and_rate_do_not_go_together(capsys):
    assert main(["bench", "control", "--rate", "250", "--session", "kept"]) == 2
    assert "--session keeps a practice" in capsys.readouterr().err


def test_costs_are_of_what_was_seen_since_the_beginning(monkeypatch):
    now = iter([10.0, 20.0])
    monkeypatch.setattr(control.time, "monotonic", lambda: next(now))
    updates = iter([100.0, 600.0])
    costs = control.Costs(types.SimpleNamespace(value=lambda node, name: next(updates)))
    costs.see({"actor_node": 1.0, "safety_node": 2.0, "learner_node": 3.0})
    with pytest.raises(RuntimeError, match="give it more --minutes"):
        costs.figures()
    costs.see({"actor_node": 1.5, "safety_node": 2.25, "learner_node": 12.0})
    found = costs.figures()
    assert found["cpu_actor_safety_percent"] == 7.5 and found["learner_cpu_percent"] == 90.0
    assert found["updates_per_s"] == 50.0


def test_loop_that_told_nothing_is_an_error_and_not_a_figure():
    with pytest.raises(RuntimeError, match="no period errors yet; give it more --minutes"):
        control.loop_figures({"ticks": 3.0}, {"ticks": 3})


def test_bare_loop_tells_how_it_kept_time():
    bare = control.BareLoop(200.0, realtime=False)
    try:
        bare.reset()
        found = bare.end()
    finally:
        bare.kill()
    assert {"ticks", "missed", "late_5ms"} <= found.keys()


def test_learner_at_full_load_finds_transitions_in_its_session(tmp_path):
    control.write_learner(tmp_path / "full", control.FULL)
    control.write_journal(tmp_path / "full", types.SimpleNamespace(task="ethernet", token=8))
    stored = list(stored_transitions(tmp_path / "full", print))
    assert len(stored) == control.ROWS and len(stored[0].token) == 8
    config = TD3Config.from_mapping(control.shipped()["/**/learner_node"]["ros__parameters"]["td3"] | control.FULL)
    owing = Learner(config, Dims(token=8, rl_proprio=28, action=4, chunk=10))
    owing.add(stored[0])
    assert owing.due() > 10**5 and not owing.warm()


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


@pytest.mark.parametrize(
    "wrong",
    [("--rounds", "0"), ("--burners", "-1"), ("--steps", "1"), ("--rate", "0"), ("--rate", "1001"),
     ("--seconds", "-1"), ("--processes", "0"), ("--minutes", "0")],
)
def test_sizes_that_make_no_sense_are_wrong_usage(wrong, capsys):
    assert main(["bench", "learner", *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_help_has_an_example_of_each(capsys):
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    names = ("control", "latency", "human", "token", "learner", "weights", "replay", "import", "panel", "all")
    assert all(f"rlt bench {name}" in out for name in names)


def test_training_is_measured_with_and_without_the_cache(capsys, tmp_path, monkeypatch, one_thread):
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16}
    monkeypatch.setattr(training, "LARGE", {
        "vision": tiny | {"patch_size": 16, "image_size": 32, "projection_dim": 32}, "text": tiny | heads,
        "expert": tiny | heads,
    })  # fmt: skip
    monkeypatch.setattr(training, "BATCH", {"small": 2, "large": 2})
    monkeypatch.setattr(training, "NARROW", 16)
    found = measured(capsys, tmp_path, "training", "--rounds", "1")
    assert found["small_embedding_dim"] == found["small_token_width"] == 96 and found["small_vla_parameters"] > 8e5
    assert found["large_token_width"] == 32 and found["large_narrow_token_width"] == 16
    for name in ("small", "large", "large_narrow"):
        assert found[f"{name}_ratio_least"] <= found[f"{name}_ratio"] <= found[f"{name}_ratio_most"]
        flops = [found[f"{name}_{part}_gflop_per_sample"] for part in ("vla", "token")]
        assert found[f"{name}_ratio_by_flops"] == pytest.approx(1 + flops[0] / flops[1])
    # 4 layers of 8 D² weights over 72 embeddings, 2 operations each and twice that backwards; attention and the rest.
    weights_only = 6 * 72 * 4 * 8 * 96**2 / 1e9
    assert weights_only < found["small_token_gflop_per_sample"] < 1.6 * weights_only
    assert found["large_narrow_token_gflop_per_sample"] < found["large_token_gflop_per_sample"]


def test_a_gpu_that_is_not_there_is_wrong_usage(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "learner", "--device", "cuda"]) == 2
    assert "--device is 'cuda', but torch finds no GPU here" in capsys.readouterr().err
