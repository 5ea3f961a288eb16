import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlt_ros.core import learner as module
from rlt_ros.core.learner import CheckpointError, Learner, load_actor
from rlt_ros.core.networks import Dims
from rlt_ros.core.replay import Transition
from rlt_ros.core.td3 import TD3Config
from rlt_ros.core.weights import unpack

DIMS = Dims(token=3, rl_proprio=4, action=2, chunk=5)
CONFIG = TD3Config(hidden=(16, 16), batch_size=16, min_buffer=10, utd=2.0, warm_transitions=20,
                   warm_updates=4, warm_successes=0, max_backlog=100)

pytestmark = pytest.mark.usefixtures("one_thread")


def transition(sequence):
    r = np.random.default_rng(sequence)
    rewards = np.zeros(5)
    rewards[4] = sequence % 3 == 0
    return Transition(
        sequence, 1, 2 * sequence, r.normal(size=3), r.normal(size=4), r.uniform(-1, 1, (5, 2)),
        r.uniform(-1, 1, (5, 2)), rewards, 5, r.normal(size=3), r.normal(size=4), r.uniform(-1, 1, (5, 2)),
        sequence % 3 == 0, False,
        np.full(5, 1 + sequence % 2), 5, 0)


def filled(n=30, config=CONFIG, session_dir=None):
    learner = Learner(config, DIMS, session_dir)
    for i in range(n):
        learner.add(transition(i))
    return learner


def parameters(learner):
    td3 = learner.td3
    networks = td3.actor, td3.critic, td3.target_actor, td3.target_critic
    return [tensor for network in networks for tensor in network.state_dict().values()]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(two)))


# --- owed updates


def test_no_update_is_owed_below_the_least_buffer():
    assert filled(9).due() == 0
    assert filled(10).due() == 20


def test_updates_owed_follow_the_ratio():
    learner = filled(30)
    for _ in range(13):
        learner.step()
    assert learner.due() == 60 - 13
    learner.add(transition(30))
    assert learner.due() == 62 - 13


def test_an_overlong_backlog_is_forgiven():
    learner = filled(80)
    assert learner.due() == 100
    learner.add(transition(80))
    learner.due()
    assert learner.metrics["forgiven"] == 62.0
    for _ in range(5):
        learner.step()
    assert learner.due() == 95


def test_a_repeated_transition_is_ignored():
    learner = filled(12)
    assert learner.add(transition(3)) is False
    assert len(learner.buffer) == 12 and learner.due() == 24


def test_the_next_sequence_is_the_first_that_is_missing():
    learner = Learner(CONFIG, DIMS)
    for i in (0, 1, 3, 4):
        assert learner.add(transition(i)) is True
    assert learner.next_sequence == 2
    learner.add(transition(2))
    assert learner.next_sequence == 5


def test_a_malformed_transition_is_refused_and_can_come_again():
    learner = Learner(CONFIG, DIMS)
    bad = transition(0)
    bad.token = np.zeros(9)
    with pytest.raises(ValueError, match="token"):
        learner.add(bad)
    assert learner.next_sequence == 0 and learner.add(transition(0)) is True


def test_it_is_warm_after_enough_data_and_enough_updates():
    learner = filled(20)
    assert not learner.warm()
    for _ in range(4):
        learner.step()
    assert learner.warm()
    few = filled(19)
    for _ in range(10):
        few.step()
    assert not few.warm()


def test_it_neither_trains_nor_acts_on_failures_alone():
    learner = Learner(replace(CONFIG, warm_successes=2), DIMS)
    for i in range(30):
        unrewarded = transition(i)
        unrewarded.rewards[:] = 0.0
        learner.add(unrewarded)
    assert learner.due() == 0
    rewarded = [transition(30 + 3 * i) for i in range(3)]
    for t, episode in zip(rewarded, (7, 7, 8), strict=True):  # the first two end the same episode
        t.episode = episode
    learner.add(rewarded[0])
    learner.add(rewarded[1])
    assert learner.successes == 1 and learner.due() == 64
    assert learner.waiting_for() == "successes 1/2, updates 0/4"
    for _ in range(10):
        learner.step()
    assert not learner.warm()
    learner.add(rewarded[2])
    assert learner.successes == 2 and learner.warm()


def test_successes_are_remembered_over_a_restart_and_counted_in_prior_data(tmp_path):
    learner = filled(20, session_dir=tmp_path)
    assert learner.successes > 0
    learner.save()
    resumed = Learner(CONFIG, DIMS, tmp_path)
    resumed.load()
    for i in range(20):
        resumed.add(transition(i))
    assert resumed.successes == learner.successes
    prior = Learner(replace(CONFIG, warm_successes=1), DIMS)
    prior.add_prior(transition(0))
    assert prior.successes == 1


