"""The shipped VLA and something for it to look at; small policies in the layout that LeRobot writes."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load

INSTRUCTION, VOCABULARY = "plug it in", 16
WORDS = ("<pad>", "<bos>", "<unk>", "plug", "it", "in", "\n")
STATE = [0, 1, 2, 8, 9, 10]  # of 14 values
STATISTICS = {
    "observation.state": {"mean": [0.4, 0.0, 0.1, 0.5, -0.5, 0.0], "std": [0.1, 0.2, 0.3, 1.0, 2.0, 0.5]},
    "action": {"mean": [0.1, 0.0, -0.1, 0.0], "std": [0.05, 0.06, 0.07, 0.02]},
}
CAMERAS = {
    "observation.images.base_0_rgb": "base", "observation.images.left_wrist_0_rgb": "wrist",
    "observation.images.right_wrist_0_rgb": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def vla():
    return load("ethernet")


@pytest.fixture(scope="module")
def scene():
    env = TaskEnv(load_task("ethernet"), seed=11)
    yield env.images(), env.proprio()
    env.close()


class LeRobotFolder:
    """A policy's folder as LeRobot writes it, with our rlt.json, and ways to spoil it."""

    def __init__(self, folder, kind: str, weights: dict[str, torch.Tensor], config: dict, tokenizer: str):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        size = config.pop("size")
        visual = {name: {"type": "VISUAL", "shape": [3, size, size]} for name in CAMERAS}
        inputs = visual | {"observation.state": {"type": "STATE", "shape": [len(STATE)]}}
        outputs = {"action": {"type": "ACTION", "shape": [4]}}
        norms = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
        shared = {
            "type": kind, "n_obs_steps": 1, "chunk_size": 50, "n_action_steps": 50, "max_state_dim": 32,
            "max_action_dim": 32, "input_features": inputs, "output_features": outputs, "normalization_mapping": norms,
            "empty_cameras": 0, "tokenizer_max_length": 48, "device": "cpu",
        }  # fmt: skip
        self.write("config.json", shared | config)
        normalise = {"eps": 1e-8, "features": inputs | outputs, "norm_map": norms}
        words = {"max_length": 48, "task_key": "task", "padding_side": "right", "padding": "max_length",
                 "truncation": True, "tokenizer_name": tokenizer}  # fmt: skip
        self.processor("policy_preprocessor", [
            ("rename_observations_processor", {"rename_map": {}}), ("to_batch_processor", {}),
            (f"{kind}_new_line_processor", {}), ("tokenizer_processor", words),
            ("device_processor", {"device": "cpu", "float_dtype": None}), ("normalizer_processor", normalise),
        ])  # fmt: skip
        self.processor("policy_postprocessor", [
            ("unnormalizer_processor", normalise | {"features": outputs}),
            ("device_processor", {"device": "cpu", "float_dtype": None}),
        ])  # fmt: skip
        self.weights(weights)
        self.words()
        self.write("rlt.json", {
            "backend": f"lerobot_{kind}", "cameras": CAMERAS, "proprio_dim": 14, "state": STATE,
            "instruction": INSTRUCTION,
        })  # fmt: skip

    def write(self, name: str, value: dict) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def change(self, name: str, **values) -> None:
        self.write(name, self.read(name) | values)

    def processor(self, name: str, steps: list[tuple[str, dict]]) -> None:
        written = []
        for i, (step, config) in enumerate(steps):
            written.append({"registry_name": step, "config": config})
            if "normalizer" in step:
                written[-1]["state_file"] = f"{name}_step_{i}_{step}.safetensors"
                self.statistics(written[-1]["state_file"], STATISTICS)
        self.write(f"{name}.json", {"name": name, "steps": written})

    def statistics(self, name: str, statistics: dict) -> None:
        flat = {f"{feature}.{key}": torch.tensor(values) for feature, found in statistics.items()
                for key, values in found.items()}  # fmt: skip
        save_file(flat, self.folder / name)

    def weights(self, weights: dict[str, torch.Tensor]) -> None:
        save_file({name: value.contiguous().clone() for name, value in weights.items()},
                  self.folder / "model.safetensors")  # fmt: skip

    def words(self, words=WORDS) -> None:
        """A tokenizer beside the policy, as newer versions of LeRobot keep it."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")
        fast.save_pretrained(self.folder / "tokenizer")


@pytest.fixture(scope="session")
def pi0_model():
    """A small π0 of transformers', with LeRobot's padded sizes."""
    from transformers import PI0ForConditionalGeneration

    from rlt_ros.vla.pi0 import small_config

    torch.manual_seed(0)
    config = small_config(VOCABULARY, 32, 32)
    return PI0ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def lerobot_names(model, prefix: str = "model.", vision: str = "vision_model.") -> dict[str, torch.Tensor]:
    """The weights under LeRobot's names. `vision`: its older versions have one module more there."""
    trunk, expert = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
    rules = (
        (r"^model\.vlm\.language_model\.embed_tokens\.", trunk + "lm_head."),  # tied, and kept once
        (r"^model\.dit\.embed_tokens\.", expert + "lm_head."),
        (r"^model\.vlm\.vision_tower\.", trunk + "model.vision_tower." + vision),
        (r"^model\.vlm\.", trunk + "model."),
        (r"^model\.dit\.", expert + "model."),
        (r"^embed_action_time\.", ""),
    )
    named = {}
    for name, value in model.state_dict().items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        named[prefix + name] = value
    return named


@pytest.fixture
def pi0_names():
    return lerobot_names


@pytest.fixture
def pi0_folder(tmp_path, pi0_model):
    config = {
        "size": 96, "num_inference_steps": 10, "image_resolution": [96, 96], "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m", "dtype": "float32", "use_relative_actions": False,
        "vlm_config": pi0_model.config.vlm_config.to_dict(), "dit_config": pi0_model.config.dit_config.to_dict(),
    }  # fmt: skip
    return LeRobotFolder(tmp_path / "pi0", "pi0", lerobot_names(pi0_model), config, "google/paligemma-3b-pt-224")


SMOL = {
    "size": 64, "num_steps": 10, "resize_imgs_with_padding": [64, 64], "num_vlm_layers": 4, "num_expert_layers": -1,
    "self_attn_every_n_layers": 2, "expert_width_multiplier": 0.75, "attention_mode": "cross_attn",
    "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "vlm_config": {
        "text_config": {
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY,
            "pad_token_id": 0, "rms_norm_eps": 1e-5,
        },
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8,
        },
        "scale_factor": 2, "image_token_id": 15,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def smolvla_model():
    """A small SmolVLA: four layers, of which two cross."""
    from transformers import SmolVLMConfig

    from rlt_ros.vla.lerobot_smolvla import SmolVLA

    torch.manual_seed(0)
    return SmolVLA(SMOL, SmolVLMConfig(**copy.deepcopy(SMOL["vlm_config"])), torch.float32).eval()


@pytest.fixture
def smolvla_folder(tmp_path, smolvla_model):
    rules = ((r"^vlm\.", "vlm_with_expert.vlm.model."), (r"^expert\.", "vlm_with_expert.lm_expert."))
    weights = {"model.vlm_with_expert.vlm.lm_head.weight": torch.zeros(VOCABULARY, 64)}
    for name, value in smolvla_model.state_dict().items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        weights[f"model.{name}"] = value
    return LeRobotFolder(tmp_path / "smolvla", "smolvla", weights, copy.deepcopy(SMOL), SMOL["vlm_model_name"])
