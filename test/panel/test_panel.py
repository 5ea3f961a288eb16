"""The panel beside real nodes: what it shows, what its buttons and keys do, and that it never waits."""

import time

import numpy as np
import pytest
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.limits import SafetyGate
from rlt_ros.msg import ActionChunk, EpisodeState, HandOverBelief
from rlt_ros.nodes.episode_node import EpisodeNode
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.panel import parts, theme
from rlt_ros.panel.link import ANSWER_S, NodeHealth
from rlt_ros.panel.qt import QtCore
from rlt_ros.panel.widget import CAUSES, HELD
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, image_to_msg

Key = QtCore.Qt.Key
# What the task's file for the simulator may leave to the robot.
LIMITS = {"limits.action_limit": 1.0, "limits.max_step_change": 2.0, "limits.command_timeout_s": 0.04}
CLOCK = ControlClock(50.0)


def test_an_episode_by_its_buttons(stage, start) -> None:
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    panel = stage.panel
    stage.enabled("start", "reset")
    assert panel.buttons["success"].toolTip().endswith("press Start first")
    assert panel.buttons["success"].below == "press Start first"
    stage.click("start")
    stage.until(lambda: node.machine.phase is Phase.APPROACH, "the approach")
    stage.enabled("hand_over", "abort", "reset")
    stage.click("hand_over")
    stage.until(lambda: node.machine.phase is Phase.CRITICAL, "the critical phase")
    stage.enabled("success", "failure", "abort", "reset")
    stage.click("success")
    stage.until(lambda: node.machine.outcome is Outcome.SUCCESS, "the success")
    stage.until(lambda: panel.phase._shown[0] == "SUCCESS", "the success to be shown")
    assert panel.seen.history[-1][:2] == (1, Outcome.SUCCESS)
    stage.enabled("undo", "reset")
    stage.click("undo")
    stage.until(lambda: panel.phase._shown[0] == "NO LABEL", "the label to be taken back")
    assert panel.seen.history == ()
    stage.enabled("success", "failure", "abort", "reset")
    stage.click("failure")
    stage.until(lambda: [item[1] for item in panel.seen.history] == [Outcome.FAILURE], "the other label")
    stage.enabled("undo", "reset")
    stage.click("reset")
    stage.until(lambda: node.machine.phase is Phase.IDLE, "the reset")


def test_a_demonstration_is_kept_without_a_hand_over(stage, start) -> None:
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0, label_any_time=True)
    stage.enabled("start", "reset")
    stage.click("start")
    stage.enabled("hand_over", "success", "failure", "abort", "reset")
    stage.until(lambda: stage.panel.phase._shown[1].endswith("Success keeps it, Failure does not"), "what to do")
    stage.click("success")
    stage.until(lambda: node.machine.outcome is Outcome.SUCCESS, "the success")


def test_an_episode_by_its_keys(stage, start) -> None:
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    for key, done in (
        (Key.Key_S, lambda: node.machine.phase is Phase.APPROACH),
        (Key.Key_H, lambda: node.machine.phase is Phase.CRITICAL),
        (Key.Key_B, lambda: node.machine.outcome is Outcome.FAILURE),
        (Key.Key_R, lambda: node.machine.phase is Phase.IDLE),
        (Key.Key_S, lambda: node.machine.phase is Phase.APPROACH),
        (Key.Key_Backspace, lambda: node.machine.outcome is Outcome.ABORTED),
    ):
        name = {
            Key.Key_S: "start",
            Key.Key_H: "hand_over",
            Key.Key_B: "failure",
            Key.Key_R: "reset",
            Key.Key_Backspace: "abort",
        }[key]
        stage.until(stage.panel.buttons[name].isEnabled, f"{name} to be enabled")
        stage.key(key)
        stage.until(done, f"what {name} does")


def test_a_key_out_of_turn_asks_for_nothing(stage, start) -> None:
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    stage.enabled("start", "reset")
    stage.key(Key.Key_A)
    stage.click("start")
    stage.until(lambda: node.machine.phase is Phase.APPROACH, "the approach")
    stage.until(lambda: stage.panel.seen.notice is not None, "the answer")
    assert (stage.panel.seen.notice.number, stage.panel.seen.notice.name) == (1, "start")


