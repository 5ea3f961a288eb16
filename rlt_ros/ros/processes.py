"""The one table of processes: the launch files, `rlt practice`, `deploy` and `demos record` are generated from it.

Imports no ROS, so that the launch file and the command line can both use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

PACKAGE = "rlt_ros"
# What a graph is for: to practise, to run what was practised, to record a person's demonstrations, and to watch those
# of a person who drives by somebody else's node, which commands the robot itself: none of ours does.
MODES = ("practice", "deploy", "demos", "watch")
_AUTONOMOUS, _DRIVEN = MODES[:2], MODES[:3]  # by a policy, by anybody of ours


@dataclass(frozen=True)
class Process:
    """One process of the graph.

    name: node name, executable, and its section `/**/<name>` of the parameter files.
    where: "" always, "sim" with the simulator only, "real" with a robot only.
    person: "" always, "simulated" when the program plays the operator, "human" when somebody with a gamepad does.
    record: only where the session is to be recorded for Foxglove.
    driver: "" always, else only for gamepads whose file names this driver.
    steers: has the parameter `gamepad`.
    modes: those of MODES that need it.
    embeds: is given the parameter files of all nodes, to keep them with what it records.
    work: kind of work, of rlt_ros/ros/priority.py; what moves the robot runs before what computes.
    realtime: SCHED_FIFO priority when real-time priorities are asked for; 0: none. What a tick of the robot waits for
        has one, in the order in which a tick passes through it backwards (docs/decisions/0027-real-time-priority.md).
    modules: libraries that are slow to load and start no threads: a supervisor loads them once for all that need some.
        rclpy is not among them (docs/decisions/0017-zygote.md). None: each loads its own.
    threads: cap on OpenMP (torch) threads; two processes that use all cores slow each other by 10-40 times.
    shared_memory: Fast DDS may use it, for big messages of others. What ours send stays out of it, because a reader
        that is killed can spoil it for good (docs/decisions/0026-no-shared-memory.md).
    """

    name: str
    where: str = ""
    person: str = ""
    record: bool = False
    driver: str = ""
    steers: bool = False
    work: str = "ordinary"
    realtime: int = 0
    modules: tuple[str, ...] | None = None
    threads: int = 1
    shared_memory: bool = False
    package: str = PACKAGE
    remappings: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, object], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    modes: tuple[str, ...] = MODES
    embeds: bool = False

    def environment(self) -> dict[str, str]:
        """Variables that run.py, torch and Fast DDS read."""
        return {
            "RLT_WORK": self.work,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT" if self.shared_memory else "UDPv4",
        } | dict(self.variables)


# In the order in which a supervisor starts them: what is ready soon loads beside the libraries of the others, and the
# simulator comes last, as it takes half a core from then on.
TABLE = (
    # Autorepeat makes loss of the gamepad detectable; sticky buttons would hold the dead-man after release.
    # SDL's own drivers number some pads otherwise than the kernel, after which the files in config/gamepads go.
    Process("joy_node", package="joy", person="human", driver="joy", variables=(("SDL_JOYSTICK_HIDAPI", "0"),),
            parameters=(("autorepeat_rate", 20.0), ("sticky_buttons", False)), modes=_DRIVEN),
    Process("spacenav_node", package="spacenav", person="human", driver="spacenav",
            remappings=(("spacenav/joy", "joy"),), modes=_DRIVEN),
    Process("operator_node", where="sim", person="simulated", steers=True, modes=_DRIVEN),
    # The simulator's pictures have no noise: where nothing moves they stay the same, and are not frozen.
    Process("camera_node", where="sim", parameters=(("freeze_s", 0.0),)),
    Process("camera_node", where="real", shared_memory=True),  # drivers send megabytes
    Process("proprio_node", work="control", realtime=45),
    Process("teleop_node", work="control", realtime=45, steers=True, modes=_DRIVEN),
    Process("safety_node", work="control", realtime=50, modes=_DRIVEN),
    Process("episode_node"),
    Process("replay_node", modes=("practice",)),
    Process("recorder_node", record=True, work="background", modes=("practice",), embeds=True),
    Process("recorder_node", modes=("demos", "watch"), embeds=True),  # what it misses is lost for good
    Process("handover_node", modes=_AUTONOMOUS),
    Process("human_node", work="control", realtime=50, modes=("demos",)),
    Process("vla_node", work="control", modules=("torch", "rlt_ros.vla.pi0"), modes=_AUTONOMOUS),
    Process("actor_node", work="control", realtime=50, modules=("torch",), modes=_AUTONOMOUS),
    Process("learner_node", work="background", modules=("torch", "torch.fx.experimental.proxy_tensor"),
            modes=("practice",)),
    Process("sim_node", where="sim", work="control", realtime=40),
)


def select(
    robot: str, person: str, driver: str = "joy", record: bool = False, mode: str = "practice"
) -> tuple[Process, ...]:
    """Return the processes for `robot` ("sim" or the path of a robot file), `person` ("simulated" or "human") and the
    `driver` that the gamepad file names.

    record: with the recorder, which records for people.  mode: one of MODES.
    Raises ValueError when they do not go together.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if person not in ("simulated", "human"):
        raise ValueError(f"person is {person!r}, expected 'simulated' or 'human'")
    where = "sim" if robot == "sim" else "real"
    if where == "real" and person == "simulated":
        raise ValueError(f"robot is {robot!r} and person is 'simulated'; a real robot is watched by a human")
    return tuple(
        p for p in TABLE
        if p.where in ("", where) and p.person in ("", person) and p.driver in ("", driver)
        and (record or not p.record) and mode in p.modes
    )  # fmt: skip


