"""Compare what a hand-over can be learned from: how often the VLA looks in an approach, and how it is learned.

    . setup/env.sh
    python3 bench/presses.py record --out presses --part 0/2 &   # parts run beside one another, and go on after Ctrl-C
    python3 bench/presses.py record --out presses --part 1/2
    python3 bench/presses.py compare presses --json presses.json

Needs no practice: the VLA drives the approach and what follows it, and the press is the simulated person's. Recording
is in lock-step, in scenes that neither practice nor evaluation uses: --lessons to learn from, --judged to judge by. All
that there was to see is kept, so that one recording serves every comparison.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from rlt_ros.core.episode import Phase
from rlt_ros.core.handover import Approach, PressRecorder, Settings, judge, train
from rlt_ros.core.intervals import wilson
from rlt_ros.core.observations import TokenFrame
from rlt_ros.sim.person import Habits, SimulatedPerson, View
from rlt_ros.sim.task import PRACTICE_SEED, TaskEnv, load_task

LESSONS = PRACTICE_SEED + 10_000 * 9100  # scenes to learn from: no seed of practice comes near
JUDGED = PRACTICE_SEED + 10_000 * 9200  # scenes to judge by
AFTER_S = 1.5  # recorded after the task's rule
FRAME_TICKS = 2  # the simulator's cameras
LEAD_TICKS = 3  # a frame between is known so much later, or a tick after a reference that is being made
SET = 50  # presses that are learned from
# Name: ticks from frame to frame in an approach, and settings.
CHOICES = {
    "5 Hz, as shipped": (10, {}),
    "10 Hz": (5, {}),
    "25 Hz": (2, {}),
    "5 Hz, ridge 1e-3 for all": (10, {"ridge": (1e-3, 1e-3)}),
    "5 Hz, threshold not blurred": (10, {"blur_s": 1e-3}),
    "5 Hz, held 0.08 s: one frame alone": (10, {"held_s": 0.08}),
    "5 Hz, held 0.4 s: three frames of four": (10, {"held_s": 0.4}),
}
TRUTH = "where the plug really is, at each tick"  # the height over the jack in place of the token


class Watched(TaskEnv):
    """Keeps what there was to see since the reset: `proprios` and `depths` by tick, `frames` every FRAME_TICKS."""

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        self.proprios, self.depths, self.frames = [], [], []
        self._look()

    def step(self, action: np.ndarray) -> None:
        super().step(action)
        self._look()

    def _look(self) -> None:
        if len(self.proprios) % FRAME_TICKS == 1:  # the ticks of references, 5, 15 ..., are among them
            self.frames.append((len(self.proprios), self.images(), self.proprio()))
        self.proprios.append(self.proprio())
        self.depths.append(self.info()["depth"])


def record(args: argparse.Namespace) -> None:
    """A file for each scene; those that are there already are left."""
    import torch

    from rlt_ros.sim.lockstep import LockStep
    from rlt_ros.vla.frozen import load
    from rlt_ros.vla.traced import TracedVLA

    torch.set_num_threads(1)
    task = replace(load_task(args.task), critical_timeout=AFTER_S)
    env, vla = Watched(task), TracedVLA(load(task.name))
    step = LockStep(env, vla)
    part, parts = (int(n) for n in args.part.split("/"))
    # One of each in turn: whatever is there when time is up can be compared.
    scenes = [(kind, first + i) for i in range(max(args.lessons, args.judged))
              for kind, first, many in (("lesson", LESSONS, args.lessons), ("judged", JUDGED, args.judged)) if i < many]
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (kind, scene) in enumerate(scenes):
        path = args.out / f"{kind}-{scene}.npz"
        if number % parts != part or path.exists():
            continue
        begin_s = time.monotonic()
        result = step.run(scene)
        rule = result.steps - result.critical_steps if result.critical_steps else -1
        tokens = vla.tokens([(images, proprio) for _, images, proprio in env.frames])
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, scene=scene, rule=rule, rate=task.rate, proprios=np.float32(env.proprios),
                     depths=np.float32(env.depths), ticks=[tick for tick, _, _ in env.frames], tokens=tokens)
        os.replace(temporary, path)
        print(f"{number + 1}/{len(scenes)} {path.name}: {result.outcome.name}, the rule held after {rule} ticks,"
              f" {time.monotonic() - begin_s:.1f} s", file=sys.stderr, flush=True)


def press_tick(scene: int, rule: int, period_s: float) -> int:
    """When the simulated person presses, who looks each tick and acts in the middle of each second one; -1: never."""
    person = SimulatedPerson(Habits(), scene)
    for tick in range(rule + round(2.0 / period_s)) if rule >= 0 else ():
        person.see(tick * period_s, View(np.zeros(3), 0.0, tick >= rule, False))
        if tick % 2 == 0 and person.act((tick + 0.5) * period_s, Phase.APPROACH).requests:
            return tick
    return -1


def approach(seen: dict, spacing: int, truth: bool = False) -> Approach:
    """What handover_node would have recorded with a frame in `spacing` ticks besides those of references."""
    chunk, latency = 10, 5
    period_s, scene = 1.0 / float(seen["rate"]), int(seen["scene"])
    recorder = PressRecorder(1, period_s)
    recorder.begin(scene, 0)
    due, last = [], -spacing
    for tick, token in zip(seen["ticks"], seen["tokens"]):
        full = tick % chunk == chunk - latency
        if not full and tick - last < spacing:
            continue
        last = tick
        busy = tick - (tick + latency) % chunk + latency  # until then the newest reference is made
        heard = tick + latency if full else max(tick + LEAD_TICKS, busy + 1)
        due.append((heard, TokenFrame(tick, token, seen["proprios"][tick])))
    due.sort(key=lambda item: (item[0], item[1].tick))
    if truth:
        due = [(t, TokenFrame(t, np.float32([1e3 * d]), p)) for t, (d, p) in
               enumerate(zip(seen["depths"], seen["proprios"]))]
    for heard, frame in due:
        if heard < len(seen["proprios"]):  # it was known before the recording's end
            recorder.add(frame, heard)  # unless it was overtaken by a reference: it says nothing new
    return recorder.finish(press_tick(scene, int(seen["rule"]), period_s))


def poisson(count: int, of: int) -> tuple[float, float]:
    """95 % interval of a rate of `count` in `of`, exact, by bisection."""

    def below(mean: float, k: int) -> float:
        return sum(math.exp(-mean + i * math.log(mean) - math.lgamma(i + 1)) for i in range(k + 1))

    def root(k: int, share: float) -> float:
        low, high = 1e-9, 10.0 * (k + 2)
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if below(middle, k) > share else (low, middle)
        return low

    return (root(count - 1, 0.975) / of if count else 0.0), root(count, 0.025) / of


def compare(args: argparse.Namespace) -> None:
    """A table: each choice learned from one set of lessons after the other, and judged by all judged scenes."""
    read = lambda kind: [dict(np.load(path)) for path in sorted(args.out.glob(f"{kind}-*.npz"))]  # noqa: E731
    lessons, judged = read("lesson"), read("judged")[args.skip :]
    sets = [lessons[i : i + SET] for i in range(0, len(lessons) - SET + 1, SET)]
    if not sets or not judged:
        raise SystemExit(f"{args.out} has {len(lessons)} lessons and {len(judged)} to judge by, expected {SET} and 1")
    period_s = 1.0 / float(judged[0]["rate"])
    late_s = [(press_tick(int(s["scene"]), int(s["rule"]), period_s) - int(s["rule"])) * period_s
              for s in judged if s["rule"] >= 0]
    found = {"lessons": len(lessons), "judged": len(judged), "press_after_rule_s": [min(late_s), max(late_s)]}
    print(f"{len(judged)} scenes to judge by, {len(sets)} sets of {SET} presses; the person presses {min(late_s):.2f}"
          f" to {max(late_s):.2f} s after the rule\n")
    print("| choice | recall (95 %) | false an episode (95 %) | recall of the sets | false of the sets |"
          " error, s (90 %) | cross-validated |\n|---|---|---|---|---|---|---|")
    for name, (spacing, changed) in (CHOICES | {TRUTH: (1, {})}).items():
        if args.only not in name:
            continue
        settings = Settings(**changed)
        unseen = [approach(s, spacing, name == TRUTH) for s in judged]
        reports, own, took_s = [], [], []
        for chosen in sets:
            begin_s = time.monotonic()
            classifier, report = train([approach(s, spacing, name == TRUTH) for s in chosen], settings)
            took_s.append(time.monotonic() - begin_s)
            own.append(report)
            reports.append(judge(unseen, [classifier.hand_over_tick(a) for a in unseen], settings.within_s))
        hits, presses = sum(r.hits for r in reports), sum(r.presses for r in reports)
        false, episodes = sum(r.false_alarms for r in reports), sum(r.episodes for r in reports)
        # The sets are judged by the same scenes: an interval as wide as that of one.
        share = wilson(round(hits / len(sets)), presses // len(sets))
        rate = poisson(round(false / len(sets)), episodes // len(sets))
        found[name] = {"recall": hits / presses, "recall_95": share, "false": false / episodes, "false_95": rate,
                       "sets": [asdict(r) for r in reports], "cross_validated": [asdict(r) for r in own],
                       "training_s": took_s}
        each = lambda values: " ".join(f"{v:.3f}" for v in values)  # noqa: E731
        print(f"| {name} | {hits / presses:.3f} ({share[0]:.2f}-{share[1]:.2f}) | {false / episodes:.3f}"
              f" ({rate[0]:.3f}-{rate[1]:.3f}) | {each(r.recall for r in reports)} |"
              f" {each(r.false_per_episode for r in reports)} | {np.mean([r.timing_error_s for r in reports]):+.2f}"
              f" ({np.mean([r.timing_spread_s for r in reports]):.2f}) |"
              f" {np.mean([r.recall for r in own]):.2f}, {np.mean([r.false_per_episode for r in own]):.3f} |",
              flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("record", help="record approaches")
    sub.add_argument("--out", type=Path, required=True, help="folder, of a file for each scene")
    sub.add_argument("--task", default="ethernet", help="default: ethernet")
    sub.add_argument("--lessons", type=int, default=200, help="scenes to learn from (default: 200)")
    sub.add_argument("--judged", type=int, default=300, help="scenes to judge by (default: 300)")
    sub.add_argument("--part", default="0/1", metavar="K/N", help="every N-th scene from the K-th on (default: all)")
    sub.set_defaults(run=record)
    sub = commands.add_parser("compare", help="learn from the lessons, judge by the others")
    sub.add_argument("out", type=Path, help="folder that was recorded")
    sub.add_argument("--skip", type=int, default=0, help="leave out so many of the scenes to judge by (default: 0)")
    sub.add_argument("--only", default="", help="choices whose name contains this")
    sub.add_argument("--json", type=Path, help="write the result there as well")
    sub.set_defaults(run=compare)
    args = parser.parse_args()
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
