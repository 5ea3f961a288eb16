"""What `rlt practice` shows while it runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from rlt_ros.ros.watch import Picture

REFRESH_S = 0.25
PLAIN_EVERY_S = 20.0


class Display:
    """Call `show` as often as you like; it prints when there is something to see."""

    def __init__(self, episodes: int, console: Console | None = None) -> None:
        self.episodes = episodes
        self.console = console or Console(highlight=False)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._shown_s = 0.0
        self._printed = 0
        self._version, self._version_s = 0, time.monotonic()

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
        version = int(picture.value("actor_node", "policy_version"))
        if version != self._version:
            self._version, self._version_s = version, now_s
        if self._live:
            if now_s - self._shown_s > REFRESH_S:
                self._shown_s = now_s
                self._live.update(self._table(picture, now_s), refresh=True)
            return
        for number, outcome, steps in picture.ended[self._printed :]:
            self.console.print(
                f"episode {number}: {outcome.name.lower()}"
                + (f" after {steps} critical steps" if steps else "")
                + f"; {self._success(picture)}",
                soft_wrap=True,
            )
            self._printed += 1
        if now_s - self._shown_s > PLAIN_EVERY_S:
            self._shown_s = now_s
            self.console.print(
                "; ".join(f"{name}: {value}" for name, value in self._rows(picture, now_s)), soft_wrap=True
            )

    def _rows(self, picture: Picture, now_s: float) -> list[tuple[str, str]]:
        if not picture.diagnostics:
            return [("practice", "starting the processes")]
        has = picture.words("learner_node", "warm_up")
        warm_up = ", warm-up: the VLA alone acts" + (f" ({has})" if has else "")
        age = f", {now_s - self._version_s:.0f} s old" if self._version else warm_up
        rows = [
            ("episode", f"{picture.episode} ({len(picture.ended)} of {self.episodes} done), {picture.phase.name}"),
            ("success", self._success(picture)),
            ("replay", f"{picture.replay_size} transitions"),
            ("learner", f"{picture.updates} updates, {picture.updates_per_s:.0f}/s"),
            ("policy", f"version {self._version}{age}"),
            ("control loop", self._loop(picture)),
        ]
        problems = picture.problems()
        return rows + [(node, message) for node, message in problems.items()]

    def _success(self, picture: Picture) -> str:
        score = picture.score
        if not len(score):
            return "no episode yet"
        steps = f", median {score.median_steps:.0f} steps" if score.success_rate else ""
        return f"{score.success_rate:.0%} of the last {len(score)} episodes{steps}"

    def _loop(self, picture: Picture) -> str:
        actor = lambda key: picture.value("actor_node", key)  # noqa: E731
        sim = lambda key, default=0.0: picture.value("sim_node", key, default)  # noqa: E731
        return (
            f"p99 {actor('period_error_p99_ms'):.1f} ms, worst {actor('period_error_max_ms'):.0f} ms off its period; "
            f"{sim('ticks_without_fresh_command'):.0f} of {sim('critical_ticks'):.0f} critical ticks without command; "
            f"{sim('realtime_factor', 1.0):.2f} x real time"
        )

    def _table(self, picture: Picture, now_s: float) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, value in self._rows(picture, now_s):
            table.add_row(f"[bold]{name}[/bold]", value)
        return table
