"""The panel without a screen, beside real nodes over real DDS."""

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"  # before Qt is imported

import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("qtpy", reason="no Qt for Python here", exc_type=ImportError)

from rlt_ros.panel.qt import QtCore, QtGui, QtWidgets


class Stage:
    """A panel, its application and the nodes of a test, driven by turns in one thread; the panel's link has its own."""

    def __init__(self, app: QtWidgets.QApplication, graph) -> None:  # noqa: ANN001
        from rlt_ros.panel.widget import Panel

        self.app, self.graph = app, graph
        self.panel = Panel()
        self.panel.show()
        self.longest_s = 0.0  # that one turn of the event loop took

    def turn(self) -> None:
        """Let the windows handle what waits, and the nodes for some ms."""
        began_s = time.monotonic()
        self.app.processEvents()
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.graph.spin_once(0.005)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Go on until `condition()`; fail, saying `what` was awaited."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {timeout_s} s for {what}; the panel says {self.panel.notice.words()!r}")
            self.turn()

    def enabled(self, *names: str) -> None:
        """Wait until exactly these of the episode's buttons are enabled."""
        every = {"start", "hand_over", "success", "failure", "abort", "undo", "reset"}
        self.until(
            lambda: {n for n in every if self.panel.buttons[n].isEnabled()} == set(names), f"{names} to be enabled"
        )

    def click(self, name: str) -> None:
        """A finger on the button."""
        self.panel.buttons[name].click()

    def key(self, key: QtCore.Qt.Key, modifier=QtCore.Qt.KeyboardModifier.NoModifier) -> None:  # noqa: ANN001
        """A key, pressed and let go as the window system would say it."""
        from qtpy.QtTest import QTest

        QTest.keyClick(self.panel, key, modifier)


@pytest.fixture(scope="session")
def app() -> Iterator[QtWidgets.QApplication]:
    yield QtWidgets.QApplication.instance() or QtWidgets.QApplication(["test"])


@pytest.fixture
def stage(app: QtWidgets.QApplication, graph) -> Iterator[Stage]:  # noqa: ANN001
    made = Stage(app, graph)
    yield made
    made.panel.shutdown()
    made.panel.deleteLater()
    app.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
    app.setPalette(QtGui.QPalette())
