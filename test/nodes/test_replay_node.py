"""From streams to journalled transitions."""

import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from std_msgs.msg import UInt64

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.observations import TokenFrame
from rlt_ros.data.episodes import read_episodes
from rlt_ros.data.journal import journal_files, read_journal
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState, Transition
from rlt_ros.nodes.replay_node import ReplayNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import state_to_msg

STEPS = 40  # of the test's critical phase
PATIENT = {"episode_timeout_s": 60.0}  # the test's peer does not repeat episode/state; a busy machine may need its time


class Streams:
    """Plays one episode's messages, all at once; ticks are the test's own."""

    def __init__(self, peer) -> None:
        self.peer = peer
        self.heard = peer.hear(Transition, "replay")
        self.states = peer.say(RLState, "vla/rl_state", qos.EVENT)
        self.references = peer.say(ActionChunk, "vla/reference", qos.EVENT)
        self.proprios = peer.say(Proprio, "proprio", qos.RECORD)
        self.planned = peer.say(ActionChunk, "actor/chunk", qos.REPLAY)
        self.executed = peer.say(ActionChunk, "command/executed", qos.REPLAY)
        self.episodes = peer.say(EpisodeState, "episode/state", qos.STATE)
        self.request = peer.say(UInt64, "replay/request", qos.EVENT)

    def play(
        self, graph, node, episode: int, first: int, outcome: Outcome = Outcome.SUCCESS, human: range = range(0)
    ) -> None:
        """An episode that starts at tick `first`, is critical 20 ticks later and ends after STEPS more."""
        critical, end = first + 20, first + 20 + STEPS
        start = {"start_tick": first, "episode": episode}
        self.episodes(self.peer.episode(Phase.CRITICAL, critical_tick=critical, **start))
        graph.spin_until(lambda: node.start_tick == first, "the beginning")
        for tick in range(first, end + 1):
            source = Source.HUMAN if tick - critical in human else Source.VLA
            self.proprios(self.peer.proprio(tick))
            if tick % 2:
                self.states(state_to_msg(TokenFrame(tick, np.full(6, tick % 97), np.zeros(14)), self.peer.clock))
            if tick % 10 == 5:
                self.references(self.peer.chunk(tick, [0.1, 0.0, 0.0, 0.0], 50))
            self.executed(self.peer.chunk(tick, [0.3, 0.0, 0.0, 0.0], 1, source, policy_version=2))
            graph.executor.spin_once(0.001)
        graph.spin_until(lambda: node.recorder._newest >= end, "all streams")
        if outcome == Outcome.NONE:
            return  # nobody said how it ended
        self.episodes(self.peer.episode(Phase.ENDED, critical_tick=critical, end_tick=end, outcome=outcome, **start))
        graph.spin_until(
            lambda: bool(self.heard) and self.heard[-1].tick == end - 2, "the last transition of the episode"
        )


@pytest.fixture
def streams(peer):
    return lambda: Streams(peer)


def test_transitions_are_in_the_journal_before_they_are_published(graph, start, streams, tmp_path):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()
    s.play(graph, node, 1, 1000)
    assert [msg.sequence for msg in s.heard] == list(range(len(s.heard)))
    assert [msg.tick for msg in s.heard] == list(range(1020, 1020 + STEPS, 2))
    assert s.heard[-1].rewards[s.heard[-1].steps - 1] == 1.0
    stored = [deserialize_message(entry.data, Transition) for entry in read_journal(tmp_path / "journal")]
    assert stored == s.heard


def test_episodes_are_listed_with_their_interventions(graph, start, streams, tmp_path):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()
    s.play(graph, node, 1, 1000, Outcome.TIMEOUT, human=range(10, 20))
    graph.spin_until(lambda: bool(read_episodes(tmp_path)), "the list")
    s.play(graph, node, 2, 2000)
    graph.spin_until(lambda: len(read_episodes(tmp_path)) == 2, "the list")
    first, second = read_episodes(tmp_path)
    assert (first.index, first.outcome, first.critical_steps, first.total_steps) == (1, "timeout", STEPS, STEPS + 20)
    assert (first.interventions, first.policy_version) == (1, 2)
    assert (second.index, second.outcome, second.interventions) == (2, "success", 0)


