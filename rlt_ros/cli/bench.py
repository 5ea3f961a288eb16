"""Measure this machine and this code: control loops, learner, weights, replay, panel, import, training. Prints one JSON.

examples:
  rlt bench control --minutes 2             # a short practice with every node: jitter, missed commands, CPU, memory
  rlt bench control --minutes 1 --learner   # also whether the learner disturbs the loop: five practices
  rlt bench control --minutes 1 --rate 250 --learner  # the loop alone at 250 Hz, VLA and learner beside it
  rlt bench latency                         # from proprioception to safe command, over bare DDS
  rlt bench human                           # from the press of the dead-man to the robot under human control
  rlt bench token                           # from picture to RL token, over the VLA's prefix alone
  rlt bench learner --json learner.json     # updates/s against Stable-Baselines3 and against bare matrix products
  rlt bench learner --token 2048 --batch 128
  rlt bench learner --device cuda
  rlt bench weights --seconds 60 --burners 2    # from the learner's publish to the actor's use, over DDS, under load
  rlt bench replay --token 2048 --steps 50000   # inserts/s with the journal, memory of a million steps
  rlt bench import                          # of an hour of LeRobot data: time and memory, over bare decoding
  rlt bench import --minutes 5 --codec h264
  rlt bench panel                           # from a press in the panel to the episode's state; the panel's CPU
  rlt bench training --rounds 3             # training the token from cached embeddings, over encoding them anew
  rlt bench all
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

NAMES = ("control", "latency", "human", "token", "learner", "weights", "replay", "import", "panel", "training")
MODULES = {"import": "importing"}  # where the name is not the module's
MINUTES = {"control": 2.0, "import": 60.0}
MINUTES_OF_ALL = MINUTES | {"import": 3.0}
# The token of the shipped VLA; a replay is judged by that of a large one.
TOKEN = {"control": 96, "latency": 96, "human": 96, "learner": 96, "weights": 96, "replay": 2048}
ROUNDS = {"learner": 15, "training": 5}
SECONDS = {"latency": 60.0, "human": 60.0, "token": 60.0, "weights": 60.0, "replay": 10.0, "panel": 60.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt bench`."""
    parser.add_argument("name", choices=(*NAMES, "all"), help="what to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--token", type=int, metavar="D", help="size of the RL token (default: 96; replay: 2048)")
    parser.add_argument("--batch", type=int, default=256, metavar="B", help="transitions per update (default: 256)")
    parser.add_argument(
        "--seconds", type=float, metavar="S",
        help="latency, human, token, weights, replay, panel: how long (default: 60; replay: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help="control: not a practice, but the nodes of the loop alone at this rate, such as 50, 250 or 500",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, metavar="M",
        help="control: of critical phase (default: 2); import: of demonstrations (default: 60; of all: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--learner", action="store_true", help="control: also with the learner idle and at full load, in turns"
    )
    parser.add_argument(
        "--realtime", action=argparse.BooleanOptionalAction,
        help="control: with SCHED_FIFO, as `rlt practice` (default: where it is allowed)",
    )  # fmt: skip
    parser.add_argument("--session", type=Path, help="control: keep the practice session here (default: thrown away)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="learner: where (default: cpu)")
    parser.add_argument("--rounds", type=int, help="learner, training: turns of each contestant (default: 15; 5)")
    parser.add_argument("--updates", type=int, default=40, help="learner: updates a turn (default: 40)")
    parser.add_argument("--hz", type=float, default=4.0, help="weights: publications a second (default: 4)")
    parser.add_argument(
        "--burners", type=int, default=2, help="weights: busy processes at niceness 19 beside the learner (default: 2)"
    )
    parser.add_argument("--steps", type=int, default=50_000, help="replay: steps to store (default: 50000)")
    parser.add_argument(
        "--folder", type=Path,
        help="replay, import: work in this folder (default: the system's temporary); import takes 3 GB for an hour",
    )  # fmt: skip
    parser.add_argument(
        "--codec", default="av1", choices=("av1", "h264"),
        help="import: of the videos, as LeRobot writes them (av1, the default) or as `rlt demos export` does (h264)",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="import: processes that decode (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Measure; return the exit code."""
    from rlt_ros.bench import machine, stage
    from rlt_ros.cli.main import UsageError
    from rlt_ros.ros import priority, processes

    positive = ("token", "batch", "seconds", "minutes", "rounds", "updates", "hz", "rate")
    for name in positive:
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UsageError(f"--{name} must be positive")
    if args.steps < 2 or args.burners < 0 or args.processes < 1:
        raise UsageError("--steps must be at least 2, --burners at least 0, --processes at least 1")
    if args.rate is not None and args.rate > 1000.0:
        raise UsageError(f"--rate is {args.rate:g}, expected at most 1000 Hz")
    if args.rate is not None and args.session is not None:
        raise UsageError("--session keeps a practice, and with --rate there is none; leave one of them out")
    if args.realtime is None:
        args.realtime = priority.realtime_allowed(processes.realtime_of("safety_node"))
    names, minutes = (NAMES, MINUTES_OF_ALL) if args.name == "all" else ((args.name,), MINUTES)
    metrics: dict = {}
    for name in names:
        own = argparse.Namespace(**vars(args))
        own.token = args.token or TOKEN.get(name)
        own.seconds = args.seconds or SECONDS.get(name)
        own.minutes = args.minutes or minutes.get(name)
        own.rounds = args.rounds or ROUNDS.get(name)
        stage(f"benchmark {name}")
        found = importlib.import_module(f"rlt_ros.bench.{MODULES.get(name, name)}").measure(own)
        metrics |= {f"{name}.{key}" if len(names) > 1 else key: value for key, value in found.items()}
    result = {"name": args.name, "metrics": metrics, "realtime": args.realtime, "machine": machine()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0
