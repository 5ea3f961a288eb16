"""Parameters as a dataclass, without ROS."""

from dataclasses import dataclass

import pytest

from rlt_ros.ros.parameters import ParameterError, SharedParameters, build, parameter


@dataclass(frozen=True, kw_only=True)
class Box:
    lower: list[float] = parameter(description="lower corner", unit="m")
    force: float = parameter(30.0, "force limit", unit="N", low=0.0)


@dataclass(frozen=True, kw_only=True)
class Parameters(SharedParameters):
    box: Box = parameter(group=Box)
    names: list[str] = parameter([], "names", choices=("a", "b"))
    cameras: dict = parameter({}, "one entry a camera")


def built(**changes: object) -> Parameters:
    values = {"box.lower": [0.0, 0.0, 0.1]} | {name.replace("__", "."): value for name, value in changes.items()}
    return build(Parameters, values, "n")


def test_defaults_groups_and_trees() -> None:
    params = built(cameras__wrist__topic="w", cameras__wrist__size=[96, 96], rate_hz=100)
    assert params.box == Box(lower=[0.0, 0.0, 0.1], force=30.0)
    assert params.cameras == {"wrist": {"topic": "w", "size": [96, 96]}}
    assert params.rate_hz == 100.0 and isinstance(params.rate_hz, float)


@pytest.mark.parametrize("changes, message", [
    ({"box__lower": None}, "'box.lower' is required"),
    ({"box__uper": 1.0}, "unknown parameter 'box.uper'"),
    ({"box__force": -1.0}, "'box.force' is -1.0, expected float unit N, >= 0.0"),
    ({"box__force": float("nan")}, "'box.force' is nan"),
    ({"box__lower": 1.0}, "'box.lower' is 1.0, expected"),
    ({"names": ["c"]}, "one of"),
    ({"rate_hz": "fast"}, "'rate_hz' is 'fast', expected float"),
    ({"chunk_steps": True}, "'chunk_steps' is True, expected int"),
])
def test_wrong_parameter_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message.replace("[", r"\[")):
        built(**changes)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ParameterError, match="(?s)^n: .*colour.*rate_hz"):
        built(colour=1, rate_hz=0.0)


def test_default_list_is_not_shared() -> None:
    assert built().names is not built().names