def test_human_steps_replace_the_reference(graph, start, streams, tmp_path):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()
    s.play(graph, node, 1, 1000, human=range(10, 20))
    taken_over = next(msg for msg in s.heard if msg.tick == 1030)
    assert taken_over.reference[0] == pytest.approx(0.3) and set(taken_over.sources) == {Source.HUMAN}
    assert s.heard[0].reference[0] == pytest.approx(0.1)


def test_time_out_truncates(graph, start, streams):
    node = start(ReplayNode, **PATIENT)
    s = streams()
    s.play(graph, node, 1, 1000, Outcome.TIMEOUT)
    assert s.heard[-1].truncated
    assert not any(msg.terminated or any(msg.rewards) for msg in s.heard)


def test_restart_goes_on_counting_after_a_torn_tail_and_gives_all_again_on_request(
    graph, start, stop, streams, tmp_path
):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()
    s.play(graph, node, 1, 1000)
    count = len(s.heard)
    journal = journal_files(tmp_path / "journal")[0]
    torn = journal.read_bytes()  # as a killed process leaves it: no end, and half of the last entry
    stop(node)
    journal.write_bytes(torn[:-200])

    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    assert node.journal.next_sequence == count - 1
    graph.spin_until(
        lambda: (
            node.count_publishers("replay/request") > 0
            and s.peer.node.count_subscribers("replay/request") > 0
            and s.peer.node.count_publishers("replay") > 0
        ),
        "the connection",
    )
    s.heard.clear()

    def asked() -> bool:
        s.request(UInt64(data=0))
        return len(s.heard) >= count - 1

    graph.spin_until(asked, "what was before")
    assert [msg.sequence for msg in s.heard[: count - 1]] == list(range(count - 1))
    s.heard.clear()
    s.play(graph, node, 2, 2000)
    fresh = [msg.sequence for msg in s.heard if msg.episode == 2]
    assert fresh == list(range(count - 1, count - 1 + len(fresh)))
    assert len(journal_files(tmp_path / "journal")) == 2


def test_session_folder_that_cannot_be_written_fails_at_configure(make, tmp_path):
    (tmp_path / "journal").write_text("a file where a folder should be")
    assert (
        f"journal folder {tmp_path / 'journal'}" in make(ReplayNode, **PATIENT, session=str(tmp_path)).configure_error
    )


def test_outcome_of_the_next_episode_is_no_reward_for_a_lost_one(graph, start, streams, tmp_path):
    """episode_node dies in the critical phase and, started again, gives the same number to the next episode."""
    node = start(ReplayNode, session=str(tmp_path), **PATIENT)
    s = streams()
    s.play(graph, node, 1, 1000, Outcome.NONE)
    s.episodes(s.peer.episode(Phase.IDLE, episode=0))
    graph.spin_until(lambda: node.recorder._outcome is Outcome.ABORTED, "the end of the lost episode")
    s.play(graph, node, 1, 2000)
    lost = [msg for msg in s.heard if msg.tick < 2000]
    assert lost and not any(any(msg.rewards) or msg.terminated for msg in lost)
    assert [msg.tick for msg in s.heard[len(lost) :]] == list(range(2020, 2020 + STEPS, 2))
    assert s.heard[-1].rewards[s.heard[-1].steps - 1] == 1.0
    (listed,) = read_episodes(tmp_path)
    assert listed.critical_steps == STEPS


def test_silence_of_the_episode_node_ends_the_recording_without_an_outcome(graph, start, streams):
    node = start(ReplayNode, episode_timeout_s=0.5)
    s = streams()
    s.episodes(s.peer.episode(Phase.CRITICAL, start_tick=1000, critical_tick=1020))
    graph.spin_until(lambda: node.recorder._recording, "the beginning")
    graph.spin_until(lambda: node.recorder._outcome is Outcome.ABORTED, "the loss", timeout_s=5.0)