def rewarded(sequence, episode):
    made = transition(sequence)
    made.rewards[4], made.episode = 1.0, episode
    return made


def test_episodes_of_several_sessions_with_one_number_are_several_successes():
    learner = Learner(CONFIG, DIMS)
    for session in ("a", "b"):
        for i in range(5):
            learner.add_prior(rewarded(i, 3), session)
    for i in range(5):
        learner.add(rewarded(i, 3))
    assert learner.successes == 3


def test_a_success_over_a_restart_is_one(tmp_path):
    learner = Learner(CONFIG, DIMS, tmp_path)
    for i in range(3):
        learner.add(rewarded(i, 1))
    learner.save()
    resumed = Learner(CONFIG, DIMS, tmp_path)
    resumed.load()
    for i in range(5):
        resumed.add(rewarded(i, 1))
    assert resumed.successes == 1


def test_a_gap_that_is_filled_after_a_resume_is_counted_once(tmp_path):
    learner = Learner(CONFIG, DIMS, tmp_path)
    for i in (*range(10), *range(60, 70)):
        learner.add(transition(i))
    learner.save()
    for until in (30, 70):  # the first is stopped before it has read all, and had saved
        learner = Learner(CONFIG, DIMS, tmp_path)
        learner.load()
        for i in range(until):
            learner.add(transition(i))
        learner.save()
        assert learner.transitions == min(70, until + 10)


def test_metrics_are_plain_finite_floats():
    learner = filled()
    learner.step()
    metrics = learner.step()
    assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
    assert metrics == learner.metrics
    assert metrics["updates"] == 2.0 and metrics["replay_size"] == 30.0 and metrics["updates_per_s"] > 0
    assert metrics.keys() >= {"critic_loss", "actor_loss", "q_mean", "anchor", "version", "transitions"}


def test_inputs_are_centred_once_and_alike_in_all_networks():
    learner = filled()
    learner.step()
    centres = [net.state.centre for net in (learner.td3.actor, learner.td3.critic,
                                            learner.td3.target_actor, learner.td3.target_critic)]
    assert all(torch.equal(centres[0], centre) for centre in centres)
    token, proprio = learner.buffer.states()
    assert torch.allclose(centres[0], torch.cat((token.mean(0), proprio.mean(0))))
    before = centres[0].clone()
    learner.add(transition(1000))
    learner.step()
    assert torch.equal(learner.td3.actor.state.centre, before)


def test_published_versions_count_up_and_unpack():
    learner = filled()
    learner.step()
    for expected in (1, 2):
        data, digest, version = learner.publish()
        assert version == expected
        unpack(data, digest, version, version - 1, learner.td3.actor.architecture)


# --- a journal that begins anew


def test_numbers_that_a_new_run_of_the_replay_gives_again_are_of_new_transitions():
    learner = filled(100)
    assert learner.follow(1, 0) == 0  # heard late: they are this run's
    assert learner.follow(2, 90) == 10  # a power cut lost the newest ten
    assert learner.next_sequence == 90
    assert all(learner.add(transition(i)) for i in range(90, 130))
    assert learner.follow(2, 90) == 0 and learner.next_sequence == 130
    assert learner.follow(3, 130) == 0 and learner.follow(4, 140) == 0 and learner.next_sequence == 130
    assert learner.transitions == 140 and len(learner.buffer) == 140
    assert learner.follow(5, 0) == 130  # no session
    assert learner.add(transition(0)) and learner.next_sequence == 1


def test_a_resumed_learner_counts_what_took_the_place_of_lost_transitions(tmp_path):
    learner = filled(100, session_dir=tmp_path)
    learner.follow(1, 0)
    learner.save()
    for run, begins, expected in ((1, 0, 100), (2, 90, 110), (2, 100, 100)):
        resumed = Learner(CONFIG, DIMS, tmp_path)
        resumed.load()
        resumed.follow(run, begins)
        for i in range(100):
            resumed.add(transition(i))
        assert resumed.transitions == expected


# --- checkpoints


@pytest.mark.parametrize("rlpd", [False, True])
def test_a_resumed_learner_goes_on_bit_for_bit(tmp_path, rlpd):
    preset = "rlpd" if rlpd else "td3"
    config = TD3Config.from_mapping({"preset": preset, "hidden": (16, 16), "batch_size": 16, "min_buffer": 10})
    first = filled(30, config)
    for _ in range(7):
        first.step()
    first.save(tmp_path / "l.ckpt")
    expected = [first.step() for _ in range(9)]

    second = Learner(config, DIMS)
    second.load(tmp_path / "l.ckpt")
    assert second.updates == 7
    for i in range(30):  # from the journal
        second.add(transition(i))
    found = [second.step() for _ in range(9)]
    assert same(first, second)
    for one, two in zip(expected, found):
        for name in ("critic_loss", "actor_loss", "q_mean", "anchor", "target_mean"):
            assert one[name] == two[name]


