"""What a token is worth: the maps read what is there and nothing else, and the table says what was not had."""

import json
import re

import numpy as np
import pytest
import torch

from rlt_ros.training import embeddings, report
from rlt_ros.training.processes import Processes
from rlt_ros.training.token import Settings, TokenTraining, train


def half(count: int) -> tuple[np.ndarray, np.ndarray]:
    fit = np.arange(count) < count // 2
    return fit, ~fit


def test_a_linear_map_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator, dtype=torch.double)
    y = x[:, :3] @ torch.randn(3, 2, generator=generator, dtype=torch.double) + 5.0
    noise = torch.randn(400, 2, generator=generator, dtype=torch.double)
    assert report.r2(x, y, *half(400)) > 0.999
    assert report.r2(x, noise, *half(400)) < 0.1
    assert report.r2(torch.zeros_like(x), y, *half(400)) == pytest.approx(0.0, abs=0.05)
    assert report.r2(x, torch.ones_like(y), *half(400)) is None


def test_state_is_read_by_its_parts_and_what_never_moves_is_left_out():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 6))
    proprio = np.concatenate([x[:, :2], random.normal(size=(200, 1)), np.ones((200, 2))], 1).astype(np.float32)
    found = report.state_r2(torch.from_numpy(x), proprio, [("pose", 2), ("twist", 1), ("wrench", 2)], *half(200))
    assert found["pose"] > 0.99 and found["twist"] < 0.1 and found["wrench"] is None


def test_success_is_predicted_by_whole_episodes():
    random, episode = np.random.default_rng(0), np.repeat(np.arange(20), 8)
    won = (np.arange(20) % 4 != 0)[episode]
    told = torch.from_numpy(random.normal(size=(160, 3)) + 4.0 * won[:, None])
    assert report.success_auc(told, episode, won) == 1.0
    # Each episode is known by its own numbers, which say nothing about others'.
    known = [torch.from_numpy(random.normal(size=(20, 12))[episode]) for _ in range(8)]
    assert 0.25 < np.mean([report.success_auc(x, episode, won) for x in known]) < 0.75
    assert report.success_auc(told, episode, np.ones(160, bool)) is None
    assert report.success_auc(told, episode, episode != 3) is None  # one that failed


@pytest.fixture
def subject(tmp_path, make_demos, read_frames, eyes):
    """subject(**demonstrations): with a token of 150 steps."""

    def made(steps=150, **changes) -> report.Subject:
        frames = read_frames(make_demos(tmp_path / "demos", **{"episodes": 8, "failed": (2, 5)} | changes))
        seen = embeddings.embeddings(eyes, frames, "abc", None, Processes())
        training = TokenTraining(eyes, frames, frames.split()[0], Settings(steps=steps, batch=12, lr=5e-3), seen)
        train(training, tmp_path / "out", {})
        state = [("pose", 4), ("twist", 4), ("wrench", 6)]
        return report.Subject(eyes, training.token, True, frames, training.seen, state, tmp_path / "scenes.npz")

    return made


def test_the_table_has_all_three_and_says_what_was_not_had(subject, tmp_path):
    found = report.make(subject(), Processes(), resnet_steps=2)
    assert found["samples"] == {"episodes": 8, "failed": 2, "fitted": 60, "held_out": 12}
    assert found["reconstruction_zeroed"] > 1.5 * found["reconstruction_true"]
    assert found["reconstruction_shuffled"] > 1.5 * found["reconstruction_true"]
    kinds = found["features"]
    assert {name: kind["width"] for name, kind in kinds.items()} == {
        "RL token": 16, "mean-pooled embeddings": 16, "ResNet on images": 256}  # fmt: skip
    for kind in kinds.values():
        assert set(kind["state_r2"]) == {"pose", "twist", "wrench"} and 0.0 <= kind["success_auc"] <= 1.0
    assert kinds["RL token"]["state_r2"]["pose"] > 0.5 > kinds["RL token"]["state_r2"]["wrench"]
    assert kinds["RL token"]["action_r2"] > 0.3
    assert any("was not pre-trained: trained here for 2 steps" in note for note in found["notes"])
    assert any("No offsets: there are no labelled pictures" in note for note in found["notes"])
    report.write(found, tmp_path)
    assert json.loads((tmp_path / "token_report.json").read_text()) == found
    lines = (tmp_path / "token_report.md").read_text().splitlines()
    assert "| read by a linear map, held out | RL token | mean-pooled embeddings | ResNet on images |" in lines
    assert f"| pose, R² | {kinds['RL token']['state_r2']['pose']:.3g} |" in "\n".join(lines)
    assert not list(tmp_path.glob(".*.part"))


def test_offsets_are_read_where_there_are_labelled_pictures(subject, tmp_path):
    random = np.random.default_rng(0)
    offsets = random.uniform(-1, 1, (300, 4)) * [0.0015, 0.0015, 0.002, 0.02] + [0, 0, 0.003, 0]
    images = np.full((300, 2, 16, 16, 3), 128.0)
    images[..., :8, :] += (offsets[:, 0] * 4e4)[:, None, None, None, None]  # x is in the left half, y nowhere
    images = np.clip(images, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "scenes.npz", images=images, offsets=offsets.astype(np.float32))
    found = report.make(subject(), Processes(), resnet_steps=0)
    pooled, spread = found["features"]["mean-pooled embeddings"]["offset"], found["offset_spread"]
    assert pooled["x_mm"] < 0.3 * spread["x_mm"] and pooled["y_mm"] > 0.8 * spread["y_mm"]
    assert spread["x_mm"] == pytest.approx(1.5 / 3**0.5, rel=0.3)
    assert "| offset x, error in mm (spread 0." in report.markdown(found)
    assert any("not pre-trained: random weights" in note for note in found["notes"])


@pytest.mark.parametrize(("shape", "words"), [
    ((40, 1, 16, 16, 3), "has pictures .*, the VLA takes 2 of 16 px"),
    ((40, 2, 16, 16, 3), "only 0 . 0 labelled pictures are near the hole"),
])  # fmt: skip
def test_labelled_pictures_of_something_else_are_left_out_with_words(subject, tmp_path, shape, words):
    far = np.full((40, 4), 0.5, np.float32)
    np.savez(tmp_path / "scenes.npz", images=np.zeros(shape, np.uint8), offsets=far)
    found = report.make(subject(steps=1), Processes(), resnet_steps=0)
    assert "offset_spread" not in found
    assert any(re.search(words, note) for note in found["notes"])


def test_without_failures_decoder_or_other_episodes_it_says_so(subject):
    judged = subject(steps=1, episodes=1, failed=())
    judged.decoder = False
    found = report.make(judged, Processes(), resnet_steps=0)
    notes = " ".join(found["notes"])
    assert "No reconstruction" in notes and "reconstruction_true" not in found
    assert "No prediction of success: 0 of 1 episodes failed" in notes
    assert "One successful episode" in notes
    assert "| success, AUC | - | - | - |" in report.markdown(found)
