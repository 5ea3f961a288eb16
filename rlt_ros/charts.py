"""Small charts as inline SVG, for a page that is read on a phone and on a desk, in light and dark.

A chart is 360 units wide, about the points of a phone, so that its letters are as large as the page's. Colours are
classes (c1, c2 ...), which the page's style defines for light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
RIGHT_WITH_AXIS = 40
POINTS = 400  # of a line; more cannot be told apart

STYLE = """
svg.chart { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg.chart text { fill: var(--dim); } svg.chart .grid { stroke: var(--line); stroke-width: 1; }
svg.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; } svg.chart .band { opacity: .18; stroke: none; }
svg.chart .dot { opacity: .75; } svg.chart .mark { stroke: var(--dim); stroke-dasharray: 3 3; }
.c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); }
.line.c1, .line.c2, .line.c3, .line.c4 { stroke: currentColor; }
.band.c1, .band.c2, .dot.c1, .dot.c2, .dot.c3, .dot.c4 { fill: currentColor; } .hollow { fill: none !important;
stroke: currentColor; stroke-width: 1.3; }
.key { font-size: 13px; color: var(--dim); margin: .2rem 0 0; } .key b { font-weight: 600; }
"""


@dataclass(frozen=True)
class Line:
    """A curve through (x, y), and a band between `low` and `high` about it."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "c1"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Dots:
    """A dot at each (x, y); hollow ones are told from filled ones without colours."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "c2"
    hollow: bool = False


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label."""
    if abs(value) >= 1e4:
        return f"{value / 1e3:.10g}k" if abs(value) < 1e6 else f"{value / 1e6:.10g}M"
    return f"{value:.10g}" if not value or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def chart(
    label: str,
    items: Sequence[Line | Dots],
    x_label: str,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    second: tuple[float, str] | None = None,
    marks: Sequence[float] = (),
) -> str:
    """An SVG element, or "" when there is nothing to draw.

    label: what a screen reader says.  y_range: of the axis; left out, from the data.  percent: y is a share.
    second: (factor, unit) of an axis on the right, whose numbers are y times the factor.  marks: x of vertical lines.
    """
    xs = [float(value) for item in items for value in item.x if math.isfinite(value)]
    ys = [float(value) for item in items for value in item.y if math.isfinite(value)]
    if not xs or not ys:
        return ""
    x_low, x_high = min(xs), max(xs)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = y_range or (min(ys), max(ys))
    if not y_high > y_low:
        y_low, y_high = y_low - 0.5 * (abs(y_low) or 1), y_high + 0.5 * (abs(y_high) or 1)
    right = WIDTH - (RIGHT_WITH_AXIS if second else RIGHT)
    bottom = HEIGHT - BOTTOM
    px = lambda x: LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)  # noqa: E731
    py = lambda y: bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - TOP)  # noqa: E731

    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for value in ticks(y_low, y_high):
        y = py(value)
        text = f"{100 * value:.0f} %" if percent else number(value)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    if second:
        factor, unit = second
        for value in ticks(y_low * factor, y_high * factor):
            out.append(f'<text x="{right + 5}" y="{py(value / factor) + 4:.1f}">{number(value)} {unit}</text>')
    for value in ticks(x_low, x_high, 6):
        out.append(f'<text x="{px(value):.1f}" y="{bottom + 14}" text-anchor="middle">{number(value)}</text>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for mark in marks:
        if x_low <= mark <= x_high:
            out.append(f'<line class="mark" x1="{px(mark):.1f}" x2="{px(mark):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for item in items:
        out.append(_line(item, px, py) if isinstance(item, Line) else _dots(item, px, py))
    return "".join(out) + "</svg>"


def _line(item: Line, px, py) -> str:
    keep = range(0, len(item.x), max(1, math.ceil(len(item.x) / POINTS)))
    keep = [i for i in keep if math.isfinite(item.y[i])]
    at = lambda values: [f"{px(item.x[i]):.1f},{py(values[i]):.1f}" for i in keep]  # noqa: E731
    band = ""
    if item.low is not None and item.high is not None:
        band = f'<polygon class="band {item.colour}" points="{" ".join(at(item.high) + at(item.low)[::-1])}"/>'
    return band + f'<polyline class="line {item.colour}" points="{" ".join(at(item.y))}"/>'


def _dots(item: Dots, px, py) -> str:
    shape = f'class="dot {item.colour}{" hollow" if item.hollow else ""}" r="2.4"'
    return "".join(
        f'<circle {shape} cx="{px(x):.1f}" cy="{py(y):.1f}"/>' for x, y in zip(item.x, item.y) if math.isfinite(y)
    )


def bars(counts: Sequence[float], width: int = 120, height: int = 20) -> str:
    """A row of thin bars, for a table's cell."""
    most = max(counts, default=0)
    if not most:
        return ""
    step = width / len(counts)
    rects = "".join(
        f'<rect x="{i * step:.1f}" y="{height * (1 - value / most):.1f}" width="{max(1.0, step - 1):.1f}"'
        f' height="{height * value / most:.1f}"/>'
        for i, value in enumerate(counts)
        if value
    )
    return f'<svg class="bars" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'
