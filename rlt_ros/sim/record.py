"""Record demonstrations by the task's scripted demonstrator, as :mod:`rlt_ros.data.demos` describes them."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlt_ros.sim.demonstrator import Demonstrator
from rlt_ros.sim.task import Task, TaskEnv


def record_episode(env: TaskEnv, seed: int, stride: int = 5, limit: int = 900) -> dict[str, np.ndarray]:
    """One demonstration by the task's scripted demonstrator, with a picture every ``stride`` ticks."""
    env.reset(seed)
    person = Demonstrator(env, np.random.default_rng([seed, 1]))
    cameras = list(env.task.cameras)
    images, ticks, proprio, actions, critical = [], [], [], [], -1
    for tick in range(limit):
        if critical < 0 and env.critical():
            critical = tick
        if tick % stride == 0:
            shot = env.images()
            images.append(np.stack([shot[c] for c in cameras]))
            ticks.append(tick)
        proprio.append(env.proprio())
        actions.append(person.step(env))
        env.step(actions[-1])
        if env.success():
            break
    return dict(
        images=np.stack(images),
        frame_tick=np.asarray(ticks),
        proprio=np.stack(proprio),
        action=np.stack(actions),
        success=np.asarray(env.success()),
        critical_tick=np.asarray(critical),
    )


def _record(arguments: tuple[Task, list[int], Path]) -> None:
    task, seeds, folder = arguments
    env = TaskEnv(task)
    folder.mkdir(parents=True, exist_ok=True)  # once there is something to record
    for seed in seeds:
        path = folder / f"episode_{seed:06d}.npz"
        if not path.exists():
            episode = record_episode(env, seed)
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, **episode)
            part.rename(path)
    env.close()


def record(
    task: Task,
    folder: Path,
    episodes: int,
    seed: int = 0,
    processes: int = 2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Record ``episodes`` demonstrations with seeds from ``seed`` on; those already there are kept."""
    seeds = list(range(seed, seed + episodes))
    jobs = [(task, seeds[i : i + 4], folder) for i in range(0, episodes, 4)]
    with mp.get_context("spawn").Pool(processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(_record, jobs), 1):
            if progress:
                progress(min(4 * done, episodes))
