"""From streams of ticks to transitions: who saw what, what was really done, and what came of it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.episode import Outcome
from rlt_ros.core.observations import ReferenceBuffer, TokenBuffer, TokenFrame, rl_proprio
from rlt_ros.core.transition import Transition

# Ticks that are kept while no episode runs: hand-over is heard of a little after the robot already acts on it.
HISTORY_TICKS = 500
# What is held back for longer is forgotten, so that memory is bounded: 10 min at 50 Hz, 20 MB.
KEPT_TICKS = 30_000


class _Missing(Exception):
    """A state that cannot be stored; the text is what it lacks: token, reference, proprio, executed."""


class EpisodeRecorder:
    """Line 10 of Algorithm 1 with stride: transitions from the ticks of a critical phase.

    An action of tick t takes the state of tick t to that of t+1; an episode that ends at tick e has actions up to e-1
    and the state at e.  States are stored at ticks that are multiples of `stride` from critical_tick on, so they fall
    on the frames of the cameras and, C being a multiple of the stride, on the actor's own decisions.

    Messages of several processes come late and out of order, the verdict of a person too: a transition is given out
    when its next state is `settle_ticks` old (default 2 * latency_ticks), because until then the episode may prove to
    have ended inside it.

    skipped: count of states not stored, by what was missing (token, reference, proprio, executed).
    """

    def __init__(
        self,
        chunk_steps: int,
        stride: int,
        latency_ticks: int,
        max_age_ticks: int,
        settle_ticks: int | None = None,
        first_sequence: int = 0,
        angles: Sequence[int] = (),
    ):
        """angles: as of rl_proprio."""
        if chunk_steps < 1 or stride < 1 or chunk_steps % stride:
            raise ValueError(f"chunk_steps {chunk_steps}, stride {stride}: expected a chunk of whole strides")
        self.chunk_steps = chunk_steps
        self.stride = stride
        self.angles = tuple(angles)
        self.latency_ticks = latency_ticks
        self.settle_ticks = 2 * latency_ticks if settle_ticks is None else settle_ticks
        self.next_sequence = first_sequence
        self.skipped: Counter[str] = Counter()
        # As the other streams: what is held back, or a whole demonstration, may be longer than the history.
        self._tokens = TokenBuffer(latency_ticks, max_age_ticks, keep=KEPT_TICKS)
        self._references = ReferenceBuffer(latency_ticks, max_age_ticks, keep=KEPT_TICKS)
        self._history = max(HISTORY_TICKS, max_age_ticks + chunk_steps)
        self._proprio: dict[int, np.ndarray] = {}
        self._executed: dict[int, tuple[np.ndarray, Source]] = {}
        self._planned: dict[int, Chunk] = {}
        self._newest = -1  # newest tick of which proprioception or an action was heard
        self._recording = False
        self._episode = 0
        self._since_tick = 0
        self._state_tick = self._first_tick = 0  # next state to store, first of the episode
        self._end_tick = 0
        self._outcome = Outcome.NONE
        self._over_since: int | None = None
        self._done: list[Transition] = []

    # --- what comes in ----------------------------------------

    def add_token(self, frame: TokenFrame) -> None:
        self._tokens.add(frame)

    def add_reference(self, chunk: Chunk) -> None:
        self._references.add(chunk)

    def add_planned(self, chunk: Chunk) -> None:
        """A whole chunk of the actor or the warm-up, as computed: tells what the actor saw, pads the episode's tail."""
        self._planned[chunk.tick] = chunk

    def add_proprio(self, tick: int, values: np.ndarray) -> None:
        """Proprioception at `tick`, float32 [P]."""
        self._proprio[tick] = np.array(values, dtype=np.float32)
        self._newest = max(self._newest, tick)

    def add_executed(self, tick: int, action: np.ndarray, source: Source) -> None:
        """The action [A] that the controller got at `tick`; of several for one tick the last counts."""
        self._executed[tick] = (np.array(action, dtype=np.float32), Source(source))
        self._newest = max(self._newest, tick)

    def begin(self, episode: int, start_tick: int, critical_tick: int) -> None:
        """The critical phase began at critical_tick of an episode that started at start_tick.  May be repeated."""
        if self._recording and (episode, start_tick) == (self._episode, self._since_tick):
            return
        self._finish()  # the tail of an episode that ended a moment ago; without a known outcome it is lost
        self._recording = True
        self._episode, self._since_tick = episode, start_tick
        self._state_tick = self._first_tick = -(-critical_tick // self.stride) * self.stride
        self._outcome = Outcome.NONE
        self._over_since = None

    def hold_back(self, tick: int) -> None:
        """The episode may be over since `tick`: nothing that its outcome could touch is given out until it is known.
        Of several the earliest counts."""
        if self._recording and self._outcome is Outcome.NONE:
            self._over_since = tick if self._over_since is None else min(tick, self._over_since)

    def go_on(self) -> None:
        """The episode is not over: what was held back is given out.  What is older than KEPT_TICKS is lost by then."""
        self._over_since = None

    def end(self, tick: int, outcome: Outcome) -> None:
        """The episode ended at `tick`.  Without begin() this does nothing."""
        if not self._recording or self._outcome is not Outcome.NONE:
            return
        if outcome is Outcome.NONE:
            raise ValueError("an episode cannot end with outcome NONE; expected SUCCESS, FAILURE, TIMEOUT or ABORTED")
        # A verdict later than settle_ticks: transitions up to here are out already and said that it went on.
        given_out = self._state_tick - self.stride + self.chunk_steps
        self._end_tick = max(tick, given_out + 1) if self._state_tick > self._first_tick else tick
        self._outcome = outcome

    # --- what goes out ----------------------------------------

    def ready(self) -> list[Transition]:
        """The transitions that became certain since the last call, in order."""
        if self._recording and self._outcome is Outcome.NONE:
            certain = self._newest - self.settle_ticks - self.chunk_steps
            if self._over_since is not None:
                certain = min(certain, self._over_since - self.chunk_steps - 1)
            self._emit_until(certain)
        elif self._recording and self._complete():
            self._finish()
        self._forget()
        done, self._done = self._done, []
        return done

    def _complete(self) -> bool:
        """Whether the end of the episode was heard on all streams, or was waited for long enough."""
        heard = self._end_tick - 1 in self._executed and self._end_tick in self._proprio
        return heard or self._newest >= self._end_tick + self.settle_ticks

    def _finish(self) -> None:
        if self._recording and self._outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT):
            # The outcome must not be lost with a last action never sent: the last one that was ends the episode.
            while self._end_tick - 1 not in self._executed and self._end_tick > self._state_tick:
                self._end_tick -= 1
            self._emit_until(self._end_tick - 1)
        elif self._recording and self._outcome is Outcome.ABORTED:
            self._emit_until(min(self._end_tick, self._newest) - self.chunk_steps)  # the tail is dropped
        self._recording = False

    def _emit_until(self, last_tick: int) -> None:
        while self._state_tick <= last_tick:
            try:
                self._done.append(self._transition(self._state_tick))
                self.next_sequence += 1
            except _Missing as missing:
                self.skipped[str(missing)] += 1
            self._state_tick += self.stride

    def _transition(self, tick: int) -> Transition:
        c = self.chunk_steps
        labelled = self._outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TIMEOUT)
        n = min(c, self._end_tick - tick) if labelled else c
        last = labelled and tick + n == self._end_tick
        terminated = last and self._outcome is not Outcome.TIMEOUT
        truncated = last and self._outcome is Outcome.TIMEOUT

        frame, proprio, reference = self._state(tick)
        action = self._padding(tick, n, reference)
        reference = reference.copy()
        sources = np.full(c, Source.HOLD, dtype=np.uint8)
        for i in range(n):
            if tick + i not in self._executed:
                raise _Missing("executed")
            action[i], sources[i] = self._executed[tick + i]
            if sources[i] == Source.HUMAN:
                reference[i] = action[i]  # line 9: the reference becomes the human's action
        rewards = np.zeros(c, dtype=np.float32)
        if last and self._outcome is Outcome.SUCCESS:
            rewards[n - 1] = 1.0
        # After termination there is no state of value; the same one stands in to keep shapes and numbers sane.
        next_frame, next_proprio, next_reference = (
            (frame, proprio, reference) if terminated else self._state(tick + n)
        )
        plan = self._plan_at(tick)
        return Transition(
            sequence=self.next_sequence, episode=self._episode, tick=tick,
            token=frame.token, proprio=proprio, reference=reference, action=action, rewards=rewards, steps=n,
            next_token=next_frame.token, next_proprio=next_proprio, next_reference=next_reference,
            terminated=terminated, truncated=truncated, sources=sources,
            token_age_ticks=tick - frame.tick, policy_version=plan.policy_version if plan else 0,
        )

    def _state(self, tick: int) -> tuple[TokenFrame, np.ndarray, np.ndarray]:
        """Token frame, rl_proprio [2P] and reference [C, A] as an actor has them at `tick`.

        Where the actor did decide at this tick, its plan says which frame it had: it may have been older than the rule
        would give now that everything has come.
        """
        plan = self._planned.get(tick)
        until = plan.observation_tick if plan is not None and plan.source is Source.ACTOR else None
        frame = self._tokens.at(tick, self._since_tick, until)
        if frame is None:
            raise _Missing("token")
        found = self._references.at(tick, self._since_tick, self.chunk_steps, until)
        if found is None:
            raise _Missing("reference")
        if tick not in self._proprio:
            raise _Missing("proprio")
        return frame, rl_proprio(self._proprio[tick], frame.proprio, self.angles), found[1]

    def _plan_at(self, tick: int) -> Chunk | None:
        """The newest planned chunk that covers `tick`."""
        for start in range(tick, tick - self.chunk_steps, -1):
            plan = self._planned.get(start)
            if plan is not None:
                return plan if plan.covers(tick) else None
        return None

    def _padding(self, tick: int, n: int, reference: np.ndarray) -> np.ndarray:
        """What would have been done after n steps: the plan as far as it reaches, then the reference; [C, A]."""
        action = reference.copy()
        plan = self._plan_at(tick + n - 1)
        # Who steered at the end had dropped the plan.
        steered = self._executed.get(tick + n - 1, (None, Source.HOLD))[1] is Source.HUMAN
        if plan is not None and not steered:
            start, end = max(tick, plan.tick), min(tick + self.chunk_steps, plan.end)
            action[start - tick:end - tick] = plan.slice(start, end - start)
        return action

    def _forget(self) -> None:
        oldest = min(self._state_tick, self._newest) if self._recording else self._newest
        oldest = max(oldest, self._newest - KEPT_TICKS) - self._history
        if len(self._proprio) + len(self._executed) < 4 * self._history:
            return  # now and then is enough
        for stream in (self._proprio, self._executed, self._planned):
            for tick in [tick for tick in stream if tick < oldest]:
                del stream[tick]
        self._tokens.forget_before(oldest)
        self._references.forget_before(oldest)
