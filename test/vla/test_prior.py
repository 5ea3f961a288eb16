"""Demonstrations as transitions."""

import numpy as np
import pytest

from rlt_ros.core.chunks import Source
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.sim.record import record_episode
from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load
from rlt_ros.vla.backend import VLAError
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


class Blind:
    """A VLA that costs nothing."""

    action_dim = 4

    def infer(self, images, proprio):
        return np.zeros((50, 4), np.float32), np.zeros(8, np.float32)

    def tokens(self, seen):
        return np.zeros((len(seen), 8), np.float32)


def transitions(demo, vla=None, latency=5, **changes):
    recorder = EpisodeRecorder(chunk_steps=10, stride=2, latency_ticks=latency, max_age_ticks=25)
    cameras = list(load_task("ethernet").cameras)
    return demonstration_transitions(demo | changes, vla or load("ethernet"), cameras, recorder, 3, 1000), recorder


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


@pytest.mark.parametrize("latency", [3, 5])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 7, 10])
def test_pictures_may_come_as_often_or_seldom_as_they_like(demo, every, latency):
    steps, critical = len(demo["action"]), int(demo["critical_tick"])
    ticks = np.arange(0, steps, every)
    found, recorder = transitions(demo, Blind(), latency, images=np.zeros((len(ticks), 2, 8, 8, 3), np.uint8),
                                  frame_tick=ticks)  # fmt: skip
    assert len(found) == pytest.approx((steps - critical) / 2, abs=2) and not recorder.skipped
    assert found[-1].terminated and found[-1].rewards.max() == 1.0


def test_a_long_demonstration_is_used_from_its_beginning(demo):
    steps, every, begins = 1400, 2, 10
    found, recorder = transitions(
        demo, Blind(), images=np.zeros((steps // every, 2, 8, 8, 3), np.uint8), frame_tick=np.arange(0, steps, every),
        proprio=np.resize(demo["proprio"][:1], (steps, demo["proprio"].shape[1])), action=np.zeros((steps, 4)),
        critical_tick=np.asarray(begins),
    )  # fmt: skip
    assert found[0].tick == 1000 + begins and len(found) == (steps - begins) // 2 and not recorder.skipped


@pytest.mark.parametrize(("name", "says"), [("proprio", "tick 30: proprio is"), ("action", "tick 30: action is")])
def test_what_is_not_finite_names_its_tick(demo, name, says):
    spoilt = demo[name].copy()
    spoilt[30, 1] = np.nan
    with pytest.raises(VLAError, match=says):
        transitions(demo, Blind(), **{name: spoilt})


def test_what_the_vla_cannot_look_at_names_its_tick(demo):
    with pytest.raises(VLAError, match="tick 0: camera 'wrist': got float32"):
        transitions(demo, images=demo["images"].astype(np.float32))
    with pytest.raises(VLAError, match="the demonstration has 3 actions, the VLA gives 4"):
        transitions(demo, Blind(), action=demo["action"][:, :3])
