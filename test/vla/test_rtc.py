"""Real-time chunking in the shipped VLA: a chunk goes on from the one before."""

import numpy as np
import pytest

from rlt_ros.core.joining import Prefix
from rlt_ros.vla import VLAError, load
from rlt_ros.vla.guidance import GUIDANCE, guidance
from rlt_ros.vla.traced import TracedVLA


def sample(vla, scene, seed, prefix=None):
    vla.seed(seed)
    return vla.infer(*scene, prefix)


def off(chunk, before):
    """How far `chunk` is from the actions before it, over their ticks."""
    return np.abs(chunk[: len(before)] - before).max(1)


def test_the_frozen_actions_are_met_and_the_next_one_follows_them(vla, scene):
    plain, joined = [], []
    for seed in range(3):
        before = sample(vla, scene, 100 + seed)[0][10:]
        plain.append(off(sample(vla, scene, seed)[0], before)[:8].max())
        joined.append(off(sample(vla, scene, seed, Prefix(before, frozen=5))[0], before)[:8].max())
    assert max(joined) < 0.5 * max(plain) and np.mean(joined) < 0.5 * np.mean(plain)


def test_a_prefix_that_the_model_would_not_have_chosen_is_met_too(vla, scene):
    own = sample(vla, scene, 0)[0]
    before = own[10:] + np.float32([0.1, 0.0, 0.0, 0.0])
    assert off(sample(vla, scene, 0, Prefix(before, frozen=5))[0], before)[:5].max() < 0.05


def test_a_prefix_of_no_weight_changes_nothing(vla, scene):
    plain = sample(vla, scene, 0)[0]
    nothing = Prefix(np.zeros((0, 4), np.float32), frozen=5)
    np.testing.assert_allclose(sample(vla, scene, 0, nothing)[0], plain, atol=1e-5)


def test_the_token_is_that_of_the_observation(vla, scene):
    prefix = Prefix(np.full((40, 4), 0.3, np.float32), frozen=5)
    assert np.array_equal(sample(vla, scene, 0, prefix)[1], sample(vla, scene, 0)[1])


def test_a_prefix_of_another_robot_is_refused(vla, scene):
    with pytest.raises(VLAError, match="prefix: 7 actions a step, expected 4"):
        vla.infer(*scene, Prefix(np.zeros((40, 7), np.float32), 5))


def test_the_vla_stays_frozen(vla, scene):
    before = [parameter.clone() for parameter in vla.backend.parameters()]
    sample(vla, scene, 0, Prefix(np.full((40, 4), 0.3, np.float32), frozen=5))
    for parameter, was in zip(vla.backend.parameters(), before, strict=True):
        assert parameter.grad is None and (parameter == was).all()


def test_the_guidance_is_clipped_and_finite_at_the_noise():
    assert guidance(1.0) == GUIDANCE and guidance(0.01) == GUIDANCE
    assert all(0 < guidance(i / 10) <= GUIDANCE for i in range(1, 11))


@pytest.mark.parametrize("joins", [True, False])
def test_the_traced_vla_gives_the_same_numbers(checkpoint, scene, joins):
    plain, traced = load(checkpoint), TracedVLA(load(checkpoint), joins=joins)
    assert traced.traced
    for seed, frozen in ((0, 5), (1, 0), (2, 12)):
        before = sample(plain, scene, 10 + seed)[0][10:]
        prefix = Prefix(before, frozen)
        ours, theirs = sample(traced, scene, seed, prefix), sample(plain, scene, seed, prefix)
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
        assert np.abs(ours[0] - sample(traced, scene, seed)[0]).max() > 1e-4  # the prefix did something
