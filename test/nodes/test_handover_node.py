"""The hand-over node beside a peer that plays the VLA and the real episode node: presses teach it, then it acts."""

from dataclasses import replace

import numpy as np
import pytest
from std_srvs.srv import Trigger

from rlt_ros.core.episode import Phase
from rlt_ros.core.handover import PressRecorder, train
from rlt_ros.core.observations import TokenFrame
from rlt_ros.data.changes import read_changes
from rlt_ros.data.handover import FOLDER, load_classifier, read_approaches, save_approach, save_classifier
from rlt_ros.msg import HandOverBelief, RLState
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.handover_node import HandoverNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import state_to_msg

TASK = {"task": "ethernet", "rate_hz": 50.0, "max_age_ticks": 500}  # however busy the machine is
TOKEN = 6
# m, of the frames of an approach; it is due between 0.10 and 0.08, and pressed 0.2 s later
HEIGHTS = (0.12, 0.10, 0.08, 0.06, 0.04, 0.03)
FAR, NEAR = HEIGHTS[0], HEIGHTS[-1]


def frame(tick: int, height: float, token: int = TOKEN) -> TokenFrame:
    """The tool's height stands where the Ethernet task has it."""
    random = np.random.default_rng(tick)
    proprio = random.normal(0.0, 0.001, 14)
    proprio[2] = height
    return TokenFrame(tick, random.normal(size=token), proprio)


def practised(session, presses: int = 25, token: int = TOKEN) -> None:
    """A session with recorded presses, and with what they teach when a node has resumed it."""
    recorder = PressRecorder(10, 0.02)
    for number in range(1, presses + 1):
        start = 1000 * number
        recorder.begin(number, start)
        for i, height in enumerate(HEIGHTS):
            recorder.add(frame(start + 10 * i, height, token), start + 10 * i + 5)
        save_approach(session, recorder.finish(start + 30))


class Vla:
    """Plays the VLA: each frame is of a new tick, far enough from the one before."""

    def __init__(self, peer) -> None:  # noqa: ANN001
        self.peer, self.tick = peer, 0
        self.publish = peer.say(RLState, "vla/rl_state", qos.EVENT)

    def see(self, node: HandoverNode, height: float, token: int = TOKEN) -> None:
        """The node has taken a frame in."""
        self.peer.graph.spin_until(lambda: self.peer.tick() >= self.tick + 10, "the next frame's tick")
        self.tick = self.peer.tick()
        self.publish(state_to_msg(frame(self.tick, height, token), self.peer.clock))
        self.peer.graph.spin_until(lambda: node.tick == self.tick or node.rejected["vla/rl_state"], "the frame")


@pytest.fixture
def beliefs(peer):
    return peer.hear(HandOverBelief, "handover/belief", qos.STATE)


def resumed(graph, node: HandoverNode) -> None:
    graph.spin_until(lambda: node.classifier is not None, "the training", 40.0)


def begin(peer, node: HandoverNode, episodes: EpisodeNode) -> None:
    assert peer.call(Trigger, "episode/start").success
    peer.graph.spin_until(lambda: node.episode.phase == Phase.APPROACH, "word of the approach")
    assert node.episode.episode == episodes.machine.episode


def test_a_press_is_stored_with_what_was_seen_around_it(start, peer, graph, tmp_path) -> None:
    episodes = start(EpisodeNode, **TASK)
    node = start(HandoverNode, session=str(tmp_path), **TASK)
    vla = Vla(peer)
    begin(peer, node, episodes)
    for height in (FAR, FAR):
        vla.see(node, height)
    vla.publish(state_to_msg(frame(vla.tick - 1000, FAR), peer.clock))  # from before the episode
    assert peer.call(Trigger, "episode/hand_over").success
    vla.see(node, NEAR)
    assert peer.call(Trigger, "episode/success").success
    assert peer.call(Trigger, "episode/reset").success
    graph.spin_until(lambda: read_approaches(tmp_path), "the stored press")
    (stored,) = read_approaches(tmp_path)
    assert (stored.episode, stored.press_tick) == (1, episodes.machine.critical_tick)
    assert len(stored.ticks) == 3 and stored.ticks[1] <= stored.press_tick <= stored.heard[2]
    assert (stored.heard >= stored.ticks).all() and stored.tokens.shape == (3, TOKEN)
    graph.spin_until(lambda: "1 presses" in node.trouble, "why there is no classifier yet")
    assert node.classifier is None


