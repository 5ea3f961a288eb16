"""Colours of the panel: light and dark, told apart by people who see fewer colours (after Okabe and Ito).

No colour stands alone: what it says is also written or drawn.
"""

from dataclasses import dataclass

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.panel.qt import QtGui, QtWidgets

WHITE, BLACK = "#ffffff", "#101418"


@dataclass(frozen=True)
class Theme:
    """Neutral colours of one mode, and the signal colours as they read best on them."""

    dark: bool
    window: str
    card: str
    line: str
    text: str
    dim: str
    good: str
    warn: str
    bad: str
    info: str
    human: str


LIGHT = Theme(
    False, "#eef1f4", "#ffffff", "#cfd6dd", "#14191f", "#56616d", "#007a59", "#a86f00", "#c24a00", "#0069a5", "#9b3f77"
)
DARK = Theme(
    True, "#14181d", "#1e242b", "#38424d", "#eef2f6", "#9aa7b4", "#2cc79a", "#f0b429", "#ff8a3d", "#56b4e9", "#e08fbe"
)

# Of buttons and of the phase, in both modes: (fill, text)
BLUE, GREEN, AMBER, ORANGE, RED = (
    ("#0072b2", WHITE),
    ("#00805d", WHITE),
    ("#e69f00", BLACK),
    ("#c25400", WHITE),
    ("#c8102e", WHITE),
)
PURPLE, GREY = ("#8a3f6f", WHITE), ("#5b6773", WHITE)

PHASES = {Phase.IDLE: GREY, Phase.APPROACH: BLUE, Phase.CRITICAL: AMBER}
OUTCOMES = {
    Outcome.NONE: GREY,
    Outcome.SUCCESS: GREEN,
    Outcome.FAILURE: ORANGE,
    Outcome.TIMEOUT: PURPLE,
    Outcome.ABORTED: GREY,
}


def driver(theme: Theme, source: Source) -> str:
    """Colour of who is in control."""
    return {Source.HUMAN: theme.human, Source.ACTOR: theme.warn, Source.VLA: theme.info}.get(source, theme.dim)


def present() -> Theme:
    """The theme that goes with the application's palette."""
    window = QtWidgets.QApplication.palette().color(QtGui.QPalette.ColorRole.Window)
    return DARK if window.lightness() < 128 else LIGHT


def palette(theme: Theme) -> "QtGui.QPalette":
    """A palette for an application that has no other wish."""
    made, role = QtGui.QPalette(), QtGui.QPalette.ColorRole
    for roles, colour in (
        ((role.Window, role.Button), theme.window),
        ((role.Base, role.AlternateBase, role.ToolTipBase), theme.card),
        ((role.WindowText, role.Text, role.ButtonText, role.ToolTipText), theme.text),
        ((role.Highlight,), theme.info),
    ):
        for item in roles:
            made.setColor(item, QtGui.QColor(colour))
    return made
