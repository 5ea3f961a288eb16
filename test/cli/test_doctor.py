"""`rlt` and `rlt doctor` as a user calls them."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlt_ros.cli import doctor
from rlt_ros.cli.main import main


def rlt(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | variables, capture_output=True,
                          text=True, timeout=120, check=False)


def test_doctor_finds_this_machine_fit_and_writes_what_it_found(tmp_path: Path) -> None:
    result = rlt("doctor", "--json", str(tmp_path / "d.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing required is missing" in result.stdout
    findings = {item["name"]: item for item in json.loads((tmp_path / "d.json").read_text())}
    assert set(findings) == {"python", "machine", "ros", "middleware", "messages", "dds", "shared memory", "torch",
                             "rendering", "gamepad", "scheduling", "real-time priority", "locked memory"}
    assert all(item["remedy"] for item in findings.values() if item["level"] != "ok")
    assert findings["messages"]["level"] == "ok"


def test_doctor_fails_with_the_remedy_when_something_required_is_missing(monkeypatch, capsys) -> None:
    broken = doctor.Finding(doctor.FAIL, "ros", "No module named 'rclpy'", "run `make setup`")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: broken,))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "-> run `make setup`" in out and "required, and fails: ros" in out


def test_check_that_breaks_is_a_warning_not_the_end(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: 1 / 0, lambda: doctor.Finding(doctor.OK, "b", "fine")))
    assert [finding.level for finding in doctor.examine()] == ["warn", "ok"]


def test_rendering_failure_is_found_without_taking_doctor_down(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert doctor.rendering().level == doctor.FAIL


@pytest.mark.parametrize("domain", ["300", "abc", "-1"])
def test_domain_that_is_none_is_named_by_doctor_and_by_every_other_command(domain: str) -> None:
    said = f"ROS_DOMAIN_ID is '{domain}', expected a number from 0 to 232"
    result = rlt("doctor", ROS_DOMAIN_ID=domain)
    assert result.returncode == 1 and f"fail  middleware: {said}" in result.stdout, result.stdout + result.stderr
    assert "ok  dds" in result.stdout
    result = rlt("report", "sessions/first", ROS_DOMAIN_ID=domain)
    assert result.returncode == 2 and said in result.stderr


def test_file_that_could_not_be_written_is_named_before_the_work(tmp_path, capsys) -> None:
    assert main(["eval", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_middleware_that_is_not_there_fails_with_its_name() -> None:
    """It ends every process that loads rclpy; doctor must say so, and go on."""
    result = rlt("doctor", RMW_IMPLEMENTATION="rmw_none")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "fail  middleware: RMW_IMPLEMENTATION=rmw_none: " in result.stdout
    assert "-> unset RMW_IMPLEMENTATION" in result.stdout and "ok  dds" in result.stdout
    assert "required, and fails: middleware" in result.stdout


def test_more_torch_threads_than_the_container_has_processors_are_a_warning(monkeypatch, tmp_path) -> None:
    import torch

    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: len(os.sched_getaffinity(0)))
    assert doctor.torch().level == doctor.OK
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    finding = doctor.torch()
    assert finding.level == doctor.WARN and finding.found.endswith("on 1 CPUs")
    assert "OMP_NUM_THREADS=1" in finding.remedy
    assert doctor.machine().found.startswith("1 CPUs")


def test_gamepad_is_looked_for_read_and_wants_its_ros_package(monkeypatch, tmp_path) -> None:
    import ament_index_python.packages as packages

    monkeypatch.setattr(doctor, "INPUT", tmp_path / "input")
    monkeypatch.setattr(doctor, "INPUT_CLASS", tmp_path / "class")
    assert "none at" in doctor.gamepad().found
    for path in ("input/js0", "input/event7", "class/js0/device/event7"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    readable = lambda path, _: path.name != "event7"  # noqa: E731 - root may read everything
    with monkeypatch.context() as refusing:
        refusing.setattr(os, "access", readable)
        finding = doctor.gamepad()
    assert finding.found == f"no right to read {tmp_path / 'input' / 'event7'}" and "-aG input" in finding.remedy
    monkeypatch.setattr(packages, "get_packages_with_prefixes", lambda: {"rclpy": "/opt"})
    assert "ros-$ROS_DISTRO-joy" in doctor.gamepad().remedy
    monkeypatch.setattr(packages, "get_packages_with_prefixes", lambda: {"joy": "/opt"})
    assert doctor.gamepad() == doctor.Finding(doctor.OK, "gamepad", str(tmp_path / "input" / "js0"))


@pytest.mark.parametrize("release, level", [("5.15.0-91-generic", "warn"), ("6.8.0", "warn"), ("6.12-rt", "ok"),
                                            ("10.0.1", "ok")])
def test_kernel_that_cannot_let_control_interrupt_is_a_warning(monkeypatch, release, level) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    finding = doctor.scheduling()
    assert finding.level == level and release in finding.found
    assert level == "ok" or "6.12" in finding.remedy


@pytest.mark.parametrize("allowed, limit, found", [(99, 0, "up to 99"), (20, 20, "up to 20"), (0, 0, "not allowed"),
                                                   (0, 50, "not allowed")])
def test_real_time_priority_is_tried_up_to_what_the_machine_allows(monkeypatch, allowed, limit, found) -> None:
    def fifo(thread: int, policy: int, param: os.sched_param) -> None:
        if param.sched_priority > allowed:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", fifo)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    finding = doctor.realtime_priority()
    assert found in finding.found and "realtime_priority" in finding.found
    assert (finding.level == "ok") == bool(allowed)
    assert bool(allowed) or "rtprio 90" in finding.remedy and "SYS_NICE" in finding.remedy


def test_trying_real_time_priority_leaves_this_process_as_it_was() -> None:
    doctor.realtime_priority()
    ordinary, deadline = {os.SCHED_OTHER, os.SCHED_BATCH}, time.monotonic() + 10.0
    while not (found := _policies()) <= ordinary:  # a thread that was joined may end a moment later
        assert time.monotonic() < deadline, found


def _policies() -> set[int]:
    """Of the threads that this process has."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            found.add(os.sched_getscheduler(int(thread)))
        except ProcessLookupError:  # it has ended
            pass
    return found


@pytest.mark.parametrize("limit, capable, level", [(resource.RLIM_INFINITY, False, "ok"), (8 << 20, True, "ok"),
                                                   (8 << 20, False, "warn")])
def test_locked_memory_needs_no_limit_or_the_right(monkeypatch, limit, capable, level) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(doctor, "_has_capability", lambda _: capable)
    finding = doctor.locked_memory()
    assert finding.level == level
    assert level == "ok" or "at most 8 MB" in finding.found and "memlock unlimited" in finding.remedy


def test_help_lists_the_commands_with_examples_and_needs_no_torch() -> None:
    code = ("import sys; from rlt_ros.cli.main import main; code = main(['--help']);"
            "sys.exit(code or 10 * ('torch' in sys.modules or 'rclpy' in sys.modules))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and "doctor" in result.stdout and "examples:" in result.stdout


def test_wrong_usage_is_exit_code_2(capsys) -> None:
    assert main(["nonsense"]) == 2 and main([]) == 2 and main(["doctor", "--nope"]) == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_failed_work_is_exit_code_1_with_one_line_why(tmp_path, capsys) -> None:
    assert main(["doctor", "--json", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip() == f"rlt doctor: [Errno 21] Is a directory: '{tmp_path}'"


def test_interruption_is_exit_code_130(monkeypatch) -> None:
    def interrupted(_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    assert main(["doctor"]) == 130
