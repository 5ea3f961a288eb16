"""`rlt` and `rlt doctor` as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

from rlt_ros.cli import doctor
from rlt_ros.cli.main import main


def rlt(*arguments: str) -> subprocess.CompletedProcess:
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120,
                          check=False)


def test_doctor_finds_this_machine_fit_and_writes_what_it_found(tmp_path: Path) -> None:
    result = rlt("doctor", "--json", str(tmp_path / "d.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing required is missing" in result.stdout
    findings = {item["name"]: item for item in json.loads((tmp_path / "d.json").read_text())}
    assert {"ros", "middleware", "messages", "dds", "torch", "rendering", "gamepad"} <= set(findings)
    assert findings["messages"]["level"] == "ok"


def test_doctor_fails_with_the_remedy_when_something_required_is_missing(monkeypatch, capsys) -> None:
    broken = doctor.Finding(doctor.FAIL, "ros", "No module named 'rclpy'", "run `make setup`")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: broken,))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "-> run `make setup`" in out and "1 required things fail: ros" in out


def test_check_that_breaks_is_a_warning_not_the_end(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: 1 / 0, lambda: doctor.Finding(doctor.OK, "b", "fine")))
    assert [finding.level for finding in doctor.examine()] == ["warn", "ok"]


def test_rendering_failure_is_found_without_taking_doctor_down(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert doctor.rendering().level == doctor.FAIL


def test_help_lists_the_commands_with_examples_and_needs_no_torch() -> None:
    code = ("import sys; from rlt_ros.cli.main import main; code = main(['--help']);"
            "sys.exit(code or 10 * ('torch' in sys.modules or 'rclpy' in sys.modules))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and "doctor" in result.stdout and "examples:" in result.stdout


def test_wrong_usage_is_exit_code_2(capsys) -> None:
    assert main(["nonsense"]) == 2 and main([]) == 2 and main(["doctor", "--nope"]) == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_failed_work_is_exit_code_1_with_one_line_why(capsys) -> None:
    assert main(["doctor", "--json", "/nowhere/d.json"]) == 1
    assert capsys.readouterr().err.strip() == "rlt doctor: [Errno 2] No such file or directory: '/nowhere/d.json'"


def test_interruption_is_exit_code_130(monkeypatch) -> None:
    def interrupted(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    assert main(["doctor"]) == 130
