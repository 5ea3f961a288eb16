"""The RL token: it must be read, and the decoder must need it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlt_ros.core.rl_token import RLToken, TokenConfig

SMALL = TokenConfig(embedding_dim=16, tokens=12, layers=1, heads=2, feedforward=32, action_values=6)


def scenes(count: int, seed: int) -> torch.Tensor:
    """Embeddings [count, 12, 16] that two hidden numbers decide."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, generator=generator)
    mixing = torch.randn(2, 12 * 16, generator=torch.Generator().manual_seed(99))
    return torch.tanh(hidden @ mixing).view(count, 12, 16)


@pytest.fixture(scope="module")
def trained() -> RLToken:
    torch.manual_seed(0)
    token, data = RLToken(SMALL), scenes(512, 1)
    optimiser = torch.optim.Adam(token.parameters(), 3e-3)
    for _ in range(250):
        loss, _ = token.loss(data[torch.randint(len(data), (64,))])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return token.eval()


def error(token: RLToken, z_rl: torch.Tensor, target: torch.Tensor, dropout: float) -> float:
    return float((token.decode(z_rl, target, dropout) - target).square().mean())


@torch.no_grad()
def test_reconstruction_is_much_worse_with_a_zeroed_or_shuffled_token(trained):
    data = scenes(256, 2)
    z_rl = trained.encode(data)
    true = error(trained, z_rl, data, 1.0)
    assert error(trained, torch.zeros_like(z_rl), data, 1.0) > 3 * true
    assert error(trained, z_rl.roll(1, 0), data, 1.0) > 3 * true


@torch.no_grad()
def test_the_decoder_sees_no_token_before_its_turn():
    torch.manual_seed(0)
    token, data = RLToken(SMALL).eval(), scenes(4, 3)
    z_rl = token.encode(data)
    changed = torch.cat([data[:, :6], torch.randn(4, 6, 16)], 1)
    before, after = token.decode(z_rl, data), token.decode(z_rl, changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-5)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


@torch.no_grad()
def test_what_is_not_there_changes_nothing(trained):
    data, there = scenes(8, 6), torch.ones(8, 12, dtype=torch.bool)
    there[:, 3:6] = False
    other = torch.where(there[..., None], data, torch.randn(8, 12, 16))
    assert torch.allclose(trained.encode(data, there), trained.encode(other, there), atol=1e-5)
    assert not torch.allclose(trained.encode(data), trained.encode(other), atol=1e-3)
    losses = []
    for embeddings in (data, other):
        torch.manual_seed(0)
        losses.append(float(trained.loss(embeddings, there=there)[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    whole = torch.ones(8, 12, dtype=torch.bool)
    assert torch.equal(trained.encode(data, whole), trained.encode(data))


def test_a_narrow_token_reads_and_rebuilds_wide_embeddings(tmp_path):
    torch.manual_seed(0)
    token, data = RLToken(replace(SMALL, width=8, feedforward=16)), scenes(8, 7)
    z_rl = token.encode(data)
    assert z_rl.shape == (8, 8) and token.decode(z_rl, data).shape == data.shape
    token.loss(data, torch.zeros(8, 6))[0].backward()
    assert all(parameter.grad is not None for parameter in token.parameters())
    token.save(tmp_path)
    again = RLToken.load(tmp_path)
    assert again.config.size == 8 and torch.allclose(again.encode(data), token.eval().encode(data), atol=2e-2)


def test_targets_take_no_gradient(trained):
    data = scenes(8, 4).requires_grad_()
    trained.loss(data)[0].backward()
    assert data.grad is None


def test_a_saved_token_reads_the_same(trained, tmp_path):
    trained.save(tmp_path)
    again = RLToken.load(tmp_path)
    data = scenes(8, 5)
    with torch.no_grad():
        assert torch.allclose(trained.encode(data), again.encode(data), atol=2e-2)  # stored in float16


def test_what_embeddings_are_divided_by_is_not_rounded(tmp_path):
    token = RLToken(SMALL)
    token.mean[:], token.std[:] = 40.03, 0.0123  # by half precision 40.03 is 40.03125: a tenth of the spread
    token.save(tmp_path)
    again = RLToken.load(tmp_path)
    assert torch.equal(again.mean, token.mean) and torch.equal(again.std, token.std)
    state = load_file(tmp_path / "token.safetensors")  # as before, in half precision
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "token.safetensors")
    assert RLToken.load(tmp_path).mean[0] == 40.03125


def test_a_token_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        RLToken.load(tmp_path)
    (tmp_path / "token.json").write_text("{}")
    (tmp_path / "token.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="token"):
        RLToken.load(tmp_path)
