"""Robot files that cannot be meant. The node that reads them says so and does not start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from entries import Says
from rig import ARM, LIMITS, ROOT


@dataclass(frozen=True)
class NotStarted:
    text: str = "nothing commands it: safety_node does not start"


@dataclass(frozen=True)
class Corrected:
    text: str = "correct the file"


@dataclass(frozen=True)
class WrongFile:
    """One row: `spoil` changes the task, the parameters of the arm and of the gate, or returns another URDF."""

    name: str
    spoil: Callable[[dict, dict, dict, str], str | None]
    said: str
    group: str = "A wrong robot file"
    robot: NotStarted = NotStarted()
    recovery: Corrected = Corrected()

    @property
    def told(self) -> tuple:
        return (Says("safety_node", self.said),)

    def arguments(self, folder: Path, spoilt: bool) -> list[str]:
        """Of a safety node with this file, or with the one that it should have been."""
        task = yaml.safe_load((ROOT / "config/tasks/ethernet.yaml").read_text())
        arm, gate = dict(ARM), {"limits": dict(LIMITS)}
        del task["limits"]["max_linear_velocity"]  # the robot file has it
        urdf = Path(ARM["urdf"]).read_text()
        if spoilt:
            urdf = self.spoil(task, arm, gate, urdf) or urdf
        (folder / "arm.urdf").write_text(urdf)
        (folder / "task.yaml").write_text(yaml.safe_dump(task))
        if arm["urdf"] == ARM["urdf"]:
            arm["urdf"] = str(folder / "arm.urdf")
        parameters = {"/**": {"task": str(folder / "task.yaml"), "arm": arm}, "/**/safety_node": gate}
        path = folder / "robot.yaml"
        path.write_text(yaml.safe_dump({node: {"ros__parameters": values} for node, values in parameters.items()}))
        return ["--ros-args", "--params-file", str(path)]


def without_a_limit(_task: dict, _arm: dict, gate: dict, _urdf: str) -> None:
    del gate["limits"]["max_linear_velocity"]


def slip_of_the_pen(_task: dict, _arm: dict, gate: dict, _urdf: str) -> None:
    gate["limits"]["max_forse"] = 30.0


def other_joints(_task: dict, arm: dict, _gate: dict, _urdf: str) -> None:
    arm["joints"] = ["elbow_joint", *ARM["joints"][1:]]


def without_velocities(_task: dict, _arm: dict, _gate: dict, urdf: str) -> str:
    return urdf.replace(' velocity="3.0"', "")


def no_urdf(_task: dict, arm: dict, _gate: dict, _urdf: str) -> None:
    arm["urdf"] = "/nowhere/robot.urdf"


def wrong_files() -> list[WrongFile]:
    """All of them, in the order of the table."""
    return [
        WrongFile("a limit is missing", without_a_limit, "'max_linear_velocity' is missing"),
        WrongFile("a limit is misspelt", slip_of_the_pen, "unknown key 'max_forse'"),
        WrongFile("joints that the URDF does not have", other_joints, "no moving joint 'elbow_joint'"),
        WrongFile("a URDF without velocities", without_velocities, "'joint_velocity' is missing"),
        WrongFile("a URDF that is not there", no_urdf, "No such file"),
    ]
