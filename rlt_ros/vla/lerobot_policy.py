"""Policies as LeRobot writes them, read without LeRobot: configuration, weights, statistics, tokenizer.

Such a folder holds ``config.json``, ``model.safetensors``, ``policy_preprocessor.json`` and
``policy_postprocessor.json`` with the statistics beside them. What LeRobot does not know, ``rlt.json`` says:
:class:`Settings`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import logging

from rlt_ros.vla.backend import SETTINGS, VLAError
from rlt_ros.vla.guidance import guidance

STATE, ACTION = "observation.state", "action"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RELATIVE = ("relative_actions_processor", "absolute_actions_processor")
# Of the processors of LeRobot, those that change no number, or that are done here.
KNOWN_STEPS = {
    "rename_observations_processor", "to_batch_processor", "device_processor", "tokenizer_processor",
    "normalizer_processor", "unnormalizer_processor", "pi0_new_line_processor", "smolvla_new_line_processor", *RELATIVE,
}  # fmt: skip
REFUSED = ("use_relative_actions", "adapt_to_pi_aloha", "use_delta_joint_actions_aloha")  # in config.json
FILES = ["*.json", "model.safetensors", "policy_*.safetensors", "tokenizer*", "tokenizer/*"]
# mode of normalisation -> the two statistics that it takes
NORMALISATIONS = {
    "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"),
}  # fmt: skip
EPS = 1e-8  # as LeRobot's


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``rlt.json``: which policy, and how this robot's cameras, proprioception and actions map to it."""

    cameras: dict[str, str | None]  # the policy's image feature -> our camera; null: an empty camera
    proprio_dim: int  # numbers of the whole proprioception
    state: list[int]  # which of them the policy is given, in its order
    instruction: str
    checkpoint: str = "."  # folder, relative to that of rlt.json, or id on the Hugging Face hub
    revision: str | None = None  # of the id
    download: bool = False  # may the checkpoint and the tokenizer be fetched?
    state_scale: float | list[float] = 1.0  # the policy's unit per SI unit (57.29578 for degrees)
    action: list[int] | None = None  # which of the policy's actions are ours, in our order; all without it
    action_scale: float | list[float] = 1.0  # our normalised action per unit of the policy's action
    statistics: str | None = None  # a dataset's meta/stats.json, in place of the checkpoint's
    tokenizer: str | None = None  # folder or id, where the checkpoint has none
    flow_steps: int | None = None  # in place of the checkpoint's
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def of(cls, settings: dict[str, Any], path: Path) -> Settings:
        """VLAError names `path` and what is missing, unknown or of another kind."""
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(settings) - set(known)):
            raise VLAError(f"{path}: unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        if missing := [name for name, field in known.items() if field.default is MISSING and name not in settings]:
            raise VLAError(f"{path}: missing: {', '.join(missing)}")
        made = cls(**settings)
        if not isinstance(made.cameras, dict) or not made.cameras:
            raise VLAError(f"{path}: cameras: got {made.cameras!r}, expected the policy's image features with ours")
        for name, values in (("state", made.state), ("action", made.action or [])):
            if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
                raise VLAError(f"{path}: {name}: got {values!r}, expected a list of indices from 0 on")
        if made.dtype not in DTYPES:
            raise VLAError(f"{path}: dtype: got {made.dtype!r}, expected {' or '.join(DTYPES)}")
        if made.flow_steps is not None and not made.flow_steps > 0:
            raise VLAError(f"{path}: flow_steps: got {made.flow_steps}, expected 1 or more")
        if made.device.startswith("cuda") and not torch.cuda.is_available():
            raise VLAError(f'{path}: device: {made.device} is not there for torch; expected "cpu" on this machine')
        return made


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLAError(f"{path}: {error}") from error


def resolve(
    name: str, base: Path, settings: Settings, what: str, files: list[str], revision: str | None = None
) -> Path:
    """The folder of a name that is a folder, relative to `base`, or an id on the hub. VLAError says how to get it."""
    folder = base / Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise VLAError(f"{base / SETTINGS}: {what} {name!r}: {folder} is no folder, and it is no id of the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=not settings.download)
        )
    except Exception as error:  # of the network, the hub or the cache; each has its own
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        what_to_do = (
            f"is this machine online and the licence of {name} accepted?" if settings.download
            else f'fetch it with `hf download {name}`, or set "download": true'
        )  # fmt: skip
        raise VLAError(
            f"{base / SETTINGS}: {what} {name!r}: no such folder here, and not in the cache of the Hugging Face hub;"
            f" {what_to_do} ({said})"
        ) from error


class Policy:
    """The folder of a policy and how this robot maps to it. Everything that does not fit is a VLAError that names it.

    ``cameras``: ours, in the policy's order.  ``action_dim``: ours.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], kind: str):
        # Progress bars and hints about training have no place in the log of a node.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.path = folder / SETTINGS
        self.settings = s = Settings.of(settings, self.path)
        self.base = folder
        self.folder = resolve(s.checkpoint, folder, s, "checkpoint", FILES, s.revision)
        self.sources = [self.folder]
        self.config = read_json(self.folder / "config.json")
        if (found := self.config.get("type")) != kind:
            where = self.folder / "config.json"
            raise VLAError(f"{where}: type: got {found!r}, this back end reads {kind!r} of LeRobot")
        if not (self.folder / "model.safetensors").is_file():
            raise VLAError(
                f"{self.folder / 'model.safetensors'} is missing; adapters (LoRA) must be merged into their model first"
            )
        self.cameras = self._cameras()
        self.steps = {name: self._steps(name) for name in (PREPROCESSOR, POSTPROCESSOR)}
        for name in REFUSED:
            if self.config.get(name):
                raise VLAError(
                    f"{self.folder / 'config.json'}: {name}: its actions are not what is executed; this back end takes"
                    " policies of actions a tick, as rlt demos export writes them"
                )
        self._states()
        self._actions()

    def _features(self, which: str, kind: str) -> dict[str, list[int]]:
        features = self.config.get(which) or {}
        return {name: list(value["shape"]) for name, value in features.items() if value.get("type") == kind}

    def _cameras(self) -> list[str]:
        features, mapping = list(self._features("input_features", "VISUAL")), dict(self.settings.cameras)
        if unknown := [name for name in mapping if name not in features]:
            raise VLAError(
                f"{self.path}: cameras: the checkpoint has no {unknown[0]!r}; it has {', '.join(features) or 'none'}"
            )
        # LeRobot's own padding cameras are there to be empty.
        unsaid = [name for name in features if name not in mapping and ".empty_camera_" not in name]
        if unsaid:
            raise VLAError(
                f"{self.path}: cameras: the checkpoint's {unsaid[0]!r} has no camera; name one of yours, or null for an"
                " empty one"
            )
        cameras = [mapping[name] for name in features if mapping.get(name) is not None]
        if not cameras:
            raise VLAError(f"{self.path}: cameras: all are empty; the policy needs one")
        if len(set(cameras)) < len(cameras):
            raise VLAError(f"{self.path}: cameras: got {', '.join(cameras)}, expected each of yours once")
        return cameras

    def _steps(self, name: str) -> list[dict[str, Any]]:
        """The steps of a processor; none where the file is missing."""
        path = self.folder / name
        if not path.is_file():
            return []
        steps = read_json(path).get("steps", [])
        for step in steps:
            called = step.get("registry_name", step.get("class", "?"))
            if called not in KNOWN_STEPS:
                raise VLAError(f"{path}: step {called!r} is not known here; it may change what the policy sees or does")
            if called in RELATIVE and step.get("config", {}).get("enabled"):
                raise VLAError(f"{path}: {called} is enabled: actions relative to the state are not supported")
        return steps

    def step(self, file: str, name: str) -> dict[str, Any]:
        """A step of a processor; empty when there is none."""
        return next((step for step in self.steps[file] if step.get("registry_name") == name), {})

    def _scale(self, name: str, value: float | list[float], length: int) -> np.ndarray:
        values = np.asarray(value, np.float32)
        values = np.full(length, values) if values.ndim == 0 else values
        if values.shape != (length,) or not np.isfinite(values).all() or not values.all():
            raise VLAError(f"{self.path}: {name}: got {value}, expected one number or {length}, none of them 0")
        return values

    def _states(self) -> None:
        s, shape = self.settings, self._features("input_features", "STATE").get(STATE)
        if shape is None:
            raise VLAError(f"{self.folder / 'config.json'}: input_features: {STATE} is missing")
        if outside := [index for index in s.state if index >= s.proprio_dim]:
            raise VLAError(f"{self.path}: state: {outside[0]} is none of {s.proprio_dim} values of the proprioception")
        padded = self.config.get("max_state_dim", 32)
        # A base model declares the padded size; what its state is, only the user knows.
        if len(s.state) > padded or (len(s.state) != shape[0] and shape[0] != padded):
            raise VLAError(f"{self.path}: state: got {len(s.state)} values, the checkpoint's {STATE} has {shape[0]}")
        self.padded_state = padded
        self.state_scale = self._scale("state_scale", s.state_scale, len(s.state))
        self.state_offset, self.state_divisor = self._statistics(
            PREPROCESSOR, "normalizer_processor", "STATE", STATE, len(s.state), EPS
        )

    def _actions(self) -> None:
        s, shape = self.settings, self._features("output_features", "ACTION").get(ACTION)
        if shape is None:
            raise VLAError(f"{self.folder / 'config.json'}: output_features: {ACTION} is missing")
        self.padded_action, length = self.config.get("max_action_dim", 32), shape[0]
        if length == self.padded_action and s.statistics is not None:  # a base model; the dataset knows how many it has
            found = read_json(self.base / Path(s.statistics).expanduser()).get(ACTION, {})
            length = min([length, *(len(found[low]) for low, _ in NORMALISATIONS.values() if low in found)])
        self.action_index = list(range(length)) if s.action is None else s.action
        if outside := [index for index in self.action_index if index >= length]:
            raise VLAError(f"{self.path}: action: {outside[0]} is none of the checkpoint's {length} actions")
        if not self.action_index or len(set(self.action_index)) < len(self.action_index):
            raise VLAError(f"{self.path}: action: got {self.action_index}, expected each index once")
        self.action_dim = len(self.action_index)
        self.action_scale = self._scale("action_scale", s.action_scale, self.action_dim)
        offset, factor = self._statistics(POSTPROCESSOR, "unnormalizer_processor", "ACTION", ACTION, length, 0.0)
        self.action_offset, self.action_factor = offset[self.action_index], factor[self.action_index]

    def _statistics(
        self, file: str, step: str, kind: str, feature: str, length: int, eps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Offset and factor, float32 [length]: the policy's number times the factor, plus the offset, is the value."""
        found = self.step(file, step)
        modes = found.get("config", {}).get("norm_map") or self.config.get("normalization_mapping", {})
        mode = modes.get(kind, "IDENTITY")
        if mode == "IDENTITY":
            return np.zeros(length, np.float32), np.ones(length, np.float32)
        if mode not in NORMALISATIONS:
            raise VLAError(f"{self.folder / file}: {feature}: unknown normalisation {mode!r}")
        names = NORMALISATIONS[mode]
        where, values = self._read_statistics(file, found, feature, names)
        low, high = (np.asarray(value, np.float64).reshape(-1) for value in values)
        for name, value in zip(names, (low, high), strict=True):
            if value.shape != (length,):
                raise VLAError(f"{where}: {feature}.{name} has {value.size} values, expected {length}")
            if not np.isfinite(value).all():
                raise VLAError(f"{where}: {feature}.{name} is not finite: {value.tolist()}; make the statistics again")
        if mode == "MEAN_STD":
            if (high < 0).any():
                raise VLAError(f"{where}: {feature}.std is negative: {high.tolist()}; make the statistics again")
            offset, factor = low, high
        else:
            if (high < low).any():
                raise VLAError(f"{where}: {feature}: {names[1]} is below {names[0]}; make the statistics again")
            offset, factor = (high + low) / 2, (high - low) / 2
        if eps:  # what never moved in the data must not be blown up when it does
            if mode != "MEAN_STD":
                offset, eps = np.where(factor == 0, low + 1, offset), 0.0  # as there, it is -1 in the data
            factor = np.where(factor == 0, 1.0, factor + eps)
        return offset.astype(np.float32), factor.astype(np.float32)

    def _read_statistics(self, file: str, step: dict[str, Any], feature: str, names: Sequence[str]):
        """The named statistics of a feature, and the file that they are from."""
        if self.settings.statistics is not None:
            where = self.base / Path(self.settings.statistics).expanduser()
            found = read_json(where).get(feature, {})
            if missing := [name for name in names if name not in found]:
                raise VLAError(f"{where}: {feature}.{missing[0]} is missing")
            return where, [found[name] for name in names]
        if not step.get("state_file"):
            raise VLAError(
                f"{self.folder / file}: no statistics of {feature} (a base model has none, old checkpoints keep them"
                f' elsewhere); name the meta/stats.json of the dataset as "statistics" in {self.path}'
            )
        where = self.folder / step["state_file"]
        try:
            with safe_open(where, "pt") as tensors:
                return where, [tensors.get_tensor(f"{feature}.{name}").numpy() for name in names]
        except Exception as error:  # safetensors has one for each fault
            raise VLAError(f"{where}: {error}") from error

    def words(self, vocabulary: int, otherwise: str, begin: bool) -> list[int]:
        """The instruction as ids, a line of its own as LeRobot has it.

        otherwise: id of the tokenizer where the checkpoint names none.  begin: with the token that begins a text.
        """
        config = self.step(PREPROCESSOR, "tokenizer_processor").get("config", {})
        named = config.get("tokenizer_name") or otherwise
        beside = [self.folder / named, self.folder / "tokenizer", self.folder]
        place = next((folder for folder in beside if (folder / "tokenizer.json").is_file()), None)
        if self.settings.tokenizer is not None or place is None:
            files = ["tokenizer*", "special_tokens_map.json", "*.model", "vocab*", "merges.txt", "config.json"]
            place = resolve(self.settings.tokenizer or named, self.base, self.settings, "tokenizer", files)
            self.sources.append(place)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=True)
        except Exception as error:  # transformers raises what it likes
            raise VLAError(f"tokenizer {place}: {str(error).splitlines()[0]}") from error
        text = self.settings.instruction.rstrip("\n") + "\n"
        ids = tokenizer(text, truncation=True, max_length=config.get("max_length", 48))["input_ids"]
        if begin and tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            ids = [tokenizer.bos_token_id, *ids]
        if not ids or max(ids) >= vocabulary:
            raise VLAError(f"tokenizer {place}: {text!r} is {ids}, of {vocabulary} words: is it another model's?")
        return ids


