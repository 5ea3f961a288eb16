"""The panel's pieces by themselves."""

import math

import pytest

pytest.importorskip("qtpy", reason="no Qt for Python here", exc_type=ImportError)

from rlt_ros.panel import parts
from rlt_ros.panel.qt import QtCore, QtWidgets

ADVICE = "wrist: sends pictures that are 0.213 s old on arrival, more than max_delay_s (0.1 s); find what delays it"


@pytest.fixture
def app() -> QtWidgets.QApplication:
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication(["test"])


@pytest.mark.parametrize("share", [0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0])
def test_words_that_are_a_little_too_long_get_smaller_and_stay_whole(app, share) -> None:
    face = parts.font(QtWidgets.QWidget(), 0.85)
    room = share * parts.QtGui.QFontMetricsF(face).horizontalAdvance("aborts the episode")
    words, face = parts.fitted("aborts the episode", face, room)
    assert words == "aborts the episode" and parts.QtGui.QFontMetricsF(face).horizontalAdvance(words) <= room
    assert parts.fitted("aborts the episode", face, 0.5 * room)[0].endswith("\N{HORIZONTAL ELLIPSIS}")


def test_what_a_node_needs_is_written_out_to_its_end(app) -> None:
    rows = parts.Rows("nothing")
    rows.resize(280, 400)
    rows.show_((("warn", "#000000", "camera_node", ADVICE, "tip"), ("ok", "#000000", "vla_node", 9 * ADVICE, "other")))
    loud, quiet = rows.heights()
    line = parts.QtGui.QFontMetricsF(parts.font(rows, 0.82)).height()
    assert loud >= rows.HEIGHT / 2 - 1 + 2 * line and quiet == rows.HEIGHT
    assert rows.minimumHeight() == round(loud + quiet)
    rows.resize(140, 400)
    app.processEvents()
    assert rows.heights()[0] > loud


def test_a_key_does_not_stand_on_the_line_below_the_label(app) -> None:
    with_key, without = (parts.ActionButton("undo", "Undo", key, None, 58, 1.15) for key in ("Ctrl+Z", ""))
    for button in (with_key, without):
        button.resize(180, 58)
        button.allow("", "", "hint")
    label, line = (parts.QtGui.QFontMetricsF(parts.font(with_key, *face)).height() for face in ((1.15, True), (0.85,)))
    strip = QtCore.QRect(0, math.ceil((58 - line + label) / 2), 180, math.floor(line))
    assert with_key.grab(strip).toImage() == without.grab(strip).toImage()
    assert with_key.grab().toImage() != without.grab().toImage()
