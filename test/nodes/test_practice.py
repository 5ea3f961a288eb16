"""`rlt practice` as a user starts it: every node as a process, in the simulator, with the simulated person."""

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from rlt_ros.cli.main import main
from rlt_ros.data.episodes import read_episodes
from rlt_ros.data.handover import read_approaches
from rlt_ros.data.journal import read_journal
from rlt_ros.data.recording import read_recording
from rlt_ros.sim.task import task_folder

PATIENCE_S = 240.0  # a busy machine takes its time to import torch in five processes


@pytest.fixture
def task(tmp_path) -> Path:
    """The Ethernet task with a critical phase of two seconds."""
    values = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values | {"critical_timeout": 2.0, "approach_timeout": 20.0}))
    return path


class Practice:
    """The command, running."""

    def __init__(self, python: str, session: Path, *arguments: str, before: str = "") -> None:
        self.session = session
        code = f"{before}\nimport sys; from rlt_ros.cli.main import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [python, "-c", code, "practice", "--session", str(session), "--no-eval", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def children(self) -> dict[str, int]:
        """Name -> process id of the nodes that run."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == self.process.pid:
                found |= {Path(w.decode()).name: int(entry.name) for w in words if b"lib/rlt_ros/" in w}
        return found

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                pytest.fail(
                    f"the practice ended with {self.process.returncode} before {what}: {self.process.stdout.read()}"
                )
            if time.monotonic() > deadline:
                pytest.fail(f"waited {PATIENCE_S} s for {what}")
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """(exit code, what it printed)."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output


@pytest.fixture
def practise(python, tmp_path, task, checkpoint):
    running = []

    def started(*arguments: str, before: str = "") -> Practice:
        running.append(
            Practice(
                python,
                tmp_path / "session",
                "--task",
                str(task),
                "--model",
                str(checkpoint),
                *arguments,
                before=before,
            )
        )
        return running[-1]

    yield started
    for practice in running:
        if practice.process.poll() is None:
            practice.process.send_signal(signal.SIGTERM)
            practice.process.communicate(timeout=30.0)


def test_practice_makes_a_session_and_goes_on_with_it(practise, tmp_path):
    code, output = practise("--episodes", "1").end()
    assert code == 0, output
    session = tmp_path / "session"
    assert {"journal", "metrics", "config.yaml", "episodes.jsonl", "report.html", "log"} <= {
        p.name for p in session.iterdir()
    }
    (episode,) = read_episodes(session)
    assert episode.index == 1 and episode.outcome in ("timeout", "success")
    assert list(read_journal(session / "journal"))
    assert "episode 1: " in output
    before = [entry.sequence for entry in read_journal(session / "journal")]

    # This time in simulated time, in which nothing comes late on any machine.
    code, output = practise("--episodes", "1", "--speed", "0", "--record").end()
    assert code == 0, output
    assert "resumed after 1 episodes" in output
    assert [e.index for e in read_episodes(session)] == [1, 2]
    after = [entry.sequence for entry in read_journal(session / "journal")]
    assert after == list(range(len(after))) and len(after) > len(before)
    loops = json.loads((session / "loops.json").read_text())
    assert loops["sim_node"]["critical_ticks"] > 50
    assert loops["sim_node"]["ticks_without_fresh_command"] == loops["sim_node"]["ticks_bridged"] == 0
    assert loops["actor_node"]["missed"] == 0
    assert loops["vla_node"]["late_references"] == 0
    recorded = {topic: log_ns for topic, _, log_ns, _ in read_recording(session / "recording")}
    assert {"/camera/wrist/image/compressed", "/episode/state", "/command/executed"} <= set(recorded)
    page = (session / "report.html").read_text()
    assert "success rate against minutes of running episodes" in page
    assert episode.end_s > 0
    # The person handed over in both, and what was seen of it is kept.
    assert [a.episode for a in read_approaches(session) if a.pressed] == [1, 2]


def test_interruption_ends_everything_cleanly_and_keeps_the_session(practise, tmp_path):
    practice = practise()
    practice.until(lambda: len(practice.children()) >= 11, "all processes")
    nodes = practice.children()
    os.kill(practice.process.pid, signal.SIGINT)
    code, output = practice.end()
    assert code == 130, output
    assert "the session is kept" in output
    wait_for_the_end(nodes)
    assert (tmp_path / "session" / "report.html").is_file()


# Ctrl-C at a moment when what it raises is printed and forgotten: while an object is being deleted.
LOSE = """
import os, signal
from rlt_ros.cli.practice import Display
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
show = Display.show
def shown(self, picture):
    show(self, picture)
    Display.show = show
    Deleted()
Display.show = shown
"""


