"""One attempt at the task as a state machine: the person starts it, hands over, and says how it ended."""
from __future__ import annotations

from collections import deque
from enum import IntEnum
from statistics import median


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
    Phase.ENDED: "call episode/reset first",
}


class EpisodeMachine:
    """IDLE -start-> APPROACH -hand_over-> CRITICAL -success|failure|abort|time-out-> ENDED -reset-> IDLE.

    timeout_ticks: longest critical phase.  approach_timeout_ticks: longest approach.  Both in control ticks.
    Ticks of the current or last episode: start_tick, critical_tick, end_tick; -1 where not reached.
    """

    def __init__(self, timeout_ticks: int, approach_timeout_ticks: int):
        for name, value in (("timeout_ticks", timeout_ticks), ("approach_timeout_ticks", approach_timeout_ticks)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        self.timeout_ticks = timeout_ticks
        self.approach_timeout_ticks = approach_timeout_ticks
        self.episode = 0
        self.phase = Phase.IDLE
        self.outcome = Outcome.NONE
        self.start_tick = self.critical_tick = self.end_tick = -1
        self.counters = {outcome: 0 for outcome in Outcome if outcome is not Outcome.NONE}

    def start(self, tick: int) -> None:
        self._require("start", Phase.IDLE)
        self.episode += 1
        self.phase = Phase.APPROACH
        self.outcome = Outcome.NONE
        self.start_tick, self.critical_tick, self.end_tick = tick, -1, -1

    def hand_over(self, tick: int) -> None:
        self._require("hand over", Phase.APPROACH)
        self.phase = Phase.CRITICAL
        self.critical_tick = tick

    def success(self, tick: int) -> None:
        self._require("end with success", Phase.CRITICAL)
        self._end(tick, Outcome.SUCCESS)

    def failure(self, tick: int) -> None:
        self._require("end with failure", Phase.CRITICAL)
        self._end(tick, Outcome.FAILURE)

    def abort(self, tick: int) -> None:
        self._require("abort", Phase.APPROACH, Phase.CRITICAL)
        self._end(tick, Outcome.ABORTED)

    def reset(self, tick: int) -> None:
        """Back to IDLE from anywhere; an episode that was running counts as aborted."""
        if self.phase in (Phase.APPROACH, Phase.CRITICAL):
            self._end(tick, Outcome.ABORTED)
        self.phase = Phase.IDLE

    def step(self, tick: int) -> bool:
        """Apply the time-outs; True when one ended the episode."""
        late = (
            self.phase is Phase.APPROACH and tick - self.start_tick >= self.approach_timeout_ticks
            or self.phase is Phase.CRITICAL and tick - self.critical_tick >= self.timeout_ticks
        )
        if late:
            self._end(tick, Outcome.TIMEOUT)
        return late

    def _end(self, tick: int, outcome: Outcome) -> None:
        self.phase = Phase.ENDED
        self.outcome = outcome
        self.end_tick = tick
        self.counters[outcome] += 1

    def _require(self, what: str, *allowed: Phase) -> None:
        if self.phase not in allowed:
            names = " or ".join(phase.name for phase in allowed)
            raise EpisodeError(f"cannot {what}: phase is {self.phase.name}, expected {names}; {_NEXT[self.phase]}")


class Score:
    """How the newest episodes went, for the learner's status: hears every episode/state, counts each episode once."""

    def __init__(self, window: int = 20) -> None:
        self.phase = Phase.IDLE
        self._counted = -1
        self._ended: deque[tuple[float, bool, int]] = deque(maxlen=window)  # (time [s], success, critical ticks)
        self._began_s: float | None = None

    def see(self, episode: int, phase: Phase, outcome: Outcome, critical_ticks: int, now_s: float) -> None:
        """A state of `episode`; aborted ones do not count."""
        self.phase = phase
        if self._began_s is None:
            self._began_s = now_s
        if outcome is Outcome.NONE or episode <= self._counted:
            return
        self._counted = episode
        if outcome is Outcome.ABORTED:
            return
        if len(self._ended) == self._ended.maxlen:
            self._began_s = self._ended[0][0]  # the window begins where the episode that leaves it ended
        self._ended.append((now_s, outcome is Outcome.SUCCESS, critical_ticks))

    @property
    def success_rate(self) -> float:
        return sum(success for _, success, _ in self._ended) / len(self._ended) if self._ended else 0.0

    @property
    def median_steps(self) -> float:
        """Control ticks of the critical phase, median of the successes; 0 without one."""
        return float(median([ticks for _, success, ticks in self._ended if success] or [0]))

    @property
    def successes_per_10min(self) -> float:
        """Over the wall time from the end of the episode before the window, pauses included."""
        seconds = self._ended[-1][0] - self._began_s if self._ended else 0.0
        return 600.0 * sum(success for _, success, _ in self._ended) / seconds if seconds > 0.0 else 0.0
