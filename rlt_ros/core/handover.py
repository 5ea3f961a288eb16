"""When does the critical phase begin? A small classifier, learned from a person's presses.

Logistic regression on standardised RL token and proprioception: frames that were known before the person saw that it
was time say no, those from then on say yes, and what lies within a margin of it says nothing. What it is worth is told
by cross-validation over whole episodes, with the calibration and the threshold of each fold taken from the others.
"""
from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from rlt_ros.core.observations import TokenFrame

LEAST_PRESSES = 5  # with fewer, nothing is held out that could tell what was learned
FOLDS = 5
THRESHOLDS = 1.0 / (1.0 + np.exp(-np.linspace(-5.0, 5.0, 81)))
FALSE_COSTS = 3.0  # a false hand-over weighs as much as so many that were missed
FIT_ROWS = 3000  # frames that are fitted at most; neighbours are alike, and training shall stay a matter of seconds
FAR = 8.0  # standard deviations: further out a feature says no more
ARRAYS = ("mean", "scale", "weights")


class HandOverError(ValueError):
    """Presses or a classifier that cannot be used; the text says which, what was found and what was expected."""


@dataclass(frozen=True, eq=False)
class Approach:
    """What was seen of one episode, from its start on, and when the person pressed.

    ticks: int64 [N], of the frames, ascending.  heard: int64 [N], when they were known: what a decision on them can
    be compared with the press by.  tokens: float32 [N, D].  proprios: float32 [N, P], SI.  press_tick: -1 when nobody
    pressed.  period_s: of a tick.  Raises HandOverError.
    """

    episode: int
    start_tick: int
    press_tick: int
    period_s: float
    ticks: np.ndarray
    heard: np.ndarray
    tokens: np.ndarray
    proprios: np.ndarray

    def __post_init__(self) -> None:
        where = f"approach of episode {self.episode}"
        if not len(self.ticks):
            raise HandOverError(f"{where} has no frames")
        for name, kind, dims in (("ticks", np.int64, 1), ("heard", np.int64, 1), ("tokens", np.float32, 2),
                                 ("proprios", np.float32, 2)):
            values = np.asarray(getattr(self, name), kind)
            if values.ndim != dims or len(values) != len(self.ticks) or not np.isfinite(values).all():
                raise HandOverError(f"{where}: {name} is {values.shape}, expected finite values, {dims}-dimensional,"
                                    f" for {len(self.ticks)} frames")
            object.__setattr__(self, name, values)
        if (np.diff(self.ticks) <= 0).any() or not self.period_s > 0.0:
            raise HandOverError(f"{where}: ticks must ascend and the period ({self.period_s} s) be positive")

    @property
    def pressed(self) -> bool:
        return self.press_tick >= 0

    @property
    def features(self) -> np.ndarray:
        """float32 [N, D + P]."""
        return np.concatenate((self.tokens, self.proprios), axis=1)


class PressRecorder:
    """Keeps the frames of a running episode, one in `spacing` ticks: as often as the VLA looks in an approach."""

    def __init__(self, spacing: int, period_s: float) -> None:
        self.spacing, self.period_s = spacing, period_s
        self.episode, self.start_tick = 0, -1
        self._frames: list[tuple[int, TokenFrame]] = []

    def begin(self, episode: int, start_tick: int) -> None:
        self.episode, self.start_tick, self._frames = episode, start_tick, []

    def add(self, frame: TokenFrame, heard: int) -> bool:
        """A frame that is known since tick `heard`; False when it is not of this episode or follows too closely."""
        if self.start_tick < 0 or frame.tick < self.start_tick:
            return False
        if self._frames and frame.tick < self._frames[-1][1].tick + self.spacing:
            return False
        self._frames.append((heard, frame))
        return True

    def finish(self, press_tick: int) -> Approach | None:
        """The episode is over; press_tick: -1 when nobody pressed.  None without a frame."""
        frames, start_tick = self._frames, self.start_tick
        self._frames, self.start_tick = [], -1
        if not frames:
            return None
        return Approach(
            self.episode, start_tick, press_tick, self.period_s, [frame.tick for _, frame in frames],
            [heard for heard, _ in frames], np.stack([frame.token for _, frame in frames]),
            np.stack([frame.proprio for _, frame in frames]),
        )  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How it learns and decides.

    held_s: it must be above the threshold for so long, from the first of its frames to the last, and one frame among
    them may be below.  About as long as a person takes from seeing to pressing: what is learned is when it was seen.
    within_s: so far from the press a hand-over counts as that of the press.  margin_s: frames so close to that moment
    say nothing.  after_s: nor do frames later than that after it, which the practised policy has taken elsewhere.
    ridge: weight of the squared weights of token and proprioception, times how many there are of the kind.  A token has
    many numbers, most of which say nothing; of the proprioception it is small, as a speed says when a height is
    reached, and its weight is large.  blur_s: a hand-over that was just in time will not always be, so each counts as
    if it had come earlier or later by about as much when the threshold is chosen.
    """

    held_s: float = 0.2
    within_s: float = 0.3
    margin_s: float = 0.1
    after_s: float = 2.0
    ridge: tuple[float, float] = (1e-3, 1e-5)
    blur_s: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.held_s < 5.0:
            raise HandOverError(f"held_s is {self.held_s}, expected 0 to 5 s")

    def needed(self, approaches: Sequence[Approach]) -> int:
        """Frames that make held_s at the rate of the approaches, two at 5 a second; one more is a Trigger's window."""
        apart = [np.diff(a.ticks) * a.period_s for a in approaches]
        return 1 + round(self.held_s / float(np.median(np.concatenate(apart)))) if any(map(len, apart)) else 1


