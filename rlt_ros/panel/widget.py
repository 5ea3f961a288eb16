"""The operator's panel: what the session does, and large buttons for the person beside the robot.

All that comes from ROS is a Snapshot that another thread made (link.py); nothing here waits or calls ROS.
"""

from __future__ import annotations

import math
import time

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.panel import parts
from rlt_ros.panel import theme as themes
from rlt_ros.panel.actions import ACTIONS, in_short, refusal
from rlt_ros.panel.link import STALE_S, Link, Snapshot
from rlt_ros.panel.qt import QShortcut, QtCore, QtGui, QtWidgets, Signal

Qt = QtCore.Qt
WINDOW = 20  # episodes of the moving success rate
CLOCK_MS = 100
CONFIRM_S = 6.0  # a question that nobody answers is taken back
NOTICE_S = 12.0
DEAF_S = 2.0

EXPLAIN = {
    Phase.IDLE: "nothing moves on its own",
    Phase.APPROACH: "the VLA approaches",
    Phase.CRITICAL: "the policy acts and learns from it",
}
DEMONSTRATED = {  # where a person drives from start to end
    Phase.APPROACH: "steer; Success keeps it, Failure does not",
    Phase.CRITICAL: "steer: the critical phase has begun",
}
OUTCOME_WORDS = {
    Outcome.NONE: "NO LABEL",
    Outcome.SUCCESS: "SUCCESS",
    Outcome.FAILURE: "FAILURE",
    Outcome.TIMEOUT: "TIME-OUT",
    Outcome.ABORTED: "ABORTED",
}
OUTCOME_MEANS = {
    Outcome.NONE: "say what it was",
    Outcome.SUCCESS: "reward 1",
    Outcome.FAILURE: "no reward",
    Outcome.TIMEOUT: "counts as no failure",
    Outcome.ABORTED: "not counted",
}
CAUSES = {
    "malformed": "commands refused: wrong shape or not finite",
    "wrong_size": "commands refused: wrong number of actions",
    "empty": "commands refused: without any action",
    "old_tick": "commands refused: older than one before",
    "wrong_joints": "joint states refused: names missing or values not finite",
    "estop": "ticks held: emergency stop",
    "two_publishers": "ticks held: two nodes sent what one alone may send",
    "no_command": "ticks held: nobody has commanded yet",
    "stale": "ticks held: the newest command was too old",
    "exhausted": "ticks held: the command had no action for them",
    "teleop_lost": "ticks held: the gamepad's node fell silent while somebody steered",
    "episode_lost": "ticks held: the episode's node fell silent",
    "no_proprio": "ticks held: no fresh proprioception",
    "no_joints": "ticks held: no fresh word of the joints or of their controller, or no robot description",
    "no_reference": "ticks held: no reference to compare the actor with",
    "force": "ticks held or changed: the force was over its limit",
    "retreat": "ticks changed: the arm backed off from a force",
    "deviation": "ticks changed: the actor went too far from the reference",
    "range": "ticks changed: an action was over its range",
    "velocity": "ticks changed: the tool would have been too fast",
    "step_change": "ticks changed: an action jumped",
    "acceleration": "ticks changed: the tool would have been jerked",
    "workspace": "ticks changed: the motion led out of the workspace",
    "singularity": "ticks slowed down: the arm is nearly stretched or folded",
    "joint_velocity": "ticks slowed down: a joint would have been too fast",
    "joint_limit": "ticks held or changed: a joint came too near to its limit",
    "tracking": "ticks held: the robot was too far from where its controller was told to go",
}
HELD = {  # where underscores for spaces are not enough
    "estop": "emergency stop",
    "two_publishers": "two nodes on one topic",
    "teleop_lost": "gamepad node lost",
    "episode_lost": "episode node lost",
    "no_joints": "joints unknown",
    "joint_limit": "a joint's limit",
    "tracking": "robot far from its target",
    "force": "force over its limit",
}
SIGNS = {0: "ok", 1: "warn", 2: "error", 3: "silent"}


