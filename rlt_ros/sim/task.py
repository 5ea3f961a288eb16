"""Task files, and any Gymnasium environment seen through one.

A task file says which environment it is, where its pictures and its proprioception come from, what an action of 1.0
means, when the critical phase begins and what success is. Everything else here is the same for all environments.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

if TYPE_CHECKING:
    import gymnasium as gym

# Scenes of evaluation start here, demonstrations at 0, practice at PRACTICE_SEED + 10,000 * its seed: they never meet.
EVALUATION_SEED = 1_000_000_000
PRACTICE_SEED = 100_000_000


class TaskError(ValueError):
    """A task file that cannot be used; the message names file, key, value and what was expected."""


@dataclass(frozen=True)
class StateKey:
    """One part of the proprioception: ``size`` numbers of the environment's observation ``key``."""

    key: str
    size: int
    scale: tuple[float, ...]
    moved: tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """Holds when ``info[key]`` is above ``above``; 0.5 makes it a question of true or false. ``key`` empty: no rule."""

    key: str = ""
    above: float = 0.5


@dataclass(frozen=True)
class Task:
    """One task file, checked. Lengths in metres, angles in radians, times in seconds."""

    name: str
    instruction: str
    environment: str
    arguments: dict
    rate: float
    cameras: dict[str, str]
    state: tuple[StateKey, ...]
    vla_state: tuple[str, ...]
    action_names: tuple[str, ...]
    action_scale: tuple[float, ...]
    hand_over: Rule
    success: Rule
    failure: Rule
    critical_timeout: float
    approach_timeout: float
    limits: dict = field(default_factory=dict)
    demonstrator: str = ""

    @property
    def action_dim(self) -> int:
        return len(self.action_scale)

    @property
    def proprio_dim(self) -> int:
        return sum(k.size for k in self.state)

    @property
    def proprio_scale(self) -> list[float]:
        """What the actor's networks divide their 2P proprioceptive inputs by: now, then moved since the frame."""
        return [s for k in self.state for s in k.scale] + [s for k in self.state for s in k.moved]

    @property
    def wrench_index(self) -> int:
        """Where the force stands in the proprioception; its end when the task has no wrench."""
        return self._index("wrench")

    @property
    def pose_index(self) -> int:
        """Where the tool's position stands in the proprioception; its end when the task has no pose."""
        return self._index("pose")

    @property
    def angle_index(self) -> list[int]:
        """Where in the proprioception the angles stand that wrap around: the tool's yaw."""
        return [self.pose_index + 3] if self.pose_index < self.proprio_dim else []

    @property
    def layout(self) -> dict[str, int | None]:
        """Where the safety gate's limits find what they limit; None for what the task has not."""
        found = {"pose_index": self.pose_index, "force_index": self.wrench_index}
        return {name: index if index < self.proprio_dim else None for name, index in found.items()}

    def _index(self, key: str) -> int:
        start = 0
        for k in self.state:
            if k.key == key:
                return start
            start += k.size
        return start

    @property
    def vla_state_index(self) -> list[int]:
        """Where in the proprioception the values stand that the VLA is given."""
        out, start = [], 0
        for k in self.state:
            if k.key in self.vla_state:
                out += range(start, start + k.size)
            start += k.size
        return out


def task_folder() -> Path:
    """``config/tasks`` of the source tree, or of the installed package's share folder."""
    source = Path(__file__).resolve().parents[2] / "config" / "tasks"
    if source.is_dir():
        return source
    from ament_index_python.packages import get_package_share_directory  # only where the package is installed under ROS

    return Path(get_package_share_directory("rlt_ros")) / "config" / "tasks"


