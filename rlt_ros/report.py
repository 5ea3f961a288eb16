"""One self-contained HTML page about a practice session: did it learn, how fast, with which settings.

It is read on a phone beside the robot as well as on a desk: one column or two, light or dark as the device is.
"""

from __future__ import annotations

import html
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import yaml

from rlt_ros import charts
from rlt_ros.charts import Dots, Line, chart
from rlt_ros.core.handover import HandOverError, Report
from rlt_ros.core.intervals import median_interval, wilson
from rlt_ros.data.changes import read_changes
from rlt_ros.data.episodes import EpisodeRecord, read_episodes
from rlt_ros.data.files import write_whole
from rlt_ros.data.handover import read_report

DEFAULT_RATE_HZ = 50.0
WINDOW = 20  # episodes of the moving success rate
TIMES = 10  # successes of the moving time to success
BINS = 24  # of a row of bars over the session
EVALUATIONS = "evaluations.json"  # {"before": {...}, "after": {...}} as `rlt eval --json` writes them

CURVES = {  # of the learner, with what they mean; others follow by name
    "success_rate": "success rate of the last 20 episodes",
    "q_mean": "mean Q: too high at first, then what is really achieved",
    "q_max": "largest Q of a batch, at most about 1",
    "anchor": "distance of the actor from the reference, squared",
    "critic_loss": "critic's loss",
    "td_error": "distance of Q from its target",
    "actor_loss": "actor's loss",
    "beta": "weight of the anchor",
    "updates_per_transition": "updates a transition",
    "updates_per_s": "updates a second",
    "replay_size": "transitions in replay",
    "human_share": "share of steps that a person made",
    "prior_share": "share of earlier data in a batch",
    "critic_grad": "critic's gradient before clipping",
    "actor_grad": "actor's gradient before clipping",
}
LEFT_OUT = {"median_steps", "successes_per_10min"}  # drawn above, from the episodes themselves

STYLE = (
    """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --text: #1b1f24; --dim: #57606a; --line: #d8dee4;
  --c1: #0969da; --c2: #1a7f37; --c3: #a04100; --c4: #8250df; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --text: #e6edf3; --dim: #9da7b3;
  --line: #30363d; --c1: #58a6ff; --c2: #3fb950; --c3: #f0883e; --c4: #bc8cff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; background: var(--page);
  color: var(--text); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.note { color: var(--dim); font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.tile, figure { background: var(--card); border-radius: 8px; padding: .7rem .8rem; margin: 0; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.3; } .tile span { color: var(--dim); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .8rem; }
.small { grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
td, th { padding: .35rem .4rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td:first-child, th:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; color: var(--dim); }
.words td { text-align: left; } .interval { display: block; color: var(--dim); font-size: 13px; }
svg.bars { width: 100%; min-width: 5rem; height: 20px; fill: var(--c1); display: block; }
details { background: var(--card); border-radius: 8px; padding: .7rem .8rem; } summary { cursor: pointer; }
pre { font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0 0; }
"""
    + charts.STYLE
)