@dataclass(frozen=True)
class Report:
    """What the classifier is worth, by cross-validation over episodes.

    recall: of the presses, those with a hand-over within `within_s`.  precision: of the hand-overs, those.
    false_per_episode: hand-overs that come earlier than that, or where nobody pressed.  timing_error_s: median of
    hand-over minus press.  timing_spread_s: 90th percentile of its size, over the episodes with both; NaN without one.
    calibration_error: mean distance of what was predicted from how often it was so, over ten bins of probability.
    """

    episodes: int
    presses: int
    hits: int
    false_alarms: int
    precision: float
    recall: float
    false_per_episode: float
    timing_error_s: float
    timing_spread_s: float
    calibration_error: float


@dataclass(frozen=True, eq=False)
class Classifier:
    """sigmoid(weights . clip((features - mean) / scale) + bias), calibrated.  mean, scale, weights: float64 [D + P]."""

    token_dim: int
    proprio_dim: int
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float
    threshold: float
    needed: int
    window: int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[N] of features [N, D + P]."""
        return np.clip((features - self.mean) / self.scale, -FAR, FAR) @ self.weights + self.bias

    def probability(self, token: np.ndarray, proprio: np.ndarray) -> float:
        """That the critical phase has begun.  HandOverError for other sizes and for what is not finite."""
        for name, values, size in (("token", token, self.token_dim), ("proprioception", proprio, self.proprio_dim)):
            if np.shape(values) != (size,):
                raise HandOverError(f"hand-over classifier: {name} is {np.shape(values)}, it was trained with"
                                    f" ({size},); train it for this VLA and task")
            if not np.isfinite(values).all():
                raise HandOverError(f"hand-over classifier: {name} is not finite")
        return float(_sigmoid(self.logits(np.concatenate((token, proprio), dtype=np.float64)[None])[0]))

    def hand_over_tick(self, approach: Approach) -> int | None:
        """When it would have handed over in an approach; None: never."""
        probabilities = _sigmoid(self.logits(approach.features))
        return _decide(approach, probabilities, self.threshold, self.needed, self.window)

    def pack(self) -> bytes:
        """As safetensors, with everything else and a SHA-256 of the arrays in the header."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name), np.float64) for name in ARRAYS}
        names = ("token_dim", "proprio_dim", "bias", "threshold", "needed", "window")
        about = {name: getattr(self, name) for name in names}
        # One key: safetensors writes several in any order, and the same classifier shall be the same bytes.
        return save(arrays, {"handover": json.dumps({"sha256": _digest(arrays, about)} | about)})

    @staticmethod
    def unpack(data: bytes, where: str = "hand-over classifier") -> Classifier:
        """From `pack`'s bytes; HandOverError says what is wrong with them, with `where` in front."""
        from safetensors.numpy import load

        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            about = json.loads(header["handover"])
            digest = about.pop("sha256")
            arrays = load(data)
            found = {name: arrays[name] for name in ARRAYS}
            made = Classifier(**found, **about)
        except Exception as error:  # whatever a parser may raise on foreign bytes
            raise HandOverError(f"{where}: not a hand-over classifier ({type(error).__name__}: {error}); delete it and"
                                " train again") from error
        if digest != _digest(found, about):
            raise HandOverError(f"{where}: its checksum does not fit; delete it and train again")
        size = made.token_dim + made.proprio_dim
        shapes = {name: array.shape for name, array in found.items() if array.shape != (size,)}
        if shapes:  # also of a version that counted the proprioception twice
            raise HandOverError(f"{where}: {shapes}, expected ({size},) for a token of {made.token_dim} and"
                                f" proprioception of {made.proprio_dim}; train again: rlt train handover --session DIR")
        numbers = [*found.values(), np.array([made.bias, made.threshold])]
        if not all(np.isfinite(values).all() for values in numbers) or not (made.scale > 0.0).all():
            raise HandOverError(f"{where}: values are not finite, or a scale is not positive")
        if not 0.0 < made.threshold < 1.0 or not 1 <= made.needed <= made.window:
            raise HandOverError(f"{where}: threshold {made.threshold}, {made.needed} of {made.window} frames; expected"
                                " a threshold in (0, 1) and 1 <= needed <= window")
        return made

    def require(self, token_dim: int | None, proprio_dim: int, where: str = "hand-over classifier") -> None:
        """HandOverError when it was trained with other sizes; token_dim: None when it is not known yet."""
        if token_dim not in (None, self.token_dim) or proprio_dim != self.proprio_dim:
            raise HandOverError(
                f"{where}: trained with a token of {self.token_dim} and proprioception of {self.proprio_dim}, here they"
                f" are {'?' if token_dim is None else token_dim} and {proprio_dim}; train it for this VLA and task"
            )


