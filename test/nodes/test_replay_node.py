"""From streams to journalled transitions."""

import os
import resource
import subprocess
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.serialization import deserialize_message
from std_msgs.msg import UInt64

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.transition import Transition as Recorded
from rlt_ros.data.episodes import read_episodes
from rlt_ros.data.journal import JournalError, journal_files, read_journal
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState, SafetyState, Transition
from rlt_ros.nodes.replay_node import SEND_HZ, WAITING, ReplayNode
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
        self.safety = peer.say(SafetyState, "safety/state", qos.STATE)
        self.request = peer.say(UInt64, "replay/request", qos.EVENT)

    def play(
        self, graph, node, episode: int, first: int, outcome: Outcome = Outcome.SUCCESS, human: range = range(0)
    ) -> None:
        """An episode that starts at tick `first`, is critical 20 ticks later and ends after STEPS more."""
        critical, end = first + 20, first + 20 + STEPS
        start = {"start_tick": first, "episode": episode}
        self.episodes(self.peer.episode(Phase.CRITICAL, critical_tick=critical, **start))
        graph.spin_until(lambda: node.start_tick == first, "the beginning")
        self.stream(graph, first, end, human)
        graph.spin_until(lambda: node.recorder._newest >= end, "all streams")
        if outcome == Outcome.NONE:
            return  # nobody said how it ended
        self.episodes(self.peer.episode(Phase.ENDED, critical_tick=critical, end_tick=end, outcome=outcome, **start))
        graph.spin_until(
            lambda: bool(self.heard) and self.heard[-1].tick == end - 2, "the last transition of the episode"
        )

    def stream(self, graph, first: int, end: int, human: range = range(0)) -> None:
        """What happens from tick `first`, 20 before the critical phase, to `end`."""
        critical = first + 20
        for tick in range(first, end + 1):
            source = Source.HUMAN if tick - critical in human else Source.VLA
            self.proprios(self.peer.proprio(tick))
            if tick % 2:
                self.states(state_to_msg(TokenFrame(tick, np.full(6, tick % 97), np.zeros(14)), self.peer.clock))
            if tick % 10 == 5:
                self.references(self.peer.chunk(tick, [0.1, 0.0, 0.0, 0.0], 50))
            self.executed(self.peer.chunk(tick, [0.3, 0.0, 0.0, 0.0], 1, source, policy_version=2))
            graph.spin_once(0.001)


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
    assert (first.interventions, first.human_steps, first.policy_version) == (1, 10, 2)
    assert (second.index, second.outcome, second.interventions) == (2, "success", 0)
    assert second.end_s > first.end_s > 0


def test_episodes_are_listed_with_what_the_gate_did_since_the_one_before(graph, start, streams, tmp_path):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()

    def gate(**counts: int) -> None:
        s.safety(SafetyState(causes=list(counts), counts=list(counts.values())))
        graph.spin_until(lambda: node.gate_counts == counts, "the counts")

    gate(force=5)  # of before this node began
    gate(force=7, range=1)
    s.play(graph, node, 1, 1000)
    graph.spin_until(lambda: len(read_episodes(tmp_path)) == 1, "the first episode")
    gate(force=7, range=4)
    gate(range=2)  # the safety node was started again
    s.play(graph, node, 2, 2000)
    graph.spin_until(lambda: len(read_episodes(tmp_path)) == 2, "the second episode")
    assert [episode.gate for episode in read_episodes(tmp_path)] == [{"force": 2, "range": 1}, {"range": 5}]


