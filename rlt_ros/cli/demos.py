"""Demonstrations: record, import from others' formats, export, look at what is in them, or make them prior data.

examples:
  rlt demos record --task ethernet --episodes 400                  # the scripted demonstrator
  rlt demos record --teleop --session sessions/demos               # a person; on a robot: record_demos.launch.py
  rlt demos import --from mcap sessions/demos                      # what was kept of it, into demos/TASK
  rlt demos import --from lerobot ~/datasets/cups --map cups.yaml --out demos/cups    # see docs/demonstrations.md
  rlt demos import --from mcap ~/bags --map my_robot.yaml --out demos/cups
  rlt demos inspect demos/cups --task cups.yaml                    # exit code 1 when something is wrong with them
  rlt demos export --to lerobot demos/ethernet --out ~/datasets/ethernet
  rlt demos prior --task ethernet --episodes 20 --session sessions/demos   # for the learner's `prior`
  rlt demos prior --task cups.yaml --model models/cups --latency-ticks 8 --session sessions/cups_prior
"""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_ros.cli.arguments import at_least

if TYPE_CHECKING:
    from rich.progress import Progress

SIMULATED = "simulated"
MOST_PROCESSES = 4  # a hundred MB each
_EXAMPLES = {
    "record": """examples:
  rlt demos record --task ethernet --episodes 400            # the scripted demonstrator, into demos/ethernet
  rlt demos record --teleop --session sessions/demos         # a person, until Ctrl-C; `rlt teleop` steers
  rlt demos record --teleop xbox --episodes 20               # until 20 were kept
  rlt demos record --teleop simulated --episodes 2           # a simulated person with a gamepad
With --teleop everything is recorded in the session. Start, Success (kept), Failure or Abort (discarded) and Undo are
on the gamepad, in `rlt teleop` and in `rlt panel`. On a robot: ros2 launch rlt_ros record_demos.launch.py""",
    "import": """examples:
  rlt demos import --from lerobot ~/datasets/cups --map so101_lerobot --out demos/cups
  rlt demos import --from mcap ~/bags --map my_robot.yaml --out demos/cups
  rlt demos import --from mcap sessions/demos                # what rlt_ros recorded has its mapping within it
What the mapping file says is in docs/demonstrations.md, config/demos has examples.""",
    "export": """examples:
  rlt demos export --to lerobot demos/ethernet --task ethernet --out eth
  rlt demos import --from lerobot eth --map eth/meta/rlt_mapping.yaml --out demos/back    # the same again""",
    "inspect": """examples:
  rlt demos inspect demos/ethernet
  rlt demos inspect demos/cups --task cups.yaml --plot /tmp/cups.png""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="what", required=True)

    def command(name: str, text: str, task: str = "ethernet") -> argparse.ArgumentParser:
        made = what.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_EXAMPLES.get(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.add_argument(
            "--task", default=None if task != "ethernet" else task, help=f"task name or file (default: {task})"
        )
        return made

    record = command("record", "record the scripted demonstrator, or a person who drives")
    prior = command("prior", "write their transitions into a session, as prior data of a learner")
    for parser in (record, prior):
        parser.add_argument("--out", type=Path, help="folder (default: demos/TASK); what is there already is kept")
    record.add_argument(
        "--episodes", type=at_least(1), metavar="N",
        help="how many (default: 400; with --teleop until Ctrl-C, kept ones count)",
    )  # fmt: skip
    prior.add_argument("--episodes", type=at_least(1), default=400, metavar="N", help="at most so many (default: 400)")
    record.add_argument("--seed", type=int, default=0, help="seed of the first episode")
    record.add_argument("--processes", type=at_least(1), default=2)
    record.add_argument(
        "--teleop", nargs="?", const="keyboard", metavar="GAMEPAD",
        help=f"a person drives: keyboard (default), xbox, playstation, spacemouse, a gamepad file, or {SIMULATED}",
    )  # fmt: skip
    record.add_argument(
        "--session", type=Path, metavar="DIR", help="with --teleop: session folder (default: sessions/<date and time>)"
    )
    prior.add_argument("--session", type=Path, metavar="DIR", help="new session folder for their transitions")
    prior.add_argument(
        "--model", default="", metavar="DIR", help="VLA checkpoint (default: the one shipped for the task)"
    )
    for name, value, text in (
        ("--chunk-steps", 10, "C"), ("--latency-ticks", 5, "from a frame to its earliest use"),
        ("--max-age-ticks", 25, "the oldest token that is used"), ("--stride", 2, "ticks between stored states"),
    ):  # fmt: skip
        prior.add_argument(name, type=int, default=value, metavar="N",
                           help=f"{text}; as the practice has it (default: {value})")  # fmt: skip
    inspect = command("inspect", "say what is in a folder and what is wrong with it; exit code 1 when something is")
    inspect.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="default: demos/TASK")
    inspect.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # as record and prior call the folder
    inspect.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="where to draw (default: inspect.png in the folder)"
    )
    importing = command("import", "import what others recorded into a new folder", "the mapping's")
    importing.add_argument(
        "source",
        type=Path,
        metavar="PATH",
        help="LeRobot dataset (a folder); MCAP file, rosbag2 folder, or a folder of them",
    )
    importing.add_argument("--from", dest="format", choices=("lerobot", "mcap"), required=True, help="format of PATH")
    importing.add_argument(
        "--map", type=Path, metavar="FILE",
        help="mapping file, or a name in config/demos; what rlt_ros recorded has its own",
    )  # fmt: skip
    importing.add_argument(
        "--skip", type=at_least(0), nargs="+", default=[], metavar="N",
        help="leave these out, as errors say; N counts what PATH has, of a session what was kept, from 0",
    )  # fmt: skip
    importing.add_argument("--out", type=Path, help="new folder (default: demos/TASK)")
    importing.add_argument(
        "--processes", type=at_least(1), default=min(MOST_PROCESSES, len(os.sched_getaffinity(0))),
        help=f"lerobot: processes that decode (default: one a core, {MOST_PROCESSES} at most)",
    )  # fmt: skip
    export = command("export", "export demonstrations into another format")
    export.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="default: demos/TASK")
    export.add_argument("--to", dest="format", choices=("lerobot",), required=True, help="format to write")
    export.add_argument("--out", type=Path, required=True, help="new folder")


def run(args: argparse.Namespace) -> int:
    from rlt_ros.sim.task import load_task

    if args.what == "import":
        return import_(args)
    task = load_task(args.task)
    if args.what == "export":
        return export(args, task)
    folder = args.out or Path("demos") / task.name
    if args.what == "record" and args.teleop:
        return record_a_person(args)
    if args.what == "record":
        from rlt_ros.cli.main import UsageError
        from rlt_ros.sim.demonstrator import knows
        from rlt_ros.sim.record import record

        if args.session is not None:
            raise UsageError("--session is for --teleop; the scripted demonstrator writes into --out")
        if not knows(task):
            raise UsageError(f"--task {args.task}: the scripted demonstrator knows the Ethernet task only; --teleop"
                             " records a person who drives")  # fmt: skip
        episodes = 400 if args.episodes is None else args.episodes
        with _progress() as bar:
            row = bar.add_task("demonstrations", total=episodes)
            record(task, folder, episodes, args.seed, args.processes, lambda n: bar.update(row, completed=n))
    if args.what == "prior":
        return write_prior(args, task, folder)
    plot = None
    if args.what == "inspect":
        folder, plot = args.folder or folder, args.plot
    return inspect(task, folder, plot)


def record_a_person(args: argparse.Namespace) -> int:
    """A person drives in the simulator, and everything is recorded; 0, or 1 when a process died."""
    import os
    import sys

    import yaml

    from rlt_ros.cli.domain import free_domain
    from rlt_ros.cli.main import UsageError
    from rlt_ros.cli.practice import interrupt, only_user, run_graph
    from rlt_ros.cli.progress import DemosDisplay, kept
    from rlt_ros.data.journal import journal_files
    from rlt_ros.data.recording import FOLDER
    from rlt_ros.ros.supervisor import commands
    from rlt_ros.sim.task import load_task, require_simulation

    if args.out is not None:
        raise UsageError("--out is for the scripted demonstrator; with --teleop give --session, and import it then")
    session = (args.session or Path("sessions") / f"demos_{datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
    path = session / "record_demos.yaml"
    simulated = args.teleop == SIMULATED
    person, gamepad = (SIMULATED, "") if simulated else ("human", args.teleop)
    task = args.task or "ethernet"
    task = str(Path(task).resolve()) if Path(task).suffix in (".yaml", ".yml") else task
    require_simulation(load_task(task))
    start = commands("sim", person, str(session), task, extra_files=[path], mode="demos", gamepad=gamepad)
    session.mkdir(parents=True, exist_ok=True)
    lock = only_user(session)  # noqa: F841 - held until this returns
    # Whoever goes on with a session gets other scenes.
    seed = args.seed + 1000 * len(journal_files(session / FOLDER))
    own = {"/**/sim_node": {"seed": seed}, "/**/operator_node": {"seed": seed}}
    content = {node: {"ros__parameters": values} for node, values in own.items()}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, interrupt)
    os.environ.setdefault("ROS_DOMAIN_ID", str(free_domain()))
    print(f"session {session}")
    if args.teleop == "keyboard":
        print(f"steer from another terminal: ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} rlt teleop", flush=True)
    seen: list = []
    enough = lambda picture: args.episodes is not None and kept(picture) >= args.episodes  # noqa: E731
    try:
        code = run_graph(start, session / "log", args.episodes or 0, 0.0, seen.append, DemosDisplay, enough)
    except KeyboardInterrupt:  # the way to end it, where no number was given
        code = 0 if args.episodes is None else 130
        print(file=sys.stderr)
    count = kept(seen[0]) if seen else 0
    print(f"{session}: {count} episodes kept, {len(seen[0].ended) - count if seen else 0} discarded")
    if count:
        print(f"make demonstrations of them: rlt demos import --from mcap {session}")
    return code


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def inspect(task, folder: Path, plot: Path | None) -> int:
    """Print and draw what is in a folder; 1 when something is wrong with it."""
    from rlt_ros.data import inspection

    with _progress() as bar:
        row = bar.add_task("reading", total=None)
        found = inspection.inspect(folder, task, lambda done, total: bar.update(row, completed=done, total=total))
    for line in inspection.lines(found):
        print(line)
    if found.curves:
        path = plot or folder / "inspect.png"
        inspection.plot(found, path)
        print(f"drawn: {path}")
    return 1 if found.findings else 0


def import_(args: argparse.Namespace) -> int:
    """Another format into a new folder of demonstrations."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.data.mapping import load_mapping
    from rlt_ros.sim.task import task_folder

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing half-written stays after a kill either
    if args.map is not None:
        named = task_folder().parent / "demos"
        if not args.map.is_file() and not (named / f"{args.map}.yaml").is_file():
            there = ", ".join(sorted(path.stem for path in named.glob("*.yaml")))
            raise UsageError(f"--map {args.map}: no such file; there are: {there}; or give the path of a .yaml file")
        mapping = load_mapping(args.map, args.task)
    elif args.format == "mcap":
        from rlt_ros.ros.recordings import own_mapping_of

        mapping = own_mapping_of(args.source, args.task)
    else:
        raise UsageError("--from lerobot needs --map: a mapping file, or a name in config/demos")
    mapping = replace(mapping, skip=(*mapping.skip, *args.skip))
    out = args.out or Path("demos") / mapping.task.name
    with _progress() as bar:
        rows = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in rows:
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done)

        if args.format == "lerobot":
            from rlt_ros.data.lerobot import import_lerobot

            summary = import_lerobot(args.source, mapping, out, args.processes, show)
            episodes, notes = summary.episodes, summary.notes
        else:
            from rlt_ros.ros.recordings import import_mcap

            episodes, notes = import_mcap(args.source, mapping, out, lambda *n: show("recordings", *n))
    print(f"{out}: {episodes} episodes of {args.source} for the task '{mapping.task.name}'")
    for note in notes:
        print(f"note: {note}")
    print(f"look at them: rlt demos inspect {out} --task {args.task or mapping.task.name}")
    return 0