def test_a_full_disk_leaves_the_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    learner = filled(session_dir=tmp_path)
    path = learner.save(keep=2)
    before = path.read_bytes()
    learner.step()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        learner.save(keep=2)
    assert path.read_bytes() == before and not list(path.parent.glob("*.tmp"))


def test_a_resumed_learner_owes_nothing_twice(tmp_path):
    first = filled(30)
    for _ in range(7):
        first.step()
    owed = first.due()
    first.save(tmp_path / "l.ckpt")
    second = Learner(CONFIG, DIMS)
    second.load(tmp_path / "l.ckpt")
    for i in range(30):
        second.add(transition(i))
    assert second.due() == owed
    second.add(transition(30))
    assert second.due() == owed + 2


def test_a_resumed_learner_owes_nothing_until_the_journal_was_read_again(tmp_path):
    first = filled(60, session_dir=tmp_path)
    for _ in range(40):
        first.step()
    first.save()
    second = Learner(CONFIG, DIMS, tmp_path)
    second.load()
    for i in range(60):
        assert second.due() == 0
        second.add(transition(i))
    while first.due():
        first.step()
    while second.due():  # as the node, which looks after each message
        second.step()
    assert second.updates == 120 and same(first, second)

    third = Learner(CONFIG, DIMS, tmp_path)
    third.load()
    for i in (*range(20), *range(30, 50)):
        third.add(transition(i))
    third.give_up(20, 30)
    assert third.due() == 0
    third.give_up(50, 60)
    assert third.due() == 80


def test_a_crash_before_the_journal_was_read_again_does_not_forget_what_was_counted(tmp_path):
    filled(30).save(tmp_path / "l.ckpt")
    second = Learner(CONFIG, DIMS)
    second.load(tmp_path / "l.ckpt")
    second.add(transition(0))
    second.save(tmp_path / "l.ckpt")
    third = Learner(CONFIG, DIMS)
    third.load(tmp_path / "l.ckpt")
    for i in range(30):
        third.add(transition(i))
    assert third.transitions == 30


def test_versions_go_on_past_what_was_published_after_the_checkpoint(tmp_path):
    first = filled()
    first.publish()
    first.save(tmp_path / "l.ckpt")
    newest = [first.publish()[2] for _ in range(5)][-1]
    second = Learner(CONFIG, DIMS)
    second.load(tmp_path / "l.ckpt")
    assert second.publish()[2] > newest


def test_the_session_folder_is_the_default_place(tmp_path):
    path = filled(session_dir=tmp_path).save()
    assert path == tmp_path / "checkpoints" / "learner.ckpt" and path.exists()
    Learner(CONFIG, DIMS, tmp_path).load()
    with pytest.raises(CheckpointError, match="session_dir"):
        filled().save()


def test_a_crash_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    learner = filled(session_dir=tmp_path)
    learner.step()
    path = learner.save()
    before = path.read_bytes()
    learner.step()

    def crash(descriptor):
        raise OSError("power is out")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError):
        learner.save()
    monkeypatch.undo()
    assert path.read_bytes() == before
    Learner(CONFIG, DIMS, tmp_path).load()


@pytest.mark.parametrize("damage", [
    lambda data: data[:-100],  # cut off
    lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],  # one bit
    lambda data: b"",
    lambda data: module._MAGIC,
    lambda data: b"something else entirely",
])
def test_a_damaged_checkpoint_is_refused_by_its_path_and_changes_nothing(tmp_path, damage):
    path = filled(session_dir=tmp_path).save()
    path.write_bytes(damage(path.read_bytes()))
    learner = filled()
    learner.step()
    before = [t.clone() for t in parameters(learner)]
    with pytest.raises(CheckpointError, match=str(path)):
        learner.load(path)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(learner)))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.ckpt"):
        filled().load(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("other, what", [
    (Learner(TD3Config(hidden=(8, 16)), DIMS), "actor is"),
    (Learner(TD3Config(hidden=(16, 16), ensemble=3), DIMS), "critic is"),
    (Learner(TD3Config(hidden=(16, 16)), Dims(4, 4, 2, 5)), "actor is"),
])
def test_another_architecture_is_refused_by_name(tmp_path, other, what):
    path = filled(session_dir=tmp_path).save()
    before = [t.clone() for t in parameters(other)]
    with pytest.raises(CheckpointError, match=what) as caught:
        other.load(path)
    assert "hidden" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(other)))


