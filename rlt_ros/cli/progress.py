"""What `rlt practice` shows while it runs: a live dashboard in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlt_ros.core.episode import Outcome, Phase

if TYPE_CHECKING:
    from rlt_ros.ros.watch import Picture

REFRESH_S = 0.25
PLAIN_EVERY_S = 20.0
BAR = 20  # columns
MARKS = 20  # of the newest episodes
CAUSES = 4  # of the gate that are named
LATE_MS = 5.0  # a period that is off by more than this is shown as late

# Letters, since colours alone tell nothing to some, and nothing in a copy of the screen.
LETTERS = {
    Outcome.SUCCESS: ("S", "green"),
    Outcome.FAILURE: ("f", "red"),
    Outcome.TIMEOUT: ("t", "yellow"),
    Outcome.ABORTED: ("a", "dim"),
}
WITH_HELP = ("h", "green")
PHASES = {Phase.IDLE: "dim", Phase.APPROACH: "cyan", Phase.CRITICAL: "bold yellow", Phase.ENDED: "magenta"}


class Display:
    """Call `show` as often as you like; it prints when there is something to see.

    episodes, minutes: how much is to be practised: episodes, and minutes of critical phase; 0: no end.
    """

    def __init__(self, episodes: int, minutes: float = 0.0, console: Console | None = None) -> None:
        self.episodes, self.minutes = episodes, minutes
        self.console = console or Console(highlight=False)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._width = self.console.width
        self._began_s = time.monotonic()
        self._shown_s = 0.0
        self._printed = 0
        self._version, self._version_s = 0, time.monotonic()
        self._loop = (0.0, 0.0)  # ticks of the actor's loop, when
        self._loop_hz = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, picture: Picture) -> None:
        """Bring the display up to date."""
        now_s = time.monotonic()
        self._observe(picture, now_s)
        if self._live:
            if now_s - self._shown_s > REFRESH_S:
                self._shown_s = now_s
                if self.console.width != self._width:  # lines that the terminal broke anew cannot be drawn over
                    self._width = self.console.width
                    self.console.clear()
                self._live.update(self._dashboard(picture, now_s), refresh=True)
            return
        for number, outcome, steps, helped in picture.ended[self._printed :]:
            self.console.print(
                f"episode {number}: {outcome.name.lower()}"
                + (f" after {steps} critical steps" if steps else "")
                + (" with help" if helped else "")
                + f"; {self._success(picture)}",
                soft_wrap=True,
            )
            self._printed += 1
        if now_s - self._shown_s > PLAIN_EVERY_S:
            self._shown_s = now_s
            rows = self._rows(picture, now_s) + self._nodes(picture)
            self.console.print("; ".join(f"{name}: {value}" for name, value, _ in rows), soft_wrap=True)

    def _observe(self, picture: Picture, now_s: float) -> None:
        version = int(picture.value("actor_node", "policy_version"))
        if version != self._version:
            self._version, self._version_s = version, now_s
        ticks, (before, before_s) = picture.value("actor_node", "ticks"), self._loop
        if ticks != before:  # diagnostics come once a second
            if before and ticks > before and now_s - before_s < 5.0:
                self._loop_hz = (ticks - before) / (now_s - before_s)
            self._loop = (ticks, now_s)

    # What is said: (name, words, style).

    def _rows(self, picture: Picture, now_s: float) -> list[tuple[str, str, str]]:
        if not picture.diagnostics:
            return [("practice", f"starting the processes, {now_s - self._began_s:.0f} s", "")]
        has = picture.words("learner_node", "warm_up")
        warm_up = "none yet, warm-up: the VLA alone acts" + (f" ({has})" if has else "")
        age = f"version {self._version}, {now_s - self._version_s:.0f} s old"
        done = f"{len(picture.ended)}{f' of {self.episodes}' if self.episodes else ''} done"
        minutes = picture.value("operator_node", "critical_s") / 60.0
        practised = f"{minutes:.1f}{f' of {self.minutes:g}' if self.minutes else ''} min of critical phase"
        return [
            ("episode", f"{picture.episode}, {picture.phase.name}; {done}, {practised}", PHASES[picture.phase]),
            ("success", self._success(picture), ""),
            ("replay", f"{picture.replay_size} transitions", ""),
            ("learner", f"{picture.updates} updates, {picture.updates_per_s:.0f}/s", ""),
            ("policy", age if self._version else warm_up, "" if self._version else "yellow"),
            self._control_loop(picture),
            self._commands(picture),
            self._gate(picture),
        ]

    def _success(self, picture: Picture) -> str:
        score = picture.score
        if not len(score):
            return "no episode yet"
        steps = f", median {score.median_steps:.0f} steps to success" if score.success_rate else ""
        more = f", {score.helped_rate:.0%} with help" if score.helped_rate else ""
        return f"{score.success_rate:.0%} of the last {len(score)}{steps}{more}"

    def _control_loop(self, picture: Picture) -> tuple[str, str, str]:
        actor = lambda key: picture.value("actor_node", key)  # noqa: E731
        worst, late = actor("period_error_max_ms"), actor("late_5ms")
        rate = f"{self._loop_hz:.0f} Hz, " if self._loop_hz else ""
        words = f"{rate}jitter p99 {actor('period_error_p99_ms'):.1f} ms, worst {worst:.0f} ms"
        words += f"; {late:.0f} of {actor('ticks'):.0f} ticks late by over {LATE_MS:.0f} ms"
        return "control loop", words, "yellow" if actor("period_error_p99_ms") > LATE_MS else ""

    def _commands(self, picture: Picture) -> tuple[str, str, str]:
        sim = lambda key, default=0.0: picture.value("sim_node", key, default)  # noqa: E731
        missing = sim("ticks_without_fresh_command")
        words = f"{missing:.0f} of {sim('critical_ticks'):.0f} critical ticks without one"
        return "commands", f"{words}; {sim('realtime_factor', 1.0):.2f} x real time", "yellow" if missing else ""

    def _gate(self, picture: Picture) -> tuple[str, str, str]:
        counts = picture.counts("safety_node", "gate_")
        if not counts:
            return "safety gate", "let everything pass", ""
        named = [f"{cause.replace('_', ' ')} {count}" for cause, count in counts.most_common(CAUSES)]
        others = sum(counts.values()) - sum(count for _, count in counts.most_common(CAUSES))
        return "safety gate", ", ".join(named + ([f"others {others}"] if others else [])), ""

    def _nodes(self, picture: Picture) -> list[tuple[str, str, str]]:
        if not picture.diagnostics:
            return []
        problems = picture.problems()
        if not problems:
            return [("nodes", f"{len(picture.diagnostics)}, all well", "green")]
        return [(node, message, "bold yellow") for node, message in sorted(problems.items())]

    # How it looks in a terminal.

    def _dashboard(self, picture: Picture, now_s: float) -> RenderableType:
        parts: list[RenderableType] = [self._table(self._rows(picture, now_s), self._drawn(picture))]
        if nodes := self._nodes(picture):
            parts += [Text("─" * min(60, self.console.width), "dim"), self._table(nodes, {})]
        return Group(*parts)

    def _drawn(self, picture: Picture) -> dict[str, RenderableType]:
        """What is drawn below a row of that name."""
        drawn: dict[str, RenderableType] = {}
        shares = [len(picture.ended) / self.episodes] if self.episodes else []
        if self.minutes:
            shares.append(picture.value("operator_node", "critical_s") / 60.0 / self.minutes)
        if shares:
            drawn["episode"] = _bar(max(shares), "cyan", "of what was asked for")
        if len(picture.score):
            marks = Text("newest last ", "dim")
            for _, outcome, _, helped in picture.ended[-MARKS:]:
                marks.append(*(WITH_HELP if helped and outcome is Outcome.SUCCESS else LETTERS[outcome]))
            drawn["success"] = Group(_bar(picture.score.success_rate, "green", ""), marks)
        return drawn

    def _table(self, rows: list[tuple[str, str, str]], drawn: dict[str, RenderableType]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=12)
        table.add_column(overflow="fold")
        for name, words, style in rows:
            table.add_row(Text(name, "bold"), Text(words, style))
            if name in drawn:
                table.add_row("", drawn[name])
        return table


class DemosDisplay(Display):
    """The same where a person demonstrates; episodes: how many are to be kept."""

    def _rows(self, picture: Picture, now_s: float) -> list[tuple[str, str, str]]:
        if not picture.diagnostics:
            return [("recording", f"starting the processes, {now_s - self._began_s:.0f} s", "")]
        words = lambda key: picture.words("recorder_node", key) or "0"  # noqa: E731
        recorded = f"{words('file')}, {words('size_mb')} MB, {words('messages')} messages"
        lost = words("lost")
        return [
            ("episode", f"{picture.episode}, {picture.phase.name}", PHASES[picture.phase]),
            ("kept", self._success(picture), ""),
            ("recording", recorded + (f", {lost} lost" if lost != "0" else ""), "yellow" if lost != "0" else ""),
            self._gate(picture),
        ]

    def _success(self, picture: Picture) -> str:
        asked = f" of {self.episodes}" if self.episodes else ""
        return f"{kept(picture)}{asked}, {len(picture.ended) - kept(picture)} discarded"

    def _drawn(self, picture: Picture) -> dict[str, RenderableType]:
        return {}


class DeployDisplay(Display):
    """The same where a practised session runs: nothing is stored or learned."""

    def _rows(self, picture: Picture, now_s: float) -> list[tuple[str, str, str]]:
        if not picture.diagnostics:
            return [("deploy", f"starting the processes, {now_s - self._began_s:.0f} s", "")]
        rows = [row for row in super()._rows(picture, now_s) if row[0] not in ("replay", "learner")]
        policy = ("policy", f"version {self._version}", "") if self._version else ("policy", "not loaded yet", "yellow")
        return [policy if row[0] == "policy" else row for row in rows]


def kept(picture: Picture) -> int:
    """Episodes that ended in success."""
    return sum(ended.outcome is Outcome.SUCCESS for ended in picture.ended)


def _bar(share: float, colour: str, words: str) -> RenderableType:
    """A bar of fixed width and what it says."""
    share = min(1.0, max(0.0, share))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=BAR)
    grid.add_column()
    grid.add_row(Bar(1.0, 0.0, share, width=BAR, color=colour, bgcolor="grey30"), Text(f"{share:.0%} {words}", "dim"))
    return grid
