"""From gamepad axes and buttons to a human action, and back. Imports no ROS; the teleop node is wiring around it.

A layout says what is where on one kind of gamepad: motions of the tool by name on axes, requests on buttons. It knows
no task: actions are steered by the motion of their own name, or by the one that the robot file names for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

MOTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
REQUESTS = ("start", "hand_over", "success", "failure", "abort", "undo", "reset", "stop", "release")
DRIVERS = ("joy", "spacenav", "none")  # who reads the device: joy_node, spacenav_node, or somebody else (rlt teleop)
_KEYS = ("driver", "deadman", "dead_zone", "expo", "slow", "slow_speed", "slow_toggles", "motions", "buttons")


@dataclass(frozen=True)
class Button:
    """Something that is down or up: an index into Joy.buttons, or into Joy.axes, down beyond a value.

    beyond: None for a button; of an axis, above it when positive, below it when negative. Never 0: an axis that has not
    moved yet reads 0 with some drivers, whatever its rest is.
    """

    index: int
    beyond: float | None = None

    @property
    def place(self) -> str:
        if self.beyond is None:
            return f"button {self.index}"
        return f"axis {self.index} {'above' if self.beyond > 0.0 else 'below'} {self.beyond:g}"

    def down(self, axes: Sequence[float], buttons: Sequence[int]) -> bool:
        """Whether it is down; what is not there, or not a number, is up."""
        if self.beyond is None:
            return self.index < len(buttons) and bool(buttons[self.index])
        if self.index >= len(axes):
            return False
        return axes[self.index] > self.beyond if self.beyond > 0.0 else axes[self.index] < self.beyond

    def hold(self, axes: list[float], buttons: list[int]) -> None:
        """Set it down in a reading."""
        if self.beyond is None:
            buttons[self.index] = 1
        else:
            axes[self.index] = 1.0 if self.beyond > 0.0 else -1.0


@dataclass(frozen=True)
class Stick:
    """What steers one motion: an axis, or two buttons.  scale: normalised action at full stick; negative inverts."""

    scale: float
    axis: int = -1
    plus: Button | None = None
    minus: Button | None = None


@dataclass(frozen=True)
class Layout:
    """One gamepad file, checked.

    deadman: must be held to steer.  dead_zone: part of a stick's way that counts as zero.  expo: 0 is linear, 1 cubic,
    finer about the middle.  slow: while it is held, or from press to press with slow_toggles, everything is slow_speed
    times as fast; None: one speed.  motions: name of MOTIONS -> stick.  buttons: name of REQUESTS -> button.
    """

    name: str
    driver: str
    deadman: Button
    motions: Mapping[str, Stick]
    buttons: Mapping[str, Button]
    dead_zone: float = 0.1
    expo: float = 0.0
    slow: Button | None = None
    slow_speed: float = 0.3
    slow_toggles: bool = False

    @classmethod
    def from_mapping(cls, values: object, name: str = "gamepad") -> Layout:
        """From a file's contents; ValueError says the name, the key, the value and what was expected."""
        reader = _Reader(name)
        top = reader.mapping("", values, _KEYS)
        if "deadman" not in top:
            raise reader.wrong("deadman", "missing", "the button that must be held to steer")
        layout = cls(
            name=name,
            driver=reader.one_of("driver", top.get("driver", "joy"), DRIVERS),
            deadman=reader.button("deadman", top["deadman"]),
            motions={
                motion: reader.stick(f"motions.{motion}", value)
                for motion, value in reader.mapping("motions", top.get("motions", {}), MOTIONS).items()
            },
            buttons={
                request: reader.button(f"buttons.{request}", value)
                for request, value in reader.mapping("buttons", top.get("buttons", {}), REQUESTS).items()
            },
            dead_zone=reader.number("dead_zone", top.get("dead_zone", 0.1), 0.0, 0.9),
            expo=reader.number("expo", top.get("expo", 0.0), 0.0, 1.0),
            slow=None if top.get("slow") is None else reader.button("slow", top["slow"]),
            slow_speed=reader.number("slow_speed", top.get("slow_speed", 0.3), 0.01, 1.0),
            slow_toggles=bool(reader.one_of("slow_toggles", top.get("slow_toggles", False), (False, True))),
        )
        layout._expect_nothing_twice(reader)
        return layout

    @property
    def inputs(self) -> dict[str, Button]:
        """All that is down or up, by name."""
        found = {"deadman": self.deadman} | ({"slow": self.slow} if self.slow else {}) | dict(self.buttons)
        for motion, stick in self.motions.items():
            if stick.plus is not None:
                found |= {f"{motion} plus": stick.plus, f"{motion} minus": stick.minus}
        return found

    @property
    def axes(self) -> dict[str, int]:
        """Axes of the motions, by name."""
        return {motion: stick.axis for motion, stick in self.motions.items() if stick.plus is None}

    def missing(self, axes: int, buttons: int) -> str:
        """What a gamepad with so many of them lacks, and what it has; "" when it lacks nothing."""
        lacks = [f"{name}: axis {index}" for name, index in self.axes.items() if index >= axes]
        for name, button in self.inputs.items():
            if button.index >= (buttons if button.beyond is None else axes):
                lacks.append(f"{name}: {button.place}")
        if not lacks:
            return ""
        there = ", ".join(f"{n} {what} (0 to {n - 1})" if n else f"no {what}"
                          for n, what in ((axes, "axes"), (buttons, "buttons")))  # fmt: skip
        return f"the gamepad file '{self.name}' does not fit: {'; '.join(lacks)}; this gamepad has {there}"

    def curve(self, way: np.ndarray | float) -> np.ndarray | float:
        """Speed, 0 to 1, at a part of the stick's way beyond the dead zone, 0 to 1."""
        return (1.0 - self.expo) * way + self.expo * way**3

    def _expect_nothing_twice(self, reader: _Reader) -> None:
        taken: dict[tuple, str] = {}
        places = [(("axis", index), f"motions.{name}") for name, index in self.axes.items()]
        for name, button in self.inputs.items():
            kind = "button" if button.beyond is None else f"axis {'above' if button.beyond > 0.0 else 'below'}"
            places.append(((kind, button.index), name))
            if button.beyond is not None and ("axis", button.index) in dict(places):
                raise reader.wrong(name, button.place, "an axis that steers nothing")
        for place, name in places:
            if place in taken:
                raise reader.wrong(name, f"{place[0]} {place[1]}", f"another place than that of {taken[place]}")
            taken[place] = name


