"""The process table."""

from pathlib import Path

import pytest
import yaml

from rlt_ros.core.gamepad import DRIVERS
from rlt_ros.ros import processes
from rlt_ros.ros.priority import KINDS
from rlt_ros.sim.task import PRACTICE_SEED

ROOT = Path(processes.__file__).parents[2]
NODES = ROOT / "rlt_ros" / "nodes"


def names(robot: str, person: str, driver: str = "joy") -> set[str]:
    return {process.name for process in processes.select(robot, person, driver)}


def test_every_process_of_ours_has_a_node_file_and_every_node_file_a_process() -> None:
    ours = {process.name for process in processes.TABLE if process.package == processes.PACKAGE}
    assert ours == {path.stem for path in NODES.glob("*_node.py")}


def test_simulator_brings_robot_and_person_a_robot_brings_the_gamepad() -> None:
    assert names("sim", "simulated") - names("my_robot.yaml", "human") == {"sim_node", "operator_node"}
    assert names("my_robot.yaml", "human") - names("sim", "simulated") == {"joy_node"}
    assert {"sim_node", "joy_node"} <= names("sim", "human")


def test_the_recorder_runs_only_when_asked_for() -> None:
    for robot, person in (("sim", "simulated"), ("my_robot.yaml", "human")):
        recorded = {process.name for process in processes.select(robot, person, record=True)}
        assert recorded - names(robot, person) == {"recorder_node"}


def test_gamepads_driver_is_started_and_no_other() -> None:
    drivers = {driver: names("sim", "human", driver) & {"joy_node", "spacenav_node"} for driver in DRIVERS}
    assert drivers == {"joy": {"joy_node"}, "spacenav": {"spacenav_node"}, "none": set()}
    table = {process.name: process for process in processes.TABLE}
    assert "spacenav/joy:=joy" in processes.arguments(table["spacenav_node"], [], {})
    assert table["joy_node"].environment()["SDL_JOYSTICK_HIDAPI"] == "0"


def test_gamepad_is_told_to_who_reads_it_only() -> None:
    told = {p.name for p in processes.TABLE if processes.own_parameters(p, {}, gamepad="xbox").get("gamepad")}
    assert told == {"teleop_node", "operator_node"}
    assert not any("gamepad" in processes.own_parameters(p, {}) for p in processes.TABLE)


