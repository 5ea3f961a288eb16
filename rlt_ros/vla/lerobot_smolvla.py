"""SmolVLA as LeRobot writes it (``lerobot/smolvla_base`` and what was trained from it), without LeRobot.

The vision tower, the connector and the layers are those of transformers' SmolVLM and Llama; how the action expert hangs
on them is written here. Of its layers, every other attends to the pictures' keys together with its own, the others to
the pictures' keys alone. The state is the last token of the prefix, and nothing before it sees it: it can come later,
so that the pictures are looked at without it.
"""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, LlamaModel, SmolVLMConfig, SmolVLMModel
from transformers.initialization import no_init_weights

from rlt_ros.vla.backend import VLAError
from rlt_ros.vla.lerobot_policy import DTYPES, FlowPolicy, Policy, load_weights, resolve

ROPE = 10_000.0  # whatever the VLM's own configuration says: the policy was trained with this
RENAMED = [(re.compile(pattern), name) for pattern, name in (
    (r"^(model\.)?vlm_with_expert\.vlm\.lm_head\.", "vlm.text_model.embed_tokens."),  # where they are one
    (r"^(model\.)?vlm_with_expert\.vlm\.model\.", "vlm."),
    (r"^(model\.)?vlm_with_expert\.lm_expert\.", "expert."),
    (r"^model\.(?=state_proj\.|action_)", ""),
)]  # fmt: skip
UNUSED = re.compile(r"lm_expert\.(lm_head|embed_tokens)\.")  # the expert reads and writes no words

Layers = list[tuple[Tensor, Tensor]]  # keys and values [B, L, heads, D] of each layer


def renamed(name: str) -> str | None:
    """A weight's name in the file -> that of :class:`SmolVLA`; None for what it does not use."""
    if UNUSED.search(name):
        return None
    for pattern, new in RENAMED:
        name = pattern.sub(new, name)
    return name


