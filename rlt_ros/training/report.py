"""What an RL token is worth: what its decoder rebuilds, and what a linear map reads from it.

The same linear maps read from what a token competes with: the mean of the VLA's embeddings, and a ResNet's features of
the pictures. All are fitted on the episodes that the token was trained on and tested on those that were held out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlt_ros.core.rl_token import RLToken
from rlt_ros.data.demos import Pictures
from rlt_ros.training import embeddings as cache
from rlt_ros.training import resnet
from rlt_ros.training.frames import Frames
from rlt_ros.training.processes import Processes
from rlt_ros.vla.backend import Backend

_PER_EPISODE, _ROWS = 25, 12_000  # rows of an episode, and of all, that the maps see
_SCENES = 8000
_RIDGES = tuple(10.0**i for i in range(-5, 3))
OFFSETS, _SCALE = ("x_mm", "y_mm", "height_mm", "yaw_rad"), np.array([1e3, 1e3, 1e3, 1.0])
TOKEN, POOLED, RESNET = "RL token", "mean-pooled embeddings", "ResNet on images"


@dataclass
class Subject:
    """What is judged, and on what.

    Attributes:
        token: on the processes' device; `decoder` says whether its decoder and action readout are trained ones.
        seen: rows -> embeddings float32 [n, M, E].
        state: name and size of each part of the proprioception.
        scenes: ``.npz`` of labelled pictures (images, offsets in m and rad), or None.
    """

    policy: Backend
    token: RLToken
    decoder: bool
    frames: Frames
    seen: Callable[[np.ndarray], Tensor]
    state: Sequence[tuple[str, int]]
    scenes: Path | None = None
    dtype: str = "float32"


def make(
    subject: Subject, processes: Processes, resnet_steps: int = 400, seed: int = 0,
    progress: Callable[[str], cache.Progress] | None = None,
) -> dict:  # fmt: skip
    """The report: plain numbers, and `notes` on what could not be had. progress(name) begins a bar."""
    bar = progress or (lambda name: None)
    frames, notes = subject.frames, []
    train, test = frames.split()
    if not len(test):
        test = train
        notes.append("One successful episode: the maps are tested on what they were fitted on.")
    rows = evenly(frames)
    fit, held = np.isin(rows, train), np.isin(rows, test)
    actions = frames.targets(np.arange(len(frames)))
    found = {"samples": {"episodes": len(frames.files), "failed": int((~frames.success).sum()),
                         "fitted": int(fit.sum()), "held_out": int(held.sum())}}  # fmt: skip
    if subject.decoder:
        found |= rebuilt(subject, test, actions, seed)
    else:
        notes.append("No reconstruction: the decoder of this token was not kept (OUT/training).")
    net = resnet.trained(frames, train, actions, resnet_steps, seed, str(processes.device), bar("ResNet"))
    trained = f"trained here for {resnet_steps} steps of 32 on the action chunk" if resnet_steps else "random weights"
    notes.append(f"The ResNet has ten layers and was not pre-trained: {trained}.")
    features = {name: [] for name in (TOKEN, POOLED, RESNET)}
    show = bar("features")
    with torch.no_grad():
        for first in range(0, len(rows), 64):
            some = rows[first : first + 64]
            read_features(subject, net, subject.seen(some), frames.images(some), features)
            if show:
                show(first + len(some), len(rows), {})
    found["features"] = {}
    offsets, spread = read_offsets(subject, net, processes, bar("scenes"), notes)
    for name, parts in features.items():
        read = probes(torch.cat(parts).double(), frames, rows, actions[rows], subject.state, fit, held)
        found["features"][name] = read | ({"offset": offsets[name]} if offsets else {})
    if offsets:
        found["offset_spread"] = spread
    if found["features"][TOKEN]["success_auc"] is None:
        notes.append(f"No prediction of success: {int((~frames.success).sum())} of {len(frames.files)} episodes failed,"
                     " at least 2 of each outcome are needed.")  # fmt: skip
    return found | {"notes": notes}


def probes(
    x: Tensor, frames: Frames, rows: np.ndarray, actions: np.ndarray, state: Sequence[tuple[str, int]],
    fit: np.ndarray, held: np.ndarray,
) -> dict:  # fmt: skip
    """What a linear map reads from features x [n, F] of some rows, with their actions [n, H*A] as Frames.targets."""
    return {
        "width": x.shape[1],
        "action_r2": r2(x, torch.from_numpy(actions).double(), fit, held),
        "state_r2": state_r2(x, frames.proprio[rows], state, fit, held),
        "success_auc": success_auc(x, frames.episode[rows], frames.success[frames.episode[rows]]),
    }


def evenly(frames: Frames) -> np.ndarray:
    """Some rows of each episode, failed ones too, in the frames' order."""
    most = max(2, min(_PER_EPISODE, _ROWS // len(frames.files)))
    chosen = []
    for number in range(len(frames.files)):
        there = np.flatnonzero(frames.episode == number)
        chosen.append(there[np.unique(np.linspace(0, len(there) - 1, min(most, len(there))).astype(int))])
    return np.concatenate(chosen)


@torch.no_grad()
def rebuilt(subject: Subject, test: np.ndarray, actions: np.ndarray, seed: int) -> dict[str, float]:
    """The decoder's squared error on held-out pictures with the true, a zeroed and another picture's token (its other
    inputs hidden, so that all must come from the token), and R² of the action readout that the token was trained with.
    """
    token = subject.token
    # In no order: the picture before is almost the same one.
    some = np.random.default_rng(seed).permutation(test)[:512]
    seen = torch.cat([subject.seen(some[i : i + 64]) for i in range(0, len(some), 64)])
    target, there = token.normalise(seen), cache.there(seen)
    mine = torch.cat([token.encode(seen[i : i + 64], there[i : i + 64]) for i in range(0, len(some), 64)])
    found = {}
    for name, code in (("true", mine), ("zeroed", torch.zeros_like(mine)), ("shuffled", mine.roll(1, 0))):
        errors = [(token.decode(code[i : i + 64], target[i : i + 64], 1.0) - target[i : i + 64]).square().mean(2)
                  for i in range(0, len(some), 64)]  # fmt: skip
        found[f"reconstruction_{name}"] = float(torch.cat(errors)[there].mean())
    if token.config.action_weight:
        wanted = torch.from_numpy(actions[some]).to(mine.device)
        left = (token.action_head(mine) - wanted).square().sum()
        found["action_readout_r2"] = float(1 - left / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-12))
    return found


def read_features(subject: Subject, net, embeddings: Tensor, images: np.ndarray, into: dict[str, list[Tensor]]) -> None:
    """Add [n, width] of each kind."""
    there = cache.there(embeddings)
    into[TOKEN].append(subject.token.encode(embeddings, there).cpu())
    into[POOLED].append((embeddings.sum(1) / there.sum(1, keepdim=True).clamp_min(1)).cpu())
    into[RESNET].append(net.read(images))


def read_offsets(subject, net, processes, show, notes) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Error of the offset that is read off each kind of features (:func:`offset_error`), and the offsets' own spread.

    Empty where there are no labelled pictures.
    """
    if subject.scenes is None or not subject.scenes.is_file():
        notes.append("No offsets: there are no labelled pictures (scenes.npz) beside these demonstrations.")
        return {}, {}
    pictures = Pictures.find(subject.scenes)
    with np.load(subject.scenes) as file:
        offsets = file["offsets"]
    size = subject.policy.image_size
    if pictures.shape[1:4] != (len(subject.frames.order), size, size):
        notes.append(f"No offsets: {subject.scenes} has pictures {pictures.shape[1:]}, the VLA takes"
                     f" {len(subject.frames.order)} of {size} px.")  # fmt: skip
        return {}, {}
    last = range(max(0, pictures.shape[0] - _SCENES), pictures.shape[0])
    features = {name: [] for name in (TOKEN, POOLED, RESNET)}
    with torch.no_grad():
        for first in range(last.start, last.stop, 64):
            images = np.stack([pictures[i] for i in range(first, min(first + 64, last.stop))])[:, subject.frames.order]
            read_features(subject, net, cache.embed(subject.policy, images, processes, subject.dtype), images, features)
            if show:
                show(first + len(images) - last.start, len(last), {})
    offsets = offsets[last.start :]
    fit, close = critical(offsets)
    if fit.sum() < 20 or close.sum() < 5:
        notes.append(f"No offsets: only {int(fit.sum())} + {int(close.sum())} labelled pictures are near the hole.")
        return {}, {}
    found = {name: offset_error(torch.cat(parts).double(), offsets) for name, parts in features.items()}
    return found, dict(zip(OFFSETS, (offsets[close].std(0, ddof=1) * _SCALE).tolist(), strict=True))


def critical(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of labelled pictures with offsets [n, 4] (m, rad) a map is fitted on, and which it is tested on: near the
    hole, the last fifth of them within 2 mm."""
    near = offsets[:, 2] < 0.006  # metres above the mouth: the critical phase
    fit = near & (np.arange(len(offsets)) < 0.8 * len(offsets))
    return fit, near & ~fit & (np.abs(offsets[:, :2]).max(1) < 0.002)


def offset_error(x: Tensor, offsets: np.ndarray) -> dict[str, float]:
    """Root mean square error of what a linear map of features x [n, F] says of the offsets, by OFFSETS."""
    fit, close = critical(offsets)
    y = torch.from_numpy(offsets).double()
    error = (ridge(x, y, fit)[close] - y[close]).square().mean(0).sqrt().numpy() * _SCALE
    return dict(zip(OFFSETS, error.tolist(), strict=True))


# --- what a linear map reads ----------------------------------


def ridge(x: Tensor, y: Tensor, fit: np.ndarray) -> Tensor:
    """Predictions [n, K] of a ridge regression from x [n, F] to y [n, K], fitted where `fit`.

    The last fifth of the fitted rows chooses the ridge: rows are in order of episodes, so that it is of others.
    """
    chosen = torch.from_numpy(np.flatnonzero(fit))
    some = chosen[: max(1, int(0.8 * len(chosen)))]
    rest = chosen[len(some) :] if len(chosen) > len(some) else some
    trials = [(float((predict(weight) - y)[rest].square().mean()), weight_of)
              for weight_of, predict, weight in _solutions(x, y, some)]  # fmt: skip
    best = min(trials)[1]
    return next(predict(weight) for weight_of, predict, weight in _solutions(x, y, chosen) if weight_of == best)


def _solutions(x: Tensor, y: Tensor, rows: Tensor):
    """(ridge, function of a solution to predictions, solution) for each of _RIDGES."""
    middle, target = x[rows].mean(0), y[rows].mean(0)
    spread = x[rows].std(0, unbiased=False)
    z = (x - middle) / torch.where(spread > 1e-9, spread, torch.ones_like(spread))
    a = z[rows]
    values, vectors = torch.linalg.eigh(a.T @ a / len(rows))
    moved = vectors.T @ (a.T @ (y[rows] - target)) / len(rows)
    for weight_of in _RIDGES:
        yield weight_of, lambda w: z @ w + target, vectors @ (moved / (values.clamp_min(0) + weight_of)[:, None])


def r2(x: Tensor, y: Tensor, fit: np.ndarray, test: np.ndarray) -> float | None:
    """Share of the held-out variance of y [n, K] that a linear map of x explains; None when there is none."""
    total = (y[test] - y[fit].mean(0)).square().sum()
    if float(total) < 1e-9:
        return None
    return float(1 - (ridge(x, y, fit)[test] - y[test]).square().sum() / total)


def state_r2(
    x: Tensor, proprio: np.ndarray, parts: Sequence[tuple[str, int]], fit: np.ndarray, test: np.ndarray
) -> dict[str, float | None]:
    """The same of each part of the proprioception, every value in units of its spread."""
    found, start = {}, 0
    for name, size in parts:
        y = torch.from_numpy(proprio[:, start : start + size]).double()
        start += size
        spread = y[fit].std(0, unbiased=False)
        moving = spread > 1e-9
        found[name] = r2(x, y[:, moving] / spread[moving], fit, test) if bool(moving.any()) else None
    return found


def success_auc(x: Tensor, episode: np.ndarray, good: np.ndarray) -> float | None:
    """How often a successful episode is ranked over a failed one, by the mean of what is read off its pictures.

    good [n]: of each row's episode.  Episodes are held out in up to five folds.  None with fewer than 2 of an outcome.
    """
    outcome = {number: bool(good[episode == number][0]) for number in np.unique(episode)}
    kinds = [[n for n, won in outcome.items() if won], [n for n, won in outcome.items() if not won]]
    folds = min(5, *map(len, kinds))
    if folds < 2:
        return None
    fold = {number: i % folds for kind in kinds for i, number in enumerate(kind)}
    of_row = np.asarray([fold[number] for number in episode])
    y = torch.from_numpy(good.astype(np.float64))[:, None]
    ranked = []
    for one in range(folds):
        read = ridge(x, y, of_row != one)[:, 0].numpy()
        # Of one fold only: the scores of another were made by another map.
        won, lost = (np.asarray([read[episode == n].mean() for n in kind if fold[n] == one]) for kind in kinds)
        ranked.append((won[:, None] > lost) + 0.5 * (won[:, None] == lost))
    return float(np.concatenate([pairs.ravel() for pairs in ranked]).mean())


# --- on paper ----------------------------------


def markdown(report: dict) -> str:
    """The report as one table, with what is to be known beside it."""
    kinds = report["features"]
    rows = [("numbers", [str(kind["width"]) for kind in kinds.values()])]
    number = lambda value: "-" if value is None else f"{value:.3g}"  # noqa: E731
    rows.append(("action chunk, R²", [number(kind["action_r2"]) for kind in kinds.values()]))
    for part in kinds[TOKEN]["state_r2"]:
        rows.append((f"{part}, R²", [number(kind["state_r2"][part]) for kind in kinds.values()]))
    rows.append(("success, AUC", [number(kind["success_auc"]) for kind in kinds.values()]))
    for name, spread in report.get("offset_spread", {}).items():
        axis, _, unit = name.rpartition("_")
        label = f"offset {axis}, error in {unit} (spread {number(spread)})"
        rows.append((label, [number(kind["offset"][name]) for kind in kinds.values()]))
    lines = ["# What the RL token is worth", "", f"| read by a linear map, held out | {' | '.join(kinds)} |",
             "|---|" + "---|" * len(kinds)]  # fmt: skip
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows]
    samples = report["samples"]
    lines += ["", f"{samples['fitted']} pictures fitted, {samples['held_out']} held out, of {samples['episodes']}"
                  f" episodes ({samples['failed']} failed)."]  # fmt: skip
    if "reconstruction_true" in report:
        true, zeroed, shuffled = (report[f"reconstruction_{name}"] for name in ("true", "zeroed", "shuffled"))
        lines += ["", f"Squared error of the embeddings that the decoder rebuilds: {number(true)} with the true token,"
                      f" {number(zeroed)} with a zeroed one, {number(shuffled)} with another picture's; 1 is"
                      " about their variance."]  # fmt: skip
    if "action_readout_r2" in report:
        lines += [f"R² of the action readout that the token was trained with: {number(report['action_readout_r2'])}."]
    return "\n".join([*lines, "", *report["notes"], ""])


def write(report: dict, out: Path) -> None:
    """OUT/token_report.json and .md."""
    for name, text in (("token_report.json", json.dumps(report, indent=1) + "\n"),
                       ("token_report.md", markdown(report))):  # fmt: skip
        part = out / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
