"""A frozen VLA without Python between its operations: the same numbers in half the time on a CPU.

A small π0 is a thousand small operations, and on a CPU half of its 60 ms is Python calling them. Tracing records the
calls once, for one observation of the model's own size.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from rlt_ros.vla.frozen import FrozenVLA


class TracedVLA:
    """The interface of FrozenVLA around one that is loaded; bit-identical, or it says so and stays as it was.

    ``traced`` is False where tracing did not work; everything then runs as before.
    """

    def __init__(self, vla: FrozenVLA) -> None:
        self._vla = vla
        for name in ("camera_names", "image_size", "horizon", "action_dim", "proprio_dim", "token_dim"):
            setattr(self, name, getattr(vla, name))
        size = self.image_size
        blank = {name: np.zeros((size, size, 3), np.uint8) for name in self.camera_names}
        rest = np.zeros(self.proprio_dim, np.float32)
        self.traced = True
        try:
            self._infer, self._token = _trace(vla, *self._inputs(blank, rest))
            self._check(blank, rest)
        except (RuntimeError, torch.jit.TracingCheckError) as error:
            warnings.warn(f"the VLA runs untraced, at half its speed: {error}", stacklevel=2)
            self.traced = False

    def seed(self, seed: int) -> None:
        """Restart the noise that reference chunks are sampled from."""
        self._vla.seed(seed)

    def infer(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As FrozenVLA.infer."""
        if not self.traced:
            return self._vla.infer(images, proprio)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            actions, token = self._infer(*self._inputs(images, proprio))
        return actions[0].numpy(), token[0].numpy()

    def tokens(self, observations: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> np.ndarray:
        """As FrozenVLA.tokens; one after another, which costs no more here than a batch."""
        if not self.traced:
            return self._vla.tokens(observations)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            return np.stack([self._token(self._pixels(*observation)[0])[0].numpy() for observation in observations])

    def _pixels(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> tuple[Tensor, np.ndarray]:
        return self._vla._inputs([(images, proprio)])

    def _inputs(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [1, N, 3, S, S], normalised state [1, S] and the noise of the flow [1, H, A]."""
        pixels, states = self._pixels(images, proprio)
        noise = torch.randn(1, self.horizon, self.action_dim, generator=self._vla._generator)
        return pixels, self._vla._policy.states(states), noise

    def _check(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> None:
        """RuntimeError unless other pictures, state and noise than the traced ones give what the model itself gives."""
        random = np.random.default_rng(0)
        images = {name: random.integers(0, 256, image.shape, np.uint8) for name, image in images.items()}
        proprio = random.normal(size=proprio.shape).astype(np.float32)
        results = []
        for vla in (self, self._vla):
            self.seed(1)
            results.append(vla.infer(images, proprio))
        self.seed(0)
        for ours, theirs in zip(*results, strict=True):
            if not np.allclose(ours, theirs, atol=1e-5):
                raise RuntimeError(f"traced and untraced differ by {np.abs(ours - theirs).max()}")


def _trace(vla: FrozenVLA, pixels: Tensor, state: Tensor, noise: Tensor):
    """(pixels, state, noise) -> (actions, token) and pixels -> token; functions, whose weights become constants: traced
    modules would take twice as long to make and run no faster."""
    policy, encoder = vla._policy, vla._token

    def infer(pixels: Tensor, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        cache, embeddings = policy.prefix(pixels)
        token = encoder.encode(embeddings)
        return policy.flow(cache, state, noise).clone(), token

    def token(pixels: Tensor) -> Tensor:
        return encoder.encode(policy.prefix(pixels)[1])

    for module in (policy, encoder):
        module.eval().requires_grad_(False)
    # The optimiser would take longer than the recording, for a twentieth of the speed.
    with torch.no_grad(), torch.jit.optimized_execution(False), warnings.catch_warnings():
        # The sizes that the tracer warns about are constants here. Its successor, torch.compile, takes a compiler and a
        # minute.
        warnings.simplefilter("ignore")
        traced = []
        for function, inputs in ((infer, (pixels, state, noise)), (token, (pixels,))):
            traced.append(torch.jit.trace(function, inputs, check_trace=False))
            traced[-1](*inputs)  # the first call takes longer
        return traced
