"""Training of the token: as Algorithm 1 says, and the same run whether it was stopped or not."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from rlt_ros.training import embeddings, lora, token
from rlt_ros.training.processes import Processes
from rlt_ros.training.token import Order, Settings, TokenTraining, read_state

ABOUT = {"checkpoint": "abc", "demonstrations": "def"}


def settings(**changes) -> Settings:
    return Settings(**{"steps": 9, "batch": 8} | changes)


@pytest.fixture
def start(frames, eyes):
    """start(**settings): a training that has not begun, always from the same VLA."""
    weights = {name: value.clone() for name, value in eyes.state_dict().items()}

    def made(of=frames, **changes) -> TokenTraining:
        vla = type(eyes)()
        vla.load_state_dict(weights)
        chosen = settings(**changes)
        seen = None if chosen.alpha else embeddings.embeddings(vla, of, "abc", None, Processes())
        return TokenTraining(vla, of, of.split()[0], chosen, seen)

    return made


def numbers(training: TokenTraining) -> dict[str, torch.Tensor]:
    return {**training.token.state_dict(), **{f"vla {n}": p for n, p in training.policy.named_parameters()}}


def run(training, out, stop_at: int | None = None) -> list[str]:
    """Train, with Ctrl-C at a step; what was said."""
    said = []

    def progress(done, total, values) -> None:
        if values["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    token.train(training, out, ABOUT, said.append, progress)
    return said


@pytest.mark.parametrize("changes", [
    {}, {"accumulate": 2}, {"alpha": 0.5, "tune": "lora"}, {"alpha": 0.5, "tune": "full"}, {"dtype": "bfloat16"},
], ids=["frozen", "in pieces", "lora", "full", "bfloat16"])  # fmt: skip
def test_a_run_that_was_stopped_goes_on_bit_for_bit(start, tmp_path, changes):
    whole = start(**changes)
    assert run(whole, tmp_path / "whole") == []
    stopped = start(**changes)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "out", stop_at=4)
    assert stopped.step == 4
    assert [p.name for p in (tmp_path / "out" / "training").iterdir()] == ["state.pt"]
    again = start(**changes)
    said = run(again, tmp_path / "out")
    assert len(said) == 1 and "goes on after 4 steps" in said[0] and again.step == 9
    for name, value in numbers(whole).items():
        assert torch.equal(value, numbers(again)[name]), name
    left, right = (t.optimiser.state_dict()["state"] for t in (whole, again))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[i][name], right[i][name]) for i in left for name in left[i])


def test_another_seed_is_another_run(start, tmp_path):
    first, second = start(), start(seed=1)
    run(first, tmp_path / "a")
    run(second, tmp_path / "b")
    assert not torch.equal(first.token.e_rl, second.token.e_rl)


def test_an_unfinished_training_of_other_settings_is_neither_mixed_nor_lost(start, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(start(), tmp_path, stop_at=4)
    before = (tmp_path / token.STATE).read_bytes()
    with pytest.raises(ValueError, match="unfinished training .4 steps. of other settings: batch 8 there, 4 now; lr"):
        run(start(batch=4, lr=0.5), tmp_path)
    with pytest.raises(ValueError, match="other checkpoint"):
        token.train(start(), tmp_path, ABOUT | {"checkpoint": "another"})
    assert (tmp_path / token.STATE).read_bytes() == before


@pytest.fixture
def model(tmp_path):
    """The checkpoint folder that the VLA came from."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "rlt.json").write_text("{}")
    return folder


