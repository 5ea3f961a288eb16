"""Every file in config/robots configures the nodes that read it."""

from pathlib import Path

import pytest
import yaml

from rlt_ros.nodes.actor_node import ActorNode
from rlt_ros.nodes.camera_node import CameraNode
from rlt_ros.nodes.proprio_node import ProprioNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.ros import processes
from rlt_ros.sim.task import load_task

SHARE = Path(__file__).resolve().parents[2]
ROBOTS = sorted(path.stem for path in (SHARE / "config" / "robots").glob("*.yaml"))
NODES = {"safety_node": SafetyNode, "proprio_node": ProprioNode, "camera_node": CameraNode, "teleop_node": TeleopNode,
         "actor_node": ActorNode}  # fmt: skip
SENDS = {"ur5e": ["PoseOutput"], "fr3": ["PoseOutput"], "so101": ["JointOutput", "GripperOutput"]}


def urdf(base: str, tip: str, joints: list[str]) -> str:
    """A chain with these names: what matters here of the robot's own."""
    links = [base, *[f"link{i}" for i in range(len(joints) - 1)], tip]
    parts = [f'<link name="{name}"/>' for name in links]
    for i, name in enumerate(joints):
        parts.append(f'<joint name="{name}" type="revolute"><parent link="{links[i]}"/><child link="{links[i + 1]}"/>'
                     f'<origin xyz="0.1 0 0.1"/><axis xyz="0 {i % 2} {1 - i % 2}"/>'
                     '<limit lower="-3" upper="3" velocity="2" effort="10"/></joint>')  # fmt: skip
    return f'<robot name="stub">{"".join(parts)}</robot>'


def configured(graph, name: str, files: list[Path]):
    """The node, after it was told to configure itself from parameter files."""
    arguments = [argument for file in files for argument in ("--params-file", str(file))]
    node = graph.add(NODES[name](name, cli_args=["--ros-args", *arguments]))
    node.trigger_configure()
    return node


def shared(robot: str) -> dict:
    """The parameters that a robot file has for all nodes."""
    return yaml.safe_load((SHARE / "config" / "robots" / f"{robot}.yaml").read_text())["/**"]["ros__parameters"]


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("robot", ROBOTS)
def test_robot_file_configures_its_nodes(graph, tmp_path, robot, name):
    arm = shared(robot)["arm"]
    path, mine = tmp_path / "robot.urdf", tmp_path / "mine.yaml"
    path.write_text(urdf(arm["base"], arm["tip"], arm["joints"]))
    mine.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"arm": {"urdf": str(path)}}}}))
    node = configured(graph, name, [*processes.parameter_files(SHARE, robot), mine])
    assert node.configure_error == ""
    if name == "safety_node":
        assert [type(output).__name__ for output in node.outputs] == SENDS[robot]
        assert node.gate.watch_joints
    if name == "teleop_node":
        assert node.gamepad.idle == [], "an action that no stick steers"


@pytest.mark.parametrize("robot", ROBOTS)
def test_robot_file_says_what_is_missing_without_its_urdf(graph, robot, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    node = configured(graph, "safety_node", processes.parameter_files(SHARE, robot))
    assert "No such file" in node.configure_error and "write the file with" in node.configure_error


@pytest.mark.parametrize("robot", ROBOTS)
def test_rate_is_the_tasks(robot):
    assert shared(robot)["rate_hz"] == load_task(shared(robot)["task"]).rate
