"""A frozen VLA without Python between its operations: the same numbers in half the time on a CPU.

A small π0 is a thousand small operations, and on a CPU half of its 60 ms is Python calling them. Tracing records the
calls once, for one observation of the model's own size.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from rlt_ros.core.joining import Prefix
from rlt_ros.core.recorded import Recorded
from rlt_ros.vla.frozen import FrozenVLA, observations


class TracedVLA:
    """The interface of FrozenVLA around one that is loaded; bit-identical, or it says so and stays as it was.

    ``traced`` is False where tracing did not work, and for a back end that does not offer it (`traceable`), which has
    its own ways to be fast; everything then runs as before.
    """

    def __init__(self, vla: FrozenVLA, joins: bool = False) -> None:
        """joins: record what real-time chunking needs, too; without it `infer` with a prefix runs as it is."""
        self._vla = vla
        self._joined = None
        for name in ("camera_names", "image_size", "horizon", "action_dim", "proprio_dim", "token_dim", "guided"):
            setattr(self, name, getattr(vla, name))
        self.traced = getattr(vla.backend, "traceable", False)
        if not self.traced:
            return
        size = self.image_size
        blank = {name: np.zeros((size, size, 3), np.uint8) for name in self.camera_names}
        rest = np.zeros(self.proprio_dim, np.float32)
        try:
            self._infer, self._token = _trace(vla, *self._inputs(blank, rest))
            self._check(blank, rest)
            if joins:
                self._joined = Joined(vla, *self._inputs(blank, rest))
                self._check(blank, rest, Prefix(np.zeros((self.horizon // 2, self.action_dim), np.float32), 1))
        except (RuntimeError, torch.jit.TracingCheckError) as error:
            warnings.warn(f"the VLA runs untraced, at half its speed: {error}", stacklevel=2)
            self.traced = False

    def seed(self, seed: int) -> None:
        """Restart the noise that reference chunks are sampled from."""
        self._vla.seed(seed)

    def infer(
        self, images: dict[str, np.ndarray], proprio: np.ndarray, prefix: Prefix | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As FrozenVLA.infer."""
        if not self.traced or (prefix is not None and self._joined is None):
            return self._vla.infer(images, proprio, prefix)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            if prefix is None:
                actions, token = self._infer(*self._inputs(images, proprio))
            else:
                actions, token = self._joined(*self._inputs(images, proprio), self._vla.guide(prefix))
        return actions[0].numpy(), token[0].numpy()

    def tokens(self, seen: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> np.ndarray:
        """As FrozenVLA.tokens; one after another, which costs no more here than a batch."""
        if not self.traced:
            return self._vla.tokens(seen)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            return np.stack([self._token(self._pixels(*observation)[0])[0].numpy() for observation in seen])

    def _pixels(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> tuple[Tensor, np.ndarray]:
        pictures, states = observations(self._vla.backend, [(images, proprio)])
        return self._vla.backend.pixels(pictures), states

    def _inputs(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [1, N, 3, S, S], normalised state [1, S] and the noise of the flow [1, H, A]."""
        pixels, states = self._pixels(images, proprio)
        noise = torch.randn(1, self.horizon, self.action_dim, generator=self._vla._generator)
        return pixels, self._vla.backend.states(states), noise

    def _check(self, images: dict[str, np.ndarray], proprio: np.ndarray, prefix: Prefix | None = None) -> None:
        """RuntimeError unless other pictures, state and noise than the traced ones give what the model itself gives."""
        random = np.random.default_rng(0)
        images = {name: random.integers(0, 256, image.shape, np.uint8) for name, image in images.items()}
        proprio = random.normal(size=proprio.shape).astype(np.float32)
        results = []
        for vla in (self, self._vla):
            self.seed(1)
            results.append(vla.infer(images, proprio, prefix))
        self.seed(0)
        for ours, theirs in zip(*results, strict=True):
            if not np.allclose(ours, theirs, atol=1e-5):
                raise RuntimeError(f"traced and untraced differ by {np.abs(ours - theirs).max()}")


def _trace(vla: FrozenVLA, pixels: Tensor, state: Tensor, noise: Tensor):
    """(pixels, state, noise) -> (actions, token) and pixels -> token; functions, whose weights become constants: traced
    modules would take twice as long to make and run no faster."""
    policy, encoder = vla.backend, vla._token

    def infer(pixels: Tensor, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        cache, embeddings = policy.prefix(pixels)
        token = encoder.encode(embeddings)
        return policy.flow(cache, state, noise).clone(), token

    def token(pixels: Tensor) -> Tensor:
        return encoder.encode(policy.prefix(pixels)[1])

    for module in (policy, encoder):
        module.eval().requires_grad_(False)
    return [_traced(function, inputs) for function, inputs in ((infer, (pixels, state, noise)), (token, (pixels,)))]


def _traced(function, inputs: tuple[Tensor, ...]):
    # The optimiser would take longer than the recording, for a twentieth of the speed.
    with torch.no_grad(), torch.jit.optimized_execution(False), warnings.catch_warnings():
        # The sizes that the tracer warns about are constants here. Its successor, torch.compile, takes a compiler and a
        # minute.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, inputs, check_trace=False)
        traced(*inputs)  # the first call takes longer
        return traced


class Joined:
    """(pixels, state, noise, guide) -> (actions, token): real-time chunking without Python between its operations.

    One step of the flow is recorded with its gradient and called for each: all ten together would take ten times as
    long to record and run no faster.
    """

    def __init__(self, vla: FrozenVLA, pixels: Tensor, state: Tensor, noise: Tensor) -> None:
        self._policy, encoder = vla.backend, vla._token

        def prefix(pixels: Tensor) -> tuple[Tensor, ...]:
            cache, embeddings = vla.backend.prefix(pixels)
            return encoder.encode(embeddings), *(part for layer in cache.layers for part in (layer.keys, layer.values))

        def guided_step(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            parts = [inputs.pop(name) for name in list(inputs) if name.isdigit()]
            return (vla.backend.guided_step(parts, **inputs),)

        self._prefix = _traced(prefix, (pixels,))
        self._recorded = Recorded(guided_step)
        guide = torch.zeros_like(noise), torch.zeros_like(noise[:, :, :1])
        with torch.no_grad(), torch.jit.optimized_execution(False):
            self(pixels, state, noise, guide)

    def __call__(self, pixels: Tensor, state: Tensor, noise: Tensor, guide: tuple[Tensor, Tensor]):
        token, *prefix = self._prefix(pixels)
        return self._policy.guided_flow(self._step, prefix, state, noise, guide), token

    def _step(self, prefix: list[Tensor], *values: Tensor) -> Tensor:
        names = ("state", "x", "time", "gain", "target", "weights")
        inputs = dict(zip(names, values, strict=True)) | {str(i): part for i, part in enumerate(prefix)}
        return self._recorded(inputs)[0]
