"""What a practice shows while it runs."""

import io
import time

import pytest

pytest.importorskip("rclpy")

from rich.console import Console

from rlt_ros.cli import progress
from rlt_ros.cli.progress import DemosDisplay, DeployDisplay, Display
from rlt_ros.core.episode import Ended, Outcome, Phase
from rlt_ros.ros.watch import SILENT_S, Picture

NODES = {
    "actor_node": {"policy_version": "17", "ticks": "15000", "late_5ms": "12", "period_error_p99_ms": "5.28",
                   "period_error_max_ms": "24.4"},
    "sim_node": {"critical_ticks": "9000", "ticks_without_fresh_command": "3", "realtime_factor": "0.99"},
    "safety_node": {"gate_force": "12", "gate_joint_limit": "3", "gate_velocity": "121", "gate_stale": "2",
                    "gate_range": "1", "holding": "", "estop": "False"},
    "operator_node": {"critical_s": "180.0"},
}  # fmt: skip


@pytest.fixture
def picture() -> Picture:
    made = Picture(phase=Phase.CRITICAL, episode=20, updates=15321, updates_per_s=48.2, replay_size=4312)
    for number, outcome in enumerate([Outcome.FAILURE, Outcome.TIMEOUT, *17 * [Outcome.SUCCESS]], 1):
        made.score.see(number, Phase.ENDED, outcome, 60 + number, float(number))
        made.ended.append(Ended(number, outcome, 60 + number))
    for node, values in NODES.items():
        made.diagnostics[node], made.heard_s[node] = ("active", values), time.monotonic()
    return made


def screen(display: Display) -> list[str]:
    """What stands on the terminal, line by line, without colours."""
    return display.console.file.getvalue().splitlines()


def shown(picture: Picture, width: int, minutes: float = 10.0) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=40)
    display = Display(60, minutes, console)
    display._observe(picture, time.monotonic())
    console.print(display._dashboard(picture, time.monotonic()))
    return screen(display)


@pytest.mark.parametrize("width", [80, 140])
def test_dashboard_has_what_one_wants_to_know_and_fits(picture, width):
    lines = shown(picture, width)
    text = " ".join(" ".join(lines).split())
    for words in (
        "20, CRITICAL; 19 of 60 done, 3.0 of 10 min of critical phase",
        "89% of the last 19, median 71 steps to success",
        "ftSSSSSSSSSSSSSSSSS",
        "4312 transitions",
        "15321 updates, 48/s",
        "version 17, 0 s old",
        "jitter p99 5.3 ms, worst 24 ms; 12 of 15000 ticks late",
        "3 of 9000 critical ticks without one; 0.99 x real time",
        "velocity 121, force 12, joint limit 3, stale 2, others 1",
        "4, all well",
    ):
        assert words in text, text
    assert max(map(len, lines)) <= width


def test_rate_of_the_loop_is_that_of_its_ticks(picture):
    display = Display(60, console=Console(file=io.StringIO(), width=80))
    display._observe(picture, 100.0)
    picture.diagnostics["actor_node"] = ("active", NODES["actor_node"] | {"ticks": "15050"})
    display._observe(picture, 101.0)
    assert display._control_loop(picture)[1].startswith("50 Hz, jitter")


def test_what_nodes_complain_of_and_who_fell_silent_is_named(picture):
    picture.diagnostics["camera_node"] = ("wrist: no picture for 3.2 s", {})
    picture.heard_s["sim_node"] = time.monotonic() - SILENT_S - 1
    lines = shown(picture, 80)
    assert any(line.split() == "camera_node wrist: no picture for 3.2 s".split() for line in lines)
    assert any(line.startswith("sim_node") and "silent for 6 s" in line for line in lines)
    assert not any("all well" in line for line in lines)


def test_words_in_brackets_of_a_node_are_shown_as_they_are(picture):
    picture.diagnostics["vla_node"] = ("cannot use [wrist, base]: [/red]", {})
    assert any("cannot use [wrist, base]: [/red]" in line for line in shown(picture, 80))


def test_before_the_nodes_speak_it_says_that_it_starts(picture):
    assert "starting the processes" in " ".join(shown(Picture(), 80))


def test_without_weights_it_says_what_the_learner_waits_for(picture):
    picture.diagnostics["actor_node"] = ("active", {})
    picture.diagnostics["learner_node"] = ("active", {"warm_up": "412 of 1000 transitions"})
    assert "warm-up: the VLA alone acts (412 of 1000 transitions)" in " ".join(" ".join(shown(picture, 80)).split())


def test_without_a_terminal_there_are_plain_lines(picture, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", -1.0)
    display = Display(60, 10.0, Console(file=io.StringIO(), width=80, highlight=False))
    with display:
        display.show(picture)
        display.show(picture)
    lines = screen(display)
    assert lines[0] == "episode 1: failure after 61 critical steps; 89% of the last 19, median 71 steps to success"
    assert len([line for line in lines if line.startswith("episode 1:")]) == 1  # each episode once
    assert "\x1b" not in "".join(lines)
    assert lines[-1].startswith("episode: 20, CRITICAL;") and lines[-1].endswith("nodes: 4, all well")


def test_a_success_with_help_is_said_to_be_one(picture):
    picture.score.see(20, Phase.ENDED, Outcome.SUCCESS, 44, 20.0, helped=True)
    picture.ended.append(Ended(20, Outcome.SUCCESS, 44, helped=True))
    text = " ".join(" ".join(shown(picture, 140)).split())
    assert "85% of the last 20, median 71 steps to success, 5% with help" in text and "SSSSh" in text
    display = Display(60, 10.0, Console(file=io.StringIO(), width=200, highlight=False))
    display.show(picture)
    assert any(line.startswith("episode 20: success after 44 critical steps with help; ") for line in screen(display))


def test_a_terminal_is_drawn_anew_and_left_as_it_was(picture):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    with Display(60, 10.0, console) as display:
        display.show(picture)
    written = console.file.getvalue()
    assert "15321 updates" in written and written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor


def test_who_records_demonstrations_sees_what_is_kept_and_what_the_recorder_loses(picture):
    recorder = {"file": "0003.mcap", "size_mb": "41.5", "messages": "9000", "lost": "7"}
    picture.diagnostics["recorder_node"] = "active", recorder
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100, height=40)
    display = DemosDisplay(60, 0.0, console)
    console.print(display._dashboard(picture, time.monotonic()))
    text = " ".join(" ".join(screen(display)).split())
    assert "17 of 60, 2 discarded" in text and "0003.mcap, 41.5 MB, 9000 messages, 7 lost" in text
    assert "force 12" in text and not any(word in text for word in ("learner", "replay", "policy"))


def test_who_deploys_sees_the_policy_and_nothing_of_the_learner_and_the_replay_that_are_not_there(picture):
    display = DeployDisplay(60, 0.0, Console(file=io.StringIO(), width=80))
    display._observe(picture, time.monotonic())
    rows = {name: words for name, words, _ in display._rows(picture, time.monotonic())}
    assert rows["policy"] == "version 17" and rows["episode"].startswith("20, CRITICAL; 19 of 60 done")
    assert not {"replay", "learner"} & set(rows)
    picture.diagnostics["actor_node"] = ("active", {})
    display._observe(picture, time.monotonic())
    assert ("policy", "not loaded yet", "yellow") in display._rows(picture, time.monotonic())