def write_report(session: Path) -> Path:
    """Write `report.html` into the session folder and return its path.

    Raises:
        FileNotFoundError: the folder is no session.
    """
    if not session.is_dir():
        raise FileNotFoundError(
            f"session {session}: no such folder; give the folder that `rlt practice --session` made"
        )
    episodes = read_episodes(session)
    curves = read_curves(session / "metrics")
    changes = read_changes(session)
    settings = session / "config.yaml"
    rate_hz = read_rate_hz(session)
    none = '<p class="note">No episode has ended yet.</p>'
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Practice session {html.escape(session.name)}</title>
<style>{STYLE}</style></head><body>
<h1>Practice session {html.escape(session.name)}</h1>
<p>{html.escape(summary(episodes, rate_hz))}</p>
{_tiles(episodes, rate_hz)}
<h2>Before and after</h2>
{_comparison(read_evaluations(session))}
<h2>Success</h2>
{_success(episodes, rate_hz, changes) or none}
<h2>Time to success</h2>
{_times(episodes, rate_hz) or none}
<h2>Throughput and interventions</h2>
{_work(episodes, rate_hz) or none}
<h2>Hand-over</h2>
{_hand_over(session)}
<h2>Safety gate</h2>
{_gate(episodes)}
<h2>Learner</h2>
{_curves(curves) or '<p class="note">The learner has not logged anything yet.</p>'}
<h2>Settings</h2>
{_changes(changes, episodes)}
<details><summary>All parameters of the session</summary>
<pre>{html.escape(settings.read_text() if settings.is_file() else "config.yaml is missing")}</pre></details>
<p class="note">Written {datetime.now():%Y-%m-%d %H:%M} by rlt report.</p>
</body></html>
"""
    path = session / "report.html"
    write_whole(path, page)
    return path


def summary(episodes: Sequence[EpisodeRecord], rate_hz: float) -> str:
    """One sentence about the episodes; `rate_hz` is the control rate that their steps are counted in."""
    counts = {
        outcome: sum(e.outcome == outcome for e in episodes) for outcome in ("success", "failure", "timeout", "aborted")
    }
    minutes = sum(e.critical_steps for e in episodes) / rate_hz / 60.0
    return (
        f"{len(episodes)} episodes ({', '.join(f'{n} {outcome}' for outcome, n in counts.items())}), "
        f"{sum(e.interventions for e in episodes)} interventions, "
        f"{minutes:.1f} minutes of critical phase at {rate_hz:g} Hz."
    )


def read_rate_hz(session: Path) -> float:
    """The session's control rate from its config.yaml, Hz; 50 where it says none."""
    path = session / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        return float(content["/**"]["ros__parameters"]["rate_hz"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return DEFAULT_RATE_HZ


def read_evaluations(session: Path) -> dict:
    """The evaluations stored with the session; empty when there are none."""
    path = session / EVALUATIONS
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, or evaluate again: `rlt eval --json`") from None


def comparison_rows(evaluations: Mapping[str, Mapping]) -> list[tuple[str, str, str]]:
    """(what, before, after) as texts, with 95 % intervals where they are known; what is not known is a dash."""
    rows = [("success rate", _rate), ("median steps to success", _median)]
    rows += [("successes in 10 minutes", lambda found: _plain(found.get("throughput_per_10min"), "{:.1f}"))]
    rows += [("episodes", lambda found: _plain(found.get("episodes"), "{:d}"))]
    return [(label, *(text(evaluations.get(side, {})) for side in ("before", "after"))) for label, text in rows]


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else form.format(value)


def _rate(found: Mapping) -> str:
    text = _plain(found.get("success_rate"), "{:.0%}")
    if text != "–" and "wilson_low" in found:
        text += f" ({100 * found['wilson_low']:.0f} to {100 * found['wilson_high']:.0f})"
    return text


def _median(found: Mapping) -> str:
    text = _plain(found.get("median_steps_success"), "{:.0f}")
    ended = zip(found.get("critical_steps", ()), found.get("outcomes", ()))
    steps = [ticks for ticks, outcome in ended if outcome == "SUCCESS"]
    if text != "–" and steps:
        low, high = median_interval(steps)
        text += f" ({low:.0f} to {high:.0f})"
    return text


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """TensorBoard scalars: tag -> (steps, values)."""
    if not folder.is_dir() or not any(folder.glob("events.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 2000})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([e.step for e in series], [e.value for e in series]) for tag, series in scalars.items()}


# The parts of the page.


def _minutes(episodes: Sequence[EpisodeRecord], rate_hz: float) -> list[float]:
    """Minutes of running episodes, approach included and resets not, at the end of each."""
    total, found = 0.0, []
    for episode in episodes:
        total += episode.total_steps / rate_hz / 60.0
        found.append(total)
    return found


def _counted(episodes: Sequence[EpisodeRecord], rate_hz: float) -> list[tuple[EpisodeRecord, float]]:
    """The episodes that were not aborted, each with the minutes at its end."""
    return [(e, at) for e, at in zip(episodes, _minutes(episodes, rate_hz)) if e.outcome != "aborted"]


def _axes(counted: Sequence[tuple[EpisodeRecord, float]]) -> list[tuple[str, list[float]]]:
    """The two ways to say how long it has practised."""
    return [
        ("episode", [e.index for e, _ in counted]),
        ("minutes of running episodes", [at for _, at in counted]),
    ]


def _figure(title: str, svg: str, key: str = "") -> str:
    key = f'<p class="key">{key}</p>' if key else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}{key}</figure>" if svg else ""


def _box(figures: Sequence[str], small: bool = False) -> str:
    inside = "".join(figures)
    return f'<div class="charts{" small" if small else ""}">{inside}</div>' if inside else ""


def _tiles(episodes: Sequence[EpisodeRecord], rate_hz: float) -> str:
    counted = [e for e in episodes if e.outcome != "aborted"]
    if not counted:
        return ""
    last = counted[-WINDOW:]
    won = [e for e in last if e.alone]
    low, high = wilson(len(won), len(last))
    steps = [e.critical_steps for e in won if e.critical_steps]
    seconds = sum(e.total_steps for e in episodes) / rate_hz
    wins = sum(e.alone for e in episodes)
    tiles = [
        (f"{len(won) / len(last):.0%}",
         f"success of the last {len(last)} without help: {100 * low:.0f} to {100 * high:.0f} %"),
        (f"{statistics.median(steps) / rate_hz:.2f} s" if steps else "–", "from hand-over to success, their median"),
        (f"{600 * wins / seconds:.0f}" if seconds else "–",
         "such successes in 10 minutes, whole session, without resets"),
        (f"{_share(episodes):.0%}", "of the episodes had an intervention"),
    ]
    ends = [e.end_s for e in episodes if e.end_s]
    if len(ends) > 1 and ends[-1] > ends[0]:
        tiles.insert(3, (f"{600 * (wins - episodes[0].alone) / (ends[-1] - ends[0]):.0f}",
                         "such successes in 10 minutes, resets and pauses included"))  # fmt: skip
    inside = "".join(f'<div class="tile"><b>{figure}</b><span>{words}</span></div>' for figure, words in tiles)
    return f'<div class="tiles">{inside}</div>'


def _share(episodes: Sequence[EpisodeRecord]) -> float:
    return sum(e.interventions > 0 for e in episodes) / len(episodes)


def _comparison(evaluations: Mapping[str, Mapping]) -> str:
    if not evaluations:
        return '<p class="note">Not evaluated; run <code>rlt eval</code> on the session.</p>'
    cells = ""
    for row in comparison_rows(evaluations):
        texts = [text.replace(" (", '<span class="interval">').replace(")", "</span>") for text in row[1:]]
        cells += f"<tr><td>{row[0]}</td>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>"
    table = f"<table><tr><th></th><th>frozen VLA</th><th>after practice</th></tr>{cells}</table>"
    return table + '<p class="note">Critical phase, autonomous. Below a figure: its 95 % interval.</p>'


def _success(episodes: Sequence[EpisodeRecord], rate_hz: float, changes: Sequence[dict]) -> str:
    counted = _counted(episodes, rate_hz)
    if not counted:
        return ""
    won = [e.alone for e, _ in counted]
    rates, low, high = [], [], []
    for i in range(len(won)):
        window = won[max(0, i + 1 - WINDOW) : i + 1]
        rates.append(sum(window) / len(window))
        for bound, value in zip((low, high), wilson(sum(window), len(window))):
            bound.append(value)
    learned = next((i for i, (e, _) in enumerate(counted) if e.policy_version > 0), None)
    key = (f'<b class="c1">line</b>: successes without help, mean of {WINDOW} episodes with its 95 % interval;'
           ' <b class="c2">filled</b>: one, <b class="c4">hollow above</b>: one with an intervention,'
           ' <b class="c3">below</b>: none')  # fmt: skip
    if learned is not None:
        key += "; dashed: the first episode of the practised actor" + (", and changes of settings" if changes else "")
    figures = []
    for name, x in _axes(counted):
        marks = [x[learned]] if learned is not None else []
        marks += [x[i] for i in _changed_at(changes, [e for e, _ in counted])]
        good = [x[i] for i, success in enumerate(won) if success]
        helped = [x[i] for i, (e, _) in enumerate(counted) if e.outcome == "success" and not won[i]]
        bad = [x[i] for i, (e, _) in enumerate(counted) if e.outcome != "success"]
        svg = chart(
            f"success rate against {name}",
            [Line(x, rates, "c1", low, high), Dots(good, [1.0] * len(good), "c2"),
             Dots(helped, [1.0] * len(helped), "c4", True), Dots(bad, [0.0] * len(bad), "c3", True)],
            name, (0.0, 1.0), percent=True, marks=marks,
        )  # fmt: skip
        figures.append(_figure(f"Success rate, by {name.split(' ')[0]}", svg, key))
        key = ""
    return _box(figures)


def _changed_at(changes: Sequence[dict], episodes: Sequence[EpisodeRecord]) -> list[int]:
    """For each change of a setting the place of the first episode that ended after it."""
    found = []
    for change in changes:
        found += [i for i, e in enumerate(episodes) if e.end_s and e.end_s >= change["time"]][:1]
    return found


def _times(episodes: Sequence[EpisodeRecord], rate_hz: float) -> str:
    counted = _counted(episodes, rate_hz)
    won = [(e, at) for e, at in counted if e.outcome == "success" and e.critical_steps]
    if not won:
        return '<p class="note">No success yet.</p>' if episodes else ""
    steps = [e.critical_steps for e, _ in won]
    windows = [sorted(steps[max(0, i + 1 - TIMES) : i + 1]) for i in range(len(steps))]
    at = lambda window, part: window[round(part * (len(window) - 1))]  # noqa: E731
    middle = [statistics.median(window) for window in windows]
    low, high = [at(window, 0.25) for window in windows], [at(window, 0.75) for window in windows]
    alone = [not e.interventions for e, _ in won]
    key = (f'<b class="c1">line</b>: median of {TIMES} successes, and the middle half of them;'
           ' <b class="c2">filled</b>: autonomous, <b class="c4">hollow</b>: with an intervention')  # fmt: skip
    figures = []
    for (name, x), (_, whole) in zip(_axes(won), _axes(counted)):
        pick = lambda values, wanted: [value for value, own in zip(values, alone) if own is wanted]  # noqa: B023, E731
        svg = chart(
            f"control ticks to success against {name}",
            [Dots(pick(x, True), pick(steps, True), "c2"), Dots(pick(x, False), pick(steps, False), "c4", True),
             Line(x, middle, "c1", low, high)],
            name, (0.0, max(steps) * 1.05), second=(1.0 / rate_hz, "s"), x_range=(whole[0], whole[-1]),
        )  # fmt: skip
        figures.append(_figure(f"Control ticks (right: seconds) to success, by {name.split(' ')[0]}", svg, key))
        key = ""
    return _box(figures)


def _work(episodes: Sequence[EpisodeRecord], rate_hz: float) -> str:
    if not episodes:
        return ""
    minutes = _minutes(episodes, rate_hz)
    per_10, x = [], []
    for i in range(len(episodes)):
        window = episodes[max(0, i + 1 - WINDOW) : i + 1]
        ticks = sum(e.total_steps for e in window)
        if len(window) >= min(5, len(episodes)) and ticks:
            x.append(minutes[i])
            per_10.append(600 * rate_hz * sum(e.outcome == "success" for e in window) / ticks)
    svg = chart("successes in 10 minutes", [Line(x, per_10, "c2")], "minutes of running episodes",
                (0.0, max(per_10, default=1.0) * 1.05 or 1.0))  # fmt: skip
    key = f"last {WINDOW} episodes; resets are not counted"
    figures = [_figure("Successes in 10 minutes of running episodes", svg, key)]

    index = [e.index for e in episodes]
    critical = [e for e in episodes if e.critical_steps]
    known = any(e.human_steps for e in episodes)
    if known:
        shares = [e.human_steps / e.critical_steps for e in critical]
        moving = []
        for i in range(len(critical)):
            window = critical[max(0, i + 1 - WINDOW) : i + 1]
            moving.append(sum(e.human_steps for e in window) / sum(e.critical_steps for e in window))
        at = [e.index for e in critical]
        svg = chart("share of steps by a person", [Dots(at, shares, "c4", True), Line(at, moving, "c4")], "episode",
                    (0.0, 1.0), percent=True)  # fmt: skip
        figures.append(_figure("Steps of the critical phase that a person made", svg,
                               f"hollow: an episode; line: the last {WINDOW}"))  # fmt: skip
    elif any(e.interventions for e in episodes):
        counts = [e.interventions for e in episodes]
        svg = chart("interventions", [Dots(index, counts, "c4", True)], "episode", (0.0, max(counts) + 0.5))
        figures.append(_figure("Interventions in an episode", svg))
    note = "" if any(e.interventions for e in episodes) else '<p class="note">Nobody intervened.</p>'
    return _box(figures) + note


def _hand_over(session: Path) -> str:
    """What the classifier that learned the hand-over from the presses is worth."""
    try:
        found = read_report(session)
    except (OSError, HandOverError) as error:
        return f'<p class="note">Its report cannot be read: {html.escape(str(error))}</p>'
    if found is None:
        return '<p class="note">No hand-over was learned: that takes presses in several episodes of practice.</p>'
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in hand_over_rows(found))
    return (
        f"<table>{rows}</table>"
        '<p class="note">The classifier that was trained last, each episode judged by one that did not see it.'
        " Below a figure: its 95 % interval. It hands over by itself only with enough presses, recall and few false"
        " ones (handover_node).</p>"
    )


def hand_over_rows(found: Report) -> list[tuple[str, str]]:
    """(what, figure as HTML) of a hand-over classifier; what is not known is a dash."""

    def share(value: float, hits: int, of: int) -> str:
        low, high = wilson(hits, of) if of else (0.0, 1.0)
        interval = f'<span class="interval">{100 * low:.0f} to {100 * high:.0f}</span>' if of else ""
        return _plain(value, "{:.0%}") + interval

    made = found.hits + found.false_alarms
    return [
        ("presses of a person, in as many episodes as are kept", f"{found.presses} in {found.episodes}"),
        ("recall: presses with a hand-over beside them", share(found.recall, found.hits, found.presses)),
        ("precision: hand-overs beside a press", share(found.precision, found.hits, made)),
        ("false hand-overs an episode", f"{_plain(found.false_per_episode, '{:.2f}')} ({found.false_alarms})"),
        ("hand-over after the press, median", _plain(found.timing_error_s, "{:+.2f} s")),
        ("distance of the two, 90 % within", _plain(found.timing_spread_s, "{:.2f} s")),
        ("calibration error of the probability", _plain(found.calibration_error, "{:.3f}")),
    ]


def _gate(episodes: Sequence[EpisodeRecord]) -> str:
    total = sum((Counter(e.gate) for e in episodes), Counter())
    if not total:
        noted = any(e.end_s for e in episodes)
        words = "The gate let everything pass." if noted else "This session did not note what the gate did."
        return f'<p class="note">{words}</p>'
    bins = min(BINS, len(episodes))
    rows = ""
    for cause, count in total.most_common():
        counts = [0] * bins
        for i, episode in enumerate(episodes):
            counts[i * bins // len(episodes)] += episode.gate.get(cause, 0)
        rows += (f"<tr><td>{html.escape(cause.replace('_', ' '))}</td><td>{count}</td>"
                 f'<td style="width:45%">{charts.bars(counts)}</td></tr>')  # fmt: skip
    return (
        "<table><tr><th>cause</th><th>times</th><th>over the session</th></tr>" + rows + "</table>"
        '<p class="note">Commands refused, and control ticks held or changed; docs/safety.md has the causes.</p>'
    )


def _curves(curves: Mapping[str, tuple[list[int], list[float]]]) -> str:
    tags = [tag for tag in CURVES if tag in curves]
    tags += sorted(tag for tag in curves if tag not in CURVES and tag not in LEFT_OUT)
    figures = []
    for tag in tags:
        percent = tag.endswith(("_share", "success_rate"))
        y_range = (0.0, 1.0) if percent else _usual(curves[tag][1])
        svg = chart(tag, [Line(*curves[tag], "c1")], "updates", y_range, percent)
        figures.append(_figure(tag.replace("_", " "), svg, html.escape(CURVES.get(tag, ""))))
    return _box(figures, small=True)


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """A range without the spikes of the first updates, which would flatten everything after them."""
    ordered = sorted(value for value in values if value == value)
    cut = len(ordered) // 50
    low, high = ordered[cut], ordered[-1 - cut]
    margin = 0.1 * (high - low)
    return max(ordered[0], low - margin), min(ordered[-1], high + margin)


def _changes(changes: Sequence[dict], episodes: Sequence[EpisodeRecord]) -> str:
    if not changes:
        return '<p class="note">Nothing was changed while it ran.</p>'
    rows = ""
    for change in changes:
        after = next((e.index for e in reversed(episodes) if e.end_s and e.end_s < change["time"]), None)
        when = f"{datetime.fromtimestamp(change['time']):%H:%M:%S}" + (f", after episode {after}" if after else "")
        what = f"{change['node']} {change['name']}"
        rows += f"<tr><td>{when}</td><td>{html.escape(what)}</td><td>{html.escape(str(change['value']))}</td></tr>"
    return f'<table class="words"><tr><th>changed at</th><th>what</th><th>to</th></tr>{rows}</table><br>'
