import pytest

from rlt_ros.core.episode import EpisodeError, EpisodeMachine, Outcome, Phase, Score


def machine(phase=Phase.IDLE):
    m = EpisodeMachine(timeout_ticks=100, approach_timeout_ticks=50)
    if phase >= Phase.APPROACH:
        m.start(10)
    if phase >= Phase.CRITICAL:
        m.hand_over(30)
    if phase >= Phase.ENDED:
        m.failure(40)
    return m


def test_an_episode_from_start_to_success():
    m = machine()
    m.start(10)
    assert (m.phase, m.episode, m.start_tick, m.critical_tick, m.end_tick) == (Phase.APPROACH, 1, 10, -1, -1)
    m.hand_over(30)
    assert (m.phase, m.critical_tick, m.outcome) == (Phase.CRITICAL, 30, Outcome.NONE)
    m.success(55)
    assert (m.phase, m.outcome, m.end_tick) == (Phase.ENDED, Outcome.SUCCESS, 55)
    m.reset(60)
    assert m.phase is Phase.IDLE
    m.start(70)
    assert (m.episode, m.outcome, m.critical_tick, m.end_tick) == (2, Outcome.NONE, -1, -1)


def test_outcomes_are_counted_each_for_itself():
    m = machine()
    for end in (m.success, m.success, m.failure, m.abort):
        m.start(0)
        m.hand_over(1)
        end(2)
        m.reset(3)
    m.start(0)
    m.step(50)
    assert m.counters == {Outcome.SUCCESS: 2, Outcome.FAILURE: 1, Outcome.ABORTED: 1, Outcome.TIMEOUT: 1}


ALLOWED = {
    "start": {Phase.IDLE}, "hand_over": {Phase.APPROACH}, "success": {Phase.CRITICAL}, "failure": {Phase.CRITICAL},
    "abort": {Phase.APPROACH, Phase.CRITICAL},
}


@pytest.mark.parametrize("request_, phase", [(r, p) for r in ALLOWED for p in Phase if p not in ALLOWED[r]])
def test_a_request_out_of_place_is_refused_and_changes_nothing(request_, phase):
    m = machine(phase)
    before = dict(vars(m), counters=dict(m.counters))
    with pytest.raises(EpisodeError, match=f"phase is {phase.name}, expected"):
        getattr(m, request_)(99)
    assert vars(m) == before


@pytest.mark.parametrize("request_, phase", [(r, p) for r in ALLOWED for p in ALLOWED[r]])
def test_a_request_in_its_place_is_carried_out(request_, phase):
    m = machine(phase)
    getattr(m, request_)(99)
    assert m.phase != phase


def test_the_refusal_says_what_to_do():
    with pytest.raises(EpisodeError, match="hand over: phase is IDLE, expected APPROACH; call episode/start first"):
        machine().hand_over(5)


def test_the_critical_phase_times_out_as_time_out_not_failure():
    m = machine(Phase.CRITICAL)
    assert m.step(129) is False and m.phase is Phase.CRITICAL
    assert m.step(130) is True
    assert (m.phase, m.outcome, m.end_tick) == (Phase.ENDED, Outcome.TIMEOUT, 130)
    assert m.step(131) is False
    assert m.counters[Outcome.TIMEOUT] == 1


def test_the_approach_times_out():
    m = machine(Phase.APPROACH)
    assert m.step(59) is False
    assert m.step(60) is True and m.outcome is Outcome.TIMEOUT and m.critical_tick == -1


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.ENDED])
def test_nothing_times_out_outside_an_episode(phase):
    assert machine(phase).step(10**9) is False


@pytest.mark.parametrize("phase, aborted", list(zip(Phase, (0, 1, 1, 0))))
def test_reset_leads_to_idle_from_anywhere_and_aborts_what_ran(phase, aborted):
    m = machine(phase)
    m.reset(99)
    assert m.phase is Phase.IDLE and m.counters[Outcome.ABORTED] == aborted


def test_a_time_out_of_nothing_is_refused():
    with pytest.raises(ValueError, match="approach_timeout_ticks: got 0"):
        EpisodeMachine(100, 0)


