"""From gamepad axes and buttons to a human action. Pure numpy; the teleop node is wiring around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Gamepad:
    """Maps one gamepad reading to an action and to button presses; a lost gamepad ends the intervention.

    Args:
        axes: index into Joy.axes for each action component in their order, -1 disables the component.
        scale: action at full stick for each component, normalised; negative inverts.
        deadman: index into Joy.buttons of the button that must be held, required (a gamepad without one moves nothing).
        dead_zone: stick range around zero that counts as zero, 0 to 1.
        timeout_s: without a reading for so long the dead-man counts as released.
        buttons: name of a request -> button index, -1 disables.
        action_dim: actions of the task. Entries of `axes` beyond them are not used, actions beyond the entries are not
        steered
            (0). None: one action an entry.

    Raises:
        ValueError: wrong lengths or ranges, by name.
    """

    axes: Sequence[int]
    scale: Sequence[float]
    deadman: int
    dead_zone: float = 0.1
    timeout_s: float = 0.3
    buttons: Mapping[str, int] = field(default_factory=dict)
    action_dim: int | None = None

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.scale):
            raise ValueError(f"gamepad: {len(self.axes)} axes but {len(self.scale)} scales; give one scale an axis")
        if self.action_dim is not None:
            self.axes = ([*self.axes] + [-1] * self.action_dim)[: self.action_dim]
            self.scale = ([*self.scale] + [0.0] * self.action_dim)[: self.action_dim]
        if self.deadman < 0:
            raise ValueError(f"gamepad: deadman button {self.deadman} is disabled; a dead-man button is required")
        if not 0.0 <= self.dead_zone < 1.0:
            raise ValueError(f"gamepad: dead_zone {self.dead_zone}, expected 0 <= dead_zone < 1")
        self._action: np.ndarray | None = None
        self._read_s = -np.inf
        self._down: dict[str, bool] = {}
        self.out_of_range: str = ""  # what the last reading lacked, for diagnostics

    def read(self, axes: Sequence[float], buttons: Sequence[int], now_s: float) -> list[str]:
        """Take one reading; return the requests whose button was pressed since the reading before."""
        self._read_s = now_s
        self.out_of_range = ""
        held = self._button(buttons, self.deadman, "deadman")
        self._action = self._to_action(axes) if held else None
        pressed = []
        for name, index in self.buttons.items():
            down = index >= 0 and self._button(buttons, index, name)
            # The first reading sets the state only: a button held while the node starts is no press.
            if down and not self._down.get(name, True):
                pressed.append(name)
            self._down[name] = down
        return pressed

    def action(self, now_s: float) -> np.ndarray | None:
        """The human's action [A] in [-1, 1], or None while the dead-man is released or the gamepad is silent."""
        return None if self.lost(now_s) else self._action

    def lost(self, now_s: float) -> bool:
        """True when the gamepad has been silent for longer than `timeout_s`."""
        return now_s - self._read_s > self.timeout_s

    def _button(self, buttons: Sequence[int], index: int, name: str) -> bool:
        if index >= len(buttons):
            self.out_of_range = f"button '{name}' is index {index}, the gamepad has {len(buttons)} buttons"
            return False
        return bool(buttons[index])

    def _to_action(self, axes: Sequence[float]) -> np.ndarray:
        action = np.zeros(len(self.axes), np.float32)
        for component, (index, scale) in enumerate(zip(self.axes, self.scale, strict=True)):
            if index < 0:
                continue
            if index >= len(axes):
                self.out_of_range = f"axis of component {component} is index {index}, the gamepad has {len(axes)} axes"
                continue
            value = float(axes[index])
            if not np.isfinite(value):
                self.out_of_range = f"axis {index} is {value}, expected a finite number"
                continue
            beyond = max(0.0, abs(value) - self.dead_zone) / (1.0 - self.dead_zone)
            action[component] = np.clip(np.sign(value) * beyond * scale, -1.0, 1.0)
        return action
