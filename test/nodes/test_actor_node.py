"""Who drives at each tick."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rclpy.node import Node
from rclpy.parameter import Parameter

from rlt_ros.core.chunks import ControlClock, Source
from rlt_ros.core.episode import Phase
from rlt_ros.core.learner import Learner
from rlt_ros.core.networks import Actor, Dims
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.td3 import TD3Config
from rlt_ros.core.weights import pack, sign
from rlt_ros.data.changes import read_changes
from rlt_ros.msg import ActionChunk, EpisodeState, PolicyWeights, Proprio, RLState
from rlt_ros.nodes.actor_node import ActorNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import packed, proprio_to_msg, state_to_msg

DIMS = Dims(token=6, rl_proprio=28, action=4, chunk=10)
PROPRIO = np.array([0.45, 0.0, 0.08, 0.0] + 10 * [0.0], np.float32)  # inside the workspace, no force
DOWN = [0.0, 0.0, -0.4, 0.0]
ACTED = 0.25  # what the test's policy puts out everywhere
HUMAN = [0.7, 0.0, 0.0, 0.0]


def weights(version: int) -> PolicyWeights:
    """A policy that always acts ACTED."""
    actor = Actor(DIMS, hidden=(8,))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
        actor.mlp[-1].bias.fill_(float(np.arctanh(ACTED)))
    data, sha256 = pack(actor, version)
    return PolicyWeights(version=version, sha256=sha256, data=packed(np.frombuffer(data, np.uint8), "B"))


class Driven:
    """An actor node and everything that speaks to it; `drive()` sends what a tick brings."""

    def __init__(self, node, peer, learner: bool = True) -> None:
        self.node, self.peer = node, peer
        self.candidates = peer.hear(ActionChunk, "command/candidate")
        self.planned = peer.hear(ActionChunk, "actor/chunk")
        self.episode = peer.say(EpisodeState, "episode/state", qos.STATE)
        self.proprio = peer.say(Proprio, "proprio", qos.SENSOR)
        self.reference = peer.say(ActionChunk, "vla/reference", qos.EVENT)
        self.state = peer.say(RLState, "vla/rl_state", qos.EVENT)
        self.human = peer.say(ActionChunk, "human/command", qos.COMMAND)
        self.weights = peer.say(PolicyWeights, "learner/weights", qos.STATE) if learner else None
        self.began, self.sent = peer.tick(), 0

    def drive(self, phase: Phase, with_proprio: bool = True) -> None:
        tick = self.peer.tick()
        if tick == self.sent:
            return
        self.sent = tick
        self.episode(self.peer.episode(phase, start_tick=self.began))
        if with_proprio:
            self.proprio(self.peer.proprio(tick))
        self.reference(self.peer.chunk(tick, DOWN, 50))
        self.state(state_to_msg(TokenFrame(tick, np.ones(6), np.zeros(14)), self.peer.clock))

    def steered(self) -> bool:
        self.human(self.peer.chunk(self.peer.tick(), HUMAN, source=Source.HUMAN))
        return self.source() == Source.HUMAN

    def source(self) -> int:
        return self.candidates[-1].source if self.candidates else -1

    def until(self, graph, phase: Phase, condition, what: str, **kwargs) -> None:
        graph.spin_until(lambda: (self.drive(phase, **kwargs), condition())[1], what)


# A busy machine may not send anything for a while; that it is required has its own tests.
PATIENT = {"exploration_std": 0.0, "proprio_timeout_s": 2.0, "episode_timeout_s": 2.0}


@pytest.fixture
def driven(start, peer):
    return Driven(start(ActorNode, join_ticks=0, **PATIENT), peer)


def test_idle_holds_and_the_approach_executes_the_reference(graph, driven):
    driven.until(graph, Phase.IDLE, lambda: len(driven.candidates) > 5, "candidates")
    assert driven.source() == Source.HOLD
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "the reference")
    np.testing.assert_allclose(driven.candidates[-1].actions[:4], DOWN, atol=1e-6)


def test_without_proprioception_the_robot_is_held(graph, driven):
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "the reference")
    silent = {"with_proprio": False}
    driven.until(graph, Phase.APPROACH, lambda: driven.node.hold_reason == "no proprioception", "the reason", **silent)
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.HOLD, "the hold", **silent)
    told = driven.node.on_diagnostics_()
    assert told["held no proprioception"] >= 1
    assert not any(name.startswith("held phase") for name in told)  # out of an episode there is nothing to move


def test_late_reference_is_sliced_not_replayed(graph, driven, peer):
    """A reference whose actions count up from its own tick: what is executed belongs to the present tick."""
    began = driven.began

    def send(phase: Phase) -> bool:
        tick = peer.tick()
        if tick != driven.sent:
            driven.sent = tick
            driven.episode(peer.episode(phase, start_tick=began))
            driven.proprio(peer.proprio(tick))
            if tick % 10 == 0:
                late = peer.chunk(tick - 8, DOWN, 50)
                late.actions = packed(np.repeat(np.arange(50, dtype=np.float32) / 100, 4))
                driven.reference(late)
        return bool(driven.planned)

    driven.began = began = peer.tick() - 10
    graph.spin_until(lambda: send(Phase.APPROACH), "a plan")
    for plan in driven.planned:
        assert plan.actions[0] == pytest.approx((plan.tick - plan.observation_tick) / 100)
        assert plan.tick - plan.observation_tick >= 8


def test_actor_acts_in_the_critical_phase_once_there_are_weights(graph, driven):
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.VLA, "the warm-up reference")
    driven.weights(weights(3))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")
    np.testing.assert_allclose(driven.candidates[-1].actions, ACTED, atol=1e-5)
    assert driven.candidates[-1].policy_version == 3
    driven.until(
        graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "the reference outside the critical phase"
    )


def test_weights_are_swapped_at_a_chunk_boundary(graph, driven):
    driven.weights(weights(1))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")
    driven.weights(weights(2))
    driven.until(graph, Phase.CRITICAL, lambda: driven.candidates[-1].policy_version == 2, "the new weights")
    first = next(msg for msg in driven.candidates if msg.policy_version == 2)
    driven.until(graph, Phase.CRITICAL, lambda: driven.planned[-1].tick >= first.tick, "the chunk")
    assert first.tick in [plan.tick for plan in driven.planned if plan.policy_version == 2]


@pytest.mark.parametrize("spoil", ["checksum", "bytes", "old version", "another size"])
def test_bad_weights_are_counted_and_the_policy_in_use_stays(graph, driven, spoil):
    driven.weights(weights(5))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")
    bad = weights(4 if spoil == "old version" else 6)
    if spoil == "checksum":
        bad.sha256 = "0" * 64
    elif spoil == "bytes":
        bad.data[-1] ^= 1
    elif spoil == "another size":
        data, bad.sha256 = pack(Actor(Dims(token=7, rl_proprio=28, action=4, chunk=10), hidden=(8,)), 6)
        bad.data = packed(np.frombuffer(data, np.uint8), "B")
    driven.weights(bad)
    driven.until(graph, Phase.CRITICAL, lambda: driven.node.rejected["learner/weights"] == 1, "the rejection")
    count = len(driven.planned)
    driven.until(graph, Phase.CRITICAL, lambda: len(driven.planned) > count + 1, "chunks more")
    assert {plan.policy_version for plan in driven.planned[count:]} == {5}


def test_human_overrides_the_actor_and_gives_back_on_release(graph, driven, peer):
    driven.weights(weights(1))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")

    driven.until(graph, Phase.CRITICAL, driven.steered, "the human")
    in_full = lambda: driven.steered() and list(driven.candidates[-1].actions[:4]) == pytest.approx(HUMAN)  # noqa: E731
    driven.until(graph, Phase.CRITICAL, in_full, "the human's own action")
    driven.human(peer.chunk(peer.tick(), HUMAN, steps=0, source=Source.HUMAN))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor after the release")


def test_after_a_release_the_actor_begins_with_the_humans_last_action(graph, start, peer):
    driven = Driven(start(ActorNode, join_ticks=4, **PATIENT), peer)
    driven.weights(weights(1))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")

    in_full = lambda: driven.steered() and list(driven.candidates[-1].actions[:4]) == pytest.approx(HUMAN)  # noqa: E731
    driven.until(graph, Phase.CRITICAL, in_full, "the human's own action")
    driven.human(peer.chunk(peer.tick(), HUMAN, steps=0, source=Source.HUMAN))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor after the release")
    first = next(i for i in range(len(driven.candidates))[::-1] if driven.candidates[i].source == Source.HUMAN) + 1
    release = driven.candidates[first]
    # A candidate reaches three ticks; had the machine paused for longer, the robot would have stood.
    before = HUMAN[0] if release.tick - driven.candidates[first - 1].tick <= 3 else 0.0
    assert list(release.actions[::4]) == pytest.approx([before + (ACTED - before) * k / 4 for k in range(3)], abs=1e-5)
    plans = lambda: [plan for plan in driven.planned if plan.tick == release.tick]  # noqa: E731
    graph.spin_until(plans, "the chunk")
    assert list(plans()[0].actions[:4]) == list(release.actions[:4])


def test_candidate_carries_a_lookahead(graph, driven):
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "the reference")
    driven.until(graph, Phase.APPROACH, lambda: len(driven.planned) > 3, "chunks")
    moving = [msg for msg in driven.candidates if msg.source == Source.VLA]
    assert len(moving) > 10 and {msg.steps for msg in moving} == {3}


def test_messages_of_the_wrong_size_are_dropped(graph, driven, peer):
    say = driven.proprio

    def dropped() -> bool:
        say(peer.proprio(peer.tick(), np.zeros(3, np.float32)))
        return driven.node.rejected["proprio"] > 0

    graph.spin_until(dropped, "the drop")
    bad = peer.chunk(peer.tick(), [0.0, 0.0], 50)

    def refused() -> bool:
        driven.reference(bad)
        return driven.node.rejected["vla/reference"] > 0

    graph.spin_until(refused, "the drop")


def test_with_a_key_file_only_signed_weights_are_used(graph, start, peer, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    d = Driven(start(ActorNode, exploration_std=0.0, proprio_timeout_s=2.0, weights_key_file=str(key)), peer)
    d.weights(weights(1))
    d.until(graph, Phase.CRITICAL, lambda: d.node.refused_weights["unsigned"] == 1, "the refusal")
    assert d.node.version == 0 and d.node.on_diagnostics_()["weights_refused_unsigned"] == 1
    signed = weights(2)
    signed.hmac = sign(bytes(signed.data), key.read_bytes())
    d.weights(signed)
    d.until(
        graph, Phase.CRITICAL, lambda: bool(d.candidates) and d.candidates[-1].policy_version == 2, "the signed weights"
    )


def session_of(folder, version: int = 3, token: int = 6, **dims) -> str:
    """A session whose newest policy acts ACTED."""
    learner = Learner(TD3Config(hidden=(8,)), replace(DIMS, token=token, **dims), folder)
    actor = learner.td3.actor
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
        actor.mlp[-1].bias.fill_(float(np.arctanh(ACTED)))
    learner.version = version
    learner.save()
    return str(folder)


def test_without_a_learner_the_sessions_newest_policy_acts_without_noise(graph, start, peer, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    own = {"weights": "session", "session": session_of(tmp_path), "weights_key_file": str(key)}
    d = Driven(start(ActorNode, **PATIENT | own), peer, learner=False)
    d.until(graph, Phase.CRITICAL, lambda: d.source() == Source.ACTOR, "the policy")
    assert d.candidates[-1].policy_version == 3
    d.until(graph, Phase.CRITICAL, lambda: abs(d.candidates[-1].actions[0] - ACTED) < 1e-5, "what it was taught")
    assert d.node.count_subscribers("learner/weights") == 0


@pytest.mark.parametrize(
    "spoil, says",
    [("none", "no checkpoint .*learner.ckpt; practise"), ("warm-up", "from the warm-up"), ("torn", "checkpoint ")],
)
def test_a_session_without_a_policy_fails_at_configure(make, tmp_path, spoil, says):
    if spoil != "none":
        session_of(tmp_path, version=0 if spoil == "warm-up" else 3)
    if spoil == "torn":
        path = tmp_path / "checkpoints" / "learner.ckpt"
        path.write_bytes(path.read_bytes()[:-10])
    node = make(ActorNode, weights="session", session=str(tmp_path))
    assert re.search(says, node.configure_error)


def test_a_policy_of_another_token_ends_the_node_and_never_acts(graph, start, peer, tmp_path):
    """The VLA alone is not what was asked for."""
    session = session_of(tmp_path, token=7)
    d = Driven(start(ActorNode, **PATIENT | {"weights": "session", "session": session}), peer, learner=False)
    d.until(graph, Phase.CRITICAL, lambda: d.node.failure is not None, "the end")
    assert "'token': 7" in str(d.node.failure) and session in str(d.node.failure)
    assert not any(c.source == Source.ACTOR for c in d.candidates)


def test_missing_key_file_fails_at_configure(make, tmp_path):
    assert "head -c 32 /dev/urandom" in make(ActorNode, weights_key_file=str(tmp_path / "none")).configure_error


def test_exploration_changes_while_it_acts_and_the_session_says_when(start, tmp_path):
    node = start(ActorNode, session=str(tmp_path))
    assert node.set_parameters([Parameter("exploration_std", value=0.2)])[0].successful
    assert not node.set_parameters([Parameter("exploration_std", value=2.0)])[0].successful
    assert node.commander.exploration_std == 0.2
    assert [(c["name"], c["value"]) for c in read_changes(tmp_path)] == [("exploration_std", 0.2)]


SLOW = ControlClock(2.0)  # half a second a tick: no pause of a busy machine changes what comes first


class Paced:
    """An actor node of SLOW ticks that waits for proprioception until `phase`; `commands`: (tick, ROS time)."""

    def __init__(self, graph, peer, node) -> None:
        self.graph, self.peer, self.node, self.commands = graph, peer, node, []
        note = lambda msg: self.commands.append((msg.tick, time.time_ns()))  # noqa: E731
        peer.node.create_subscription(ActionChunk, "command/candidate", note, qos.REPLAY)
        self.proprio = peer.say(Proprio, "proprio", qos.SENSOR)

    def wait(self, tick: int, phase: float) -> None:
        due_ns = SLOW.stamp_ns(tick) + int(phase * SLOW.period_ns)
        self.graph.spin_until(lambda: time.time_ns() >= due_ns, f"{phase} of tick {tick}")

    def send(self, tick: int) -> None:
        self.proprio(proprio_to_msg(PROPRIO, SLOW, SLOW.stamp_ns(tick)))

    def phase_of(self, tick: int) -> float:
        """The part of the tick after which it was commanded, which happened once."""
        self.graph.spin_until(lambda: tick in dict(self.commands), f"the command of tick {tick}")
        (came_ns,) = [ns for commanded, ns in self.commands if commanded == tick]
        return (came_ns - SLOW.stamp_ns(tick)) / SLOW.period_ns

    def behind(self) -> int:
        return self.node.on_diagnostics_()["ticks_with_older_proprio"]


@pytest.fixture
def paced(graph, start, peer):
    """A Paced that has just seen a tick begin; and that tick."""

    def made(phase: float) -> tuple[Paced, int]:
        found = Paced(graph, peer, start(ActorNode, rate_hz=2.0, phase=phase, proprio_timeout_s=5.0))
        graph.spin_until(lambda: len(found.commands) > 1, "commands")
        tick = SLOW.tick(time.time_ns()) + 1
        found.wait(tick, 0.0)
        return found, tick

    return made


def test_command_waits_for_its_ticks_own_proprioception_and_follows_it_at_once(paced):
    p, tick = paced(0.9)
    behind = p.behind()
    p.wait(tick, 0.3)
    assert tick not in dict(p.commands)
    p.send(tick)
    assert 0.3 <= p.phase_of(tick) < 0.9 and p.behind() == behind
    p.send(tick)  # a second one changes nothing
    p.wait(tick + 1, 0.0)
    assert [commanded for commanded, _ in p.commands].count(tick) == 1


def test_proprioception_that_is_late_is_waited_for_until_the_phase(paced):
    p, tick = paced(0.5)
    behind = p.behind()
    assert 0.5 <= p.phase_of(tick) < 1.0
    assert p.behind() == behind + 1
    p.send(tick)  # too late
    p.wait(tick + 1, 0.0)
    assert [commanded for commanded, _ in p.commands].count(tick) == 1


def test_proprioception_that_came_before_its_tick_is_used_when_that_begins(paced):
    p, tick = paced(0.9)
    behind = p.behind()
    p.send(tick)
    assert p.phase_of(tick) < 0.9
    p.send(tick + 1)
    assert 0.0 <= p.phase_of(tick + 1) < 0.9
    assert p.behind() == behind


def test_nothing_is_waited_for_at_phase_0(paced):
    p, tick = paced(0.0)
    p.send(tick - 1)
    assert 0.0 <= p.phase_of(tick + 1) < 0.9 and p.behind() > 0


def test_commands_go_on_after_the_clock_was_set_back(paced):
    p, tick = paced(0.2)
    p.node.acted_tick += 1000
    assert p.phase_of(tick + 1) < 1.0


def test_after_the_clock_was_set_back_nothing_seen_before_is_used(graph, driven):
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "motion")
    with driven.node._lock:
        driven.node.acted_tick += 1000
        driven.node.act(driven.node.acted_tick - 1000)
    assert driven.node.hold_reason == "no proprioception" and not len(driven.node.commander._references)
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "motion by new references")


def test_a_tick_that_was_overtaken_during_a_hang_is_not_commanded(graph, driven):
    driven.until(graph, Phase.APPROACH, lambda: driven.source() == Source.VLA, "motion")
    with driven.node._lock:
        acted, count = driven.node.acted_tick, len(driven.candidates)
        driven.node.act(acted - 20)
        assert driven.node.acted_tick == acted and len(driven.node.commander._references)
    driven.until(graph, Phase.APPROACH, lambda: len(driven.candidates) > count + 5, "candidates")
    ticks = [msg.tick for msg in driven.candidates]
    assert ticks == sorted(set(ticks))


def test_references_and_tokens_of_the_future_are_refused(graph, driven):
    ahead = driven.peer.tick() + 500
    driven.reference(driven.peer.chunk(ahead, [0.1] * 4, 50))
    driven.state(state_to_msg(TokenFrame(ahead, np.ones(6), np.zeros(14)), driven.peer.clock))
    rejected = driven.node.rejected
    graph.spin_until(lambda: rejected["vla/reference"] and rejected["vla/rl_state"], "the refusals")
    assert not len(driven.node.commander._references)


def test_period_errors_count_from_the_first_episode_on(graph, driven):
    driven.until(graph, Phase.IDLE, lambda: driven.node.loop.statistics.ticks > 20, "ticks")
    statistics = driven.node.loop.statistics
    statistics.late = 10**6
    driven.until(graph, Phase.APPROACH, lambda: statistics.late < 10**6, "the reset")
    statistics.late, ticks = 10**6, statistics.ticks
    driven.until(graph, Phase.CRITICAL, lambda: statistics.ticks > ticks + 5, "more ticks")
    assert statistics.late >= 10**6


def test_phase_that_is_over_before_proprioception_comes_is_told_with_what_to_set(start):
    node = start(ActorNode, phase=0.01, **PATIENT)
    node.arrivals.extend(249 * [0.3])
    assert node.too_late() == ""  # not enough of them
    node.arrivals.append(0.3)
    assert "comes 6.0 ms into its tick, after phase (0.01 of it, 0.2 ms)" in node.too_late()
    assert "set phase to 0.35, and watchdog_phase of safety_node to 0.5" in node.too_late()
    node.arrivals.extend(30 * [0.8])  # of them more than a tenth
    assert "set phase to 0, or let the driver" in node.too_late()


def test_it_is_noted_when_in_its_tick_proprioception_came(graph, start, peer):
    node = start(ActorNode, phase=0.01, **PATIENT)
    send, tick = peer.say(Proprio, "proprio", qos.SENSOR), peer.tick() - 1  # whose end has passed
    graph.spin_until(lambda: (send(peer.proprio(tick)), node.arrivals)[1], "an arrival")
    assert node.arrivals[0] > 1.0


def test_phase_that_is_long_enough_is_not_complained_of(graph, start, peer):
    node = start(ActorNode, phase=0.9, **PATIENT)
    send = peer.say(Proprio, "proprio", qos.SENSOR)
    tick = lambda: peer.tick() + 1  # noqa: E731 - always there before its tick begins
    graph.spin_until(lambda: (send(peer.proprio(tick())), len(node.arrivals) == 250)[1], "arrivals", 60.0)
    assert node.too_late() == ""


def said(d: Driven) -> str:
    d.node.on_diagnostics_()
    return d.node.problem


def test_tokens_and_weights_of_two_nodes_are_refused_until_one_is_gone(graph, driven):
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.VLA, "the warm-up reference")
    second = graph.add(Node("second"))
    publishers = [
        second.create_publisher(RLState, "vla/rl_state", qos.EVENT),
        second.create_publisher(PolicyWeights, "learner/weights", qos.STATE),
    ]
    both = lambda: all(f"/{topic}: 2 publishers" in said(driven) for topic in ("vla/rl_state", "learner/weights"))  # noqa: E731
    driven.until(graph, Phase.CRITICAL, both, "word of both to the operator")
    driven.weights(weights(3))
    refused = lambda: driven.node.rejected["learner/weights"] > 0 < driven.node.rejected["vla/rl_state"]  # noqa: E731
    driven.until(graph, Phase.CRITICAL, refused, "the refusal of what they send")
    assert driven.node.version == 0
    for publisher in publishers:
        second.destroy_publisher(publisher)
    driven.until(graph, Phase.CRITICAL, lambda: "stop one of them" not in said(driven), "the end of it")
    driven.weights(weights(4))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")


def test_tokens_of_another_vla_than_the_policys_are_refused(graph, driven):
    """A VLA that was started again with another model must not end the actor."""
    driven.weights(weights(3))
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")
    sizes = np.ones(8), np.zeros(14)
    other = lambda: driven.state(state_to_msg(TokenFrame(driven.peer.tick(), *sizes), driven.peer.clock))  # noqa: E731
    graph.spin_until(lambda: (other(), driven.node.rejected["vla/rl_state"] > 0)[1], "the refusal")
    driven.until(graph, Phase.CRITICAL, lambda: driven.source() == Source.ACTOR, "the actor")