def rope(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions [L] on x [B, L, heads, D], in float32."""
    half = x.shape[-1] // 2
    turns = positions.float()[:, None] / ROPE ** (torch.arange(half, device=x.device) / half)  # [L, D / 2]
    sin, cos = turns.sin()[:, None], turns.cos()[:, None]
    a, b = x.float().split(half, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over [B, L, heads, D], where several heads of the queries share one of the keys: [B, L, heads * D]."""
    shared = queries.shape[2] // keys.shape[2]
    q, k, v = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    return functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class SmolVLA(nn.Module):
    """The weights, under names near those of the file."""

    def __init__(self, config: dict[str, Any], vlm: SmolVLMConfig, dtype: torch.dtype):
        super().__init__()
        text = vlm.text_config
        text.num_hidden_layers = min(text.num_hidden_layers, config.get("num_vlm_layers", 16))
        expert = copy.deepcopy(text)
        expert.hidden_size = width = int(text.hidden_size * config.get("expert_width_multiplier", 0.75))
        expert.intermediate_size = 256 * math.ceil(4 * int(2 * width / 3) / 256)
        every = config.get("self_attn_every_n_layers", 2)
        self.crossing = [not (every > 0 and i % every == 0) for i in range(text.num_hidden_layers)]
        self.head_dim = text.head_dim
        self.vlm = SmolVLMModel._from_config(vlm, dtype=dtype)
        self.expert = LlamaModel._from_config(expert, dtype=dtype)
        self.expert.embed_tokens = None
        keys = text.num_key_value_heads * text.head_dim
        for layer, crosses in zip(self.expert.layers, self.crossing, strict=True):
            if crosses:  # it reads the VLM's keys, not its own stream
                for name in ("k_proj", "v_proj"):
                    setattr(layer.self_attn, name, nn.Linear(keys, keys, bias=text.attention_bias, dtype=dtype))
        states, actions = config.get("max_state_dim", 32), config.get("max_action_dim", 32)
        self.state_proj = nn.Linear(states, text.hidden_size, dtype=dtype)
        self.action_in_proj = nn.Linear(actions, width, dtype=dtype)
        self.action_out_proj = nn.Linear(width, actions, dtype=dtype)
        self.action_time_mlp_in = nn.Linear(2 * width, width, dtype=dtype)
        self.action_time_mlp_out = nn.Linear(width, width, dtype=dtype)
        fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64)
        low, high = config.get("min_period", 4e-3), config.get("max_period", 4.0)
        self.register_buffer("frequencies", 2 * math.pi / (low * (high / low) ** fraction), persistent=False)

    def heads(self, projection: nn.Linear, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (-1, self.head_dim))

    def project(self, layer: nn.Module, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a layer, with their positions."""
        x, attention = layer.input_layernorm(x), layer.self_attn
        queries, keys = self.heads(attention.q_proj, x), self.heads(attention.k_proj, x)
        return rope(queries, positions), rope(keys, positions), self.heads(attention.v_proj, x)

    @staticmethod
    def finish(layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a layer."""
        x = x + layer.self_attn.o_proj(attended)
        return x + layer.mlp(layer.post_attention_layernorm(x))


class LeRobotSmolVLA(FlowPolicy):
    """The back end "lerobot_smolvla" (:class:`rlt_ros.vla.backend.Backend`)."""

    def __init__(self, policy: Policy, model: SmolVLA):
        vlm = model.vlm.config
        side = policy.config.get("resize_imgs_with_padding") or [vlm.vision_config.image_size] * 2
        if side[0] != side[1]:
            raise VLAError(f"{policy.folder / 'config.json'}: resize_imgs_with_padding: got {side}, expected a square")
        per_camera = (side[0] // vlm.vision_config.patch_size // vlm.scale_factor) ** 2
        super().__init__(
            policy, side[0], per_camera * len(policy.cameras), vlm.text_config.hidden_size,
            policy.config.get("num_steps", 10),
        )  # fmt: skip
        self.model = model
        words = policy.words(vlm.text_config.vocab_size, policy.config["vlm_model_name"], begin=False)
        self.register_buffer("words", torch.tensor([words]), persistent=False)
        self.prefixed = self.image_tokens + len(words) + 1  # with the state
        self.to(self.device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> LeRobotSmolVLA:
        """As `settings`, the ``rlt.json`` of `folder`, says. VLAError names the file and what does not fit."""
        policy = Policy(folder, settings, "smolvla")
        config, path = policy.config, policy.folder / "config.json"
        config.setdefault("vlm_model_name", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
        for name, only in (("attention_mode", "cross_attn"), ("add_image_special_tokens", False)):
            if config.get(name, only) != only:
                raise VLAError(f"{path}: {name}: got {config[name]!r}, this back end knows {only!r}")
        if config.get("num_expert_layers", -1) not in (-1, 0, config.get("num_vlm_layers", 16)):
            raise VLAError(f"{path}: num_expert_layers: got {config['num_expert_layers']}, expected one a VLM layer")
        if "vlm_config" in config:  # of another size, written out
            vlm = SmolVLMConfig(**config["vlm_config"])
        else:
            place = resolve(config["vlm_model_name"], folder, policy.settings, "the VLM's config.json", ["config.json"])
            vlm = AutoConfig.from_pretrained(str(place), local_files_only=True)
        with no_init_weights():  # the file has all of them
            model = SmolVLA(config, vlm, DTYPES[policy.settings.dtype])
        load_weights(model, policy.folder / "model.safetensors", renamed)
        return cls(policy, model)

    def prefix(self, pixels: Tensor) -> tuple[Tensor, Layers]:
        """As FlowPolicy.prefix; own: the keys and values of pictures and words."""
        model, text = self.model, self.model.vlm.text_model
        seen = model.vlm.connector(model.vlm.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state)
        seen = seen.reshape(len(pixels), self.image_tokens, self.embedding_dim)
        words = text.embed_tokens(self.words).expand(len(pixels), -1, -1)
        x, own = torch.cat([seen, words], 1) * math.sqrt(self.embedding_dim), []
        positions = torch.arange(x.shape[1], device=self.device)
        for layer in text.layers:
            queries, keys, values = model.project(layer, x, positions)
            own.append((keys, values))
            x = model.finish(layer, x, attend(queries, keys, values))
        return text.norm(x)[:, : self.image_tokens], own

    def begin(self, own: Layers, state: Tensor) -> Layers:
        """The keys and values that the expert's layers read: those of the prefix with the state at its end."""
        model, grown = self.model, []
        x = model.state_proj(state.to(self.dtype))[:, None]
        position = torch.tensor([self.prefixed - 1], device=self.device)
        parts = zip(model.vlm.text_model.layers, model.expert.layers, model.crossing, own, strict=True)
        for layer, expert, crosses, (keys, values) in parts:
            queries, key, value = model.project(layer, x, position)
            keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
            x = model.finish(layer, x, attend(queries, keys, values))
            if crosses:  # the same in every step of the flow
                keys = model.heads(expert.self_attn.k_proj, keys.flatten(2))
                values = model.heads(expert.self_attn.v_proj, values.flatten(2))
            grown.append((keys, values))
        return grown

    def velocity(self, context: Layers, x: Tensor, time: float) -> Tensor:
        model, steps = self.model, torch.arange(self.horizon, device=self.device)
        actions = model.action_in_proj(x.to(self.dtype))
        angles = time * model.frequencies
        moment = torch.cat([angles.sin(), angles.cos()]).to(self.dtype).expand_as(actions)
        x = model.action_time_mlp_out(functional.silu(model.action_time_mlp_in(torch.cat([actions, moment], -1))))
        # An action sees the prefix and the actions before it.
        mask = torch.ones(self.horizon, self.prefixed + self.horizon, dtype=torch.bool, device=self.device)
        mask = mask.tril(self.prefixed)
        for layer, crosses, (keys, values) in zip(model.expert.layers, model.crossing, context, strict=True):
            if crosses:
                queries = rope(model.heads(layer.self_attn.q_proj, layer.input_layernorm(x)), steps)
                attended = attend(queries, keys, values)
            else:
                queries, key, value = model.project(layer, x, self.prefixed + steps)
                keys, values = torch.cat([keys, key], 1), torch.cat([values, value], 1)
                attended = attend(queries, keys, values, mask)
            x = model.finish(layer, x, attended)
        return model.action_out_proj(model.expert.norm(x)).float()
