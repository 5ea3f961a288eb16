"""The launch files' arguments; only where ROS's launch is installed."""

import pytest

pytest.importorskip("launch_ros", reason="no launch here", exc_type=ImportError)

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from rlt_ros.ros.launching import description

SESSION = DeclareLaunchArgument("session", default_value="")


def started(**given: str) -> list:
    """What is started with these arguments."""
    context, found = LaunchContext(), []
    context.launch_configurations.update(given)
    for action in description(SESSION).entities:
        found += action.execute(context) or [] if isinstance(action, DeclareLaunchArgument | OpaqueFunction) else []
    return found


@pytest.mark.parametrize(("slip", "meant"), [("sesion", "session"), ("realtme", "realtime"), ("name_space", "namespace")])
def test_an_argument_that_is_likely_misspelt_is_refused(slip, meant) -> None:
    with pytest.raises(ValueError, match=f"'{slip}' is unknown; did you mean {meant}:="):
        started(robot="sim", **{slip: "true"})


def test_arguments_of_a_launch_file_that_includes_this_one_pass() -> None:
    own = {"robot_ip": "10.0.0.2", "robot_1": "x", "sessions": "/data", "bogus": "1"}
    assert len(started(robot="sim", session="/data/one", **own)) > 5
