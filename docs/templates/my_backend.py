"""A VLA of your own as a back end of rlt_ros: copy this file into a package of yours and fill it in.

The model here is a toy, so that the file runs and is tested: a convolution sees patches, a linear layer of their mean
and the state writes the chunk. Replace `Toy` by your model; docs/vla-backends.md explains each method.

Your package announces it, in setup.py (pip, or a ROS package of type ament_python):

    entry_points={"rlt_ros.vla_backends": ["my_vla = my_package.my_backend:load"]}

and a checkpoint folder chooses it in its rlt.json:

    {"backend": "my_vla", "cameras": ["wrist", "base"], "proprio_dim": 14, "action_dim": 4}
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlt_ros.vla.backend import VLAError


def load(folder: Path, settings: dict) -> "MyBackend":
    """Called with the checkpoint's folder and its rlt.json, without "backend". VLAError: say what does not fit."""
    missing = {"cameras", "proprio_dim", "action_dim"} - set(settings)
    if missing:
        raise VLAError(f"{folder / 'rlt.json'}: missing: {', '.join(sorted(missing))}")
    model = Toy(settings["proprio_dim"], settings["action_dim"])
    if (folder / "model.pt").is_file():
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return MyBackend(model, settings["cameras"], settings["proprio_dim"], settings["action_dim"])


class Toy(nn.Module):
    """Your model."""

    def __init__(self, proprio_dim: int, action_dim: int, width: int = 32, horizon: int = 50):
        super().__init__()
        self.width, self.horizon, self.action_dim = width, horizon, action_dim
        self.eye = nn.Conv2d(3, width, kernel_size=16, stride=16)
        self.hand = nn.Linear(width + proprio_dim, horizon * action_dim)


class MyBackend:
    guided = False  # True when chunk() can be drawn to a guide (real-time chunking)

    def __init__(self, model: Toy, cameras: list[str], proprio_dim: int, action_dim: int):
        self.model = model.eval().requires_grad_(False)
        self.cameras, self.proprio_dim, self.action_dim = list(cameras), proprio_dim, action_dim
        self.image_size = 64  # px; pictures come in this size
        self.horizon, self.embedding_dim = model.horizon, model.width
        self.image_tokens = (self.image_size // 16) ** 2 * len(self.cameras)
        self.device = torch.device("cpu")

    def look(self, images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, cameras, S, S, 3] -> embeddings float32 [B, M, E], mask bool [B, M], and what chunk() needs."""
        if images.shape[1] != len(self.cameras):
            raise VLAError(f"got pictures of {images.shape[1]} cameras, expected {self.cameras}")
        pixels = torch.as_tensor(images).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        patches = self.model.eye(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B * cameras, patches, E]
        embeddings = patches.reshape(len(images), self.image_tokens, self.embedding_dim)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)  # False, and the embedding 0, for an empty camera
        return embeddings, mask, embeddings.mean(1)

    def chunk(self, own: Tensor, proprio: np.ndarray, generator: torch.Generator, guide=None) -> Tensor:
        """What look() kept, and proprioception [B, P] -> actions float32 [B, H, A] in [-1, 1]."""
        if guide is not None:
            raise VLAError("MyBackend cannot go on from the chunk before: set join to none or blend")
        # Noise, if your model samples: torch.randn(..., generator=generator).to(self.device)
        x = torch.cat([own, torch.as_tensor(proprio)], 1)
        return self.model.hand(x).tanh().reshape(-1, self.horizon, self.action_dim)
