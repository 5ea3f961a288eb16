"""Samples of demonstrations: a row a picture, with the proprioception then and the actions from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlt_ros.data import demos
from rlt_ros.vla.frozen import fit_image


@dataclass(eq=False)
class Frames:
    """N rows in the order of files and pictures. Numbers are in memory, pictures stay in their files.

    Attributes:
        files: of the E episodes.
        episode [N], frame [N], tick [N]: which file, which picture of it, at which control tick.
        proprio: float32 [N, P], SI.
        actions: float32 [N, H, A], normalised as the task's; zeros (no motion) past the end.
        success: bool [E].
        pictures, order, size: see :meth:`images`.
        checksum: of all that pictures are made of.
    """

    files: list[Path]
    episode: np.ndarray
    frame: np.ndarray
    tick: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    pictures: list[demos.Pictures]
    order: list[int]
    size: int
    checksum: str

    def __len__(self) -> int:
        return len(self.episode)

    def where(self, row: int) -> str:
        """Episode's file, picture and tick of a row, for messages."""
        return f"{self.files[self.episode[row]]}, picture {self.frame[row]} (tick {self.tick[row]})"

    def images(self, rows: Sequence[int]) -> np.ndarray:
        """Pictures uint8 [n, cameras, size, size, 3] of `rows`, cameras in the VLA's order, fitted as on the robot."""
        out = np.empty((len(rows), len(self.order), self.size, self.size, 3), np.uint8)
        for i, row in enumerate(rows):
            shot = self.pictures[self.episode[row]][int(self.frame[row])][self.order]
            if shot.shape[1] != self.size:
                shot = np.stack([fit_image(picture, self.size) for picture in shot])
            out[i] = shot
        return out

    @cached_property
    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [A] of the actions of the episodes that succeeded."""
        good = self.actions[self.success[self.episode]]
        return good.mean((0, 1)), good.std((0, 1)) + 1e-3  # as of a VLA: what never moved counts little

    def targets(self, rows: Sequence[int]) -> np.ndarray:
        """The action chunks of `rows` in units of their spread, float32 [n, H*A]."""
        mean, std = self.spread
        return ((self.actions[rows] - mean) / std).reshape(len(rows), -1)

    def split(self, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows that are held out: of each `every`-th successful episode, at least of one.

        Episodes that failed are in neither; nothing is held out of a single one.
        """
        good = np.flatnonzero(self.success)
        held = good[every - 1 :: every] if len(good) >= every else good[-1:] if len(good) > 1 else good[:0]
        apart = np.isin(self.episode, held)
        return np.flatnonzero(np.isin(self.episode, good) & ~apart), np.flatnonzero(apart)


def read(
    folder: Path, have: Sequence[str], want: Sequence[str], size: int, horizon: int, proprio_dim: int, action_dim: int,
    every: int = 2,
) -> Frames:  # fmt: skip
    """The frames of a folder of demonstrations, with each `every`-th picture of an episode.

    have: the task's cameras, in whose order the pictures are.  want: the VLA's cameras.  size: side of the VLA's
    pictures in px; others are fitted.  horizon: H.  ValueError names file, tick and value of what does not fit: none
    there, none successful, cameras that are missing, other sizes, NaN, no ticks, no pictures.
    """
    if missing := [name for name in want if name not in have]:
        raise ValueError(f"{folder}: the VLA wants camera {missing[0]!r}, the task of these demonstrations has"
                         f" {', '.join(have)}; take demonstrations or a VLA of the other camera set")
    files, columns, success, pictures = demos.paths(folder), [], [], []
    digest = hashlib.sha256(f"{every} {[have.index(name) for name in want]} {size}".encode())
    for number, path in enumerate(files):
        episode, shots = demos.read(path, pictures=False), demos.Pictures.find(path)
        _check(path, episode, shots, len(have), proprio_dim, action_dim)
        kept = np.arange(0, shots.shape[0], every)
        ticks = np.asarray(episode["frame_tick"])[kept]
        action = np.asarray(episode["action"], np.float32)
        held = np.concatenate([action, np.zeros((horizon, action_dim), np.float32)])
        proprio = np.asarray(episode["proprio"], np.float32)[ticks]
        chunks = held[ticks[:, None] + np.arange(horizon)]
        columns.append((np.full(len(kept), number), kept, ticks, proprio, chunks))
        success.append(bool(episode["success"]))
        pictures.append(shots)
        digest.update(f"{path.name}:{shots.checksum}\n".encode())
    if not any(success):
        raise ValueError(f"{folder}: none of {len(files)} demonstrations succeeded; there is nothing to learn from")
    columns = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    order = [have.index(name) for name in want]
    return Frames(files, *columns, np.asarray(success), pictures, order, size, digest.hexdigest())


def _check(
    path: Path, episode: dict[str, np.ndarray], shots: demos.Pictures, cameras: int, proprio_dim: int, action_dim: int
) -> None:
    """ValueError when an episode cannot be learned from."""
    proprio, action, ticks = episode["proprio"], episode["action"], np.asarray(episode["frame_tick"])
    if not len(action) or not shots.shape[0]:
        raise ValueError(f"{path}: an empty episode, with {len(action)} ticks and {shots.shape[0]} pictures; delete it")
    if shots.shape[1] != cameras:
        raise ValueError(f"{path}: pictures of {shots.shape[1]} cameras, expected the task's {cameras};"
                         " these demonstrations are of another camera set")
    for name, values, width in (("proprio", proprio, proprio_dim), ("action", action, action_dim)):
        if values.ndim != 2 or values.shape[1] != width or len(values) != len(action):
            raise ValueError(f"{path}: {name} is {values.shape}, expected {(len(action), width)};"
                             " these demonstrations are of another robot or task than the VLA")
        if not np.isfinite(values).all():
            tick, column = np.argwhere(~np.isfinite(values))[0]
            frame = int(np.searchsorted(ticks, tick, "right")) - 1
            raise ValueError(f"{path}, picture {frame}, tick {tick}: {name}[{column}] is {values[tick, column]},"
                             " expected a finite number; delete the episode (`rlt demos inspect` finds all such)")
    if len(ticks) != shots.shape[0] or ticks.min() < 0 or ticks.max() >= len(action):
        raise ValueError(f"{path}: {len(ticks)} ticks {ticks.min()} to {ticks.max()} of {shots.shape[0]} pictures,"
                         f" expected one each within 0 to {len(action) - 1}; delete it and record it again")
