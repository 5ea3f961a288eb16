"""Train the small π0 that ships with the package.

Two stages, like the model that it stands for: a *grounding* stage in which the vision-language trunk learns to say
where things are (π0's trunk, PaliGemma, comes with that from the web), then *flow matching* on demonstrations from
pictures, instruction and proprioception. The simulator's state is a label of the first stage; no trained model is ever
given it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PI0ForConditionalGeneration

from rlt_ros.data import demos
from rlt_ros.vla.pi0 import Pi0, Pi0Io, small_config

Progress = Callable[[int, int, dict[str, float]], None]
HELD_OUT = 256  # grounding scenes at least, by which the stages are judged


# --- grounding -------------------------------------------------------------------------------------------------------


class GroundingHead(nn.Module):
    """Reads the offset off the final-layer embeddings: one attention query per camera. Thrown away after training."""

    FAR = torch.tensor([0.01, 0.01, 0.02, 0.05])
    NEAR = torch.tensor([0.001, 0.001, 0.0015, 0.02])

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, 8)
        self.out = nn.Sequential(nn.Linear(8 * width, 256), nn.GELU(), nn.Linear(256, 8))

    def forward(self, embeddings):  # [B, M, E] -> [B, 8]
        weight = self.query(embeddings).softmax(1)  # [B, M, 8]
        return self.out((weight.transpose(1, 2) @ embeddings).flatten(1))

    @classmethod
    def target(cls, offsets):
        """Twice the same offset: coarse, and saturating at a few millimetres so that the last one counts."""
        return torch.cat([offsets / cls.FAR, torch.tanh(offsets / cls.NEAR)], 1)


# --- the VLA ---------------------------------------------------------------------------------------------------------


class DemoFrames:
    """Samples of demonstrations: picture, proprioception and the next H actions (the last one again past the end)."""

    def __init__(self, episodes: list[dict[str, np.ndarray]], horizon: int, image_stride: int = 1):
        images, proprio, actions = [], [], []
        for episode in episodes:
            if not episode["success"]:
                continue
            held = np.concatenate([episode["action"], np.zeros((horizon, episode["action"].shape[1]), np.float32)])
            for i, tick in list(enumerate(episode["frame_tick"]))[::image_stride]:
                images.append(episode["images"][i])
                proprio.append(episode["proprio"][tick])
                actions.append(held[tick : tick + horizon])
        self.images, self.proprio, self.actions = np.stack(images), np.stack(proprio), np.stack(actions)

    def __len__(self) -> int:
        return len(self.images)


def _augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast of each picture, as another camera would have them."""
    gain = rng.uniform(0.8, 1.2, (len(images), images.shape[1], 1, 1, 1)).astype(np.float32)
    bias = rng.uniform(-20, 20, (len(images), images.shape[1], 1, 1, 1)).astype(np.float32)
    return np.clip(images * gain + bias, 0, 255).astype(np.uint8)


def new_pi0(task: Any, frames: DemoFrames) -> Pi0:
    """A fresh small π0 for a :class:`rlt_ros.sim.task.Task`, with the statistics of the demonstrations."""
    index = task.vla_state_index
    words = sorted(set(task.instruction.lower().split()))
    vocabulary = ["<pad>", "<bos>", *words, "<image>"]
    io = Pi0Io(
        cameras=list(task.cameras),
        instruction=task.instruction,
        proprio_dim=task.proprio_dim,
        state_index=index,
        state_mean=frames.proprio[:, index].mean(0).tolist(),
        state_std=(frames.proprio[:, index].std(0) + 1e-4).tolist(),
        action_mean=frames.actions.mean((0, 1)).tolist(),
        action_std=(frames.actions.std((0, 1)) + 1e-3).tolist(),
        vocabulary=vocabulary,
    )
    config = small_config(len(vocabulary), task.action_dim, len(index))
    return Pi0(PI0ForConditionalGeneration._from_config(config, attn_implementation="eager"), io)