class Trigger:
    """Hysteresis: suggested from `needed` of the last `window` probabilities above the threshold on, until none is."""

    def __init__(self, threshold: float, needed: int, window: int) -> None:
        self.threshold, self.needed = threshold, needed
        self._above: deque[bool] = deque(maxlen=window)
        self.suggested = False

    def reset(self) -> None:
        self._above.clear()
        self.suggested = False

    def add(self, probability: float) -> bool:
        self._above.append(probability > self.threshold)
        count = sum(self._above)
        self.suggested = count >= self.needed or (self.suggested and count > 0)
        return self.suggested


def not_good_enough(report: Report | None, min_presses: int, min_recall: float, max_false: float) -> str:
    """Why the classifier may not hand over by itself; "" when it may."""
    if report is None or report.presses < min_presses:
        found = report.presses if report else "too few"
        return f"{found} presses, automatic hand-over needs {min_presses} (min_presses)"
    if not report.recall >= min_recall:
        return f"recall is {report.recall:.2f}, automatic hand-over needs {min_recall:g} (min_recall)"
    if not report.false_per_episode <= max_false:
        return (f"{report.false_per_episode:.2f} false hand-overs an episode, automatic hand-over allows {max_false:g}"
                " (max_false)")
    return ""


def train(approaches: Sequence[Approach], settings: Settings = Settings()) -> tuple[Classifier, Report]:
    """A classifier from all approaches, and what it is worth.  Same approaches and seed, same result.

    HandOverError with too few presses, with frames of one kind only, and when sizes or periods differ.
    """
    approaches = sorted(approaches, key=lambda a: (a.start_tick, a.episode))
    presses = sum(a.pressed for a in approaches)
    if presses < LEAST_PRESSES:
        raise HandOverError(f"{presses} presses, expected at least {LEAST_PRESSES}; practise on")
    first = approaches[0]
    token_dim, proprio_dim = first.tokens.shape[1], first.proprios.shape[1]
    for a in approaches:
        sizes = (a.tokens.shape[1], a.proprios.shape[1], a.period_s)
        if sizes != (token_dim, proprio_dim, first.period_s):
            raise HandOverError(f"approach of episode {a.episode}: token, proprioception and period are {sizes}, those"
                                f" of episode {first.episode} {(token_dim, proprio_dim, first.period_s)}; move one of"
                                " them out of the session")
    needed = settings.needed(approaches)
    labels = [_labels(a, settings, needed) for a in approaches]
    # Presses are dealt evenly: a fold without any would choose no threshold.
    random = np.random.default_rng(settings.seed)
    fold = np.empty(len(approaches), int)
    for group in (True, False):
        members = random.permutation([i for i, a in enumerate(approaches) if a.pressed is group])
        fold[members.astype(int)] = np.arange(len(members)) % FOLDS
    scores: list[np.ndarray] = [np.empty(0)] * len(approaches)  # of episodes that the model has not seen
    for f in range(FOLDS):
        inside = [i for i in range(len(approaches)) if fold[i] != f]
        model = _fit([approaches[i] for i in inside], [labels[i] for i in inside], settings, needed)
        for i in np.flatnonzero(fold == f):
            scores[i] = model.logits(approaches[i].features)
    decided: list[int | None] = [None] * len(approaches)
    held_out: list[tuple[np.ndarray, np.ndarray]] = []
    for f in range(FOLDS):
        others = [i for i in range(len(approaches)) if fold[i] != f]
        slope, offset, threshold = _calibrate(approaches, labels, scores, others, settings, needed)
        for i in np.flatnonzero(fold == f):
            probabilities = _sigmoid(slope * scores[i] + offset)
            decided[i] = _decide(approaches[i], probabilities, threshold, needed, needed + 1)
            known = labels[i] >= 0
            held_out.append((probabilities[known], labels[i][known]))
    slope, offset, threshold = _calibrate(approaches, labels, scores, range(len(approaches)), settings, needed)
    model = _fit(approaches, labels, settings, needed)
    model = replace(model, weights=slope * model.weights, bias=slope * model.bias + offset, threshold=threshold)
    return model, judge(approaches, decided, settings.within_s, _calibration_error(held_out))