def load_weights(module: nn.Module, path: Path, rename: Callable[[str], str | None]) -> None:
    """Fill `module` from a file, one weight after another.

    rename: a name in the file -> ours, or None for what is not used.  VLAError names what is missing, unknown or of
    another shape.
    """
    own = module.state_dict()
    try:
        with safe_open(path, "pt") as file:
            # A head that shares its weights with the embeddings stands for them where they are not there themselves.
            names = {name: rename(name) for name in sorted(file.keys(), key=lambda name: "lm_head" not in name)}
            unknown = sorted(name for name, ours in names.items() if ours is not None and ours not in own)
            missing = sorted(set(own) - set(names.values()))
            for what, found in (("missing", missing), ("unknown", unknown)):
                if found:
                    raise VLAError(f"{path}: {len(found)} weights are {what}: {', '.join(found[:3])}")
            with torch.no_grad():
                for name, ours in names.items():
                    if ours is None:
                        continue
                    value = file.get_tensor(name)
                    if value.shape != own[ours].shape:
                        raise VLAError(f"{path}: {name} is {list(value.shape)}, expected {list(own[ours].shape)}")
                    own[ours].copy_(value)
    except VLAError:
        raise
    except Exception as error:  # safetensors has one for each fault
        raise VLAError(f"{path}: {error}") from error