def test_after_a_published_training_another_begins(start, model, tmp_path):
    out = tmp_path / "out"
    first = start()
    run(first, out)
    token.publish(first, model, out)
    assert read_state(out / token.STATE)["finished"]
    again = start(steps=12)
    assert "is finished; this one begins anew" in run(again, out)[0]
    assert again.step == 12 and read_state(out / token.STATE)["step"] == 12


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.5, "vla_lr": 1e-2}], ids=["frozen", "lora"])
def test_a_finished_training_that_was_not_published_is_and_not_made_again(start, model, tmp_path, monkeypatch, changes):
    first, out = start(**changes), tmp_path / "out"
    run(first, out)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(token.RLToken, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        token.publish(first, model, out)
    assert sorted(path.name for path in out.iterdir()) == ["tensorboard", "training"]
    with pytest.raises(ValueError, match="whose token was not put in place .9 steps. of other settings: lr"):
        run(start(**changes | {"lr": 0.5}), out)
    again = start(**changes)
    monkeypatch.setattr(again, "update", lambda: pytest.fail("a step was made again"))
    assert "is finished; its token is put in place now" in run(again, out)[0]
    token.publish(again, model, out)
    for name, value in numbers(first).items():
        assert torch.equal(value, numbers(again)[name]), name
    assert token.published(read_state(out / token.STATE), out)


def test_a_folder_that_is_half_of_another_training_has_no_token(start, model, tmp_path, monkeypatch):
    out, replace, changes = tmp_path / "out", os.replace, {"alpha": 0.5, "tune": "full", "vla_lr": 1e-2}
    first, second = start(**changes), start(**changes | {"seed": 1})
    run(first, out)
    token.publish(first, model, out)
    before = (out / "eyes.pt").read_bytes()
    run(second, out)

    def killed(source, target):
        if target == out / "token.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(token.os, "replace", killed)
        token.publish(second, model, out)
    assert (out / "eyes.pt").read_bytes() != before
    with pytest.raises(ValueError, match="token"):
        token.RLToken.load(out)
    again = start(**changes | {"seed": 1})
    assert "is put in place now" in run(again, out)[0]
    token.publish(again, model, out)
    assert torch.equal(token.RLToken.load(out).e_rl, second.token.e_rl.half().float())


def test_a_damaged_state_is_named(start, tmp_path):
    run(start(), tmp_path)
    path = tmp_path / token.STATE
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"{path}: cannot be read .*--restart"):
        run(start(), tmp_path)


def test_a_state_is_whole_or_the_one_before(start, tmp_path, monkeypatch):
    training = start()
    path = tmp_path / token.STATE
    training.save(path, ABOUT)
    before = path.read_bytes()
    training.update()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        training.save(path, ABOUT)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_the_loss_falls_and_the_token_is_needed(start, tmp_path):
    training = start(steps=150, lr=5e-3)
    first = training.update()
    run(training, tmp_path)
    last = training.loss(training.order.at(0))[1]
    assert last["reconstruction"] < 0.7 * first["reconstruction"] and last["action"] < 0.5 * first["action"]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_every_sample_is_taken_once_before_any_comes_again():
    order = Order(np.arange(100, 123), 5, seed=3)
    epoch = np.concatenate([order.at(step) for step in range(4)])
    assert len(set(epoch)) == 20 and set(epoch) <= set(range(100, 123))
    assert not np.array_equal(order.at(0), order.at(4))
    assert np.array_equal(Order(np.arange(100, 123), 5, seed=3).at(6), order.at(6))  # whatever was asked before


def test_pieces_and_processes_share_a_batch(start):
    training = start(batch=12)
    parts = []
    for rank in range(3):
        training.processes.rank, training.processes.count = rank, 3
        parts += training.mine(5).tolist()
    assert sorted(parts) == training.order.at(5).tolist()


def test_pieces_add_up_to_the_whole_batch(start):
    whole, pieces = (start(accumulate=k, context_dropout=0.0) for k in (1, 4))
    for training in (whole, pieces):
        training.update()
    for left, right in zip(whole.token.parameters(), pieces.token.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, atol=1e-5, rtol=1e-4)


