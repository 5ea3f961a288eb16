"""What the RL token's width, depth and input layer are worth: the table of docs/results.md.

    . setup/env.sh && nice python3 bench/token_choice.py --demos demos/ethernet --steps 400 --seeds 2

Each variant is trained for the same number of steps on the same pictures, then judged as by `rlt train report`. With
--keep FILE variants that were trained before are not trained again. Labelled pictures (scenes.npz) are made where there
are none.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlt_ros.data.demos import Pictures
from rlt_ros.sim.scenes import grounding_scenes
from rlt_ros.sim.task import load_task
from rlt_ros.training import embeddings, frames, report
from rlt_ros.training.processes import Processes
from rlt_ros.training.token import Settings, TokenTraining
from rlt_ros.vla.backend import load_backend
from rlt_ros.vla.frozen import CHECKPOINTS


@dataclass(frozen=True)
class Variant:
    width: int  # 0: as wide as the embeddings
    layers: int
    middle: bool = False  # embeddings of the language trunk's middle layer, in place of its end


VARIANTS = {
    "as shipped": Variant(0, 2), "width 32": Variant(32, 2), "width 64": Variant(64, 2), "width 128": Variant(128, 2),
    "depth 1": Variant(0, 1), "depth 4": Variant(0, 4), "middle layer": Variant(0, 2, True),
}  # fmt: skip
COLUMNS = {
    "numbers": "numbers", "encoder, parameters": "parameters", "samples/s": "samples_per_s",
    "rebuilt: true / zeroed / other token": "rebuilt", "action chunk, R²": "action_r2", "pose, R²": "pose",
    "twist, R²": "twist", "offset x, mm": "x_mm", "offset y, mm": "y_mm", "yaw, rad": "yaw_rad",
}  # fmt: skip


class Middle:
    """A Pi0 that shows what comes out of the middle layer of its language trunk, in place of the last one."""

    def __init__(self, vla):
        self.vla, self.cameras, self.device = vla, vla.cameras, vla.device
        for name in ("image_size", "proprio_dim", "action_dim", "horizon", "embedding_dim", "image_tokens"):
            setattr(self, name, getattr(vla, name))
        layers = vla.model.model.vlm.language_model.layers
        layers[len(layers) // 2 - 1].register_forward_hook(self._keep)

    def _keep(self, _layer, _inputs, output) -> None:
        self.kept = output[0] if isinstance(output, tuple) else output

    def look(self, images: np.ndarray):
        """As Backend.look."""
        _, there, own = self.vla.look(images)
        return self.kept[:, : self.image_tokens].float(), there, own


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, default=Path("demos/ethernet"), help="default: demos/ethernet")
    parser.add_argument("--task", default="ethernet", help="default: ethernet")
    parser.add_argument("--model", type=Path, default=CHECKPOINTS / "ethernet", help="a Pi0 (default: the one shipped)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"of {', '.join(VARIANTS)} (default: all)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=400, help="of each (default: 400)")
    parser.add_argument("--batch", type=int, default=64, help="default: 64")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default: 2)")
    parser.add_argument("--scenes", type=int, default=4000, help="labelled pictures, where none are (default: 4000)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--keep", type=Path, help="file (.jsonl) of the trainings, which is read and added to")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    task, alone = load_task(args.task), Processes()
    vla = load_backend(args.model)
    samples = frames.read(args.demos, list(task.cameras), vla.cameras, vla.image_size, vla.horizon, vla.proprio_dim,
                          vla.action_dim, 2)  # fmt: skip
    setting = {"steps": args.steps, "batch": args.batch, "demos": samples.checksum}
    known = {}
    if args.keep and args.keep.exists():
        for one in map(json.loads, args.keep.read_text().splitlines()):
            if all(one[name] == value for name, value in setting.items()):
                known[one["variant"], one["seed"]] = one
    wanted = [(name, seed) for seed in range(args.seeds) for name in args.variants]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        row = progress.add_task("labelled pictures", total=len(wanted) * args.steps,
                                completed=sum(job in known for job in wanted) * args.steps)  # fmt: skip
        grounding_scenes(args.demos / "scenes.npz", args.scenes)
        pictures = Scenes(args.demos / "scenes.npz", samples.order, args.scenes)
        for middle in (False, True):
            jobs = [job for job in wanted if job not in known and VARIANTS[job[0]].middle == middle]
            if middle and not jobs:
                continue
            progress.update(row, description="embeddings")
            looked = Middle(vla) if middle else vla
            seen, seen_scenes = (embeddings.embeddings(looked, some, "", None, alone) for some in (samples, pictures))
            for name, seed in jobs:
                progress.update(row, description=f"{name}, seed {seed}")
                one = trained(VARIANTS[name], seed, args, looked, samples, seen, lambda: progress.advance(row))
                found = judged(one, samples, task, seen_scenes, pictures.offsets)
                known[name, seed] = setting | {"variant": name, "seed": seed} | found
                if args.keep:
                    with args.keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(known[name, seed]) + "\n")
            if not middle:
                rows = report.evenly(samples)
                pooled = seen[rows].astype(np.float32).mean(1), seen_scenes.astype(np.float32).mean(1)
                known["mean-pooled", 0] = linear(*map(torch.from_numpy, pooled), rows, samples, task, pictures.offsets)
    train, held = samples.split()
    print(f"{len(train)} pictures of {samples.success.sum()} demonstrations and {len(held)} held out,"
          f" {len(pictures)} labelled; {args.steps} steps of {args.batch}, {args.seeds} seeds: mean (least-most)\n")
    print(table(args.variants, known))
    return 0


class Scenes:
    """Labelled pictures as the embeddings' code takes frames, the last `count` of them; `offsets` [n, 4]."""

    def __init__(self, path: Path, order: list[int], count: int):
        self._pictures, self._order = Pictures.find(path), order
        self._first = max(0, self._pictures.shape[0] - count)
        with np.load(path) as file:
            self.offsets = file["offsets"][self._first :]

    def __len__(self) -> int:
        return len(self.offsets)

    def images(self, rows) -> np.ndarray:
        return np.stack([self._pictures[self._first + int(row)][self._order] for row in rows])

    def where(self, row: int) -> str:
        return f"scene {self._first + row}"


