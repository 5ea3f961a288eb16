import numpy as np
import pytest
import torch

from rlt_ros.core.chunks import Source
from rlt_ros.core.networks import Dims
from rlt_ros.core.replay import ReplayBuffer, Transition

DIMS = Dims(token=3, rl_proprio=4, action=2, chunk=5)


def transition(sequence=0, **kwargs):
    r = np.random.default_rng(sequence)
    values = dict(
        sequence=sequence, episode=1, tick=100 + 2 * sequence,
        token=r.normal(size=3), proprio=r.normal(size=4), reference=r.uniform(-1, 1, (5, 2)),
        action=r.uniform(-1, 1, (5, 2)),
        rewards=np.zeros(5), steps=5,
        next_token=r.normal(size=3), next_proprio=r.normal(size=4), next_reference=r.uniform(-1, 1, (5, 2)),
        terminated=False, truncated=False, sources=np.full(5, Source.ACTOR), token_age_ticks=5, policy_version=1,
    )
    return Transition(**values | kwargs)


def only(t, gamma=0.9):
    buffer = ReplayBuffer(10, DIMS, gamma)
    buffer.add(t)
    return {name: value[0] for name, value in buffer.sample(1, torch.Generator()).items()}


def test_what_was_stored_is_what_is_sampled():
    t = transition(3)
    row = only(t)
    for name in ("token", "proprio", "reference", "action", "next_token", "next_proprio", "next_reference"):
        assert np.allclose(row[name], getattr(t, name), atol=2e-3 if "token" in name else 1e-6), name


def test_the_return_of_a_chunk_discounts_each_step_once():
    row = only(transition(rewards=np.array([1.0, 0, 0, 0, 2.0])))
    assert row["chunk_return"] == pytest.approx(1.0 + 2.0 * 0.9**4)
    assert row["discount"] == pytest.approx(0.9**5)


def test_a_short_chunk_discounts_by_its_own_length():
    row = only(transition(steps=3, rewards=np.array([0, 0, 1.0, 0, 0]), terminated=True))
    assert row["chunk_return"] == pytest.approx(0.9**2)
    assert row["discount"] == pytest.approx(0.9**3)
    assert row["terminated"] == 1.0


def test_rewards_after_the_last_step_do_not_count():
    assert only(transition(steps=2, rewards=np.array([0, 0, 1.0, 0, 0])))["chunk_return"] == 0.0


def test_a_time_out_is_not_a_termination():
    assert only(transition(truncated=True))["terminated"] == 0.0


def test_a_full_buffer_overwrites_the_oldest():
    buffer = ReplayBuffer(4, DIMS)
    for i in range(6):
        buffer.add(transition(i, token=np.full(3, i)))
    assert len(buffer) == 4
    seen = set(buffer.sample(200, torch.Generator().manual_seed(0))["token"][:, 0].tolist())
    assert seen == {2.0, 3.0, 4.0, 5.0}


def test_rows_that_were_never_written_are_never_sampled():
    buffer = ReplayBuffer(1000, DIMS)
    buffer.add(transition(token=np.full(3, 7.0)))
    assert (buffer.sample(50, torch.Generator().manual_seed(0))["token"] == 7.0).all()