# And at one when it becomes another exception, as within pybind11.
CHANGE = """
import os, signal
from rlt_ros.cli.practice import Display
def shown(self, picture):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    except KeyboardInterrupt as error:
        raise RuntimeError("Unable to convert call argument") from error
Display.show = shown
"""


def test_an_interruption_that_became_another_exception_is_one(practise):
    code, output = practise(before=CHANGE).end()
    assert code == 130 and "the session is kept" in output, output


def test_an_interruption_is_not_lost_where_its_exception_is(practise):
    practice = practise(before=LOSE)
    code, output = practice.end()
    assert code == 130 and "Exception ignored" in output and "the session is kept" in output, output


def test_sigterm_ends_it_cleanly_where_ctrl_c_is_ignored(practise):
    """As under nohup, or in the background of a shell script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        practice = practise()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    practice.until(lambda: len(practice.children()) >= 11, "all processes")
    nodes = practice.children()
    practice.process.send_signal(signal.SIGTERM)
    code, output = practice.end()
    assert code == 130, output
    wait_for_the_end(nodes)


def test_nodes_end_when_the_command_is_killed(practise):
    practice = practise()
    practice.until(lambda: "operator_node" in practice.children(), "the processes")
    nodes = practice.children()
    practice.process.kill()
    practice.process.wait()
    wait_for_the_end(nodes)


def wait_for_the_end(nodes: dict[str, int]) -> None:
    """Fail when one of the processes (name -> id) does not end; a killed one needs a moment of a busy machine, too."""
    deadline = time.monotonic() + 30.0
    while alive := [name for name, pid in nodes.items() if runs(pid)]:
        assert time.monotonic() < deadline, f"{alive} run on without the command"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie (in a container nobody may collect them)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_session_in_use_is_refused(tmp_path, capsys):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["practice", "--session", str(tmp_path), "--no-eval"]) == 1
    assert "is in use by another" in capsys.readouterr().err


def test_process_that_dies_is_reported_by_name_with_its_log(practise):
    practice = practise()
    practice.until(lambda: "proprio_node" in practice.children(), "the process")
    log = practice.session / "log" / "proprio_node.log"
    practice.until(
        lambda: log.is_file() and log.stat().st_size > 0 or "operator_node" in practice.children(), "its log"
    )
    os.kill(practice.children()["proprio_node"], signal.SIGKILL)
    code, output = practice.end()
    assert code == 1, output
    assert "proprio_node ended with signal SIGKILL" in output and "; the robot was held. The end of" in output


def test_a_practice_whose_vla_can_use_nothing_ends_and_says_why(practise, task, tmp_path):
    session = tmp_path / "session"
    session.mkdir()
    config = yaml.safe_load((task_folder().parent / "practice.yaml").read_text())
    config["/**"]["ros__parameters"]["task"] = str(task)
    config["/**/camera_node"]["ros__parameters"]["image_size"] = 48
    (session / "config.yaml").write_text(yaml.safe_dump(config))
    code, output = practise("--episodes", "1").end()
    assert code == 1, output
    assert "vla_node ended with exit code 1" in output and "the model wants (96, 96, 3)" in output


def test_session_of_another_task_is_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": {"task": "another"}}}))
    assert main(["practice", "--session", str(tmp_path), "--no-eval"]) == 1
    assert "practises task 'another', not 'ethernet'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [
    ("a: [", "not YAML"),
    ("- 1", "got [1], expected sections of nodes"),
    ("", "got None, expected sections of nodes"),
    ("/**: 3", "'/**' is 3, expected a section with ros__parameters"),
    ("/**: {ros__parameters: {}}", "section '/**' has no 'task'"),
])  # fmt: skip
def test_a_damaged_config_is_named(tmp_path, capsys, text, said):
    (tmp_path / "config.yaml").write_text(text)
    assert main(["practice", "--session", str(tmp_path)]) == 1
    found = capsys.readouterr().err
    assert f"{tmp_path / 'config.yaml'}: {said}" in found and "mend it or delete it" in found


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--task", "reacher", "--no-eval"], 1, "VLA checkpoint 'reacher': no such folder"),
    (["--task", "so101", "--no-eval"], 1, "task 'so101' is for a robot only"),
    (["--model", "nowhere"], 1, "VLA checkpoint 'nowhere': no such folder"),
    (["--session", "file"], 2, "--session file: a file, expected a folder"),
])  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["practice", *arguments]) == code
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_usage_is_exit_code_2():
    assert main(["practice", "--episodes", "0"]) == 2
    assert main(["practice", "--speed", "-1"]) == 2
