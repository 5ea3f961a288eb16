"""Mapping files."""

from pathlib import Path

import pytest
import yaml

from rlt_ros.data.mapping import DemoError, load_mapping
from rlt_ros.sim.task import task_folder

EXAMPLES = sorted((task_folder().parent / "demos").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_good_and_found_by_name(path: Path):
    assert load_mapping(Path(path.stem)).text == path.read_text(encoding="utf-8")


def good(**changes) -> dict:
    return {
        "task": "ethernet", "cameras": {"wrist": "w", "base": "b"},
        "state": {"pose": "p", "twist": "t", "wrench": "f"}, "action": {"from": "a", "kind": "delta"},
    } | changes  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [
    ({"camera": {}}, "unknown key 'camera', expected one of: task, pictures"),
    ({"task": 3}, "'task' is 3, expected str"),
    ({"cameras": {"wrist": "w"}}, "'cameras' lacks 'base'; the task 'ethernet' has: wrist, base"),
    ({"cameras": {"wrist": "w", "base": "b", "top": "t"}}, "'cameras' has 'top'"),
    ({"cameras": {"wrist": {"from": "w", "crop": [1, 2]}, "base": "b"}}, "'cameras.wrist.crop' is [1, 2], expected ["),
    ({"state": {"pose": "p", "wrench": "f"}}, "'state' lacks 'twist'"),
    ({"state": {"pose": {"from": "p", "unit": "inch"}, "twist": "t", "wrench": "f"}}, "'state.pose.unit' has 'inch'"),
    ({"state": {"pose": {"from": "p", "pick": [1, 2]}, "twist": "t", "wrench": "f"}}, "'state.pose.pick' has 2"),
    ({"action": {"from": "a"}}, "key 'action.kind' is missing"),
    ({"action": {"from": "a", "kind": "torque"}}, "'action.kind' is 'torque', expected one of: normalised, delta"),
    ({"action": {"from": "a", "kind": "normalised", "unit": "mm"}}, "'action.unit' says nothing of kind normalised"),
    ({"critical": {"from": "x", "before_end": 1.0}}, "'critical' is "),
    ({"success": {"before_end": 1.0}}, "unknown key 'success.before_end'"),
    ({"pictures": {"every": 0}}, "'pictures.every' is 0, expected at least 1"),
    ({"skip": ["a"]}, "'skip' is ['a'], expected numbers of episodes"),
    ({"max_gap": "long"}, "'max_gap' is 'long', expected float"),
])  # fmt: skip
def test_what_cannot_be_meant_is_named(tmp_path, change, says):
    path = tmp_path / "map.yaml"
    path.write_text(yaml.safe_dump(good(**change)))
    with pytest.raises(DemoError) as error:
        load_mapping(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_there_or_no_yaml_is_named(tmp_path):
    with pytest.raises(DemoError, match="nowhere.yaml: No such file .* or a name in config/demos"):
        load_mapping(tmp_path / "nowhere.yaml")
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(DemoError, match="odd.yaml: not YAML"):
        load_mapping(tmp_path / "odd.yaml")
