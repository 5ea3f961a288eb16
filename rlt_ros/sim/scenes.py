"""Still pictures of plug and jack with where they are: what the small VLA's grounding stage learns from."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlt_ros.sim.ethernet import EthernetInsertion, scene


def _scenes(arguments: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, count = arguments
    env, rng = EthernetInsertion(), np.random.default_rng([seed, 7])
    made = [scene(env, rng) for _ in range(count)]
    env.close()
    return np.stack([m[0] for m in made]), np.stack([m[1] for m in made])


def grounding_scenes(
    path: Path, count: int, seed: int = 0, processes: int = 2, progress: Callable[[int, int, dict], None] | None = None
):
    """``count`` pictures of plug and jack with labels, made once and kept in ``path`` (.npz): images, offsets.

    ValueError when there are others in ``path``, or when it cannot be read.
    """
    if path.exists():
        return _read(path, count, seed)
    jobs = [(seed * 100_000 + i, min(250, count - i)) for i in range(0, count, 250)]
    images, offsets = [], []
    with mp.get_context("spawn").Pool(processes) as pool:
        for some_images, some_offsets in pool.imap(_scenes, jobs):
            images.append(some_images)
            offsets.append(some_offsets)
            if progress:
                progress(250 * len(images), count, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"images": np.concatenate(images), "offsets": np.concatenate(offsets)}
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **made, seed=np.asarray(seed))
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return made["images"], made["offsets"]


def _read(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            images, offsets = file["images"], file["offsets"]
            has = len(images), int(file["seed"]) if "seed" in file.files else 0  # they once had none, and were of 0
    except Exception as error:  # zip and numpy each have their own
        raise ValueError(f"{path}: cannot be read ({error}); delete it, and it is made again") from error
    if has != (count, seed):
        raise ValueError(f"{path}: has {has[0]} scenes of seed {has[1]}, expected {count} of seed {seed}; delete it, and"
                         " they are made, or ask for those that are there")  # fmt: skip
    return images, offsets