def test_what_is_believed_of_the_hand_over_stands_with_the_phase_and_the_button(stage, start, graph) -> None:
    start(EpisodeNode, task="ethernet", rate_hz=50.0)
    peer = graph.add(Node("peer"))
    say = peer.create_publisher(HandOverBelief, "handover/belief", qos.STATE)
    panel, phase = stage.panel, lambda: stage.panel.phase._shown[1]
    fields = {"tick": 5, "episode": 1, "trained": True, "probability": 0.9375, "suggested": True}
    stage.until(panel.buttons["start"].isEnabled, "Start")
    stage.click("start")
    stage.until(panel.buttons["hand_over"].isEnabled, "the approach")
    # A node that only learns, or that speaks of another episode, tells nobody to press.
    for silent in ({"mode": "human"}, {"mode": "suggest", "episode": 7}, {"mode": "suggest", "trained": False}):
        say.publish(HandOverBelief(**(fields | silent)))
        stage.until(lambda: panel.seen.belief == HandOverBelief(**(fields | silent)), "the belief")  # noqa: B023
        panel.refresh()
        assert phase() == "episode 1: the VLA approaches" and panel.buttons["hand_over"].below == ""
    for told, words, below in (
        ({"mode": "suggest"}, "episode 1: hand over now? 94% sure", "now? 94%"),
        ({"mode": "suggest", "suggested": False, "probability": 0.25}, "episode 1: hand over? 25% sure",
         "not yet: 25%"),
        ({"mode": "automatic"}, "episode 1: hands over by itself, 94% sure of it", "by itself: 94%"),
        ({"mode": "automatic", "waits": "12 presses"},
         "episode 1: hand over now? 94% sure; not by itself: 12 presses", "now? 94%"),
    ):  # fmt: skip
        say.publish(HandOverBelief(**(fields | told)))
        stage.until(lambda: phase() == words, words)  # noqa: B023
        assert panel.buttons["hand_over"].below == below
    stage.click("hand_over")
    stage.until(lambda: phase() == "episode 1: the policy acts and learns from it", "the critical phase")


def test_without_nodes_the_panel_says_so_and_goes_on(stage) -> None:
    panel = stage.panel
    stage.until(lambda: panel.seen.domain > 0, "the link")
    stage.enabled()
    assert panel.phase._shown[0] == "NO EPISODE NODE"
    assert "episode_node does not answer" in panel.buttons["start"].toolTip()
    assert panel.buttons["stop"].isEnabled()
    stage.longest_s = 0.0
    stage.click("stop")
    stage.until(lambda: "safety_node does not answer" in panel.notice.words(), "word of the missing service")
    assert stage.longest_s < 0.5


def test_a_service_that_hangs_is_given_up_while_the_windows_go_on(stage, graph) -> None:
    """The service is there, but nobody spins its node."""
    mute = Node("mute")
    mute.create_service(Trigger, "episode/start", lambda _request, response: response)
    peer = graph.add(Node("peer"))
    states = peer.create_publisher(EpisodeState, "episode/state", qos.STATE)
    peer.create_timer(0.2, lambda: states.publish(EpisodeState()))
    try:
        stage.until(stage.panel.buttons["start"].isEnabled, "Start")
        began_s, stage.longest_s = time.monotonic(), 0.0
        stage.click("start")
        stage.until(lambda: "start" in stage.panel.seen.asked, "the request")
        stage.until(lambda: "does not answer to episode/start" in stage.panel.notice.words(), "the time-out")
        assert time.monotonic() - began_s > 0.9 * ANSWER_S
        assert stage.longest_s < 0.5  # a turn of the event loop; it would be ANSWER_S if anything had waited
        stage.until(stage.panel.buttons["start"].isEnabled, "Start, to try again")
    finally:
        mute.destroy_node()


def test_an_episode_node_without_undo_is_told_from_one_that_is_gone(stage, graph) -> None:
    peer = graph.add(Node("peer"))
    peer.create_service(Trigger, "episode/start", lambda _request, response: response)
    states = peer.create_publisher(EpisodeState, "episode/state", qos.STATE)
    peer.create_timer(0.2, lambda: states.publish(EpisodeState()))
    stage.enabled("start")
    assert "offers no undo" in stage.panel.buttons["undo"].toolTip()
    assert "episode_node does not answer" in stage.panel.buttons["reset"].toolTip()


@pytest.mark.parametrize("key", [Key.Key_Space, Key.Key_Escape])
def test_emergency_stop_at_once_and_release_only_when_confirmed(stage, start, key) -> None:
    episode = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    safety = start(SafetyNode, task="ethernet", rate_hz=50.0, **LIMITS)
    panel = stage.panel
    stage.until(lambda: "stop" in panel.seen.services and panel.buttons["start"].isEnabled(), "the services")
    assert not panel.buttons["release"].isEnabled() and panel.buttons["release"].toolTip()
    stage.click("start")  # the space bar must not press this again
    stage.until(lambda: episode.machine.phase is Phase.APPROACH, "the approach")
    stage.key(key)
    stage.until(lambda: safety.gate.stopped, "the stop")
    stage.until(panel.buttons["release"].isEnabled, "Release")
    assert panel.buttons["stop"].isEnabled() and not panel.confirm.isVisible()

    stage.click("release")
    assert panel.confirm.isVisible() and safety.gate.stopped
    stage.click("release")  # Keep
    assert not panel.confirm.isVisible()
    stage.click("release")
    stage.key(key)  # a stop takes the question back
    assert not panel.confirm.isVisible()
    stage.until(lambda: "stop" not in panel.seen.asked and "Emergency" in panel.notice.words(), "the second answer")
    assert safety.gate.stopped

    stage.key(Key.Key_R, QtCore.Qt.KeyboardModifier.ControlModifier)
    assert panel.confirm.isVisible() and safety.gate.stopped
    panel.confirm.click()
    stage.until(lambda: not safety.gate.stopped, "the release")
    stage.until(lambda: not panel.buttons["release"].isEnabled(), "Release to be done")


