"""The RL token: a compact readout of a frozen VLA's final-layer embeddings (arXiv 2604.23073, section on the RL token).

A small transformer reads the embeddings with a learned token appended, and its output there is the RL token, z_rl. It
is trained by making a decoder rebuild the embeddings from it, one after another; the decoder is thrown away afterwards.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenConfig:
    """Sizes and training of the RL token. The paper leaves the sizes open; 2 layers are what others use."""

    embedding_dim: int = 96  # width of the VLA's final-layer embeddings, and of z_rl
    tokens: int = 128  # M, image tokens of all cameras
    layers: int = 2
    heads: int = 4
    feedforward: int = 192
    action_values: int = 200  # H * A numbers of the VLA's action chunk, for the action readout
    # Share of the decoder's inputs that is hidden: without it, neighbours tell the decoder
    context_dropout: float = 0.9
    # enough and it ignores z_rl
    action_weight: float = 1.0  # weight of rebuilding the demonstrated chunk from z_rl; 0 is the paper's loss alone


class RLToken(nn.Module):
    """Encoder g and decoder d, h of Algorithm 1, phase 1."""

    def __init__(self, config: TokenConfig):
        super().__init__()
        self.config = c = config
        layer = lambda: nn.TransformerEncoderLayer(  # noqa: E731
            c.embedding_dim, c.heads, c.feedforward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        stack = lambda: nn.TransformerEncoder(  # noqa: E731
            layer(), c.layers, nn.LayerNorm(c.embedding_dim), enable_nested_tensor=False
        )
        self.e_rl = nn.Parameter(torch.randn(1, 1, c.embedding_dim) * 0.02)
        self.position = nn.Parameter(torch.randn(1, c.tokens + 1, c.embedding_dim) * 0.02)
        self.encoder = stack()
        self.decoder_position = nn.Parameter(torch.randn(1, c.tokens, c.embedding_dim) * 0.02)
        self.hidden = nn.Parameter(torch.zeros(1, 1, c.embedding_dim))  # stands where a decoder input was dropped
        self.decoder = stack()
        self.head = nn.Linear(c.embedding_dim, c.embedding_dim)
        self.action_head = nn.Sequential(nn.Linear(c.embedding_dim, 256), nn.GELU(), nn.Linear(256, c.action_values))
        self.register_buffer("mean", torch.zeros(c.embedding_dim))
        self.register_buffer("std", torch.ones(c.embedding_dim))
        mask = torch.triu(torch.full((c.tokens, c.tokens), float("-inf")), 1)
        self.register_buffer("causal", mask, persistent=False)

    def normalise(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.std

    def encode(self, embeddings: Tensor) -> Tensor:
        """Final-layer embeddings [B, M, E] -> z_rl [B, E]: g([z_1..M, e_rl]) at M+1."""
        z = self.normalise(embeddings)
        x = torch.cat([z, self.e_rl.expand(len(z), -1, -1)], 1) + self.position
        return self.encoder(x)[:, -1]

    def decode(
        self, z_rl: Tensor, target: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """h(d([z_rl, z_1..M-1])) under a causal mask: [B, M, E], teacher-forced with ``target`` of that shape."""
        context = target[:, :-1]
        if dropout:
            keep = torch.rand(context.shape[:2], generator=generator, device=context.device)[..., None] >= dropout
            context = torch.where(keep, context, self.hidden)
        x = torch.cat([z_rl[:, None], context], 1) + self.decoder_position
        return self.head(self.decoder(x, mask=self.causal))

    def loss(self, embeddings: Tensor, actions: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """L_ro of Algorithm 1 (mean over tokens and widths), plus the action readout with ``actions`` [B, H*A]."""
        target = self.normalise(embeddings).detach()
        z_rl = self.encode(embeddings.detach())
        reconstruction = (self.decode(z_rl, target, self.config.context_dropout) - target).square().mean()
        loss, parts = reconstruction, {"reconstruction": float(reconstruction.detach())}
        if actions is not None and self.config.action_weight:
            readout = (self.action_head(z_rl) - actions).square().mean()
            loss = loss + self.config.action_weight * readout
            parts["action"] = float(readout.detach())
        return loss, parts

    def save(self, folder: Path, decoder: bool = False) -> None:
        """``token.json`` and ``token.safetensors``; the decoder only on request, acting does not need it."""
        state = {
            k: v.half().contiguous()
            for k, v in self.state_dict().items()
            if decoder or not k.startswith(("decoder", "head", "hidden", "action_head"))
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "token.safetensors")
        (folder / "token.json").write_text(json.dumps(asdict(self.config), indent=1))

    @classmethod
    def load(cls, folder: Path) -> RLToken:
        """Load what :meth:`save` wrote; ValueError names the file and what is wrong with it."""
        try:
            config = TokenConfig(**json.loads((folder / "token.json").read_text()))
            state = load_file(folder / "token.safetensors")
        except Exception as error:
            raise ValueError(f"{folder}/token.*: {error}") from error
        token = cls(config)
        missing, unexpected = token.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        missing = [k for k in missing if not k.startswith(("decoder", "head", "hidden", "action_head"))]
        if missing or unexpected:
            raise ValueError(f"{folder}/token.safetensors: missing {missing[:3]}, unexpected {unexpected[:3]}")
        return token.eval()
