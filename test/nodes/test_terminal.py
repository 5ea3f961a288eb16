"""`rlt teleop` in a terminal, with real nodes over DDS."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import Joy
from std_msgs.msg import Header

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.keyboard import SLOW
from rlt_ros.msg import ActionChunk, EpisodeState, SafetyState
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.nodes.teleop_node import TeleopNode
from rlt_ros.ros import qos

RLT = Path(__file__).resolve().parents[2] / "scripts" / "rlt"
UP, LEFT = "\x1b[A", "\x1b[D"
FULL = 0.8  # of every layout's x and y
REPEAT_S = 0.03  # of a key that is held


class Terminal:
    """A terminal with the program in it."""

    def __init__(self, graph, python: str, *arguments: str) -> None:
        self.graph, self.text = graph, ""
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            [python, str(RLT), "teleop", *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def read(self) -> str:
        """All that was written up to now."""
        while self.master >= 0 and select.select([self.master], [], [], 0.0)[0]:
            try:
                self.text += os.read(self.master, 4096).decode()
            except OSError:  # nobody has the other side any more
                break
        return self.text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def hold(self, key: str, condition, what: str) -> None:
        """Press a key, and again as a keyboard repeats it, until `condition()`."""
        typed_s = 0.0

        def held() -> bool:
            nonlocal typed_s
            if time.monotonic() - typed_s >= REPEAT_S:
                typed_s = time.monotonic()
                self.type(key)
            return condition()

        self.graph.spin_until(held, what)

    def until(self, text: str) -> None:
        """Wait until it shows `text`."""
        self.graph.spin_until(lambda: text in self.read(), lambda: f"'{text}' on the terminal; it shows {self.text!r}")

    def shows(self, text: str) -> bool:
        """Whether its newest line has `text`."""
        return text in self.read().rpartition("\r")[2]

    def ended(self) -> int:
        """Its exit code."""
        self.graph.spin_until(lambda: (self.read(), self.process.poll())[1] is not None, "the end of rlt teleop")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10.0)
        if self.master >= 0:
            os.close(self.master)


class Scene:
    """Teleop, episode and safety node, and what they say."""

    def __init__(self, graph, start, peer, gamepad: str) -> None:
        self.teleop, self.safety = start(TeleopNode, gamepad=gamepad), start(SafetyNode)
        start(EpisodeNode)
        self.commands = peer.hear(ActionChunk, "human/command")
        self.states = peer.hear(EpisodeState, "episode/state", qos.STATE)
        self.stops = peer.hear(SafetyState, "safety/state", qos.STATE)
        graph.spin_until(lambda: self.states and self.stops, "the nodes")

    def moving(self) -> bool:
        return bool(self.commands) and bool(np.any(self.commands[-1].actions))

    def released(self) -> bool:
        return bool(self.commands) and self.commands[-1].steps == 0

    @property
    def phase(self) -> Phase:
        return Phase(self.states[-1].phase)


@pytest.fixture
def scene(graph, start, peer):
    return lambda gamepad="keyboard": Scene(graph, start, peer, gamepad)


@pytest.fixture
def terminal(graph, python):
    """A function that starts the program in a terminal and waits until it steers."""
    made = []

    def started(*arguments: str) -> Terminal:
        made.append(Terminal(graph, python, *arguments))
        made[-1].until("not in your hand")
        return made[-1]

    yield started
    for terminal in made:
        terminal.close()


@pytest.mark.parametrize("gamepad", ["keyboard", "xbox"])
def test_key_moves_the_robot_whatever_gamepad_the_teleop_node_has(graph, scene, terminal, gamepad):
    s = scene(gamepad)
    t = terminal()
    t.hold(UP, s.moving, "motion")
    first = next(msg for msg in s.commands if np.any(msg.actions))
    assert first.source == Source.HUMAN
    np.testing.assert_allclose(first.actions, [FULL * SLOW, 0, 0, 0], atol=1e-5)
    s.commands.clear()
    t.hold(LEFT, lambda: any(np.any(m.actions) for m in s.commands[-1:]) and s.commands[-1].actions[1] > 0, "the other")
    assert s.teleop.error == ""


def test_when_keys_cease_the_robot_stands_in_the_hand_and_is_given_back_once(graph, scene, terminal):
    s = scene()
    t = terminal()
    t.hold(UP, lambda: sum(bool(np.any(msg.actions)) for msg in s.commands) > 20, "motion")
    graph.spin_until(lambda: s.commands[-1].steps and not s.moving(), "standing")
    graph.spin_until(s.released, "the release")
    standing = [msg for msg in s.commands if msg.steps and not np.any(msg.actions)]
    assert len(standing) > 10 and sum(msg.steps == 0 for msg in s.commands) == 1


def test_enter_keeps_the_robot_and_lets_it_go(graph, scene, terminal):
    s = scene()
    t = terminal()
    t.type("\r")
    graph.spin_until(lambda: len(s.commands) > 80, "more commands than a key's second")
    assert all(msg.steps == 1 and not np.any(msg.actions) for msg in s.commands)
    t.until("kept in your hand")
    t.type("\r")
    graph.spin_until(s.released, "the release")


def test_an_episode_by_keyboard(graph, scene, terminal):
    s = scene()
    t = terminal()
    for key, phase in (("s", Phase.APPROACH), ("h", Phase.CRITICAL), ("a", Phase.ENDED)):
        t.type(key)
        graph.spin_until(lambda phase=phase: s.phase == phase, phase.name)
    assert s.states[-1].outcome == Outcome.SUCCESS
    t.until("ENDED SUCCESS")
    t.type("\x1a")  # Ctrl-Z does not stop the program
    graph.spin_until(lambda: s.states[-1].outcome == Outcome.NONE, "the undo")
    t.type("b")
    graph.spin_until(lambda: s.states[-1].outcome == Outcome.FAILURE, "the other label")
    t.type("r")
    graph.spin_until(lambda: s.phase == Phase.IDLE, "the reset")


def test_emergency_stop_and_its_release(graph, scene, terminal):
    s = scene()
    t = terminal()
    t.type("\x1b")
    graph.spin_until(lambda: s.stops[-1].estop, "the emergency stop")
    t.until("EMERGENCY STOP")
    t.type("\x12")
    t.until("Ctrl+R again")
    assert s.stops[-1].estop
    t.type("\x12")
    graph.spin_until(lambda: not s.stops[-1].estop, "the release")


def test_emergency_stop_does_not_need_the_teleop_node(graph, scene, terminal, stop):
    s = scene()
    t = terminal()
    stop(s.teleop)
    t.until("IS NOT HEARD: nothing moves")
    t.type(" ")
    graph.spin_until(lambda: s.stops[-1].estop, "the emergency stop")


def test_request_that_is_on_no_button_is_told(graph, scene, terminal):
    scene("spacemouse")
    t = terminal()
    t.type("s")
    t.until("start is on no button of the gamepad file 'spacemouse'")


def test_beside_a_gamepad_it_keeps_silent_but_for_the_emergency_stop(graph, scene, terminal, peer):
    s = scene()
    joys = peer.hear(Joy, "joy")
    say = peer.say(Joy, "joy", qos.EVENT)
    t = terminal()
    said = Joy(header=Header(frame_id="joy"), axes=[0.0] * 7, buttons=[0] * 10)

    def gamepad_and(condition) -> bool:
        say(said)
        return condition()

    graph.spin_until(lambda: gamepad_and(lambda: t.shows("A GAMEPAD SENDS ON joy (joy)")), "the warning")
    joys.clear()
    t.hold(UP, lambda: gamepad_and(lambda: len(joys) > 50), "the gamepad's messages")
    assert {msg.header.frame_id for msg in joys} == {"joy"} and not s.commands
    t.type("\x1b")
    graph.spin_until(lambda: gamepad_and(lambda: s.stops[-1].estop), "the emergency stop")
    graph.spin_until(lambda: t.shows("not in your hand"), "the end of the silence")


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 0)])
def test_it_ends_with_the_terminal_as_it_was_and_lets_go(graph, scene, terminal, key, code):
    s = scene()
    t = terminal()
    assert termios.tcgetattr(t.master) != t.before
    t.type("\r")
    graph.spin_until(lambda: bool(s.commands), "that the robot is in the hand")
    t.type(key)
    assert t.ended() == code
    assert termios.tcgetattr(t.master) == t.before
    graph.spin_until(s.released, "the release")
    assert not s.stops[-1].estop and "Traceback" not in t.text


def test_sigterm_ends_it_like_ctrl_c(graph, scene, terminal):
    scene()
    t = terminal()
    t.process.send_signal(signal.SIGTERM)
    assert t.ended() == 130
    assert termios.tcgetattr(t.master) == t.before


def test_terminal_that_is_closed_stops_the_robot(graph, scene, terminal):
    s = scene()
    t = terminal()
    t.hold(UP, s.moving, "motion")
    os.close(t.master)
    t.master = -1
    graph.spin_until(lambda: s.stops[-1].estop, "the emergency stop")
    graph.spin_until(s.released, "the release")
    assert t.ended() == 1


def test_program_that_is_killed_ends_the_intervention(graph, scene, terminal):
    s = scene()
    t = terminal()
    t.type("\r")
    graph.spin_until(lambda: bool(s.commands), "that the robot is in the hand")
    t.process.kill()
    graph.spin_until(s.released, "the release", timeout_s=3.0)


def test_without_a_teleop_node_it_says_what_to_do(graph, python):
    t = Terminal(graph, python)
    try:
        assert t.ended() == 1
        assert "teleop_node is not heard within 5 s in ROS domain" in t.text and "set ROS_DOMAIN_ID" in t.text
    finally:
        t.close()


def test_without_a_terminal_it_says_so(python):
    found = subprocess.run([python, str(RLT), "teleop"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=60.0, check=False)  # fmt: skip
    assert found.returncode == 1 and "stdin is no terminal, so no keys can be read" in found.stderr