def test_an_aborted_episode_teaches_nothing_and_one_without_a_press_says_no(start, peer, graph, tmp_path) -> None:
    episodes = start(EpisodeNode, approach_timeout_s=0.5, undo_s=0.0, **TASK)
    node = start(HandoverNode, session=str(tmp_path), **TASK)
    vla = Vla(peer)
    begin(peer, node, episodes)
    vla.see(node, FAR)
    assert peer.call(Trigger, "episode/abort").success
    assert peer.call(Trigger, "episode/reset").success
    begin(peer, node, episodes)
    vla.see(node, FAR)
    graph.spin_until(lambda: read_approaches(tmp_path), "the approach without a press")
    (stored,) = read_approaches(tmp_path)
    assert (stored.episode, stored.pressed) == (2, False)


def test_a_resumed_session_is_learned_from_and_its_classifier_saved(start, peer, graph, tmp_path, beliefs) -> None:
    practised(tmp_path)
    torn = tmp_path / FOLDER / "approaches" / "000003-3000.safetensors"
    torn.write_bytes(torn.read_bytes()[:50])
    node = start(HandoverNode, session=str(tmp_path), **TASK)
    resumed(graph, node)
    assert node.report.presses == 24 and node.report.recall >= 0.95
    graph.spin_until(lambda: beliefs and beliefs[-1].trained, "word of it")
    assert (beliefs[-1].presses, beliefs[-1].tick, beliefs[-1].mode) == (24, -1, "human")
    graph.spin_until(lambda: (tmp_path / FOLDER / "report.json").is_file(), "the report")
    assert load_classifier(tmp_path)[0].pack() == node.classifier.pack()
    assert float(node.on_diagnostics_()["recall"]) >= 0.95


def test_the_modes_tell_suggest_and_hand_over(start, peer, graph, tmp_path, beliefs) -> None:
    practised(tmp_path)
    episodes = start(EpisodeNode, **TASK)
    node = start(HandoverNode, session=str(tmp_path), **TASK)
    resumed(graph, node)
    vla = Vla(peer)
    begin(peer, node, episodes)
    # human, then suggest: it says what it believes and does nothing
    for mode in ("human", "suggest"):
        set_mode(node, mode)
        for height in (NEAR, NEAR):
            vla.see(node, height)
        graph.spin_until(lambda: beliefs[-1].suggested and beliefs[-1].mode == mode, "the suggestion")  # noqa: B023
        assert beliefs[-1].probability > 0.9 and episodes.machine.phase is Phase.APPROACH
    # automatic: after two frames of three, and not before
    assert peer.call(Trigger, "episode/abort").success and peer.call(Trigger, "episode/reset").success
    begin(peer, node, episodes)
    set_mode(node, "automatic")
    for height in (FAR, FAR, NEAR):
        vla.see(node, height)
        assert episodes.machine.phase is Phase.APPROACH and not node.suggested
    vla.see(node, NEAR)
    graph.spin_until(lambda: episodes.machine.phase is Phase.CRITICAL, "the hand-over")
    graph.spin_until(lambda: node.hand_overs == 1, "its answer")
    stored = len(read_approaches(tmp_path))
    assert peer.call(Trigger, "episode/success").success and peer.call(Trigger, "episode/reset").success
    graph.spin_until(lambda: node.episode.phase == Phase.IDLE, "the reset")
    assert len(read_approaches(tmp_path)) == stored and not node.ended  # its own hand-over is no press of a person
    assert [(c["node"], c["name"], c["value"]) for c in read_changes(tmp_path)] == [
        ("handover_node", "mode", "suggest"), ("handover_node", "mode", "automatic")]  # fmt: skip


def set_mode(node: HandoverNode, mode: str) -> None:
    from rclpy.parameter import Parameter

    (result,) = node.set_parameters([Parameter("mode", value=mode)])
    assert result.successful, result.reason


def test_other_modes_and_settings_that_are_not_live_are_refused(start, tmp_path) -> None:
    from rclpy.parameter import Parameter

    node = start(HandoverNode, session=str(tmp_path), **TASK)
    for name, value, says in (("mode", "reckless", "one of"), ("min_recall", 0.1, "cannot change while")):
        (result,) = node.set_parameters([Parameter(name, value=value)])
        assert not result.successful and says in result.reason
    assert node.params.mode == "human"


def test_automatic_waits_for_enough_presses_and_says_so(start, peer, graph, tmp_path, beliefs) -> None:
    practised(tmp_path, presses=12)
    episodes = start(EpisodeNode, **TASK)
    node = start(HandoverNode, session=str(tmp_path), mode="automatic", **TASK)
    resumed(graph, node)
    vla = Vla(peer)
    begin(peer, node, episodes)
    for height in (NEAR, NEAR, NEAR):
        vla.see(node, height)
    graph.spin_until(lambda: beliefs[-1].suggested, "the suggestion")
    assert "12 presses" in beliefs[-1].waits and "needs 20" in beliefs[-1].waits
    assert episodes.machine.phase is Phase.APPROACH and node.hand_overs == 0
    node.on_diagnostics_()
    assert node.problem.startswith("does not hand over by itself: 12 presses")


