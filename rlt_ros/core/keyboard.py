"""Steering by the keys of a terminal, which says that a key goes down, and again while it is held, but never that it
goes up. Imports no ROS; `rlt teleop` is wiring around it.

A key that is held comes once, then after the keyboard's delay (0.2 to 0.7 s) every 30 to 90 ms. So a first press moves
for TAP_S only, and a press that follows within HOLD_S of the same key is the keyboard's repetition and moves for HOLD_S
more: a tap is short, a hold begins with a tap and a pause, and when no key comes any more, for whatever reason, the
robot stands within HOLD_S. Meanwhile it stays in the person's hand for GRIP_S, standing, so that the pause of the
keyboard does not give the robot back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TAP_S, HOLD_S, GRIP_S = 0.06, 0.15, 1.0
SLOW, FAST = 0.15, 0.6  # of full speed; a key is all or nothing
AGAIN_S = 2.0  # in which the key that releases the emergency stop must be pressed again

MOTION_KEYS = {
    "up": ("x", 1), "down": ("x", -1), "left": ("y", 1), "right": ("y", -1),
    "pgup": ("z", 1), "pgdn": ("z", -1), "u": ("z", 1), "d": ("z", -1),
    ",": ("yaw", 1), ".": ("yaw", -1), "i": ("pitch", 1), "k": ("pitch", -1), "j": ("roll", -1), "l": ("roll", 1),
    "o": ("gripper", 1), "c": ("gripper", -1),
}  # fmt: skip
# As on the panel.
REQUEST_KEYS = {
    "s": "start", "h": "hand_over", "a": "success", "b": "failure", "backspace": "abort", "ctrl-z": "undo",
    "r": "reset", "space": "stop", "esc": "stop", "ctrl-r": "release",
}  # fmt: skip
KEEP, SPEED, HELP, END = "enter", "v", "?", "ctrl-d"

_NAMED = {
    "\x1b": "esc", " ": "space", "\x7f": "backspace", "\x08": "backspace", "\x1a": "ctrl-z", "\x12": "ctrl-r",
    "\r": "enter", "\n": "enter", "\x04": "ctrl-d",
}  # fmt: skip
_SEQUENCES = {"A": "up", "B": "down", "C": "right", "D": "left", "5~": "pgup", "6~": "pgdn"}


def keys_of(text: str) -> list[str]:
    """Names of the keys in what a terminal sent; sequences of keys that have no name here are left out.

    An escape that begins no sequence is the key itself: in doubt the robot is stopped.
    """
    keys, i = [], 0
    while i < len(text):
        if text[i] == "\x1b" and text[i + 1 : i + 2] in ("[", "O") and text[i + 2 : i + 3]:
            end = i + 2
            while end < len(text) - 1 and not "@" <= text[end] <= "~":
                end += 1
            keys.append(_SEQUENCES.get(text[i + 2 : end + 1], ""))
            i = end + 1
        else:
            keys.append(_NAMED.get(text[i], text[i].lower() if text[i].isprintable() else ""))
            i += 1
    return [key for key in keys if key]


@dataclass(frozen=True)
class Hands:
    """What the person does: holds the dead-man, and moves (name of a motion -> part of its full speed, -1 to 1)."""

    held: bool
    motions: dict[str, float]


class Keyboard:
    """What the keys of a terminal mean.

    fast: the faster one of two speeds.  kept: the robot stays in the person's hand, standing, until let go.
    """

    def __init__(self) -> None:
        self.fast = self.kept = False
        self._key, self._key_s, self._moves_until_s, self._grip_until_s = "", -1e9, -1e9, -1e9
        self._release_s = -1e9

    def press(self, keys: Sequence[str], now_s: float) -> list[str]:
        """Take keys that came at once; return the requests in order.

        What has piled up is no hand that holds a key: of several motions the last one counts, as one press.
        """
        requests, moving = [], ""
        for key in keys:
            if key in MOTION_KEYS:
                moving = key
            elif key in REQUEST_KEYS:
                moving, self._moves_until_s = "", now_s
                if REQUEST_KEYS[key] != "release" or self._pressed_twice(now_s):
                    requests.append(REQUEST_KEYS[key])
            elif key == KEEP:
                self.kept = not self.hands(now_s).held
                moving, self._moves_until_s, self._grip_until_s = "", now_s, now_s
            elif key == SPEED:
                self.fast = not self.fast
        if moving:
            repeated = moving == self._key and now_s - self._key_s <= HOLD_S
            self._key, self._key_s = moving, now_s
            self._moves_until_s = now_s + (HOLD_S if repeated else TAP_S)
            self._grip_until_s = now_s + GRIP_S
        return requests

    def _pressed_twice(self, now_s: float) -> bool:
        twice = self.asks_again(now_s)
        self._release_s = -1e9 if twice else now_s
        return twice

    def asks_again(self, now_s: float) -> bool:
        """Whether the release of the emergency stop waits for its second press."""
        return now_s - self._release_s <= AGAIN_S

    def hands(self, now_s: float) -> Hands:
        """What the person does now."""
        motion, sign = MOTION_KEYS.get(self._key, ("", 0))
        moves = now_s < self._moves_until_s
        return Hands(
            self.kept or moves or now_s < self._grip_until_s,
            {motion: sign * (FAST if self.fast else SLOW)} if moves else {},
        )

    def changes_s(self, now_s: float) -> float:
        """Seconds until `hands` changes by itself; infinite when it does not."""
        ends = [end - now_s for end in (self._moves_until_s, self._grip_until_s) if end > now_s]
        return min(ends, default=float("inf"))
