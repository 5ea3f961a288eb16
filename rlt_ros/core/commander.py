"""Who moves the robot at each tick: human, reference or actor; and when nobody should."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlt_ros.core.chunks import Chunk, Rows, Source
from rlt_ros.core.episode import Phase
from rlt_ros.core.joining import ramp
from rlt_ros.core.observations import ReferenceBuffer, TokenBuffer, TokenFrame, rl_proprio

# (token [D], rl_proprio [2P], reference [C, A]) -> mean chunk [C, A]
Policy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# That a human's action lasts without news: the release message is sent once, and its sender can die.
HUMAN_TIMEOUT_STEPS, HUMAN_TIMEOUT_S = 5, 0.1
# Ticks in which a person's action comes into its own: fewer than join_ticks, for a person who takes over is in a hurry.
HUMAN_JOIN_TICKS = 2


def human_timeout_steps(period_s: float) -> int:
    """The same in control ticks: 5, or 0.1 s where they are shorter than 20 ms, as no person's hand is any faster."""
    return max(HUMAN_TIMEOUT_STEPS, round(HUMAN_TIMEOUT_S / period_s))


@dataclass(frozen=True)
class Command:
    """candidate: what to do from this tick on.  planned: the new C-step chunk, on ticks when one was computed.
    hold_reason: why the candidate holds still, "" when it does not."""

    candidate: Chunk
    planned: Chunk | None = None
    hold_reason: str = ""


class _Hold(Exception):
    """Nothing may move now; the text is the reason."""


