"""The arrow of imports goes one way: nodes -> ros -> core, vla, data; sim beside them; training over core, vla and
data; core knows nobody."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rlt_ros"
# part -> parts of rlt_ros that it must not import
FORBIDDEN = {
    "core": {"ros", "nodes", "vla", "data", "training", "sim", "cli", "panel", "msg"},
    "vla": {"ros", "nodes", "training", "sim", "cli", "panel", "msg"},
    "data": {"ros", "nodes", "cli", "panel", "msg"},
    "training": {"ros", "nodes", "sim", "cli", "panel", "msg"},
    "sim": {"ros", "nodes", "cli", "panel", "msg"},
    "ros": {"nodes", "cli", "panel", "sim", "vla"},
    "nodes": {"cli", "panel"},
}
ROS_FREE = ("core", "vla", "data", "training", "sim")
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


def names_of(path: Path) -> set[str]:
    """What a module has at its top level; {"*"} where that is not written down (made by `__getattr__` or by a star)."""
    found: set[str] = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add("*" if node.name == "__getattr__" else node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            nodes += [inner for inner in ast.walk(node) if inner is not node]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_what_is_imported_is_there() -> None:
    """Imports inside functions run on some machines and in some cases only; they are spelled right all the same."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not (node.module or "").startswith("rlt_ros"):
                continue
            if node.module.split(".")[1:2] in (["msg"], ["srv"]):
                continue  # made by the build
            base = PACKAGE.parent / Path(*node.module.split("."))
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            have = names_of(file) if file.exists() else set()
            for alias in node.names:
                module = base / alias.name
                if not {alias.name, "*"} & have and not (module.is_dir() or module.with_suffix(".py").exists()):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} imports {node.module}.{alias.name}")
    assert wrong == []
