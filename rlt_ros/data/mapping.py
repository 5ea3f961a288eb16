"""The mapping file of an import: from the features or topics of a recording to cameras, state and action of a task.

docs/demonstrations.md has it key by key, config/demos examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlt_ros.core.proprioception import SIZES, ProprioAssembler, ProprioError
from rlt_ros.sim.task import Task, TaskError, load_task, task_folder

UNITS = {
    "m": 1.0, "cm": 1e-2, "mm": 1e-3, "rad": 1.0, "deg": math.pi / 180, "m/s": 1.0, "mm/s": 1e-3, "rad/s": 1.0,
    "deg/s": math.pi / 180, "N": 1.0, "Nm": 1.0,
}  # fmt: skip
KINDS = ("normalised", "delta", "velocity", "position")


class DemoError(ValueError):
    """Demonstrations that cannot be used; the text names file, episode and frame, and says what to do."""


@dataclass(frozen=True)
class CameraMap:
    """Where the pictures of a camera come from; the rest as the parameters of camera_node of that name."""

    source: str
    crop: tuple[int, ...] = ()
    freeze_s: float = 0.25
    dark_level: int = 10
    bright_level: int = 250


@dataclass(frozen=True)
class Part:
    """Where the values of a part of the state, or of the action, come from.

    pick: names or indices of the feature's values, or names of joints; empty: all in their order.
    factor: [1] or [values], from its unit to SI.
    """

    source: str
    pick: tuple[str | int, ...] = ()
    factor: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class When:
    """A constant, or whether `source` is above `above`; `before_end_s` is for the critical phase."""

    constant: bool | None = None
    source: str = ""
    above: float = 0.5
    before_end_s: float | None = None


@dataclass(frozen=True)
class Mapping:
    """A checked mapping file. Attributes as its keys.

    proprio: topic of whole vectors of this package (Proprio), in place of `state`.
    episodes: topic of EpisodeState, which cuts a recording of this package into episodes; "": one a recording.
    """

    path: Path
    task: Task
    cameras: dict[str, CameraMap]
    state: dict[str, Part]  # of every part of the task's state but a derived twist
    derive_twist: bool
    action: Part
    kind: str
    proprio: str = ""
    episodes: str = ""
    size: int = 96
    every: int = 5
    success: When = When(constant=True)
    critical: When = When(constant=False)
    tasks: tuple[str, ...] = ()
    skip: tuple[int, ...] = ()
    max_clipped: float = 0.05
    max_gap_s: float = 0.2
    check_statistics: bool = True
    text: str = field(default="", repr=False)

    def assembler(self) -> ProprioAssembler:
        """What joins the readings, as proprio_node's does."""
        joints = {
            part: [str(name) for name in found.pick]
            for part, found in self.state.items()
            if part not in SIZES and found.pick
        }
        return ProprioAssembler([(key.key, key.size) for key in self.task.state], joints, self.derive_twist)

    @property
    def streams(self) -> dict[str, str]:
        """Stream of the assembler -> topic, for recordings of messages."""
        assembler = self.assembler()
        return {assembler.stream_of(part): found.source for part, found in self.state.items()}

    @property
    def angles(self) -> np.ndarray:
        """bool [P]: values of the state that wrap around."""
        return np.concatenate([np.arange(key.size) == (3 if key.key == "pose" else -1) for key in self.task.state])


def load_mapping(path: Path, task: str | None = None) -> Mapping:
    """Read a mapping file, or one of config/demos by name; `task` goes before the file's. DemoError, TaskError."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        path = task_folder().parent / "demos" / f"{path}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except OSError as error:
        raise DemoError(f"mapping {path}: {error.strerror}; give a .yaml file or a name in config/demos") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DemoError(f"mapping {path}: not YAML: {error}") from error
    return _Reader(path).mapping(raw, task, text)


def own_mapping(cameras: Iterable[str], task: str) -> str:
    """The text of a mapping file for what recorder_node records; `task` is a task's name or file."""
    # The nodes have judged the pictures already.
    judged = {"freeze_s": 0.0, "dark_level": 0, "bright_level": 255}
    values = {
        "task": task,
        "pictures": {"size": 0, "every": 5},
        "cameras": {name: {"from": f"/camera/{name}/image/compressed"} | judged for name in cameras},
        "state": "/proprio",
        "action": {"from": "/command/executed", "kind": "normalised"},
        "episodes": "/episode/state",
    }
    head = "# How `rlt demos import` reads this recording, if --map gives no other file; docs/demonstrations.md\n"
    return head + yaml.safe_dump(values, sort_keys=False)


