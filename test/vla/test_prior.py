"""Demonstrations as transitions."""

import numpy as np
import pytest

from rlt_ros.core.chunks import Source
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.sim.record import record_episode
from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load
from rlt_ros.vla.prior import demonstration_transitions


@pytest.fixture(scope="module")
def demo():
    env = TaskEnv(load_task("ethernet"))
    for seed in range(20):
        episode = record_episode(env, seed)
        if episode["success"]:
            env.close()
            return episode
    raise AssertionError("the demonstrator failed twenty times")


def transitions(demo, **changes):
    recorder = EpisodeRecorder(chunk_steps=10, stride=2, latency_ticks=5, max_age_ticks=25)
    cameras = list(load_task("ethernet").cameras)
    return demonstration_transitions(demo | changes, load("ethernet"), cameras, recorder, 3, 1000), recorder


def test_a_demonstration_is_a_critical_phase_in_a_humans_hands(demo):
    found, recorder = transitions(demo)
    steps, critical = len(demo["action"]), int(demo["critical_tick"])
    assert len(found) == pytest.approx((steps - critical) / 2, abs=2) and not recorder.skipped
    last = found[-1]
    assert last.terminated and last.rewards[last.steps - 1] == 1.0 and sum(t.rewards.sum() > 0 for t in found) >= 1
    for t in found:
        done = demo["action"][t.tick - 1000:t.tick - 1000 + t.steps]
        assert np.allclose(t.action[:t.steps], done) and np.allclose(t.reference[:t.steps], done)
        assert (t.sources[:t.steps] == Source.HUMAN).all()
        assert 5 <= t.token_age_ticks < 15
    assert [t.sequence for t in found] == list(range(len(found)))


def test_a_failed_demonstration_gives_nothing(demo):
    assert transitions(demo, success=np.asarray(False))[0] == []
    assert transitions(demo, critical_tick=np.asarray(-1))[0] == []
