"""Practise a task in the simulator, with a simulated person: evaluate, practise, evaluate again, report.

examples:
  rlt practice --task ethernet --episodes 90 --minutes 10
  rlt practice --session sessions/first --episodes 20       # goes on with a session that is there
  rlt practice --session sessions/first --no-eval
  rlt practice --record             # also pictures, phases and actions, for Foxglove
  rlt practice --speed 1            # on a slow or busy machine: time waits, so that no command comes late

A session folder holds journal/*.mcap, checkpoints/, metrics/ (TensorBoard), config.yaml, episodes.jsonl, report.html
and log/<node>.log. Ctrl-C ends cleanly and keeps it.
A real robot is started with `ros2 launch rlt_ros practice.launch.py`.
"""

import argparse
import fcntl
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import yaml

from rlt_ros import report
from rlt_ros.cli.domain import free_domain, stay_here
from rlt_ros.cli.progress import Display
from rlt_ros.core.parameters import damaged, read_parameters
from rlt_ros.data.episodes import read_episodes
from rlt_ros.data.files import write_whole

LOG_TAIL = 15  # lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt practice`."""
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument(
        "--session", type=Path, metavar="DIR", help="session folder (default: sessions/<date and time>)"
    )
    parser.add_argument(
        "--episodes", type=int, default=90, metavar="N", help="practise at most so many episodes (default: 90)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="M", help="practise at most so much critical phase (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of scenes, noise and networks (default: 0)")
    parser.add_argument(
        "--model", default="", metavar="DIR", help="VLA checkpoint (default: the one shipped for the task)"
    )
    parser.add_argument(
        "--speed", type=float, metavar="X",
        help="simulated time that waits for every node, at most X times real time; 0: as fast as they all keep up"
        " (default: real time, as on a robot)",
    )  # fmt: skip
    parser.add_argument(
        "--realtime", action=argparse.BooleanOptionalAction,
        help="run the nodes of the control loop with SCHED_FIFO (default: where it is allowed, see `rlt doctor`)",
    )  # fmt: skip
    parser.add_argument(
        "--record", action="store_true", help="record pictures, phases and actions for Foxglove, in recording/"
    )
    parser.add_argument("--no-eval", action="store_true", help="practise only, do not evaluate before and after")
    parser.add_argument(
        "--eval-episodes", type=int, default=20, metavar="N", help="episodes of each evaluation (default: 20)"
    )


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.ros import priority, processes
    from rlt_ros.sim.task import load_task, require_simulation

    if args.episodes < 1 or not 0 < args.minutes < math.inf or args.eval_episodes < 1:
        raise UsageError("--episodes, --minutes and --eval-episodes must be positive")
    if args.speed is not None and not 0 <= args.speed < math.inf:
        raise UsageError(f"--speed is {args.speed:g}, expected 0 or more")
    allowed = priority.realtime_allowed(processes.realtime_of("safety_node"))
    if args.realtime is None:
        args.realtime = allowed
    if args.realtime and not allowed:
        raise UsageError("--realtime: SCHED_FIFO is not allowed here; `rlt doctor` says how to allow it")
    task = load_task(args.task)
    session = (args.session or Path("sessions") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
    if session.exists() and not session.is_dir():
        raise UsageError(f"--session {args.session}: a file, expected a folder, or the name of a new one")
    require_simulation(task)
    config, resumed = session_config(session, args, task), (session / "config.yaml").is_file()
    model = config["/**/vla_node"]["ros__parameters"]["model"]
    # SIGTERM ends like Ctrl-C: the processes below must never be left alone with a robot.
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, interrupt)
    session.mkdir(parents=True, exist_ok=True)
    lock = only_user(session)  # noqa: F841 - held until this returns
    text = "# Parameters of this session, as ROS reads them; config/practice.yaml explains each.\n"
    write_whole(session / "config.yaml", text + yaml.safe_dump(config, sort_keys=False))
    print(f"session {session}" + (f", resumed after {len(read_episodes(session))} episodes" if resumed else ""))
    code = 0
    try:
        if not args.no_eval and "before" not in report.read_evaluations(session):
            evaluate(session, "before", args, "base", model)
        code = practise(session, args)
        if code == 0 and not args.no_eval and (session / "checkpoints" / "learner.ckpt").is_file():
            evaluate(session, "after", args, str(session), model)
    except KeyboardInterrupt:
        print("\ninterrupted; the session is kept, and the same command goes on with it", file=sys.stderr)
        code = 130
    if evaluations := report.read_evaluations(session):
        print_comparison(evaluations)
    print(f"report: {report.write_report(session)}")
    return code


def interrupt(_number: int, _frame: object) -> None:
    """Handle a signal: raise KeyboardInterrupt, and remember it, as within rclpy it gets lost or another."""
    interrupt.came = True
    raise KeyboardInterrupt


interrupt.came = False


def only_user(session: Path):
    """An open file that locks the session; ValueError when another practice has it."""
    lock = (session / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"session {session} is in use by another `rlt practice`; wait for it or take another folder"
        ) from None
    return lock


def session_config(session: Path, args: argparse.Namespace, task) -> dict:
    """The parameters of this session: those it had before, or today's files, with this command's budget and seeds."""
    from rlt_ros.sim.task import PRACTICE_SEED, task_folder
    from rlt_ros.vla.backend import checkpoint_folder

    path = session / "config.yaml"
    source = path if path.is_file() else task_folder().parent / "practice.yaml"
    config = read_parameters(source)
    own = lambda node: config.setdefault(f"/**/{node}", {}).setdefault("ros__parameters", {})  # noqa: E731
    known = config.setdefault("/**", {}).setdefault("ros__parameters", {})
    if "task" not in known:
        raise damaged(source, "section '/**' has no 'task'")
    if source == path and known["task"] != args.task:
        raise ValueError(f"session {session} practises task {known['task']!r}, not {args.task!r}; take another folder")
    known |= {"task": args.task, "rate_hz": task.rate, "session": str(session), "use_sim_time": args.speed is not None}
    if args.speed is not None:
        own("sim_node")["realtime_factor"] = args.speed
    # A resumed session goes on with new scenes.
    own("sim_node")["seed"] = PRACTICE_SEED + 10_000 * args.seed + len(read_episodes(session))
    own("operator_node").update(
        episodes=args.episodes, minutes=args.minutes, seed=args.seed + len(read_episodes(session))
    )
    own("actor_node")["seed"] = args.seed
    own("learner_node").setdefault("td3", {})["seed"] = args.seed
    vla = own("vla_node")
    if args.model or source != path:
        vla["model"] = str(checkpoint_folder(args.model).resolve()) if args.model else task.name
    checkpoint_folder(vla.setdefault("model", task.name))  # complain at once, not from a process
    return config


def evaluate(session: Path, side: str, args: argparse.Namespace, policy: str, model: str) -> None:
    """Evaluate and keep the result with the session as "before" or "after"."""
    from rich.console import Console

    from rlt_ros.sim.evaluate import evaluate as measure
    from rlt_ros.sim.evaluate import session_settings

    console = Console()
    done = 0

    def progress(episode: int, result) -> None:
        nonlocal done
        done += result.success
        if console.is_terminal:
            console.print(f"evaluating {side} practice: {episode}/{args.eval_episodes}, {done} successes", end="\r")

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    result = measure(args.task, policy, args.eval_episodes, args.seed, progress, session_settings(session)[0], model)
    print(f"{side} practice: {result['successes']} of {result['episodes']} episodes succeed" + 20 * " ")
    evaluations = report.read_evaluations(session) | {side: result}
    write_whole(session / report.EVALUATIONS, json.dumps(evaluations, indent=2) + "\n")


def practise(session: Path, args: argparse.Namespace) -> int:
    """Run all processes until the person has had enough; return 0, or 1 when a process died."""

    def keep(picture) -> None:
        write_whole(session / "loops.json", json.dumps(picture.loops(), indent=2) + "\n")

    from rlt_ros.ros.supervisor import commands

    start = commands("sim", "simulated", str(session), args.task, extra_files=[session / "config.yaml"],
                     realtime=args.realtime, record=args.record)
    return run_graph(start, session / "log", args.episodes, args.minutes, keep)


def run_graph(start: list, log: Path, episodes: int, minutes: float, ended: Callable[[object], None],
              display: type[Display] = Display, enough: Callable[[object], bool] | None = None) -> int:
    """Run the commands `start` until the simulated person has had enough; return 0, or 1 when a process died.

    ended: called at the end, however it came, with what was watched (rlt_ros.ros.watch.Picture).  display: shows it.
    enough: says of what is watched whether to end, in the simulated person's place.
    """
    # Before rclpy is imported: nobody else's robot, nobody else's practice.
    os.environ.setdefault("ROS_DOMAIN_ID", str(free_domain()))
    stay_here()
    os.environ.setdefault("MUJOCO_GL", "egl")
    print(f"watch it from another terminal: ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} rlt panel", flush=True)
    from rlt_ros.ros.supervisor import Supervisor

    supervisor = Supervisor(start, log)
    supervisor.prepare()
    import rclpy
    from rclpy.experimental import EventsExecutor
    from rclpy.signals import SignalHandlerOptions

    from rlt_ros.ros.watch import Watch

    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    watch = Watch(rclpy.create_node("practice_monitor"))
    executor = EventsExecutor()
    executor.add_node(watch.node)
    dead = []
    enough = enough or (lambda picture: picture.person_is_done)
    try:
        with display(episodes, minutes) as shown:
            supervisor.start()
            while not dead and not enough(watch.picture):
                executor.spin_once(0.1)
                if interrupt.came:
                    raise KeyboardInterrupt
                shown.show(watch.picture)
                dead = supervisor.dead()
    except Exception as error:
        if not interrupt.came:
            raise
        raise KeyboardInterrupt from error  # what rclpy made of the one that was raised within it
    finally:
        # Whoever presses twice must not leave processes behind.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        unclean = supervisor.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        executor.shutdown()
        rclpy.try_shutdown()
        ended(watch.picture)
    for death in dead:
        print(
            f"{death}; the robot was held. The end of {supervisor.log(death.name)}:\n"
            f"{tail(supervisor.log(death.name))}",
            file=sys.stderr,
        )
    for death in unclean:
        if death.name not in {d.name for d in dead}:
            print(f"warning: {death} when it was stopped", file=sys.stderr)
    return 1 if dead else 0


def tail(path: Path) -> str:
    """The last lines of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:]) or "    (empty)"


def print_comparison(evaluations: dict) -> None:
    """The table of before and after."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "frozen VLA", "after practice", title="critical phase, autonomous")
    for row in report.comparison_rows(evaluations):
        table.add_row(*row)
    Console().print(table)