def export(args: argparse.Namespace, task) -> int:
    """A folder of demonstrations into another format."""
    from rlt_ros.data.lerobot_export import MAPPING, export_lerobot

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = args.folder or Path("demos") / task.name
    with _progress() as bar:
        row = bar.add_task("episodes", total=None)
        show = lambda done, total: bar.update(row, completed=done, total=total)  # noqa: E731
        totals = export_lerobot(source, task, args.task, args.out, show)
    print(f"{args.out}: {totals['episodes']} episodes, {totals['frames']} frames at {task.rate:g} Hz")
    print(f"back again: rlt demos import --from lerobot {args.out} --map {args.out / MAPPING} --out DIR")
    return 0


def write_prior(args: argparse.Namespace, task, folder: Path) -> int:
    """The transitions of demonstrations into the journal of a session, which a learner takes as prior data."""
    from contextlib import closing

    from rclpy.serialization import serialize_message
    from rich.progress import track

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.core.recorder import EpisodeRecorder
    from rlt_ros.data import demos
    from rlt_ros.data.journal import Journal
    from rlt_ros.ros.conversions import transition_to_msg
    from rlt_ros.ros.definitions import ros2msg
    from rlt_ros.vla.frozen import load
    from rlt_ros.vla.prior import demonstration_transitions
    from rlt_ros.vla.traced import TracedVLA

    if args.session is None or (args.session / "journal").exists():
        raise UsageError(
            "`rlt demos prior` needs --session, a folder without a journal: a session is never written over"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing half-written stays after a kill either
    paths = demos.paths(folder)[: args.episodes]
    recorder = EpisodeRecorder(args.chunk_steps, args.stride, args.latency_ticks, args.max_age_ticks,
                               angles=task.angle_index)  # fmt: skip
    vla, clock, kind = TracedVLA(load(args.model or task.name)), ControlClock(task.rate), "rlt_ros/msg/Transition"
    used, start_tick = 0, 1000
    with demos.new_folder(args.session / "journal") as part:
        with closing(Journal(part, kind, ros2msg(kind))) as journal:
            for episode, path in enumerate(track(paths, "demonstrations"), 1):
                demo = demos.read(path)
                try:
                    transitions = demonstration_transitions(
                        demo, vla, list(task.cameras), recorder, episode, start_tick
                    )
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
                for transition in transitions:
                    message = transition_to_msg(transition, args.session.name, clock)
                    journal.append(serialize_message(message), clock.stamp_ns(transition.tick))
                used += bool(transitions)
                start_tick += len(demo["action"]) + 1000 - len(demo["action"]) % args.chunk_steps
        skipped = ", ".join(f"{count} without {what}" for what, count in recorder.skipped.items())
        if not used:
            raise ValueError(
                f"{folder}: no transitions of {len(paths)} demonstrations"
                + (f" ({skipped}; is --max-age-ticks less than the pictures are apart?)" if skipped else
                   ": none was a success and came to the critical phase. Mark where that begins: Hand over while"
                   " recording, `critical` in the mapping of an import")
            )  # fmt: skip
    print(f"{args.session}: {journal.next_sequence} transitions of {used} demonstrations"
          + (f"; {skipped}" if skipped else ""))  # fmt: skip
    return 0