def test_sampling_repeats_with_its_generator():
    buffer = ReplayBuffer(50, DIMS)
    for i in range(50):
        buffer.add(transition(i))
    one, two = (buffer.sample(8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_of_a_batch_can_come_from_what_the_actor_had_no_part_in():
    buffer = ReplayBuffer(100, DIMS)
    for i in range(95):
        buffer.add(transition(i, token=np.zeros(3)))
    buffer.add(transition(95, token=np.ones(3), sources=np.full(5, Source.HUMAN)))
    buffer.add(transition(96, token=np.ones(3), steps=2, terminated=True,  # the padding is not the actor's doing
                          sources=np.array([Source.VLA, Source.VLA, Source.ACTOR, Source.ACTOR, Source.ACTOR])))
    buffer.add(transition(97, token=np.zeros(3), sources=np.array([Source.VLA, Source.ACTOR, 1, 1, 1])))
    sampled = buffer.sample(100, torch.Generator().manual_seed(0), prior_fraction=0.5)["token"][:, 0]
    assert (sampled[:50] == 1.0).all()
    assert sampled[50:].mean() < 0.2


def test_all_prior_data_is_drawn_alike():
    buffer = ReplayBuffer(1000, DIMS)
    for i in range(100):
        buffer.add(transition(i, reference=np.full((5, 2), i), sources=np.full(5, 3 if i < 60 else 2, np.uint8)))
    prior = buffer.sample(2 * 60_000, torch.Generator().manual_seed(0), 0.5)["reference"][:60_000, 0, 0]
    counts = torch.bincount(prior.round().long(), minlength=60)  # 1000 each, with a standard deviation of 31
    assert len(counts) == 60 and counts.min() > 850 and counts.max() < 1150


def test_without_prior_data_a_prior_share_is_no_error():
    buffer = ReplayBuffer(10, DIMS)
    buffer.add(transition())
    assert len(buffer.sample(4, torch.Generator(), prior_fraction=0.5)["token"]) == 4


@pytest.mark.parametrize("name, value", [
    ("token", np.zeros(4)), ("proprio", np.zeros(2)), ("reference", np.zeros((4, 2))), ("action", np.zeros(10)),
    ("rewards", np.zeros(4)), ("next_token", np.zeros(2)), ("next_proprio", np.zeros(5)),
    ("next_reference", np.zeros((5, 3))),
])
def test_a_wrong_shape_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"transition 0: {name} has shape"):
        ReplayBuffer(10, DIMS).add(transition(**{name: value}))


@pytest.mark.parametrize("name, shape", [("token", 3), ("action", (5, 2)), ("rewards", 5), ("next_proprio", 4)])
def test_a_value_that_is_not_finite_is_refused_by_name(name, shape):
    buffer = ReplayBuffer(10, DIMS)
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        buffer.add(transition(**{name: np.full(shape, np.nan)}))
    assert len(buffer) == 0


@pytest.mark.parametrize("steps", [0, 6])
def test_a_chunk_of_no_length_or_too_long_is_refused(steps):
    with pytest.raises(ValueError, match="expected 1..5"):
        ReplayBuffer(10, DIMS).add(transition(steps=steps))


def test_sampling_from_nothing_says_so():
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(10, DIMS).sample(4, torch.Generator())


def session(n):
    """Transitions at stride 1 whose next state is the state five later, as in a real episode."""
    states = [(np.full(3, i, float), np.full(4, -i, float)) for i in range(n + 5)]
    return [transition(i, token=states[i][0], proprio=states[i][1], next_token=states[i + 5][0],
                       next_proprio=states[i + 5][1]) for i in range(n)]


def test_a_state_is_stored_once_although_it_is_the_next_state_of_another():
    buffer = ReplayBuffer(100, DIMS)
    for t in session(40):
        buffer.add(t)
    assert buffer.stored_states == 45
    batch = buffer.sample(200, torch.Generator().manual_seed(0))
    assert torch.equal(batch["next_token"], batch["token"] + 5.0)
    assert torch.equal(batch["next_proprio"], batch["proprio"] - 5.0)


def test_states_of_overwritten_transitions_are_given_back():
    buffer = ReplayBuffer(10, DIMS)
    for t in session(2000):
        buffer.add(t)
    assert buffer.stored_states == 15
    batch = buffer.sample(100, torch.Generator().manual_seed(0))
    assert torch.equal(batch["next_token"], batch["token"] + 5.0) and batch["token"].min() == 1990.0


def test_kept_rows_are_prior_data_that_the_ring_goes_around():
    buffer = ReplayBuffer(8, DIMS)
    for i in range(3):
        buffer.add(transition(i, token=np.full(3, 100.0 + i)), keep=True)
    for i in range(50):
        buffer.add(transition(3 + i, token=np.full(3, float(i))))
    batch = buffer.sample(400, torch.Generator().manual_seed(0), prior_fraction=0.5)
    assert set(batch["token"][:, 0].tolist()) == {100.0, 101.0, 102.0, 45.0, 46.0, 47.0, 48.0, 49.0}
    assert (batch["token"][:200, 0] >= 100.0).all()
    assert torch.equal(batch["prior"], batch["token"][:, 0] >= 100.0)


def test_prior_data_after_other_data_or_without_room_is_refused():
    late = ReplayBuffer(8, DIMS)
    late.add(transition(0))
    full = ReplayBuffer(3, DIMS)
    full.add(transition(0), keep=True)
    full.add(transition(1), keep=True)
    for buffer in (late, full):
        with pytest.raises(ValueError, match="prior data comes before everything else"):
            buffer.add(transition(5), keep=True)


def test_a_token_too_large_for_half_precision_is_refused():
    with pytest.raises(ValueError, match="token reaches 1e\\+05"):
        ReplayBuffer(10, DIMS).add(transition(token=np.full(3, 1e5)))