def load_layout(path: Path) -> Layout:
    """The layout of a file; OSError or ValueError say what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    return Layout.from_mapping(values, path.stem)


class Gamepad:
    """Maps readings of one gamepad to actions and requests; a lost gamepad ends the intervention.

    misfit: why the gamepad that is there cannot be steered with, "" when it can; known from the first reading on.
    oddity: what was wrong with the last reading, "" when nothing was.  idle: actions that nothing steers.
    """

    def __init__(
        self,
        layout: Layout,
        action_names: Sequence[str],
        steer: Mapping[str, str] | None = None,
        timeout_s: float = 0.3,
    ):
        """steer: action -> motion that steers it, with a minus sign to invert; an action that is not named is steered
        by the motion of its own name.  timeout_s: without a reading for so long the dead-man counts as released.
        ValueError names what does not exist."""
        self.layout, self.timeout_s = layout, timeout_s
        self._sticks: list[tuple[str, float] | None] = []  # for each action: motion and sign
        for action in steer or {}:
            if action not in action_names:
                raise ValueError(f"steer.{action}: the task has no such action; it has {', '.join(action_names)}")
        for action in action_names:
            motion = str((steer or {}).get(action, action))
            sign, motion = (-1.0, motion[1:]) if motion.startswith("-") else (1.0, motion)
            if action in (steer or {}) and motion not in MOTIONS:
                raise ValueError(
                    f"steer.{action}: got '{motion}', expected one of {', '.join(MOTIONS)}, or -x to invert; in quotes,"
                    " as ROS reads a bare y as true"
                )
            self._sticks.append((motion, sign) if motion in layout.motions else None)
        self.idle = [action for action, stick in zip(action_names, self._sticks) if stick is None]
        self.misfit = self.oddity = ""
        self.slow = False
        self._action: np.ndarray | None = None
        self._read_s = -np.inf
        self._counts: tuple[int, int] | None = None
        self._down: dict[str, bool] = {}

    def read(self, axes: Sequence[float], buttons: Sequence[int], now_s: float) -> list[str]:
        """Take one reading; return the requests whose button was pressed since the reading before.

        From a gamepad that does not fit only the emergency stop is taken: what its other buttons mean is not known.
        """
        self._read_s, self.oddity = now_s, ""
        if (len(axes), len(buttons)) != self._counts:
            self._counts = len(axes), len(buttons)
            self.misfit = self.layout.missing(*self._counts)
            self._down.clear()
        pressed = [name for name, button in self.layout.buttons.items() if self._pressed(name, button, axes, buttons)]
        if self.misfit:
            self._action = None
            return [name for name in pressed if name == "stop"]
        if self.layout.slow is not None:
            if not self.layout.slow_toggles:
                self.slow = self.layout.slow.down(axes, buttons)
            elif self._pressed("slow", self.layout.slow, axes, buttons):
                self.slow = not self.slow
        self._action = self._to_action(axes, buttons) if self.layout.deadman.down(axes, buttons) else None
        return pressed

    def action(self, now_s: float) -> np.ndarray | None:
        """The human's action [A] in [-1, 1], or None while the dead-man is released or the gamepad is silent."""
        return None if self.lost(now_s) else self._action

    def lost(self, now_s: float) -> bool:
        """True when the gamepad has been silent for longer than `timeout_s`."""
        return now_s - self._read_s > self.timeout_s

    def _pressed(self, name: str, button: Button, axes: Sequence[float], buttons: Sequence[int]) -> bool:
        down = button.down(axes, buttons)
        # The first reading sets the state only: a button held while the node starts is no press.
        before, self._down[name] = self._down.get(name, True), down
        return down and not before

    def _to_action(self, axes: Sequence[float], buttons: Sequence[int]) -> np.ndarray:
        action = np.zeros(len(self._sticks), np.float32)
        speed = self.layout.slow_speed if self.slow else 1.0
        for i, steered in enumerate(self._sticks):
            if steered is not None:
                motion, sign = steered
                action[i] = sign * speed * self._motion(self.layout.motions[motion], axes, buttons)
        return action.clip(-1.0, 1.0)

    def _motion(self, stick: Stick, axes: Sequence[float], buttons: Sequence[int]) -> float:
        if stick.plus is not None:
            return stick.scale * (stick.plus.down(axes, buttons) - stick.minus.down(axes, buttons))
        value = float(axes[stick.axis])
        if not np.isfinite(value):
            self.oddity = f"axis {stick.axis} is {value}, expected a finite number; it counts as 0"
            return 0.0
        zone = self.layout.dead_zone
        way = min(1.0, max(0.0, abs(value) - zone) / (1.0 - zone))
        return float(np.sign(value)) * self.layout.curve(way) * stick.scale


