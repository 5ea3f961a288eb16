"""Run a practised session: ros2 launch rlt_ros deploy.launch.py robot:=my_robot.yaml session:=~/sessions/today

The VLA approaches, handover_node hands over, the session's newest policy acts, without exploration noise. Nothing is
learned or recorded. Somebody still starts each episode, says how it ended, and holds the emergency stop; robot:=sim has
a simulated person for that. Generated from the table in rlt_ros/ros/processes.py.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument

from rlt_ros.ros.launching import description


def generate_launch_description() -> LaunchDescription:
    """The processes of the table that a practised session needs."""
    return description(
        DeclareLaunchArgument("session", description="session folder with a policy and a hand-over classifier"),
        mode="deploy",
    )
