"""The learner over its topics."""

import pytest
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from std_msgs.msg import UInt64, UInt64MultiArray

from rlt_ros.core.chunks import ControlClock
from rlt_ros.core.episode import Phase
from rlt_ros.core.weights import unpack
from rlt_ros.data.changes import read_changes
from rlt_ros.data.journal import Journal
from rlt_ros.msg import EpisodeState, LearnerStatus, PolicyWeights
from rlt_ros.msg import Transition as TransitionMsg
from rlt_ros.nodes.learner_node import LearnerNode
from rlt_ros.nodes.replay_node import ReplayNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import transition_to_msg
from rlt_ros.ros.definitions import ros2msg

TRANSITION_TYPE = "rlt_ros/msg/Transition"


class Replay:
    """In the place of the replay node."""

    def __init__(self, graph, peer, transition) -> None:
        self.graph, self.peer, self.transition = graph, peer, transition
        self.weights = peer.hear(PolicyWeights, "learner/weights", qos.STATE)
        self.status = peer.hear(LearnerStatus, "learner/status", qos.EVENT)
        self.requests = peer.hear(UInt64, "replay/request", qos.EVENT)
        self.say = peer.say(TransitionMsg, "replay", qos.REPLAY)
        self.journal = peer.say(UInt64MultiArray, "replay/journal", qos.STATE)

    def send(self, *sequences: int, **kwargs) -> None:
        for sequence in sequences:
            self.say(transition_to_msg(self.transition(sequence, **kwargs), "test", self.peer.clock))

    def has(self, *holes: int, run: int = 1, begins: int = 0, given: int = 0) -> None:
        self.journal(UInt64MultiArray(data=[run, begins, given, *holes]))


@pytest.fixture
def replay(graph, peer, transition):
    return lambda: Replay(graph, peer, transition)


def test_learner_trains_at_its_ratio_and_publishes_when_warm(graph, start, replay, quick):
    node = start(LearnerNode, **quick)
    r = replay()
    r.send(*range(11))
    graph.spin_until(lambda: node.learner is not None and node.learner.updates == 11, "eleven updates")
    assert not r.weights
    r.send(*range(11, 30))
    graph.spin_until(lambda: bool(r.weights) and node.learner.updates == 30, "weights")
    graph.spin_until(lambda: r.weights[-1].updates == 30, "the last weights")
    msg = r.weights[-1]
    actor = unpack(bytes(msg.data), msg.sha256, msg.version, 0, None)
    assert actor.dims.token == 6
    graph.spin_until(lambda: bool(r.status) and r.status[-1].updates == 30, "the status")
    assert r.status[-1].warm and r.status[-1].replay_size == 30


def test_duplicates_are_ignored_and_gaps_asked_for(graph, start, replay, quick):
    node = start(LearnerNode, **quick)
    r = replay()
    r.send(0, 1, 2, 2, 1)
    graph.spin_until(lambda: node.learner is not None and node.learner.next_sequence == 3, "three transitions")
    asked = len(r.requests)
    r.send(6)

    def requested() -> bool:
        r.send(6)
        return any(msg.data == 3 for msg in r.requests[asked:])

    graph.spin_until(requested, "the request")
    r.send(3, 4, 5, 6)
    graph.spin_until(lambda: node.learner.next_sequence == 7, "all of them")
    assert node.learner.transitions == 7


def test_new_learner_asks_for_everything(graph, start, replay, quick):
    start(LearnerNode, **quick)
    r = replay()
    graph.spin_until(lambda: bool(r.requests), "the request")
    assert r.requests[0].data == 0


def test_resumed_learner_publishes_at_once_under_newer_versions_and_trains_nothing_twice(
    graph, start, stop, replay, tmp_path, quick
):
    node = start(LearnerNode, session=str(tmp_path), **quick)
    r = replay()
    r.send(*range(20))
    graph.spin_until(lambda: bool(r.weights) and r.weights[-1].updates == 20, "weights")
    version = r.weights[-1].version
    graph.spin_until(lambda: node.curves is not None, "the curves")
    stop(node)
    assert any((tmp_path / "metrics").glob("events.*"))

    r.weights.clear()
    node = start(LearnerNode, session=str(tmp_path), **quick)
    assert node.learner.updates == 20
    graph.spin_until(lambda: bool(r.weights), "the resumed weights")
    assert r.weights[-1].version > version
    graph.spin_until(
        lambda: node.count_publishers("replay") > 0 and r.peer.node.count_subscribers("replay") > 0, "the connection"
    )

    def again() -> bool:
        r.send(*range(20))
        return node.learner.next_sequence == 20

    graph.spin_until(again, "the journal again")
    assert (node.learner.updates, node.learner.due()) == (20, 0)


