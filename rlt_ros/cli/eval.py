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
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_ros.cli.arguments import at_least

if TYPE_CHECKING:
    from rlt_ros.core.episode import Phase
    from rlt_ros.sim.lockstep import EpisodeResult

PLAIN_EVERY_S = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--policy", default="base", help="base, demonstrator, or a session folder (default: base)")
    parser.add_argument("--episodes", type=at_least(1), default=50, help="default: 50")
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
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads (default: 2)")


def run(args: argparse.Namespace) -> int:
    if args.policy not in ("base", "demonstrator") and not Path(args.policy).is_dir():
        from rlt_ros.cli.main import UsageError

        raise UsageError(f"--policy {args.policy}: expected base, demonstrator or a session folder")
    with _Shown(args.policy, args.episodes) as shown:
        shown.say("loading")  # what comes now takes half a minute on a busy machine
        import torch

        from rlt_ros.sim.evaluate import evaluate

        torch.set_num_threads(args.threads)
        result = evaluate(args.task, args.policy, args.episodes, args.seed, shown.ended, checkpoint=args.checkpoint,
                          hand_over=args.hand_over, watch=shown.see)
    print(summary(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


class _Shown:
    """How far it is: a bar in a terminal, elsewhere a line on stderr now and then. An episode of a large VLA on a CPU
    takes minutes, so that it is told within episodes, too."""

    def __init__(self, policy: str, episodes: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._name, self._episodes, self._done, self._good = f"eval {policy}", episodes, 0, 0
        texts = ("{task.fields[good]} successful", "{task.fields[now]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, texts))
        self._bar = Progress(*columns, TimeRemainingColumn())
        self._bar.disable = not self._bar.console.is_terminal
        self._row = self._bar.add_task(self._name, total=episodes, good=0, now="")
        self._said_s = -math.inf

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, now: str) -> None:
        """What is being done."""
        self._bar.update(self._row, completed=self._done, good=self._good, now=now)
        if self._bar.disable and time.monotonic() - self._said_s > PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            done = f"{self._done} of {self._episodes} episodes, {self._good} successful"
            print(f"{self._name}: {done}; {now}", file=sys.stderr, flush=True)

    def see(self, phase: Phase, seconds: float) -> None:
        """As evaluate's watch."""
        self.say(f"{phase.name.lower()}, {seconds:.1f} s")

    def ended(self, done: int, result: EpisodeResult) -> None:
        """As evaluate's progress."""
        self._done, self._good = done, self._good + result.success
        self.say("")


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