def test_what_a_person_does_after_the_end_is_no_intervention(graph, peer, start, streams, tmp_path):
    node = start(ReplayNode, **PATIENT, session=str(tmp_path))
    s = streams()
    s.play(graph, node, 1, 1000, Outcome.NONE)
    ended = {"episode": 1, "start_tick": 1000, "critical_tick": 1020, "end_tick": 1060, "outcome": Outcome.SUCCESS}
    s.episodes(peer.episode(Phase.ENDED, **ended, committed=False))
    graph.spin_until(lambda: node.labelled is not None, "the label")
    s.executed(peer.chunk(1061, [0.3, 0.0, 0.0, 0.0], 1, Source.HUMAN))
    graph.spin_until(lambda: node.source is Source.HUMAN, "the arm to be moved back by hand")
    s.episodes(peer.episode(Phase.ENDED, **ended))
    graph.spin_until(lambda: len(read_episodes(tmp_path)) == 1, "the episode")
    assert [(e.interventions, e.human_steps) for e in read_episodes(tmp_path)] == [(0, 0)]


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


def test_silence_of_the_episode_node_costs_nothing_when_it_speaks_again(graph, start, streams, tmp_path):
    """As where the computer stands still for a second: the episode goes on, and its outcome counts."""
    node = start(ReplayNode, session=str(tmp_path), episode_timeout_s=0.5)
    s = streams()
    episode = {"episode": 1, "start_tick": 1000, "critical_tick": 1020}
    s.episodes(s.peer.episode(Phase.CRITICAL, **episode))
    graph.spin_until(lambda: node.critical, "the episode")
    node.heard_tick = 1050
    graph.spin_until(lambda: node.recorder._over_since == 1050, "the silence")
    s.stream(graph, 1000, 1020 + STEPS)
    graph.spin_until(lambda: bool(s.heard) and s.heard[-1].tick == 1038, "what the end could not touch")
    assert len(s.heard) == 10
    s.episodes(s.peer.episode(Phase.CRITICAL, **episode))
    graph.spin_until(lambda: len(s.heard) > 10, "what comes after the silence")
    s.episodes(s.peer.episode(Phase.ENDED, end_tick=1020 + STEPS, outcome=Outcome.SUCCESS, **episode))
    graph.spin_until(lambda: bool(read_episodes(tmp_path)) and len(s.heard) == STEPS // 2, "the whole episode")
    assert [msg.tick for msg in s.heard] == list(range(1020, 1020 + STEPS, 2))
    assert s.heard[-1].rewards[s.heard[-1].steps - 1] == 1.0


def test_messages_of_another_size_are_dropped_and_spoil_nothing(graph, start, streams, peer):
    node = start(ReplayNode, **PATIENT)
    s = streams()
    s.states(state_to_msg(TokenFrame(999, np.zeros(6), np.zeros(14)), peer.clock))
    s.proprios(peer.proprio(1030, np.zeros(13, np.float32)))
    s.executed(peer.chunk(1030, [0.0, 0.0, 0.0]))
    s.references(peer.chunk(1005, [0.0] * 5, 50))
    graph.spin_until(lambda: bool(node.token_dim) and len(node.rejected) == 3, "three refusals")
    s.states(state_to_msg(TokenFrame(1013, np.zeros(7), np.zeros(14)), peer.clock))
    bad = state_to_msg(TokenFrame(1013, np.zeros(6), np.zeros(14)), peer.clock)
    bad.proprio[3] = float("nan")
    s.states(bad)
    graph.spin_until(lambda: node.rejected["vla/rl_state"] == 2, "the refusal of two states")
    s.play(graph, node, 1, 1000)
    assert [msg.tick for msg in s.heard] == list(range(1020, 1020 + STEPS, 2))
    assert node.failure is None


# --- a disk that refuses


def recorded(tick: int) -> Recorded:
    chunk = np.zeros((10, 4), np.float32)
    return Recorded(
        0, 1, tick, np.full(64, tick, np.float32), np.zeros(28, np.float32), chunk, chunk, np.zeros(10, np.float32), 10,
        np.zeros(64, np.float32), np.zeros(28, np.float32), chunk, False, False, np.ones(10, np.uint8), 5, 0,
    )  # fmt: skip


class Flood:
    """In the place of the recorder: so many transitions a call, numbered by their ticks."""

    def __init__(self, node: ReplayNode, per_call: int) -> None:
        self.made, self.per_call, self.skipped = 0, per_call, {}
        self.end, self.hold_back = node.recorder.end, node.recorder.hold_back
        node.recorder = self

    def ready(self) -> list[Recorded]:
        self.made += self.per_call
        return [recorded(tick) for tick in range(self.made - self.per_call, self.made)]


def resident() -> int:
    """Memory of this process [bytes]."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("sync_ms", [-1, 0, 200])
def test_flood_of_ten_times_the_practice_is_kept_up_with(graph, start, peer, tmp_path, sync_ms):
    """A robot makes 25 transitions a second; 260 a second come."""
    node = start(ReplayNode, session=str(tmp_path), sync_ms=sync_ms)
    heard = peer.hear(Transition, "replay")
    graph.spin_until(lambda: node.replay.get_subscription_count() > 0, "the connection")
    before, began_s = resident(), time.monotonic()
    flood = Flood(node, round(260 / SEND_HZ))
    graph.spin_until(lambda: flood.made >= 1000, "a thousand transitions")
    flood.per_call = 0
    assert time.monotonic() - began_s < 10.0
    graph.spin_until(lambda: len(heard) == flood.made, "all of them")
    assert [msg.tick for msg in heard] == [msg.sequence for msg in heard] == list(range(flood.made))
    stored = [deserialize_message(entry.data, Transition) for entry in read_journal(tmp_path / "journal")]
    assert stored == heard
    assert not node.waiting and resident() - before < 100e6


def test_memory_is_bounded_while_the_disk_refuses(graph, start, peer, tmp_path, monkeypatch):
    node = start(ReplayNode, session=str(tmp_path))
    heard = peer.hear(Transition, "replay")
    graph.spin_until(lambda: node.replay.get_subscription_count() > 0, "the connection")
    append = node.journal.append
    tries = []

    def refuse(data: bytes, stamp_ns: int) -> None:
        tries.append(time.monotonic())
        raise JournalError("journal: No space left on device; make room on that disk")

    node.journal.append = refuse
    flood = Flood(node, 200)
    graph.spin_until(lambda: flood.made >= 10 * WAITING, "ten times as many as can wait")
    flood.per_call = 0
    assert not heard and len(node.waiting) == WAITING and node.given_up == flood.made - WAITING
    assert "No space left on device; make room on that disk; nothing new is recorded" in node.problem
    assert len(tries) < 10  # a disk in trouble is left alone
    node.journal.append = append
    graph.spin_until(lambda: len(heard) == WAITING, "those that waited")
    assert [msg.sequence for msg in heard] == list(range(WAITING))  # no gap
    assert [msg.tick for msg in heard] == list(range(flood.made - WAITING, flood.made))  # the newest
    assert node.problem == ""


def test_full_disk_stops_the_recording_and_space_lets_it_go_on(graph, streams, peer, python, tmp_path):
    """The node as a process whose files may not grow, which is what a full disk looks like to it."""
    code = "import sys; from rlt_ros.ros.run import main; sys.exit(main('replay_node'))"
    parameters = ["-p", f"session:={tmp_path}", "-p", "episode_timeout_s:=60.0", "-p", "sync_ms:=0"]
    environment = os.environ | {"ROS_LOG_DIR": str(tmp_path / "log")}
    process = subprocess.Popen(
        [python, "-c", code, "--ros-args", *parameters], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        s = streams()
        diagnostics = peer.hear(DiagnosticArray, "/diagnostics")

        def said() -> dict:
            return {v.key: v.value for v in diagnostics[-1].status[0].values} if diagnostics else {}

        def waiting() -> int:
            return int(said().get("waiting_for_disk", 0))

        def play(episode: int, first: int) -> None:
            heard, critical, end = len(s.heard), first + 20, first + 20 + STEPS
            start = {"start_tick": first, "critical_tick": critical, "episode": episode}
            s.episodes(peer.episode(Phase.CRITICAL, **start))
            s.stream(graph, first, end)
            graph.spin_until(lambda: len(s.heard) > heard or waiting(), "the first transitions")
            s.episodes(peer.episode(Phase.ENDED, end_tick=end, outcome=Outcome.SUCCESS, **start))

        graph.spin_until(lambda: bool(diagnostics) and diagnostics[-1].status[0].message == "active", "the node")
        # It may be heard before it hears: what is said until then is lost.
        graph.spin_until(lambda: said().get("nobody_sends") == "", "the node to hear what is said here")
        play(1, 1000)
        count = STEPS // 2
        graph.spin_until(lambda: len(s.heard) == count and bool(read_episodes(tmp_path)), "the first episode")

        unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
        play(2, 2000)
        graph.spin_until(lambda: waiting() == count, "the second episode to wait")
        problem = diagnostics[-1].status[0].message
        assert "File too large; make room" in problem and "It goes on by itself" in problem
        assert len(s.heard) == count and len(list(read_journal(tmp_path / "journal"))) == count
        s.request(UInt64(data=0))
        graph.spin_until(lambda: len(s.heard) == 2 * count, "what is safe to be given out again")
        assert process.poll() is None

        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        graph.spin_until(lambda: len(s.heard) == 3 * count, "the second episode")
        graph.spin_until(lambda: [e.index for e in read_episodes(tmp_path)] == [1, 2], "the list")
        assert [msg.sequence for msg in s.heard[2 * count :]] == list(range(count, 2 * count))
        stored = [deserialize_message(entry.data, Transition) for entry in read_journal(tmp_path / "journal")]
        assert stored == s.heard[count:]
        graph.spin_until(lambda: diagnostics[-1].status[0].message == "active", "the end of the alarm")
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0 and "recording again; 0 transitions were given up" in log


def labels(peer, s, outcome: Outcome, committed: bool, first: int = 1000) -> None:
    s.episodes(peer.episode(Phase.ENDED, start_tick=first, critical_tick=first + 20, end_tick=first + 20 + STEPS,
                            outcome=outcome, committed=committed))


def test_a_label_that_was_taken_back_is_never_learned_from(graph, start, streams, peer, tmp_path):
    node, s = start(ReplayNode, session=str(tmp_path), **PATIENT), streams()
    s.play(graph, node, 1, 1000, Outcome.NONE)
    labels(peer, s, Outcome.SUCCESS, committed=False)
    graph.spin_until(lambda: node.labelled is not None, "the label")
    s.stream(graph, 1000 + 21 + STEPS, 1000 + 120 + STEPS)  # the robot stands, and time goes by
    graph.spin_until(lambda: node.recorder._newest >= 1000 + 120 + STEPS, "the time")
    assert all(not any(msg.rewards) and not msg.terminated for msg in s.heard)
    labels(peer, s, Outcome.NONE, committed=False)  # taken back
    graph.spin_until(lambda: node.labelled is None, "the undo")
    labels(peer, s, Outcome.FAILURE, committed=False)
    labels(peer, s, Outcome.FAILURE, committed=True)
    graph.spin_until(lambda: len(s.heard) == STEPS // 2, "the episode")
    assert s.heard[-1].terminated and not any(any(msg.rewards) for msg in s.heard)
    assert [e.outcome for e in read_episodes(tmp_path)] == ["failure"]


def test_a_label_is_stored_when_the_next_episode_begins_or_the_node_ends(graph, start, stop, streams, peer, tmp_path):
    node, s = start(ReplayNode, session=str(tmp_path), **PATIENT), streams()
    s.play(graph, node, 1, 1000, Outcome.NONE)
    labels(peer, s, Outcome.SUCCESS, committed=False)
    graph.spin_until(lambda: node.labelled is not None, "the label")
    s.play(graph, node, 2, 2000, Outcome.NONE)
    assert [e.outcome for e in read_episodes(tmp_path)] == ["success"]
    s.episodes(peer.episode(Phase.ENDED, start_tick=2000, critical_tick=2020, end_tick=2020 + STEPS, episode=2,
                            outcome=Outcome.FAILURE, committed=False))
    graph.spin_until(lambda: node.labelled is not None, "the second label")
    stop(node)
    assert [e.outcome for e in read_episodes(tmp_path)] == ["success", "failure"]