@pytest.mark.parametrize("content", [b"", b"garbage", b"rlt-learner-1\n" + bytes(64)])
def test_unreadable_checkpoint_fails_at_configure_with_its_path(make, tmp_path, content, quick):
    path = tmp_path / "checkpoints" / "learner.ckpt"
    path.parent.mkdir()
    path.write_bytes(content)
    error = make(LearnerNode, session=str(tmp_path), **quick).configure_error
    assert f"checkpoint {path}" in error
    assert path.read_bytes() == content  # nobody overwrote it


def test_unknown_hyper_parameter_fails_at_configure(make):
    assert "unknown key 'betta'" in make(LearnerNode, td3__betta=1.0).configure_error


def test_transition_of_another_size_is_dropped(graph, start, replay, quick):
    node = start(LearnerNode, **quick)
    r = replay()
    r.send(0)
    graph.spin_until(lambda: node.learner is not None, "the first")
    r.send(1, token_dim=7)
    graph.spin_until(lambda: node.rejected["replay"] == 1, "the drop")
    assert len(node.learner.buffer) == 1


def test_the_anchor_weight_changes_while_it_learns_and_the_session_says_when(
    graph, start, stop, replay, tmp_path, quick
):
    node = start(LearnerNode, session=str(tmp_path), **quick)
    r = replay()
    r.send(*range(20))
    graph.spin_until(lambda: node.learner is not None and node.learner.updates == 20, "updates")
    assert node.set_parameters([Parameter("beta", value=1.5)])[0].successful
    refused = node.set_parameters([Parameter("beta", value=50.0)])[0]
    assert not refused.successful and "'beta' is 50.0" in refused.reason
    assert node.learner.td3.beta == 1.5
    assert [(c["node"], c["name"], c["value"]) for c in read_changes(tmp_path)] == [("learner_node", "beta", 1.5)]
    graph.spin_until(lambda: bool(r.status) and r.status[-1].beta == 1.5, "the status")
    for parameters, beta in (({}, 1.5), ({"beta": 0.7}, 0.7), ({"td3__beta": 0.05}, 0.05)):  # as the session goes on
        stop(node)
        node = start(LearnerNode, session=str(tmp_path), **quick, **parameters)
        assert node.learner.td3.beta == pytest.approx(beta)


def test_transitions_of_an_earlier_session_are_prior_data(graph, start, replay, tmp_path, quick, transition):
    earlier = tmp_path / "earlier"
    journal = Journal(earlier / "journal", TRANSITION_TYPE, ros2msg(TRANSITION_TYPE))
    for i in range(15):
        journal.append(serialize_message(transition_to_msg(transition(100 + i), "earlier", ControlClock(50.0))), i)
    journal.close()
    node = start(LearnerNode, prior=[str(earlier)], td3__prior_fraction=0.5, **quick)
    r = replay()
    r.send(*range(20))
    graph.spin_until(lambda: node.learner is not None and node.learner.updates == 20, "updates")
    assert node.learner.buffer.kept == 15 and node.learner.transitions == 20
    graph.spin_until(lambda: bool(r.status) and r.status[-1].prior_share >= 0.5, "the status")


def test_prior_session_that_does_not_fit_ends_the_node_with_its_name(
    graph, make, start, stop, replay, tmp_path, quick, transition
):
    earlier = tmp_path / "earlier"
    journal = Journal(earlier / "journal", TRANSITION_TYPE, ros2msg(TRANSITION_TYPE))
    other = transition_to_msg(transition(0, token_dim=9), "earlier", ControlClock(50.0))
    journal.append(serialize_message(other), 0)
    journal.close()
    words = f"prior session {earlier}: transition 0: token has shape (9,), expected (6,)"
    node = start(LearnerNode, prior=[str(earlier)], **quick)
    r = replay()
    graph.spin_until(lambda: (r.send(0), node.failure is not None)[1], "the end")
    assert words in str(node.failure) and node.learner is None
    stop(node)

    node = start(LearnerNode, session=str(tmp_path), **quick)
    graph.spin_until(lambda: (r.send(0), node.learner is not None)[1], "a learner")
    stop(node)
    assert words in make(LearnerNode, session=str(tmp_path), prior=[str(earlier)], **quick).configure_error


def test_prior_session_that_is_none_fails_at_configure(make, tmp_path, quick):
    assert f"session '{tmp_path}' has no journal" in make(LearnerNode, prior=[str(tmp_path)], **quick).configure_error


@pytest.mark.parametrize("means, words", [
    ({"q_max": 1.5}, "Q is out of range"),
    ({"q_mean": -0.5}, "Q is out of range"),
    ({"q_mean": float("nan"), "q_max": float("nan")}, "Q is out of range"),
    ({"anchor": 0.9}, "the actor is far from the reference"),
    ({"q_max": 1.1, "q_mean": 0.3, "anchor": 0.1}, ""),
])
def test_alarms(start, means, words, quick):
    node = start(LearnerNode, **quick)
    node.means = means
    assert words in node.alarm() and bool(words) == bool(node.alarm())


