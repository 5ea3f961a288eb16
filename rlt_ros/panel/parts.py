"""The panel's pieces: painted by hand, so that they look the same under every style, and only when they changed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from rlt_ros.core.episode import Outcome
from rlt_ros.panel import theme as themes
from rlt_ros.panel.qt import QtCore, QtGui, QtWidgets

Qt, QRectF, QPointF, QColor = QtCore.Qt, QtCore.QRectF, QtCore.QPointF, QtGui.QColor
LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
CENTRE = Qt.AlignmentFlag.AlignCenter
NO_PEN, NO_BRUSH = Qt.PenStyle.NoPen, Qt.BrushStyle.NoBrush
WRAPPED = 0x1021  # word wrap, left, top; a number, since not every Qt for Python adds flags of two kinds
RADIUS = 8.0

_FORMATS = {  # encoding of sensor_msgs/Image -> how Qt calls the same bytes
    "rgb8": QtGui.QImage.Format.Format_RGB888,
    "bgr8": QtGui.QImage.Format.Format_BGR888,
    "rgba8": QtGui.QImage.Format.Format_RGBA8888,
    "bgra8": QtGui.QImage.Format.Format_ARGB32,
    "mono8": QtGui.QImage.Format.Format_Grayscale8,
}


def font(widget: QtWidgets.QWidget, scale: float = 1.0, bold: bool = False) -> QtGui.QFont:
    """The widget's font, larger or smaller."""
    made = QtGui.QFont(widget.font())
    size = made.pointSizeF()
    made.setPointSizeF((size if size > 0 else 10.0) * scale)
    made.setBold(bold)
    return made


def fitted(words: str, face: QtGui.QFont, room: float) -> tuple[str, QtGui.QFont]:
    """Smaller when it is a little too long for `room` px, cut off when it is much too long."""
    width = lambda: QtGui.QFontMetricsF(face).horizontalAdvance(words)  # noqa: E731
    if width() > room > 0:
        face, least = QtGui.QFont(face), 0.75 * face.pointSizeF()
        while width() > room and face.pointSizeF() > least:  # hinted widths go in steps
            face.setPointSizeF(max(least, 0.95 * face.pointSizeF()))
        words = QtGui.QFontMetricsF(face).elidedText(words, Qt.TextElideMode.ElideRight, room)
    return words, face


def text(painter: QtGui.QPainter, box: QRectF, words: str, face: QtGui.QFont, colour: str, align=LEFT) -> None:
    """One line, made to fit."""
    words, face = fitted(words, face, box.width())
    painter.setFont(face)
    painter.setPen(QColor(colour))
    painter.drawText(box, int(align), words) if isinstance(align, int) else painter.drawText(box, align, words)