class _Reader:
    """Takes keys out of the file and says which one is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, text: str) -> DemoError:
        return DemoError(f"mapping {self.path}: {text}")

    def take(self, raw: Any, where: str, kinds: dict[str, tuple[type, ...]], needed: tuple[str, ...] = ()) -> dict:
        if not isinstance(raw, dict):
            raise self.wrong(f"{where or 'the file'} is {raw!r}, expected keys out of: {', '.join(kinds)}")
        for key, value in raw.items():
            if key not in kinds:
                raise self.wrong(f"unknown key '{where}{key}', expected one of: {', '.join(kinds)}")
            number = float in kinds[key] and isinstance(value, int) and not isinstance(value, bool)
            if not (isinstance(value, kinds[key]) or number) or (isinstance(value, bool) and bool not in kinds[key]):
                names = " or ".join(kind.__name__ for kind in kinds[key])
                raise self.wrong(f"'{where}{key}' is {value!r}, expected {names}")
        for key in needed:
            if key not in raw:
                raise self.wrong(f"key '{where}{key}' is missing")
        return raw

    def mapping(self, raw: Any, task_name: str | None, text: str) -> Mapping:
        raw = self.take(raw, "", {
            "task": (str,), "pictures": (dict,), "cameras": (dict,), "state": (dict, str), "action": (dict,),
            "success": (bool, dict), "critical": (bool, dict), "episodes": (str,), "tasks": (list,), "skip": (list,),
            "max_clipped": (float,), "max_gap": (float,), "check_statistics": (bool,),
        }, ("task", "cameras", "state", "action"))  # fmt: skip
        name = task_name or raw["task"]
        beside = self.path.parent / name
        task = load_task(beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else name)
        pictures = self.take(raw.get("pictures", {}), "pictures.", {"size": (int,), "every": (int,)})
        for key, least in (("size", 8), ("every", 1)):
            if pictures.get(key, least) < least and (key, pictures[key]) != ("size", 0):
                raise self.wrong(f"'pictures.{key}' is {pictures[key]}, expected at least {least}")
        keys = {"max_clipped": raw.get("max_clipped", 0.05), "max_gap_s": raw.get("max_gap", 0.2)}
        skip = raw.get("skip", [])
        if not all(isinstance(number, int) for number in skip):
            raise self.wrong(f"'skip' is {skip}, expected numbers of episodes")
        self.same("cameras", raw["cameras"], list(task.cameras), task)
        parts = [key.key for key in task.state]
        proprio = raw["state"] if isinstance(raw["state"], str) else ""
        if not proprio:
            self.same("state", raw["state"], parts, task)
        if "episodes" in raw and {"success", "critical"} & set(raw):
            raise self.wrong("'episodes' says what is a success and where the critical phase begins; leave out"
                             " 'success' and 'critical'")
        derived = not proprio and raw["state"].get("twist") == "derived"
        state = {} if proprio else {
            part: self.part(f"state.{part}.", raw["state"][part], (1, key.size) if part != "pose" else (1, 4, 7))
            for part, key in zip(parts, task.state, strict=True)
            if not (part == "twist" and derived)
        }
        action = self.take(
            raw["action"],
            "action.",
            {"from": (str,), "kind": (str,), "pick": (list,), "unit": (str, float, list)},
            ("from", "kind"),
        )
        if action["kind"] not in KINDS:
            raise self.wrong(f"'action.kind' is {action['kind']!r}, expected one of: {', '.join(KINDS)}")
        if action["kind"] == "normalised" and "unit" in action:
            raise self.wrong("'action.unit' says nothing of kind normalised; take it out, or give the kind it has")
        picked = {key: value for key, value in action.items() if key != "kind"}
        mapping = Mapping(
            path=self.path, task=task, cameras={c: self.camera(c, raw["cameras"][c]) for c in task.cameras},
            state=state, derive_twist=derived, action=self.part("action.", picked, (1, task.action_dim)),
            kind=action["kind"], proprio=proprio, episodes=raw.get("episodes", ""),
            success=self.when("success", raw.get("success", True)),
            critical=self.when("critical", raw.get("critical", False)), tasks=tuple(map(str, raw.get("tasks", []))),
            skip=tuple(skip), check_statistics=raw.get("check_statistics", True), text=text, **pictures, **keys,
        )  # fmt: skip
        try:
            mapping.assembler()
        except ProprioError as error:
            raise self.wrong(f"state: {error}") from None
        return mapping

    def same(self, where: str, given: dict, wanted: list[str], task: Task) -> None:
        missing, extra = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
        if missing or extra:
            what = f"lacks {', '.join(map(repr, missing))}" if missing else f"has {', '.join(map(repr, extra))}"
            raise self.wrong(f"'{where}' {what}; the task '{task.name}' has: {', '.join(wanted)}")

    def camera(self, name: str, raw: Any) -> CameraMap:
        where = f"cameras.{name}."
        if isinstance(raw, str):
            return CameraMap(raw)
        raw = self.take(raw, where, {"from": (str,), "crop": (list,), "freeze_s": (float,), "dark_level": (int,),
                                     "bright_level": (int,)}, ("from",))  # fmt: skip
        crop = raw.get("crop", [])
        if crop and (len(crop) != 4 or not all(isinstance(v, int) and v >= 0 for v in crop) or not crop[2] * crop[3]):
            raise self.wrong(f"'{where}crop' is {crop}, expected [x, y, width, height] in px")
        rest = {key: value for key, value in raw.items() if key not in ("from", "crop")}
        return CameraMap(raw["from"], tuple(crop), **rest)

    def part(self, where: str, raw: Any, sizes: tuple[int, ...]) -> Part:
        if isinstance(raw, str):
            return Part(raw)
        raw = self.take(raw, where, {"from": (str,), "pick": (list,), "unit": (str, float, list)}, ("from",))
        units = raw.get("unit", 1.0)
        factors = []
        for unit in units if isinstance(units, list) else [units]:
            number = isinstance(unit, (int, float)) and not isinstance(unit, bool)
            if not number and unit not in UNITS:
                raise self.wrong(
                    f"'{where}unit' has {unit!r}, expected a number (what one is in SI) or one of: {', '.join(UNITS)}"
                )
            factors.append(float(unit) if number else UNITS[unit])
        for what, count in (("unit", len(factors)), ("pick", len(raw.get("pick", [])))):
            if count and count not in sizes and (what, count) != ("unit", 1):
                raise self.wrong(f"'{where}{what}' has {count} entries, expected {' or '.join(map(str, sizes[1:]))}")
        return Part(raw["from"], tuple(raw.get("pick", ())), tuple(factors))

    def when(self, where: str, raw: Any) -> When:
        if isinstance(raw, bool):
            return When(constant=raw)
        kinds = {"from": (str,), "above": (float,)} | ({"before_end": (float,)} if where == "critical" else {})
        raw = self.take(raw, f"{where}.", kinds)
        if ("from" in raw) == ("before_end" in raw):
            raise self.wrong(
                f"'{where}' is {raw}, expected true, false, {{from: FEATURE, above: NUMBER}}"
                + (" or {before_end: SECONDS}" if where == "critical" else "")
            )
        return When(source=raw.get("from", ""), above=raw.get("above", 0.5), before_end_s=raw.get("before_end"))


__all__ = ["KINDS", "UNITS", "CameraMap", "DemoError", "Mapping", "Part", "TaskError", "When", "load_mapping",
           "own_mapping"]
