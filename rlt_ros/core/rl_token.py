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

    embedding_dim: int = 96  # E, width of the VLA's final-layer embeddings
    tokens: int = 128  # M, image tokens of all cameras
    layers: int = 2
    heads: int = 4
    feedforward: int = 192
    action_values: int = 200  # H * A numbers of the VLA's action chunk, for the action readout
    # Share of the decoder's inputs that is hidden: without it, neighbours tell the decoder
    context_dropout: float = 0.9
    # enough and it ignores z_rl
    action_weight: float = 1.0  # weight of rebuilding the demonstrated chunk from z_rl; 0 is the paper's loss alone
    width: int = 0  # of z_rl and both transformers; 0: E, else the embeddings are projected to it

    @property
    def size(self) -> int:
        """D, the numbers of z_rl."""
        return self.width or self.embedding_dim


def _partly(there: Tensor | None) -> Tensor | None:
    """None where all are there: what has no mask is faster."""
    return None if there is None or bool(there.all()) else there


class RLToken(nn.Module):
    """Encoder g and decoder d, h of Algorithm 1, phase 1."""

    def __init__(self, config: TokenConfig):
        super().__init__()
        self.config = c = config
        layer = lambda: nn.TransformerEncoderLayer(  # noqa: E731
            c.size, c.heads, c.feedforward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        stack = lambda: nn.TransformerEncoder(  # noqa: E731
            layer(), c.layers, nn.LayerNorm(c.size), enable_nested_tensor=False
        )
        project = lambda: nn.Linear(c.embedding_dim, c.size) if c.width else nn.Identity()  # noqa: E731
        self.e_rl = nn.Parameter(torch.randn(1, 1, c.size) * 0.02)
        self.position = nn.Parameter(torch.randn(1, c.tokens + 1, c.size) * 0.02)
        self.projection = project()
        self.encoder = stack()
        self.decoder_projection = project()
        self.decoder_position = nn.Parameter(torch.randn(1, c.tokens, c.size) * 0.02)
        self.hidden = nn.Parameter(torch.zeros(1, 1, c.size))  # stands where a decoder input was dropped
        self.decoder = stack()
        self.head = nn.Linear(c.size, c.embedding_dim)
        self.action_head = nn.Sequential(nn.Linear(c.size, 256), nn.GELU(), nn.Linear(256, c.action_values))
        self.register_buffer("mean", torch.zeros(c.embedding_dim))
        self.register_buffer("std", torch.ones(c.embedding_dim))
        mask = torch.triu(torch.full((c.tokens, c.tokens), float("-inf")), 1)
        self.register_buffer("causal", mask, persistent=False)

    def normalise(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / self.std

    def encode(self, embeddings: Tensor, there: Tensor | None = None) -> Tensor:
        """Final-layer embeddings [B, M, E] -> z_rl [B, D]: g([z_1..M, e_rl]) at M+1.

        there: bool [B, M], False where there is no embedding (a missing camera): nothing attends to it.  None: all are.
        """
        z = self.projection(self.normalise(embeddings))
        x = torch.cat([z, self.e_rl.expand(len(z), -1, -1)], 1) + self.position
        there = _partly(there)
        absent = None if there is None else nn.functional.pad(~there, (0, 1))
        return self.encoder(x, src_key_padding_mask=absent)[:, -1]

    def decode(
        self, z_rl: Tensor, target: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None,
        there: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """h(d([z_rl, z_1..M-1])) under a causal mask: [B, M, E], teacher-forced with ``target`` of that shape.

        there: as of :meth:`encode`; what is not there is hidden.
        """
        context = self.decoder_projection(target[:, :-1])
        keep = None if there is None else there[:, :-1, None]
        if dropout:
            drawn = torch.rand(context.shape[:2], generator=generator, device=context.device)[..., None] >= dropout
            keep = drawn if keep is None else drawn & keep
        if keep is not None:
            context = torch.where(keep, context, self.hidden)
        x = torch.cat([z_rl[:, None], context], 1) + self.decoder_position
        return self.head(self.decoder(x, mask=self.causal))

    def loss(
        self, embeddings: Tensor, actions: Tensor | None = None, there: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """L_ro of Algorithm 1 (mean over tokens and widths), plus the action readout with ``actions`` [B, H*A].

        there: as of :meth:`encode`; what is not there is not rebuilt either.
        """
        there, target = _partly(there), self.normalise(embeddings).detach()
        z_rl = self.encode(embeddings.detach(), there)
        error = (self.decode(z_rl, target, self.config.context_dropout, there=there) - target).square()
        reconstruction = error.mean() if there is None else error[there].mean()
        loss, parts = reconstruction, {"reconstruction": float(reconstruction.detach())}
        if actions is not None and self.config.action_weight:
            readout = (self.action_head(z_rl) - actions).square().mean()
            loss = loss + self.config.action_weight * readout
            parts["action"] = float(readout.detach())
        return loss, parts

    def save(self, folder: Path, decoder: bool = False) -> None:
        """``token.json`` and ``token.safetensors``; the decoder only on request, acting does not need it."""
        # What the embeddings are divided by is kept as it is: rounded, it would shift those that hardly vary by as much.
        state = {
            k: (v if k in ("mean", "std") else v.half()).contiguous()
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
