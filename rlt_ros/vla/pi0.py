"""π0 as Hugging Face transformers has it: observations in; reference chunk and final-layer prefix embeddings out.

A checkpoint folder holds what ``save_pretrained`` writes (``config.json``, ``model.safetensors``) and the words of the
tokenizer, plus ``rlt.json``: which cameras in which order, which part of the proprioception, and the statistics that
states and actions are normalised with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PI0Config, PI0ForConditionalGeneration
from transformers.utils import logging

from rlt_ros.vla.backend import SETTINGS, read_settings
from rlt_ros.vla.guidance import guidance


@dataclass
class Pi0Io:
    """How observations become π0's inputs and its outputs become actions; ``rlt.json`` in the checkpoint folder."""

    cameras: list[str]
    instruction: str
    proprio_dim: int
    state_index: list[int]  # which values of the proprioception the model is given
    state_mean: list[float]
    state_std: list[float]
    action_mean: list[float]
    action_std: list[float]
    vocabulary: list[str]  # word -> id by position; the first is padding, the last is the image placeholder
    flow_steps: int = 10

    @classmethod
    def of(cls, settings: dict, path: Path) -> Pi0Io:
        """From what `path` says; ValueError names the file and the key when it does not fit."""
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))


def small_config(vocabulary: int, action_dim: int, state_dim: int) -> PI0Config:
    """A π0 of 0.9 M parameters for 96-pixel pictures: the same class as the 3 B one, all widths turned down.

    16-pixel patches give 36 tokens a camera: fewer and larger patches train several times faster on a CPU.
    """
    width, heads, layers = 96, 4, 2
    text = dict(
        model_type="gemma", hidden_size=width, num_hidden_layers=layers, intermediate_size=256,
        num_attention_heads=heads, num_key_value_heads=1, head_dim=24, vocab_size=vocabulary, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    vision = dict(
        model_type="siglip_vision_model", hidden_size=width, intermediate_size=288, num_hidden_layers=4,
        num_attention_heads=heads, patch_size=16, image_size=96, vision_use_head=False,
    )  # fmt: skip
    dit = dict(
        model_type="gemma", hidden_size=width, num_hidden_layers=layers, intermediate_size=256,
        num_attention_heads=heads, num_key_value_heads=1, head_dim=24, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return PI0Config(
        vlm_config=dict(
            model_type="paligemma",
            text_config=text,
            vision_config=vision,
            projection_dim=width,
            image_token_id=vocabulary - 1,
        ),
        dit_config=dit,
        chunk_size=50,
        max_state_dim=state_dim,
        max_action_dim=action_dim,
    )


class Pi0(nn.Module):
    """π0 and the conversions around it. Pictures are uint8 [B, cameras, S, S, 3], states raw SI [B, P].

    The back end "pi0" (:class:`rlt_ros.vla.backend.Backend`): the layout of the checkpoint that ships.
    """

    guided = traceable = True
    device = torch.device("cpu")

    def __init__(self, model: PI0ForConditionalGeneration, io: Pi0Io):
        super().__init__()
        self.model, self.io = model, io
        config = model.config
        self.cameras, self.proprio_dim = list(io.cameras), io.proprio_dim
        self.image_size = config.vlm_config.vision_config.image_size
        self.horizon = config.chunk_size
        self.action_dim = len(io.action_mean)
        self.embedding_dim = config.vlm_config.text_config.hidden_size
        patches = (self.image_size // config.vlm_config.vision_config.patch_size) ** 2
        self.image_tokens = patches * len(io.cameras)
        words = [io.vocabulary.index(w) for w in io.instruction.lower().split()]
        ids = [config.vlm_config.image_token_id] * self.image_tokens + [1, *words]
        self.register_buffer("input_ids", torch.tensor([ids]), persistent=False)
        for name in ("state_mean", "state_std", "action_mean", "action_std"):
            self.register_buffer(name, torch.tensor(getattr(io, name)), persistent=False)
        self.register_buffer("state_index", torch.tensor(io.state_index), persistent=False)
        self.register_buffer("seen", torch.ones(1, self.image_tokens, dtype=torch.bool), persistent=False)

    @classmethod
    def load(cls, folder: Path, settings: dict | None = None) -> Pi0:
        """Load a checkpoint folder; `settings`: its ``rlt.json``. ValueError names the file that does not fit."""
        # Progress bars and hints about training have no place in the log of a node.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        settings = read_settings(folder) if settings is None else settings
        io = Pi0Io.of({name: value for name, value in settings.items() if name != "backend"}, folder / SETTINGS)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing")
        model, report = PI0ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager", local_files_only=True,
            ignore_mismatched_sizes=True,  # they stand in the report, and not in the error that it would be
        )  # fmt: skip
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(what):
                raise ValueError(
                    f"{folder / 'model.safetensors'}: {what.replace('_', ' ')}: {sorted(map(str, report[what]))[:3]}"
                )
        return cls(model, io).eval()

    def save(self, folder: Path) -> None:
        """Write the checkpoint in float16 (the weights are rounded, not the arithmetic)."""
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model.half()
        model.save_pretrained(folder)
        model.float()
        self.io.write(folder / SETTINGS)

    def pixels(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 [B, N, S, S, 3] -> float [B, N, 3, S, S] in [-1, 1]."""
        return torch.as_tensor(images).to(self.device).permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1.0)

    def states(self, proprio: np.ndarray | Tensor) -> Tensor:
        """Raw proprioception [B, P] -> normalised state [B, S]."""
        raw = torch.as_tensor(proprio, dtype=torch.float32).to(self.device)[:, self.state_index]
        return ((raw - self.state_mean) / self.state_std).clamp(-6, 6)

    def look(self, images: np.ndarray) -> tuple[Tensor, Tensor, DynamicCache]:
        """As Backend.look."""
        cache, embeddings = self.prefix(self.pixels(images))
        return embeddings, self.seen.expand(len(embeddings), -1), cache

    def prefix(self, pixels: Tensor):
        """Run pictures and instruction through the VLM once.

        Returns its key-value cache and the final-layer embeddings of the image tokens, [B, M, E] (the language's are
        dropped, arXiv 2604.23073, section on the token).
        """
        return self.read(self.see(pixels))

    def see(self, pixels: Tensor) -> Tensor:
        """The vision tower alone: float [B, N, 3, S, S] -> [B, M, E], the cameras' tokens one after another."""
        features = self.model.model.vlm.get_image_features(pixels.flatten(0, 1)).pooler_output
        return features.reshape(len(pixels), self.image_tokens, self.embedding_dim)

    def read(self, features: Tensor):
        """The language trunk over what :meth:`see` gave, followed by the instruction."""
        ids = self.input_ids.expand(len(features), -1)
        words = self.model.model.get_input_embeddings()(ids[:, self.image_tokens :])
        out = self.model.model.vlm(
            inputs_embeds=torch.cat([features, words], 1), attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids), use_cache=True,
        )  # fmt: skip
        return out.past_key_values, out.last_hidden_state[:, : self.image_tokens]

    def flow_loss(self, cache, proprio: Tensor, actions: Tensor) -> Tensor:
        """Flow-matching loss of normalised ``actions`` [B, H, A] under a prefix cache; times by a Beta as in π0."""
        labels = (actions - self.action_mean) / self.action_std
        return self.model(state=self.states(proprio), actions=labels, past_key_values=cache).loss

    @torch.no_grad()
    def chunk(
        self, own: DynamicCache, proprio: np.ndarray, generator: torch.Generator | None = None,
        guide: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """As Backend.chunk: integrate the flow from noise at time 1 to actions at time 0."""
        state = self.states(proprio)
        noise = torch.randn(len(state), self.horizon, self.action_dim, generator=generator)  # on the CPU, as anywhere
        return self.flow(own, state, noise.to(self.device), guide)

    def flow(self, cache, state: Tensor, noise: Tensor, guide: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The same from a given normalised state [B, S] and noise [B, H, A]; the cache is as before afterwards."""
        x, length, steps = noise, cache.get_seq_length(), self.io.flow_steps
        if guide is not None:
            prefix = [part for layer in cache.layers for part in (layer.keys, layer.values)]
            return self.guided_flow(self.guided_step, prefix, state, noise, guide)
        for i in range(steps):
            time = torch.full((len(state),), 1.0 - i / steps, device=x.device)
            out = self.model(state=state, noise=x, timestep=time, past_key_values=cache)
            cache.crop(length - cache.get_seq_length())  # forget this step, keep the prefix
            x = x - out.logits / steps
        return self.actions(x)

    def guided_flow(
        self, step, prefix: list[Tensor], state: Tensor, noise: Tensor, guide: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The flow by `step`, which is :meth:`guided_step` or a recording of it; the rest as there."""
        target, weights = (part.to(noise.device) for part in guide)
        target = (target - self.action_mean) / self.action_std
        x, steps = noise, self.io.flow_steps
        for i in range(steps):
            at = 1.0 - i / steps
            time = torch.full((len(state),), at, device=x.device)
            gain = torch.full((), guidance(at), device=x.device)
            x = step(prefix, state, x, time, gain, target, weights)
        return self.actions(x)

    def guided_step(
        self, prefix: list[Tensor], state: Tensor, x: Tensor, time: Tensor, gain: Tensor, target: Tensor,
        weights: Tensor,
    ) -> Tensor:  # fmt: skip
        """A step of the flow, corrected towards actions that agree with `target` (real-time chunking, arXiv
        2506.07339): by the gradient, through the model, of how far this step would end from it.

        prefix: keys and values of the layers, in turn.  time [B].  target [B, H, A], as x.  weights [B, H, 1].
        """
        cache = DynamicCache()
        for layer in range(len(prefix) // 2):
            cache.update(prefix[2 * layer], prefix[2 * layer + 1], layer)
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            velocity = self.model(state=state, noise=start, timestep=time, past_key_values=cache).logits
            end = start - time[:, None, None] * velocity
            (pull,) = torch.autograd.grad(end, start, weights * (target - end.detach()))
        return x - (velocity.detach() - gain * pull) / self.io.flow_steps

    def actions(self, x: Tensor) -> Tensor:
        """What the flow ends in, as actions in the task's normalised units."""
        return (x * self.action_std + self.action_mean).clamp(-1, 1)
