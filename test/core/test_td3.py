import copy
import re

import numpy as np
import pytest
import torch

from rlt_ros.core.networks import Dims
from rlt_ros.core.replay import ReplayBuffer, Transition
from rlt_ros.core.td3 import TD3, TD3Config

DIMS = Dims(token=3, rl_proprio=4, action=2, chunk=5)
SMALL = dict(hidden=(16, 16), batch_size=32, layer_norm=False)

pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n=32, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)

    def chunk():
        return torch.rand(n, 5, 2, generator=g) * 1.8 - 0.9

    return dict(
        token=torch.randn(n, 3, generator=g), proprio=torch.randn(n, 4, generator=g), reference=chunk(), action=chunk(),
        next_token=torch.randn(n, 3, generator=g), next_proprio=torch.randn(n, 4, generator=g), next_reference=chunk(),
        chunk_return=torch.zeros(n), discount=torch.full((n,), 0.9), terminated=torch.zeros(n),
    ) | kwargs


def td3(record_after=None, **kwargs):
    """Unrecorded: these tests look into the networks while they run."""
    return TD3(TD3Config(**SMALL | kwargs), DIMS, record_after=record_after)


def changed(before, network):
    return any(not torch.equal(a, b) for a, b in zip(before.parameters(), network.parameters()))


def constant_critic(method, *values):
    """Make the target critics give these constants."""
    with torch.no_grad():
        for parameter in method.target_critic.parameters():
            parameter.zero_()
        method.target_critic.biases[-1].copy_(torch.tensor(values)[:, None, None])


# --- targets


def test_the_target_is_return_plus_discounted_minimum_of_the_critics():
    method = td3(clip_targets=False)
    constant_critic(method, 0.7, 0.4)
    target = method.target(batch(chunk_return=torch.full((32,), 0.25), discount=torch.full((32,), 0.5)))
    assert torch.allclose(target, torch.full((32,), 0.25 + 0.5 * 0.4))


def test_after_termination_nothing_is_bootstrapped():
    method = td3()
    constant_critic(method, 0.7, 0.4)
    target = method.target(batch(chunk_return=torch.full((32,), 0.9), terminated=torch.ones(32)))
    assert torch.allclose(target, torch.full((32,), 0.9))


def test_targets_are_clipped_to_what_a_sparse_reward_can_give_unless_told_otherwise():
    for clip, low, high in ((True, 0.0, 1.0), (False, -4.5, 4.5)):
        method = td3(clip_targets=clip)
        constant_critic(method, 5.0, 5.0)
        assert torch.allclose(method.target(batch()), torch.full((32,), high))
        constant_critic(method, -5.0, 5.0)
        assert torch.allclose(method.target(batch()), torch.full((32,), low))


def test_the_target_actor_sees_every_reference():
    method = td3(dropout=1.0, target_noise=0.0)
    seen = []
    method.target_actor.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    b = batch()
    method.target(b)
    assert torch.equal(seen[0], b["next_reference"])


def test_smoothing_noise_is_bounded_and_the_action_stays_in_range():
    method = td3(target_noise=5.0, target_noise_clip=0.1)
    given = {}
    method.target_actor.register_forward_hook(lambda module, args, out: given.update(mean=out.clone()))
    method.target_critic.register_forward_pre_hook(lambda module, args: given.update(action=args[2].clone()))
    method.target(batch(next_reference=torch.full((32, 5, 2), 0.94)))
    assert given["action"].max() <= 1.0
    difference = (given["action"] - given["mean"]).abs()
    assert 0.05 < difference.max() <= 0.1 + 1e-6


def test_no_smoothing_noise_makes_targets_repeatable():
    method = td3(target_noise=0.0)
    assert torch.equal(method.target(batch()), method.target(batch()))


def test_a_target_of_fewer_members_is_a_minimum_over_a_random_part_of_the_ensemble():
    method = td3(ensemble=3, target_members=1, clip_targets=False)
    constant_critic(method, 1.0, 2.0, 3.0)
    targets = {round(float(method.target(batch())[0]), 3) for _ in range(40)}
    assert targets == {0.9, 1.8, 2.7}


