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
    """``count`` pictures of plug and jack with labels, made once and kept in ``path`` (.npz): images, offsets."""
    if path.exists():
        with np.load(path) as file:
            return file["images"], file["offsets"]
    jobs = [(seed * 100_000 + i, min(250, count - i)) for i in range(0, count, 250)]
    images, offsets = [], []
    with mp.get_context("spawn").Pool(processes) as pool:
        for some_images, some_offsets in pool.imap(_scenes, jobs):
            images.append(some_images)
            offsets.append(some_offsets)
            if progress:
                progress(250 * len(images), count, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=np.concatenate(images), offsets=np.concatenate(offsets))
    return np.concatenate(images), np.concatenate(offsets)