class VirtualPad:
    """A gamepad of some layout that is not there: for a keyboard, and for the simulated person."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        on_axes = [button.index for button in layout.inputs.values() if button.beyond is not None]
        on_buttons = [button.index for button in layout.inputs.values() if button.beyond is None]
        self._sizes = 1 + max([*layout.axes.values(), *on_axes], default=-1), 1 + max(on_buttons, default=-1)
        self._ways = np.linspace(0.0, 1.0, 1001)
        self._speeds = layout.curve(self._ways)

    def reading(self, motions: Mapping[str, float], held: Collection[str]) -> tuple[list[float], list[int]]:
        """Axes and buttons with which each motion has that part of its full speed, -1 to 1, while `held` (deadman,
        slow, requests) are down.  Motions and buttons that the layout does not have are left out."""
        axes, buttons = [0.0] * self._sizes[0], [0] * self._sizes[1]
        for motion, speed in motions.items():
            stick = self.layout.motions.get(motion)
            if stick is None or speed == 0.0:
                continue
            speed *= np.sign(stick.scale)
            if stick.plus is not None:
                (stick.plus if speed > 0.0 else stick.minus).hold(axes, buttons)
                continue
            way = np.interp(min(1.0, abs(speed)), self._speeds, self._ways)
            axes[stick.axis] = float(np.sign(speed) * (self.layout.dead_zone + (1.0 - self.layout.dead_zone) * way))
        for name in held:
            if name in self.layout.inputs:
                self.layout.inputs[name].hold(axes, buttons)
        return axes, buttons


def from_tool(action: np.ndarray, xy: tuple[int, int], scale: Sequence[float], yaw: float) -> np.ndarray:
    """An action [A] along the tool's axes as one along those of the base.

    Only the tool's yaw [rad] is known and commanded, so that is what it is turned by, about z.  xy: where the actions x
    and y stand.  scale: m a tick at action 1.  What would be more than 1 is shortened along its direction.
    """
    x, y = xy
    forth, left = float(action[x]) * scale[x], float(action[y]) * scale[y]
    turned = np.array(action, np.float32)
    turned[x] = (np.cos(yaw) * forth - np.sin(yaw) * left) / scale[x]
    turned[y] = (np.sin(yaw) * forth + np.cos(yaw) * left) / scale[y]
    turned[[x, y]] /= max(1.0, *np.abs(turned[[x, y]]))
    return turned


class _Reader:
    """Checks the values of one file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wrong(self, key: str, got: object, expected: str) -> ValueError:
        return ValueError(f"gamepad file '{self.name}': {key}: got {got}, expected {expected}")

    def mapping(self, key: str, value: object, known: Collection[str]) -> dict:
        if not isinstance(value, Mapping):
            raise self.wrong(key or "the file", repr(value), f"a mapping of {', '.join(known)}")
        for name in value:
            if name not in known:
                raise self.wrong(f"{key}.{name}" if key else str(name), "an unknown name", f"one of {', '.join(known)}")
        return dict(value)

    def one_of(self, key: str, value: object, known: Sequence) -> object:
        if not any(value is item or type(value) is type(item) and value == item for item in known):
            raise self.wrong(key, repr(value), f"one of {', '.join(map(str, known))}")
        return value

    def number(self, key: str, value: object, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(key, repr(value), f"a number from {low:g} to {high:g}")
        return float(value)

    def index(self, key: str, value: object, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, repr(value), f"the index of {what}, from 0 on")
        return value

    def button(self, key: str, value: object) -> Button:
        if not isinstance(value, Mapping):
            return Button(self.index(key, value, "a button, or {axis: i, above: 0.5} or {axis: i, below: -0.5}"))
        self.mapping(key, value, ("axis", "above", "below"))
        if "axis" not in value or ("above" in value) == ("below" in value):
            raise self.wrong(key, dict(value), "{axis: i, above: 0.5} or {axis: i, below: -0.5}")
        low, high = (0.05, 0.95) if "above" in value else (-0.95, -0.05)
        side = "above" if "above" in value else "below"
        return Button(
            self.index(f"{key}.axis", value["axis"], "an axis"), self.number(f"{key}.{side}", value[side], low, high)
        )

    def stick(self, key: str, value: object) -> Stick:
        values = self.mapping(key, value, ("axis", "plus", "minus", "scale"))
        scale = self.number(f"{key}.scale", values.get("scale"), -1.0, 1.0)
        if "axis" in values and not {"plus", "minus"} & set(values):
            return Stick(scale, self.index(f"{key}.axis", values["axis"], "an axis"))
        if "axis" not in values and {"plus", "minus"} <= set(values):
            sides = (self.button(f"{key}.{side}", values[side]) for side in ("plus", "minus"))
            return Stick(scale, -1, *sides)
        raise self.wrong(key, values, "an axis, or plus and minus, and a scale")
