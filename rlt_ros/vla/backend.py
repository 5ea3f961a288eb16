"""What this package needs from a vision-language-action model, and where the models that offer it are found.

docs/vla-backends.md says how to add one; :mod:`rlt_ros.vla.conformance` tells whether it keeps to this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP = "rlt_ros.vla_backends"  # entry points of other packages: name -> a callable like Pi0.load
BUILT_IN = {
    "pi0": "rlt_ros.vla.pi0:Pi0.load",
    "lerobot_pi0": "rlt_ros.vla.lerobot_pi0:LeRobotPi0.load",
    "lerobot_smolvla": "rlt_ros.vla.lerobot_smolvla:LeRobotSmolVLA.load",
}
DEFAULT = "pi0"
SETTINGS = "rlt.json"
CHECKPOINTS = Path(__file__).parent / "checkpoints"


class VLAError(ValueError):
    """A checkpoint or an observation that does not fit; the message names it and says what was expected."""


class Backend(Protocol):
    """A VLA, frozen. One instance serves one thread; nothing is remembered from call to call but the weights.

    A back end may offer more:
    ``traceable = True``: rlt_ros/vla/traced.py knows how to record it; only the small π0 does.
    ``sources``: files and folders outside of its checkpoint folder that its embeddings depend on.
    As a torch module, `rlt train token` moves it to its own device. With what Pi0 has besides (`pixels`, `prefix`,
    `flow_loss`, `save`, `model`), `--alpha` can fine-tune it.
    """

    cameras: Sequence[str]  # names, in the order in which look() takes the pictures
    image_size: int  # px; pictures are square
    proprio_dim: int  # P, of the whole proprioception; the back end picks what its model knows
    action_dim: int  # A
    horizon: int  # H, control ticks
    embedding_dim: int  # E, width of the final layer
    image_tokens: int  # M, embeddings of all cameras
    guided: bool  # whether chunk() takes a guide (`join: rtc`)
    device: torch.device  # where look() leaves the embeddings

    def look(self, images: np.ndarray) -> tuple[Tensor, Tensor, Any]:
        """Run pictures and instruction through the model once, as a batch and without sampling actions.

        images: uint8 [B, cameras, S, S, 3] RGB.  Returns the final layer's embeddings of the image tokens, float32
        [B, M, E]; a mask, bool [B, M], False (and the embedding zero) where there is nothing to see; and what chunk()
        needs of this pass, whatever it is. Raises an error when the number of cameras is another.
        """

    def chunk(
        self, own: Any, proprio: np.ndarray, generator: torch.Generator, guide: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Actions float32 [B, H, A] in [-1, 1], in the task's units, one a control tick; `own` stays as it is.

        proprio: raw, SI, float32 [B, P].  generator: on the CPU; all noise comes from it.  guide: target [B, H, A] and
        weights [B, H, 1] in [0, 1], on the CPU, that the actions are drawn to; VLAError when not ``guided``.
        """


ATTRIBUTES = tuple(Backend.__annotations__)


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``rlt.json`` in `folder` says. VLAError names the file."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLAError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise VLAError(f"{path}: got a {type(settings).__name__}, expected an object of names and values")
    return settings


def installed() -> dict[str, EntryPoint]:
    """All back ends by name; what comes with this package is not replaced by others."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    return found | {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}


def name_of(folder: Path) -> str:
    """The back end that a checkpoint folder asks for. VLAError names the file."""
    return str(read_settings(folder).get("backend", DEFAULT))


def find(name: str) -> EntryPoint:
    """The back end of that name. VLAError lists those that are installed, or the two that are called the same."""
    if name in BUILT_IN:  # at once: others need a search through all that is installed
        return EntryPoint(name, BUILT_IN[name], GROUP)
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not points:
        raise VLAError(
            f"back end {name!r} is not installed; there are: {', '.join(sorted(installed()))}. A package offers one by"
            f" an entry point of the group {GROUP}"
        )
    if len(points) > 1:
        raise VLAError(f"back end {name!r} is offered twice: {', '.join(sorted(points))}; uninstall one")
    return next(iter(points.values()))


def load_backend(folder: Path) -> Backend:
    """The VLA of a checkpoint folder, by the back end that its ``rlt.json`` names (`backend`; "pi0" without it).

    VLAError names the file or the back end and what is wrong with it.
    """
    settings = read_settings(folder)
    name = settings.pop("backend", DEFAULT)
    point = find(str(name))
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        raise VLAError(f"back end {name!r}: {point.value} cannot be imported: {error}") from error
    backend = factory(folder, settings)
    if missing := [attribute for attribute in ATTRIBUTES if not hasattr(backend, attribute)]:
        raise VLAError(
            f"back end {name!r}: {type(backend).__name__} lacks {', '.join(missing)}; see rlt_ros/vla/backend.py"
        )
    return backend


def checkpoint_folder(path: str | Path) -> Path:
    """A checkpoint by folder, by the ``rlt.json`` in it, or a shipped one by name. VLAError lists those shipped."""
    folder = Path(path)
    if folder.name == SETTINGS and folder.is_file():
        folder = folder.parent
    if not folder.is_dir() and (CHECKPOINTS / str(path)).is_dir():
        folder = CHECKPOINTS / str(path)
    if not folder.is_dir():
        shipped = ", ".join(sorted(p.name for p in CHECKPOINTS.glob("*"))) or "none"
        raise VLAError(f"VLA checkpoint {str(path)!r}: no such folder; shipped with this package: {shipped};"
                       " `rlt train vla` makes one")  # fmt: skip
    return folder
