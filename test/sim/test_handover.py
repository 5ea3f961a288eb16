"""Who hands over in lock-step."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_ros.core.episode import Outcome
from rlt_ros.core.handover import Approach, HandOverError, train
from rlt_ros.core.observations import TokenFrame
from rlt_ros.data.handover import save_classifier
from rlt_ros.sim.evaluate import evaluate, handed_over_by
from rlt_ros.sim.handover import Learned, Person, Rule
from rlt_ros.sim.lockstep import LockStep, Timing
from rlt_ros.sim.task import TaskEnv, load_task
from rlt_ros.vla import load
from rlt_ros.vla.traced import TracedVLA

PERIOD_S = 0.02


def frame(tick: int, height: float) -> TokenFrame:
    proprio = np.zeros(14)
    proprio[2] = height
    return TokenFrame(tick, np.zeros(96), proprio)


def approach(number: int, token: int = 96) -> Approach:
    """Pressed when the tool is 60 mm high, which it reaches between its fourth and fifth frame."""
    start = 1000 * number
    ticks = start + 10 * np.arange(8)
    proprios = np.random.default_rng(number).normal(0.0, 1e-4, (8, 14))
    proprios[:, 2] = (0.10, 0.09, 0.08, 0.07, 0.05, 0.04, 0.03, 0.02)
    return Approach(number, start, start + 40, PERIOD_S, ticks, ticks + 5, np.zeros((8, token)), proprios)


def test_the_person_presses_a_reaction_time_late_and_keeps_what_was_seen() -> None:
    person, delays = Person(10, PERIOD_S), set()
    for scene in range(20):
        person.begin(scene, 1000 * scene, scene)
        person.see(frame(1000 * scene + 5, 0.1), 1000 * scene + 10)
        assert not any(person.now(1000 * scene + i, False) for i in range(30))
        late = [person.now(1000 * scene + 30 + i, True) for i in range(20)].index(True)
        assert 0.14 <= late * PERIOD_S <= 0.3
        person.end(1000 * scene + 30 + late)
        delays.add(late)
    assert len(delays) > 3  # nobody reacts always the same
    assert [(a.press_tick - a.start_tick - 30) in delays for a in person.approaches] == 20 * [True]


def test_the_classifier_hands_over_once_and_only_on_this_episodes_frames() -> None:
    learned = Learned(train([approach(i) for i in range(8)])[0], 10, PERIOD_S)
    learned.begin(1, 1000, 0)
    for i, height in enumerate((0.10, 0.09, 0.08)):
        learned.see(frame(1000 + 10 * i, height), 1005 + 10 * i)
        assert not learned.now(1006 + 10 * i, True)  # the rule does not count
    for i in (3, 4, 5):
        learned.see(frame(1000 + 10 * i, 0.03), 1005 + 10 * i)
    assert learned.now(1056, False)
    learned.begin(2, 2000, 0)
    learned.see(frame(1060, 0.03), 2001)
    learned.see(frame(1070, 0.03), 2002)
    assert not learned.now(2003, True)


@pytest.fixture(scope="module")
def lockstep():
    task = replace(load_task("ethernet"), critical_timeout=0.2)
    env, vla = TaskEnv(task), TracedVLA(load("ethernet"))
    yield lambda who: LockStep(env, vla, Timing(), hand_over=who).run(7)
    env.close()


def test_an_episode_is_handed_over_by_whom_it_is_told(lockstep) -> None:
    """Rule, person, classifier: each later than what it goes by, and one who never presses ends in a time-out."""
    by_rule = lockstep(Rule())
    person = Person(10, PERIOD_S)
    by_person = lockstep(person)
    late_s = (by_person.steps - by_person.critical_steps - by_rule.steps + by_rule.critical_steps) * PERIOD_S
    assert 0.14 <= late_s <= 0.3
    (seen,) = person.approaches
    assert seen.press_tick - seen.start_tick == by_person.steps - by_person.critical_steps
    assert len(seen.ticks) >= 4 and (np.diff(seen.ticks) >= 10).all() and (seen.heard - seen.ticks == 5).all()

    class Nobody(Rule):
        def now(self, tick: int, critical: bool) -> bool:
            return False

    result = lockstep(Nobody())
    assert result.outcome is Outcome.TIMEOUT and result.critical_steps == 0


def test_a_learned_hand_over_needs_a_session_that_has_learned_one(tmp_path) -> None:
    task = load_task("ethernet")
    with pytest.raises(ValueError, match="policy 'base' has no session"):
        evaluate("ethernet", "base", 1, hand_over="learned")
    with pytest.raises(ValueError, match="hand_over is 'robot', expected one of rule, person, learned"):
        evaluate("ethernet", "base", 1, hand_over="robot")
    with pytest.raises(ValueError, match="nobody hands over"):
        evaluate("ethernet", "demonstrator", 1, hand_over="person")
    with pytest.raises(HandOverError, match="has no hand-over classifier"):
        handed_over_by("learned", tmp_path, 96, task, Timing())
    save_classifier(tmp_path, *train([approach(i, token=7) for i in range(8)]))
    with pytest.raises(HandOverError, match="token of 7 .*here they are 96"):
        handed_over_by("learned", tmp_path, 96, task, Timing())
