"""Who hands over in lock-step: the task's rule, a person who is late, or the classifier that learned from one."""

from __future__ import annotations

import numpy as np

from rlt_ros.core.handover import Approach, Classifier, PressRecorder, Trigger
from rlt_ros.core.observations import TokenFrame
from rlt_ros.sim.person import Habits


class Rule:
    """The moment at which the task's rule holds.  The others have the same methods."""

    def begin(self, episode: int, start_tick: int, scene: int) -> None:
        """An episode starts."""

    def see(self, frame: TokenFrame, heard: int) -> None:
        """A frame's token is known, at tick `heard`."""

    def now(self, tick: int, critical: bool) -> bool:
        """Whether to hand over at `tick`, in an approach; critical: the task's rule."""
        return critical

    def end(self, press_tick: int) -> None:
        """It is over; press_tick: -1 when nobody handed over."""


class Person(Rule):
    """Presses a reaction time after the rule holds, as the simulated person; what was seen is kept in `approaches`."""

    def __init__(self, spacing: int, period_s: float, reaction_s: tuple[float, float] = Habits.reaction_s) -> None:
        self.reaction_s, self.period_s = reaction_s, period_s
        self.recorder = PressRecorder(spacing, period_s)
        self.approaches: list[Approach] = []

    def begin(self, episode: int, start_tick: int, scene: int) -> None:
        self.recorder.begin(episode, start_tick)
        self._delay = round(np.random.default_rng([scene, 2]).uniform(*self.reaction_s) / self.period_s)
        self._due: int | None = None

    def see(self, frame: TokenFrame, heard: int) -> None:
        self.recorder.add(frame, heard)

    def now(self, tick: int, critical: bool) -> bool:
        if critical and self._due is None:
            self._due = tick + self._delay
        return self._due is not None and tick >= self._due

    def end(self, press_tick: int) -> None:
        if (approach := self.recorder.finish(press_tick)) is not None:
            self.approaches.append(approach)


class Learned(Rule):
    """The classifier, as handover_node asks it."""

    def __init__(self, classifier: Classifier, spacing: int, period_s: float) -> None:
        self.classifier = classifier
        self.trigger = Trigger(classifier.threshold, classifier.needed, classifier.window)
        self.recorder = PressRecorder(spacing, period_s)

    def begin(self, episode: int, start_tick: int, scene: int) -> None:
        self.recorder.begin(episode, start_tick)
        self.trigger.reset()

    def see(self, frame: TokenFrame, heard: int) -> None:
        if self.recorder.add(frame, heard):
            self.trigger.add(self.classifier.probability(frame.token, frame.proprio))

    def now(self, tick: int, critical: bool) -> bool:
        return self.trigger.suggested
