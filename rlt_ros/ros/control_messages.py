"""control_msgs, which robots have and the PyPI wheels have not: the only place that imports it."""

from rlt_ros.ros.parameters import ParameterError


def controller_state_type(wanted_by: str) -> type:
    """JointTrajectoryControllerState; ParameterError where control_msgs is not installed."""
    try:
        from control_msgs.msg import JointTrajectoryControllerState
    except ImportError:
        raise ParameterError(
            f"{wanted_by} needs the messages of control_msgs, which are not installed (apt install "
            "ros-$ROS_DISTRO-control-msgs); without it the leash alone bounds how far targets run ahead"
        ) from None
    return JointTrajectoryControllerState
