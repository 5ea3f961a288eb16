"""Record demonstrations by the task's scripted demonstrator, or say what is in a folder of them.

examples:
  rlt demos record --task ethernet --episodes 400
  rlt demos inspect --task ethernet
"""

from __future__ import annotations

import argparse
from pathlib import Path

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("record", "inspect"), help="record new ones, or say what is in a folder")
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--out", type=Path, help="folder (default: demos/TASK); what is there already is kept")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode")
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
    episodes = list(track(demos.load(folder), "reading", transient=True))
    steps = np.array([len(e["action"]) for e in episodes if e["success"]])
    critical = np.array([len(e["action"]) - e["critical_tick"] for e in episodes if e["success"]])
    print(f"{folder}: {len(episodes)} episodes, {len(steps)} successful, {sum(len(e['frame_tick']) for e in episodes)} pictures")
    if len(steps):
        print(f"median control steps: {np.median(steps):.0f} in all, {np.median(critical):.0f} in the critical phase")
    return 0
