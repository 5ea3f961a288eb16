"""Does a back end keep to :class:`rlt_ros.vla.backend.Backend`?  ``python3 -m rlt_ros.vla.conformance FOLDER``

It is asked with random pictures and proprioception, so that it says nothing about how good the model is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from rlt_ros.vla.backend import ATTRIBUTES, Backend, VLAError, load_backend
from rlt_ros.vla.frozen import checkpoint_folder, observations


class NotConformant(AssertionError):
    """A back end that does not keep to the protocol; the message has a line for each thing that is wrong."""


def conformance(backend: Backend, tolerance: float = 1e-3) -> list[str]:
    """Ask a back end all that the nodes rely on; returns what was asked. NotConformant lists what is wrong.

    tolerance: of a batch against single pictures, as a share of the spread of the embeddings; 0.05 for bfloat16.
    """
    asked, wrong = [], []
    for check in CHECKS:
        asked.append((check.__doc__ or check.__name__).splitlines()[0])
        try:
            check(_Asked(backend, tolerance))
        except Exception as error:  # of the back end's own, too
            wrong.append(f"{asked[-1]} {type(error).__name__}: {error}")
            if check is attributes:  # the others would only repeat it
                break
    if wrong:
        raise NotConformant(f"{type(backend).__name__}:\n" + "\n".join(wrong))
    return asked


class _Asked:
    """A back end with something to look at."""

    def __init__(self, backend: Backend, tolerance: float):
        self.backend, self.tolerance = backend, tolerance

    def images(self, batch: int) -> np.ndarray:
        b, random = self.backend, np.random.default_rng(0)
        return random.integers(0, 256, (batch, len(b.cameras), b.image_size, b.image_size, 3), np.uint8)

    def proprio(self, batch: int) -> np.ndarray:
        return np.random.default_rng(1).normal(size=(batch, self.backend.proprio_dim)).astype(np.float32)

    @torch.no_grad()
    def look(self, images: np.ndarray):
        return self.backend.look(images)

    @torch.no_grad()
    def chunk(self, batch: int = 1, seed: int = 0, guide=None, own=None) -> torch.Tensor:
        own = self.look(self.images(batch))[2] if own is None else own
        generator = torch.Generator().manual_seed(seed)
        return self.backend.chunk(own, self.proprio(batch), generator, guide).cpu()


def expect(condition: bool, said: str) -> None:
    if not condition:
        raise ValueError(said)


def attributes(asked: _Asked) -> None:
    """The attributes are there and of their kinds."""
    b = asked.backend
    missing = [name for name in ATTRIBUTES if not hasattr(b, name)]
    expect(not missing, f"missing: {', '.join(missing)}")
    cameras = list(b.cameras)
    expect(len(cameras) > 0 and len(set(cameras)) == len(cameras), f"cameras: got {cameras}, expected different names")
    expect(all(isinstance(name, str) and name for name in cameras), f"cameras: got {cameras}, expected names")
    for name in ("image_size", "proprio_dim", "action_dim", "horizon", "embedding_dim", "image_tokens"):
        value = getattr(b, name)
        expect(isinstance(value, int) and value > 0, f"{name}: got {value!r}, expected an integer above 0")
    expect(isinstance(b.guided, bool), f"guided: got {b.guided!r}, expected True or False")
    expect(isinstance(b.device, torch.device), f"device: got {b.device!r}, expected a torch.device")


def embeddings(asked: _Asked) -> None:
    """look() gives finite embeddings and a mask of the announced shapes, and leaves the pictures as they are."""
    b, images = asked.backend, asked.images(2)
    before = images.copy()
    seen, mask, _ = asked.look(images)
    shape = (2, b.image_tokens, b.embedding_dim)
    expect(tuple(seen.shape) == shape and seen.dtype == torch.float32,
           f"embeddings: got {seen.dtype} {tuple(seen.shape)}, expected float32 {shape}")  # fmt: skip
    expect(tuple(mask.shape) == shape[:2] and mask.dtype == torch.bool,
           f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {shape[:2]}")  # fmt: skip
    expect(seen.device.type == b.device.type, f"embeddings: on {seen.device}, device says {b.device}")
    expect(bool(seen.isfinite().all()), "embeddings: not finite")
    expect(bool((seen[~mask] == 0).all()), "embeddings: not zero where the mask is False")
    expect(bool(mask.any()), "mask: nothing is to be seen")
    expect(np.array_equal(images, before), "the pictures were changed")


def batches(asked: _Asked) -> None:
    """A batch gives what its pictures give one by one."""
    images = asked.images(3)
    together = asked.look(images)[0]
    single = torch.cat([asked.look(images[i : i + 1])[0] for i in range(3)])
    off, spread = float((together - single).abs().max()), float(single.std())
    expect(off <= asked.tolerance * spread, f"off by {off:.2g}, at most {asked.tolerance * spread:.2g} was expected")


def pixels(asked: _Asked) -> None:
    """Each camera's picture is looked at."""
    images = asked.images(1)
    before = asked.look(images)[0]
    for camera, name in enumerate(asked.backend.cameras):
        other = images.copy()
        other[:, camera] = 255 - other[:, camera]
        changed = float((asked.look(other)[0] - before).abs().max())
        expect(changed > asked.tolerance * float(before.std()), f"camera {name!r}: another picture changes nothing")


