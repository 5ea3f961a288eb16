"""What the command `rlt` makes of what a subcommand does."""

import signal
import subprocess

import pytest

from rlt_ros.cli import report
from rlt_ros.cli.main import main


@pytest.mark.parametrize("error", [
    ImportError("cannot load module more than once per process"),
    ValueError("back end 'pi0' cannot be imported"),
    SystemExit(1),
])
def test_what_an_interrupt_became_is_an_interrupt(monkeypatch, capsys, error) -> None:
    def run(_args) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(report, "run", run)
    assert main(["report", "."]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_without_an_interrupt_is_one(monkeypatch, capsys) -> None:
    def run(_args) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(report, "run", run)
    assert main(["report", "."]) == 1
    assert capsys.readouterr().err == "rlt report: the disk is full\n"


def test_without_a_command_it_lists_them(capsys) -> None:
    assert main([]) == 2
    assert "practise a task in the simulator" in capsys.readouterr().err


def test_wrong_usage_is_told_also_when_it_runs_as_a_module(python) -> None:
    command = [python, "-m", "rlt_ros.cli.main", "eval", "--policy", "nosuch"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "Traceback" not in found.stderr
