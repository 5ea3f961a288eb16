"""Timing of a stream of stamped messages, and troubles that are told once. Pure Python.

Stamps are ROS time in ns, receive times too; `now_s` is monotonic time in s.
"""

from __future__ import annotations

from collections import Counter, deque
from statistics import median

# A stamp that goes back by more than this, and is no older than this, comes from a clock that was set back.
_RESTART_NS = 1_000_000_000
_KNOWN = 5  # intervals from which on the rate counts as measured
_GAP = 1.5  # an interval longer than so many usual ones lacks a message


class StampError(ValueError):
    """A message whose stamp forbids its use; `kind` is ahead, order or unstamped, the text says what to do."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


SYNCHRONISE = "synchronise the clocks (chrony or PTP)"
ONE_CLOCK = "set use_sim_time on all nodes, and look for a second publisher of /clock"  # where time is simulated


class ClockOffset:
    """How old the messages of one sender are when they come, by their stamps.

    Attributes:
        refused: StampError.kind -> messages refused.
    """

    def __init__(self, max_ahead_s: float, window: int = 100, advice: str = SYNCHRONISE) -> None:
        """`max_ahead_s` [s]: a stamp further in the future is refused, as it would make all others look old, with the
        `advice`."""
        self._advice = advice
        self._max_ahead_ns = round(max_ahead_s * 1e9)
        self._delays: deque[int] = deque(maxlen=window)
        self._newest_ns = 0
        self.refused: Counter[str] = Counter()

    def note(self, stamp_ns: int, received_ns: int) -> bool:
        """Take note of a message; True when the clock was set back, so that what came before it is void.

        Raises:
            StampError: no stamp, one in the future, or one much older than the last.
        """
        if stamp_ns <= 0:
            raise self._refuse("unstamped", "the header stamp is 0, expected the time of the reading; the driver must"
                               " set it")
        delay_ns = received_ns - stamp_ns
        if -delay_ns > self._max_ahead_ns:
            raise self._refuse("ahead", f"the stamp is {-delay_ns * 1e-9:.3f} s ahead of this computer's clock,"
                               f" expected at most {self._max_ahead_ns * 1e-9:g} s; {self._advice}")
        back = stamp_ns < self._newest_ns - _RESTART_NS
        if back and delay_ns > _RESTART_NS:
            raise self._refuse("order", self._older(stamp_ns))
        self._newest_ns = stamp_ns if back else max(self._newest_ns, stamp_ns)
        self._delays.append(delay_ns)
        return back

    def _older(self, stamp_ns: int) -> str:
        return (f"the stamp is {(self._newest_ns - stamp_ns) * 1e-6:.1f} ms older than the one before, expected a newer"
                " one; look for a second publisher on the topic or a driver that repeats itself")

    def _refuse(self, kind: str, text: str) -> StampError:
        self.refused[kind] += 1
        return StampError(kind, text)

    @property
    def delay_s(self) -> float:
        """From stamp to receipt, median of the newest [s]: the way here plus how far the sender's clock is behind."""
        return median(self._delays) * 1e-9 if self._delays else 0.0


class StampWatch(ClockOffset):
    """Rate and drops of one stream besides.

    Attributes:
        seen: messages that were taken.
        lost: messages that are missing, by gaps in the stamps against the measured rate.
    """

    def __init__(self, max_ahead_s: float, window: int = 100, advice: str = SYNCHRONISE) -> None:
        super().__init__(max_ahead_s, window, advice)
        self.seen = self.lost = 0
        self._intervals: deque[int] = deque(maxlen=window)
        self._losses: deque[int] = deque(maxlen=window)
        self._usual_ns = 0

    def note(self, stamp_ns: int, received_ns: int) -> bool:
        """As ClockOffset, and each stamp must be newer than the last."""
        interval_ns = stamp_ns - self._newest_ns
        if self._newest_ns and -_RESTART_NS <= interval_ns <= 0:
            raise self._refuse("order", self._older(stamp_ns))
        first = not self._newest_ns
        back = super().note(stamp_ns, received_ns)
        if not first and not back:
            self._note_interval(interval_ns)
        self.seen += 1
        return back

    def _note_interval(self, interval_ns: int) -> None:
        missing = 0
        if self._usual_ns and _GAP * self._usual_ns < interval_ns < _RESTART_NS:  # longer is silence
            missing = round(interval_ns / self._usual_ns) - 1
        self.lost += missing
        self._losses.append(missing)
        self._intervals.append(interval_ns)
        if len(self._intervals) >= _KNOWN and (not self._usual_ns or self.seen % 10 == 0):
            self._usual_ns = round(median(self._intervals))

    @property
    def rate_hz(self) -> float:
        """Messages a second, by the median interval of the newest stamps; 0 while unknown."""
        return 1e9 / self._usual_ns if self._usual_ns else 0.0

    @property
    def loss(self) -> float:
        """Part of the newest messages that are missing, 0 to 1."""
        missing = sum(self._losses)
        return missing / (missing + len(self._losses)) if missing else 0.0


class Troubles:
    """What is wrong now, each kind told once when it comes.

    A trouble counts until it was not noted for `hold_s`, so that one that comes and goes does not fill a log.
    """

    def __init__(self, hold_s: float = 2.0) -> None:
        self._hold_s = hold_s
        self._noted: dict[str, tuple[float, str]] = {}
        self._told: set[str] = set()

    def note(self, kind: str, text: str, now_s: float) -> None:
        """There is trouble of this kind."""
        self._noted[kind] = (now_s, text)

    def current(self, now_s: float) -> dict[str, str]:
        """Kind -> text of what counts now."""
        self._noted = {kind: noted for kind, noted in self._noted.items() if now_s - noted[0] <= self._hold_s}
        return {kind: text for kind, (_, text) in self._noted.items()}

    def news(self, now_s: float) -> dict[str, str]:
        """Of `current`, what has come since the last call."""
        current = self.current(now_s)
        come = {kind: text for kind, text in current.items() if kind not in self._told}
        self._told = set(current)
        return come