class Part(QtWidgets.QWidget):
    """A card that repaints when what `show_` is given differs from what it shows."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.theme = themes.present()
        self._shown: object = None

    def set_theme(self, theme: themes.Theme) -> None:
        self.theme = theme
        self.update()

    def show_(self, *what: object) -> None:
        """Show this."""
        if what != self._shown:
            self._shown = what
            self.update()

    def card(self, painter: QtGui.QPainter, fill: str = "", line: str = "") -> QRectF:
        """Paint the background; return the space inside."""
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        painter.setPen(QtGui.QPen(QColor(line or self.theme.line), 1.0))
        painter.setBrush(QColor(fill or self.theme.card))
        box = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(box, RADIUS, RADIUS)
        return box.adjusted(14, 9, -14, -9)


class PhaseBand(Part):
    """show_(words, explanation, (fill, text colour))."""

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        words, below, (fill, ink) = self._shown or ("", "", themes.GREY)
        painter = QtGui.QPainter(self)
        box = self.card(painter, fill, fill)
        half = box.height() * 0.64
        text(painter, QRectF(box.left(), box.top(), box.width(), half), words, font(self, 3.0, True), ink)
        text(
            painter,
            QRectF(box.left(), box.top() + half, box.width(), box.height() - half),
            below,
            font(self, 1.05),
            ink,
        )


class Tile(Part):
    """One number: show_(value, what is to be said of it, colour of the bar or "")."""

    def __init__(self, caption: str, scale: float = 1.75) -> None:
        super().__init__()
        self.caption, self.scale = caption, scale

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        value, below, colour = self._shown or ("", "", "")
        painter = QtGui.QPainter(self)
        box = self.card(painter)
        if colour:
            painter.setPen(NO_PEN)
            painter.setBrush(QColor(colour))
            painter.drawRoundedRect(QRectF(1, 9, 5, self.height() - 18), 2.5, 2.5)
        small, rest = font(self, 0.85), box.height()
        line = QtGui.QFontMetricsF(small).height()
        text(
            painter,
            QRectF(box.left(), box.top(), box.width(), line),
            self.caption.upper(),
            font(self, 0.75, True),
            self.theme.dim,
        )
        text(
            painter,
            QRectF(box.left(), box.top() + line, box.width(), rest - 2 * line),
            value,
            font(self, self.scale, True),
            self.theme.text,
        )
        text(painter, QRectF(box.left(), box.bottom() - line, box.width(), line), below, small, self.theme.dim)


class ActionButton(QtWidgets.QAbstractButton):
    """A button for a finger: picture, label, key, and what stands in its way."""

    def __init__(
        self, name: str, label: str, key: str, fill: tuple[str, str] | None, height: int, scale: float
    ) -> None:
        super().__init__()
        self.name, self.key, self.fill, self.scale = name, key, fill, scale
        self.theme, self.below = themes.present(), ""
        self.setText(label)
        self.setAccessibleName(label)
        self.setMinimumHeight(height)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the space bar is the emergency stop, whatever was pressed last
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Expanding)

    def set_theme(self, theme: themes.Theme) -> None:
        self.theme = theme
        self.update()

    def allow(self, reason: str, short: str, hint: str = "") -> None:
        """Enabled when there is no `reason` against it; `short` and `hint` are written below the label."""
        self.setEnabled(not reason)
        below, tip = (short if reason else hint), reason or f"{self.text()} ({self.key})"
        if (below, tip) != (self.below, self.toolTip()):
            self.below = below
            self.setToolTip(tip)
            self.setAccessibleDescription(reason)
            self.update()

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(130, self.minimumHeight())

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        painter, theme = QtGui.QPainter(self), self.theme
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        fill, ink = self.fill or (theme.card, theme.text)
        line = QColor(theme.line if self.fill is None else fill)
        colour = QColor(fill)
        if not self.isEnabled():
            colour, ink, line = QColor(theme.window), theme.dim, QColor(theme.line)
        elif self.isDown():
            colour = colour.darker(130)
        elif self.underMouse():
            colour = colour.lighter(112) if self.fill or theme.dark else colour.darker(104)
        pen = QtGui.QPen(line, 1.0)
        if not self.isEnabled():
            pen.setStyle(Qt.PenStyle.DashLine)
        painter.setPen(pen)
        painter.setBrush(colour)
        box = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.drawRoundedRect(box, RADIUS, RADIUS)

        big, small = font(self, self.scale, True), font(self, 0.85)
        key_face = font(self, 0.8)
        key_width = QtGui.QFontMetricsF(key_face).horizontalAdvance(self.key) + 12 if self.key else 0
        inner = box.adjusted(14, 6, -12, -6)
        side = QtGui.QFontMetricsF(big).height() * 0.72
        middle = inner.center().y() - (QtGui.QFontMetricsF(small).height() * 0.5 if self.below else 0)
        icon(painter, self.name, QRectF(inner.left(), middle - side / 2, side, side), ink)
        left = inner.left() + side + 10
        height = QtGui.QFontMetricsF(big).height()
        text(
            painter,
            QRectF(left, middle - height / 2, inner.right() - left - key_width - 6, height),
            self.text(),
            big,
            ink,
        )
        if self.below:
            text(
                painter,
                QRectF(left, middle + height / 2 - 1, inner.right() - left, QtGui.QFontMetricsF(small).height()),
                self.below,
                small,
                ink,
            )
        if self.key:
            bottom = min(10, height / 2 - 1) if self.below else 10  # above the line below
            cap = QRectF(inner.right() - key_width, middle + bottom - 20, key_width, 20)
            painter.setPen(QtGui.QPen(_faded(ink, 110), 1.0))
            painter.setBrush(NO_BRUSH)
            painter.drawRoundedRect(cap, 4, 4)
            text(painter, cap, self.key, key_face, ink, CENTRE)


def _faded(colour: str, alpha: int) -> QColor:
    made = QColor(colour)
    made.setAlpha(alpha)
    return made


def icon(painter: QtGui.QPainter, name: str, box: QRectF, colour: str) -> None:
    """Draw the picture of an action or state in a square; fonts lack them."""
    painter.save()
    painter.translate(box.topLeft())
    painter.scale(box.width() / 24.0, box.height() / 24.0)
    pen = QtGui.QPen(QColor(colour), 3.2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin)
    painter.setPen(pen)
    painter.setBrush(NO_BRUSH)
    lines = {
        "success": [[(4, 13), (10, 19), (20, 5)]],
        "failure": [[(5, 5), (19, 19)], [(19, 5), (5, 19)]],
        "hand_over": [[(3, 12), (20, 12)], [(13, 5), (20, 12), (13, 19)]],
        "undo": [[(9, 3), (4, 8), (9, 13)], [(4, 8), (15, 8)]],
        "confirm": [[(4, 13), (10, 19), (20, 5)]],
        "keep": [[(5, 5), (19, 19)], [(19, 5), (5, 19)]],
    }
    filled = {
        "start": [(6, 3), (21, 12), (6, 21)],
        "abort": [(5, 5), (19, 5), (19, 19), (5, 19)],
        "stop": [(7.5, 1), (16.5, 1), (23, 7.5), (23, 16.5), (16.5, 23), (7.5, 23), (1, 16.5), (1, 7.5)],
    }
    for line in lines.get(name, []):
        painter.drawPolyline(QtGui.QPolygonF([QPointF(*p) for p in line]))
    if name in filled:
        painter.setPen(NO_PEN if name == "stop" else QtGui.QPen(QColor(colour), 2.0))
        painter.setBrush(QColor(colour))
        painter.drawPolygon(QtGui.QPolygonF([QPointF(*p) for p in filled[name]]))
    elif name == "undo":
        painter.drawArc(QRectF(9, 8, 12, 12), -90 * 16, 180 * 16)
        painter.drawLine(QPointF(15, 20), QPointF(8, 20))
    elif name == "reset":
        painter.drawArc(QRectF(3, 3, 18, 18), 60 * 16, 290 * 16)
        painter.drawPolyline(QtGui.QPolygonF([QPointF(*p) for p in ((22, 2), (21, 9), (14.5, 7.5))]))
    elif name == "release":
        painter.drawArc(QRectF(7, 2, 10, 12), 20 * 16, 160 * 16)
        painter.drawLine(QPointF(7, 8), QPointF(7, 12))
        painter.setBrush(QColor(colour))
        painter.drawRoundedRect(QRectF(5, 12, 14, 9), 1, 1)
    painter.restore()


class CameraView(Part):
    """show_(link.Picture or None, seconds since it came, what to write when there is none)."""

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        picture, age_s, missing = self._shown or (None, 0, "")
        painter = QtGui.QPainter(self)
        box = self.card(painter, "#0b0e11")
        image = None if picture is None else as_image(picture)
        if image is None:
            words = missing if picture is None else f"cannot show {picture.encoding} {picture.width}x{picture.height}"
            painter.setFont(font(self))
            painter.setPen(QColor(themes.DARK.dim))
            painter.drawText(box, int(CENTRE | Qt.TextFlag.TextWordWrap), words)
            return
        whole = QRectF(self.rect()).adjusted(1, 1, -1, -1)
        scale = min(whole.width() / image.width(), whole.height() / image.height())
        width, height = image.width() * scale, image.height() * scale
        target = QRectF(whole.center().x() - width / 2, whole.center().y() - height / 2, width, height)
        clip = QtGui.QPainterPath()
        clip.addRoundedRect(whole, RADIUS, RADIUS)
        painter.setClipPath(clip)
        painter.setRenderHint(QtGui.QPainter.RenderHint.SmoothPixmapTransform)
        painter.drawImage(target, image)
        words = f"camera {picture.camera}" + (f", silent for {age_s} s" if age_s else "")
        face = font(self, 0.85, bool(age_s))
        label = QRectF(
            whole.left() + 8, whole.bottom() - 30, QtGui.QFontMetricsF(face).horizontalAdvance(words) + 16, 22
        )
        if age_s:
            painter.fillRect(target, QColor(0, 0, 0, 150))
        painter.setPen(NO_PEN)
        painter.setBrush(QColor(0, 0, 0, 170))
        painter.drawRoundedRect(label, 5, 5)
        text(painter, label, words, face, themes.DARK.warn if age_s else themes.WHITE, CENTRE)


def as_image(picture) -> QtGui.QImage | None:
    """The bytes of a Picture as Qt sees them, without touching one; None for what cannot be shown."""
    kind = _FORMATS.get(picture.encoding)
    if kind is None or not picture.width or len(picture.data) < picture.step * picture.height:
        return None
    # QImage looks into the bytes, which `picture` keeps alive while it is shown.
    return QtGui.QImage(picture.data, picture.width, picture.height, picture.step, kind)


class Curves(Part):
    """show_(history, window): success of each episode, and the moving rate and steps of those without help."""

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        history, window = self._shown or ((), 20)
        painter, theme = QtGui.QPainter(self), self.theme
        box = self.card(painter)
        counted = [item for item in history if item.outcome is not Outcome.ABORTED]
        line, gap = QtGui.QFontMetricsF(font(self, 0.75)).height(), 28.0
        if len(counted) < 2:
            text(painter, box, "The curves begin with the second episode.", font(self, 1.0), theme.dim, CENTRE)
            return
        first, last = counted[0].number, counted[-1].number
        width = (box.width() - gap) / 2
        left = QRectF(box.left(), box.top(), width, box.height())
        right = QRectF(box.left() + width + gap, box.top(), width, box.height())

        good = [item.alone for item in counted]
        rates = [
            sum(good[max(0, i + 1 - window) : i + 1]) / len(good[max(0, i + 1 - window) : i + 1])
            for i in range(len(good))
        ]
        title = f"success without help, mean of {window}"
        plot = self._frame(painter, left, title, ("0 %", "100 %"), (first, last), line)
        x = lambda area, n: area.left() + area.width() * (n - first) / max(1, last - first)  # noqa: E731
        area = plot.adjusted(5, 6, -5, -6)
        painter.setPen(NO_PEN)
        for item in counted:
            # Above a success, hollow with help, below none: the colour only repeats it.
            won = item.outcome is Outcome.SUCCESS
            painter.setBrush(_faded(theme.good, 150) if item.alone else QColor(theme.card))
            painter.setPen(QtGui.QPen(QColor(theme.good if won else theme.bad), 1.2))
            painter.drawEllipse(QPointF(x(area, item.number), area.top() if won else area.bottom()), 2.6, 2.6)
        self._line(
            painter,
            [(x(area, n), area.bottom() - area.height() * r) for (n, *_), r in zip(counted, rates)],
            theme.good,
        )

        wins = [(item.number, item.steps) for item in counted if item.alone and item.steps > 0]
        top = max([steps for _, steps in wins], default=100) * 1.05
        plot = self._frame(painter, right, "control ticks to success", ("0", f"{top:.0f}"), (first, last), line)
        area = plot.adjusted(5, 6, -5, -6)
        y = lambda steps: area.bottom() - area.height() * steps / top  # noqa: E731
        painter.setPen(NO_PEN)
        painter.setBrush(_faded(theme.info, 130))
        for number, steps in wins:
            painter.drawEllipse(QPointF(x(area, number), y(steps)), 2.6, 2.6)
        medians = [statistics.median([s for _, s in wins[max(0, i - 9) : i + 1]]) for i in range(len(wins))]
        self._line(painter, [(x(area, n), y(m)) for (n, _), m in zip(wins, medians)], theme.info)

    def _frame(
        self, painter, box: QRectF, title: str, ends: Sequence[str], numbers: Sequence[int], line: float
    ) -> QRectF:
        """Title, axes and their ends; returns the plot's inside."""
        small, theme = font(self, 0.75), self.theme
        margin = max(QtGui.QFontMetricsF(small).horizontalAdvance(end) for end in ends) + 6
        plot = QRectF(box.left() + margin, box.top() + line + 4, box.width() - margin, box.height() - 2 * line - 6)
        text(
            painter, QRectF(box.left(), box.top(), box.width(), line), title.upper(), font(self, 0.75, True), theme.dim
        )
        for end, height in zip(ends, (plot.bottom() - line / 2 - 4, plot.top() - line / 2 + 6)):
            text(painter, QRectF(box.left(), height, margin - 6, line), end, small, theme.dim, RIGHT)
        below = QRectF(plot.left(), plot.bottom() + 2, plot.width(), line)
        text(painter, below, f"episode {numbers[0]}", small, theme.dim)
        text(painter, below, str(numbers[1]), small, theme.dim, RIGHT)
        painter.setPen(QtGui.QPen(_faded(theme.line, 150), 1.0))
        for part in (0.0, 0.5, 1.0):
            height = plot.bottom() - 6 - (plot.height() - 12) * part
            painter.drawLine(QPointF(plot.left(), height), QPointF(plot.right(), height))
        return plot

    @staticmethod
    def _line(painter: QtGui.QPainter, points: list, colour: str) -> None:
        painter.setPen(
            QtGui.QPen(QColor(colour), 2.2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin)
        )
        painter.setBrush(NO_BRUSH)
        painter.drawPolyline(QtGui.QPolygonF([QPointF(*point) for point in points]))