def test_without_an_episode_node_it_says_so(start, peer, graph, tmp_path) -> None:
    practised(tmp_path)
    node = start(HandoverNode, session=str(tmp_path), mode="automatic", **TASK)
    resumed(graph, node)
    assert "episode/hand_over" in node.waits()


def test_without_a_vla_node_it_says_so_and_is_not_ready(start, peer, graph, tmp_path) -> None:
    """Whoever waits for the nodes of a deployment waits for this one until it can see."""
    practised(tmp_path)
    start(EpisodeNode, **TASK)
    node = start(HandoverNode, session=str(tmp_path), mode="automatic", **TASK)
    resumed(graph, node)
    graph.spin_until(node.request.service_is_ready, "the service of the episode node")
    node.on_diagnostics_()
    assert node.problem == "does not hand over by itself: nobody sends vla/rl_state; is vla_node alive?"
    peer.say(RLState, "vla/rl_state", qos.EVENT)
    graph.spin_until(lambda: not node.waits(), "the VLA node")


def test_malformed_frames_move_nothing(start, peer, graph, tmp_path) -> None:
    practised(tmp_path)
    episodes = start(EpisodeNode, **TASK)
    node = start(HandoverNode, session=str(tmp_path), mode="automatic", **TASK)
    resumed(graph, node)
    vla = Vla(peer)
    begin(peer, node, episodes)
    vla.see(node, FAR)
    good = state_to_msg(frame(peer.tick(), NEAR), peer.clock)
    for spoil in ("not finite", "wrong token", "wrong proprioception"):
        msg = state_to_msg(frame(peer.tick(), NEAR), peer.clock)
        if spoil == "not finite":
            msg.token[2] = float("nan")
        elif spoil == "wrong token":
            msg.token = good.token[:-1]
        else:
            msg.proprio = good.proprio[:-1]
        before = node.rejected["vla/rl_state"]
        vla.publish(msg)
        graph.spin_until(lambda: node.rejected["vla/rl_state"] == before + 1, spoil)  # noqa: B023
    before = node.rejected["vla/rl_state"]
    vla.publish(state_to_msg(frame(vla.tick + 1_000_000, NEAR), peer.clock))  # after it no other would be new
    graph.spin_until(lambda: node.rejected["vla/rl_state"] == before + 1, "a frame of the future")
    assert node.failure is None and episodes.machine.phase is Phase.APPROACH and node.tick == vla.tick


def test_a_classifier_of_another_vla_is_not_asked(start, peer, graph, tmp_path) -> None:
    practised(tmp_path)
    episodes = start(EpisodeNode, **TASK)
    learner = start(HandoverNode, session=str(tmp_path), **TASK)
    resumed(graph, learner)
    graph.spin_until(lambda: (tmp_path / FOLDER / "report.json").is_file(), "the report")
    learner.close()
    node = start(HandoverNode, session=str(tmp_path), mode="automatic", learn=False, **TASK)
    vla = Vla(peer)
    begin(peer, node, episodes)
    vla.see(node, NEAR, token=TOKEN + 1)
    assert node.classifier is None and "token is (7,), it was trained with (6,)" in node.waits()
    assert episodes.machine.phase is Phase.APPROACH


@pytest.mark.parametrize(
    "make_session, says",
    [
        (lambda session: None, "has no hand-over classifier"),
        (lambda session: trained(session, 10), "10 presses, automatic hand-over needs 20"),
        (lambda session: trained(session, 25, spoil=True), "not a hand-over classifier"),
    ],
)
def test_a_session_that_cannot_be_deployed_is_refused_at_configure(make, tmp_path, make_session, says) -> None:
    make_session(tmp_path)
    node = make(HandoverNode, session=str(tmp_path), mode="automatic", learn=False, **TASK)
    assert says in node.configure_error


def test_nor_one_of_another_task(make, tmp_path) -> None:
    trained(tmp_path, 25, proprio=3)
    node = make(HandoverNode, session=str(tmp_path), learn=False, **TASK)
    assert "proprioception of 3, here they are ? and 14" in node.configure_error


def trained(session, presses: int, spoil: bool = False, proprio: int = 14) -> None:
    practised(session, presses)
    known = [replace(a, proprios=a.proprios[:, :proprio]) for a in read_approaches(session)]
    save_classifier(session, *train(known))
    if spoil:
        (session / FOLDER / "classifier.safetensors").write_bytes(b"nothing")
