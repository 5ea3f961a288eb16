"""Measure the hand-over section of docs/results.md: what a person's presses teach, and whether success suffers by it.

    . setup/env.sh && python3 bench/handover.py --session sessions/results/seed0

In lock-step with the session's policy: a person who presses 0.15 to 0.3 s after the task's rule hands over in scenes
that neither practice nor evaluation uses; the session's classifier is trained from that; then person, classifier and
rule hand over in the same evaluation scenes. The session gets a `handover/` folder, which must not be there yet.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from rlt_ros.core.handover import Settings, judge, train
from rlt_ros.core.joining import Join
from rlt_ros.data.handover import FOLDER, save_approach, save_classifier
from rlt_ros.sim.evaluate import load_policy, session_settings, wilson
from rlt_ros.sim.handover import Learned, Person, Rule
from rlt_ros.sim.lockstep import LockStep
from rlt_ros.sim.task import EVALUATION_SEED, PRACTICE_SEED, TaskEnv, load_task
from rlt_ros.vla.frozen import load
from rlt_ros.vla.traced import TracedVLA

LESSONS = PRACTICE_SEED + 10_000 * 9000  # scenes of the presses: no seed of practice comes near


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--session", type=Path, required=True, help="a practised session")
    parser.add_argument("--task", default="ethernet", help="default: ethernet")
    parser.add_argument("--presses", type=int, default=50, help="episodes that it learns from (default: 50)")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="which evaluation scenes (default: 0)")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    args = parser.parse_args()
    if (args.session / FOLDER).exists():
        parser.error(f"{args.session / FOLDER} is there already; measure on a copy of the session without it")
    torch.set_num_threads(1)
    task = load_task(args.task)
    timing, model = session_settings(args.session)
    env = TaskEnv(task)
    vla = TracedVLA(load(model or task.name), joins=timing.join == Join.RTC.value)
    actor = load_policy(args.session)[0]
    spacing, period_s = timing.chunk_steps, 1.0 / task.rate

    def run(who: Rule, first: int, episodes: int) -> list:
        step = LockStep(env, vla, timing, actor.act, hand_over=who)
        results = []
        for i in range(episodes):
            results.append(step.run(first + i))
            print(f"{type(who).__name__} {i + 1}/{episodes}: {results[-1].outcome.name}", file=sys.stderr, flush=True)
        return results

    teacher = Person(spacing, period_s)
    run(teacher, LESSONS, args.presses)
    for approach in teacher.approaches:
        save_approach(args.session, approach)
    begin_s = time.monotonic()
    classifier, report = train(teacher.approaches, Settings())
    training_s = time.monotonic() - begin_s
    save_classifier(args.session, classifier, report)

    first = EVALUATION_SEED + 10_000 * args.seed
    person, learned = Person(spacing, period_s), Learned(classifier, spacing, period_s)
    by = {"person": run(person, first, args.episodes), "learned": run(learned, first, args.episodes)}
    rule = run(Rule(), first, args.episodes)
    decided = [classifier.hand_over_tick(a) for a in person.approaches]
    unseen = judge(person.approaches, decided, Settings().within_s)
    found = {
        "training_s": training_s,
        "threshold": classifier.threshold,
        "cross_validated": asdict(report) | {"recall_wilson": wilson(report.hits, report.presses)},
        "evaluation_scenes": asdict(unseen) | {"recall_wilson": wilson(unseen.hits, unseen.presses)},
    }
    for name, results in (by | {"rule": rule}).items():
        good = [r for r in results if r.success]
        found[name] = {
            "successes": len(good),
            "episodes": len(results),
            "wilson": wilson(len(good), len(results)),
            "median_steps": sorted(r.critical_steps for r in good)[len(good) // 2] if good else None,
            "never_handed_over": sum(r.critical_steps == 0 for r in results),
            "outcomes": [r.outcome.name for r in results],
            "handed_over_after": [r.steps - r.critical_steps for r in results],
        }
    found["ratio"] = found["learned"]["successes"] / max(1, found["person"]["successes"])
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