def train_vla(
    task: Any,
    demo_folder: Path,
    out: Path,
    scenes: tuple[np.ndarray, np.ndarray],
    minutes: tuple[float, float, float] = (12.0, 13.0, 10.0),
    batch: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pi0:
    """Three stages of so many ``minutes`` each; saves into ``out`` after each and goes on from there when one is left
    out (0).

    *ground*: the trunk learns where things are.  *flow*: everything learns flow matching, with grounding kept alive on
    the side.
    *act*: the same with the vision tower frozen, whose features are then computed once a picture: three times as many
    samples.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    frames = DemoFrames(demos.load(demo_folder), horizon=50)
    policy = new_pi0(task, frames) if minutes[0] else Pi0.load(out)
    images, offsets = scenes
    labels = GroundingHead.target(torch.as_tensor(offsets))
    held_out = max(HELD_OUT, len(images) // 50)  # the last scenes are never trained on
    for stage, budget, peak in zip(("ground", "flow", "act"), minutes, (1e-3, 6e-4, 1e-3), strict=True):
        if not budget:
            continue
        head = GroundingHead(policy.embedding_dim)
        policy.train()
        for parameter in vision_parameters(policy):
            parameter.requires_grad_(stage != "act")
        parameters = [p for p in [*policy.parameters(), *head.parameters()] if p.requires_grad]
        if stage == "act":
            seen, seen_scenes = (see(policy, pictures, progress) for pictures in (frames.images, images))

            def prefix(pick, scene: bool, some=(seen, seen_scenes)):
                return policy.read(some[scene][torch.as_tensor(pick)].float())
        else:

            def prefix(pick, scene: bool, some=(frames.images, images)):
                return policy.prefix(policy.pixels(_augment(some[scene][pick], rng)))

        optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        start, smooth, step = time.monotonic(), {}, 0
        while (done := (time.monotonic() - start) / (60 * budget)) < 1:
            warm = min(1.0, step / 200)
            for group in optimiser.param_groups:
                group["lr"] = peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            pick = rng.integers(0, len(images) - held_out, batch if stage == "ground" else batch // 2)
            loss = (head(prefix(pick, True)[1]) - labels[pick]).square().mean()
            parts = {"ground": float(loss.detach())}
            if stage != "ground":
                pick = rng.integers(0, len(frames), batch)
                cache, _ = prefix(pick, False)
                flow = policy.flow_loss(
                    cache, torch.as_tensor(frames.proprio[pick]), torch.as_tensor(frames.actions[pick])
                )
                loss = loss + flow
                parts["flow"] = float(flow.detach())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            for key, value in parts.items():
                smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
            if progress and step % 20 == 0:
                progress(int(1000 * done), 1000, {"step": step, **smooth})
        policy.eval()
        if progress:
            progress(1000, 1000, _grounding_error(policy, head, images[-held_out:], offsets[-held_out:]))
        policy.save(out)
    return policy


def vision_parameters(policy: Pi0) -> list[nn.Parameter]:
    """Of the vision tower and its projection into the language trunk."""
    return [p for name, p in policy.named_parameters() if "vision_tower" in name or "multi_modal_projector" in name]


@torch.inference_mode()
def see(policy: Pi0, images: np.ndarray, progress: Progress | None = None) -> torch.Tensor:
    """The vision tower's features float16 [N, M, E] of pictures uint8 [N, cameras, S, S, 3]."""
    out = []
    for i in range(0, len(images), 64):
        out.append(policy.see(policy.pixels(images[i : i + 64])).half())
        if progress and i % 640 == 0:
            progress(i, len(images), {})
    return torch.cat(out).clone()


@torch.inference_mode()
def _grounding_error(policy: Pi0, head: GroundingHead, images: np.ndarray, offsets: np.ndarray) -> dict[str, float]:
    """Error of the grounding head on scenes that it never saw, of those within 1 mm of the hole."""
    near = []
    for i in range(0, len(images), 64):
        _, embeddings = policy.prefix(policy.pixels(images[i : i + 64]))
        near.append(head(embeddings)[:, 4:].clamp(-0.97, 0.97).atanh() * GroundingHead.NEAR)
    close = torch.as_tensor(np.abs(offsets[:, :2]).max(1) < 0.001)
    rmse = (torch.cat(near) - torch.as_tensor(offsets))[close].square().mean(0).sqrt()
    return {"x_mm": 1e3 * float(rmse[0]), "y_mm": 1e3 * float(rmse[1]), "yaw_rad": float(rmse[3])}
