"""Measure how often and how fast the base policy, the demonstrator or a practised session succeeds.

examples:
  rlt eval --task ethernet --policy base --episodes 50 --seed 0 --json base.json
  rlt eval --task ethernet --policy sessions/first --episodes 50
  rlt eval --policy sessions/first --hand-over learned    # by the classifier that learned from the presses
  rlt eval --task ethernet --policy demonstrator
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--policy", default="base", help="base, demonstrator, or a session folder (default: base)")
    parser.add_argument("--episodes", type=int, default=50, help="default: 50")
    parser.add_argument(
        "--seed", type=int, default=0, help="which scenes; practice never uses any of them (default: 0)"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        help="VLA checkpoint: shipped name or folder (default: the session's, or the task's)",
    )
    parser.add_argument(
        "--hand-over", default="rule", choices=("rule", "person", "learned"),
        help="who does it: the task's rule, the same after a person's reaction time, or the session's classifier"
        " (default: rule)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the result there as well")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")


def run(args: argparse.Namespace) -> int:
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rlt_ros.sim.evaluate import evaluate

    torch.set_num_threads(args.threads)
    good = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[good]} successful"),
    )
    with Progress(*columns, TimeRemainingColumn()) as bar:
        row = bar.add_task(f"eval {args.policy}", total=args.episodes, good=0)

        def progress(done, result):
            nonlocal good
            good += result.success
            bar.update(row, completed=done, good=good)

        result = evaluate(args.task, args.policy, args.episodes, args.seed, progress, checkpoint=args.checkpoint,
                          hand_over=args.hand_over)
    print(summary(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def summary(r: dict) -> str:
    """One line a person can read."""
    steps = r["median_steps_success"]
    by = {"person": ", handed over by a person", "learned": ", handed over by its classifier"}.get(r["hand_over"], "")
    return (
        f"{r['policy']} on {r['task']}{by}: {r['successes']}/{r['episodes']} = {100 * r['success_rate']:.0f} % "
        f"(95 % interval {100 * r['wilson_low']:.0f}-{100 * r['wilson_high']:.0f} %), "
        f"median {'-' if steps is None else f'{steps:.0f}'} steps to success in the critical phase, "
        f"{r['throughput_per_10min']:.0f} successes per 10 minutes"
    )