def test_nothing_of_the_tokens_loss_reaches_the_vla(start):
    training = start(alpha=0.25, tune="full")
    rows = training.order.at(0)
    torch.manual_seed(1)
    training.loss(rows)[0].backward()
    got = {name: p.grad.clone() for name, p in training.tuned.items()}
    policy = training.policy.requires_grad_(True)
    policy.zero_grad()
    torch.manual_seed(1)
    # What is hidden from the decoder is drawn after the flow's noise, so that the noise is the same.
    prefix, _ = policy.prefix(policy.pixels(torch.from_numpy(training.frames.images(rows))))
    actions = torch.from_numpy(training.frames.actions[rows])
    (0.25 * policy.flow_loss(prefix, torch.from_numpy(training.frames.proprio[rows]), actions)).backward()
    assert {name for name, p in policy.named_parameters()} == set(got)
    for name, p in policy.named_parameters():
        torch.testing.assert_close(p.grad, got[name])


def test_a_frozen_vla_stays_as_it_was(start, eyes, tmp_path):
    training = start()
    run(training, tmp_path)
    for name, value in training.policy.state_dict().items():
        assert torch.equal(value, eyes.state_dict()[name])
    assert not training.tuned


def test_a_token_may_be_narrower_than_the_embeddings(start, tmp_path):
    training = start(width=8)
    run(training, tmp_path)
    assert training.token.encode(training.seen(training.order.at(0))).shape == (8, 8)
    assert training.token.config.embedding_dim == 16 and training.token.config.feedforward == 16
    whole, named = start(), start(width=16)  # as wide as they are: nothing is projected
    assert whole.token.state_dict().keys() == named.token.state_dict().keys()
    assert whole.token.config == named.token.config


def test_what_is_not_there_is_neither_read_nor_rebuilt(start, frames, monkeypatch):
    whole = start(context_dropout=0.0)
    monkeypatch.setattr(type(whole.policy), "absent", 4)
    partly = start(context_dropout=0.0)
    rows = partly.order.at(0)
    seen = partly.seen(rows)
    assert (seen[:, 8:] == 0).all() and torch.equal(seen[:, :8], whole.seen(rows)[:, :8])
    there = whole.seen(frames.split()[0])[:, :8].double().flatten(0, 1)
    torch.testing.assert_close(partly.token.mean, there.mean(0).float())
    torch.testing.assert_close(partly.token.std, there.std(0, unbiased=False).float(), atol=1e-4, rtol=1e-4)
    torch.manual_seed(0)
    loss, _ = partly.loss(rows)
    loss.backward()
    assert partly.token.position.grad[0, 8:12].abs().sum() == 0  # nothing attends to them
    assert partly.token.decoder_position.grad[0, 8:].abs().sum() == 0  # and nothing comes out there
    assert partly.token.position.grad[0, :8].abs().sum() > 0


def test_values_that_hardly_move_are_the_same_in_training_and_on_the_robot(start, tmp_path):
    training = start()
    seen = training.embeddings.astype(np.float32)
    seen[..., 0] = 5.1234
    seen[..., 1] = 40.03 + 0.01 * seen[..., 1]
    training.embeddings = seen.astype(np.float16)  # as they are kept
    training._measure(training.order.rows)
    training.token.save(tmp_path)
    live = type(training.token).load(tmp_path)
    kept = training.embeddings.astype(np.float32)
    exact, rounded = (live.normalise(torch.from_numpy(values)) for values in (seen, kept))
    assert (exact - rounded).abs().max() < 0.1 and exact[..., :2].abs().max() < 0.2
    assert torch.equal(training.token.normalise(torch.from_numpy(seen)), exact)


def test_adapters_learn_beside_frozen_weights_and_are_merged(start, eyes, tmp_path):
    training = start(alpha=1.0, vla_lr=1e-2)
    assert set(training.tuned) == {"model.q_proj.a", "model.q_proj.b"}
    training.update()
    training.update()
    frozen = training.policy.model["q_proj"].base
    assert torch.equal(frozen.weight, eyes.model["q_proj"].weight)
    pixels = training.policy.pixels(torch.from_numpy(training.frames.images([3, 30])))
    before = training.policy.prefix(pixels)[1]
    lora.merge(training.policy.model)
    torch.testing.assert_close(training.policy.prefix(pixels)[1], before)
    assert type(training.policy.model["q_proj"]) is torch.nn.Linear
    assert not torch.equal(training.policy.model["q_proj"].weight, eyes.model["q_proj"].weight)
    assert torch.equal(training.policy.model["head"].weight, eyes.model["head"].weight)