def test_silence_of_the_replay_in_a_critical_phase_is_an_alarm(graph, start, peer, quick):
    node = start(LearnerNode, stale_s=1.0, **quick)
    say = peer.say(EpisodeState, "episode/state", qos.STATE)
    graph.spin_until(lambda: (say(peer.episode(Phase.CRITICAL)), "replay_node" in node.alarm())[1], "the alarm")
    graph.spin_until(lambda: (say(peer.episode(Phase.ENDED)), not node.alarm())[1], "its end")


def test_what_the_replay_has_lost_is_given_up_at_once_and_told_once(graph, start, replay, quick, capfd):
    node = start(LearnerNode, **quick)
    r = replay()
    r.has(0, 100, 150, 160)  # before there is a learner
    r.send(*range(100, 150), *range(160, 170))
    graph.spin_until(lambda: node.learner is not None and node.learner.next_sequence == 170, "going on")
    r.has(0, 100, 150, 160, 170, 1170)
    graph.spin_until(lambda: node.learner.next_sequence == 1170, "going on")
    told = capfd.readouterr().err
    assert [told.count(f"from number {first} to {end - 1};") for first, end in ((0, 100), (150, 160), (170, 1170))] == [
        1, 1, 1]  # fmt: skip
    assert len(node.learner.buffer) == node.learner.transitions == 60


def test_what_was_given_out_and_never_came_is_asked_for(graph, start, replay, quick):
    node = start(LearnerNode, **quick)
    r = replay()
    r.send(0, 1)
    graph.spin_until(lambda: node.learner is not None and node.learner.next_sequence == 2, "two transitions")
    r.has(given=4)
    graph.spin_until(lambda: any(msg.data == 2 for msg in r.requests), "the request")


def test_a_learner_without_a_journal_s_first_transitions_learns_from_all_others(
    graph, start, transition, peer, tmp_path, quick
):
    """The first file is gone, and so is one in the middle; practice goes on meanwhile."""
    folder = tmp_path / "journal"
    for first in (0, 100, 200, 300):  # a file each
        journal = Journal(folder, TRANSITION_TYPE, ros2msg(TRANSITION_TYPE))
        for i in range(first, first + 100):
            journal.append(serialize_message(transition_to_msg(transition(i), "test", peer.clock)), i)
        journal.close()
    for name in ("0001.mcap", "0003.mcap"):
        (folder / name).unlink()
    replay = start(ReplayNode, session=str(tmp_path))
    node = start(LearnerNode, **quick)
    graph.spin_until(lambda: node.learner is not None and node.learner.next_sequence == 400, "the journal")
    assert len(node.learner.buffer) == 200
    for i in range(400, 450):
        replay.journal.append(serialize_message(transition_to_msg(transition(i), "test", peer.clock)), i)
    graph.spin_until(lambda: node.learner.next_sequence == 450, "the new ones")
    assert node.learner.transitions == 250


def test_a_replay_node_that_numbers_anew_is_followed_and_told_of(graph, start, stop, transition, peer, quick):
    """Without a session: it is started again alone."""
    data = lambda i: serialize_message(transition_to_msg(transition(i), "", peer.clock))  # noqa: E731
    replay, node = start(ReplayNode), start(LearnerNode, **quick)
    for i in range(100):
        replay.journal.append(data(i), i)
    graph.spin_until(lambda: node.learner is not None and node.learner.next_sequence == 100, "a hundred")
    graph.spin_until(lambda: node.learner.journal_run == replay.run, "the journal's news")
    stop(replay)
    replay = start(ReplayNode)
    for i in range(60):
        replay.journal.append(data(i), i)
    graph.spin_until(lambda: node.learner.transitions == 160, "the new ones")
    assert "numbers from 0: 100 transitions that were learned from are no longer stored" in node.alarm()


def test_a_checkpoint_that_cannot_be_written_is_an_alarm_and_learning_goes_on(graph, start, replay, tmp_path, quick):
    node = start(LearnerNode, session=str(tmp_path), checkpoint_s=1.0, **quick)
    r = replay()
    (tmp_path / "checkpoints").write_text("in the way")
    r.send(*range(11))
    graph.spin_until(lambda: "checkpoint not written" in node.alarm(), "the alarm")
    r.send(*range(11, 30))
    graph.spin_until(lambda: node.learner.updates == 30, "more updates")
    (tmp_path / "checkpoints").unlink()
    graph.spin_until(lambda: not node.alarm() and (tmp_path / "checkpoints" / "learner.ckpt").exists(), "the save")


def test_a_gpu_that_is_not_there_fails_at_configure(make, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU here; set it to 'cpu'" in make(LearnerNode, device="cuda").configure_error