class FlowPolicy(nn.Module, ABC):
    """A back end around a policy of LeRobot's that samples its chunk by a flow; the model itself is the subclass's."""

    guided = True

    def __init__(self, policy: Policy, image_size: int, image_tokens: int, embedding_dim: int, flow_steps: int):
        super().__init__()
        s = policy.settings
        self.sources = policy.sources
        self.cameras, self.proprio_dim, self.action_dim = policy.cameras, s.proprio_dim, policy.action_dim
        self.horizon = policy.config["chunk_size"]
        self.image_size, self.image_tokens, self.embedding_dim = image_size, image_tokens, embedding_dim
        self.flow_steps = s.flow_steps or flow_steps
        self.padded_state, self.padded_action = policy.padded_state, policy.padded_action
        self.dtype, self.device = DTYPES[s.dtype], torch.device(s.device)
        for name in ("state_scale", "state_offset", "state_divisor", "action_scale", "action_offset", "action_factor"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(policy, name))), persistent=False)
        for name, index in (("state_index", s.state), ("action_index", policy.action_index)):
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)
        self.register_buffer("seen", torch.ones(1, image_tokens, dtype=torch.bool), persistent=False)

    @abstractmethod
    def prefix(self, pixels: Tensor) -> tuple[Tensor, Any]:
        """Pictures [B, N, 3, S, S] in [-1, 1] -> embeddings of the image tokens [B, M, E], and what begin() needs."""

    @abstractmethod
    def begin(self, own: Any, state: Tensor) -> Any:
        """What velocity() needs: of the pictures, `own`, and of the normalised and padded state float32 [B, S]."""

    @abstractmethod
    def velocity(self, context: Any, x: Tensor, time: float) -> Tensor:
        """Of the flow at x float32 [B, H, padded], float32; time 1 is noise, 0 actions."""

    @torch.no_grad()
    def look(self, images: np.ndarray) -> tuple[Tensor, Tensor, Any]:
        """As Backend.look."""
        if images.shape[1] != len(self.cameras):
            raise VLAError(f"got pictures of {images.shape[1]} cameras, expected {len(self.cameras)}: {self.cameras}")
        pixels = torch.as_tensor(images).to(self.device).permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1.0)
        embeddings, own = self.prefix(pixels.to(self.dtype))
        return embeddings.float(), self.seen.expand(len(embeddings), -1), own

    @torch.no_grad()
    def chunk(
        self, own: Any, proprio: np.ndarray, generator: torch.Generator, guide: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """As Backend.chunk."""
        context = self.begin(own, self.states(proprio))
        x = torch.randn(len(proprio), self.horizon, self.padded_action, generator=generator).to(self.device)
        goal = None if guide is None else self.goal(*guide)
        for i in range(self.flow_steps):
            time = 1.0 - i / self.flow_steps
            velocity = self.velocity(context, x, time) if goal is None else self.corrected(context, x, time, *goal)
            x = x - velocity / self.flow_steps
        actions = x[..., self.action_index] * self.action_factor + self.action_offset
        return (actions * self.action_scale).clamp(-1, 1)

    def states(self, proprio: np.ndarray) -> Tensor:
        """Raw proprioception [B, P] -> normalised and padded state [B, padded]."""
        raw = torch.as_tensor(proprio, dtype=torch.float32).to(self.device)[:, self.state_index] * self.state_scale
        normal = (raw - self.state_offset) / self.state_divisor
        return nn.functional.pad(normal, (0, self.padded_state - normal.shape[1]))

    def goal(self, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """A guide as the flow has it: [B, H, padded] both, of no weight where the actions are not ours."""
        factor = torch.where(self.action_factor == 0, 1.0, self.action_factor)
        ours = (target.to(self.device) / self.action_scale - self.action_offset) / factor
        padded = ours.new_zeros(*ours.shape[:2], self.padded_action)
        weight = padded.clone()
        padded[..., self.action_index] = ours
        weight[..., self.action_index] = weights.to(self.device).expand_as(ours)
        return padded, weight

    def corrected(self, context: Any, x: Tensor, time: float, target: Tensor, weights: Tensor) -> Tensor:
        """The velocity, corrected towards actions that agree with `target` as Pi0.guided_step has it."""
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            velocity = self.velocity(context, start, time)
            end = start - time * velocity
            (pull,) = torch.autograd.grad(end, start, weights * (target - end.detach()))
        return velocity.detach() - guidance(time) * pull
