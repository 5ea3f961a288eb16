"""Train the small π0 that ships with the package, or the RL token over a frozen VLA.

examples:
  rlt demos record --task ethernet --episodes 400     # first: demonstrations into demos/ethernet
  rlt train vla --task ethernet                       # then the VLA (35 minutes on two cores)
  rlt train token --task ethernet                     # and the RL token over it (8 minutes)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("vla", "token"), help="the VLA, or the RL token over it")
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--demos", type=Path, help="folder of demonstrations (default: demos/TASK)")
    parser.add_argument("--out", type=Path, help="checkpoint folder (default: the one that ships with the package)")
    parser.add_argument("--scenes", type=int, default=20_000, help="pictures for the grounding stage and the probe (default: 20000)")
    parser.add_argument("--minutes", type=float, nargs="+", help="vla: of each stage (12 13 10; 0 goes on without it); token: one number (8)")
    parser.add_argument("--action-weight", type=float, default=1.0, help="token: weight of the action readout; 0 is the paper's loss")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from rlt_ros.sim.scenes import grounding_scenes
    from rlt_ros.sim.task import load_task
    from rlt_ros.vla import train
    from rlt_ros.vla.frozen import CHECKPOINTS

    torch.set_num_threads(args.threads)
    task = load_task(args.task)
    folder = args.demos or Path("demos") / task.name
    out = args.out or CHECKPOINTS / task.name
    with Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[values]}"), TimeRemainingColumn()) as bar:

        def stage(name: str):
            row = bar.add_task(name, total=1, values="")
            return lambda done, total, values: bar.update(
                row, completed=done, total=total, values=" ".join(f"{k} {v:.4g}" for k, v in values.items())
            )

        scenes = grounding_scenes(folder / "scenes.npz", args.scenes, progress=stage("scenes"))
        if args.what == "vla":
            minutes = tuple(args.minutes or (12.0, 13.0, 10.0))
            train.train_vla(task, folder, out, scenes, minutes, seed=args.seed, progress=stage("vla"))
            return 0
        from rlt_ros.data import demos
        from rlt_ros.vla.pi0 import Pi0

        policy = Pi0.load(out)
        frames = train.DemoFrames(demos.load(folder), policy.horizon, image_stride=2)
        minutes = args.minutes[0] if args.minutes else 8.0
        token = train.train_token(
            policy, frames, out, minutes, seed=args.seed, action_weight=args.action_weight, progress=stage("token")
        )
        images, offsets = scenes[0][-8000:], scenes[1][-8000:]
        report = train.token_report(token, train.embed(policy, images, stage("report")), offsets)
    (out / "token_report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0