# --- the actor


def test_dropout_hides_whole_references_in_about_half_of_the_samples():
    method = td3()
    seen = []
    method.actor.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    b = batch(n=400)
    method.update(b)
    method.update(b)
    (given,) = seen  # the actor is evaluated for its own update only
    hidden = (given == 0).all(dim=(1, 2))
    assert 0.4 < hidden.float().mean() < 0.6
    assert torch.equal(given[~hidden], b["reference"][~hidden])


@pytest.mark.parametrize("dropout, hidden", [(0.0, 0), (1.0, 32)])
def test_dropout_can_be_all_or_nothing(dropout, hidden):
    method = td3(dropout=dropout, policy_delay=1)
    seen = []
    method.actor.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    method.update(batch())
    assert int((seen[0] == 0).all(dim=(1, 2)).sum()) == hidden


def test_acting_never_drops_the_reference():
    method = td3(dropout=1.0)
    reference = np.full((5, 2), 0.5, dtype=np.float32)
    acted = method.actor.act(np.zeros(3), np.zeros(4), reference)
    assert np.abs(acted - reference).max() < 0.1


def test_the_anchor_is_the_mean_square_over_the_chunk_to_the_true_reference():
    method = td3(dropout=1.0, policy_delay=1, beta=3.0, actor_lr=1e-12)
    b = batch()
    with torch.no_grad():
        action = method.actor(b["token"], b["proprio"], torch.zeros_like(b["reference"]))
        anchor = (action - b["reference"]).square().mean()
    metrics = method.update(b)
    assert metrics["anchor"] == pytest.approx(float(anchor), rel=1e-4)
    q = method.critic(b["token"], b["proprio"], action, members=1).mean().detach()
    assert metrics["actor_loss"] == pytest.approx(float(-q + 3.0 * anchor), rel=1e-3)


def test_a_strong_anchor_keeps_the_actor_at_the_reference_and_none_lets_it_go():
    b = batch(n=64)
    distance = {}
    for beta in (0.0, 100.0):
        method = td3(beta=beta, policy_delay=1, actor_lr=1e-3, clip_targets=False)
        with torch.no_grad():  # a critic that wants every action up
            for parameter in method.critic.parameters():
                parameter.zero_()
            method.critic.weights[0][:, -10:, 0] = 1.0
            method.critic.biases[0][:, :, 0] = 10.0
            method.critic.weights[1][:, 0, 0] = 1.0
            method.critic.weights[2][:, 0, 0] = 1.0
        for _ in range(150):
            method._update_actor(b)
        with torch.no_grad():
            distance[beta] = (method.actor(b["token"], b["proprio"], b["reference"]) - b["reference"]).mean()
    assert distance[0.0] > 0.3
    assert abs(distance[100.0]) < 0.1


@pytest.mark.parametrize("promised, moves", [(0.5, True), (2.0, False)])
def test_the_actor_gets_no_credit_for_values_that_no_return_can_have(promised, moves):
    method = td3(beta=0.0)
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.mul_(0.1)
        method.critic.biases[-1].fill_(promised)
    before = copy.deepcopy(method.actor)
    method._update_actor(batch())
    assert changed(before, method.actor) == moves


def test_the_actor_and_the_targets_move_only_every_policy_delay_updates():
    method = td3(policy_delay=3)
    for update in range(1, 7):
        names = ("actor", "critic", "target_actor", "target_critic")
        before = {name: copy.deepcopy(getattr(method, name)) for name in names}
        method.update(batch(seed=update))
        assert changed(before["critic"], method.critic)
        for name in ("actor", "target_actor", "target_critic"):
            assert changed(before[name], getattr(method, name)) == (update % 3 == 0), (update, name)


def test_the_actors_update_leaves_the_critic_alone():
    method = td3()
    before = copy.deepcopy(method.critic)
    method._update_actor(batch())
    assert not changed(before, method.critic)
    assert all(p.grad is None for p in method.critic.parameters())


