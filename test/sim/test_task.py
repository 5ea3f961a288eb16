"""Task files: what is accepted, what is refused and with which words; any Gymnasium environment behind one."""

import numpy as np
import pytest
import yaml

from rlt_ros.sim.task import TaskEnv, TaskError, load_task, task_folder


@pytest.fixture
def ethernet() -> dict:
    return yaml.safe_load((task_folder() / "ethernet.yaml").read_text())


def refused(tmp_path, content: dict) -> str:
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TaskError) as error:
        load_task(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_unknown_key_is_named_with_what_is_expected(tmp_path, ethernet):
    text = refused(tmp_path, ethernet | {"speed": 3})
    assert "'speed'" in text and "critical_timeout" in text


def test_missing_key_is_named(tmp_path, ethernet):
    del ethernet["action"]
    assert "'action' is missing" in refused(tmp_path, ethernet)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rate", "fast", "rate is 'fast', expected a float"),
        ("rate", -1.0, "rate is -1.0"),
        ("cameras", {"wrist": "webcam"}, "cameras.wrist is 'webcam'"),
        ("action", {"scale": [0.1, float("nan"), 1, 1]}, "action.scale"),
        ("action", {"names": ["x"], "scale": [0.1, 0.1]}, "action.names has 1"),
        ("vla_state", ["touch"], "'touch'"),
        ("hand_over", {"key": "depth", "over": 1}, "'over'"),
        (
            "state",
            [{"key": "pose", "size": 4}, {"key": "twist", "size": 4}],
            "max_force is 40.0, but the state has no wrench",
        ),
    ],
)
def test_bad_values_are_named(tmp_path, ethernet, key, value, said):
    if key == "state":
        ethernet["vla_state"] = ["pose"]
    assert said in refused(tmp_path, ethernet | {key: value})


def test_wrong_number_of_scales_is_refused(tmp_path, ethernet):
    ethernet["state"][0]["scale"] = [1.0, 2.0]
    assert "state[0].scale has 2 numbers, expected 4" in refused(tmp_path, ethernet)


def test_a_task_that_does_not_exist_tells_which_do():
    with pytest.raises(TaskError, match="ethernet"):
        load_task("knitting")


def test_an_environment_that_is_not_installed_is_named(tmp_path, ethernet):
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(ethernet | {"environment": {"id": "no_such_package:Env-v0"}}))
    with pytest.raises(TaskError, match="no_such_package"):
        TaskEnv(load_task(path))


def test_state_of_another_size_is_refused(tmp_path, ethernet):
    path = tmp_path / "task.yaml"
    other = {"state": [{"key": "pose", "size": 7}], "vla_state": ["pose"], "limits": {}}
    path.write_text(yaml.safe_dump(ethernet | other))
    with pytest.raises(TaskError, match="'pose' has 4 values, the task file says 7"):
        TaskEnv(load_task(path))


def test_an_environment_that_others_wrote_needs_only_a_file():
    env = TaskEnv(load_task("reacher"))
    assert env.images()["view"].shape == (96, 96, 3)
    assert env.critical() and not env.success()
    before = env.proprio()
    for _ in range(20):
        env.step(np.array([1.0, -1.0], np.float32))
    assert list(env.observation()) == ["observation"]
    assert env.proprio().shape == (10,) and np.abs(env.proprio() - before).max() > 0.01
    env.close()


def test_proprioception_scale_counts_both_halves():
    task = load_task("ethernet")
    assert len(task.proprio_scale) == 2 * task.proprio_dim
    assert task.vla_state_index == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]  # pose and wrench, not the twist
    assert task.wrench_index == 8


def test_a_class_that_is_missing_is_no_missing_package(tmp_path, ethernet):
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(ethernet | {"environment": {"id": "rlt_ros.sim.ethernet:Nope"}}))
    with pytest.raises(TaskError, match="the module 'rlt_ros.sim.ethernet' is there, but has no 'Nope'"):
        TaskEnv(load_task(path))


def test_a_task_for_a_robot_is_not_simulated():
    with pytest.raises(TaskError, match="'so101' is for a robot only"):
        TaskEnv(load_task("so101"))
