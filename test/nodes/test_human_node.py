"""A person alone drives."""

import numpy as np
import pytest

from rlt_ros.core.chunks import Source
from rlt_ros.msg import ActionChunk
from rlt_ros.nodes.human_node import HumanNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg

STEERED = [0.5, 0.0, -0.25, 0.0]


class Hand:
    """Sends what a teleop node would, once a tick."""

    def __init__(self, graph, node, peer) -> None:  # noqa: ANN001
        self.graph, self.node, self.peer = graph, node, peer
        self.candidates = peer.hear(ActionChunk, "command/candidate")
        self.command = peer.say(ActionChunk, "human/command", qos.COMMAND)
        self.sent = 0

    def until(self, condition, what: str, action=None, change=lambda msg: None, late: int = 0) -> None:  # noqa: ANN001
        """Spin until `condition()`, sending `action` in every tick; None: nothing."""

        def turn() -> bool:
            tick = self.peer.tick()
            if action is not None and tick != self.sent:
                self.sent = tick
                msg = self.peer.chunk(tick + 1 - late, action, source=Source.HUMAN)
                change(msg)
                self.command(msg)
            return condition()

        self.graph.spin_until(turn, what)

    def newest(self):  # noqa: ANN201
        return chunk_from_msg(self.candidates[-1]) if self.candidates else None

    def holds(self) -> bool:
        newest = self.newest()
        return newest is not None and newest.source is Source.HOLD and not newest.actions.any()

    def moves(self) -> bool:
        newest = self.newest()
        return newest is not None and newest.source is Source.HUMAN and np.allclose(newest.actions, STEERED)


@pytest.fixture
def hand(graph, start, peer):
    return Hand(graph, start(HumanNode), peer)


def test_the_robot_is_held_until_the_person_steers_and_when_the_dead_man_is_let_go(hand):
    hand.until(lambda: len(hand.candidates) > 3 and hand.holds(), "the hold")
    assert hand.node.problem == ""
    hand.until(hand.moves, "what the person says", STEERED)
    assert hand.newest().steps == 3  # the gate bridges a message that is lost
    hand.command(hand.peer.chunk(hand.peer.tick() + 1, STEERED, 0, Source.HUMAN))
    released = lambda: hand.holds() and not hand.node.steers and not hand.node.problem  # noqa: E731
    hand.until(released, "the hold after the release")
    assert hand.node.on_diagnostics_()["driven_ticks"] > 0


def test_a_person_who_takes_over_is_blended_in(hand):
    hand.until(hand.moves, "what the person says", STEERED)
    first = next(msg for msg in hand.candidates if msg.source == Source.HUMAN)
    assert 0.0 < first.actions[0] < STEERED[0]


def test_when_commands_cease_without_a_release_the_robot_is_held_and_that_is_told(hand):
    hand.until(hand.moves, "what the person says", STEERED)
    hand.until(hand.holds, "the hold")
    hand.until(lambda: "human command lost" in hand.node.problem, "the problem")


@pytest.mark.parametrize("wrong", ["not finite", "another robot's", "late"])
def test_commands_that_cannot_be_used_move_nothing(hand, wrong):
    def spoil(msg: ActionChunk) -> None:
        if wrong == "not finite":
            msg.actions[1] = float("nan")
        elif wrong == "another robot's":
            msg.action_dim, msg.actions = 3, msg.actions[:3]

    refused = lambda: hand.node.rejected["human/command"] > 3  # noqa: E731
    hand.until(refused, "the refusals", STEERED, spoil, late=60 if wrong == "late" else 0)
    assert hand.candidates and all(msg.source == Source.HOLD for msg in hand.candidates)
