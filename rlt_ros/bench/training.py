"""Training the RL token from embeddings on disk, against encoding each picture anew: both in turns, in one run.

With the small VLA that ships and with a larger π0 of random weights, of which two processor cores encode a picture in
seconds. How much the cache saves depends on how much of a step is the VLA's: at the same rate of arithmetic, a step is
1 + FLOPs of the VLA / FLOPs of the token times as long without it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlt_ros.bench import in_turns, ratio, stage

# A vision tower as SigLIP's base, a language trunk of 8 layers of 1024. The action expert plays no part; it is small.
LARGE = {
    "vision": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                   patch_size=14, image_size=224, projection_dim=1024),
    "text": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8,
                 num_key_value_heads=1, head_dim=128),
    "expert": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=8,
                   num_key_value_heads=1, head_dim=128),
}  # fmt: skip
NARROW = 256  # --width of the third contestant
BATCH = {"small": 64, "large": 4}  # samples a step


def measure(args: argparse.Namespace) -> dict:
    """For each VLA and token: samples/s both ways, their ratio, FLOPs of a sample, and the ratio that these allow."""
    from rlt_ros.vla.backend import load_backend
    from rlt_ros.vla.frozen import CHECKPOINTS

    found: dict = {"rounds": args.rounds}
    small, big = load_backend(CHECKPOINTS / "ethernet"), large()
    with tempfile.TemporaryDirectory() as folder:
        for name, vla, size, width in (("small", small, "small", 0), ("large", big, "large", 0),
                                       ("large_narrow", big, "large", NARROW)):  # fmt: skip
            stage(f"{name} VLA")
            figures = compare(vla, BATCH[size], width, Path(folder) / size, args.rounds)
            found |= {f"{name}_{key}": value for key, value in figures.items()}
    return found


def compare(vla, batch: int, width: int, folder: Path, rounds: int) -> dict:
    """Of one VLA with a token of two layers; `folder` for its embeddings, which are taken again."""
    import torch

    from rlt_ros.training import embeddings as cache
    from rlt_ros.training.processes import Processes
    from rlt_ros.training.token import Settings, TokenTraining

    frames, alone = Noise(vla, 2 * batch), Processes()
    seen = cache.embeddings(vla, frames, "random", folder, alone, say=lambda text: None)
    training = TokenTraining(vla, frames, np.arange(len(frames)), Settings(batch=batch, width=width), seen, alone)

    def steps(embeddings):
        def step() -> None:
            training.embeddings = embeddings
            training.update()

        return step

    contestants = {"cached": steps(seen), "anew": steps(None)}
    in_turns(contestants, 1)  # warm up
    seconds = in_turns(contestants, rounds)
    training.embeddings = seen
    flops = {"vla": counted(lambda: cache.embed(vla, frames.images([0]), alone)),
             "token": counted(lambda: training.loss(np.array([0]))[0].backward())}  # fmt: skip
    rounds_of = [b / a for a, b in zip(seconds["cached"], seconds["anew"], strict=True)]
    return {
        "cached_samples_per_s": batch / statistics.median(seconds["cached"]),
        "anew_samples_per_s": batch / statistics.median(seconds["anew"]),
        "ratio": ratio(seconds["anew"], seconds["cached"]), "ratio_least": min(rounds_of), "ratio_most": max(rounds_of),
        "ratio_by_flops": 1 + flops["vla"] / flops["token"],
        "vla_gflop_per_sample": flops["vla"] / 1e9, "token_gflop_per_sample": flops["token"] / 1e9,
        "vla_parameters": sum(p.numel() for p in vla.parameters()),
        "embeddings": vla.image_tokens, "embedding_dim": vla.embedding_dim,
        "token_width": training.token.config.size, "token_layers": training.settings.layers, "batch": batch,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def counted(call) -> int:
    """Floating point operations of the matrix products and convolutions in a call, gradients included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the CPU's own attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class Noise:
    """Frames of random pictures and actions, in memory."""

    def __init__(self, vla, count: int):
        random = np.random.default_rng(0)
        size = (count, len(vla.cameras), vla.image_size, vla.image_size, 3)
        self._images = random.integers(0, 256, size, np.uint8)
        self._targets = random.normal(size=(count, vla.horizon * vla.action_dim)).astype(np.float32)
        self.checksum = "random"

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows: Sequence[int]) -> np.ndarray:
        return self._images[np.asarray(rows)]

    def targets(self, rows: Sequence[int]) -> np.ndarray:
        return self._targets[np.asarray(rows)]

    def where(self, row: int) -> str:
        return f"random picture {row}"


def large():
    """A Pi0 of LARGE with random weights, two cameras and four actions."""
    import torch
    from transformers import PI0Config, PI0ForConditionalGeneration

    from rlt_ros.vla.pi0 import Pi0, Pi0Io

    words = ["<pad>", "<bos>", "plug", "it", "in", "<image>"]
    ids = dict(vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=1)
    io = Pi0Io(cameras=["wrist", "base"], instruction="plug it in", proprio_dim=14, state_index=[0, 1, 2, 3],
               state_mean=[0.0] * 4, state_std=[1.0] * 4, action_mean=[0.0] * 4, action_std=[1.0] * 4,
               vocabulary=words)  # fmt: skip
    config = PI0Config(
        vlm_config=dict(
            model_type="paligemma", text_config=dict(model_type="gemma", **LARGE["text"], **ids),
            vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **LARGE["vision"]),
            projection_dim=LARGE["vision"]["projection_dim"], image_token_id=len(words) - 1,
        ),
        dit_config=dict(model_type="gemma", **LARGE["expert"], **ids),
        chunk_size=50, max_state_dim=4, max_action_dim=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PI0ForConditionalGeneration._from_config(config, attn_implementation="eager")
    return Pi0(model, io).eval().requires_grad_(False)
