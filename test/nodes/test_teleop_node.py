"""The gamepad."""

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.msg import ActionChunk, Proprio
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.ros import qos

DEADMAN = 5  # of the Xbox layout
FULL = 0.8  # its scale of x
LAYOUT = {"deadman": DEADMAN, "motions": {"x": {"axis": 1, "scale": FULL}}, "buttons": {"success": 0, "stop": 2}}


class Pad:
    def __init__(self, node, peer) -> None:
        self.node, self.peer = node, peer
        self.commands = peer.hear(ActionChunk, "human/command")
        self.say = peer.say(Joy, "joy", qos.EVENT)

    def send(self, held: bool = True, stick: float = 1.0, axes: int = 8, buttons: int = 11, pressed: int = -1) -> None:
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
    return Pad(start(TeleopNode, timeout_s=0.2), peer)


@pytest.fixture
def file(tmp_path):
    """A function that writes a gamepad file and gives its path."""

    def written(**changes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(LAYOUT | changes))
        return str(path)

    return written


@pytest.fixture
def told(peer):
    """Diagnostics of the teleop node, as (level, message, values)."""
    heard = peer.hear(DiagnosticArray, "/diagnostics", qos.EVENT)
    return lambda: [(s.level, s.message, {v.key: v.value for v in s.values}) for m in heard for s in m.status]


def test_gamepad_that_does_not_exist_fails_at_configure_with_those_that_do(make):
    error = make(TeleopNode, gamepad="nes").configure_error
    assert "gamepad 'nes': no file" in error and "there are keyboard, playstation, spacemouse, xbox" in error


def test_button_for_an_unknown_request_fails_at_configure(make, file):
    error = make(TeleopNode, gamepad=file(buttons={"jump": 2})).configure_error
    assert "'mine': buttons.jump: got an unknown name, expected one of start, hand_over" in error


def test_motion_that_does_not_exist_fails_at_configure(make, file):
    error = make(TeleopNode, gamepad=file(motions={"yow": {"axis": 1, "scale": 1.0}})).configure_error
    assert "motions.yow: got an unknown name, expected one of x, y, z" in error


def test_action_that_the_task_does_not_have_fails_at_configure(make):
    assert "steer.elbow_flex: the task has no such action; it has x, y, z, yaw" in make(
        TeleopNode, steer__elbow_flex="z"
    ).configure_error


def test_tool_frame_of_a_task_without_a_tool_fails_at_configure(make):
    error = make(TeleopNode, task="reacher", frame="tool").configure_error
    assert "parameter 'frame' is 'tool', but task 'reacher' has actions shoulder, elbow" in error


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
    np.testing.assert_allclose(first.actions, [FULL, 0, 0, 0], atol=1e-6)
    pad.until(graph, lambda: pad.commands[-1].steps == 0, "the release", held=False)
    count = len(pad.commands)
    sent = iter(range(20))
    pad.until(graph, lambda: next(sent, None) is None, "more readings", held=False)
    assert len(pad.commands) == count


def test_taking_over_and_letting_go_do_not_wait_for_the_tick(graph, pad):
    for loop in pad.node._loops:
        loop.stop()
    pad.until(graph, lambda: bool(pad.commands), "the human's command")
    pad.until(graph, lambda: pad.commands[-1].steps == 0, "the release", held=False)
    assert [msg.steps for msg in pad.commands] == [1, 0]


def test_lost_gamepad_ends_the_intervention_with_one_zero_command(graph, pad):
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    graph.spin_until(lambda: pad.commands[-1].steps == 0, "the end", timeout_s=3.0)
    assert sum(msg.steps == 0 for msg in pad.commands) == 1


def test_gamepad_that_comes_back_is_steered_with_again(graph, pad):
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    graph.spin_until(lambda: pad.commands[-1].steps == 0, "the end", timeout_s=3.0)
    assert "the gamepad is silent" in pad.node.problem
    pad.until(graph, lambda: pad.commands[-1].steps == 1, "human commands")
    assert pad.node.problem == ""


def test_gamepad_that_lacks_something_is_an_error_and_moves_nothing_until_it_fits(graph, pad, told):
    error = lambda: told() and told()[-1][0] == DiagnosticStatus.ERROR  # noqa: E731
    pad.until(graph, error, "the error", buttons=DEADMAN)
    assert "deadman: button 5" in told()[-1][1] and "5 buttons (0 to 4)" in told()[-1][1]
    pad.until(graph, lambda: "x: axis 1;" in told()[-1][1], "the error", axes=1)
    assert not pad.commands
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    pad.until(graph, lambda: told()[-1][:2] == (DiagnosticStatus.OK, "active"), "that all is well")
    assert told()[-1][2]["gamepad"] == "xbox" and told()[-1][2]["steering"] == "True"


def test_gamepad_that_becomes_another_ends_the_intervention_with_one_zero_command(graph, pad):
    pad.until(graph, lambda: len(pad.commands) > 3, "human commands")
    pad.until(graph, lambda: pad.commands[-1].steps == 0, "the end", axes=6)
    sent = iter(range(10))
    pad.until(graph, lambda: next(sent, None) is None, "more readings", axes=6)
    assert sum(msg.steps == 0 for msg in pad.commands) == 1 and pad.commands[-1].steps == 0


def test_emergency_stop_works_on_a_gamepad_that_does_not_fit(graph, pad, peer):
    calls = []

    def answer(request, response):
        calls.append(request)
        response.success = True
        return response

    peer.node.create_service(Trigger, "safety/stop", answer)
    graph.spin_until(pad.node.requests["stop"].service_is_ready, "the service")
    pad.until(graph, lambda: bool(pad.node.error), "the error", held=False, axes=3)
    pad.until(graph, lambda: bool(calls), "the call", held=False, axes=3, pressed=2)


def test_in_the_tools_frame_the_stick_is_turned_by_the_tools_yaw(graph, start, peer):
    pad = Pad(start(TeleopNode, frame="tool"), peer)
    say = peer.say(Proprio, "proprio", qos.SENSOR)
    turned = np.zeros(14, np.float32)
    turned[3] = np.pi / 2

    def steered() -> bool:
        say(peer.proprio(peer.tick(), turned))
        return bool(pad.commands) and bool(np.any(pad.commands[-1].actions))

    pad.until(graph, steered, "motion")
    np.testing.assert_allclose(pad.commands[-1].actions, [0, FULL, 0, 0], atol=1e-6)


def test_without_proprioception_a_tool_stands_still_in_the_persons_hand(graph, start, peer, told):
    pad = Pad(start(TeleopNode, frame="tool"), peer)
    warned = lambda: any("frame is 'tool', but no proprio" in message for _, message, _ in told())  # noqa: E731
    pad.until(graph, warned, "the warning")
    assert pad.commands and all(msg.steps == 1 and not np.any(msg.actions) for msg in pad.commands)


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


def test_robot_says_which_motions_steer_its_joints(graph, start, peer):
    pad = Pad(start(TeleopNode, task="reacher", steer__elbow="-x"), peer)
    assert pad.node.gamepad.idle == ["shoulder"]
    pad.until(graph, lambda: bool(pad.commands), "human commands")
    np.testing.assert_allclose(pad.commands[0].actions, [0.0, -FULL], atol=1e-6)