def test_targets_follow_by_tau():
    method = td3(tau=0.25)
    old = [p.clone() for p in method.target_critic.parameters()]
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.add_(1.0)
    method._move_targets()
    for before, now, online in zip(old, method.target_critic.parameters(), method.critic.parameters()):
        assert torch.allclose(now, 0.75 * before + 0.25 * online)


def test_gradients_are_clipped():
    method = td3(grad_clip=1e-3, clip_targets=False)
    method._update_critic(batch(chunk_return=torch.full((32,), 1e4)))
    norm = torch.stack([p.grad.norm() for p in method.critic.parameters()]).norm()
    assert norm <= 1.01e-3


def test_the_critic_learns_the_value_of_what_was_stored():
    method = td3(critic_lr=3e-3)
    b = batch(n=64, terminated=torch.ones(64), chunk_return=(torch.arange(64) % 2).float())
    losses = [method.update(b)["critic_loss"] for _ in range(400)]
    assert losses[-1] < 0.05 * losses[0]


# --- the rest


def test_the_seed_decides_everything_and_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = td3(seed=1), td3(seed=1), td3(seed=2)
    for method in (one, two, other):
        for i in range(4):
            method.update(batch(seed=i))
    assert torch.equal(torch.rand(1), expected)
    assert not changed(one.actor, two.actor) and not changed(one.critic, two.critic)
    assert changed(one.actor, other.actor)


RLPD = {"ensemble": 4, "target_members": 2, "actor_members": 4, "layer_norm": True}


@pytest.mark.parametrize("settings", [{}, RLPD, {"layer_norm": True, "beta_start": 2.0, "beta_updates": 6}])
def test_a_recorded_update_is_the_update_bit_for_bit(settings):
    recorded, plain = td3(record_after=1, **settings), td3(**settings)
    for i in range(10):
        if i == 4:
            recorded.beta = plain.beta = 1.5
            for method in (recorded, plain):  # what the recording was not made with
                method.measure_inputs(
                    torch.full((9, 3), 2.0), torch.rand(9, 4, generator=torch.Generator().manual_seed(i))
                )
        assert recorded.update(batch(seed=i)) == plain.update(batch(seed=i))
    assert recorded._critic_gradients.recorded and recorded._actor_gradients.recorded
    for name in ("actor", "critic", "target_actor", "target_critic"):
        assert not changed(getattr(recorded, name), getattr(plain, name)), name


def test_rlpd_is_a_configuration_of_the_same_learner():
    own = {name: value for name, value in SMALL.items() if name != "layer_norm"}
    method = TD3(TD3Config.from_mapping(own | {"preset": "rlpd"}), DIMS)
    metrics = [method.update(batch(seed=i)) for i in range(4)][-1]
    assert method.critic.members == 10 and method.critic.layer_norm
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_anchor_is_strong_at_first_and_falls_to_its_weight():
    method = TD3(TD3Config(**SMALL | {"beta": 0.2, "beta_start": 3.2, "beta_updates": 4}), DIMS)
    weights = []
    for i in range(6):
        weights.append(method.anchor_weight())
        method.update(batch(seed=i))
    assert np.allclose(weights, [3.2, 1.6, 0.8, 0.4, 0.2, 0.2])
    method.beta = 0.0
    method.updates = 1
    assert method.anchor_weight() == pytest.approx(2.4)
    assert TD3(TD3Config(**SMALL | {"beta": 0.7}), DIMS).anchor_weight() == 0.7


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset is 'sac', expected one of td3, rlpd"):
        TD3Config.from_mapping({"preset": "sac"})


@pytest.mark.parametrize("key, value", [
    ("gamma", 1.5), ("dropout", -0.1), ("tau", 0.0), ("ensemble", 0), ("target_members", 3), ("beta", -1.0),
    ("hidden", ()), ("batch_size", 0), ("critic_lr", 0.0), ("grad_clip", 0.0), ("policy_delay", 0),
    ("beta", float("nan")),
])
def test_a_hyper_parameter_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"{key}: got"):
        TD3Config(**{key: value})


