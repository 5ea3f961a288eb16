"""The gamepad."""

import numpy as np
import pytest
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.msg import ActionChunk
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.ros import qos

DEADMAN = 5


class Pad:
    def __init__(self, node, peer) -> None:
        self.node, self.peer = node, peer
        self.commands = peer.hear(ActionChunk, "human/command")
        self.say = peer.say(Joy, "joy", qos.EVENT)

    def send(self, held: bool = True, stick: float = 1.0, axes: int = 6, buttons: int = 8, pressed: int = -1) -> None:
        values = [0.0] * axes
        if axes > 1:
            values[1] = stick
        states = [0] * buttons
        for index in [DEADMAN] * held + [pressed] * (pressed >= 0):
            if index < buttons:
                states[index] = 1
        self.say(Joy(axes=values, buttons=states))

    def until(self, graph, condition, what: str, **state) -> None:
        graph.spin_until(lambda: (self.send(**state), condition())[1], what)


@pytest.fixture
def pad(start, peer):
    return Pad(start(TeleopNode, deadman=DEADMAN, buttons__success=0, timeout_s=0.2), peer)


def test_dead_man_is_required_to_configure(make):
    assert "'deadman' is required" in make(TeleopNode).configure_error


def test_button_for_an_unknown_request_fails_at_configure(make):
    assert "buttons.jump is unknown" in make(TeleopNode, deadman=1, buttons__jump=2).configure_error


def test_stick_without_the_dead_man_moves_nothing(graph, pad):
    count = 0

    def sent() -> bool:
        nonlocal count
        count += 1
        return count > 20

    pad.until(graph, sent, "20 readings", held=False)
    assert not pad.commands


def test_stick_becomes_an_action_each_tick_and_release_is_said_once(graph, pad):
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    first = pad.commands[0]
    assert first.source == Source.HUMAN and first.steps == 1
    np.testing.assert_allclose(first.actions, [0.8, 0, 0, 0], atol=1e-6)
    pad.until(graph, lambda: pad.commands[-1].steps == 0, "the release", held=False)
    count = len(pad.commands)
    sent = iter(range(20))
    pad.until(graph, lambda: next(sent, None) is None, "more readings", held=False)
    assert len(pad.commands) == count


def test_lost_gamepad_ends_the_intervention_with_one_zero_command(graph, pad):
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    graph.spin_until(lambda: pad.commands[-1].steps == 0, "the end", timeout_s=3.0)
    assert sum(msg.steps == 0 for msg in pad.commands) == 1


def test_gamepad_with_too_few_axes_or_buttons_moves_nothing_and_is_reported(graph, pad):
    pad.until(
        graph, lambda: "button 'deadman' is index 5, the gamepad has 2 buttons" in pad.node.problem, "report", buttons=2
    )
    assert not pad.commands
    pad.until(graph, lambda: "axis of component" in pad.node.problem, "report", axes=1)


def test_stick_that_is_not_finite_counts_as_zero(graph, pad):
    pad.until(graph, lambda: bool(pad.commands), "human commands", stick=float("nan"))
    assert not np.any(pad.commands[-1].actions)


def test_button_calls_its_service_once_a_press(graph, pad, peer):
    calls = []

    def answer(request, response):
        calls.append(request)
        response.success = True
        return response

    peer.node.create_service(Trigger, "episode/success", answer)
    graph.spin_until(pad.node.requests["success"].service_is_ready, "the service")
    pad.send(held=False)
    pad.until(graph, lambda: bool(calls), "the call", held=False, pressed=0)
    sent = iter(range(20))
    pad.until(graph, lambda: next(sent, None) is None, "the button held down", held=False, pressed=0)
    assert len(calls) == 1


def test_task_with_fewer_actions_than_the_gamepad_has_axes_uses_the_first(graph, start, peer):
    pad = Pad(start(TeleopNode, task="reacher", deadman=DEADMAN), peer)
    pad.until(graph, lambda: bool(pad.commands), "human commands")
    np.testing.assert_allclose(pad.commands[0].actions, [0.8, 0.0], atol=1e-6)