class Commander:
    """Line 7 of Algorithm 1 on a clock: human > warm-up reference (no policy yet) > actor, in chunks of C ticks.

    Chunks start on the grid tick % C == 0, and off it when there is none to go on with (hand-over, release,
    data that came late); the next grid tick then replaces them.  Not thread-safe: call everything from one thread.
    """

    def __init__(
        self,
        action_dim: int,
        chunk_steps: int,
        latency_ticks: int,
        max_age_ticks: int,
        lookahead_steps: int = 3,
        exploration_std: float = 0.0,
        seed: int = 0,
        join_ticks: int = 0,
        human_timeout: int = HUMAN_TIMEOUT_STEPS,
        angles: Sequence[int] = (),
    ):
        """join_ticks: a new chunk is begun near the action before it, and is itself so many ticks later; 0: at once.
        A person's action is itself after HUMAN_JOIN_TICKS of them at most.
        human_timeout: ticks that a human's action lasts without news.  angles: as of rl_proprio."""
        sizes = (("action_dim", action_dim), ("chunk_steps", chunk_steps), ("lookahead_steps", lookahead_steps))
        for name, value in sizes:
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        self.action_dim = action_dim
        self.chunk_steps = chunk_steps
        self.lookahead_steps = lookahead_steps
        self.exploration_std = exploration_std
        self.policy: Policy | None = None
        self.policy_version = 0
        self._offered: tuple[Policy, int] | None = None
        if join_ticks < 0:
            raise ValueError(f"join_ticks: got {join_ticks}, expected 0 (chunks are not joined) or more")
        self.join_ticks = join_ticks
        self.human_timeout = human_timeout
        self.angles = tuple(angles)
        self._ages = latency_ticks, max_age_ticks
        self._rng = np.random.default_rng(seed)
        self._phase = Phase.IDLE
        self._since_tick = 0
        self._episode = 0
        self.begin_anew()
        self._human: np.ndarray | None = None
        self._human_age = 0
        self._taken_over: tuple[int, np.ndarray] | None = None  # at which tick, and the action before it

    def begin_anew(self) -> None:
        """Forget what was seen and commanded, as after a clock that was set back."""
        self._tokens, self._references = TokenBuffer(*self._ages), ReferenceBuffer(*self._ages)
        self._plan: Chunk | None = None
        self._last: Chunk | None = None  # what was commanded last, by whomever

    # --- what comes in ----------------------------------------

    def add_reference(self, chunk: Chunk) -> None:
        if chunk.action_dim != self.action_dim:
            raise ValueError(f"reference: {chunk.action_dim} actions a step, expected {self.action_dim}")
        self._references.add(chunk)

    def add_state(self, frame: TokenFrame) -> None:
        """What the VLA saw in a frame."""
        self._tokens.add(frame)

    def set_phase(self, phase: Phase, since_tick: int, episode: int) -> None:
        """since_tick: start of the episode; nothing observed before it is used.  Repeating a state is harmless."""
        if (phase, since_tick, episode) == (self._phase, self._since_tick, self._episode):
            return
        self._phase, self._since_tick, self._episode = Phase(phase), since_tick, episode
        self._plan = None

    def set_human(self, action: np.ndarray | None) -> None:
        """The human's action [A] for the coming ticks, to be repeated while it holds; None on release."""
        if action is not None:
            action = np.array(action, dtype=np.float32)
            if action.shape != (self.action_dim,) or not np.isfinite(action).all():
                raise ValueError(f"human action: got {action}, expected {self.action_dim} finite numbers")
            action = action.clip(-1.0, 1.0)
        self._human = action
        self._human_age = 0
        self._plan = None  # on release nobody goes on with what was planned before

    def offer_policy(self, policy: Policy, version: int) -> None:
        """Use `policy` from the next chunk on; a chunk that is under way is finished as planned."""
        self._offered = (policy, version)

    # --- what goes out ----------------------------------------

    def step(self, tick: int, proprio: Sequence[float] | np.ndarray | None) -> Command:
        """The command for `tick`.  proprio: [P] now, SI, None when it is missing or stale."""
        command = self._step(tick, proprio)
        self._last = command.candidate
        if self._last.source is not Source.HUMAN:
            self._taken_over = None
        return command

    def _step(self, tick: int, proprio: Sequence[float] | np.ndarray | None) -> Command:
        try:
            if self._human is not None:
                return Command(self._human_chunk(tick))
            if self._phase not in (Phase.APPROACH, Phase.CRITICAL):
                raise _Hold(f"phase is {self._phase.name}")
            if proprio is None:
                raise _Hold("no proprioception")
            planned = None
            if self._plan is None or not self._plan.covers(tick) or tick % self.chunk_steps == 0:
                self._plan = None  # stays so when planning fails: no going on past a boundary
                self._plan = planned = self._new_plan(tick, proprio)
            begin = tick - self._plan.tick
            ahead = self._plan.rows[begin : begin + self.lookahead_steps]
            # At the end of a chunk its last action is repeated: it is the next one's computing that may come late.
            ahead += ahead[-1:] * (self.lookahead_steps - len(ahead))
            return Command(self._chunk(tick, ahead, self._plan.observation_tick,
                                       self._plan.source, self._plan.policy_version), planned)
        except _Hold as hold:
            self._plan = None
            actions = np.zeros((1, self.action_dim), dtype=np.float32)
            return Command(self._chunk(tick, actions, tick, Source.HOLD, 0), hold_reason=str(hold))

    def _human_chunk(self, tick: int) -> Chunk:
        self._human_age += 1
        if self._human_age > self.human_timeout:
            raise _Hold("human command lost; release or press the dead-man again")
        if self._taken_over is None or tick < self._taken_over[0]:  # the clock was set back
            self._taken_over = tick, self._before(tick)
        since, before = self._taken_over
        # The person has a say from the first tick on: the action before it counts 2/3, 1/3, 0.
        steps = min(HUMAN_JOIN_TICKS, self.join_ticks)
        keep = (1.0 - (1.0 + tick - since + np.arange(self.lookahead_steps, dtype=np.float32)) / (steps + 1)).clip(0.0)
        actions = self._human + keep[:, None] * (before - self._human)
        return self._chunk(tick, actions, tick, Source.HUMAN, 0)

    def _new_plan(self, tick: int, proprio: Sequence[float] | np.ndarray) -> Chunk:
        if self._offered is not None:
            (self.policy, self.policy_version), self._offered = self._offered, None
        found = self._references.at(tick, self._since_tick, self.chunk_steps)
        if found is None:
            raise _Hold("no fresh reference")
        chunk, reference = found
        if self._phase is Phase.APPROACH or self.policy is None:
            actions = self._joined(tick, reference.clip(-1.0, 1.0), Source.VLA)
            return self._chunk(tick, actions, chunk.observation_tick, Source.VLA, 0)
        frame = self._tokens.at(tick, self._since_tick)
        if frame is None:
            raise _Hold("no fresh RL token")
        state = rl_proprio(proprio, frame.proprio, self.angles)
        mean = np.asarray(self.policy(frame.token, state, reference), dtype=np.float32)
        if mean.shape != reference.shape or not np.isfinite(mean).all():
            raise _Hold(f"policy {self.policy_version} gave {mean.shape}, expected finite {reference.shape}")
        if self.exploration_std > 0.0:
            mean = mean + self.exploration_std * self._rng.standard_normal(mean.shape, dtype=np.float32)
        actions = self._joined(tick, mean.clip(-1.0, 1.0), Source.ACTOR)
        return self._chunk(tick, actions, frame.tick, Source.ACTOR, self.policy_version)

    def _joined(self, tick: int, actions: np.ndarray, source: Source) -> np.ndarray:
        """`actions` from `tick` on, begun from what the robot was doing in the tick before: no jump of its velocity."""
        if self.join_ticks == 0:
            return actions
        known = self._last is not None and self._last.covers(tick - 1)
        bold = known and self._last.source is source is Source.ACTOR  # as inside of its chunks, so between them
        return ramp(actions, self._before(tick), self.join_ticks, bold)

    def _before(self, tick: int) -> np.ndarray:
        """The action [A] of the tick before `tick`; rest when nobody commanded it."""
        if self._last is None or not self._last.covers(tick - 1):
            return np.zeros(self.action_dim, dtype=np.float32)
        return self._last.slice(tick - 1, 1)[0]

    def _chunk(self, tick: int, actions: np.ndarray | Rows, observation_tick: int, source: Source, version: int) -> Chunk:
        return Chunk(tick, actions, observation_tick, source, self._episode, version)
