"""How steadily a slow VLA moves the robot, by the way in which its chunks are joined: the table of docs/results.md.

    . setup/env.sh && python3 bench/chunks.py --episodes 50 --processes 2

In lock-step, so other work on the machine changes nothing but how long it takes. With --policy SESSION the practised
actor drives the critical phase, without it the frozen VLA drives throughout. With --keep FILE episodes that were run
before are not run again, so that it can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlt_ros.core.intervals import wilson
from rlt_ros.core.joining import Join
from rlt_ros.sim.evaluate import load_policy
from rlt_ros.sim.lockstep import LockStep, Motion, Timing
from rlt_ros.sim.task import EVALUATION_SEED, TaskEnv, load_task
from rlt_ros.vla.schedule import needed_age

# name -> how references are joined, whether the commander joins chunks, whether the robot waits
STRATEGIES = {
    "waiting": (Join.NONE, False, True),
    "switching": (Join.NONE, False, False),
    "blend": (Join.BLEND, False, False),
    "rtc": (Join.RTC, False, False),
    "ramp": (Join.NONE, True, False),
    "blend and ramp": (Join.BLEND, True, False),
    "rtc and ramp": (Join.RTC, True, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=["waiting", "switching", "ramp"])
    parser.add_argument("--latencies", type=float, nargs="+", default=[0, 50, 100, 200, 300], help="ms")
    parser.add_argument("--episodes", type=int, default=50, help="of each cell (default: 50)")
    parser.add_argument("--first", type=int, default=0, help="first scene (default: 0, those of rlt eval)")
    parser.add_argument("--task", default="ethernet", help="default: ethernet")
    parser.add_argument("--policy", default="", help="session whose actor drives the critical phase (default: none)")
    parser.add_argument("--join-ticks", type=int, default=Timing().join_ticks, help="of the commander's ramp")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--keep", type=Path, help="file (.jsonl) of the episodes, which is read and added to")
    args = parser.parse_args()

    cells = [(strategy, latency) for strategy in args.strategies for latency in args.latencies]
    setting = {"policy": args.policy, "task": args.task, "join_ticks": args.join_ticks}
    known = {}
    if args.keep and args.keep.exists():
        for episode in map(json.loads, args.keep.read_text().splitlines()):
            if all(episode[name] == value for name, value in setting.items()):
                known[episode["strategy"], episode["latency_ms"], episode["scene"]] = episode
    # Scene by scene: where it is stopped, every cell is equally far.
    wanted = [(*cell, EVALUATION_SEED + args.first + i) for i in range(args.episodes) for cell in cells]
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("episodes"), TimeElapsedColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(args.processes, get_context("spawn"), _begin, (args.task, args.policy, args.join_ticks))
    with pool, Progress(*columns) as progress:
        row = progress.add_task("episodes", total=len(wanted), completed=sum(job in known for job in wanted))
        running = {pool.submit(_episode, *job): job for job in wanted if job not in known}
        for done in as_completed(running):
            strategy, latency, scene = running[done]
            episode = {"strategy": strategy, "latency_ms": latency, "scene": scene, **setting, **done.result()}
            known[running[done]] = episode
            if args.keep:
                with args.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(episode) + "\n")
            progress.advance(row)
    print(table({cell: [known[job] for job in wanted if job[:2] == cell] for cell in cells}))
    return 0


def table(found: dict[tuple[str, float], list[dict]]) -> str:
    """Markdown, one row a strategy and latency."""
    rows = [
        "| chunks | VLA latency | ticks without a fresh command | largest jump at a seam / inside a chunk "
        "| success (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for (strategy, latency), episodes in found.items():
        motion = Motion()
        for episode in episodes:
            motion.add(Motion(**episode["motion"]))
        good, all_ = sum(episode["success"] for episode in episodes), len(episodes)
        low, high = wilson(good, all_)
        jump = f"{motion.seam:.2f} / {motion.inside:.2f} = {motion.seam / max(motion.inside, 1e-9):.1f}"
        rows.append(
            f"| {strategy} | {latency:.0f} ms | {100 * motion.without_command / max(motion.ticks, 1):.1f} % | {jump} | "
            f"{good}/{all_} = {100 * good / max(all_, 1):.0f} % ({100 * low:.0f}-{100 * high:.0f}) |"
        )
    return "\n".join(rows) + "\n"


def _begin(task: str, policy: str, join_ticks: int) -> None:
    """In each process, once."""
    global _env, _vla, _actor, _join_ticks
    import torch

    from rlt_ros.vla.frozen import load
    from rlt_ros.vla.traced import TracedVLA

    torch.set_num_threads(1)
    loaded = load_task(task)
    _env, _vla, _join_ticks = TaskEnv(loaded), TracedVLA(load(loaded.name), joins=True), join_ticks
    _actor = load_policy(Path(policy))[0].act if policy else None


def _episode(strategy: str, latency_ms: float, scene: int) -> dict:
    join, ramp, wait = STRATEGIES[strategy]
    latency = math.ceil(latency_ms * _env.task.rate / 1000)
    # As the VLA node tells whoever has such a VLA.
    age = max(Timing().max_age_ticks, needed_age(latency, Timing().chunk_steps))
    ticks = {"latency_ticks": latency, "max_age_ticks": age, "join_ticks": _join_ticks if ramp else 0}
    timing = replace(Timing(), **ticks, join=join.value)
    result = LockStep(_env, _vla, timing, _actor, latency=latency, wait=wait).run(scene)
    return {"success": result.success, "critical_steps": result.critical_steps, "motion": asdict(result.motion)}


if __name__ == "__main__":
    raise SystemExit(main())