def test_a_vla_without_the_layers_that_adapters_know_says_so():
    with pytest.raises(ValueError, match="Sequential has no layers called q_proj.*--tune full"):
        lora.add(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_bfloat16_is_arithmetic_and_not_storage(start):
    exact, coarse = start(), start(dtype="bfloat16")
    losses = [training.update()["reconstruction"] for training in (exact, coarse)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {p.dtype for p in coarse.token.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_ends_before_it_spoils_the_token(start, frames):
    assert (frames.spread[1] > 0).all()
    frames.actions[:] = np.inf
    training = start()
    before = {name: value.clone() for name, value in training.token.state_dict().items()}
    with pytest.raises(ValueError, match="step 0: the loss of action is inf"):
        training.update()
    assert all(torch.equal(value, before[name]) for name, value in training.token.state_dict().items())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_ends_before_it_spoils_the_token(start, value):
    training = start()
    before = {name: number.clone() for name, number in training.token.state_dict().items()}
    training.token.e_rl.register_hook(lambda gradient: gradient * value)
    with pytest.raises(ValueError, match="step 0: token_gradient is (inf|nan)"):
        training.update()
    assert training.step == 0
    assert all(torch.equal(number, before[name]) for name, number in training.token.state_dict().items())


@pytest.mark.parametrize(("changes", "words"), [
    ({"steps": 0}, "steps and minutes are both 0"),
    ({"steps": -1}, "steps is -1, expected at least 0"),
    ({"batch": 0}, "batch is 0, expected at least 1"),
    ({"batch": 400}, "batch is 400, but there are only 24 samples"),
    ({"accumulate": 3}, "batch is 8, expected a multiple of 3 pieces"),
    ({"alpha": float("nan")}, "alpha is nan"),
    ({"dtype": "float16"}, "dtype is 'float16', expected float32 or bfloat16"),
    ({"tune": "some"}, "tune is 'some', expected lora or full"),
    ({"width": 30}, "width is 30, expected a multiple of its 4 heads"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_named(start, changes, words):
    with pytest.raises(ValueError, match=words):
        start(**changes)


def test_by_the_clock_it_ends_after_so_many_minutes(start, tmp_path):
    training = start(minutes=0.001)
    run(training, tmp_path)
    assert training.step >= 1 and training.elapsed >= 0.06
    with pytest.raises(ValueError, match="2 processes end together by --steps"):
        settings(minutes=1.0).check(24, 2)


def test_a_checkpoint_that_names_others_is_published_with_their_paths(start, tmp_path):
    model, out = tmp_path / "models" / "mine", tmp_path / "out"
    (model / "tokenizer").mkdir(parents=True)
    (model / "tokenizer" / "words.json").write_text("{}")
    (model / ".cache").mkdir()
    (model / ".cache" / "left.json").write_text("{}")
    (tmp_path / "models" / "base").mkdir()
    settings = {"backend": "other", "checkpoint": "../base", "tokenizer": "tokenizer", "state": [0, 1],
                "instruction": "plug it in " * 90}  # fmt: skip
    (model / "rlt.json").write_text(json.dumps(settings))
    training = start()
    run(training, out)
    token.publish(training, model, out)
    found = json.loads((out / "rlt.json").read_text())
    assert found == settings | {"checkpoint": str(tmp_path / "models" / "base")}
    assert (out / "tokenizer" / "words.json").is_file() and not (out / ".cache").exists()


def test_a_vla_of_several_files_is_published_whole(start, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "token.json"):
        (model / name).write_text(name)
    training = start()
    run(training, out)
    token.publish(training, model, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "tensorboard", "token.json", "token.safetensors", "tokenizer.json",
        "training",
    ]  # fmt: skip
    assert (out / "model.safetensors").read_text() == "model.safetensors"
    assert (out / "token.json").read_text() != "token.json"
