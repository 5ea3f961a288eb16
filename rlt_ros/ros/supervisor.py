"""Start the table's processes without `launch`, watch them, and stop them all.

    with Supervisor(commands, log_dir) as supervisor:
        while not supervisor.dead():
            ...

Processes with torch are copies of one that has it loaded (zygote.py), others are executed.
Each process has its own group (a Ctrl-C reaches the supervisor only, which then stops them in order) and its own log.
There is no restart policy: a node that died is reported, the others hold the robot still.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlt_ros.core.gamepad import load_layout
from rlt_ros.ros import priority, processes
from rlt_ros.ros.zygote import Copy, Zygote


@dataclass(frozen=True)
class Command:
    """What to start: a name for the log, the command line, and variables on top of the environment.

    modules: None for any executable; for a Python script, which a zygote then starts, what that has to have loaded.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[str] | None = None


@dataclass(frozen=True)
class Death:
    """A process that ended by itself: its exit code (negative: the signal) and the last line of its log."""

    name: str
    code: int
    last_line: str

    def __str__(self) -> str:
        cause = f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{self.name} ended with {cause}" + (f": {self.last_line}" if self.last_line else "")


def commands(robot: str, person: str, session: str, task: str, namespace: str = "",
             extra_files: Sequence[Path] = (), realtime: bool = False, record: bool = False,
             mode: str = "practice", gamepad: str = "") -> list[Command]:
    """Return the commands for the whole graph, from the process table and the installed package.

    `extra_files` are parameter files over all others; `realtime` gives the control loop real-time priorities; `record`
    adds the recorder; `mode` is one of processes.MODES; an empty `gamepad` is left to the files. Raises
    FileNotFoundError for an executable that is not installed, with what to do.
    """
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory

    share = Path(get_package_share_directory(processes.PACKAGE))
    files = processes.parameter_files(share, robot, mode) + list(extra_files)
    files += processes.deploy_files(share) if mode == "deploy" else []
    shared = processes.shared_parameters(session, task)
    driver = "joy"
    if gamepad:
        path = processes.gamepad_file(share, gamepad).resolve()
        gamepad, driver = str(path), load_layout(path).driver
    found = []
    for process in processes.select(robot, person, driver, record, mode):
        try:
            executable = Path(get_package_prefix(process.package)) / "lib" / process.package / process.name
        except PackageNotFoundError:
            raise FileNotFoundError(f"{process.name} needs the ROS package '{process.package}', which is not installed:"
                                    f" apt install ros-$ROS_DISTRO-{process.package}") from None
        if not executable.is_file():
            raise FileNotFoundError(f"no executable {executable}; build the package: make build")
        argv = [str(executable), *processes.arguments(process, files, shared, namespace, realtime, gamepad)]
        found.append(Command(process.name, argv, process.environment(), process.modules))
    return found


class Supervisor:
    """Processes that live and die together."""

    # Each stage of stopping: signal, and how long to wait for all processes together.
    STAGES = ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))

    # Between processes that are started while the zygote loads for others, which is what takes longest: on two cores
    # they have one for themselves, and loading takes each about a second.
    PACE_S = 0.6

    def __init__(self, start: Sequence[Command], log_dir: Path) -> None:
        """Processes are started in the order given. Logs go to log_dir/<name>.log, appended, so that a resumed session
        keeps its history."""
        self._commands = tuple(start)
        self._log_dir = Path(log_dir)
        self._running: dict[str, subprocess.Popen | Copy] = {}
        self._zygote: Zygote | None = None

    def __enter__(self) -> "Supervisor":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prepare(self) -> None:
        """Begin to load what the processes need, and return at once; start() then takes less long."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if self._zygote is not None and not self._zygote.alive:
            self._zygote.close()
            self._zygote = None
        modules = {
            module: None for command in self._commands for module in command.modules or ()
        }  # in order, once each
        if self._zygote is None and any(command.modules is not None for command in self._commands):
            self._zygote = Zygote(list(modules), self.log("zygote"))

    def start(self) -> None:
        """Start what does not run; OSError when a command cannot be started."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        priority.leave_realtime()  # who starts is not in a hurry, and whom it starts inherits
        for i, command in enumerate(self._commands):
            if command.name not in self._running:
                self._running[command.name] = self._spawn(command)
                if command.modules is None and any(later.modules for later in self._commands[i:]):
                    time.sleep(self.PACE_S)

    def restart(self, name: str) -> None:
        """Start the process called `name` again after its death; RuntimeError when it is alive."""
        process = self._running.get(name)
        if process is not None and process.poll() is None:
            raise RuntimeError(f"{name} is alive (pid {process.pid}); only a dead process can be restarted")
        self._running[name] = self._spawn(next(c for c in self._commands if c.name == name))

    @property
    def pids(self) -> dict[str, int]:
        """Name -> process id of what was started."""
        return {name: process.pid for name, process in self._running.items()}

    @property
    def zygote_pid(self) -> int | None:
        """Process id of what loads the nodes' libraries, or None when there is none."""
        return self._zygote.pid if self._zygote is not None else None

    def log(self, name: str) -> Path:
        """The log file of `name`."""
        return self._log_dir / f"{name}.log"

    def dead(self) -> list[Death]:
        """Processes that have ended by themselves."""
        return [Death(name, process.returncode, self._last_line(name))
                for name, process in self._running.items() if process.poll() is not None]

    def stop(self) -> list[Death]:
        """Stop all: SIGINT, then SIGTERM, then SIGKILL, bounded. Return those that did not end cleanly."""
        for number, patience_s in self.STAGES:
            alive = [process for process in self._running.values() if process.poll() is None]
            for process in alive:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + patience_s
            for process in alive:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
        # Clean too: SIGALRM, see run.py; SIGINT, of a process that had not come as far as to handle it.
        unclean = [death for death in self.dead() if death.code not in (0, -signal.SIGALRM, -signal.SIGINT)]
        self._running.clear()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None
        return unclean

    def _spawn(self, command: Command) -> subprocess.Popen | Copy:
        environment = os.environ | dict(command.environment) | {"RLT_PARENT": str(os.getpid())}
        if command.modules is not None:
            return self._copy(command, environment)
        # A process group of its own, not a session: with the kernel's autogroups, niceness counts only within a
        # session, and a learner at nice 15 in its own would take as much as the actor.
        with open(self.log(command.name), "ab") as log:
            return subprocess.Popen(command.argv, env=environment, stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=subprocess.STDOUT, process_group=0)

    def _copy(self, command: Command, environment: Mapping[str, str]) -> Copy:
        self.prepare()
        return self._zygote.start(command.name, command.argv, environment, self.log(command.name), command.modules)

    def _last_line(self, name: str) -> str:
        try:
            lines = self.log(name).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
