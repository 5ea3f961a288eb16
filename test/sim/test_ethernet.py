"""The Ethernet insertion: real physics, real pixels."""

import numpy as np
import pytest

from rlt_ros.sim.demonstrator import Demonstrator
from rlt_ros.sim.ethernet import EthernetConfig, EthernetInsertion
from rlt_ros.sim.task import TaskEnv, load_task


@pytest.fixture(scope="module")
def env():
    made = TaskEnv(load_task("ethernet"))
    yield made
    made.close()


def drive(env: TaskEnv, error: float, ticks: int = 250) -> None:
    """Steer the plug straight down at a place ``error`` metres beside the hole, as only the simulator can."""
    for _ in range(ticks):
        info = env.info()
        x, y, height = info["offset"]
        beside = np.array([x - error, y])
        action = np.zeros(4)
        action[:2] = -0.3 * beside / 0.0015
        action[3] = -0.3 * info["yaw_error"] / 0.02
        if height > 0.004 or np.hypot(*beside) < 0.0003 or height < -0.0005:
            action[2] = -0.4
        env.step(action)
        if env.success():
            return


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_aligned_plug_goes_in_and_latches(env, seed):
    env.reset(seed)
    drive(env, 0.0)
    assert env.success() and env.truth()["depth"] > 0.0112


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plug_one_millimetre_off_stays_out(env, seed):
    env.reset(seed)
    drive(env, 0.001)
    assert not env.success() and env.truth()["depth"] < 0.001


def test_a_latched_plug_holds_against_a_pull(env):
    env.reset(0)
    drive(env, 0.0)
    for _ in range(50):
        env.step(np.array([0, 0, 0.2, 0]))
    assert env.truth()["depth"] > 0.009


def test_the_same_seed_gives_the_same_episode_to_the_pixel(env):
    seen = []
    for _ in range(2):
        env.reset(7)
        for _ in range(20):
            env.step(np.array([0.3, -0.2, -0.5, 0.1]))
        seen.append((env.proprio(), env.images()))
    assert np.array_equal(seen[0][0], seen[1][0])
    assert all(np.array_equal(seen[0][1][c], seen[1][1][c]) for c in ("wrist", "base"))


def test_scenes_differ_in_place_and_look(env):
    pictures, places = [], []
    for seed in (1, 2):
        env.reset(seed)
        pictures.append(env.images()["base"].astype(float))
        places.append(env.info()["offset"])
    assert np.abs(pictures[0] - pictures[1]).mean() > 5
    assert np.abs(places[0] - places[1]).max() > 1e-4


def test_the_wrench_feels_the_jack(env):
    env.reset(3)
    assert np.linalg.norm(env.proprio()[8:11]) < 1e-3  # tared
    drive(env, 0.002, 200)
    assert env.proprio()[10] > 2.0  # the world pushes the tool up


def test_actions_beyond_one_are_one(env):
    places = []
    for action in (1.0, 50.0):
        env.reset(4)
        for _ in range(5):
            env.step(np.array([action, 0, 0, 0]))
        places.append(env.proprio()[0])
    assert places[0] == places[1]


def test_the_demonstrator_succeeds_slowly(env):
    steps = []
    for seed in range(5):
        env.reset(seed)
        person = Demonstrator(env, np.random.default_rng(seed))
        for tick in range(900):
            env.step(person.step(env))
            if env.success():
                steps.append(tick)
                break
    assert len(steps) >= 4 and np.median(steps) > 100


def test_an_unknown_camera_and_an_unknown_argument_are_named(env):
    from rlt_ros.sim.ethernet import EthernetInsertion

    with pytest.raises(ValueError, match="wrist, base"):
        env.env.camera("ceiling")
    with pytest.raises(ValueError, match="'gravity'"):
        EthernetInsertion(gravity=0)


def test_five_ticks_at_250_hz_go_as_far_as_one_at_50():
    places = []
    for rate, ticks in ((50.0, 1), (250.0, 5)):
        made = EthernetInsertion(rate=rate)
        made.reset(seed=3)
        for _ in range(ticks):
            seen, *_ = made.step(np.array([0.001, 0.0005, -0.001, 0.01]) / ticks)
        places.append(seen["pose"])
        made.close()
    np.testing.assert_allclose(*places, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 60.0, 1000.0])
def test_rate_that_does_not_divide_that_of_the_physics_is_refused(rate):
    with pytest.raises(ValueError, match="expected a divisor of 500 Hz"):
        EthernetConfig(rate=rate)