def trained(variant: Variant, seed: int, args, vla, samples, seen, advance) -> TokenTraining:
    """A token of that variant, after args.steps."""
    settings = Settings(args.steps, batch=args.batch, seed=seed, width=variant.width, layers=variant.layers)
    training = TokenTraining(vla, samples, samples.split()[0], settings, seen)
    while training.done < 1:
        training.update()
        advance()
    training.finish()
    return training


@torch.no_grad()
def judged(training: TokenTraining, samples, task, seen_scenes: np.ndarray, offsets: np.ndarray) -> dict:
    """What is in the token, as the report has it."""
    token, rows = training.token, report.evenly(samples)

    def encode(seen: np.ndarray) -> torch.Tensor:
        parts = (torch.from_numpy(np.array(seen[i : i + 64])).float() for i in range(0, len(seen), 64))
        return torch.cat([token.encode(part) for part in parts])

    subject = report.Subject(training.policy, token, True, samples, training.seen, [])
    rebuilt = report.rebuilt(subject, samples.split()[1], samples.targets(np.arange(len(samples))), 0)
    read = linear(encode(training.embeddings[rows]), encode(seen_scenes), rows, samples, task, offsets)
    kept = ("e_rl", "position", "projection", "encoder.")  # what the nodes run
    return read | rebuilt | {
        "parameters": sum(p.numel() for name, p in token.named_parameters() if name.startswith(kept)),
        "samples_per_s": training.step * training.settings.batch / training.elapsed,
    }  # fmt: skip


def linear(x, x_scenes, rows: np.ndarray, samples, task, offsets: np.ndarray) -> dict:
    """The linear maps from features of rows and of scenes."""
    train, held = samples.split()
    parts = [(part.key, part.size) for part in task.state]
    read = report.probes(x.double(), samples, rows, samples.targets(rows), parts, np.isin(rows, train),
                         np.isin(rows, held))  # fmt: skip
    return {"numbers": read["width"], "action_r2": read["action_r2"]} | read["state_r2"] | report.offset_error(
        x_scenes.double(), offsets
    )


def table(variants: list[str], known: dict) -> str:
    """Markdown, one row a variant."""
    rows = [f"| | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name in [*variants, "mean-pooled"]:
        found = [one for (variant, _), one in sorted(known.items()) if variant == name]
        rows.append(f"| {name} | {' | '.join(cell(key, found) for key in COLUMNS.values())} |")
    return "\n".join(rows) + "\n"


def cell(key: str, found: list[dict]) -> str:
    if key == "rebuilt":
        return " / ".join(cell(f"reconstruction_{kind}", found) for kind in ("true", "zeroed", "shuffled"))
    values = [one[key] for one in found if one.get(key) is not None]
    if not values:
        return "-"
    show = (lambda value: f"{value:.0f}") if key in ("numbers", "parameters", "samples_per_s") else "{:.3g}".format
    if key in ("numbers", "parameters", "samples_per_s") or len(values) == 1 or key.startswith("reconstruction"):
        return show(sum(values) / len(values))
    return f"{show(sum(values) / len(values))} ({show(min(values))}-{show(max(values))})"


if __name__ == "__main__":
    raise SystemExit(main())
