"""Run a practised session in the simulator without a person's hand-over, and say how often it succeeds.

examples:
  rlt deploy --session sessions/first --episodes 20
  rlt deploy --session sessions/first --episodes 50 --speed 0 --json deploy.json

The VLA approaches, the session's classifier hands over, its newest policy acts, without exploration noise. Nothing is
learned or recorded. A simulated person starts the episodes and says how they ended, and never hands over. The scenes
are those of `rlt eval` with the same seed; practice never uses any of them.
A real robot is started with `ros2 launch rlt_ros deploy.launch.py`.
"""

import argparse
import json
import math
import signal
import statistics
import sys
from pathlib import Path

import yaml

from rlt_ros.cli.practice import interrupt, only_user, run_graph
from rlt_ros.cli.progress import DeployDisplay
from rlt_ros.core.episode import Ended, Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt deploy`."""
    parser.add_argument("--session", type=Path, metavar="DIR", required=True, help="a session that was practised")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which scenes (default: 0)")
    parser.add_argument(
        "--speed", type=float, metavar="X",
        help="simulated time that waits for every node, at most X times real time; 0: as fast as they all keep up"
        " (default: real time, as on a robot)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.parameters import read_parameters
    from rlt_ros.data.handover import load_classifier
    from rlt_ros.ros import processes
    from rlt_ros.ros.supervisor import commands
    from rlt_ros.sim.evaluate import load_policy
    from rlt_ros.sim.task import EVALUATION_SEED

    if args.episodes < 1:
        raise UsageError("--episodes must be positive")
    if args.speed is not None and not 0 <= args.speed < math.inf:
        raise UsageError(f"--speed is {args.speed:g}, expected 0 or more")
    session = args.session.resolve()
    load_policy(session)  # complain at once, not from a process
    load_classifier(session)
    files = processes.session_files(str(session))
    config = read_parameters(files[0]) if files else {}
    task = config.get("/**", {}).get("ros__parameters", {}).get("task", "ethernet")
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, interrupt)
    lock = only_user(session)  # noqa: F841 - held until this returns
    folder = session / "deploy"
    folder.mkdir(exist_ok=True)
    first = EVALUATION_SEED + 10_000 * args.seed
    own = {
        "/**": {"use_sim_time": args.speed is not None},
        "/**/sim_node": {"seed": first, "realtime_factor": args.speed or 0.0},
        "/**/operator_node": {"episodes": args.episodes, "seed": args.seed},
    }
    path = folder / "config.yaml"
    content = {node: {"ros__parameters": values} for node, values in own.items()}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    ended: list[Ended] = []
    start = commands("sim", "simulated", str(session), task, extra_files=[*files, path], mode="deploy")
    try:
        code = run_graph(start, folder / "log", args.episodes, 0.0,
                         lambda picture: ended.extend(picture.ended), DeployDisplay)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    found = result(ended, task, session, args.seed, first)
    print(summary(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return code


def result(ended: list[Ended], task: str, session: Path, seed: int, first: int) -> dict:
    """The fields of `rlt eval --json` that a running graph can tell."""
    from rlt_ros.sim.evaluate import wilson

    steps = [episode.steps for episode in ended if episode.outcome is Outcome.SUCCESS]
    low, high = wilson(len(steps), len(ended))
    return {
        "task": task,
        "policy": str(session),
        "hand_over": "learned",
        "episodes": len(ended),
        "successes": len(steps),
        "success_rate": len(steps) / len(ended) if ended else 0.0,
        "wilson_low": low,
        "wilson_high": high,
        "median_steps_success": statistics.median(steps) if steps else None,
        "never_handed_over": sum(not episode.steps for episode in ended),
        "seed": seed,
        "first_scene": first,
        "outcomes": [episode.outcome.name for episode in ended],
        "critical_steps": [episode.steps for episode in ended],
    }


def summary(found: dict) -> str:
    """One line a person can read."""
    steps = found["median_steps_success"]
    return (
        f"deployed {found['policy']}: {found['successes']}/{found['episodes']} = {100 * found['success_rate']:.0f} % "
        f"(95 % interval {100 * found['wilson_low']:.0f}-{100 * found['wilson_high']:.0f} %), median "
        f"{'-' if steps is None else f'{steps:.0f}'} steps to success in the critical phase, "
        f"{found['never_handed_over']} never handed over"
    )