def task_file(name: str | Path) -> Path:
    """The file of a task: ``config/tasks/NAME.yaml``, or a path. TaskError when there is none."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = task_folder() / f"{name}.yaml"
    if not path.is_file():
        there = sorted(p.stem for p in task_folder().glob("*.yaml"))
        raise TaskError(
            f"task {str(name)!r}: no file {path}; there are: {', '.join(there)}; or give the path of a .yaml file"
        )
    return path


def load_task(name: str | Path) -> Task:
    """Load a task by name or path. TaskError says what is wrong and where."""
    path = task_file(name)
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise TaskError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise TaskError(f"{path}: got {type(raw).__name__}, expected a mapping of keys")
    return _task(path, raw)


_KEYS = {
    "name": str, "instruction": str, "environment": dict, "rate": float, "cameras": dict, "state": list,
    "vla_state": list, "action": dict, "hand_over": dict, "success": dict, "failure": dict, "critical_timeout": float,
    "approach_timeout": float, "limits": dict, "demonstrator": str,
}  # fmt: skip
_OPTIONAL = {"hand_over": {}, "failure": {}, "vla_state": None, "limits": {}, "demonstrator": ""}


def _take(path: Path, where: str, raw: dict, keys: dict[str, type], optional: dict) -> dict:
    unknown = [k for k in raw if k not in keys]
    if unknown:
        raise TaskError(f"{path}: unknown key {where}{unknown[0]!r}; expected one of: {', '.join(keys)}")
    out = {}
    for key, kind in keys.items():
        if key not in raw:
            if key not in optional:
                raise TaskError(f"{path}: key {where}{key!r} is missing; expected a {kind.__name__}")
            out[key] = optional[key]
            continue
        value = raw[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            raise TaskError(f"{path}: {where}{key} is {value!r}, expected a {kind.__name__}")
        out[key] = value
    return out


def _numbers(path: Path, where: str, value, size: int | None = None) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(isinstance(v, (int, float)) and np.isfinite(v) for v in value):
        raise TaskError(f"{path}: {where} is {value!r}, expected a list of finite numbers")
    if size is not None and len(value) != size:
        raise TaskError(f"{path}: {where} has {len(value)} numbers, expected {size}")
    return tuple(float(v) for v in value)


def _task(path: Path, raw: dict) -> Task:
    top = _take(path, "", raw, _KEYS, _OPTIONAL)
    env = _take(path, "environment.", top["environment"], {"id": str, "arguments": dict}, {"arguments": {}})
    action = _take(path, "action.", top["action"], {"names": list, "scale": list}, {"names": None})
    rules = {
        name: Rule(**_take(path, f"{name}.", top[name], {"key": str, "above": float}, {"key": "", "above": 0.5}))
        for name in ("hand_over", "success", "failure")
    }
    scale = _numbers(path, "action.scale", action["scale"])
    names = tuple(action["names"] or [f"a{i}" for i in range(len(scale))])
    if len(names) != len(scale):
        raise TaskError(f"{path}: action.names has {len(names)} entries, action.scale {len(scale)}; they must match")
    state = []
    for i, entry in enumerate(top["state"]):
        where = f"state[{i}]."
        entry = _take(
            path, where, entry, {"key": str, "size": int, "scale": list, "moved": list}, {"scale": None, "moved": None}
        )
        ones = [1.0] * entry["size"]
        state.append(
            StateKey(
                entry["key"],
                entry["size"],
                _numbers(path, where + "scale", entry["scale"] or ones, entry["size"]),
                _numbers(path, where + "moved", entry["moved"] or entry["scale"] or ones, entry["size"]),
            )
        )
    vla_state = tuple(top["vla_state"] if top["vla_state"] is not None else [k.key for k in state])
    for key in vla_state:
        if key not in [k.key for k in state]:
            raise TaskError(f"{path}: vla_state names {key!r}, expected one of: {', '.join(k.key for k in state)}")
    for name, source in top["cameras"].items():
        if source != "render" and not str(source).startswith(("camera:", "obs:")):
            raise TaskError(f"{path}: cameras.{name} is {source!r}, expected `render`, `camera:NAME` or `obs:KEY`")
    if top["rate"] <= 0:
        raise TaskError(f"{path}: rate is {top['rate']}, expected a positive number of ticks per second")
    if top["limits"].get("max_force") is not None and "wrench" not in [k.key for k in state]:
        raise TaskError(
            f"{path}: limits.max_force is {top['limits']['max_force']}, but the state has no wrench to measure "
            "it; add a part 'wrench' or set it to null"
        )
    return Task(
        name=top["name"], instruction=top["instruction"], environment=env["id"], arguments=env["arguments"],
        rate=top["rate"],
        cameras=dict(top["cameras"]), state=tuple(state), vla_state=vla_state, action_names=names, action_scale=scale,
        **rules,
        critical_timeout=top["critical_timeout"], approach_timeout=top["approach_timeout"], limits=top["limits"],
        demonstrator=top["demonstrator"],
    )  # fmt: skip


def require_simulation(task: Task) -> None:
    """TaskError for a task that is for a robot only."""
    if task.environment.startswith("none:"):
        raise TaskError(
            f"task {task.name!r} is for a robot only: environment.id is {task.environment!r}, and there is no"
            " simulation of it; start it with ros2 launch (docs/robots.md)"
        )


def make_environment(task: Task) -> gym.Env:
    """The task's Gymnasium environment: ``module:Class``, or an id of Gymnasium; ``module:Name-v0`` imports the module
    first.

    Time limits of the environment's own do not apply (the task's do). TaskError names one that cannot be made.
    """
    import gymnasium as gym  # here: the nodes of a robot load task files and have no use for a simulator

    require_simulation(task)
    module, _, name = task.environment.rpartition(":")
    try:
        if module and hasattr(importlib.import_module(module), name):
            return getattr(importlib.import_module(module), name)(render_mode="rgb_array", **task.arguments)
        if module and name not in gym.registry and not re.search(r"-v\d+$", name):
            raise TaskError(
                f"task {task.name!r}: environment.id {task.environment!r}: the module {module!r} is there, but has no"
                f" {name!r}; expected a class in it, or an id that it registers, such as Name-v0"
            )
        return gym.make(
            task.environment, render_mode="rgb_array", disable_env_checker=True, max_episode_steps=-1, **task.arguments
        )
    except (ImportError, gym.error.Error) as error:
        raise TaskError(
            f"task {task.name!r}: environment.id {task.environment!r}: {error}; install the package that has it"
        ) from error


class TaskEnv:
    """A Gymnasium environment with the task's cameras, proprioception, action scaling and hand-over rule.

    Actions are normalised, float32 [A] in [-1, 1]; proprioception is float32 [P] in SI units.
    """

    def __init__(self, task: Task, seed: int = 0):
        self.task = task
        self.env = make_environment(task)
        self._scale = np.asarray(task.action_scale, np.float32)
        low = getattr(self.env.action_space, "shape", None)
        if low != (task.action_dim,):
            raise TaskError(
                f"task {task.name!r}: action.scale has {task.action_dim} numbers, the environment wants {low}"
            )
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        self._observation, self._info = self.env.reset(seed=seed)
        self._stepped = False  # many environments say nothing in info before the first step
        self._flat()  # complain at once about keys that do not exist

    def step(self, action: np.ndarray) -> None:
        action = np.clip(np.asarray(action, np.float32), -1, 1) * self._scale
        self._observation, _, _, _, self._info = self.env.step(action)
        self._stepped = True

    def proprio(self) -> np.ndarray:
        """float32 [P]."""
        return self._flat()

    def moment(self) -> object | None:
        """The present, for `images` in another thread; None when this environment can only be drawn on the spot."""
        env = self.env.unwrapped
        if hasattr(env, "moment") and all(source.startswith("camera:") for source in self.task.cameras.values()):
            return env.moment()
        return None

    def images(self, moment: object | None = None) -> dict[str, np.ndarray]:
        """camera name -> uint8 [h, w, 3] RGB, now or at a `moment`."""
        out = {}
        for name, source in self.task.cameras.items():
            if source == "render":
                picture = self.env.render()
            elif source.startswith("obs:"):
                picture = self._observation[source[4:]]
            else:
                picture = self.env.unwrapped.camera(source[7:], *([] if moment is None else [moment]))
            out[name] = np.ascontiguousarray(picture, np.uint8)
        return out

    def critical(self) -> bool:
        """Whether a person would hand over now, by the task's rule."""
        return not self.task.hand_over.key or self._holds(self.task.hand_over)

    def success(self) -> bool:
        return self._stepped and self._holds(self.task.success)

    def failure(self) -> bool:
        return self._stepped and bool(self.task.failure.key) and self._holds(self.task.failure)

    def truth(self) -> dict[str, float]:
        """What only the simulated person may see: lateral_error, depth (m) and yaw_error (rad), NaN where unknown."""
        return {k: float(self._info.get(k, np.nan)) for k in ("lateral_error", "depth", "yaw_error")}

    def info(self) -> dict:
        return self._info

    def observation(self) -> dict:
        """The environment's own observation by key, for drivers that publish joint states and the like.

        One that is a bare array is called `observation`.
        """
        return self._observation if isinstance(self._observation, dict) else {"observation": self._observation}

    def close(self) -> None:
        self.env.close()

    def _holds(self, rule: Rule) -> bool:
        if rule.key not in self._info:
            there = ", ".join(sorted(self._info)) or "none"
            raise TaskError(f"task {self.task.name!r}: info has no key {rule.key!r}; it has: {there}")
        return float(self._info[rule.key]) > rule.above

    def _flat(self) -> np.ndarray:
        observation = self.observation()
        parts = []
        for k in self.task.state:
            if k.key not in observation:
                raise TaskError(
                    f"task {self.task.name!r}: state key {k.key!r} is not in the observation; it has:"
                    f" {', '.join(observation)}"
                )
            value = np.asarray(observation[k.key], np.float32).ravel()
            if value.size != k.size:
                raise TaskError(
                    f"task {self.task.name!r}: state key {k.key!r} has {value.size} values, the task file says {k.size}"
                )
            parts.append(value)
        return np.concatenate(parts)