class Rows(Part):
    """A list: show_(rows), a row is (sign, colour, left, right, tool tip); the sign is drawn in the colour.

    What is not "ok" is written out, over several lines: what is to be done stands at its end.
    """

    HEIGHT = 36

    def __init__(self, nothing: str) -> None:
        super().__init__()
        self.nothing = nothing

    def show_(self, rows: tuple) -> None:
        super().show_(rows)
        self._make_room()

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        super().resizeEvent(event)
        self._make_room()

    def _make_room(self) -> None:
        self.setMinimumHeight(round(max(self.HEIGHT, sum(self.heights()))))

    def heights(self) -> list[float]:
        """Of each row, in px."""
        (rows,) = self._shown or ((),)
        metrics, room = QtGui.QFontMetricsF(font(self, 0.82)), QRectF(0, 0, self.width() - 26, 1e4)
        half = self.HEIGHT / 2 - 1
        return [
            max(self.HEIGHT, 0 if row[0] == "ok" else half + metrics.boundingRect(room, WRAPPED, row[3]).height() + 3)
            for row in rows
        ]

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        (rows,) = self._shown or ((),)
        painter = QtGui.QPainter(self)
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        if not rows:
            text(painter, QRectF(2, 0, self.width() - 4, self.HEIGHT), self.nothing, font(self), self.theme.dim)
        y, half = 0.0, self.HEIGHT / 2 - 1
        for (sign, colour, left, right, _), height in zip(rows, self.heights()):
            self._sign(painter, sign, QPointF(9, y + self.HEIGHT / 2), colour)
            text(painter, QRectF(24, y + 1, self.width() - 26, half), left, font(self, 0.95, True), self.theme.text)
            below = QRectF(24, y + half, self.width() - 26, height - half)
            if sign == "ok":
                text(painter, below, right, font(self, 0.82), self.theme.dim)
            else:
                painter.setFont(font(self, 0.82))
                painter.setPen(QColor(colour))
                painter.drawText(below, WRAPPED, right)
            y += height

    @staticmethod
    def _sign(painter: QtGui.QPainter, sign: str, at: QPointF, colour: str) -> None:
        """A disc, a triangle, a square, a ring: a shape for each level, whatever one sees of colours."""
        painter.setPen(QtGui.QPen(QColor(colour), 2.0))
        painter.setBrush(NO_BRUSH if sign == "silent" else QColor(colour))
        if sign == "warn":
            corners = [at + QPointF(0, -6), at + QPointF(6, 5), at + QPointF(-6, 5)]
            painter.drawPolygon(QtGui.QPolygonF(corners))
        elif sign == "error":
            painter.drawRect(QRectF(at.x() - 5, at.y() - 5, 10, 10))
        else:
            painter.drawEllipse(at, 5.0, 5.0)

    def event(self, event: QtCore.QEvent) -> bool:
        if event.type() == QtCore.QEvent.Type.ToolTip:
            (rows,) = self._shown or ((),)
            ends = itertools.accumulate(self.heights())
            words = next((row[4] for row, end in zip(rows, ends) if event.pos().y() < end), "")
            QtWidgets.QToolTip.showText(event.globalPos(), words, self)
            return True
        return super().event(event)


