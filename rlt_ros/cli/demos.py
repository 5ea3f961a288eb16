"""Record demonstrations by the task's scripted demonstrator, say what is in a folder of them, or make them prior data.

examples:
  rlt demos record --task ethernet --episodes 400
  rlt demos inspect --task ethernet
  rlt demos prior --task ethernet --episodes 20 --session sessions/demos   # for the learner's `prior`
"""

from __future__ import annotations

import argparse
from pathlib import Path

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("record", "inspect", "prior"),
        help="record, say what is in a folder, or write their transitions",
    )
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--out", type=Path, help="folder (default: demos/TASK); what is there already is kept")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode")
    parser.add_argument("--session", type=Path, metavar="DIR", help="prior: new session folder for their transitions")
    parser.add_argument("--processes", type=int, default=2)


def run(args: argparse.Namespace) -> int:
    import numpy as np
    from rich.progress import track

    from rlt_ros.data import demos
    from rlt_ros.sim.task import load_task

    task = load_task(args.task)
    folder = args.out or Path("demos") / task.name
    if args.what == "record":
        from rich.progress import Progress

        from rlt_ros.sim.record import record

        with Progress() as bar:
            row = bar.add_task("demonstrations", total=args.episodes)
            record(task, folder, args.episodes, args.seed, args.processes, lambda n: bar.update(row, completed=n))
    if args.what == "prior":
        return write_prior(args, task, folder)
    episodes = list(track(demos.load(folder), "reading", transient=True))
    steps = np.array([len(e["action"]) for e in episodes if e["success"]])
    critical = np.array([len(e["action"]) - e["critical_tick"] for e in episodes if e["success"]])
    print(
        f"{folder}: {len(episodes)} episodes, {len(steps)} successful,"
        f" {sum(len(e['frame_tick']) for e in episodes)} pictures"
    )
    if len(steps):
        print(f"median control steps: {np.median(steps):.0f} in all, {np.median(critical):.0f} in the critical phase")
    return 0


def write_prior(args: argparse.Namespace, task, folder: Path) -> int:
    """The transitions of demonstrations into the journal of a session, which a learner takes as prior data."""
    from rclpy.serialization import serialize_message
    from rich.progress import track

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.core.recorder import EpisodeRecorder
    from rlt_ros.data import demos
    from rlt_ros.data.journal import Journal
    from rlt_ros.ros.conversions import transition_to_msg
    from rlt_ros.ros.definitions import ros2msg
    from rlt_ros.sim.lockstep import Timing
    from rlt_ros.vla.frozen import load
    from rlt_ros.vla.prior import demonstration_transitions
    from rlt_ros.vla.traced import TracedVLA

    if args.session is None or (args.session / "journal").exists():
        raise UsageError(
            "`rlt demos prior` needs --session, a folder without a journal: a session is never written over"
        )
    vla, timing, clock, kind = TracedVLA(load(task.name)), Timing(), ControlClock(task.rate), "rlt_ros/msg/Transition"
    recorder = EpisodeRecorder(timing.chunk_steps, timing.stride, timing.latency_ticks, timing.max_age_ticks)
    journal = Journal(args.session / "journal", kind, ros2msg(kind))
    used, start_tick = 0, 1000
    for episode, demo in enumerate(track(demos.load(folder)[: args.episodes], "demonstrations"), 1):
        transitions = demonstration_transitions(demo, vla, list(task.cameras), recorder, episode, start_tick)
        for transition in transitions:
            message = transition_to_msg(transition, args.session.name, clock)
            journal.append(serialize_message(message), clock.stamp_ns(transition.tick))
        used += bool(transitions)
        start_tick += len(demo["action"]) + 1000 - len(demo["action"]) % timing.chunk_steps
    journal.close()
    skipped = ", ".join(f"{count} without {what}" for what, count in recorder.skipped.items())
    print(
        f"{args.session}: {journal.next_sequence} transitions of {used} demonstrations"
        + (f"; {skipped}" if skipped else "")
    )
    return 0
