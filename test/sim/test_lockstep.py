"""Lock-step episodes with a VLA that is as slow as one says."""

from dataclasses import replace

import pytest

from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.sim.lockstep import LockStep, Timing
from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load
from rlt_ros.vla.traced import TracedVLA

TICKS = 60  # of an episode that only approaches


@pytest.fixture(scope="module")
def run():
    task = replace(load_task("ethernet"), approach_timeout=TICKS / 50)
    env, vla = TaskEnv(task), TracedVLA(load("ethernet"))

    def made(latency=5, wait=False, **timing):
        timing = {"latency_ticks": 5, "join": "none", "join_ticks": 0} | timing
        return LockStep(env, vla, Timing(**timing), latency=latency, wait=wait).run(7)

    yield made
    env.close()


@pytest.mark.parametrize("latency", [0, 5, 10, 15])
def test_the_robot_never_waits_for_a_vla_that_is_as_slow_as_it_says(run, latency):
    motion = run(latency, latency_ticks=latency).motion
    assert motion.without_command == 0 and motion.ticks == TICKS - latency  # it begins with the first reference


@pytest.mark.parametrize("latency", [7, 10, 15])
def test_nor_for_one_that_is_slower_than_promised(run, latency):
    assert run(latency).motion.without_command == 0


def test_it_holds_when_references_are_older_than_allowed(run):
    assert run(30).motion.ticks == 0  # of 25: none is ever used
    assert run(15, max_age_ticks=16).motion.without_command > 0


def test_waiting_stands_once_a_chunk_for_as_long_as_the_vla_takes(run):
    motion = run(10, wait=True).motion
    assert (motion.ticks, motion.without_command) == (TICKS - 10, 20)  # 10 to begin with; then 10 of 20
    assert run(0, wait=True).motion.without_command == 0


def test_the_velocity_jumps_at_the_seams_unless_chunks_are_joined(run):
    naive, joined = run().motion, run(join_ticks=4).motion
    assert naive.seam > naive.inside and joined.seam <= joined.inside
    assert run(10, wait=True).motion.seam > naive.seam


def test_references_are_joined_by_the_vla_or_faded(run):
    naive = run().motion
    assert run(join="rtc").motion.seam < naive.seam
    assert run(join="blend").motion.seam < naive.seam


def test_an_episode_that_waits_cannot_be_recorded(run):
    task = load_task("ethernet")
    env = TaskEnv(task)
    recorder = EpisodeRecorder(chunk_steps=10, stride=2, latency_ticks=5, max_age_ticks=25)
    with pytest.raises(ValueError, match="cannot be recorded"):
        LockStep(env, load("ethernet"), Timing(join="none"), wait=True).run(7, recorder)
    env.close()