def test_gamepad_is_a_name_or_a_path(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.touch()
    assert processes.gamepad_file(ROOT, "xbox") == ROOT / "config" / "gamepads" / "xbox.yaml"
    assert processes.gamepad_file(ROOT, str(own)) == own
    with pytest.raises(FileNotFoundError, match="gamepad 'nes': no file .*; there are keyboard, playstation, space"):
        processes.gamepad_file(ROOT, "nes")


def test_gamepad_of_the_parameter_files_is_that_of_the_last_one_that_names_one(tmp_path: Path) -> None:
    files = processes.parameter_files(ROOT, "ur5e")
    assert processes.gamepad_in(files) == "xbox"
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**/teleop_node: {ros__parameters: {gamepad: spacemouse}}")
    assert processes.gamepad_in([files[0], mine, files[1]]) == "spacemouse"
    mine.write_text("")
    assert processes.gamepad_in([mine]) == ""


def test_simulated_person_is_refused_beside_a_real_robot() -> None:
    with pytest.raises(ValueError, match="watched by a human"):
        processes.select("my_robot.yaml", "simulated")


def test_a_practised_session_runs_without_learner_replay_and_the_persons_hand_over() -> None:
    for robot, person in (("sim", "simulated"), ("my_robot.yaml", "human")):
        practised = {process.name for process in processes.select(robot, person)}
        deployed = {process.name for process in processes.select(robot, person, mode="deploy")}
        assert practised - deployed == {"learner_node", "replay_node"} and not deployed - practised
    (file,) = processes.deploy_files(NODES.parents[1])
    own = {name.removeprefix("/**/"): v["ros__parameters"] for name, v in yaml.safe_load(file.read_text()).items()}
    assert own["actor_node"] == {"weights": "session", "exploration_std": 0.0}
    assert own["handover_node"] == {"mode": "automatic", "learn": False}
    person = own["operator_node"]
    assert person["hands_over"] is False and person["intervention_share"] == 0.0
    running = {process.name for process in processes.select("sim", "simulated", mode="deploy")}
    assert set(person["wait_for"]) < running  # who waits for one that is never started waits for ever
    # Whatever is said here is a parameter of practice too.
    practice = yaml.safe_load((file.parent / "practice.yaml").read_text())
    for node, values in own.items():
        assert set(values) <= set(practice[f"/**/{node}"]["ros__parameters"])


def test_demonstrations_need_neither_vla_nor_policy_and_record_everything() -> None:
    recorded = {"camera_node", "proprio_node", "episode_node", "recorder_node"}
    driven = {"joy_node", "teleop_node", "human_node", "safety_node"}
    run = lambda *where, mode: [p.name for p in processes.select(*where, mode=mode)]  # noqa: E731
    assert sorted(run("my_robot.yaml", "human", mode="demos")) == sorted(recorded | driven)
    assert sorted(run("my_robot.yaml", "human", mode="watch")) == sorted(recorded)  # nothing of ours commands
    simulated = recorded | driven - {"joy_node"} | {"sim_node", "operator_node"}
    assert sorted(run("sim", "simulated", mode="demos")) == sorted(simulated)
    (recorder,) = (p for p in processes.select("sim", "simulated", mode="demos") if p.name == "recorder_node")
    assert recorder.work != "background"  # what it misses is lost
    with pytest.raises(ValueError, match="mode is 'dance', expected one of practice, deploy, demos, watch"):
        processes.select("sim", "simulated", mode="dance")


def test_scenes_of_practice_and_of_demonstrations_never_meet() -> None:
    files = [yaml.safe_load(path.read_text()) for path in processes.parameter_files(ROOT, "sim", "demos")]
    assert [file["/**/sim_node"]["ros__parameters"]["seed"] for file in files] == [PRACTICE_SEED, 0]


def test_a_robot_file_stands_over_what_holds_for_demonstrations() -> None:
    names = [file.name for file in processes.parameter_files(ROOT, "ur5e", "demos")]
    assert names == ["practice.yaml", "record_demos.yaml", "ur5e.yaml"]
    own = yaml.safe_load((ROOT / "config" / "record_demos.yaml").read_text())
    practice = yaml.safe_load((ROOT / "config" / "practice.yaml").read_text())
    for node, values in own.items():
        assert set(values["ros__parameters"]) <= set(practice[node]["ros__parameters"])
    recorder = own["/**/recorder_node"]["ros__parameters"]
    assert (recorder["picture_format"], recorder["max_mb"]) == ("png", 0.0)  # nothing is lost, nothing deleted
    running = {process.name for process in processes.select("sim", "simulated", mode="demos")}
    assert set(own["/**/operator_node"]["ros__parameters"]["wait_for"]) < running


def test_the_recorder_is_given_the_parameter_files_and_nobody_else() -> None:
    files = processes.parameter_files(ROOT, "sim", "demos")
    given = {p.name for p in processes.TABLE if "embed" in processes.own_parameters(p, {}, files=files)}
    assert given == {"recorder_node"}
    (recorder,) = (p for p in processes.select("sim", "simulated", mode="demos") if p.name == "recorder_node")
    (argument,) = (a for a in processes.arguments(recorder, files, {}) if a.startswith("embed:="))
    assert yaml.safe_load(argument.removeprefix("embed:=")) == [str(file) for file in files]


def test_a_session_has_the_parameters_it_was_practised_with(tmp_path: Path) -> None:
    assert processes.session_files("") == processes.session_files(str(tmp_path)) == []
    (tmp_path / "config.yaml").touch()
    assert processes.session_files(str(tmp_path)) == [tmp_path / "config.yaml"]


def test_what_computes_yields_to_what_moves() -> None:
    work = {process.name: process.work for process in processes.TABLE}
    moving = ("proprio_node", "vla_node", "actor_node", "human_node", "safety_node", "teleop_node")
    assert {work[name] for name in moving} == {"control"}
    assert work["learner_node"] == "background"
    assert set(work.values()) <= set(KINDS)


def test_only_what_reads_a_drivers_pictures_uses_shared_memory() -> None:
    """A reader that is killed can spoil the memory of whoever sends to it: nobody who sends what moves the robot."""
    transports = {(p.name, p.where): p.environment()["FASTDDS_BUILTIN_TRANSPORTS"] for p in processes.TABLE}
    assert transports.pop(("camera_node", "real")) == "DEFAULT"
    assert set(transports.values()) == {"UDPv4"}


def test_robot_file_is_a_path_or_a_name(tmp_path: Path) -> None:
    robots = tmp_path / "config" / "robots"
    robots.mkdir(parents=True)
    (tmp_path / "config" / "practice.yaml").touch()
    (robots / "arm.yaml").touch()
    own = tmp_path / "own.yaml"
    own.touch()
    assert processes.parameter_files(tmp_path, "sim") == [tmp_path / "config" / "practice.yaml"]
    assert processes.parameter_files(tmp_path, "arm")[1] == robots / "arm.yaml"
    assert processes.parameter_files(tmp_path, str(own))[1] == own
    with pytest.raises(FileNotFoundError, match="no parameter file nowhere.yaml"):
        processes.parameter_files(tmp_path, "nowhere.yaml")


def test_shared_parameters_go_to_our_nodes_only() -> None:
    table = {process.name: process for process in processes.TABLE}
    ours = processes.arguments(table["actor_node"], [], {"task": "ethernet"}, "left")
    assert ours == ["--ros-args", "-r", "__node:=actor_node", "-r", "__ns:=/left", "-p", "task:=ethernet"]
    joy = processes.arguments(table["joy_node"], [], {"task": "ethernet"})
    assert "task:=ethernet" not in joy and "sticky_buttons:=false" in joy


def test_real_time_priorities_go_to_the_loop_only_and_only_when_asked_for() -> None:
    given = {p.name: processes.own_parameters(p, {}, realtime=True).get("realtime_priority") for p in processes.TABLE}
    loop = ("proprio_node", "actor_node", "human_node", "safety_node", "teleop_node", "sim_node")
    assert {name for name, priority in given.items() if priority} == set(loop)
    assert given["safety_node"] == max(given[name] for name in loop)  # nothing runs before who holds the robot
    assert not any("realtime_priority" in processes.own_parameters(p, {}) for p in processes.TABLE)
