"""What each guard against exploding Q does: train on a recorded session without it, and compare Q with the truth.

    . setup/env.sh && nice python3 bench/guards.py --session sessions/results/seed0

The truth is the mean discounted return of the stored actions. What the critics promise above it they have made up, from
actions that nobody has tried.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Dims
from rlt_ros.core.td3 import TD3Config
from rlt_ros.core.transition import Transition
from rlt_ros.ros.stored import stored_transitions
from rlt_ros.sim.task import load_task

VARIANTS = {
    "as shipped": {},
    "targets not clipped": {"clip_targets": False},
    "no layer norm": {"layer_norm": False},
    "gradients not clipped": {"grad_clip": 1e9},
    "one critic": {"ensemble": 1, "target_members": 1},
    "none of these": {"clip_targets": False, "layer_norm": False, "grad_clip": 1e9, "ensemble": 1, "target_members": 1},
    "beta 2": {"beta": 2.0},
    "beta 0": {"beta": 0.0},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--session", type=Path, required=True, help="a practised session")
    parser.add_argument("--transitions", type=int, default=2000, help="its first so many (default: 2000)")
    parser.add_argument("--updates", type=int, default=8000, help="of each variant (default: 8000)")
    parser.add_argument("--task", default="ethernet", help="what was practised (default: ethernet)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    task = load_task(args.task)
    stored = [t for t, _ in zip(stored_transitions(args.session), range(args.transitions))]
    chunk, action = stored[0].action.shape
    dims = Dims(len(stored[0].token), len(stored[0].proprio), action, chunk)
    truth = np.mean(returns(stored, TD3Config().gamma))
    print(f"{len(stored)} transitions, {args.updates} updates; mean return {truth:.3f}\n")
    print("| | mean Q of what was done | largest Q | mean Q of what the actor would do | largest gradient |")
    print("|---|---|---|---|---|")
    for name, changes in VARIANTS.items():
        learner = Learner(TD3Config.from_mapping({"batch_size": 128} | changes), dims, None, task.proprio_scale)
        for transition in stored:
            learner.add(transition)
        steepest = 0.0
        for _ in range(args.updates):
            steepest = max(steepest, learner.step()["critic_grad"])
        done, largest, wanted = judged(learner, stored)
        print(f"| {name} | {done:.2f} | {largest:.2f} | {wanted:.2f} | {steepest:.1f} |", flush=True)
    return 0


def returns(stored: list[Transition], gamma: float) -> list[float]:
    """Discounted return of each transition's action, from how its episode went on."""
    ends: dict[int, int] = defaultdict(lambda: -1)  # episode -> tick of the rewarded action
    for t in stored:
        if t.rewards.any():
            ends[t.episode] = t.tick + int(np.flatnonzero(t.rewards)[0])
    return [gamma ** (ends[t.episode] - t.tick) if ends[t.episode] >= t.tick else 0.0 for t in stored]


@torch.no_grad()
def judged(learner: Learner, stored: list[Transition]) -> tuple[float, float, float]:
    """Mean and largest Q of the stored actions, and the mean of the actor's own, by the less hopeful critic."""
    token, proprio, action, reference = (
        torch.from_numpy(np.stack([getattr(t, name) for t in stored]))
        for name in ("token", "proprio", "action", "reference")
    )
    method = learner.td3
    done = method.critic(token, proprio, action).amin(0)
    wanted = method.critic(token, proprio, method.actor(token, proprio, reference)).amin(0)
    return float(done.mean()), float(done.max()), float(wanted.mean())


if __name__ == "__main__":
    sys.exit(main())
