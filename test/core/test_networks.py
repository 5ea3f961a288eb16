import numpy as np
import pytest
import torch

from rlt_ros.core.networks import Actor, Critic, Dims

DIMS = Dims(token=6, rl_proprio=4, action=2, chunk=5)


def states(n=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 6, generator=g), torch.randn(n, 4, generator=g),
            torch.rand(n, 5, 2, generator=g) * 1.8 - 0.9)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_actor_writes_a_whole_chunk_within_the_limits():
    token, proprio, reference = states()
    out = Actor(DIMS, [16])(100 * token, 100 * proprio, reference)
    assert out.shape == (7, 5, 2)
    assert out.abs().max() <= 1.0


def test_a_new_actor_passes_its_reference_through():
    token, proprio, reference = states()
    out = Actor(DIMS, [64, 64])(token, proprio, reference)
    assert (out - reference).abs().max() < 0.03


def test_a_saturated_reference_gives_finite_actions_and_gradients():
    token, proprio, _ = states()
    actor = Actor(DIMS, [16])
    out = actor(token, proprio, torch.ones(7, 5, 2))
    out.sum().backward()
    assert torch.isfinite(out).all() and (out > 0.9).all()
    assert all(torch.isfinite(p.grad).all() for p in actor.parameters())


def test_the_chunk_is_not_tied_to_the_reference():
    token, proprio, reference = states()
    actor = Actor(DIMS, [32])
    optimiser = torch.optim.Adam(actor.parameters(), lr=1e-2)
    wanted = torch.full_like(reference, 0.5)
    for _ in range(300):
        optimiser.zero_grad()
        (actor(token, proprio, reference) - wanted).square().mean().backward()
        optimiser.step()
    assert (actor(token, proprio, reference) - wanted).abs().max() < 0.15


def test_act_equals_forward_for_one_state():
    token, proprio, reference = states()
    actor = Actor(DIMS, [16])
    acted = actor.act(token[3].numpy(), proprio[3].numpy(), reference[3].numpy())
    assert acted.shape == (5, 2) and acted.dtype == np.float32
    assert np.allclose(acted, actor(token, proprio, reference)[3].detach(), atol=1e-6)


def test_act_takes_read_only_arrays_and_leaves_them_alone():
    token, proprio, reference = (x[0].numpy() for x in states())
    before = reference.copy()
    reference.flags.writeable = False
    Actor(DIMS, [16]).act(token, proprio, reference)
    assert np.array_equal(reference, before)


def test_proprioception_is_divided_by_its_scale():
    token, proprio, reference = states()
    torch.manual_seed(1)
    plain = Actor(DIMS, [16])
    torch.manual_seed(1)
    scaled = Actor(DIMS, [16], proprio_scale=[0.01, 2.0, 1.0, 1.0])
    assert torch.allclose(scaled(token, proprio * torch.tensor([0.01, 2.0, 1.0, 1.0]), reference),
                          plain(token, proprio, reference), atol=1e-6)


@pytest.mark.parametrize("scale", [[1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, float("nan"), 1.0]])
def test_a_wrong_proprio_scale_is_refused(scale):
    with pytest.raises(ValueError, match="expected 4 positive numbers"):
        Actor(DIMS, [16], proprio_scale=scale)


def test_measured_inputs_are_centred_and_the_token_gets_unit_spread():
    g = torch.Generator().manual_seed(0)
    token = 3.0 + 0.02 * torch.randn(500, 6, generator=g)
    proprio = 0.45 + 0.005 * torch.randn(500, 4, generator=g)
    actor = Actor(DIMS, [16], proprio_scale=[0.01] * 4)
    actor.state.measure(token, proprio)
    x = actor.state(token, proprio)
    assert x.mean(0).abs().max() < 1e-3
    assert torch.allclose(x[:, :6].std(0), torch.ones(6), atol=0.01)
    assert torch.allclose(x[:, 6:].std(0), torch.full((4,), 0.5), atol=0.05)  # the task's units stay


def test_a_token_value_that_never_moves_is_not_blown_up():
    token = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    token[:, 2] = 1.0
    actor = Actor(DIMS, [16])
    actor.state.measure(token, torch.zeros(100, 4))
    assert actor.state.unit[2] > 0.05


def test_critics_are_independent_and_evaluated_in_one_call():
    token, proprio, action = states()
    critic = Critic(DIMS, [16, 8], members=3)
    q = critic(token, proprio, action)
    assert q.shape == (3, 7)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter[1] += 1.0
    changed = critic(token, proprio, action)
    assert torch.equal(q[[0, 2]], changed[[0, 2]]) and not torch.allclose(q[1], changed[1])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_critics_are_independent_plain_networks(layer_norm):
    token, proprio, action = states()
    critic = Critic(DIMS, [16, 8], members=2, layer_norm=layer_norm)
    x = torch.cat((token, proprio, action.flatten(1)), 1)
    for member in range(2):
        h = x
        for i in range(3):
            h = h @ critic.weights[i][member] + critic.biases[i][member]
            if i < 2:
                h = torch.nn.functional.layer_norm(h, h.shape[-1:]) if layer_norm else h
                h = h.relu()
        assert torch.allclose(h[:, 0], critic(token, proprio, action)[member], atol=1e-5)


def test_only_the_asked_members_are_evaluated():
    token, proprio, action = states()
    critic = Critic(DIMS, [16], members=3, layer_norm=True)
    assert torch.allclose(critic(token, proprio, action, members=1), critic(token, proprio, action)[:1], atol=1e-6)


def test_an_actor_is_rebuilt_from_its_architecture():
    actor = Actor(DIMS, [16, 8])
    assert Actor.from_architecture(actor.architecture).architecture == actor.architecture


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="dims.chunk: got 0"):
        Dims(6, 4, 2, 0)