def test_nodes_come_fall_silent_and_come_again(stage, start, stop) -> None:
    panel = stage.panel
    rows = lambda: {row[2]: row for row in (panel.nodes._shown or ((),))[0]}  # noqa: E731
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    stage.until(lambda: rows().get("episode_node", ("",))[0] == "ok", "the node's diagnostics")
    node.problem = "somebody should look"
    stage.until(lambda: rows()["episode_node"][0] == "warn", "its problem")
    assert rows()["episode_node"][3] == "somebody should look"
    stop(node)
    stage.until(lambda: panel.phase._shown[0] == "NO EPISODE NODE", "its silence in the phase")
    stage.enabled()
    stage.until(lambda: rows()["episode_node"][0] == "silent", "its silence in the list")
    assert rows()["episode_node"][3].startswith("silent for ")
    start(EpisodeNode, task="ethernet", rate_hz=50.0)
    stage.until(lambda: rows()["episode_node"][0] == "ok", "the node again")
    stage.enabled("start", "reset")


def test_picture_and_driver_are_shown(stage, graph) -> None:
    peer = graph.add(Node("peer"))
    images = peer.create_publisher(Image, "camera/wrist/image", qos.SENSOR)
    commands = peer.create_publisher(ActionChunk, "command/executed", qos.COMMAND)
    rgb = np.zeros((8, 6, 3), np.uint8)
    rgb[2, 3] = (10, 20, 30)

    def send() -> None:
        images.publish(image_to_msg(rgb, time.time_ns()))
        tick = CLOCK.tick(time.time_ns())
        chunk = Chunk(tick, np.zeros((1, 4), np.float32), tick, Source.ACTOR, 1, 7)
        commands.publish(chunk_to_msg(chunk, CLOCK))

    peer.create_timer(0.02, send)
    stage.until(lambda: stage.panel.seen.picture is not None, "a picture")
    stage.until(lambda: stage.panel.driver._shown[0] == "Actor v7", "the actor in control")
    assert stage.panel.seen.period_ns == CLOCK.period_ns
    colour = parts.as_image(stage.panel.seen.picture).pixelColor(3, 2)
    assert (colour.red(), colour.green(), colour.blue()) == (10, 20, 30)
    first = stage.panel.seen.picture.number, time.monotonic()
    stage.until(lambda: time.monotonic() - first[1] > 2.0, "two seconds")
    shown = (stage.panel.seen.picture.number - first[0]) / (time.monotonic() - first[1])
    assert shown < 6.5  # of 50 a second


@pytest.mark.parametrize("mode", [theme.LIGHT, theme.DARK])
def test_it_is_painted_in_light_and_dark(stage, app, start, tmp_path, mode) -> None:
    node = start(EpisodeNode, task="ethernet", rate_hz=50.0)
    start(SafetyNode, task="ethernet", rate_hz=50.0, **LIMITS)
    app.setPalette(theme.palette(mode))
    stage.until(lambda: stage.panel.theme is mode, "the colours of the palette")
    for outcome in ("success", "failure", "success"):
        for name in ("start", "hand_over", outcome, "reset"):
            stage.until(stage.panel.buttons[name].isEnabled, name)
            stage.click(name)
            stage.until(
                lambda: name not in stage.panel.seen.asked and stage.panel.seen.phase is node.machine.phase, name
            )
    stage.until(lambda: len(stage.panel.seen.history) == 3, "the episodes")
    file = tmp_path / "panel.png"
    picture = stage.panel.grab()
    assert picture.save(str(file)) and file.stat().st_size > 10_000
    corner = picture.toImage().pixelColor(3, 3)
    assert (corner.lightness() < 128) is mode.dark


def test_silence_is_three_seconds() -> None:
    health = NodeHealth(0, "active", 10.0, {})
    assert not health.silent(12.9) and health.silent(13.1)


def test_every_cause_of_the_gate_has_words() -> None:
    assert set(CAUSES) == set(SafetyGate.CAUSES)
    assert set(HELD) <= set(CAUSES)


def test_it_fits_a_small_touch_screen_and_the_stop_is_never_covered(stage, app) -> None:
    panel = stage.panel
    smallest = panel.minimumSizeHint()
    assert smallest.width() <= 1024 and smallest.height() <= 570  # 1024 x 600 with the window's frame
    for size in (QtCore.QSize(1024, 570), smallest, QtCore.QSize(1920, 1080)):
        panel.resize(size)
        app.processEvents()
        stop = panel.buttons["stop"]
        assert panel.rect().contains(stop.geometry())
        assert all(panel.childAt(at) is stop for at in (stop.geometry().topLeft(), stop.geometry().center()))
    panel.resize(1024, 570)
    app.processEvents()
    for name, button in panel.buttons.items():  # about 1 cm on such a screen
        assert button.height() >= 48 and button.width() >= 90, name