def test_where_a_person_demonstrates_labels_need_no_hand_over():
    for phase in (Phase.APPROACH, Phase.CRITICAL):
        m = EpisodeMachine(timeout_ticks=100, approach_timeout_ticks=50, reaction_ticks=30, label_any_time=True)
        m.start(10)
        if phase is Phase.CRITICAL:  # marked all the same
            m.hand_over(12)
        m.success(20)
        assert (m.phase, m.outcome, m.end_tick) == (Phase.ENDED, Outcome.SUCCESS, m.critical_tick if phase > 1 else 10)
    with pytest.raises(EpisodeError, match="phase is IDLE, expected APPROACH or CRITICAL; call episode/start first"):
        EpisodeMachine(100, 50, label_any_time=True).success(5)


# --- taking a label back


def labelled(**changes):
    m = EpisodeMachine(timeout_ticks=100, approach_timeout_ticks=50, undo_ticks=20, **changes)
    m.start(10)
    m.hand_over(30)
    m.success(55)
    return m


def test_a_label_is_taken_back_and_another_given_for_the_same_tick():
    m = labelled()
    m.undo(60)
    assert (m.phase, m.outcome, m.end_tick, m.committed, m.counters[Outcome.SUCCESS]) == (
        Phase.ENDED, Outcome.NONE, 55, False, 0)
    m.failure(64)
    assert (m.outcome, m.end_tick, m.counters[Outcome.FAILURE], m.committed) == (Outcome.FAILURE, 55, 1, False)
    m.undo(65)
    m.abort(66)
    assert (m.outcome, m.end_tick, m.counters[Outcome.ABORTED]) == (Outcome.ABORTED, 55, 1)


def test_a_reset_or_time_commits_the_label_for_good():
    m = labelled()
    assert not any(m.step(tick) for tick in range(56, 75)) and not m.committed
    assert m.step(75) and m.committed and not m.step(76)
    with pytest.raises(EpisodeError, match="cannot undo: it is learned from already"):
        m.undo(77)
    other = labelled()
    other.reset(57)
    assert other.committed
    with pytest.raises(EpisodeError, match="cannot undo: there is no label"):
        other.undo(58)


def test_without_a_label_it_waits_for_one_and_a_reset_aborts():
    m = labelled()
    m.undo(60)
    assert not any(m.step(tick) for tick in range(61, 500)) and not m.committed
    with pytest.raises(EpisodeError, match="there is no label"):
        m.undo(500)
    m.reset(501)
    assert (m.outcome, m.end_tick, m.committed, m.counters[Outcome.ABORTED]) == (Outcome.ABORTED, 55, True, 1)


def test_a_label_counts_for_the_tick_when_it_happened():
    assert labelled(reaction_ticks=8).end_tick == 47
    assert labelled(reaction_ticks=80).end_tick == 30  # not before the critical phase


def test_score_counts_each_episode_once_and_no_aborted_one():
    score = Score(window=4)
    outcomes = [Outcome.FAILURE, Outcome.SUCCESS, Outcome.ABORTED, Outcome.TIMEOUT, Outcome.SUCCESS, Outcome.SUCCESS]
    score.see(1, Phase.APPROACH, Outcome.NONE, 0, 0.0)
    for i, outcome in enumerate(outcomes):
        for _ in range(3):  # the state is repeated
            score.see(i + 1, Phase.ENDED, outcome, 100 * i, 60.0 * (i + 1))
    assert score.success_rate == 3 / 4  # the newest four that count: success, time-out, success, success
    assert score.median_steps == 400.0
    assert score.successes_per_10min == 3 / 5 * 10  # three in the five minutes since the first failure


def test_score_counts_successes_with_help_apart():
    score = Score(window=4)
    for i, helped in enumerate((True, False, False, True)):
        score.see(i, Phase.ENDED, Outcome.FAILURE if i == 2 else Outcome.SUCCESS, 100 * i, 60.0 * i, helped)
    assert (score.success_rate, score.helped_rate, score.median_steps) == (1 / 4, 2 / 4, 100.0)
    assert score.successes_per_10min == pytest.approx(1 / 3 * 10)


def test_score_of_nothing_is_zero():
    score = Score()
    assert (score.success_rate, score.median_steps, score.successes_per_10min) == (0.0, 0.0, 0.0)
