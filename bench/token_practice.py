"""Practise with the RL token, with mean-pooled embeddings and with a ResNet's features: the table of docs/results.md.

    . setup/env.sh
    python3 bench/token_practice.py --folder sessions/token_practice --part 0/2 &   # two cores: two parts
    python3 bench/token_practice.py --folder sessions/token_practice --part 1/2
    python3 bench/token_practice.py --folder sessions/token_practice --table

Only the state that actor and critics see beside the proprioception differs. In lock-step and with nobody who corrects:
the same scenes in the same order, the same updates for each transition, and evaluation on scenes that no practice uses.
What is in the folder already is not measured again, so that it can be stopped and gone on with. The ResNet learns the
action chunk from the demonstrations, with which the token was trained, too; record some before: `rlt demos record`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlt_ros.core.intervals import wilson
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.core.td3 import TD3Config
from rlt_ros.sim.lockstep import LockStep, Timing
from rlt_ros.sim.task import EVALUATION_SEED, PRACTICE_SEED, TaskEnv, load_task, task_folder
from rlt_ros.training import frames, resnet
from rlt_ros.vla.frozen import FrozenVLA, load, observations
from rlt_ros.vla.traced import TracedVLA

KINDS = ("RL token", "mean-pooled", "ResNet")
EXPLORATION = 0.05  # as in config/practice.yaml


class MeanPooled:
    """In the RL token's place: the mean of the embeddings, nothing that was trained."""

    def __init__(self, token) -> None:
        c = token.config
        self.config = SimpleNamespace(size=c.embedding_dim, embedding_dim=c.embedding_dim, tokens=c.tokens)

    def encode(self, embeddings, there=None):
        return embeddings.float().mean(1)

    def to(self, device) -> MeanPooled:
        return self

    eval = requires_grad_ = lambda self, *_: self


class Seen:
    """A VLA whose token is what a ResNet makes of the pictures."""

    def __init__(self, vla: TracedVLA, net: resnet.PictureNet) -> None:
        self.vla, self.net, self.backend = vla, net, vla._vla.backend
        for name in ("camera_names", "image_size", "horizon", "action_dim", "proprio_dim", "guided", "seed"):
            setattr(self, name, getattr(vla, name))
        self.token_dim = net.width

    def infer(self, images, proprio, prefix=None):
        """As FrozenVLA.infer."""
        return self.vla.infer(images, proprio, prefix)[0], self.tokens([(images, proprio)])[0]

    def tokens(self, seen) -> np.ndarray:
        """As FrozenVLA.tokens."""
        return self.net.read(observations(self.backend, seen)[0]).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of what was measured")
    parser.add_argument("--task", default="ethernet", help="default: ethernet")
    parser.add_argument("--demos", type=Path, default=Path("demos/ethernet"), help="for the ResNet")
    parser.add_argument("--minutes", type=float, default=4.0, help="of critical phase to practise (default: 4)")
    parser.add_argument("--updates", type=float, default=1.0, help="for each transition (default: 1)")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation (default: 50)")
    parser.add_argument("--resnet-steps", type=int, default=400, help="of 32 pictures (default: 400)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th run from the K-th on; the first is 0")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    part, parts = (int(n) for n in args.part.split("/"))
    if not 0 <= part < parts:
        parser.error(f"--part {args.part}: expected K/N with K from 0 to {parts - 1}")
    jobs = [(kind, seed) for seed in args.seeds for kind in KINDS]
    torch.set_num_threads(1)
    for kind, seed in () if args.table else jobs[part::parts]:
        path = result(args, kind, seed)
        if not path.exists():
            found = practise(args, kind, seed)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
            print(json.dumps({name: value for name, value in found.items() if not isinstance(value, list)}), flush=True)
    print(table(args))
    return 0


def result(args, kind: str, seed: int) -> Path:
    name = f"{kind.replace(' ', '_')}-{seed}-{args.minutes:g}min-{args.updates:g}-{args.episodes}.json"
    return args.folder / name


def vla_of(args, kind: str):
    """The task's VLA with `kind` in the place of its token."""
    vla = load(args.task)
    if kind == "mean-pooled":
        vla = FrozenVLA(vla.backend, MeanPooled(vla._token))
    vla = TracedVLA(vla, joins=True)
    if kind != "ResNet":
        return vla
    return Seen(vla, picture_net(args, vla))