def parameter_files(share: Path, robot: str, mode: str = "practice") -> list[Path]:
    """Return the parameter files for `robot`, later ones over earlier ones; FileNotFoundError names a missing one.

    `share` holds config/. A robot is "sim", a path, or the name of a file in config/robots/.
    """
    files = [share / "config" / "practice.yaml"]
    if mode in ("demos", "watch"):
        files.append(share / "config" / "record_demos.yaml")
    if robot != "sim":
        path = Path(robot)
        named = share / "config" / "robots" / f"{robot}.yaml"
        files.append(named if not path.is_file() and named.is_file() else path)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no parameter file {file}; give robot:=sim, a path, or a name from config/robots")
    return files


def gamepad_file(share: Path, name: str) -> Path:
    """The file of a gamepad: a path, or a name from config/gamepads; FileNotFoundError says what there is."""
    path = Path(name).expanduser()
    named = share / "config" / "gamepads" / f"{name}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        path = named
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in named.parent.glob("*.yaml")))
        raise FileNotFoundError(f"gamepad '{name}': no file {path}; there are {there}; or give a path of a .yaml file")
    return path


def gamepad_in(files: list[Path]) -> str:
    """The gamepad that the teleop node has by these parameter files, of which the last one counts; "" for none."""
    found = ""
    for file in files:
        sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        given = (sections.get("/**/teleop_node") or {}).get("ros__parameters") or {}
        found = given.get("gamepad", found)
    return found


def deploy_files(share: Path) -> list[Path]:
    """What differs where a practised session runs; to be read last, since parameters of files stand over given ones."""
    return [share / "config" / "deploy.yaml"]


def session_files(session: str) -> list[Path]:
    """The parameters that a session was practised with, as `rlt practice` writes them; none for other sessions."""
    path = Path(session) / "config.yaml"
    return [path] if session and path.is_file() else []


def realtime_of(name: str) -> int:
    """SCHED_FIFO priority that the process called `name` has where real-time priorities are asked for."""
    return next(process.realtime for process in TABLE if process.name == name)


def shared_parameters(session: str, task: str) -> dict[str, str]:
    """Parameters that every node has and that the command line decides; empty ones are left to the files."""
    return {name: value for name, value in (("session", session), ("task", task)) if value}


def own_parameters(process: Process, shared: Mapping[str, object], realtime: bool = False,
                   gamepad: str = "", files: Sequence[Path] = ()) -> dict[str, object]:
    """Return the parameters of `process` that stand over those of the `files`; an empty `gamepad` is left to them."""
    own = dict(process.parameters)
    if process.package == PACKAGE:
        own |= shared
        if realtime and process.realtime:
            own["realtime_priority"] = process.realtime
    if process.steers and gamepad:
        own["gamepad"] = gamepad
    if process.embeds and files:
        own["embed"] = [str(file) for file in files]
    return own


def arguments(process: Process, files: list[Path], shared: Mapping[str, object], namespace: str = "",
              realtime: bool = False, gamepad: str = "") -> list[str]:
    """Return the ROS arguments that start `process` without launch."""
    result = ["--ros-args", "-r", f"__node:={process.name}"]
    if namespace:
        result += ["-r", f"__ns:=/{namespace.strip('/')}"]
    for source, target in process.remappings:
        result += ["-r", f"{source}:={target}"]
    for file in files:
        result += ["--params-file", str(file)]
    for name, value in own_parameters(process, shared, realtime, gamepad, files).items():
        result += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
    return result
