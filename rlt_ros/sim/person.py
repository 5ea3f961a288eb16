"""A simulated person beside the robot: sees with delay, presses buttons late, steers imprecisely. Imports no ROS.

It stands in for the operator in `rlt practice`, and reaches the system through the person's own interfaces only: the
episode services and the gamepad.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from rlt_ros.core.episode import Outcome, Phase


@dataclass(frozen=True)
class View:
    """What a person sees of the task at one moment: metres and radians, plug relative to jack."""

    offset: np.ndarray  # [3] plug tip minus jack mouth in the jack's frame; the last value is the height over it
    yaw_error: float
    critical: bool
    success: bool
    failure: bool = False


@dataclass
class Habits:
    """How the simulated person behaves. Seconds; the shares are probabilities of an episode."""

    reaction_s: tuple[float, float] = (0.15, 0.3)  # from seeing to pressing
    rest_s: float = 1.3  # between the end of an episode and the next reset
    intervention_share: float = 0.2  # of the episodes have an intervention
    intervention_after_s: tuple[float, float] = (1.0, 3.0)  # of critical phase without success
    intervention_s: tuple[float, float] = (0.8, 1.6)
    helps_after: int = 3  # episodes in a row without success: the next one is done by hand.  0: never
    steering_noise_m: float = 0.0005  # standard deviation of the offset that the person believes to see
    hands_over: bool = True  # false: somebody else does
    demonstrates: bool = False  # drives from start to end, so that nobody has to hand over
    give_up_offset_m: float = 0.03  # further away than this in the critical phase is a failure


@dataclass
class Wish:
    """What the person does now: `requests` are button presses, `stick` is [4] in [-1, 1] while the dead-man is held.

    by_hand: does what is left of the episode, with more care than `stick` has.
    """

    requests: list[str] = field(default_factory=list)
    stick: np.ndarray | None = None
    by_hand: bool = False


class SimulatedPerson:
    """Call `see` with every view and `act` some twenty times a second.

    The requests are `sim_reset` and those of the episode services: `reset start hand_over success failure`.
    """

    def __init__(self, habits: Habits, seed: int) -> None:
        self.habits = habits
        self.random = np.random.default_rng(seed)
        # Kept by count, so the count must cover the reaction time at any rate at which the world can be told.
        self._views: deque[tuple[float, View]] = deque(maxlen=20_000)
        self._phase = Phase.IDLE
        self._phase_since_s = -np.inf
        self._reaction_s = self._between(habits.reaction_s)
        self._asked_s = -np.inf
        self._scene_ready = False
        self._takeover: tuple[float, float] | None = None
        self._belief_error = np.zeros(3)
        self._in_vain = 0  # episodes in a row without success
        self._by_hand = False

    def see(self, now_s: float, view: View) -> None:
        """Take in one view; `act` will know of it after the reaction time."""
        self._views.append((now_s, view))

    def scene_is_reset(self) -> None:
        """The simulator has answered `sim_reset`: what was seen before is past."""
        self._views.clear()
        self._scene_ready = True
        self._asked_s = -np.inf  # whoever is answered need not ask again before going on

    def was_not_heard(self) -> None:
        """Nobody was there to be asked: to be tried again at once."""
        self._asked_s = -np.inf

    def act(self, now_s: float, phase: Phase, outcome: Outcome = Outcome.NONE) -> Wish:
        """What the person does at `now_s`, given the episode's phase as the panel shows it."""
        if phase != self._phase:
            self._enter(phase, now_s, outcome)
        view = self._seen(now_s)
        # A request is repeated once a second until the phase shows that it was heard.
        may_ask = now_s - self._asked_s > 1.0
        request = self._request(now_s, view) if may_ask else ""
        if request:
            self._asked_s = now_s
        return Wish([request] if request else [], self._stick(now_s, view), self._by_hand and view is not None)

    def _enter(self, phase: Phase, now_s: float, outcome: Outcome) -> None:
        self._phase, self._phase_since_s = phase, now_s
        self._reaction_s = self._between(self.habits.reaction_s)
        self._asked_s = -np.inf
        self._takeover = None
        if phase == Phase.ENDED:
            self._scene_ready = False
            # After one by hand the robot may try again.
            done = self._by_hand or outcome is Outcome.SUCCESS
            self._in_vain = 0 if done else self._in_vain + (outcome is not Outcome.ABORTED)
        self._by_hand = phase == Phase.CRITICAL and 0 < self.habits.helps_after <= self._in_vain
        intervenes = phase == Phase.CRITICAL and self.random.random() < self.habits.intervention_share
        if intervenes and not self._by_hand:
            begin = now_s + self._between(self.habits.intervention_after_s)
            self._takeover = (begin, begin + self._between(self.habits.intervention_s))
            self._belief_error = self.random.normal(0.0, self.habits.steering_noise_m, 3)

    def _request(self, now_s: float, view: View | None) -> str:
        if self._phase == Phase.ENDED:
            return "reset" if now_s - self._phase_since_s > self.habits.rest_s else ""
        if self._phase == Phase.IDLE:
            if not self._scene_ready:
                return "sim_reset"
            return "start" if view is not None else ""
        if view is None:
            return ""
        if self._phase == Phase.APPROACH and not self.habits.demonstrates:
            return "hand_over" if view.critical and self.habits.hands_over else ""
        if view.success:
            return "success"
        if self.habits.demonstrates:
            return "failure" if view.failure else ""
        return "failure" if view.failure or np.linalg.norm(view.offset) > self.habits.give_up_offset_m else ""

    def _stick(self, now_s: float, view: View | None) -> np.ndarray | None:
        if self._takeover is None or view is None or not self._takeover[0] <= now_s <= self._takeover[1]:
            return None
        offset = view.offset + self._belief_error
        if not np.isfinite(offset).all():
            return None  # the task does not say where the goal is: no idea where to steer
        stick = np.zeros(4)
        stick[:2] = np.clip(-offset[:2] / 0.002, -1.0, 1.0)  # full stick at 2 mm
        aligned = np.hypot(*offset[:2]) < 0.0008
        stick[2] = -0.7 if aligned else (0.3 if offset[2] < 0.001 else 0.0)
        stick[3] = np.clip(-np.nan_to_num(view.yaw_error) / 0.05, -1.0, 1.0)
        return stick + self.random.normal(0.0, 0.05, 4)

    def _seen(self, now_s: float) -> View | None:
        """The newest view that is at least one reaction time old."""
        seen = None
        for when, view in self._views:
            if when > now_s - self._reaction_s:
                break
            seen = view
        return seen

    def _between(self, bounds: tuple[float, float]) -> float:
        return float(self.random.uniform(*bounds))
