"""From the keys of a terminal to what a person does."""

import numpy as np
import pytest

from rlt_ros.core.gamepad import MOTIONS, REQUESTS
from rlt_ros.core.keyboard import (
    FAST,
    GRIP_S,
    HOLD_S,
    MOTION_KEYS,
    REQUEST_KEYS,
    SLOW,
    TAP_S,
    Hands,
    Keyboard,
    keys_of,
)
from rlt_ros.panel.actions import ACTIONS

STANDING, FREE = Hands(True, {}), Hands(False, {})


def moving(motion: str = "x", speed: float = SLOW) -> Hands:
    return Hands(True, {motion: speed})


def held_key(delay_s: float, every_s: float, until_s: float) -> list[float]:
    """When the presses of a key that is held from 0 to `until_s` come."""
    return [0.0, *np.arange(delay_s, until_s, every_s)]


def driven(presses: list[float], times: np.ndarray, key: str = "up") -> list[Hands]:
    """What the hands do at `times`, given when a key comes."""
    keyboard, found, presses = Keyboard(), [], list(presses)
    for now_s in times:
        while presses and presses[0] <= now_s:
            keyboard.press([key], presses.pop(0))
        found.append(keyboard.hands(now_s))
    return found


# --- keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("\x1b[A\x1b[B\x1bOC\x1bOD", ["up", "down", "right", "left"]),
        ("\x1b[5~\x1b[6~", ["pgup", "pgdn"]),
        ("\x1b", ["esc"]),
        ("\x1b[", ["esc", "["]),
        ("\x1b\x1b[A", ["esc", "up"]),
        ("a\x1bs", ["a", "esc", "s"]),  # Alt-S, or Escape and S: in doubt the robot is stopped
        ("\x1b[15~x\x1b[1;5Ay", ["x", "y"]),  # F5, and an arrow with Ctrl: other keys, which have no name
        (" \r\x7f\x1a\x12\x04", ["space", "enter", "backspace", "ctrl-z", "ctrl-r", "ctrl-d"]),
        ("SA\x00\x01é", ["s", "a", "é"]),
        ("", []),
    ],
)
def test_keys_have_names(text, keys):
    assert keys_of(text) == keys


def test_requests_have_the_panels_keys():
    assert set(REQUEST_KEYS.values()) == set(REQUESTS) == set(ACTIONS)
    names = {"Backspace": "backspace", "Ctrl+Z": "ctrl-z", "Ctrl+R": "ctrl-r", "Space": "space", "Esc": "esc"}
    for name, action in ACTIONS.items():
        assert {REQUEST_KEYS[names.get(key, key.lower())] for key in action.keys} == {name}


def test_every_motion_has_a_key_each_way():
    assert set(MOTION_KEYS.values()) == {(motion, sign) for motion in MOTIONS for sign in (1, -1)}
    assert not set(MOTION_KEYS) & set(REQUEST_KEYS)


# --- motion


def test_a_tap_moves_for_a_moment_and_the_robot_stays_in_the_hand_a_little_longer():
    times = np.arange(0.0, GRIP_S + 0.1, 0.01)
    found = driven([0.0], times)
    assert [now_s for now_s, hands in zip(times, found) if hands == moving()] == pytest.approx(
        np.arange(0.0, TAP_S, 0.01)
    )
    assert all(hands == STANDING for now_s, hands in zip(times, found) if TAP_S < now_s < GRIP_S - 1e-6)
    assert found[-1] == FREE


@pytest.mark.parametrize(("delay_s", "every_s"), [(0.25, 1 / 10.9), (0.5, 0.033), (0.66, 0.04)])
def test_a_key_that_is_held_moves_on_after_the_keyboards_pause_and_is_never_given_back(delay_s, every_s):
    times = np.arange(0.0, 3.0, 0.005)
    found = driven(held_key(delay_s, every_s, 3.0), times)
    assert all(hands.held for hands in found)
    repeating = [hands for now_s, hands in zip(times, found) if now_s > delay_s + 2 * every_s + 0.005]
    assert all(hands == moving() for hands in repeating), "it moves without a gap"
    paused = [hands for now_s, hands in zip(times, found) if TAP_S < now_s < delay_s - 0.005]
    assert all(hands == STANDING for hands in paused)


def test_when_keys_cease_the_robot_stands_within_a_moment_and_is_given_back():
    """A key let go, a connection that hangs, a keyboard that is pulled out: a terminal shows no difference."""
    presses = held_key(0.5, 0.033, 2.0)
    last_s = presses[-1]
    times = last_s + np.array([HOLD_S - 0.01, HOLD_S + 0.01, GRIP_S - 0.01, GRIP_S + 0.01])
    assert driven(presses, times) == [moving(), STANDING, STANDING, FREE]


def test_what_piled_up_while_nobody_read_is_one_press():
    keyboard = Keyboard()
    keyboard.press(["up"] * 30, 5.0)
    assert keyboard.hands(5.0 + TAP_S + 0.01) == STANDING


def test_another_key_moves_otherwise_and_begins_with_a_tap():
    keyboard = Keyboard()
    for now_s in (0.0, 0.03, 0.06):
        keyboard.press(["up"], now_s)
    keyboard.press(["left"], 0.09)
    assert keyboard.hands(0.09) == moving("y")
    assert keyboard.hands(0.09 + TAP_S + 0.01) == STANDING


def test_two_speeds():
    keyboard = Keyboard()
    assert keyboard.press(["v", "down"], 0.0) == [] and keyboard.hands(0.0) == moving("x", -FAST)
    keyboard.press(["v", "down"], 1.0)
    assert keyboard.hands(1.0) == moving("x", -SLOW)


def test_a_request_ends_the_motion_and_one_after_it_counts():
    keyboard = Keyboard()
    assert keyboard.press(["up", "a"], 0.0) == ["success"] and not keyboard.hands(0.0).motions
    assert keyboard.press(["esc", "s", "up"], 1.0) == ["stop", "start"] and keyboard.hands(1.0) == moving()


# --- the robot in the hand


def test_enter_takes_the_robot_and_lets_it_go():
    keyboard = Keyboard()
    keyboard.press(["enter"], 0.0)
    assert keyboard.hands(100.0) == STANDING
    keyboard.press(["up"], 100.0)
    assert keyboard.hands(100.0) == moving() and keyboard.hands(200.0) == STANDING
    keyboard.press(["enter"], 200.0)
    assert keyboard.hands(200.0) == FREE


def test_enter_after_a_motion_lets_go_at_once():
    keyboard = Keyboard()
    keyboard.press(["up"], 0.0)
    keyboard.press(["enter"], 0.02)
    assert keyboard.hands(0.02) == FREE


def test_emergency_stop_is_released_by_pressing_twice():
    keyboard = Keyboard()
    assert keyboard.press(["ctrl-r"], 0.0) == [] and keyboard.asks_again(1.0)
    assert keyboard.press(["ctrl-r"], 5.0) == []  # too late
    assert keyboard.press(["ctrl-r"], 6.0) == ["release"]
    assert keyboard.press(["ctrl-r"], 6.1) == []


def test_it_is_known_when_the_hands_change_by_themselves():
    keyboard = Keyboard()
    assert keyboard.changes_s(0.0) == float("inf")
    keyboard.press(["up"], 0.0)
    assert keyboard.changes_s(0.0) == pytest.approx(TAP_S)
    assert keyboard.changes_s(TAP_S) == pytest.approx(GRIP_S - TAP_S)
