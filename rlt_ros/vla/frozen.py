"""What the nodes and the evaluator know of a VLA: pictures and proprioception in, reference chunk and RL token out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rlt_ros.core.joining import Prefix
from rlt_ros.vla.backend import CHECKPOINTS, Backend, VLAError, checkpoint_folder, load_backend

__all__ = ["CHECKPOINTS", "FrozenVLA", "VLAError", "checkpoint_folder", "load"]


class FrozenVLA:
    """A VLA and the RL token's encoder over it, both frozen. One instance serves one thread.

    ``camera_names``, ``image_size`` (pixels), ``proprio_dim`` P, ``action_dim`` A, ``horizon`` H, ``token_dim`` D,
    ``guided``: whether `infer` takes a prefix.
    """

    def __init__(self, backend: Backend, token, seed: int = 0):
        self.backend, self._token = backend, token.to(backend.device)
        self.camera_names: list[str] = list(backend.cameras)
        self.image_size, self.horizon, self.action_dim = backend.image_size, backend.horizon, backend.action_dim
        self.proprio_dim, self.token_dim = backend.proprio_dim, token.config.size
        self.guided = backend.guided
        self._generator = torch.Generator().manual_seed(seed)
        if token.config.embedding_dim != backend.embedding_dim or token.config.tokens != backend.image_tokens:
            raise VLAError(
                f"RL token was trained for {token.config.tokens} embeddings of width {token.config.embedding_dim}, the"
                f" VLA gives {backend.image_tokens} of width {backend.embedding_dim}; train the token on this VLA:"
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
        VLAError when the observation does not fit, or when the VLA's answer is no finite chunk and token.
        """
        pictures, state = observations(self.backend, [(images, proprio)])
        embeddings, there, own = self.backend.look(pictures)
        token = self._token.encode(embeddings, there)
        chunk = self.backend.chunk(own, state, self._generator, self.guide(prefix))
        actions, token = chunk[0].cpu().numpy(), finite(token)[0]
        if actions.shape != (self.horizon, self.action_dim) or not np.isfinite(actions).all():
            raise VLAError(
                f"the VLA's chunk is {actions.shape} with {np.isnan(actions).sum()} NaN, expected"
                f" {(self.horizon, self.action_dim)} finite actions: are checkpoint and statistics in order?"
            )
        return actions, token

    def guide(self, prefix: Prefix | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Target [1, H, A] and weights [1, H, 1] for the flow. VLAError when the prefix is of another robot, or the VLA
        cannot go on from one."""
        if prefix is None:
            return None
        if not self.guided:
            name = type(self.backend).__name__
            raise VLAError(f"{name} cannot go on from the chunk before: set join to none or blend")
        if prefix.actions.shape[1] != self.action_dim:
            raise VLAError(f"prefix: {prefix.actions.shape[1]} actions a step, expected {self.action_dim}")
        weights = torch.from_numpy(prefix.weights(self.horizon))[None, :, None]
        return torch.from_numpy(prefix.target(self.horizon))[None], weights

    @torch.inference_mode()
    def tokens(self, seen: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> np.ndarray:
        """RL tokens float32 [N, D] of N observations in one batch, without sampling actions."""
        pictures, _ = observations(self.backend, seen)
        return finite(self._token.encode(*self.backend.look(pictures)[:2]))


def finite(tokens: torch.Tensor) -> np.ndarray:
    """RL tokens as an array; VLAError when they are not finite."""
    array = tokens.cpu().numpy()
    if not np.isfinite(array).all():
        raise VLAError("the RL token is not finite: are the VLA's checkpoint and the token's in order?")
    return array


def observations(
    backend: Backend, seen: list[tuple[dict[str, np.ndarray], np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Observations as a back end takes them: pictures uint8 [B, cameras, S, S, 3], fitted; proprioception [B, P].

    VLAError names the camera that is missing or no picture, or says what is wrong with the proprioception.
    """
    batch = []
    for images, proprio in seen:
        missing = [c for c in backend.cameras if c not in images]
        if missing:
            raise VLAError(
                f"camera {missing[0]!r} is missing; got {', '.join(images) or 'none'}; the VLA wants"
                f" {list(backend.cameras)}"
            )
        for name in backend.cameras:
            if images[name].dtype != np.uint8 or images[name].ndim != 3 or images[name].shape[2] != 3:
                got = f"{images[name].dtype} {images[name].shape}"
                raise VLAError(f"camera {name!r}: got {got}, expected uint8 [height, width, 3] RGB")
        if np.shape(proprio) != (backend.proprio_dim,) or not np.isfinite(proprio).all():
            raise VLAError(
                f"proprioception: got {np.shape(proprio)} {proprio}, expected {backend.proprio_dim} finite numbers"
            )
        batch.append(np.stack([fit_image(images[c], backend.image_size) for c in backend.cameras]))
    return np.stack(batch), np.stack([p for _, p in seen]).astype(np.float32)


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to ``size`` square, padded with black to keep the aspect, as π0's processor: uint8 [size, size, 3]."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    import cv2

    scale = size / max(height, width)
    h, w = round(height * scale), round(width * scale)
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    out = np.zeros((size, size, 3), np.uint8)
    top, left = (size - h) // 2, (size - w) // 2
    out[top : top + h, left : left + w] = small
    return out


def load(path: str | Path, seed: int = 0) -> FrozenVLA:
    """Load a checkpoint by folder, or a shipped one by name (``ethernet``). VLAError names path and reason."""
    from rlt_ros.core.rl_token import RLToken

    folder = checkpoint_folder(path)
    try:
        return FrozenVLA(load_backend(folder), RLToken.load(folder), seed)
    except VLAError as error:
        if str(folder) in str(error):
            raise
        raise VLAError(f"VLA checkpoint {folder}: {error}") from error
    except Exception as error:  # safetensors, json and transformers each have their own
        raise VLAError(f"VLA checkpoint {folder}: {error}") from error