class Panel(QtWidgets.QWidget):
    """The widget. Options go to Link; `context` decides where its keys work."""

    _woke = Signal()

    def __init__(
        self,
        parent: QtWidgets.QWidget | None = None,
        *,
        shortcut_context: Qt.ShortcutContext = Qt.ShortcutContext.WindowShortcut,
        **options: object,
    ) -> None:
        super().__init__(parent)
        self.setObjectName("RltPanel")
        self.setWindowTitle("rlt panel")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground, True)
        self.theme: themes.Theme | None = None
        self.seen = Snapshot()
        self.asked_release_s = -math.inf
        self._waking = False
        self._picture_s = (0, -math.inf)  # number of the newest picture, when it was first seen
        self._notice_s = (0, -math.inf)
        self._build()
        self._restyle()
        for action in ACTIONS.values():
            for key in action.keys:
                shortcut = QShortcut(QtGui.QKeySequence(key), self)
                shortcut.setContext(shortcut_context)
                shortcut.setAutoRepeat(False)
                shortcut.activated.connect(self.buttons[action.name].click)
        self._woke.connect(self._on_woke, Qt.ConnectionType.QueuedConnection)
        self._clock = QtCore.QTimer(self)
        self._clock.timeout.connect(self.refresh)
        self._clock.start(CLOCK_MS)
        self.link = Link(self._wake, **options)
        self.link.start()
        self.refresh()

    def shutdown(self) -> None:
        """End the ROS side; the panel shows nothing new after this."""
        self._clock.stop()
        self.link.close()

    # From the link's thread.

    def _wake(self) -> None:
        if not self._waking:  # one event in the queue, however slow the windows are
            self._waking = True
            self._woke.emit()

    def _on_woke(self) -> None:
        self._waking = False
        self.refresh()

    # What is pressed.

    def press(self, name: str) -> None:
        """What the button `name` does."""
        if name == "release":
            self.asked_release_s = -math.inf if self._asks_release() else time.monotonic()
        elif name == "confirm":
            self.asked_release_s = -math.inf
            self.link.call("release")
        else:
            if name == "stop":
                self.asked_release_s = -math.inf
            self.link.call(name)
        self.refresh()

    def _asks_release(self) -> bool:
        return time.monotonic() - self.asked_release_s < CONFIRM_S

    # What is shown.

    def refresh(self) -> None:
        """Show the newest snapshot; parts that show the same already do nothing."""
        s = self.seen = self.link.snapshot if hasattr(self, "link") else Snapshot()
        now_s = time.monotonic()
        alive = now_s - s.episode_s < STALE_S
        self._show_phase(s, alive)
        self._show_driver(s, now_s)
        self._show_clock(s, alive)
        self._show_buttons(s, alive)
        self._show_notice(s, now_s)
        self._show_numbers(s, now_s)
        self._show_camera(s, now_s)
        self._show_nodes(s, now_s)
        causes = sorted(s.causes.items(), key=lambda item: -item[1])
        self.gate.show_(
            tuple((cause, count, CAUSES.get(cause, cause)) for cause, count in causes),
            s.reason if now_s - s.safety_s < 3.0 else "",
        )
        self.curves.show_(s.history, WINDOW)

    def _show_phase(self, s: Snapshot, alive: bool) -> None:
        if not alive:
            why = f"no episode/state on ROS domain {s.domain}" + (": is it the right one?" if s.episode_s < 0 else "")
            self.phase.show_("NO EPISODE NODE", s.error or why, themes.GREY)
        elif s.phase is Phase.ENDED:
            words = f"episode {s.episode} has ended: {OUTCOME_MEANS[s.outcome]}"
            self.phase.show_(OUTCOME_WORDS[s.outcome], words, themes.OUTCOMES[s.outcome])
        else:
            number = f"episode {s.episode}: " if s.phase is not Phase.IDLE else ""
            words = believed(s)[0] or (DEMONSTRATED if s.label_any_time else EXPLAIN).get(s.phase, EXPLAIN[s.phase])
            self.phase.show_(s.phase.name, number + words, themes.PHASES[s.phase])

    def _show_driver(self, s: Snapshot, now_s: float) -> None:
        if now_s - s.executed_s >= STALE_S:
            self.driver.show_("nobody", "no command/executed", self.theme.dim)
            return
        names = {
            Source.HUMAN: "Human",
            Source.ACTOR: f"Actor v{s.source_version}",
            Source.VLA: "VLA",
            Source.HOLD: "Hold",
        }
        why = HELD.get(s.reason, s.reason.replace("_", " "))
        below = {
            Source.HUMAN: "somebody steers",
            Source.ACTOR: "the practised policy",
            Source.VLA: "the frozen reference",
            Source.HOLD: f"held still: {why}" if why else "held still",
        }
        self.driver.show_(names[s.source], below[s.source], themes.driver(self.theme, s.source))

    def _show_clock(self, s: Snapshot, alive: bool) -> None:
        if not alive or s.start_tick < 0 or not s.period_ns or s.phase is Phase.IDLE:
            self.clock.show_("0.0 s", "no episode runs" if alive else "", "")
            return
        end = s.end_tick if s.phase is Phase.ENDED else s.tick
        total = max(0.0, s.seconds(end - s.start_tick))
        critical = (
            f"critical {max(0.0, s.seconds(end - s.critical_tick)):.1f} s" if s.critical_tick >= 0 else "approach"
        )
        self.clock.show_(f"{total:.1f} s", critical, "")

    def _show_buttons(self, s: Snapshot, alive: bool) -> None:
        for name, button in self.buttons.items():
            action = ACTIONS.get(name)
            if action is None or action.node != "episode_node":
                continue
            if name not in s.services:
                if name == "undo" and "start" in s.services:
                    button.allow("episode_node offers no undo: there is no service episode/undo", "not offered")
                else:
                    button.allow(
                        f"episode_node does not answer: there is no service {action.service}", "no episode_node"
                    )
            elif not alive:
                button.allow("episode_node does not answer: its episode/state is silent", "episode_node is silent")
            elif name in s.asked:
                button.allow(f"asked; waiting for {action.service}", "asked ...")
            else:
                reason = refusal(name, s.phase, s.outcome, s.committed, s.label_any_time)
                running = name == "reset" and s.phase in (Phase.APPROACH, Phase.CRITICAL)
                means = believed(s)[1] if name == "hand_over" else "aborts the episode" if running else ""
                button.allow(reason, in_short(reason), means)
        # The emergency stop is never disabled: with no safety_node it says so when it is pressed, and before.
        stop, there = self.buttons["stop"], "stop" in s.services
        if "stop" in s.asked:
            stop.allow("", "", "asked ...")
        elif not there:
            stop.allow("", "", "no safety_node: use the hardware stop")
        else:
            stop.allow("", "", "STOPPED: the robot is held" if s.estop else "latched until it is released")
        release, asks = self.buttons["release"], self._asks_release() and s.estop
        if "release" not in s.services:
            release.allow("safety_node does not answer: there is no service safety/release", "no safety_node")
        elif not s.estop:
            release.allow("the emergency stop is not latched", "not stopped")
        elif "release" in s.asked:
            release.allow("asked; waiting for safety/release", "asked ...")
        else:
            release.allow("", "", "" if not asks else "go on holding")
        release.setText("Keep" if asks else ACTIONS["release"].label)
        release.name = "keep" if asks else "release"
        self.confirm.setVisible(asks)

    def _show_notice(self, s: Snapshot, now_s: float) -> None:
        notice = s.notice
        if notice is not None and notice.number != self._notice_s[0]:
            self._notice_s = (notice.number, now_s)
        colour, words = (
            self.theme.dim,
            "Space or Esc: emergency stop. The robot's own emergency stop stays in your hand.",
        )
        if s.error or (hasattr(self, "link") and s.taken_s > 0 and now_s - s.taken_s > DEAF_S):
            colour, words = self.theme.bad, f"the panel has lost ROS: {s.error or 'its thread hangs'}; start it again"
        elif notice is not None and now_s - self._notice_s[1] < NOTICE_S:
            colour, words = (self.theme.text if notice.good else self.theme.bad), notice.text
        self.notice.show_(words, colour)

    def _show_numbers(self, s: Snapshot, now_s: float) -> None:
        theme, learner = self.theme, s.learner
        counted = [item for item in s.history if item.outcome is not Outcome.ABORTED][-WINDOW:]
        if len(counted) < min(WINDOW, s.counted) and learner is not None and not counted:
            self.rate.show_(f"{learner.success_rate:.0%}", f"alone, of the last {WINDOW}, says the learner", theme.good)
        elif counted:
            won = sum(item.alone for item in counted)
            helped = sum(item.outcome is Outcome.SUCCESS for item in counted) - won
            words = f"{won} of the last {len(counted)} alone" + (f", {helped} with help" if helped else "")
            self.rate.show_(f"{won / len(counted):.0%}", words, theme.good)
        else:
            self.rate.show_("–", "no episode yet", theme.good)
        if learner is None:
            self.updates.show_("–", "no learner/status", theme.line)
            self.replay.show_("–", "no learner/status", theme.line)
        else:
            silent = now_s - s.learner_s > 4.0
            rate = "learner is silent" if silent else f"{learner.updates_per_s:.0f} a second"
            self.updates.show_(_thousands(learner.updates), rate, theme.warn if silent else theme.info)
            warm = "transitions" if learner.warm else "transitions, warm-up"
            self.replay.show_(_thousands(learner.replay_size), warm, theme.info)
        if s.version:
            self.policy.show_(f"v{s.version}", f"{_age(now_s - s.version_s)} old", theme.warn)
        else:
            self.policy.show_("none", "warm-up: the VLA alone acts", theme.line)

    def _show_camera(self, s: Snapshot, now_s: float) -> None:
        if s.picture is not None and s.picture.number != self._picture_s[0]:
            self._picture_s = (s.picture.number, now_s)
        age_s = now_s - self._picture_s[1]
        self.camera.show_(
            s.picture, int(age_s) if age_s > 1.5 and s.picture else 0, "no picture: nothing on camera/*/image"
        )

    def _show_nodes(self, s: Snapshot, now_s: float) -> None:
        rows, theme = [], self.theme
        colours = {"ok": theme.good, "warn": theme.warn, "error": theme.bad, "silent": theme.dim}
        for name, health in s.nodes.items():
            sign = "silent" if health.silent(now_s) else SIGNS.get(health.level, "error")
            words = f"silent for {_age(now_s - health.heard_s)}" if sign == "silent" else health.message
            order = ("error", "silent", "warn", "ok").index(sign)
            tip = f"{name}: {words}\n" + "\n".join(f"{key}: {value}" for key, value in health.values.items())
            rows.append((order, name, (sign, colours[sign], name, words, tip)))
        rows.sort(key=lambda row: row[:2])
        self.nodes.show_(tuple(row for _, _, row in rows))
        bad = sum(order < 3 for order, _, _ in rows)
        self.nodes_title.setText(
            f"NODES: {bad} of {len(rows)} need a look" if bad else f"NODES: {len(rows)}, all well" if rows else "NODES"
        )

    # How it is made.

    def _build(self) -> None:
        fills = {
            "start": themes.BLUE,
            "hand_over": themes.AMBER,
            "success": themes.GREEN,
            "failure": themes.ORANGE,
            "stop": themes.RED,
        }
        heights = {
            "success": (92, 1.7),
            "failure": (92, 1.7),
            "stop": (104, 1.45),
            "start": (68, 1.4),
            "hand_over": (68, 1.4),
            "release": (54, 1.05),
        }
        self.buttons = {}
        for name, action in ACTIONS.items():
            height, scale = heights.get(name, (58, 1.15))
            keys = {"Backspace": "Bksp"}.get(action.keys[0], action.keys[0])
            self.buttons[name] = parts.ActionButton(name, action.label, keys, fills.get(name), height, scale)
            self.buttons[name].clicked.connect(lambda _=False, name=name: self.press(name))
        self.confirm = parts.ActionButton("confirm", "Yes, release", "", themes.ORANGE, 54, 1.05)
        self.confirm.clicked.connect(lambda _=False: self.press("confirm"))
        kept = self.confirm.sizePolicy()
        kept.setRetainSizeWhenHidden(True)
        self.confirm.setSizePolicy(kept)

        self.phase, self.driver, self.clock = (
            parts.PhaseBand(),
            parts.Tile("in control", 1.7),
            parts.Tile("episode", 1.9),
        )
        self.rate, self.updates = parts.Tile(f"success, last {WINDOW}"), parts.Tile("updates")
        self.replay, self.policy = parts.Tile("replay"), parts.Tile("policy")
        self.camera, self.curves, self.notice = parts.CameraView(), parts.Curves(), _Line()
        self.nodes, self.gate = parts.Rows("no diagnostics heard"), parts.Bars()
        self.nodes_title, gate_title = _title("NODES"), _title("SAFETY GATE: HELD OR CHANGED")

        top = _box(QtWidgets.QHBoxLayout(), (self.phase, 6), (self.driver, 4), (self.clock, 3))
        for widget in (self.phase, self.driver, self.clock):
            widget.setFixedHeight(104)
        grid = QtWidgets.QGridLayout()
        grid.setSpacing(8)
        for name, row, column, span in (
            ("start", 0, 0, 3),
            ("hand_over", 0, 3, 3),
            ("success", 1, 0, 3),
            ("failure", 1, 3, 3),
            ("abort", 2, 0, 2),
            ("undo", 2, 2, 2),
            ("reset", 2, 4, 2),
        ):
            grid.addWidget(self.buttons[name], row, column, 1, span)
        grid.setRowStretch(1, 1)
        self.camera.setMinimumSize(200, 200)
        middle = _box(QtWidgets.QHBoxLayout(), (grid, 7), (self.camera, 4))
        numbers = _box(
            QtWidgets.QHBoxLayout(), *((tile, 1) for tile in (self.rate, self.policy, self.updates, self.replay))
        )
        for tile in (self.rate, self.policy, self.updates, self.replay):
            tile.setFixedHeight(86)
        self.curves.setMinimumHeight(60)  # the whole panel fits on a touch screen of 1024 x 600
        left = _box(QtWidgets.QVBoxLayout(), (top, 0), (middle, 5), (self.notice, 0), (numbers, 0), (self.curves, 3))

        self.buttons["stop"].setFixedHeight(104)
        release = _box(QtWidgets.QHBoxLayout(), (self.buttons["release"], 1), (self.confirm, 1))
        for button in (self.buttons["release"], self.confirm):
            button.setFixedHeight(54)
        right = _box(
            QtWidgets.QVBoxLayout(),
            (self.buttons["stop"], 0),
            (release, 0),
            (self.nodes_title, 0),
            (_scroll(self.nodes), 5),
            (gate_title, 0),
            (_scroll(self.gate), 2),
        )
        whole = _box(QtWidgets.QHBoxLayout(), (left, 10), (right, 4))
        whole.setContentsMargins(10, 10, 10, 10)
        self.setLayout(whole)
        self.resize(1240, 800)

    def changeEvent(self, event: QtCore.QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QtCore.QEvent.Type.PaletteChange, QtCore.QEvent.Type.ApplicationPaletteChange):
            self._restyle()

    def _restyle(self) -> None:
        """Follow the palette."""
        theme = themes.present()
        if theme is self.theme or not hasattr(self, "gate"):  # a style sheet changes the palette: once is enough
            return
        self.theme = theme
        self.setStyleSheet(
            f"#RltPanel {{ background: {theme.window}; }}"
            f"QLabel {{ color: {theme.dim}; background: transparent; }}"
            "QScrollArea, QScrollArea > QWidget > QWidget { background: transparent; border: none; }"
            f"QToolTip {{ color: {theme.text}; background: {theme.card}; border: 1px solid {theme.line}; }}"
        )
        for kind in (parts.Part, parts.ActionButton):
            for part in self.findChildren(kind):
                part.set_theme(theme)


