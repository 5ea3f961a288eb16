"""The hand-over classifier on made-up approaches: what it learns, what it says of itself, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_ros.core.handover import (
    ARRAYS,
    Approach,
    Classifier,
    HandOverError,
    PressRecorder,
    Report,
    Settings,
    Trigger,
    judge,
    not_good_enough,
    report_from_text,
    report_text,
    train,
)
from rlt_ros.core.observations import TokenFrame

PERIOD_S, SPACING, TOKEN, PROPRIO = 0.02, 10, 5, 3


def approach(
    number: int, pressed: bool = True, noise: float = 0.001, token: int = TOKEN, spacing: int = SPACING
) -> Approach:
    """A tool that comes down at 40 mm/s, a frame in `spacing` ticks, known 5 ticks later; the person presses about
    0.2 s after it is below 70 mm. One number of the token tells the height too, the others are noise."""
    random = np.random.default_rng(number)
    start = 100_000 + 1000 * number
    ticks = start + np.arange(0, 160, spacing)
    height = 0.11 + random.uniform(-0.01, 0.01) - 0.04 * PERIOD_S * (ticks - start)
    press_s = (height[0] - 0.07) / 0.04 + random.uniform(0.15, 0.3)
    tokens = random.normal(size=(len(ticks), token))
    tokens[:, 0] = height / 0.01 + random.normal(0.0, 0.1, len(ticks))
    proprios = random.normal(0.0, noise, (len(ticks), PROPRIO))
    proprios[:, 0] += height
    press_tick = start + round(press_s / PERIOD_S) if pressed else -1
    return Approach(number, start, press_tick, PERIOD_S, ticks, ticks + 5, tokens, proprios)


@pytest.fixture(scope="module")
def learned() -> tuple[Classifier, Report]:
    return train([approach(i) for i in range(30)])


def test_presses_teach_when_to_hand_over(learned) -> None:
    classifier, report = learned
    assert (report.episodes, report.presses) == (30, 30)
    assert report.recall >= 0.95 and report.precision >= 0.95 and report.false_per_episode <= 0.04
    assert abs(report.timing_error_s) < 0.1 and report.timing_spread_s <= 0.3
    assert report.calibration_error < 0.1
    # and on episodes that nobody has seen
    hits = 0
    for a in (approach(i) for i in range(100, 130)):
        trigger = Trigger(classifier.threshold, classifier.needed, classifier.window)
        told = [trigger.add(classifier.probability(t, p)) for t, p in zip(a.tokens, a.proprios)]
        tick = a.heard[told.index(True)]
        assert classifier.hand_over_tick(a) == tick
        hits += abs(tick - a.press_tick) * PERIOD_S <= 0.3
    assert hits >= 28


def test_the_same_presses_teach_the_same_in_any_order(learned) -> None:
    classifier, report = train([approach(i) for i in reversed(range(30))])
    assert classifier.pack() == learned[0].pack() and report == learned[1]


def test_another_seed_holds_out_other_episodes_and_learns_the_same_weights(learned) -> None:
    classifier, _ = train([approach(i) for i in range(30)], Settings(seed=1))
    direction = classifier.weights / np.linalg.norm(classifier.weights)
    assert direction @ learned[0].weights / np.linalg.norm(learned[0].weights) > 0.9999


def test_presses_that_nothing_seen_explains_are_not_promised_to_be_foreseen() -> None:
    """The person presses at any time: the report must say so, or automatic hand-over would be let loose."""
    random = np.random.default_rng(5)
    many = []
    for i in range(30):
        a = approach(i)
        noise = random.normal(size=a.tokens.shape), random.normal(size=a.proprios.shape)
        press = a.start_tick + int(random.integers(30, 150))
        many.append(replace(a, tokens=noise[0], proprios=noise[1], press_tick=press))
    _, report = train(many)
    assert report.recall < 0.7
    assert "recall is" in not_good_enough(report, 20, 0.9, 10.0)


def test_approaches_without_a_press_say_no_all_along() -> None:
    """Two kinds of episodes that only the token tells apart."""
    mixed = []
    for i in range(40):
        a = approach(i, pressed=i % 2 == 0)
        a.tokens[:, 1] = 3.0 if i % 2 == 0 else -3.0
        mixed.append(a)
    _, report = train(mixed)
    assert (report.episodes, report.presses) == (40, 20)
    assert report.recall >= 0.9 and report.false_alarms <= 2


def test_probabilities_mean_what_they_say() -> None:
    """With noise as large as the way in half a second, what is predicted is as often so."""
    _, report = train([approach(i, noise=0.02) for i in range(60)])
    assert report.calibration_error < 0.1


def test_too_few_presses_are_refused_with_how_many_there_must_be() -> None:
    with pytest.raises(HandOverError, match="4 presses, expected at least 5"):
        train([approach(i, pressed=i < 4) for i in range(20)])
    with pytest.raises(HandOverError, match="0 presses"):
        train([])


@pytest.mark.parametrize("press, kind", [("start", "after"), ("end", "before")])
def test_frames_of_one_kind_are_refused(press: str, kind: str) -> None:
    """A person who presses at once, or only when all is over."""
    many = [approach(i) for i in range(10)]
    where = {"start": lambda a: a.start_tick - 100, "end": lambda a: int(a.heard[-1]) + 50}[press]
    with pytest.raises(HandOverError, match=f"all .* frames are from {kind} the press"):
        train([replace(a, press_tick=where(a)) for a in many], Settings(after_s=10.0))


def test_presses_on_another_vla_are_refused_by_episode() -> None:
    with pytest.raises(HandOverError, match=r"episode 6: .*\(7, 3, 0.02\).*episode 0 \(5, 3, 0.02\)"):
        train([approach(i, token=7 if i == 6 else TOKEN) for i in range(10)])


def test_a_constant_or_wild_feature_does_no_harm() -> None:
    many = [approach(i) for i in range(20)]
    for a in many:
        a.tokens[:, 2] = 1e4
    classifier, report = train(many)
    assert report.recall >= 0.9
    token = many[0].tokens[0].copy()
    token[1] = 1e9  # finite, but of nowhere
    assert 0.0 <= classifier.probability(token, many[0].proprios[0]) <= 1.0


@pytest.mark.parametrize("name, value", [("tokens", np.nan), ("proprios", np.inf)])
def test_what_is_not_finite_is_no_approach(name: str, value: float) -> None:
    a = approach(0)
    values = getattr(a, name).copy()
    values[3, 1] = value
    with pytest.raises(HandOverError, match=f"episode 0: {name} is .*finite"):
        replace(a, **{name: values})


def test_an_approach_needs_frames_in_order() -> None:
    a = approach(0)
    with pytest.raises(HandOverError, match="ticks must ascend"):
        replace(a, ticks=a.ticks[::-1])
    with pytest.raises(HandOverError, match="no frames"):
        replace(a, ticks=[], heard=[], tokens=np.empty((0, 5)), proprios=np.empty((0, 3)))
    with pytest.raises(HandOverError, match="heard is"):
        replace(a, heard=a.heard[:-1])


def test_a_classifier_refuses_other_sizes_and_what_is_not_finite(learned) -> None:
    classifier = learned[0]
    token, proprio = np.zeros(TOKEN), np.zeros(PROPRIO)
    assert 0.0 <= classifier.probability(token, proprio) <= 1.0
    with pytest.raises(HandOverError, match=r"token is \(6,\), it was trained with \(5,\)"):
        classifier.probability(np.zeros(6), proprio)
    with pytest.raises(HandOverError, match=r"proprioception is \(2,\)"):
        classifier.probability(token, np.zeros(2))
    with pytest.raises(HandOverError, match="token is not finite"):
        classifier.probability(token + np.nan, proprio)
    classifier.require(None, PROPRIO)
    with pytest.raises(HandOverError, match="token of 5 and proprioception of 3, here they are 5 and 4"):
        classifier.require(TOKEN, 4)


def test_a_packed_classifier_is_the_same_again(learned) -> None:
    classifier = learned[0]
    again = Classifier.unpack(classifier.pack())
    assert again.pack() == classifier.pack()
    a = approach(50)
    assert again.probability(a.tokens[0], a.proprios[0]) == classifier.probability(a.tokens[0], a.proprios[0])


def spoiled(classifier: Classifier, how: str) -> bytes:
    data = classifier.pack()
    if how == "empty":
        return b""
    if how == "torn":
        return data[: len(data) // 2]
    if how == "one bit":
        return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    if how == "foreign":
        from safetensors.numpy import save

        return save({"x": np.zeros(3)})
    if how == "sizes":
        return replace(classifier, token_dim=TOKEN + 1).pack()
    if how == "of another version":
        twice = {name: np.append(values := getattr(classifier, name), values[TOKEN:]) for name in ARRAYS}
        return replace(classifier, **twice).pack()
    if how == "not finite":
        return replace(classifier, weights=classifier.weights * np.nan).pack()
    return replace(classifier, threshold=1.5).pack()


@pytest.mark.parametrize(
    "how, says",
    [("empty", "not a hand-over"), ("torn", "not a hand-over"), ("one bit", "checksum"), ("foreign", "not a hand-over"),
     ("sizes", "token of 6"), ("of another version", r"\(11,\).*\(8,\) .*train again: rlt train handover"),
     ("not finite", "not finite"), ("threshold", "threshold 1.5")],
)  # fmt: skip
def test_a_spoiled_file_is_refused_by_name(learned, how: str, says: str) -> None:
    with pytest.raises(HandOverError, match=f"my/file: .*{says}"):
        Classifier.unpack(spoiled(learned[0], how), "my/file")


def test_one_frame_alone_hands_nothing_over_and_one_alone_takes_nothing_back() -> None:
    trigger = Trigger(0.5, needed=2, window=3)
    assert [trigger.add(p) for p in (0.9, 0.1, 0.1, 0.9)] == [False] * 4
    assert [trigger.add(p) for p in (0.1, 0.9)] == [False, True]  # two of three
    assert [trigger.add(p) for p in (0.1, 0.1, 0.1)] == [True, True, False]
    trigger.add(0.9)
    trigger.reset()
    assert not trigger.add(0.9)


def test_it_must_be_believed_as_long_at_any_rate() -> None:
    """Two of three frames at 5 a second, three of four at 10, six of seven at 25, and one where none is in time."""
    at = {spacing: [approach(i, spacing=spacing) for i in range(6)] for spacing in (10, 5, 2)}
    assert [Settings().needed(seen) for seen in at.values()] == [2, 3, 6]
    assert [Settings(held_s=held_s).needed(at[10]) for held_s in (0.0, 0.08, 0.4)] == [1, 1, 3]
    assert Settings().needed([replace(a, ticks=a.ticks[:1], heard=a.heard[:1], tokens=a.tokens[:1],
                                      proprios=a.proprios[:1]) for a in at[10]]) == 1
    classifier = train(at[2])[0]
    assert (classifier.needed, classifier.window) == (6, 7)
    with pytest.raises(HandOverError, match="held_s is -1.0"):
        Settings(held_s=-1.0)


@pytest.mark.parametrize("needed, window", [(1, 1), (1, 4), (3, 4), (4, 4)])
def test_what_is_told_offline_is_when_the_trigger_goes(learned, needed: int, window: int) -> None:
    random = np.random.default_rng(7)
    for number in range(20):
        a = approach(number, spacing=2)
        values = random.uniform(size=len(a.heard)) ** 3
        classifier = replace(learned[0], threshold=0.5, needed=needed, window=window)
        object.__setattr__(classifier, "logits", lambda features, v=values: np.log(v / (1.0 - v)))
        trigger = Trigger(0.5, needed, window)
        told = [trigger.add(value) for value in values]
        assert classifier.hand_over_tick(a) == (a.heard[told.index(True)] if True in told else None)


def test_what_counts_as_a_hit_a_miss_and_a_false_hand_over() -> None:
    pressed = [replace(approach(i), press_tick=100_500) for i in range(5)]
    no_press = approach(9, pressed=False)
    ticks = [100_500 + 15, 100_500 - 15, 100_500 - 16, 100_500 + 40, None]  # 0.3 s are 15 ticks
    report = judge([*pressed, no_press], [*ticks, 100_400], 0.3)
    assert (report.episodes, report.presses, report.hits, report.false_alarms) == (6, 5, 2, 2)
    assert report.recall == 2 / 5 and report.precision == 2 / 5 and report.false_per_episode == 2 / 6
    assert report.timing_error_s == pytest.approx(0.0)  # median of -0.32, -0.3, 0.3, 0.8


def test_automatic_hand_over_says_what_is_missing(learned) -> None:
    report = learned[1]
    assert not_good_enough(report, 20, 0.9, 0.05) == ""
    assert not_good_enough(None, 20, 0.9, 0.05).endswith("needs 20 (min_presses)")
    assert "30 presses" in not_good_enough(report, 31, 0.9, 0.05)
    assert "min_recall" in not_good_enough(replace(report, recall=0.89), 20, 0.9, 0.05)
    assert "min_recall" in not_good_enough(replace(report, recall=float("nan")), 20, 0.9, 0.05)
    assert "max_false" in not_good_enough(replace(report, false_per_episode=0.06), 20, 0.9, 0.05)


def test_a_report_is_written_and_read() -> None:
    report = judge([approach(0)], [None], 0.3)
    text = report_text(report, 0.4)
    assert '"timing_error_s": null' in text and '"threshold": 0.4' in text
    again = report_from_text(text)
    assert again.presses == 1 and np.isnan(again.timing_error_s)
    with pytest.raises(HandOverError, match="not a report"):
        report_from_text('{"presses": 3}')
    with pytest.raises(HandOverError, match="not a report"):
        report_from_text("[1")


def test_an_approach_keeps_frames_of_its_episode_as_far_apart_as_the_vla_looks() -> None:
    recorder = PressRecorder(SPACING, PERIOD_S)
    frame = lambda tick: TokenFrame(tick, np.ones(TOKEN), np.ones(PROPRIO))  # noqa: E731
    assert not recorder.add(frame(10), 12)  # no episode
    assert recorder.finish(-1) is None
    recorder.begin(3, 100)
    kept = [tick for tick in (95, 100, 105, 110, 112, 125, 134, 135, 130) if recorder.add(frame(tick), tick + 5)]
    assert kept == [100, 110, 125, 135]
    a = recorder.finish(130)
    assert (a.episode, a.start_tick, a.press_tick, list(a.ticks)) == (3, 100, 130, kept)
    assert list(a.heard) == [105, 115, 130, 140]
    assert not recorder.add(frame(200), 205)


def test_a_large_token_of_noise_does_not_outvote_the_proprioception() -> None:
    """2048 numbers, as a full-size VLA has, of which one says something."""
    _, report = train([approach(i, token=2048) for i in range(50)])
    assert report.recall >= 0.9
