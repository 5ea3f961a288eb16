"""SmolVLA in LeRobot's layout, against the same model without a cache: prefix, state and actions in one sequence."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from rlt_ros.vla import VLAError
from rlt_ros.vla.backend import load_backend
from rlt_ros.vla.lerobot_smolvla import rope

STATE = [0, 1, 2, 8, 9, 10]
WORDS = torch.tensor([[3, 4, 5, 6]])  # "plug it in\n"; nothing begins it
TOKENS = 16  # a camera


@pytest.fixture
def observed():
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    return images, random.normal(size=(1, 14)).astype(np.float32)


def softmax_attention(queries, keys, values, mask):
    """[L, heads, D]; several heads of the queries share one of the keys."""
    out = torch.zeros_like(queries)
    for head in range(queries.shape[1]):
        shared = head // (queries.shape[1] // keys.shape[1])
        scores = queries[:, head] @ keys[:, shared].T / math.sqrt(queries.shape[2])
        out[:, head] = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values[:, shared]
    return out.flatten(1)


def velocity(model, images, state, x, time):
    """The flow's velocity at x [H, 32], all in one sequence: pictures and words | state | actions."""
    pixels = torch.tensor(images[0]).permute(0, 3, 1, 2) / 127.5 - 1
    vlm, expert = model.vlm, model.expert
    seen = vlm.connector(vlm.vision_model(pixel_values=pixels).last_hidden_state).reshape(2 * TOKENS, 64)
    first = torch.cat([seen, vlm.text_model.embed_tokens(WORDS)[0]]) * 8.0
    prefix = torch.cat([first, model.state_proj(state)])
    period = 4e-3 * 1000.0 ** torch.linspace(0, 1, 24, dtype=torch.float64)
    moment = torch.cat([(2 * math.pi * time / period).sin(), (2 * math.pi * time / period).cos()]).float()
    actions = torch.cat([model.action_in_proj(x), moment.expand(len(x), -1)], -1)
    actions = model.action_time_mlp_out(functional.silu(model.action_time_mlp_in(actions)))
    p, steps = len(prefix), torch.arange(len(x))
    sees = torch.ones(p, p, dtype=torch.bool)
    sees[: p - 1, p - 1] = False  # neither pictures nor words see the state
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    heads = lambda layer, h: layer(h).unflatten(-1, (-1, 16))  # noqa: E731
    turn = lambda h, positions: rope(h[None], positions)[0]  # noqa: E731
    for i, (a, b) in enumerate(zip(vlm.text_model.layers, expert.layers, strict=True)):
        normed, own = a.input_layernorm(prefix), b.input_layernorm(actions)
        q, k, v = (heads(getattr(a.self_attn, f"{name}_proj"), normed) for name in "qkv")
        q, k = turn(q, torch.arange(p)), turn(k, torch.arange(p))
        if i % 2:
            ks, vs = heads(b.self_attn.k_proj, k.flatten(1)), heads(b.self_attn.v_proj, v.flatten(1))
            mine = turn(heads(b.self_attn.q_proj, own), steps)
            attended = softmax_attention(mine, ks, vs, torch.ones(len(x), p, dtype=torch.bool))
        else:
            mine, ks = (turn(heads(getattr(b.self_attn, f"{name}_proj"), own), p + steps) for name in "qk")
            ks, vs = torch.cat([k, ks]), torch.cat([v, heads(b.self_attn.v_proj, own)])
            attended = softmax_attention(mine, ks, vs, torch.cat([torch.ones(len(x), p, dtype=torch.bool), causal], 1))
        prefix = prefix + a.self_attn.o_proj(softmax_attention(q, k, v, sees))
        prefix = prefix + a.mlp(a.post_attention_layernorm(prefix))
        actions = actions + b.self_attn.o_proj(attended)
        actions = actions + b.mlp(b.post_attention_layernorm(actions))
    return model.action_out_proj(expert.norm(actions)), vlm.text_model.norm(prefix)[: 2 * TOKENS]


@torch.no_grad()
def test_it_gives_what_one_sequence_without_a_cache_gives(smolvla_folder, smolvla_model, observed):
    backend = load_backend(smolvla_folder.folder)
    images, proprio = observed
    mean, std = torch.tensor([0.4, 0.0, 0.1, 0.5, -0.5, 0.0]), torch.tensor([0.1, 0.2, 0.3, 1.0, 2.0, 0.5])
    state = functional.pad((torch.tensor(proprio[:, STATE]) - mean) / std, (0, 26))
    x = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(7))[0]
    for i in range(10):
        flow, embeddings = velocity(smolvla_model, images, state, x, 1 - i / 10)
        x = x - flow / 10
    expected = x[:, :4] * torch.tensor([0.05, 0.06, 0.07, 0.02]) + torch.tensor([0.1, 0.0, -0.1, 0.0])
    seen, _, own = backend.look(images)
    torch.testing.assert_close(seen[0], embeddings, atol=1e-4, rtol=0)
    actions = backend.chunk(own, proprio, torch.Generator().manual_seed(7))[0]
    torch.testing.assert_close(actions, expected.clamp(-1, 1), atol=1e-5, rtol=0)


def test_the_configuration_of_the_vlm_is_read_from_its_folder(smolvla_folder, observed):
    expected = load_backend(smolvla_folder.folder).look(observed[0])[0]
    config = smolvla_folder.read("config.json")
    vlm = config.pop("vlm_config")
    (smolvla_folder.folder / "vlm").mkdir()
    (smolvla_folder.folder / "vlm" / "config.json").write_text(json.dumps({"model_type": "smolvlm"} | vlm))
    smolvla_folder.write("config.json", config | {"vlm_model_name": "vlm"})
    assert torch.equal(load_backend(smolvla_folder.folder).look(observed[0])[0], expected)
    shutil.rmtree(smolvla_folder.folder / "vlm")
    with pytest.raises(VLAError, match="VLM's config.json 'vlm'"):
        load_backend(smolvla_folder.folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "pi0"}, "type: got 'pi0', this back end reads 'smolvla'"),
        ({"attention_mode": "self_attn"}, "attention_mode: got 'self_attn'"),
        ({"add_image_special_tokens": True}, "add_image_special_tokens: got True"),
        ({"num_expert_layers": 2}, "num_expert_layers: got 2"),
        ({"resize_imgs_with_padding": [64, 48]}, "expected a square"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha"),
        ({"num_vlm_layers": 5}, "weights are missing: .*layers.4"),
        ({"num_vlm_layers": 3}, "weights are unknown: .*layers.3"),
    ],
)
def test_what_does_not_fit_is_named(smolvla_folder, change, says):
    smolvla_folder.change("config.json", **change)
    with pytest.raises(VLAError, match=says):
        load_backend(smolvla_folder.folder)
