"""The supervisor with real processes: executed ones, and copies of a zygote."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlt_ros.ros.supervisor import Command, Supervisor
from rlt_ros.ros.zygote import Zygote

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


SAYS = """
import os, sys
print("argv", sys.argv[1:], "kept", os.environ.get("KEPT"), "own", os.environ.get("OWN"), flush=True)
print("leader", os.getpgid(0) == os.getpid(), "child", os.getppid() == int(os.environ["RLT_PARENT"]), flush=True)
print("loaded", "colorsys" in sys.modules, "main", __name__ == "__main__", "in", os.getcwd(), flush=True)
print(open("/proc/self/comm").read().strip(), file=sys.stderr, flush=True)
shown = open("/proc/self/cmdline").read().split("\\0")[0]  # as much as fits
print(len(shown) > 20 and sys.argv[0].startswith(shown), flush=True)
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path):
    """script(name, code): a command that a zygote starts."""

    def made(name: str, code: str, *arguments: str, modules=(), **environment: str) -> Command:
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        return Command(name, [str(path), *arguments], environment, modules)

    return made


def test_a_copy_is_the_program_with_its_libraries_loaded(script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    command = script("a_long_name_of_a_node", SAYS, "--ros-args", "-p", modules=["no_such_module", "colorsys"], OWN="2")
    with Supervisor([command], tmp_path) as supervisor:
        wait_for(supervisor.dead, "the end")
        assert supervisor.dead()[0].code == 3
        assert supervisor.log(command.name).read_text().split("\n")[:5] == [
            "argv ['--ros-args', '-p'] kept 1 own 2",
            "leader True child True",
            f"loaded True main True in {os.getcwd()}",
            "a_long_name_of_",
            "True",
        ]


def test_what_starts_threads_is_not_copied_but_executed(script, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "threaded.py").write_text("import threading, time\n"
                                          "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with Supervisor([script("a", SAYS, modules=["threaded", "colorsys"])], tmp_path) as supervisor:
        wait_for(supervisor.dead, "the end")
        assert supervisor.dead()[0].code == 3
        assert "loaded False main True" in supervisor.log("a").read_text()


def test_a_traceback_ends_the_copy_with_exit_code_1_and_stands_in_its_log(script, tmp_path: Path) -> None:
    with Supervisor([script("a", "import nothing_like_it"), script("b", POLITE)], tmp_path) as supervisor:
        wait_for(supervisor.dead, "the death")
        up(supervisor, "b")
        assert str(supervisor.dead()[0]) == (
            "a ended with exit code 1: ModuleNotFoundError: No module named 'nothing_like_it'"
        )


def test_copies_are_stopped_and_killed_like_any_process(script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Supervisor, "STAGES", ((signal.SIGINT, 2.0), (signal.SIGTERM, 0.1), (signal.SIGKILL, 5.0)))
    with Supervisor([script("a", POLITE), script("b", STUBBORN)], tmp_path) as supervisor:
        up(supervisor, "a", "b")
        pids = list(supervisor.pids.values())
        unclean = supervisor.stop()
        assert [(death.name, death.code) for death in unclean] == [("b", -signal.SIGKILL)]
        assert not any(alive(pid) for pid in pids)


def test_a_killed_copy_and_a_killed_zygote_can_be_started_again(script, tmp_path: Path) -> None:
    with Supervisor([script("a", POLITE)], tmp_path) as supervisor:
        up(supervisor, "a")
        for victim in (supervisor.pids["a"], supervisor.zygote_pid):
            os.kill(victim, signal.SIGKILL)
            os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
            if victim == supervisor.pids["a"]:
                wait_for(supervisor.dead, "the death")
                assert supervisor.dead()[0].code == -signal.SIGKILL
            else:
                os.kill(supervisor.pids["a"], signal.SIGKILL)
                wait_for(supervisor.dead, "the second death")
            supervisor.log("a").write_text("")
            supervisor.restart("a")
            up(supervisor, "a")


def test_copies_end_with_the_process_that_asked_for_them(tmp_path: Path) -> None:
    """A SIGKILL of the supervisor leaves nothing behind: a node asks for a signal at its parent's death (run.py)."""
    child = tmp_path / "child.py"
    child.write_text("from rlt_ros.ros.run import _end_with_parent\n_end_with_parent()\n" + POLITE)
    parent = (
        "import sys, time\nfrom pathlib import Path\nfrom rlt_ros.ros.supervisor import Command, Supervisor\n"
        f"s = Supervisor([Command('a', [{str(child)!r}], {{}}, ())], Path({str(tmp_path)!r}))\n"
        "s.start()\nprint(s.pids['a'], s.zygote_pid, flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        wait_for(lambda: "up" in (tmp_path / "a.log").read_text(), "the copy")
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: not any(alive(pid) and not zombie(pid) for pid in pids), "the end of the copy and its zygote")


def zombie(pid: int) -> bool:
    """Whether a process has ended and only nobody has asked for it: whoever adopts orphans here may not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_zygote_that_cannot_answer_is_named(tmp_path: Path) -> None:
    with Zygote([], tmp_path / "zygote.log") as zygote:
        os.kill(zygote.pid, signal.SIGKILL)
        with pytest.raises(OSError, match="safety_node was not started: the zygote"):
            zygote.start("safety_node", ["x"], {}, tmp_path / "log")
