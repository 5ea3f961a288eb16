"""Parameters of a node, declared once as a dataclass: name, type, unit, range, default, description.

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        gain: float = parameter(1.0, "how hard it pulls", unit="N/m", low=0.0)
        camera: str = parameter(description="name of the camera")           # no default: required
        limits: LimitParameters = parameter(group=LimitParameters)          # limits.force, limits.speed ...
        cameras: dict = parameter(description="one entry a camera")         # any names below cameras.

A missing, unknown, mistyped or out-of-range parameter is a ParameterError that names it, raised at configure. This
module is ROS-free; node.py declares the specs to rclpy.
"""

import dataclasses
from dataclasses import MISSING, dataclass
from typing import Any, get_args, get_origin

# Set by rclpy or by people for rclpy, in any node.
_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides.")


class ParameterError(ValueError):
    """Parameters of a node are wrong. The text says which, and what was expected."""


@dataclass(frozen=True)
class Spec:
    """One parameter: its full dotted name, Python type, default (MISSING when required) and documentation."""

    name: str
    type: Any
    default: Any
    description: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple
    live: bool

    @property
    def constraints(self) -> str:
        """Range, unit and choices in words."""
        parts = [f"unit {self.unit}"] if self.unit else []
        parts += [f">= {self.low}"] if self.low is not None else []
        parts += [f"<= {self.high}"] if self.high is not None else []
        parts += [f"one of {list(self.choices)}"] if self.choices else []
        return ", ".join(parts)


def parameter(default: Any = MISSING, description: str = "", *, unit: str = "", low: float | None = None,
              high: float | None = None, choices: tuple = (), live: bool = False, group: type | None = None) -> Any:
    """Declare one parameter as a dataclass field.

    Without a `default` it is required. `low`, `high` and `choices` hold for each element of a list. `live` ones may be
    set while the node runs. `group` nests another dataclass of parameters.
    """
    if group is not None:
        return dataclasses.field(metadata={"group": group})
    metadata = {"description": description, "unit": unit, "low": low, "high": high, "choices": choices, "live": live}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ArmParameters:
    """The robot's arm, for what needs its joints or its URDF."""

    urdf: str = parameter("", "URDF with xacro expanded: a path, the text itself, or, for the safety gate alone,"
                          " robot_description: the topic; empty: none")
    base: str = parameter("base_link", "link in which poses and motions are given")
    tip: str = parameter("tool0", "link that the actions move")
    joints: list[str] = parameter([], "joints between the two, in the order of the controller")


@dataclass(frozen=True, kw_only=True)
class SharedParameters:
    """What every node has, so that it can stand under `/**` in a file for all nodes."""

    autostart: bool = parameter(True, "configure and activate without being told")
    rate_hz: float = parameter(50.0, "control rate: tick = floor(ROS time * rate_hz)", unit="Hz", low=1.0, high=1000.0)
    chunk_steps: int = parameter(10, "C, length of the actor's chunk", unit="ticks", low=1)
    latency_ticks: int = parameter(5, "L, from a camera frame to the earliest use of its token", unit="ticks", low=0)
    max_age_ticks: int = parameter(25, "a token or reference older than this is not used", unit="ticks", low=1)
    task: str = parameter("ethernet", "name or path of the task file")
    session: str = parameter("", "folder of the practice session; empty: nothing is stored")
    weights_key_file: str = parameter("", "file with the key that signs weights; empty: not signed")
    realtime_priority: int = parameter(0, "SCHED_FIFO priority of all threads, needs rights; 0: off", low=0, high=99)
    lock_memory: bool = parameter(False, "keep all memory from being paged out (mlockall), needs rights")
    cpus: list[int] = parameter([], "processors that may run this node; empty: any", low=0)
    arm: ArmParameters = parameter(group=ArmParameters)


def specs(cls: type, prefix: str = "") -> dict[str, Spec]:
    """Return the parameters of a dataclass by full name, in order."""
    found: dict[str, Spec] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if "group" in field.metadata:
            found |= specs(field.metadata["group"], name + ".")
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        found[name] = Spec(name=name, type=field.type, default=default, **field.metadata)
    return found


def build(cls: type, values: dict[str, Any], owner: str) -> Any:
    """Make a `cls` from flat `values` (dotted names); None stands for "not given".

    Raises ParameterError that lists every problem, with `owner` in front.
    """
    table, problems, checked = specs(cls), [], {}
    trees = tuple(name + "." for name, spec in table.items() if spec.type is dict)
    known = lambda name: name in table or name.startswith((*_FOREIGN, *trees))  # noqa: E731
    if unknown := [f"'{name}'" for name in sorted(values) if not known(name)]:
        many = "s" if len(unknown) > 1 else ""
        problems.append(f"unknown parameter{many} {', '.join(unknown)}; this node has {', '.join(table)}")
    for name, spec in table.items():
        value = _subtree(values, name + ".") if spec.type is dict else values.get(name)
        try:
            checked[name] = check(spec, value)
        except ParameterError as error:
            problems.append(str(error))
    if problems:
        raise ParameterError(f"{owner}: " + "; ".join(problems))
    return _assemble(cls, checked, "")


def check(spec: Spec, value: Any) -> Any:
    """Return `value` as the type of `spec`, or its default for None; raise ParameterError when it does not fit."""
    if value is None or value == {}:
        if spec.default is MISSING:
            raise ParameterError(f"parameter '{spec.name}' is required and not set"
                                 f" ({spec.description}{', ' if spec.constraints else ''}{spec.constraints})")
        return spec.default
    if spec.type is dict:
        return value
    element = get_args(spec.type)[0] if get_origin(spec.type) is list else spec.type
    many = get_origin(spec.type) is list
    items = list(value) if many and not isinstance(value, (str, bytes, int, float)) else [value]
    if many != (not isinstance(value, (str, int, float))):
        raise _wrong(spec, value)
    if element is float:  # `50` in a file means 50.0
        items = [float(item) if type(item) is int else item for item in items]
    for item in items:
        if type(item) is not element:
            raise _wrong(spec, value)
        if spec.choices and item not in spec.choices:
            raise _wrong(spec, value)
        if spec.low is not None and not item >= spec.low or spec.high is not None and not item <= spec.high:
            raise _wrong(spec, value)
    return items if many else items[0]


def _wrong(spec: Spec, value: Any) -> ParameterError:
    kind = spec.type.__name__ if isinstance(spec.type, type) and not get_args(spec.type) else str(spec.type)
    bounds = f" {spec.constraints}" if spec.constraints else ""
    return ParameterError(f"parameter '{spec.name}' is {value!r}, expected {kind}{bounds}")


def _subtree(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Turn {'a.b.c': 1} below prefix 'a.' into {'b': {'c': 1}}."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith(prefix) and value is not None:
            *branches, leaf = name.removeprefix(prefix).split(".")
            node = tree
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = list(value) if hasattr(value, "typecode") else value
    return tree


def _assemble(cls: type, checked: dict[str, Any], prefix: str) -> Any:
    arguments = {}
    for field in dataclasses.fields(cls):
        group = field.metadata.get("group")
        name = prefix + field.name
        arguments[field.name] = _assemble(group, checked, name + ".") if group else checked[name]
    return cls(**arguments)