def picture_net(args, vla: TracedVLA) -> resnet.PictureNet:
    """The ResNet, trained once for all seeds."""
    path, task = args.folder / f"resnet-{args.resnet_steps}.pt", load_task(args.task)
    net = resnet.PictureNet(len(vla.camera_names), vla.horizon * vla.action_dim)
    if not path.exists():
        samples = frames.read(args.demos, list(task.cameras), vla.camera_names, vla.image_size, vla.horizon,
                              vla.proprio_dim, vla.action_dim, 2)  # fmt: skip
        net = resnet.trained(samples, samples.split()[0], samples.targets(np.arange(len(samples))), args.resnet_steps)
        torch.save(net.state_dict(), path)
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.requires_grad_(False).eval()


def practise(args, kind: str, seed: int) -> dict:
    """One practice and its evaluation."""
    task, timing, begin = load_task(args.task), Timing(), time.monotonic()
    vla, env = vla_of(args, kind), TaskEnv(task)
    shipped = yaml.safe_load((task_folder().parent / "practice.yaml").read_text(encoding="utf-8"))
    td3 = shipped["/**/learner_node"]["ros__parameters"]["td3"] | {"utd": args.updates, "seed": seed}
    dims = Dims(vla.token_dim, 2 * task.proprio_dim, task.action_dim, timing.chunk_steps)
    learner = Learner(TD3Config.from_mapping(td3), dims, None, task.proprio_scale)
    config = learner.config
    step = LockStep(env, vla, timing, exploration_std=EXPLORATION, seed=seed)
    ticks, practised, sequence = round(60.0 * args.minutes * task.rate), [], 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        row = progress.add_task(f"{kind}, seed {seed}", total=ticks)
        while (done := sum(r.critical_steps for r in practised)) < ticks:
            progress.update(row, completed=done)
            recorder = EpisodeRecorder(timing.chunk_steps, timing.stride, timing.latency_ticks, timing.max_age_ticks,
                                       first_sequence=sequence, angles=task.angle_index)  # fmt: skip
            practised.append(step.run(PRACTICE_SEED + 10_000 * (9300 + seed) + len(practised), recorder))
            for transition in recorder.ready():
                learner.add(transition)
                sequence = transition.sequence + 1
            for _ in range(learner.due()):
                learner.step()
            if learner.transitions >= config.warm_transitions and learner.updates >= config.warm_updates:
                step.commander.offer_policy(copy.deepcopy(learner.td3.actor).eval().act, len(practised))
    practised_s, begin = time.monotonic() - begin, time.monotonic()
    actor = copy.deepcopy(learner.td3.actor).requires_grad_(False).eval()
    judge = LockStep(env, vla, timing, actor.act)
    judged = [judge.run(EVALUATION_SEED + i) for i in range(args.episodes)]
    env.close()
    good = [r.critical_steps for r in judged if r.success]
    return {
        "kind": kind, "seed": seed, "numbers": vla.token_dim, "practised_episodes": len(practised),
        "updates": learner.updates, "transitions": learner.transitions, "practised_s": practised_s,
        "evaluated_s": time.monotonic() - begin, "successes": len(good), "episodes": len(judged),
        "median_steps": float(np.median(good)) if good else None, "steps": good,
        "practised": [asdict(r) | {"outcome": r.outcome.name, "motion": None} for r in practised],
    }  # fmt: skip


def table(args) -> str:
    """Markdown: one row a kind, with each seed's figures and all of them together."""
    rows = ["| state beside the proprioception | numbers | success, each seed | together (95 %) |"
            " median steps, each seed | of all |", "|---|---|---|---|---|---|"]  # fmt: skip
    for kind in KINDS:
        found = [json.loads(path.read_text()) for seed in args.seeds if (path := result(args, kind, seed)).exists()]
        if not found:
            continue
        good, of = sum(f["successes"] for f in found), sum(f["episodes"] for f in found)
        low, high = wilson(good, of)
        steps = [s for f in found for s in f["steps"]]
        successes = ", ".join("{successes}/{episodes}".format(**f) for f in found)
        medians = ", ".join("{:.0f}".format(f["median_steps"] or 0.0) for f in found)
        rows.append(f"| {kind} | {found[0]['numbers']} | {successes} | {good / of:.0%} ({low:.0%}-{high:.0%}) |"
                    f" {medians} | {np.median(steps) if steps else 0.0:.0f} |")  # fmt: skip
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
