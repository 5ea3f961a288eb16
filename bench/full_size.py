"""The RL token's encoder beside a π0 of full size (3 B parameters, random weights): FLOPs, and seconds where it fits.

    . setup/env.sh
    python3 bench/full_size.py                                   # FLOPs alone: takes no memory and no GPU
    python3 bench/full_size.py --seconds --device cuda --bf16    # 13 GB of memory, of the GPU's with cuda
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import PI0Config, PI0ForConditionalGeneration

from rlt_ros.bench.training import counted
from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.training.embeddings import move
from rlt_ros.training.token import heads
from rlt_ros.vla.pi0 import Pi0, Pi0Io

CAMERAS, ACTIONS, WORDS = 3, 7, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", action="store_true", help="measure the time, too")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turns (default: 3)")
    parser.add_argument("--width", type=int, default=0, help="of the token (default: as the embeddings)")
    parser.add_argument("--layers", type=int, default=2, help="of the token's encoder (default: 2)")
    args = parser.parse_args()

    with torch.device("meta"):
        vla, token = full_size(), None
    width = args.width or vla.embedding_dim
    with torch.device("meta"):
        token = RLToken(TokenConfig(
            vla.embedding_dim, vla.image_tokens, layers=args.layers, heads=heads(width), feedforward=2 * width,
            action_values=1, width=args.width,
        ))  # fmt: skip
    device = torch.device(args.device if args.seconds else "meta")
    if args.seconds:
        for module in (vla, token):
            filled(module, device)
    move(vla, device)
    for module in (vla, token):
        module.requires_grad_(False).eval()
    images = np.zeros((1, CAMERAS, vla.image_size, vla.image_size, 3), np.uint8)
    state, generator = np.zeros((1, vla.proprio_dim), np.float32), torch.Generator().manual_seed(0)

    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.bf16 and args.seconds):
        embeddings, _, own = vla.look(images)
        parts = {
            "prefix": lambda: vla.look(images),
            "flow": lambda: vla.chunk(own, state, generator),
            "encoder": lambda: token.encode(embeddings),
        }
        flops = {name: counted(part) for name, part in parts.items()}
        seconds = {name: [] for name in parts}
        for _ in range(args.rounds + 1 if args.seconds else 0):  # the first round warms up
            for name, part in parts.items():
                seconds[name].append(timed(part, device))
    size = lambda module: sum(p.numel() for p in module.parameters()) / 1e9  # noqa: E731
    thrown_away = ("decoder", "head", "action")  # after training
    encoder = sum(p.numel() for name, p in token.named_parameters() if not name.startswith(thrown_away))
    print(f"π0: {size(vla):.2f} B parameters, {vla.image_tokens} embeddings of {vla.embedding_dim}; encoder:"
          f" {encoder / 1e9:.3f} B parameters, {args.layers} layers of {width}")
    report("TFLOP", {name: value / 1e12 for name, value in flops.items()})
    if args.seconds:
        report("s", {name: float(np.median(values[1:])) for name, values in seconds.items()})
    return 0


def report(unit: str, found: dict[str, float]) -> None:
    share = found["encoder"] / (found["prefix"] + found["flow"])
    parts = ", ".join(f"{name} {value:.4g} {unit}" for name, value in found.items())
    print(f"{parts}; encoder over prefix and flow: {share:.4f}")


def timed(part, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    part()
    wait()
    return time.perf_counter() - begin


def filled(module: torch.nn.Module, device: torch.device) -> None:
    """Small random weights where the module had none."""
    module.to_empty(device=device)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.normal_(0.0, 0.02)
        for name, tensor in module.named_buffers():
            tensor.fill_(0 if tensor.dtype == torch.long else 1)


def full_size() -> Pi0:
    """π0 with the sizes that transformers has for it, three cameras and a robot of seven actions."""
    words = ["<pad>", "<bos>", *(f"word{i}" for i in range(WORDS)), "<image>"]
    io = Pi0Io(cameras=[f"camera{i}" for i in range(CAMERAS)], instruction=" ".join(words[2:-1]), proprio_dim=14,
               state_index=list(range(14)), state_mean=[0.0] * 14, state_std=[1.0] * 14, action_mean=[0.0] * ACTIONS,
               action_std=[1.0] * ACTIONS, vocabulary=words)  # fmt: skip
    model = PI0ForConditionalGeneration._from_config(
        PI0Config(max_state_dim=14, max_action_dim=ACTIONS), attn_implementation="eager"
    )
    return Pi0(model, io)


if __name__ == "__main__":
    raise SystemExit(main())