class Bars(Part):
    """What the safety gate changed or held: show_(((cause, count, tool tip), ...), present reason)."""

    HEIGHT = 22

    def show_(self, causes: tuple, reason: str) -> None:
        if self._shown != (causes, reason):
            self.setMinimumHeight(max(1, len(causes)) * self.HEIGHT)
        super().show_(causes, reason)

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        causes, reason = self._shown or ((), "")
        painter, theme = QtGui.QPainter(self), self.theme
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        if not causes:
            text(painter, QRectF(2, 0, self.width() - 4, self.HEIGHT), "nothing yet", font(self), theme.dim)
        most = max([count for _, count, _ in causes], default=1)
        for i, (cause, count, _) in enumerate(causes):
            box = QRectF(0, i * self.HEIGHT + 2, self.width(), self.HEIGHT - 4)
            now = cause == reason
            painter.setPen(NO_PEN)
            painter.setBrush(_faded(theme.warn if now else theme.info, 90 if now else 55))
            painter.drawRoundedRect(QRectF(0, box.top(), max(4.0, box.width() * count / most), box.height()), 4, 4)
            text(
                painter,
                box.adjusted(6, 0, -6, 0),
                cause.replace("_", " ") + (" (now)" if now else ""),
                font(self, 0.88, now),
                theme.text,
            )
            text(
                painter,
                box.adjusted(6, 0, -6, 0),
                f"{count:,}".replace(",", " "),
                font(self, 0.88, True),
                theme.text,
                RIGHT,
            )

    def event(self, event: QtCore.QEvent) -> bool:
        if event.type() == QtCore.QEvent.Type.ToolTip:
            causes, _ = self._shown or ((), "")
            index = int(event.pos().y() // self.HEIGHT)
            QtWidgets.QToolTip.showText(event.globalPos(), causes[index][2] if 0 <= index < len(causes) else "", self)
            return True
        return super().event(event)