def judge(approaches: Sequence[Approach], decided: Sequence[int | None], within_s: float,
          calibration_error: float = float("nan")) -> Report:
    """What hand-overs at the ticks `decided` (None: never) are worth."""
    hits = false = presses = 0
    errors = []
    for a, tick in zip(approaches, decided, strict=True):
        presses += a.pressed
        if tick is None:
            continue
        error_s = (tick - a.press_tick) * a.period_s
        if a.pressed:
            errors.append(error_s)
        hits += a.pressed and abs(error_s) <= within_s + 1e-9
        false += not a.pressed or error_s < -within_s - 1e-9
    fired = sum(tick is not None for tick in decided)
    nan = float("nan")
    return Report(
        episodes=len(approaches), presses=presses, hits=int(hits), false_alarms=int(false),
        precision=hits / fired if fired else nan, recall=hits / presses if presses else nan,
        false_per_episode=false / len(approaches) if approaches else nan,
        timing_error_s=float(np.median(errors)) if errors else nan,
        timing_spread_s=float(np.percentile(np.abs(errors), 90)) if errors else nan,
        calibration_error=calibration_error,
    )  # fmt: skip


def report_text(report: Report, threshold: float) -> str:
    """The report as JSON; what is not known is null."""
    values = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(report).items()}
    return json.dumps(values | {"threshold": threshold}, indent=2) + "\n"


