"""Practise on a robot: ros2 launch rlt_ros practice.launch.py robot:=my_robot.yaml session:=~/sessions/today

Generated from the table in rlt_ros/ros/processes.py; robot:=sim starts the simulator instead of a robot.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument

from rlt_ros.ros.launching import description


def generate_launch_description() -> LaunchDescription:
    """All processes of the table that fit the arguments."""
    return description(
        DeclareLaunchArgument("session", default_value="", description="session folder; empty: nothing is stored"),
        DeclareLaunchArgument("record", default_value="false", choices=["true", "false"],
                              description="record pictures, phases and actions for Foxglove; needs a session"),
    )  # fmt: skip
