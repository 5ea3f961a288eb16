"""A small ResNet on the pictures themselves: what a token has to be better than."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from rlt_ros.training.embeddings import Progress
from rlt_ros.training.frames import Frames

_WIDTHS, _BATCH = (32, 64, 128, 128), 32


class PictureNet(nn.Module):
    """Ten layers over each camera's picture, then a linear map of all cameras' features to `outputs` numbers.

    The weights begin at random: nothing is downloaded.
    """

    def __init__(self, cameras: int, outputs: int):
        super().__init__()
        self.width = cameras * _WIDTHS[-1]
        self.net = ResNetModel(ResNetConfig(
            embedding_size=32, hidden_sizes=list(_WIDTHS), depths=[1] * len(_WIDTHS), layer_type="basic"
        ))  # fmt: skip
        self.out = nn.Linear(self.width, outputs)

    def features(self, images: np.ndarray) -> Tensor:
        """Pictures uint8 [n, cameras, S, S, 3] -> [n, width]."""
        pixels = torch.from_numpy(images).to(self.out.weight.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
        return self.net(pixels.flatten(0, 1)).pooler_output.reshape(len(images), self.width)

    @torch.no_grad()
    def read(self, images: np.ndarray) -> Tensor:
        """The same of any number of pictures, in inference, on the CPU."""
        self.eval()
        parts = [self.features(images[i : i + 64]).float().cpu() for i in range(0, len(images), 64)]
        return torch.cat(parts)


def trained(
    frames: Frames, rows: np.ndarray, targets: np.ndarray, steps: int, seed: int = 0, device: str = "cpu",
    progress: Progress | None = None,
) -> PictureNet:  # fmt: skip
    """One that was trained for `steps` of 32 pictures to say `targets` float32 [N, K] of some rows of frames."""
    torch.manual_seed(seed)
    net = PictureNet(len(frames.order), targets.shape[1]).to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimiser.param_groups:
            warm, fade = min(1.0, (step + 1) / 20), 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = 1e-3 * warm * (0.02 + 0.98 * fade)
        pick = rng.choice(rows, _BATCH)
        wanted = torch.from_numpy(targets[pick]).to(device)
        loss = (net.out(net.features(frames.images(pick))) - wanted).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if progress:
            progress(step + 1, steps, {"action": float(loss.detach())})
    return net.eval()
