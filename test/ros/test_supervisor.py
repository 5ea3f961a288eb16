"""The supervisor with real processes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlt_ros.ros.supervisor import Command, Supervisor

POLITE = ("import signal, sys\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(0))\n"
          "print('up', flush=True)\nsignal.pause()")
STUBBORN = ("import signal, time\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
            "print('up', flush=True)\nwhile True: time.sleep(1)")
DYING = "print('no camera on /dev/video0'); raise SystemExit(1)"


def command(name: str, code: str, **environment: str) -> Command:
    return Command(name, [sys.executable, "-c", code], environment)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, f"waited 20 s for {what}"
        time.sleep(0.01)


def up(supervisor: Supervisor, *names: str) -> None:
    for name in names:
        wait_for(lambda name=name: "up" in supervisor.log(name).read_text(), f"{name} to start")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def test_polite_processes_stop_on_sigint(tmp_path: Path) -> None:
    with Supervisor([command("a", POLITE), command("b", POLITE)], tmp_path) as supervisor:
        up(supervisor, "a", "b")
        assert supervisor.dead() == []
        pids = supervisor.pids.values()
        assert supervisor.stop() == []
        assert not any(alive(pid) for pid in pids)


def test_stubborn_process_is_killed_within_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "STAGES", ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)))
    with Supervisor([command("a", STUBBORN)], tmp_path) as supervisor:
        up(supervisor, "a")
        unclean = supervisor.stop()
    assert str(unclean[0]) == "a ended with signal SIGKILL: up"


def test_death_is_seen_with_its_last_line_and_can_be_restarted(tmp_path: Path) -> None:
    with Supervisor([command("a", DYING), command("b", POLITE)], tmp_path) as supervisor:
        wait_for(supervisor.dead, "the death")
        assert str(supervisor.dead()[0]) == "a ended with exit code 1: no camera on /dev/video0"
        with pytest.raises(RuntimeError, match="b is alive"):
            supervisor.restart("b")
        supervisor.restart("a")
        wait_for(lambda: supervisor.log("a").read_text().count("no camera") == 2, "the second death")


def test_processes_have_their_own_group_and_environment(tmp_path: Path) -> None:
    code = "import os; print('work', os.environ['RLT_WORK'], 'leader', os.getpgid(0) == os.getpid())"
    with Supervisor([command("a", code, RLT_WORK="control")], tmp_path) as supervisor:
        wait_for(supervisor.dead, "the end")
        assert "work control leader True" in supervisor.log("a").read_text()


def test_nothing_is_left_when_one_cannot_be_started(tmp_path: Path) -> None:
    supervisor = Supervisor([command("a", POLITE), Command("b", ["/nowhere"])], tmp_path)
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        with supervisor:
            pass
    assert supervisor.pids == {}
