"""Demonstrations of a few pictures, and a VLA of a few numbers with the methods that training uses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlt_ros.data import demos
from rlt_ros.training import frames as module

CAMERAS, SIZE, HORIZON, PROPRIO, ACTION = ["wrist", "base"], 16, 5, 14, 4


class Eyes(nn.Module):
    """A VLA in little: 6 embeddings of 16 numbers a camera, and a chunk of 5 actions from their mean.

    `absent`: how many of the last embeddings are not there.
    """

    embedding_dim, image_tokens, image_size, horizon, action_dim = 16, 12, SIZE, HORIZON, ACTION
    cameras, proprio_dim, device, absent = CAMERAS, PROPRIO, torch.device("cpu"), 0

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.model = nn.ModuleDict({"q_proj": nn.Linear(8, 16), "head": nn.Linear(16, HORIZON * ACTION)})
        self.register_buffer("action_mean", torch.zeros(ACTION), persistent=False)
        self.register_buffer("action_std", torch.full((ACTION,), 0.5), persistent=False)
        self.looked = 0

    def pixels(self, images):
        return torch.as_tensor(images).float() / 127.5 - 1.0

    def look(self, images):
        _, z = self.prefix(self.pixels(images))
        there = torch.ones(z.shape[:2], dtype=torch.bool)
        there[:, z.shape[1] - self.absent :] = False
        return z, there, None

    def prefix(self, pixels):
        self.looked += len(pixels)
        columns = pixels.mean((2, 4)).reshape(len(pixels), 4, 8)
        z = torch.tanh(self.model["q_proj"](torch.cat([columns, 2 * columns, -columns], 1)))
        return z.mean(1), z

    def flow_loss(self, prefix, proprio, actions):
        said = self.model["head"](prefix)
        return (said - actions.flatten(1) + 0.1 * torch.randn_like(said)).square().mean()

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "eyes.pt")


def write_demos(
    folder: Path, episodes: int = 4, failed: tuple[int, ...] = (), ticks: int = 60, cameras: int = 2, size: int = SIZE,
    pictures: int = 12, **changes,
) -> Path:  # fmt: skip
    """Demonstrations whose pictures, state and actions go with each other; changes: of all episodes' arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(episodes):
        random, at = np.random.default_rng(number), np.arange(ticks)
        wave = np.stack([np.sin(at / 9 + i + number) for i in range(ACTION)], 1).astype(np.float32)
        proprio = np.concatenate([wave, random.normal(size=(ticks, PROPRIO - ACTION))], 1).astype(np.float32)
        shade = np.repeat(wave[:: max(1, ticks // max(1, pictures))][:pictures], SIZE // ACTION, 1)
        images = 128 + 60 * shade[:, None, None, :, None] + random.normal(size=(pictures, cameras, SIZE, SIZE, 3)) * 5
        images = np.clip(images, 0, 255).astype(np.uint8).repeat(size // SIZE, 2).repeat(size // SIZE, 3)
        values = dict(frame_tick=np.arange(pictures) * (ticks // max(1, pictures)), proprio=proprio, action=0.5 * wave,
                      success=np.asarray(number not in failed), critical_tick=np.asarray(ticks // 2))  # fmt: skip
        np.savez(folder / f"episode_{number:06d}.npz", images=images, **values | changes)
    return folder


def read(folder: Path, every: int = 1, have=CAMERAS, want=CAMERAS, size: int = SIZE):
    return module.read(folder, have, want, size, HORIZON, PROPRIO, ACTION, every)


@pytest.fixture
def eyes():
    return Eyes()


@pytest.fixture
def folder(tmp_path):
    """Four demonstrations; the last one failed."""
    return write_demos(tmp_path / "demos", failed=(3,))


@pytest.fixture
def frames(folder):
    return read(folder)


@pytest.fixture
def make_demos():
    return write_demos


@pytest.fixture
def read_frames():
    return read


@pytest.fixture
def episode():
    """episode(folder, number): its arrays."""
    return lambda folder, number: demos.read(folder / f"episode_{number:06d}.npz")


@pytest.fixture(autouse=True)
def quiet_torch(one_thread):
    """Small arrays, in one thread."""
