"""One attempt at the task as a state machine: the person starts it, hands over, and says how it ended."""
from __future__ import annotations

from collections import deque
from enum import IntEnum
from statistics import median
from typing import NamedTuple


class Phase(IntEnum):
    IDLE = 0  # nothing moves on its own
    APPROACH = 1  # the VLA acts
    CRITICAL = 2  # the actor acts and transitions are stored
    ENDED = 3  # the outcome is known; waits for a reset


class Outcome(IntEnum):
    NONE = 0
    SUCCESS = 1
    FAILURE = 2
    TIMEOUT = 3
    ABORTED = 4


class EpisodeError(RuntimeError):
    """A request that the current phase does not allow; the text says what to do instead."""


_NEXT = {
    Phase.IDLE: "call episode/start first",
    Phase.APPROACH: "call episode/hand_over or episode/abort first",
    Phase.CRITICAL: "end the episode first (episode/success, failure or abort)",
    Phase.ENDED: "call episode/reset first",  # or, with the label taken back, success, failure or abort
}


class EpisodeMachine:
    """IDLE -start-> APPROACH -hand_over-> CRITICAL -success|failure|abort|time-out-> ENDED -reset-> IDLE.

    A label can be taken back (`undo`) and given again until the episode is committed: by the next reset, or undo_ticks
    after the label.  Nothing is learned from an episode's end before that.

    timeout_ticks: longest critical phase.  approach_timeout_ticks: longest approach.  reaction_ticks: by so much a
    person presses later than it happened; labels count for the earlier tick.  All in control ticks.
    label_any_time: success and failure end the approach too, as where a person demonstrates and nobody hands over.
    Ticks of the current or last episode: start_tick, critical_tick, end_tick; -1 where not reached.
    """

    def __init__(self, timeout_ticks: int, approach_timeout_ticks: int, undo_ticks: int = 0, reaction_ticks: int = 0,
                 label_any_time: bool = False):
        for name, value in (("timeout_ticks", timeout_ticks), ("approach_timeout_ticks", approach_timeout_ticks)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        self.timeout_ticks = timeout_ticks
        self.approach_timeout_ticks = approach_timeout_ticks
        self.undo_ticks = undo_ticks
        self.reaction_ticks = reaction_ticks
        self.label_any_time = label_any_time
        self.episode = 0
        self.phase = Phase.IDLE
        self.outcome = Outcome.NONE
        self.start_tick = self.critical_tick = self.end_tick = -1
        self.committed = True  # nothing is open
        self._labelled_tick = -1  # of the newest label
        self.counters = {outcome: 0 for outcome in Outcome if outcome is not Outcome.NONE}

    def start(self, tick: int) -> None:
        self._require("start", Phase.IDLE)
        self.episode += 1
        self.phase = Phase.APPROACH
        self.outcome = Outcome.NONE
        self.committed = False
        self.start_tick, self.critical_tick, self.end_tick = tick, -1, -1

    def hand_over(self, tick: int) -> None:
        self._require("hand over", Phase.APPROACH)
        self.phase = Phase.CRITICAL
        self.critical_tick = tick

    def success(self, tick: int) -> None:
        self._label("end with success", tick, Outcome.SUCCESS)

    def failure(self, tick: int) -> None:
        self._label("end with failure", tick, Outcome.FAILURE)

    def abort(self, tick: int) -> None:
        if not self.unlabelled:
            self._require("abort", Phase.APPROACH, Phase.CRITICAL)
        self._end(tick, Outcome.ABORTED)

    @property
    def unlabelled(self) -> bool:
        """The episode is over, its label was taken back and no other given yet."""
        return self.phase is Phase.ENDED and self.outcome is Outcome.NONE

    def undo(self, tick: int) -> None:
        """Take the label back: the robot stays held, and success, failure or abort say what it really was."""
        if self.phase is not Phase.ENDED or self.committed or self.outcome is Outcome.NONE:
            why = "it is learned from already" if self.phase is Phase.ENDED and self.committed else "there is no label"
            raise EpisodeError(f"cannot undo: {why}; a label can be taken back until the reset after it, and for"
                               f" {self.undo_ticks} ticks at most")
        self.counters[self.outcome] -= 1
        self.outcome = Outcome.NONE

    def reset(self, tick: int) -> None:
        """Back to IDLE from anywhere; an episode that was running or has no label counts as aborted."""
        if self.phase in (Phase.APPROACH, Phase.CRITICAL) or self.unlabelled:
            self._end(tick, Outcome.ABORTED)
        self.committed = True
        self.phase = Phase.IDLE

    def step(self, tick: int) -> bool:
        """Apply the time-outs; True when one ended the episode or closed it for `undo`."""
        if self.phase is Phase.ENDED and not self.committed and not self.unlabelled:
            self.committed = tick - self._labelled_tick >= self.undo_ticks
            return self.committed
        late = (
            self.phase is Phase.APPROACH and tick - self.start_tick >= self.approach_timeout_ticks
            or self.phase is Phase.CRITICAL and tick - self.critical_tick >= self.timeout_ticks
        )
        if late:
            self._end(tick, Outcome.TIMEOUT)
        return late

    def _label(self, what: str, tick: int, outcome: Outcome) -> None:
        """What a person says, who pressed reaction_ticks after it happened."""
        if not self.unlabelled:
            self._require(what, *([Phase.APPROACH] if self.label_any_time else []), Phase.CRITICAL)
        self._end(tick, outcome, max(self.start_tick, self.critical_tick, tick - self.reaction_ticks))

    def _end(self, tick: int, outcome: Outcome, happened: int | None = None) -> None:
        if not self.unlabelled:  # a label that is given again says what happened, not when
            self.end_tick = tick if happened is None else happened
        self.phase = Phase.ENDED
        self.outcome = outcome
        self._labelled_tick = tick
        self.committed = self.undo_ticks == 0
        self.counters[outcome] += 1

    def _require(self, what: str, *allowed: Phase) -> None:
        if self.phase not in allowed:
            names = " or ".join(phase.name for phase in allowed)
            raise EpisodeError(f"cannot {what}: phase is {self.phase.name}, expected {names}; {_NEXT[self.phase]}")


class Ended(NamedTuple):
    """How an episode went."""

    number: int
    outcome: Outcome
    steps: int  # control ticks of the critical phase; 0: it never came to the hand-over
    helped: bool = False  # a person steered in its critical phase

    @property
    def alone(self) -> bool:
        """A success without help."""
        return self.outcome is Outcome.SUCCESS and not self.helped


class Score:
    """How the newest episodes went: hears every episode/state, counts each episode once."""

    def __init__(self, window: int = 20) -> None:
        self.phase = Phase.IDLE
        self._counted = -1
        self._ended: deque[tuple[float, Ended]] = deque(maxlen=window)  # when (s), and how
        self._began_s: float | None = None

    def see(
        self, episode: int, phase: Phase, outcome: Outcome, critical_ticks: int, now_s: float, helped: bool = False
    ) -> bool:
        """A state of `episode`; True when it has just ended. Aborted ones do not count.

        helped: a person steered in its critical phase.
        """
        self.phase = phase
        if self._began_s is None:
            self._began_s = now_s
        if outcome is Outcome.NONE or episode <= self._counted:
            return False
        self._counted = episode
        if outcome is Outcome.ABORTED:
            return True
        if len(self._ended) == self._ended.maxlen:
            self._began_s = self._ended[0][0]  # the window begins where the episode that leaves it ended
        self._ended.append((now_s, Ended(episode, outcome, critical_ticks, helped)))
        return True

    def __len__(self) -> int:
        """Episodes in the window."""
        return len(self._ended)

    @property
    def success_rate(self) -> float:
        """Share of the window's episodes that succeeded without help; 0 before the first."""
        return self._alone / len(self._ended) if self._ended else 0.0

    @property
    def helped_rate(self) -> float:
        """Share of the window's episodes that succeeded with a person's help; 0 before the first."""
        won = sum(ended.outcome is Outcome.SUCCESS for _, ended in self._ended)
        return (won - self._alone) / len(self._ended) if self._ended else 0.0

    @property
    def median_steps(self) -> float:
        """Control ticks of the critical phase, median of the successes without help; 0 without one."""
        return float(median([ended.steps for _, ended in self._ended if ended.alone] or [0]))

    @property
    def successes_per_10min(self) -> float:
        """Those without help, over the wall time from the end of the episode before the window, pauses included."""
        seconds = self._ended[-1][0] - self._began_s if self._ended else 0.0
        return 600.0 * self._alone / seconds if seconds > 0.0 else 0.0

    @property
    def _alone(self) -> int:
        return sum(ended.alone for _, ended in self._ended)