@pytest.mark.parametrize("settings", [{}, {"hidden": (8,), "ensemble": 5, "layer_norm": False}])
def test_the_actor_is_read_without_knowing_how_it_was_trained(tmp_path, settings):
    learner = filled(config=replace(CONFIG, **settings))
    learner.step()
    learner.publish()
    actor, version = load_actor(learner.save(tmp_path / "l.ckpt"))
    state = np.ones(3), np.ones(4), np.full((5, 2), 0.3)
    assert version == 1
    np.testing.assert_array_equal(actor.act(*state), learner.td3.actor.act(*state))


def test_a_damaged_checkpoint_has_no_actor(tmp_path):
    path = filled(session_dir=tmp_path).save()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(path)):
        load_actor(path)


def test_the_newest_checkpoints_are_kept_beside_the_one_in_use(tmp_path):
    learner = filled(30, session_dir=tmp_path)
    for _ in range(5):
        learner.step()
        learner.save(keep=3)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "learner-000000003.ckpt", "learner-000000004.ckpt", "learner-000000005.ckpt", "learner.ckpt"]
    older = Learner(CONFIG, DIMS)
    older.load(folder / "learner-000000004.ckpt")
    assert older.updates == 4
    (folder / "learner.ckpt").write_bytes((folder / "learner.ckpt").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="copy an older one to its place: learner-000000005.ckpt, learner-000000004"):
        learner.load()


def test_after_going_back_to_an_older_checkpoint_the_newest_are_kept(tmp_path):
    learner = filled(30, session_dir=tmp_path)
    folder = tmp_path / "checkpoints"
    for number in range(1, 6):
        learner.step()
        learner.save(keep=3)
        os.utime(folder / f"learner-00000000{number}.ckpt", (number, number))
    (folder / "learner.ckpt").unlink()
    (folder / "learner.ckpt").write_bytes((folder / "learner-000000003.ckpt").read_bytes())
    back = Learner(CONFIG, DIMS, tmp_path)
    back.load()
    for i in range(30):
        back.add(transition(i))
    back.step()
    for _ in range(2):
        back.td3.updates -= 2  # numbers below all that were kept
        back.save(keep=3)
    assert sorted(path.name for path in folder.glob("learner-*")) == [
        "learner-000000000.ckpt", "learner-000000002.ckpt", "learner-000000005.ckpt"]



def test_the_anchor_weight_can_change_while_learning_and_stays_after_a_resume(tmp_path):
    one, other = filled(30), filled(30)
    one.set("beta", 3.0)
    for learner in (one, other):
        for _ in range(6):
            learner.step()
    assert not same(one, other)
    one.save(tmp_path / "l.ckpt")
    other.load(tmp_path / "l.ckpt")
    assert other.td3.beta == 3.0
    for name, value, text in (
        ("beta", -1.0, "expected 0.0 to 10.0"),
        ("beta", np.nan, "is nan"),
        ("tau", 0.1, "only beta"),
    ):
        with pytest.raises(ValueError, match=text):
            one.set(name, value)


def test_what_is_configured_anew_is_in_force_after_a_resume(tmp_path):
    first = filled(30)
    first.set("beta", 3.0)
    for _ in range(4):
        first.step()
    first.save(tmp_path / "l.ckpt")
    changed = Learner(replace(CONFIG, beta=0.05, actor_lr=1e-5, critic_lr=2e-5), DIMS)
    changed.load(tmp_path / "l.ckpt")
    optimisers = changed.td3.actor_optimiser, changed.td3.critic_optimiser
    assert changed.td3.beta == 0.05 and [o.param_groups[0]["lr"] for o in optimisers] == [1e-5, 2e-5]
    changed.save(tmp_path / "l.ckpt")
    again = Learner(changed.config, DIMS)
    again.load(tmp_path / "l.ckpt")
    assert again.td3.beta == 0.05


def test_prior_data_is_sampled_but_owed_no_updates():
    config = replace(CONFIG, prior_fraction=0.5)
    learner = Learner(config, DIMS)
    for i in range(20):
        learner.add_prior(transition(1000 + i))
    assert learner.due() == 0 and learner.next_sequence == 0
    for i in range(10):
        learner.add(transition(2 * i + 1))  # sources odd: the actor's
    assert learner.due() == 20
    assert learner.step()["prior_share"] >= 0.5
    with pytest.raises(ValueError, match="before everything else"):
        learner.add_prior(transition(7))