def test_an_unknown_hyper_parameter_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown key 'bta'"):
        TD3Config.from_mapping({"bta": 0.1})
    assert TD3Config.from_mapping({"beta": 0.1, "hidden": [8]}).hidden == (8,)


@pytest.mark.parametrize(("values", "said"), [
    ({"beta": "abc"}, "beta is 'abc', expected a number, such as 0.2"),
    ({"beta": None}, "beta is None, expected a number"),
    ({"beta": True}, "beta is True, expected a number"),
    ({"hidden": 512}, "hidden is 512, expected a list of widths, such as [256, 256]"),
    ({"hidden": "abc"}, "hidden is 'abc', expected a list of widths"),
    ({"batch_size": 1.5}, "batch_size is 1.5, expected a whole number, such as 256"),
    ({"layer_norm": 1}, "layer_norm is 1, expected true or false"),
    ({"preset": ["td3"]}, "preset is ['td3'], expected one of"),
])  # fmt: skip
def test_a_value_of_another_kind_is_named(values, said):
    with pytest.raises(ValueError, match=re.escape(f"learner: {said}")):
        TD3Config.from_mapping(values)


def test_numbers_that_yaml_takes_for_text_or_whole_are_numbers():
    config = TD3Config.from_mapping({"actor_lr": "1e-3", "utd": 5})
    assert (config.actor_lr, config.utd) == (1e-3, 5)


# --- a toy: bring a point to the middle; the reference is slow and aims beside it


class Toy:
    chunk, chunks, speed, radius = 5, 4, 0.1, 0.1
    dims = Dims(token=6, rl_proprio=4, action=2, chunk=5)

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.features = np.random.default_rng(99).normal(size=(2, 6))

    def state(self, place):
        away = place / np.linalg.norm(place)
        reference = np.tile(-0.3 * away + [0.15, 0.0], (self.chunk, 1))
        return np.tanh(place @ self.features), np.concatenate((place, np.zeros(2))), reference

    def episode(self, policy, number=0):
        angle = self.rng.uniform(0, 2 * np.pi)
        place = self.rng.uniform(0.5, 0.8) * np.array([np.cos(angle), np.sin(angle)])
        transitions = []
        for k in range(self.chunks):
            state = self.state(place)
            action = np.clip(policy(*state), -1, 1)
            rewards, n, success = np.zeros(self.chunk), 0, False
            while n < self.chunk and not success:
                place = place + self.speed * action[n]
                success = np.linalg.norm(place) < self.radius
                n += 1
            rewards[n - 1] = success
            transitions.append(Transition(
                0, number, k, *state, action, rewards, n, *self.state(place), success,
                k == self.chunks - 1 and not success,
                np.full(self.chunk, 2), 0, 0))
            if success:
                break
        return transitions

    def success_rate(self, policy, episodes=100):
        return np.mean([self.episode(policy)[-1].terminated for _ in range(episodes)])


def test_learning_improves_on_the_reference():
    config = TD3Config(hidden=(64, 64), batch_size=64, beta=0.1)
    method, toy, noise = TD3(config, Toy.dims), Toy(0), np.random.default_rng(1)
    buffer, generator = ReplayBuffer(5000, Toy.dims), torch.Generator().manual_seed(0)

    def explore(token, proprio, reference):
        mean = reference if episode < 20 else method.actor.act(token, proprio, reference)
        return mean + 0.2 * noise.standard_normal(mean.shape)

    for episode in range(100):
        for transition in toy.episode(explore, episode):
            buffer.add(transition)
        if episode == 10:
            method.measure_inputs(*buffer.states())
        for _ in range(20 if episode >= 10 else 0):
            method.update(buffer.sample(config.batch_size, generator))
    base = Toy(5).success_rate(lambda token, proprio, reference: reference)
    learned = Toy(5).success_rate(method.actor.act)
    print(f"base {base:.2f}, learned {learned:.2f}")
    assert base < 0.6
    assert learned > 0.8
