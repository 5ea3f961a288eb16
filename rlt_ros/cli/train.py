"""Train the small π0 that ships, the RL token over a frozen VLA, or, on recorded sessions, an actor or a hand-over.

examples:
  rlt demos record --task ethernet --episodes 400     # first: demonstrations into demos/ethernet
  rlt train vla --task ethernet                       # then the VLA (35 minutes on two cores)
  rlt train token --task ethernet                     # and the RL token over it (8 minutes)
  rlt train rl --session sessions/first --out sessions/offline                # the learner, offline, on recorded data
  rlt train rl --session sessions/b --prior sessions/a --out sessions/ab --set preset=rlpd batch_size=256
  rlt train handover --session sessions/first         # when to hand over, from the presses of a session
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("vla", "token", "rl", "handover"),
                        help="the VLA, the RL token over it, an actor, or a hand-over classifier")
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--demos", type=Path, help="folder of demonstrations (default: demos/TASK)")
    parser.add_argument(
        "--out",
        type=Path,
        help="checkpoint folder (default: the one that ships with the package); rl: a new session folder",
    )
    parser.add_argument(
        "--scenes", type=int, default=20_000, help="pictures for the grounding stage and the probe (default: 20000)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        help="vla: of each stage (12 13 10; 0 goes on without it); token: one number (8)",
    )
    parser.add_argument(
        "--action-weight", type=float, default=1.0, help="token: weight of the action readout; 0 is the paper's loss"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--session", type=Path, metavar="DIR", help="rl, handover: session that is learned from")
    parser.add_argument(
        "--prior", type=Path, nargs="+", default=[], metavar="DIR", help="rl: earlier sessions, as prior data"
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="rl: gradient updates (default: utd times the transitions)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="rl: hyper-parameters, over the session's"
    )


def run(args: argparse.Namespace) -> int:
    if args.what == "handover":
        return train_handover(args)
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from rlt_ros.sim.scenes import grounding_scenes
    from rlt_ros.sim.task import load_task
    from rlt_ros.vla import train
    from rlt_ros.vla.frozen import CHECKPOINTS

    torch.set_num_threads(args.threads)
    if args.what == "rl":
        return train_rl(args)
    task = load_task(args.task)
    folder = args.demos or Path("demos") / task.name
    out = args.out or CHECKPOINTS / task.name
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[values]}"), TimeRemainingColumn()
    ) as bar:

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


def train_handover(args: argparse.Namespace) -> int:
    """As handover_node trains between episodes, with the session's settings: from the presses that it recorded."""
    import sys

    import yaml

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.handover import Settings, report_text, train
    from rlt_ros.data.handover import read_approaches, save_classifier

    if args.session is None:
        raise UsageError("`rlt train handover` needs --session: the one whose presses are learned from")
    path = args.session / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = config.get("/**/handover_node", {}).get("ros__parameters", {})
    names = ("needed", "window", "within_s", "margin_s", "seed")
    settings = Settings(**{name: known[name] for name in names if name in known})
    approaches = read_approaches(args.session, lambda text: print(text, file=sys.stderr))
    classifier, report = train(approaches, settings)
    save_classifier(args.session, classifier, report)
    print(report_text(report, classifier.threshold), end="")
    return 0


def train_rl(args: argparse.Namespace) -> int:
    """The learner of the practice on recorded transitions, added in the journal's order and updated as they come."""
    import shutil

    import yaml
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from rlt_ros.cli.main import UsageError
    from rlt_ros.core.learner import Learner
    from rlt_ros.core.td3 import TD3Config
    from rlt_ros.nodes.learner_node import dims_of
    from rlt_ros.ros.stored import stored_transitions
    from rlt_ros.sim.task import load_task

    if args.session is None or args.out is None:
        raise UsageError("`rlt train rl` needs --session (what to learn from) and --out (where the result goes)")
    if (args.out / "checkpoints").exists():
        raise UsageError(f"--out {args.out}: there is a session already; take another folder")
    warn = Console(stderr=True).print
    path = args.session / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = lambda name: config.get(name, {}).get("ros__parameters", {})  # noqa: E731
    settings = dict(section("/**/learner_node").get("td3", {})) | {"seed": args.seed}
    for item in args.set:
        name, found, value = item.partition("=")
        if not found:
            raise UsageError(f"--set {item}: expected NAME=VALUE, such as beta=0.3")
        settings[name] = yaml.safe_load(value)
    hyper = TD3Config.from_mapping(settings)
    task = load_task(section("/**").get("task", args.task))
    transitions = list(stored_transitions(args.session, warn))
    if not transitions:
        raise ValueError(f"session {args.session}: the journal has no transitions; practise first")
    learner = Learner(hyper, dims_of(transitions[0]), args.out, task.proprio_scale)
    for folder in args.prior:
        for transition in stored_transitions(folder, warn):
            learner.add_prior(transition)
    total = args.updates or round(hyper.utd * len(transitions))
    shown = ("critic_loss", "q_mean", "td_error", "anchor", "updates_per_s")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        row = bar.add_task(f"{len(transitions)} transitions", total=total, values="")
        # As in practice: the data grows, and each transition pays for its updates.
        for i, transition in enumerate(transitions):
            learner.add(transition)
            if len(learner.buffer) >= hyper.min_buffer or i == len(transitions) - 1:
                until = total if i == len(transitions) - 1 else (i + 1) * total // len(transitions)
                while learner.updates < until:
                    metrics = learner.step()
                    if learner.updates % 50 == 0:
                        values = " ".join(f"{name} {metrics[name]:.3g}" for name in shown)
                        bar.update(row, completed=learner.updates, values=values)
        bar.update(row, completed=learner.updates)
    learner.version = 1
    args.out.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        shutil.copyfile(path, args.out / "config.yaml")
    print(
        f"{learner.updates} updates on {len(transitions)} transitions and {learner.buffer.kept} of prior data:"
        f" {learner.save()}"
    )
    print(f"evaluate it: rlt eval --task {task.name} --policy {args.out}")
    return 0
