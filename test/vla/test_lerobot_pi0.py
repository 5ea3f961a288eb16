"""π0 in LeRobot's layout: the same numbers as the model itself, and words that help for whatever does not fit."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import PI0Config, PI0ForConditionalGeneration

from rlt_ros.cli.main import main
from rlt_ros.core.joining import Prefix
from rlt_ros.core.rl_token import RLToken, TokenConfig
from rlt_ros.sim.task import task_folder
from rlt_ros.vla import VLAError, load
from rlt_ros.vla.backend import load_backend
from rlt_ros.vla.lerobot_pi0 import configuration
from rlt_ros.vla.traced import TracedVLA

STATE = [0, 1, 2, 8, 9, 10]
CAMERAS = ["base", "wrist"]  # in the policy's order, which is not that of the scene
IMAGE, WORDS = 15, [1, 3, 4, 5, 6]  # ids of the picture's place, and of "<bos>plug it in\n"
PATCHES = 36  # a camera


@pytest.fixture
def observed():
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (1, 2, 96, 96, 3), np.uint8)
    return images, random.normal(size=(1, 14)).astype(np.float32)


def statistics(folder) -> dict[str, torch.Tensor]:
    return load_file(folder.folder / "policy_preprocessor_step_5_normalizer_processor.safetensors")


def inputs(folder, observed) -> dict[str, torch.Tensor]:
    """What LeRobot would give the model, and the noise that seed 7 gives."""
    images, proprio = observed
    found = statistics(folder)
    state = torch.tensor(proprio[:, STATE]) - found["observation.state.mean"]
    state = torch.nn.functional.pad(state / (found["observation.state.std"] + 1e-8), (0, 32 - len(STATE)))
    return {
        "state": state, "pixel_values": torch.tensor(images).permute(0, 1, 4, 2, 3) / 127.5 - 1,
        "noise": torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(7)),
    }  # fmt: skip


def chunk(backend, observed, seed: int = 7) -> torch.Tensor:
    images, proprio = observed
    return backend.chunk(backend.look(images)[2], proprio, torch.Generator().manual_seed(seed))


def unnormalised(folder, actions: torch.Tensor) -> torch.Tensor:
    found = statistics(folder)
    return (actions[..., :4] * found["action.std"] + found["action.mean"]).clamp(-1, 1)


def test_the_chunk_is_that_of_the_model_itself(pi0_folder, pi0_model, observed):
    backend = load_backend(pi0_folder.folder)
    assert list(backend.cameras) == CAMERAS
    ids = torch.tensor([[IMAGE] * 2 * PATCHES + WORDS])
    direct = pi0_model.sample_actions(
        **inputs(pi0_folder, observed), input_ids=ids, attention_mask=torch.ones_like(ids),
        pixel_attention_mask=torch.ones(1, 2, dtype=torch.bool),
    )  # fmt: skip
    torch.testing.assert_close(chunk(backend, observed), unnormalised(pi0_folder, direct), atol=1e-6, rtol=0)


def test_an_empty_camera_that_is_left_out_is_one_that_is_hidden(pi0_folder, pi0_model, observed):
    given = inputs(pi0_folder, observed)
    black = torch.full_like(given["pixel_values"][:, :1], -1.0)  # LeRobot's picture of a camera that is not there
    ids = torch.tensor([[IMAGE] * 3 * PATCHES + WORDS])
    seen = torch.ones_like(ids)
    seen[:, 2 * PATCHES : 3 * PATCHES] = 0
    direct = pi0_model.sample_actions(
        **given | {"pixel_values": torch.cat([given["pixel_values"], black], 1)}, input_ids=ids, attention_mask=seen,
        pixel_attention_mask=torch.ones(1, 3, dtype=torch.bool),
    )  # fmt: skip
    ours = chunk(load_backend(pi0_folder.folder), observed)
    torch.testing.assert_close(ours, unnormalised(pi0_folder, direct), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("prefix", "vision"), [("model.", "vision_model."), ("", "vision_model."), ("model.", "")])
def test_names_of_all_versions_are_read(pi0_folder, pi0_model, pi0_names, prefix, vision):
    pi0_folder.weights(pi0_names(pi0_model, prefix, vision))
    ours, theirs = load_backend(pi0_folder.folder).model.state_dict(), pi0_model.state_dict()
    assert set(theirs) - set(ours) == {"model.dit.embed_tokens.weight"}  # the expert reads no words
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    pi0_folder.write("config.json", pi0_model.config.to_dict())  # transformers knows these names, too
    again, report = PI0ForConditionalGeneration.from_pretrained(pi0_folder.folder, output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())


def test_names_as_transformers_saves_them_are_read(pi0_folder, pi0_model, tmp_path):
    pi0_model.save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "model.safetensors", pi0_folder.folder)
    ours, theirs = load_backend(pi0_folder.folder).model.state_dict(), pi0_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_actions_can_be_reordered_and_scaled(pi0_folder, observed):
    whole = chunk(load_backend(pi0_folder.folder), observed)
    pi0_folder.change("rlt.json", action=[2, 0], action_scale=[0.5, -1.0])
    backend = load_backend(pi0_folder.folder)
    assert backend.action_dim == 2
    torch.testing.assert_close(chunk(backend, observed), whole[..., [2, 0]] * torch.tensor([0.5, -1.0]))


def test_the_state_is_scaled_to_the_policys_unit(pi0_folder, observed):
    images, proprio = observed
    plain = chunk(load_backend(pi0_folder.folder), observed)
    other = chunk(load_backend(pi0_folder.folder), (images, proprio + 0.5))
    assert (plain - other).abs().max() > 1e-5  # the state is looked at
    pi0_folder.change("rlt.json", state_scale=100.0)
    scaled = chunk(load_backend(pi0_folder.folder), (images, proprio / 100))
    torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mode", "names", "low", "high"),
    [("MIN_MAX", ("min", "max"), -1.0, 3.0), ("QUANTILES", ("q01", "q99"), -2.0, 2.0)],
)
def test_ranges_are_normalised_to_plus_minus_one(pi0_folder, mode, names, low, high):
    for name, feature, step, size in (("policy_preprocessor", "observation.state", 5, 6),
                                      ("policy_postprocessor", "action", 0, 4)):  # fmt: skip
        steps = pi0_folder.read(f"{name}.json")
        steps["steps"][step]["config"]["norm_map"] |= {"STATE": mode, "ACTION": mode}
        pi0_folder.write(f"{name}.json", steps)
        values = {names[0]: [low] * size, names[1]: [high] * size}
        pi0_folder.statistics(steps["steps"][step]["state_file"], {feature: values})
    backend = load_backend(pi0_folder.folder)
    ends = backend.states(np.stack([np.full(14, low), np.full(14, high)]).astype(np.float32))
    torch.testing.assert_close(ends[:, :6], torch.tensor([[-1.0] * 6, [1.0] * 6]))
    assert (ends[:, 6:] == 0).all()
    torch.testing.assert_close(backend.action_factor, torch.full((4,), (high - low) / 2))
    torch.testing.assert_close(backend.action_offset, torch.full((4,), (high + low) / 2))


def test_a_value_that_never_moved_in_the_data_does_not_blow_up(pi0_folder):
    found = statistics(pi0_folder)
    still = {"observation.state": {"mean": [0.0] * 6, "std": [0.0] + found["observation.state.std"].tolist()[1:]}}
    pi0_folder.statistics("policy_preprocessor_step_5_normalizer_processor.safetensors", still)
    states = load_backend(pi0_folder.folder).states(np.full((1, 14), 0.01, np.float32))
    assert states.abs().max() < 1


def test_a_base_model_takes_the_statistics_of_a_dataset(pi0_folder, observed):
    expected = chunk(load_backend(pi0_folder.folder), observed)
    config = pi0_folder.read("config.json")
    config["input_features"]["observation.state"]["shape"] = [32]  # padded, as in lerobot/pi0_base
    config["output_features"]["action"]["shape"] = [32]
    pi0_folder.write("config.json", config)
    stats = {}
    for name, value in statistics(pi0_folder).items():
        feature, key = name.rsplit(".", 1)
        stats.setdefault(feature, {})[key] = value.tolist()
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        steps = pi0_folder.read(name)
        for step in steps["steps"]:
            step.pop("state_file", None)
        pi0_folder.write(name, steps)
    with pytest.raises(VLAError, match="no statistics of observation.state .*meta/stats.json"):
        load_backend(pi0_folder.folder)
    (pi0_folder.folder / "stats.json").write_text(json.dumps(stats))
    pi0_folder.change("rlt.json", statistics="stats.json")
    torch.testing.assert_close(chunk(load_backend(pi0_folder.folder), observed), expected)
    pi0_folder.change("rlt.json", action=[4])
    with pytest.raises(VLAError, match="4 is none of the checkpoint's 4 actions"):
        load_backend(pi0_folder.folder)


def test_the_checkpoint_may_lie_elsewhere(pi0_folder, tmp_path, observed):
    expected = chunk(load_backend(pi0_folder.folder), observed)
    ours = tmp_path / "ours"
    ours.mkdir()
    settings = pi0_folder.read("rlt.json") | {"checkpoint": "../pi0"}
    (ours / "rlt.json").write_text(json.dumps(settings))
    assert torch.equal(chunk(load_backend(ours), observed), expected)


def test_an_id_on_the_hub_is_taken_from_its_cache(pi0_folder, tmp_path, observed, monkeypatch):
    expected = chunk(load_backend(pi0_folder.folder), observed)
    cache, commit = tmp_path / "hub" / "models--someone--pi0_plug", "0123456789" * 4
    shutil.copytree(pi0_folder.folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    ours = tmp_path / "ours"
    ours.mkdir()
    settings = pi0_folder.read("rlt.json") | {"checkpoint": "someone/pi0_plug"}
    (ours / "rlt.json").write_text(json.dumps(settings))
    assert torch.equal(chunk(load_backend(ours), observed), expected)


def test_lerobots_own_configuration_is_the_full_size_model(tmp_path):
    written = {
        "type": "pi0", "paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m", "chunk_size": 50,
        "max_state_dim": 32, "max_action_dim": 32, "num_inference_steps": 10, "min_period": 0.004, "max_period": 4.0,
        "image_resolution": [224, 224], "dtype": "bfloat16",
    }  # fmt: skip
    assert configuration(written, tmp_path).to_dict() == PI0Config().to_dict()
    with pytest.raises(VLAError, match="paligemma_variant: got 'gemma_9b', expected gemma_2b or gemma_300m"):
        configuration(written | {"paligemma_variant": "gemma_9b"}, tmp_path)
    with pytest.raises(VLAError, match="image_resolution: got 224 x 448, expected a square"):
        configuration(written | {"image_resolution": [224, 448]}, tmp_path)


def test_in_bfloat16_it_is_about_the_same(pi0_folder, observed):
    exact = load_backend(pi0_folder.folder)
    pi0_folder.change("rlt.json", dtype="bfloat16")
    rough = load_backend(pi0_folder.folder)
    assert rough.model.action_out_proj.weight.dtype == torch.bfloat16
    assert (chunk(rough, observed) - chunk(exact, observed)).abs().max() < 0.02
    images, _ = observed
    assert rough.look(images)[0].dtype == torch.float32


def test_it_stands_in_for_the_small_one(pi0_folder, observed):
    """Loaded with its RL token, by folder or by rlt.json; asked for tracing, it runs untraced and says nothing."""
    RLToken(TokenConfig(embedding_dim=96, tokens=2 * PATCHES)).save(pi0_folder.folder)
    loaded = load(pi0_folder.folder / "rlt.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vla = TracedVLA(loaded, joins=True)
    assert not vla.traced and vla.guided
    pictures, proprio = dict(zip(CAMERAS, observed[0][0], strict=True)), observed[1][0]
    vla.seed(1)
    reference, token = vla.infer(pictures, proprio)
    assert reference.shape == (50, 4) and token.shape == (96,)
    before = np.full((40, 4), 0.1, np.float32)
    vla.seed(1)
    joined, _ = vla.infer(pictures, proprio, Prefix(before, 10))
    assert np.abs(joined[:10] - before[:10]).mean() < 0.5 * np.abs(reference[:10] - before[:10]).mean()
    np.testing.assert_allclose(vla.tokens([(pictures, proprio)] * 2)[1], token, atol=1e-4)
    with pytest.raises(VLAError, match="camera 'wrist' is missing"):
        vla.infer({"base": pictures["base"]}, proprio)


def test_it_is_evaluated_by_the_command_and_says_how_far_it_is(pi0_folder, tmp_path, capsys, one_thread):
    RLToken(TokenConfig(embedding_dim=96, tokens=2 * PATCHES)).save(pi0_folder.folder)
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(task | {"approach_timeout": 0.5}))
    arguments = ["--task", str(tmp_path / "short.yaml"), "--checkpoint", str(pi0_folder.folder), "--threads", "1"]
    assert main(["eval", *arguments, "--episodes", "1", "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["episodes"] == 1 and result["outcomes"] == ["TIMEOUT"] and result["successes"] == 0
    printed = capsys.readouterr()
    assert "0 of 1 episodes, 0 successful; loading" in printed.err and "0/1 = 0 %" in printed.out


def config(**values):
    return lambda folder: folder.change("config.json", **values)


def settings(**values):
    return lambda folder: folder.change("rlt.json", **values)


def cameras(**values):
    def change(folder):
        mapping = folder.read("rlt.json")["cameras"]
        mapping |= {f"observation.images.{name}": camera for name, camera in values.items()}
        folder.change("rlt.json", cameras={name: camera for name, camera in mapping.items() if camera != "unsaid"})

    return change


def weights(change):
    def spoil(folder):
        found = load_file(folder.folder / "model.safetensors")
        change(found)
        folder.weights(found)

    return spoil


def state_statistics(**values):
    def change(folder):
        found = {"mean": [0.0] * 6, "std": [1.0] * 6} | values
        folder.statistics("policy_preprocessor_step_5_normalizer_processor.safetensors", {"observation.state": found})

    return change


def step(name, **values):
    def change(folder):
        steps = folder.read("policy_preprocessor.json")
        steps["steps"].append({"registry_name": name, "config": values})
        folder.write("policy_preprocessor.json", steps)

    return change


def lost(name):
    def change(folder):
        path = folder.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def cut(folder):
    path = folder.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cameras(left_wrist_0_rgb="unsaid"), "observation.images.left_wrist_0_rgb' has no camera"),
        (cameras(top="top"), "the checkpoint has no 'observation.images.top'; it has observation.images.base_0_rgb"),
        (cameras(right_wrist_0_rgb="base"), "got base, wrist, base, expected each of yours once"),
        (cameras(base_0_rgb=None, left_wrist_0_rgb=None), "all are empty"),
        (weights(lambda w: w.pop("model.state_proj.weight")), "1 weights are missing: embed_action_time.state_proj"),
        (weights(lambda w: w.update(extra=torch.zeros(2))), "1 weights are unknown: extra"),
        (
            weights(lambda w: w.update({"model.state_proj.bias": torch.zeros(5)})),
            r"model.state_proj.bias is \[5\], expected \[96\]",
        ),
        (cut, "model.safetensors: "),
        (lost("model.safetensors"), "model.safetensors is missing"),
        (lost("config.json"), "config.json: "),
        (lost("policy_postprocessor.json"), "no statistics of action"),
        (settings(state=[0, 1]), "got 2 values, the checkpoint's observation.state has 6"),
        (settings(state=[0, 1, 2, 8, 9, 14]), "14 is none of 14 values"),
        (settings(state=[0.5]), "expected a list of indices"),
        (settings(action=[4]), "4 is none of the checkpoint's 4 actions"),
        (settings(action=[1, 1]), "expected each index once"),
        (settings(action_scale=[1.0, 2.0]), "expected one number or 4"),
        (settings(state_scale=0.0), "none of them 0"),
        (settings(dtype="float16"), "got 'float16', expected float32 or bfloat16"),
        (settings(device="cuda:7"), "cuda:7 is not there"),
        (settings(colour="red"), "unknown: colour"),
        (settings(flow_steps=0), "flow_steps: got 0"),
        (settings(instruction="wire it up"), None),  # unknown words are the tokenizer's affair
        (settings(checkpoint="weights"), "'weights': .* is no folder"),
        (settings(checkpoint="nobody/has-this-policy"), "fetch it with `hf download nobody/has-this-policy`"),
        (settings(statistics="none.json"), "none.json: "),
        (lost("tokenizer"), "tokenizer 'google/paligemma-3b-pt-224'.*hf download google/paligemma-3b-pt-224"),
        (lambda folder: folder.words([*map(str, range(40)), "<unk>"]), "is it another model's"),
        (state_statistics(mean=[0.0] * 5 + [float("nan")]), "observation.state.mean is not finite"),
        (state_statistics(std=[1.0] * 5 + [-1.0]), "observation.state.std is negative"),
        (state_statistics(std=[1.0] * 7), "observation.state.std has 7 values, expected 6"),
        (config(type="pi05"), "type: got 'pi05', this back end reads 'pi0'"),
        (config(use_relative_actions=True), "use_relative_actions: its actions are not what is executed"),
        (step("image_warp_processor"), "step 'image_warp_processor' is not known here"),
        (step("relative_actions_processor", enabled=True), "actions relative to the state are not supported"),
        (step("relative_actions_processor", enabled=False), None),
    ],
)
def test_what_does_not_fit_is_named(pi0_folder, monkeypatch, spoil, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spoil(pi0_folder)
    if says is None:
        load_backend(pi0_folder.folder)
        return
    with pytest.raises(VLAError, match=says):
        load_backend(pi0_folder.folder)


def test_weights_that_are_not_finite_give_an_error_and_no_chunk(pi0_folder, observed):
    RLToken(TokenConfig(embedding_dim=96, tokens=2 * PATCHES)).save(pi0_folder.folder)
    weights(lambda w: w["model.action_out_proj.bias"].fill_(float("nan")))(pi0_folder)
    vla = load(pi0_folder.folder)
    with pytest.raises(VLAError, match="200 NaN"):
        vla.infer(dict(zip(CAMERAS, observed[0][0], strict=True)), observed[1][0])
