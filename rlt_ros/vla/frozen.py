"""What the nodes and the evaluator know of a VLA: pictures and proprioception in, reference chunk and RL token out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rlt_ros.core.joining import Prefix

CHECKPOINTS = Path(__file__).parent / "checkpoints"


class VLAError(ValueError):
    """A checkpoint or an observation that does not fit; the message names it and says what was expected."""


class FrozenVLA:
    """A π0 and the RL token's encoder over it, both frozen. One instance serves one thread.

    ``camera_names``, ``image_size`` (pixels), ``proprio_dim`` P, ``action_dim`` A, ``horizon`` H, ``token_dim`` D.
    """

    def __init__(self, policy, token, seed: int = 0):
        self._policy, self._token = policy, token
        self.camera_names: list[str] = list(policy.io.cameras)
        self.image_size, self.horizon, self.action_dim = policy.image_size, policy.horizon, policy.action_dim
        self.proprio_dim, self.token_dim = policy.io.proprio_dim, token.config.embedding_dim
        self._generator = torch.Generator().manual_seed(seed)
        if token.config.embedding_dim != policy.embedding_dim or token.config.tokens != policy.image_tokens:
            raise VLAError(
                f"RL token was trained for {token.config.tokens} embeddings of width {token.config.embedding_dim}, the"
                f" VLA gives {policy.image_tokens} of width {policy.embedding_dim}; train the token on this VLA:"
                " `rlt train token`"
            )

    def seed(self, seed: int) -> None:
        """Restart the noise that reference chunks are sampled from."""
        self._generator.manual_seed(seed)

    @torch.no_grad()
    def infer(
        self, images: dict[str, np.ndarray], proprio: np.ndarray, prefix: Prefix | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One observation -> (reference chunk float32 [H, A] in [-1, 1], RL token float32 [D]).

        prefix: what the chunk is to go on from (real-time chunking), from the observation's tick on.
        """
        pixels, state = self._inputs([(images, proprio)])
        cache, embeddings = self._policy.prefix(pixels)
        token = self._token.encode(embeddings)
        return self._policy.sample(cache, state, self._generator, self.guide(prefix))[0].numpy(), token[0].numpy()

    def guide(self, prefix: Prefix | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Target [1, H, A] and weights [1, H, 1] for the flow. VLAError when the prefix is of another robot."""
        if prefix is None:
            return None
        if prefix.actions.shape[1] != self.action_dim:
            raise VLAError(f"prefix: {prefix.actions.shape[1]} actions a step, expected {self.action_dim}")
        weights = torch.from_numpy(prefix.weights(self.horizon))[None, :, None]
        return torch.from_numpy(prefix.target(self.horizon))[None], weights

    @torch.inference_mode()
    def tokens(self, observations: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> np.ndarray:
        """RL tokens float32 [N, D] of N observations in one batch, without sampling actions."""
        pixels, _ = self._inputs(observations)
        return self._token.encode(self._policy.prefix(pixels)[1]).numpy()

    def _inputs(self, observations):
        from rlt_ros.vla.pi0 import fit_image

        batch = []
        for images, proprio in observations:
            missing = [c for c in self.camera_names if c not in images]
            if missing:
                raise VLAError(
                    f"camera {missing[0]!r} is missing; got {', '.join(images) or 'none'}; the VLA wants"
                    f" {self.camera_names}"
                )
            for name in self.camera_names:
                if images[name].dtype != np.uint8 or images[name].ndim != 3 or images[name].shape[2] != 3:
                    got = f"{images[name].dtype} {images[name].shape}"
                    raise VLAError(f"camera {name!r}: got {got}, expected uint8 [height, width, 3] RGB")
            if np.shape(proprio) != (self.proprio_dim,) or not np.isfinite(proprio).all():
                raise VLAError(
                    f"proprioception: got {np.shape(proprio)} {proprio}, expected {self.proprio_dim} finite numbers"
                )
            batch.append(np.stack([fit_image(images[c], self.image_size) for c in self.camera_names]))
        states = np.stack([p for _, p in observations]).astype(np.float32)
        return self._policy.pixels(np.stack(batch)), states


def load(path: str | Path, seed: int = 0) -> FrozenVLA:
    """Load a checkpoint by folder, or a shipped one by name (``ethernet``). VLAError names path and reason."""
    from rlt_ros.core.rl_token import RLToken
    from rlt_ros.vla.pi0 import Pi0
    folder = Path(path)
    if not folder.is_dir() and (CHECKPOINTS / str(path)).is_dir():
        folder = CHECKPOINTS / str(path)
    if not folder.is_dir():
        shipped = ", ".join(sorted(p.name for p in CHECKPOINTS.glob("*"))) or "none"
        raise VLAError(f"VLA checkpoint {str(path)!r}: no such folder; shipped with this package: {shipped}")
    try:
        return FrozenVLA(Pi0.load(folder), RLToken.load(folder), seed)
    except VLAError:
        raise
    except Exception as error:  # safetensors, json and transformers each have their own
        raise VLAError(f"VLA checkpoint {folder}: {error}") from error