def chunks(asked: _Asked) -> None:
    """chunk() gives finite actions in [-1, 1] of the announced shape."""
    b = asked.backend
    for batch in (1, 2):
        actions, shape = asked.chunk(batch), (batch, b.horizon, b.action_dim)
        expect(tuple(actions.shape) == shape and actions.dtype == torch.float32,
               f"chunk: got {actions.dtype} {tuple(actions.shape)}, expected float32 {shape}")  # fmt: skip
        expect(bool(actions.isfinite().all()), "chunk: not finite")
        expect(float(actions.abs().max()) <= 1, f"chunk: {float(actions.abs().max()):.3g} is outside of [-1, 1]")


def noise(asked: _Asked) -> None:
    """The same seed gives the same chunk: all noise is the generator's, and `own` stays as it is."""
    own = asked.look(asked.images(1))[2]
    torch.manual_seed(1)
    first = asked.chunk(seed=3, own=own)
    torch.manual_seed(2)
    again = asked.chunk(seed=3, own=own)
    expect(torch.equal(first, again), f"off by {float((first - again).abs().max()):.2g} with the same generator")
    expect(torch.allclose(first, asked.chunk(seed=3), atol=1e-4), "off after a second look at the same picture")


def guides(asked: _Asked) -> None:
    """A guide draws the actions to it, one of no weight does nothing; without `guided` it is refused."""
    b, plain = asked.backend, asked.chunk()
    target = plain.flip(1).contiguous() * 0.5  # of the size of the model's own actions, and not theirs
    whole, none = torch.ones(1, b.horizon, 1), torch.zeros(1, b.horizon, 1)
    if not b.guided:
        try:
            asked.chunk(guide=(target, whole))
        except VLAError:
            return
        raise ValueError("chunk() took a guide; expected a VLAError, as `guided` is False")
    drawn = asked.chunk(guide=(target, whole))
    before, after = float((plain - target).abs().mean()), float((drawn - target).abs().mean())
    expect(after < before, f"the actions are {after:.3g} from the guide, {before:.3g} without it")
    off = float((asked.chunk(guide=(target, none)) - plain).abs().max())
    expect(off < 1e-3, f"a guide of no weight changes the actions by {off:.2g}")


def wrong_inputs(asked: _Asked) -> None:
    """Pictures of another number of cameras, a camera that is missing and a wrong proprioception are refused."""
    b, images = asked.backend, asked.images(1)
    _raises(lambda: asked.look(np.concatenate([images, images[:, :1]], 1)), Exception, "one camera too many")
    _raises(lambda: asked.look(images[:, 1:]), Exception, "one camera too few")
    named, rest = dict(zip(b.cameras, images[0], strict=True)), np.zeros(b.proprio_dim, np.float32)
    first = b.cameras[0]
    without = {name: picture for name, picture in named.items() if name != first}
    said = _raises(lambda: observations(b, [(without, rest)]), VLAError, f"camera {first!r} missing")
    expect(first in said, f"the error does not name the camera {first!r}: {said}")
    _raises(lambda: observations(b, [(named, rest[1:])]), VLAError, "a value of the proprioception missing")
    _raises(lambda: observations(b, [(named, rest + np.nan)]), VLAError, "proprioception of NaN")


def _raises(call: Callable[[], object], kind: type[Exception], what: str) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise ValueError(f"{what} was not refused")


CHECKS = (attributes, embeddings, batches, pixels, chunks, noise, guides, wrong_inputs)


def main(arguments: Sequence[str]) -> int:
    """Print what was asked, or what is wrong; the exit code says which."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python3 -m rlt_ros.vla.conformance FOLDER [TOLERANCE]", file=sys.stderr)
        return 2
    try:
        tolerance = [float(text) for text in arguments[1:]]
    except ValueError:
        print(f"TOLERANCE is {arguments[1]!r}, expected a number, such as 0.05", file=sys.stderr)
        return 2
    try:
        backend = load_backend(checkpoint_folder(Path(arguments[0])))
        for line in conformance(backend, *tolerance):
            print(f"ok    {line}")
    except (NotConformant, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
