"""The shipped VLA and something for it to look at."""

import pytest

from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load


@pytest.fixture(scope="module")
def vla():
    return load("ethernet")


@pytest.fixture(scope="module")
def scene():
    env = TaskEnv(load_task("ethernet"), seed=11)
    yield env.images(), env.proprio()
    env.close()
