"""The simulated person's behaviour, in simulated time."""

import numpy as np

from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.sim.person import Habits, SimulatedPerson, View


def view(offset=(0.002, -0.001, 0.01), **fields) -> View:
    return View(
        np.array(offset), fields.pop("yaw_error", 0.0), fields.pop("critical", False), fields.pop("success", False)
    )


def first_request(person: SimulatedPerson, phase: Phase, seen: View, since_s: float, until_s: float):
    """(time, request) of the first request while `seen` is what there is to see."""
    for now_s in np.arange(since_s, until_s, 0.02):
        person.see(now_s, seen)
        wish = person.act(now_s, phase)
        if wish.requests:
            return now_s, wish.requests[0]
    return None


def test_buttons_are_pressed_a_reaction_time_after_what_is_seen():
    person = SimulatedPerson(Habits(reaction_s=(0.2, 0.3), intervention_share=0.0), seed=1)
    assert first_request(person, Phase.APPROACH, view(), 0.0, 2.0) is None
    when, request = first_request(person, Phase.APPROACH, view(critical=True), 2.0, 4.0)
    assert request == "hand_over" and 0.2 <= when - 2.0 <= 0.35
    assert first_request(person, Phase.CRITICAL, view(critical=True), 4.0, 6.0) is None
    when, request = first_request(person, Phase.CRITICAL, view(success=True), 6.0, 8.0)
    assert request == "success" and 0.2 <= when - 6.0 <= 0.35


def test_a_person_who_leaves_the_hand_over_to_others_labels_all_the_same():
    person = SimulatedPerson(Habits(hands_over=False, intervention_share=0.0), seed=1)
    assert first_request(person, Phase.APPROACH, view(critical=True), 0.0, 4.0) is None
    assert first_request(person, Phase.CRITICAL, view(success=True), 4.0, 6.0)[1] == "success"


def test_scene_is_reset_before_the_start_and_the_past_forgotten():
    person = SimulatedPerson(Habits(rest_s=0.5), seed=1)
    assert first_request(person, Phase.CRITICAL, view(success=True), 0.0, 2.0)[1] == "success"
    when, request = first_request(person, Phase.ENDED, view(success=True), 2.0, 4.0)
    assert request == "reset" and when - 2.0 >= 0.5
    assert first_request(person, Phase.IDLE, view(), 4.0, 6.0)[1] == "sim_reset"
    person.scene_is_reset()
    when, request = first_request(person, Phase.IDLE, view(), 4.1, 8.0)
    assert request == "start" and when - 4.1 <= 0.5  # who is answered goes on at once


def test_request_that_was_not_heard_is_repeated_after_a_second():
    person = SimulatedPerson(Habits(), seed=1)
    first, _ = first_request(person, Phase.APPROACH, view(critical=True), 0.0, 2.0)
    again, _ = first_request(person, Phase.APPROACH, view(critical=True), first + 0.02, first + 3.0)
    assert again - first >= 1.0


def test_request_that_nobody_was_there_for_is_repeated_at_once():
    person = SimulatedPerson(Habits(), seed=1)
    first, _ = first_request(person, Phase.APPROACH, view(critical=True), 0.0, 2.0)
    person.was_not_heard()
    again, _ = first_request(person, Phase.APPROACH, view(critical=True), first + 0.02, first + 3.0)
    assert again - first <= 0.1


def test_person_steers_towards_the_jack_for_a_while():
    person = SimulatedPerson(Habits(intervention_share=1.0, intervention_s=(1.0, 1.0), steering_noise_m=0.0), seed=1)
    sticks = []
    for now_s in np.arange(0.0, 6.0, 0.05):
        person.see(now_s, view(yaw_error=0.05))
        stick = person.act(now_s, Phase.CRITICAL).stick
        if stick is not None:
            sticks.append(stick)
    assert 18 <= len(sticks) <= 22
    mean = np.mean(sticks, axis=0)
    assert mean[0] < -0.8 and mean[1] > 0.3 and mean[3] < -0.8  # against the offset, and against the turn
    assert abs(mean[2]) < 0.1  # not down before it is aligned


def test_share_of_interventions_is_kept():
    person = SimulatedPerson(Habits(intervention_share=0.25), seed=1)
    taken = 0
    for episode in range(400):
        person.act(10.0 * episode, Phase.APPROACH)
        person.act(10.0 * episode + 1, Phase.CRITICAL)
        taken += person._takeover is not None
    assert 75 <= taken <= 125


def test_person_who_cannot_see_the_goal_does_not_take_over():
    person = SimulatedPerson(Habits(intervention_share=1.0), seed=1)
    for now_s in np.arange(0.0, 6.0, 0.05):
        person.see(now_s, view(offset=(np.nan, 0.0, np.nan), yaw_error=np.nan))
        assert person.act(now_s, Phase.CRITICAL).stick is None


def test_who_demonstrates_labels_the_approach_and_hands_nothing_over():
    person = SimulatedPerson(Habits(demonstrates=True, intervention_share=0.0), seed=1)
    far = view(offset=(0.08, 0.0, 0.1))  # as every approach begins: no reason to give up
    assert first_request(person, Phase.APPROACH, far, 0.0, 3.0) is None
    assert first_request(person, Phase.APPROACH, view(critical=True), 3.0, 6.0) is None
    assert first_request(person, Phase.APPROACH, view(success=True), 6.0, 8.0)[1] == "success"


def by_hand(person: SimulatedPerson, since_s: float, last: Outcome) -> float:
    """Part of nine seconds of critical phase, after an episode that ended so, that the person does by hand."""
    person.act(since_s, Phase.ENDED, last)
    wishes = []
    for passed_s in np.arange(0.1, 9.0, 0.05):
        person.see(since_s + passed_s, view())
        wishes.append(person.act(since_s + passed_s, Phase.CRITICAL))
    assert not any(wish.by_hand and wish.stick is not None for wish in wishes)
    return np.mean([wish.by_hand for wish in wishes])


def test_a_person_who_has_seen_only_failures_does_one_by_hand():
    person = SimulatedPerson(Habits(intervention_share=0.9, helps_after=3), seed=1)
    assert not by_hand(person, 0.0, Outcome.FAILURE)
    assert not by_hand(person, 10.0, Outcome.TIMEOUT)
    assert not by_hand(person, 20.0, Outcome.ABORTED)  # nobody's failure
    assert by_hand(person, 30.0, Outcome.TIMEOUT) > 0.9
    assert not by_hand(person, 40.0, Outcome.FAILURE)  # and lets the robot try again, though it went wrong
    assert not by_hand(person, 50.0, Outcome.FAILURE)
    assert not by_hand(person, 60.0, Outcome.SUCCESS)
    assert not by_hand(person, 70.0, Outcome.FAILURE)
    person.act(80.0, Phase.ENDED, Outcome.FAILURE)
    assert not person.act(80.1, Phase.APPROACH).by_hand


def test_a_person_may_leave_it_to_the_robot_however_often_it_fails():
    person = SimulatedPerson(Habits(helps_after=0), seed=1)
    assert not any(by_hand(person, 10.0 * n, Outcome.FAILURE) for n in range(6))
