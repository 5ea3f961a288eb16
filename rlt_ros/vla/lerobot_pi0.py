"""π0 as LeRobot writes it (``lerobot/pi0_base`` and what was trained from it), run by the PI0 class of transformers.

Cameras that are empty are left out. LeRobot gives them black pictures and hides them from everything; hidden tokens
do not count in the positions either, so that the numbers are the same and a camera's work is saved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PI0Config, PI0ForConditionalGeneration
from transformers.initialization import no_init_weights

from rlt_ros.vla.backend import VLAError
from rlt_ros.vla.lerobot_policy import FlowPolicy, Policy, load_weights

TOKENIZER = "google/paligemma-3b-pt-224"
GEMMA = {
    "gemma_2b": dict(hidden_size=2048, num_hidden_layers=18, intermediate_size=16384),
    "gemma_300m": dict(hidden_size=1024, num_hidden_layers=18, intermediate_size=4096),
}
HEADS = dict(num_attention_heads=8, num_key_value_heads=1, head_dim=256)
SHARED = (  # what LeRobot's configuration and transformers' call the same
    "chunk_size", "max_state_dim", "max_action_dim", "num_inference_steps", "min_period", "max_period",
)  # fmt: skip
# Names in the file, by LeRobot or transformers of whatever version, to those of the class. In turn.
RENAMED = [(re.compile(pattern), name) for pattern, name in (
    (r"^model\.(?=paligemma_with_expert\.|state_proj\.|action_)", ""),
    (r"^paligemma_with_expert\.paligemma\.lm_head\.", "model.vlm.language_model.embed_tokens."),
    (r"^paligemma_with_expert\.paligemma\.(model\.)?", "model.vlm."),
    (r"^model\.vlm\.language_model\.model\.", "model.vlm.language_model."),
    (r"^model\.vlm\.vision_tower\.vision_model\.", "model.vlm.vision_tower."),
    (r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
    (r"^(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.", r"embed_action_time.\1."),
)]  # fmt: skip
# The expert reads no words; its head and its embeddings, a gigabyte, are in the files nevertheless.
UNUSED = re.compile(r"gemma_expert\.lm_head\.|gemma_expert\.model\.embed_tokens\.")


def renamed(name: str) -> str | None:
    """A weight's name in the file -> that of PI0ForConditionalGeneration; None for what it does not use."""
    if UNUSED.search(name):
        return None
    for pattern, new in RENAMED:
        name = pattern.sub(new, name)
    return name


def configuration(config: dict[str, Any], path: Path) -> PI0Config:
    """LeRobot's ``config.json`` -> transformers'. Other sizes come as transformers' `vlm_config` and `dit_config`."""
    shared = {name: config[name] for name in SHARED if name in config}
    if "vlm_config" in config:
        return PI0Config(vlm_config=config["vlm_config"], dit_config=config.get("dit_config"), **shared)
    made = PI0Config(**shared)
    parts = (("paligemma_variant", "gemma_2b", made.vlm_config.text_config),
             ("action_expert_variant", "gemma_300m", made.dit_config))  # fmt: skip
    for name, default, part in parts:
        variant = config.get(name, default)
        if variant not in GEMMA:
            raise VLAError(f"{path}: {name}: got {variant!r}, expected {' or '.join(GEMMA)}")
        for size, value in (GEMMA[variant] | HEADS).items():
            setattr(part, size, value)
    width = made.vlm_config.text_config.hidden_size
    made.vlm_config.projection_dim = made.vlm_config.vision_config.projection_dim = width
    height, width = config.get("image_resolution", (224, 224))
    if height != width:
        raise VLAError(f"{path}: image_resolution: got {height} x {width}, expected a square")
    made.vlm_config.vision_config.image_size = height
    return made


class LeRobotPi0(FlowPolicy):
    """The back end "lerobot_pi0" (:class:`rlt_ros.vla.backend.Backend`)."""

    def __init__(self, policy: Policy, model: PI0ForConditionalGeneration):
        config, vision = model.config, model.config.vlm_config.vision_config
        per_camera = (vision.image_size // vision.patch_size) ** 2
        super().__init__(
            policy, vision.image_size, per_camera * len(policy.cameras), config.vlm_config.text_config.hidden_size,
            config.num_inference_steps,
        )  # fmt: skip
        self.model = model
        words = policy.words(config.vlm_config.text_config.vocab_size, TOKENIZER, begin=True)
        self.register_buffer("words", torch.tensor([words]), persistent=False)
        self.to(self.device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> LeRobotPi0:
        """As `settings`, the ``rlt.json`` of `folder`, says. VLAError names the file and what does not fit."""
        policy = Policy(folder, settings, "pi0")
        config = configuration(policy.config, policy.folder / "config.json")
        dtype = torch.float32 if policy.settings.dtype == "float32" else torch.bfloat16
        with no_init_weights():  # the file has all of them
            model = PI0ForConditionalGeneration._from_config(config, dtype=dtype)
        model.model.dit.embed_tokens = None
        load_weights(model, policy.folder / "model.safetensors", renamed)
        return cls(policy, model)

    def prefix(self, pixels: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """As FlowPolicy.prefix; own: keys and values of each layer."""
        vlm = self.model.model.vlm
        seen = vlm.get_image_features(pixels.flatten(0, 1)).pooler_output
        seen = seen.reshape(len(pixels), self.image_tokens, self.embedding_dim)
        words = vlm.get_input_embeddings()(self.words).expand(len(pixels), -1, -1)
        inputs = torch.cat([seen.to(words.dtype), words], 1)
        everything = torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device)
        out = vlm(
            inputs_embeds=inputs, attention_mask=everything, token_type_ids=torch.zeros_like(everything),
            position_ids=everything.cumsum(1) - 1,  # left to itself, PaliGemma begins at 1, and π0 was trained from 0
            use_cache=True,
        )  # fmt: skip
        own = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return out.last_hidden_state[:, : self.image_tokens], own

    def begin(self, own: list[tuple[Tensor, Tensor]], state: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        return own, state.to(self.dtype)

    def velocity(self, context: tuple[list[tuple[Tensor, Tensor]], Tensor], x: Tensor, time: float) -> Tensor:
        (own, state), cache = context, DynamicCache()  # a new one: the step's own keys must not stay
        for layer, (keys, values) in enumerate(own):
            cache.update(keys, values, layer)
        at = torch.full((len(x),), time, device=self.device)
        return self.model(state=state, noise=x.to(self.dtype), timestep=at, past_key_values=cache).logits.float()
