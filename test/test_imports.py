"""The arrow of imports goes one way: nodes -> ros -> core, vla, data; sim beside them; core knows nobody."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rlt_ros"
# part -> parts of rlt_ros that it must not import
FORBIDDEN = {
    "core": {"ros", "nodes", "vla", "data", "sim", "cli", "panel", "msg"},
    "vla": {"ros", "nodes", "sim", "cli", "panel", "msg"},
    "data": {"ros", "nodes", "cli", "panel", "msg"},
    "sim": {"ros", "nodes", "cli", "panel", "msg"},
    "ros": {"nodes", "cli", "panel", "sim", "vla"},
    "nodes": {"cli", "panel"},
}
ROS_FREE = ("core", "vla", "data", "sim")
ROS = {"rclpy", "rosidl_runtime_py", "ament_index_python", "launch", "launch_ros"}


def imports(path: Path) -> set[str]:
    """Full dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)[:-node.level] if node.level else []
            base = ".".join(package + ([node.module] if node.module else []))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def is_ros(name: str) -> bool:
    root = name.split(".")[0]
    return root in ROS or root.endswith(("_msgs", "_srvs", "_interfaces"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_part_imports_only_what_it_may(part: str) -> None:
    wrong = [f"{path.relative_to(PACKAGE)} imports {name}" for path in (PACKAGE / part).rglob("*.py")
             for name in imports(path)
             if name.startswith("rlt_ros.") and name.split(".")[1] in FORBIDDEN[part]]
    assert wrong == []


@pytest.mark.parametrize("part", ROS_FREE)
def test_part_is_free_of_ros(part: str) -> None:
    allowed = PACKAGE / "sim" / "task.py"  # looks up the share folder of an installed package, when there is one
    wrong = [f"{path.relative_to(PACKAGE)} imports {name}" for path in (PACKAGE / part).rglob("*.py")
             for name in imports(path)
             if is_ros(name) and not (path == allowed and name.startswith("ament_index_python"))]
    assert wrong == []