def believed(s: Snapshot) -> tuple[str, str]:
    """What handover_node says of the approach that runs, for the phase and for the button; "" where it says nothing."""
    b = s.belief
    if b is None or s.phase is not Phase.APPROACH or b.episode != s.episode or b.tick < 0 or not b.trained:
        return "", ""
    if b.mode == "human":  # it is learning: its word must not press anybody
        return "", ""
    likely = f"{b.probability:.0%}"
    if b.mode == "automatic" and not b.waits:
        return f"hands over by itself, {likely} sure of it", f"by itself: {likely}"
    why = f"; not by itself: {b.waits}" if b.waits else ""
    if b.suggested:
        return f"hand over now? {likely} sure{why}", f"now? {likely}"
    return f"hand over? {likely} sure{why}", f"not yet: {likely}"


class _Line(parts.Part):
    """One line of words: show_(words, colour)."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(26)

    def words(self) -> str:
        return self._shown[0] if self._shown else ""

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        words, colour = self._shown or ("", "")
        painter = QtGui.QPainter(self)
        box = parts.QRectF(self.rect()).adjusted(4, 0, -4, 0)
        parts.text(painter, box, words, parts.font(self, 1.0, colour != self.theme.dim), colour)

    def show_(self, words: str, colour: str) -> None:
        super().show_(words, colour)
        self.setToolTip(words)


def _title(words: str) -> QtWidgets.QLabel:
    label = QtWidgets.QLabel(words)
    label.setFont(parts.font(label, 0.75, True))
    return label


def _box(layout: QtWidgets.QBoxLayout, *items: tuple) -> QtWidgets.QBoxLayout:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(8)
    for item, stretch in items:
        (layout.addLayout if isinstance(item, QtWidgets.QLayout) else layout.addWidget)(item, stretch)
    return layout


def _scroll(widget: QtWidgets.QWidget) -> QtWidgets.QScrollArea:
    area = QtWidgets.QScrollArea()
    area.setWidget(widget)
    area.setWidgetResizable(True)
    area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setMinimumHeight(60)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return area


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _age(seconds: float) -> str:
    """3 s, 2 min, 1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