def report_from_text(text: str) -> Report:
    """The same, back; HandOverError when something is missing."""
    try:
        values = json.loads(text)
        values.pop("threshold", None)
        return Report(**{k: float("nan") if v is None else v for k, v in values.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise HandOverError(f"not a report of a hand-over classifier ({error}); train again") from error


def _labels(a: Approach, settings: Settings, needed: int) -> np.ndarray:
    """int [N]: 1 for what was known when the person saw that it was time and after, 0 before, -1 where it says nothing.

    That is so long before the press that the frames which are needed end with it.
    """
    if not a.pressed:
        return np.zeros(len(a.heard), int)
    lead_s = settings.held_s if needed > 1 else 0.0
    since_s = (a.heard - a.press_tick) * a.period_s + lead_s
    labels = (since_s >= 0.0).astype(int)
    labels[(np.abs(since_s) < settings.margin_s) | (since_s > settings.after_s)] = -1
    return labels


def _fit(
    approaches: Sequence[Approach], labels: Sequence[np.ndarray], settings: Settings, needed: int
) -> Classifier:
    y = np.concatenate(labels)
    known = np.flatnonzero(y >= 0)
    known = known[:: -(-len(known) // FIT_ROWS)]
    x = np.concatenate([a.features for a in approaches])[known].astype(np.float64)
    y = y[known].astype(np.float64)
    if y.min() == y.max():
        kind = "after" if y[0] else "before"
        raise HandOverError(f"all {len(y)} frames are from {kind} the press; the hand-over cannot be told from them."
                            " Press when the critical phase begins, not at once and not at its end")
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9 * (1.0 + np.abs(mean)), scale, 1.0)
    x = np.clip((x - mean) / scale, -FAR, FAR)
    weight = np.where(y > 0.5, 0.5 / y.sum(), 0.5 / (1.0 - y).sum())  # both kinds count the same
    sizes = np.array([approaches[0].tokens.shape[1], approaches[0].proprios.shape[1]])
    weights, bias = _logistic(x, y, weight, np.repeat(settings.ridge * sizes, sizes))
    return Classifier(int(sizes[0]), int(sizes[1]), mean, scale, weights, bias, 0.5, needed, needed + 1)


def _logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: np.ndarray) -> tuple[np.ndarray, float]:
    """Weighted logistic regression by Newton's method, each step by conjugate gradients: no matrix of features squared
    is ever made, as tokens of a large VLA have thousands."""
    x = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    penalty = np.append(ridge, 1e-6)  # the bias is free

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float(weight @ (np.logaddexp(0.0, z) - y * z) + 0.5 * penalty @ w**2)

    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ w)
        gradient = x.T @ (weight * (p - y)) + penalty * w
        if np.abs(gradient).max() < 1e-7:
            break
        curvature = weight * p * (1.0 - p)
        step = _conjugate(lambda v: x.T @ (curvature * (x @ v)) + penalty * v, -gradient)  # noqa: B023
        now, rate = loss(w), 1.0
        while loss(w + rate * step) > now + 1e-4 * rate * float(gradient @ step) and rate > 1e-6:
            rate *= 0.5
        w = w + rate * step
    return w[:-1], float(w[-1])


def _conjugate(product, b: np.ndarray) -> np.ndarray:
    """x with product(x) = b, for a symmetric positive definite product."""
    x, r = np.zeros_like(b), b.copy()
    p, rr = r.copy(), float(r @ r)
    limit = 1e-8 * rr  # Newton puts right what is left
    for _ in range(200):
        if rr <= limit:
            break
        ap = product(p)
        a = rr / float(p @ ap)
        x, r = x + a * p, r - a * ap
        rr, before = float(r @ r), rr
        p = r + (rr / before) * p
    return x


def _calibrate(approaches, labels, scores, members, settings: Settings, needed: int) -> tuple[float, float, float]:
    """(slope, offset) of Platt's scaling on held-out scores, and the threshold that does best on them."""
    members = list(members)
    s = np.concatenate([scores[i] for i in members])
    y = np.concatenate([labels[i] for i in members])
    s, y = s[y >= 0], y[y >= 0].astype(np.float64)
    spread = float(s.std()) or 1.0
    (slope,), offset = _logistic(s[:, None] / spread, y, np.full(len(y), 1.0 / len(y)), np.array([1e-3]))
    slope /= spread
    probabilities = [_sigmoid(slope * scores[i] + offset) for i in members]
    return slope, offset, _threshold([approaches[i] for i in members], probabilities, settings, needed)


def _threshold(
    approaches: Sequence[Approach], probabilities: Sequence[np.ndarray], settings: Settings, needed: int
) -> float:
    """The one of THRESHOLDS with the most presses met, each false hand-over costing FALSE_COSTS of them."""
    error_s = np.empty((len(approaches), len(THRESHOLDS)))  # infinite where it never hands over
    for i, (a, p) in enumerate(zip(approaches, probabilities, strict=True)):
        first = _first(p, THRESHOLDS, needed, needed + 1)
        tick = np.append(a.heard, np.inf)[first]
        error_s[i] = (tick - a.press_tick) * a.period_s if a.pressed else np.where(np.isfinite(tick), -np.inf, np.inf)
    early = _sigmoid((-settings.within_s - error_s) / settings.blur_s)
    late = _sigmoid((error_s - settings.within_s) / settings.blur_s)
    pressed = np.array([a.pressed for a in approaches])
    hits = (1.0 - early - late)[pressed].sum(0)
    return float(THRESHOLDS[np.argmax(hits - FALSE_COSTS * early.sum(0))])


def _decide(a: Approach, probabilities: np.ndarray, threshold: float, needed: int, window: int) -> int | None:
    """Tick at which a Trigger with these hands over, given probabilities [N]; None: never."""
    first = _first(probabilities, np.array([threshold]), needed, window)[0]
    return int(a.heard[first]) if first < len(a.heard) else None


def _first(values: np.ndarray, thresholds: np.ndarray, needed: int, window: int) -> np.ndarray:
    """Index into values [N] at which `needed` of the last `window` first exceed each of the thresholds; N: never."""
    padded = np.concatenate((np.full(window - 1, -np.inf), values))
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    exceeded = np.partition(windows, window - needed, axis=1)[:, window - needed]  # by `needed` of its window
    return np.searchsorted(np.maximum.accumulate(exceeded), thresholds, side="right")


def _calibration_error(held_out: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    p, y = (np.concatenate(values) for values in zip(*held_out))
    bins = np.minimum((p * 10).astype(int), 9)
    return float(sum(abs(p[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))


def _digest(arrays: dict[str, np.ndarray], about: dict) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name], np.float64).tobytes())
    return digest.hexdigest()
