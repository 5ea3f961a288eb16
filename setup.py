"""The ROS-free part as a pip package: method, VLAs, data, simulator and the command `rlt`, for a server without ROS.

On a robot the package is built with colcon (CMakeLists.txt), which does not use this file. The version stands in
package.xml, the dependencies in setup/requirements.txt, their tested versions in setup/constraints.txt, the command in
scripts/rlt.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def entries(name: str) -> list[str]:
    """Lines of setup/<name> without comments."""
    lines = (HERE / "setup" / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


TESTED = {name.lower(): version for name, version in (line.split("==") for line in entries("constraints.txt"))}

PANEL = ("qtpy", "PySide6-Essentials")  # needs ROS, so it is left out with its packages

setup(
    name="rlt_ros",
    version=re.search(r"<version>(.+?)</version>", (HERE / "package.xml").read_text(encoding="utf-8")).group(1),
    description="Let a robot practise the critical phase of a task: the RL token method on ROS 2",
    license="Apache-2.0",
    packages=find_packages(include=["rlt_ros", "rlt_ros.*"], exclude=["rlt_ros.nodes*", "rlt_ros.panel*"]),
    package_data={"rlt_ros": ["**/*.safetensors", "**/*.json", "**/*.xml", "**/*.yaml", "**/*.urdf"]},
    data_files=[(f"share/rlt_ros/{folder}", [str(f.relative_to(HERE)) for f in (HERE / folder).glob("*.[xy]*ml")])
                for folder in ("config", "config/tasks", "config/robots", "config/gamepads", "config/demos")],
    python_requires=">=3.11",
    install_requires=["torch"] + [f"{name}>={TESTED[name.lower()]}" for name in entries("requirements.txt")
                                 if name not in PANEL],
    scripts=["scripts/rlt"],
)
