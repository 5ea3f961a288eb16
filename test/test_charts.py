"""Charts of a report."""

import xml.etree.ElementTree as ET

import pytest

from rlt_ros.charts import HEIGHT, WIDTH, Dots, Line, bars, chart, number, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.0, 430.0, [0.0, 100.0, 200.0, 300.0, 400.0]),
     (-3.0, 9.0, [-2.5, 0.0, 2.5, 5.0, 7.5]), (5.0, 5.0, [5.0])],
)  # fmt: skip
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected


def test_numbers_are_short():
    assert [number(v) for v in (0, 0.25, 1000, 20000, 2_500_000, 0.0004)] == ["0", "0.25", "1000", "20k", "2.5M", "4e-4"]


def test_everything_is_drawn_inside_the_chart():
    drawn = ET.fromstring(chart("a < b", [Line([1, 2, 3], [0.0, 9.0, 0.5], low=[0, 0, 0], high=[1, 99, 1]),
                                          Dots([1, 3], [1.0, -5.0])], "x", (0.0, 1.0), second=(2.0, "s")))  # fmt: skip
    points = [tuple(map(float, pair.split(","))) for shape in ("polyline", "polygon") for element in drawn.iter(shape)
              for pair in element.get("points").split()]  # fmt: skip
    points += [(float(c.get("cx")), float(c.get("cy"))) for c in drawn.iter("circle")]
    assert len(points) == 3 + 6 + 2
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert drawn.get("aria-label") == "a < b"
    assert any(text.text == "2 s" for text in drawn.iter("text"))


def test_what_is_not_finite_leaves_a_gap():
    drawn = ET.fromstring(chart("", [Line([1, 2, 3], [0.0, float("nan"), 1.0])], "x"))
    assert len(next(drawn.iter("polyline")).get("points").split()) == 2


def test_long_lines_are_thinned_out():
    drawn = ET.fromstring(chart("", [Line(range(10_000), range(10_000))], "x"))
    assert 200 <= len(next(drawn.iter("polyline")).get("points").split()) <= 400


def test_nothing_is_drawn_of_nothing():
    assert chart("", [Line([], [])], "x") == "" and bars([]) == "" and bars([0, 0]) == ""


def test_one_point_is_a_chart_too():
    ET.fromstring(chart("", [Dots([3], [7.0])], "x"))
    assert bars([0, 2, 1]).count("<rect") == 2
