"""Record demonstrations: ros2 launch rlt_ros record_demos.launch.py robot:=my_robot.yaml session:=~/sessions/demos

A person drives from start to success with this package's teleop, through the safety gate; nothing else moves the robot.
The panel or the gamepad starts the episodes, keeps them (success) and discards them (failure, abort). `rlt demos import
--from mcap SESSION` makes demonstrations of what was kept.

With teleop:=false a node of your own lets the person drive and commands the robot itself: none of ours commands
anything then, and the gate does not protect it. robot:=sim has a simulated person. Generated from the table in
rlt_ros/ros/processes.py.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument

from rlt_ros.ros.launching import description


def generate_launch_description() -> LaunchDescription:
    """The processes of the table that recording needs."""
    return description(
        DeclareLaunchArgument("session", description="session folder; what was recorded in it before stays"),
        DeclareLaunchArgument("teleop", default_value="true", choices=["true", "false"],
                              description="false: your own node lets the person drive, and commands the robot"),
        mode="demos",
    )  # fmt: skip
