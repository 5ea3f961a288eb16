"""One self-contained HTML page about a practice session: did it learn, how fast, with which settings."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from rlt_ros.data.episodes import EpisodeRecord, read_episodes

DEFAULT_RATE_HZ = 50.0
WINDOW = 20  # episodes of the moving success rate
EVALUATIONS = "evaluations.json"  # {"before": {...}, "after": {...}} as `rlt eval --json` writes them

ROWS = (
    ("success rate", "success_rate", "{:.0%}"),
    ("median steps to success", "median_steps_success", "{:.0f}"),
    ("successes in 10 minutes", "throughput_per_10min", "{:.1f}"),
    ("episodes", "episodes", "{:d}"),
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem 1rem; border-bottom: 1px solid #d8dee4; }
td { text-align: right; } td:first-child, th { text-align: left; } svg { max-width: 100%; height: auto; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: 13px; } .note { color: #57606a; }
"""


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
    evaluations = read_evaluations(session)
    curves = read_curves(session / "metrics")
    settings = session / "config.yaml"
    rate_hz = read_rate_hz(session)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Practice session {html.escape(session.name)}</title>
<style>{STYLE}</style></head><body>
<h1>Practice session {html.escape(session.name)}</h1>
<p>{html.escape(summary(episodes, rate_hz))}</p>
<h2>Before and after</h2>
{_comparison(evaluations)}
<h2>Episodes of the practice</h2>
{_plot(_draw_episodes, episodes) if episodes else '<p class="note">No episode has ended yet.</p>'}
<h2>Learner</h2>
{_plot(_draw_curves, curves) if curves else '<p class="note">The learner has not logged anything yet.</p>'}
<h2>Settings</h2>
<pre>{html.escape(settings.read_text() if settings.is_file() else "config.yaml is missing")}</pre>
</body></html>
"""
    path = session / "report.html"
    path.write_text(page, encoding="utf-8")
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
    return json.loads(path.read_text()) if path.is_file() else {}


def comparison_rows(evaluations: Mapping[str, Mapping]) -> list[tuple[str, str, str]]:
    """(what, before, after) as texts; a value that is not known is a dash."""
    rows = []
    for label, key, form in ROWS:
        values = [evaluations.get(side, {}).get(key) for side in ("before", "after")]
        texts = ["–" if value is None or value != value else form.format(value) for value in values]
        rows.append((label, *texts))
    return rows


def read_curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """TensorBoard scalars: tag -> (steps, values)."""
    if not folder.is_dir() or not any(folder.glob("events.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 2000})
    events.Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([e.step for e in series], [e.value for e in series]) for tag, series in scalars.items()}


def _comparison(evaluations: Mapping[str, Mapping]) -> str:
    if not evaluations:
        return '<p class="note">Not evaluated; run <code>rlt eval</code> on the session.</p>'
    cells = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in comparison_rows(evaluations))
    return f"<table><tr><th></th><th>frozen VLA</th><th>after practice</th></tr>{cells}</table>"


def _plot(draw, content) -> str:
    """Inline SVG of what `draw(content)` returns as a matplotlib figure."""
    import matplotlib

    matplotlib.use("Agg")
    figure = draw(content)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    import matplotlib.pyplot as plt

    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _draw_episodes(episodes: Sequence[EpisodeRecord]):
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5.5), sharex=True)
    counted = [e for e in episodes if e.outcome != "aborted"]
    index = np.array([e.index for e in counted])
    success = np.array([e.outcome == "success" for e in counted], float)
    rate = [success[max(0, i + 1 - WINDOW) : i + 1].mean() for i in range(len(success))]
    top.plot(index, rate, color="#0969da", label=f"last {WINDOW} episodes")
    top.plot(index, success, "|", color="#57606a", markersize=8, label="episode")
    top.set(ylim=(-0.05, 1.05), ylabel="success rate")
    top.legend(loc="lower right", frameon=False)
    for name, colour, chosen in (
        ("success", "#1a7f37", lambda e: e.outcome == "success" and not e.interventions),
        ("success with intervention", "#bf8700", lambda e: e.outcome == "success" and e.interventions > 0),
        ("no success", "#cf222e", lambda e: e.outcome in ("failure", "timeout")),
    ):
        some = [e for e in counted if chosen(e)]
        bottom.plot([e.index for e in some], [e.critical_steps for e in some], "o", ms=4, color=colour, label=name)
    bottom.set(xlabel="episode", ylabel="critical phase [control ticks]", ylim=(0, None))
    bottom.legend(loc="upper right", frameon=False)
    return figure


def _draw_curves(curves: Mapping[str, tuple[list[int], list[float]]]):
    import matplotlib.pyplot as plt

    tags = sorted(curves)
    rows = (len(tags) + 2) // 3
    figure, axes = plt.subplots(rows, 3, figsize=(9, 2.2 * rows), squeeze=False)
    for axis, tag in zip(axes.flat, tags, strict=False):
        axis.plot(*curves[tag], color="#0969da", linewidth=1)
        axis.set_title(tag, fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in list(axes.flat)[len(tags) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure
