"""What the launch files have in common: the table of processes as a launch description."""

import difflib
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.utilities import perform_substitutions
from launch_ros.actions import Node

from rlt_ros.core.gamepad import load_layout
from rlt_ros.ros import processes


def description(*more: DeclareLaunchArgument, mode: str = "practice") -> LaunchDescription:
    """All processes of the table that fit the arguments; `more` are those in which the launch files differ.

    mode: one of processes.MODES; with an argument `teleop` that is false, "demos" becomes "watch".
    """
    arguments = [
        DeclareLaunchArgument("robot", description="robot file: a path, a name from config/robots, or 'sim'"),
        *more,
        DeclareLaunchArgument("task", default_value="", description="task file; empty: as in the parameter files"),
        DeclareLaunchArgument("use_sim_time", default_value="", choices=["", "true", "false"],
                              description="nodes follow /clock, and robot:=sim sets it and waits for them"),
        DeclareLaunchArgument("realtime", default_value="false", choices=["true", "false"],
                              description="SCHED_FIFO for the nodes of the control loop; needs rights, see rlt doctor"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of all nodes"),
        DeclareLaunchArgument("person", default_value="", choices=["", "human", "simulated"],
                              description="who operates; empty: 'simulated' for robot:=sim, else 'human'"),
        DeclareLaunchArgument("gamepad", default_value="", description="gamepad file: a path, or a name from config/"
                              "gamepads (xbox, playstation, spacemouse, keyboard); empty: as in the parameter files"),
    ]  # fmt: skip
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes, args=[mode, arguments])])


def _nodes(context: LaunchContext, mode: str, arguments: list[DeclareLaunchArgument]) -> list[LaunchDescriptionEntity]:
    given = context.launch_configurations
    # Launch itself passes over what nobody declared: a practice with `sesion:=` would store nothing. A launch file that
    # includes this one may have arguments of its own, so only a likely slip for one that was not given is refused.
    left = [a.name for a in arguments if a.default_value and
            perform_substitutions(context, a.default_value) == given[a.name]]  # fmt: skip
    for name in sorted(set(given) - {a.name for a in arguments}):
        for meant in difflib.get_close_matches(name, left, 1, 0.8):
            raise ValueError(f"launch argument '{name}' is unknown; did you mean {meant}:=? --show-args lists all")
    if mode == "demos" and given.get("teleop") == "false":
        mode = "watch"
    robot, person, namespace = given["robot"], given["person"], given["namespace"]
    if not person:
        person = "simulated" if robot == "sim" else "human"
    session = str(Path(given["session"]).expanduser().resolve()) if given["session"] else ""
    share = Path(get_package_share_directory(processes.PACKAGE))
    files = processes.parameter_files(share, robot, mode)
    if mode == "deploy":
        files += (processes.session_files(session) if robot == "sim" else []) + processes.deploy_files(share)
    shared = processes.shared_parameters(session, given["task"])
    if given["use_sim_time"]:
        shared["use_sim_time"] = given["use_sim_time"] == "true"
    gamepad = processes.gamepad_file(share, given["gamepad"] or processes.gamepad_in(files)).resolve()
    record, driver = given.get("record") == "true", load_layout(gamepad).driver
    own = lambda p: processes.own_parameters(p, shared, given["realtime"] == "true", str(gamepad), files)  # noqa: E731
    return [_node(p, files, own(p), namespace) for p in processes.select(robot, person, driver, record, mode)]


def _node(process: processes.Process, files: list[Path], own: dict, namespace: str) -> Node:
    return Node(package=process.package, executable=process.name, name=process.name, namespace=namespace,
                parameters=[str(file) for file in files] + ([own] if own else []),
                remappings=list(process.remappings), additional_env=process.environment(),
                # A learner that saves on a busy machine needs longer than launch's 5 s.
                sigterm_timeout="15", sigkill_timeout="15",
                output="screen", emulate_tty=True)
