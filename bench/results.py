"""Measure the figures of docs/results.md: base policy, demonstrator, practice with several seeds; draw and tabulate.

    . setup/env.sh && python3 bench/results.py --seeds 0 1 2 --minutes 10 --folder sessions/results

What is there already is not measured again, so that it can be stopped and gone on with. Nothing else should run on the
machine:
practice is in real time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from rlt_ros.data.episodes import read_episodes

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of critical phase at most, a seed (default: 10)")
    parser.add_argument("--realtime", action="store_true", help="refuse to practise without real-time priorities")
    parser.add_argument("--episodes", type=int, default=250, help="of practice at most, a seed (default: 250)")
    parser.add_argument("--eval-episodes", type=int, default=50, help="of each evaluation (default: 50)")
    parser.add_argument("--folder", type=Path, default=ROOT / "sessions" / "results", help="sessions and measurements")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    found = {name: evaluate(args, name, name) for name in ("base", "demonstrator")}
    for seed in args.seeds:
        session = args.folder / f"seed{seed}"
        if not (session / "practised").exists():
            # fmt: off
            run("rlt", "practice", "--no-eval", "--session", session, "--seed", seed, "--minutes", args.minutes,
                "--episodes", args.episodes, *(["--realtime"] if args.realtime else []))
            # fmt: on
            (session / "practised").touch()
        found[f"seed {seed}"] = evaluate(args, f"seed{seed}", session)
    table = write_table(found)
    print(table)
    draw(found, {seed: read_episodes(args.folder / f"seed{seed}") for seed in args.seeds}, ROOT / "docs" / "result.png")
    return 0


def run(*command) -> None:
    subprocess.run([str(c) for c in command], check=True)


def evaluate(args, name: str, policy) -> dict:
    """The result of `rlt eval`, measured once."""
    path = args.folder / f"eval_{name}.json"
    if not path.exists():
        run("rlt", "eval", "--policy", policy, "--episodes", args.eval_episodes, "--seed", 0, "--json", path)
    return json.loads(path.read_text())


def write_table(found: dict) -> str:
    """Markdown, one row a policy."""
    rows = [
        "| policy | success (95 % interval) | median ticks to success, critical phase | whole episode "
        "| successes in 10 min |",
        "|---|---|---|---|---|",
    ]
    for name, r in found.items():
        rate = f"{r['successes']}/{r['episodes']} = {100 * r['success_rate']:.0f} %"
        rate += f" ({100 * r['wilson_low']:.0f}-{100 * r['wilson_high']:.0f})"
        number = lambda v: "-" if v is None else f"{v:.0f}"  # noqa: E731
        rows.append(
            f"| {name} | {rate} | {number(r['median_steps_success'])} | {number(r['median_episode_steps_success'])} | "
            f"{r['throughput_per_10min']:.0f} |"
        )
    return "\n".join(rows) + "\n"


def draw(found: dict, practice: dict, path: Path) -> None:
    """Left: how practice went. Right: success and speed before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), width_ratios=(2, 1, 1))
    for seed, episodes in practice.items():
        minutes = np.cumsum([e.critical_steps for e in episodes]) / 3000
        good = np.array([e.outcome == "success" for e in episodes], float)
        smooth = [good[max(0, i - 9) : i + 1].mean() for i in range(len(good))]
        left.plot(minutes, smooth, label=f"seed {seed}")
    left.axhline(found["base"]["success_rate"], color="grey", linestyle="--", label="frozen VLA, evaluated")
    left.set(xlabel="minutes of critical phase practised", ylabel="success, last 10 episodes", ylim=(0, 1.03))
    left.legend(loc="lower right", fontsize=8)
    names = list(found)
    colours = ["grey", "tan"] + ["tab:blue"] * (len(names) - 2)
    rates = [found[n]["success_rate"] for n in names]
    low = [max(0.0, r - found[n]["wilson_low"]) for r, n in zip(rates, names)]
    high = [max(0.0, found[n]["wilson_high"] - r) for r, n in zip(rates, names)]
    middle.bar(names, rates, color=colours, yerr=[low, high], capsize=3)
    middle.set(ylabel="success (95 % Wilson)", ylim=(0, 1.03))
    right.bar(names, [found[n]["median_steps_success"] or 0 for n in names], color=colours)
    right.set(ylabel="median ticks to success")
    for axis in (middle, right):
        axis.tick_params(axis="x", rotation=40)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
