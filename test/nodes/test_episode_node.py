"""The state machine behind services."""

import pytest
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.data.episodes import EpisodeRecord, append_episode
from rlt_ros.msg import ActionChunk, EpisodeState
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.ros import qos


@pytest.fixture
def call(peer):
    return lambda name: peer.call(Trigger, f"episode/{name}")


def test_episode_goes_from_start_to_success(graph, start, peer, call):
    start(EpisodeNode)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    before = peer.tick()
    assert call("start").message == "episode 1: APPROACH"
    assert call("hand_over").success
    assert call("success").success
    graph.spin_until(lambda: states[-1].phase == Phase.ENDED, "the end")
    end = states[-1]
    assert (end.episode, end.outcome, end.successes) == (1, Outcome.SUCCESS, 1)
    assert before <= end.start_tick <= end.critical_tick <= end.end_tick <= peer.tick()


def test_request_out_of_turn_is_refused_with_what_to_do(start, call):
    start(EpisodeNode)
    answer = call("hand_over")
    assert not answer.success
    assert "phase is IDLE, expected APPROACH" in answer.message and "call episode/start first" in answer.message


def test_time_out_of_the_critical_phase_is_no_failure(graph, start, peer, call):
    start(EpisodeNode, critical_timeout_s=0.1)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    call("start")
    call("hand_over")
    graph.spin_until(lambda: bool(states) and states[-1].phase == Phase.ENDED, "the time-out")
    assert (states[-1].outcome, states[-1].failures, states[-1].timeouts) == (Outcome.TIMEOUT, 0, 1)
    assert states[-1].end_tick - states[-1].critical_tick == 5


def test_a_persons_commands_in_the_critical_phase_are_told_and_belong_to_that_episode(graph, start, peer, call):
    start(EpisodeNode)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    say = peer.say(ActionChunk, "human/command", qos.COMMAND)
    steer = lambda: say(peer.chunk(peer.tick(), [0.1, 0.0, 0.0, 0.0], source=Source.HUMAN))  # noqa: E731
    call("start")
    count = len(states)
    graph.spin_until(lambda: (steer(), len(states) > count + 2)[1], "the approach")
    assert not any(state.human_commands for state in states)
    call("hand_over")
    graph.spin_until(lambda: (steer(), states[-1].human_commands > 3)[1], "the count")
    call("success")
    graph.spin_until(lambda: states[-1].phase == Phase.ENDED, "the end")
    assert states[-1].human_commands > 3
    call("reset")
    call("start")
    call("hand_over")
    graph.spin_until(lambda: states[-1].phase == Phase.CRITICAL, "the next one")
    assert states[-1].human_commands == 0


def test_state_is_latched_for_who_comes_late(graph, start, peer, call):
    start(EpisodeNode)
    call("start")
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    graph.spin_until(lambda: bool(states), "the latched state")
    assert states[0].phase == Phase.APPROACH


def test_resumed_session_goes_on_counting(start, call, tmp_path):
    append_episode(
        tmp_path,
        EpisodeRecord(index=7, outcome="success", critical_steps=5, total_steps=9, interventions=0, policy_version=0),
    )
    start(EpisodeNode, session=str(tmp_path))
    assert call("start").message == "episode 8: APPROACH"


def test_a_label_is_taken_back_and_given_anew_until_the_reset(graph, start, peer, call):
    start(EpisodeNode, undo_s=600.0)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    for name in ("start", "hand_over", "success"):
        assert call(name).success
    graph.spin_until(lambda: states[-1].outcome == Outcome.SUCCESS, "the label")
    end_tick = states[-1].end_tick
    assert not states[-1].committed
    assert call("undo").success
    graph.spin_until(lambda: states[-1].outcome == Outcome.NONE, "the undo")
    assert states[-1].phase == Phase.ENDED and states[-1].successes == 0
    assert call("failure").success and call("reset").success
    graph.spin_until(lambda: states[-1].phase == Phase.IDLE, "the reset")
    assert (states[-1].outcome, states[-1].end_tick, states[-1].committed) == (Outcome.FAILURE, end_tick, True)
    answer = call("undo")
    assert not answer.success and "cannot undo" in answer.message


def test_time_commits_a_label(graph, start, peer, call):
    start(EpisodeNode, undo_s=0.1)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    for name in ("start", "hand_over", "failure"):
        assert call(name).success
    graph.spin_until(lambda: bool(states) and states[-1].committed and states[-1].phase == Phase.ENDED, "the time")
    assert "it is learned from already" in call("undo").message


def test_where_a_person_demonstrates_an_approach_ends_in_success(graph, start, peer, call):
    node = start(EpisodeNode, label_any_time=True)
    states = peer.hear(EpisodeState, "episode/state", qos.STATE)
    assert call("start").success and call("success").success
    graph.spin_until(lambda: bool(states) and states[-1].phase == Phase.ENDED, "the end")
    assert (states[-1].outcome, states[-1].critical_tick) == (Outcome.SUCCESS, -1)
    assert node.on_diagnostics_()["label_any_time"] is True
