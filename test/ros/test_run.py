"""A node as a process: what it prints and how it exits."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lifecycle_msgs.msg import TransitionEvent
from rclpy.node import Node

from rlt_ros.ros import priority

NODE = """
import sys, time
if "slow" in sys.argv:
    import rlt_ros.ros.run
    stop = rlt_ros.ros.run._Stop()
    print("importing", flush=True)
    time.sleep(60)
from dataclasses import dataclass
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.ros.run import run

class ProbeNode(RltNode):
    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        way: str = parameter(description="what to do", choices=("run", "raise", "die", "load", "hang"))
    def on_configure_(self):
        if self.params.way == "raise":
            raise FileNotFoundError("no checkpoint in /nowhere; run `rlt train vla` first")
        if self.params.way == "load":
            print("loading", flush=True)
            time.sleep(60)
        if self.params.way == "die":
            self.every(0.01, lambda: 1 / 0)
    def on_activate_(self):
        print("active", self.get_fully_qualified_name(), flush=True)
    def on_deactivate_(self):
        print("deactivated", flush=True)
    def destroy_node(self):
        while self.get_parameter("way").value == "hang":
            pass
        super().destroy_node()

sys.exit(run(ProbeNode, "probe_node"))
"""


@pytest.fixture
def start(tmp_path: Path, python: str):
    """Start the probe with ROS arguments; kill what is left afterwards."""
    script = tmp_path / "probe.py"
    script.write_text(NODE)
    processes = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen([python, str(script), "--ros-args", *arguments], env=os.environ | environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_is_exit_code_0_and_deactivates(start, number: int) -> None:
    process = start("-p", "way:=run")
    assert process.stdout.readline() == "active /probe_node\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, "Traceback" in err) == (0, "deactivated\n", False), err


def test_an_active_node_has_its_real_time_priority(start) -> None:
    """It is given after the kind of work, which knows no priorities."""
    if not priority.realtime_allowed(20):
        pytest.skip("SCHED_FIFO is not allowed here; `rlt doctor` says how to allow it")
    process = start("-p", "way:=run", "-p", "realtime_priority:=20", RLT_WORK="control")
    assert process.stdout.readline() == "active /probe_node\n"
    threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
    deadline = time.monotonic() + 20.0
    places = lambda: {(os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority)  # noqa: E731
                      for thread in threads}
    while places() != {(os.SCHED_FIFO, 20)}:  # what it inherited from who started it may be FIFO, too
        assert time.monotonic() < deadline, f"(policy, priority) of its threads is {places()}"
        time.sleep(0.01)


def test_repeated_signals_are_still_exit_code_0(start) -> None:
    """Ctrl-C under launch reaches a node twice: from the terminal and from launch."""
    process = start("-p", "way:=run")
    assert process.stdout.readline() == "active /probe_node\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "deactivated\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_stopped_while_starting_is_exit_code_0(start) -> None:
    process = start("--", "slow")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_stopped_within_an_import_that_makes_an_error_of_it_is_exit_code_0(python: str) -> None:
    script = """
import importlib, sys, time
from rlt_ros.ros import run
def import_module(*_, **__):
    try:
        print("importing", flush=True)
        time.sleep(60)
    except SystemExit as end:
        raise ImportError("initialization failed") from end
importlib.import_module = import_module
sys.exit(run.main("probe_node"))
"""
    with subprocess.Popen([python, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_stopped_while_configuring_is_exit_code_0_and_does_not_wait(start) -> None:
    process = start("-p", "way:=load")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err


def test_a_middleware_that_hangs_at_the_end_is_left_after_the_node_has_ended(start) -> None:
    process = start("-p", "way:=hang")
    assert process.stdout.readline() == "active /probe_node\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (-signal.SIGALRM, "deactivated\n")


def test_failing_configure_is_exit_code_1_with_one_line_why(start) -> None:
    process = start("-p", "way:=raise")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.splitlines()[-1] == ("probe_node: configure failed: FileNotFoundError: no checkpoint in /nowhere;"
                                    " run `rlt train vla` first")
    assert "Traceback" in err  # logged for the developer, before the line for the user


def test_exception_while_running_is_exit_code_1(start) -> None:
    process = start("-p", "way:=die")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err.splitlines()[-1] == "probe_node: ZeroDivisionError: division by zero"


def test_unknown_parameter_in_the_nodes_section_is_exit_code_1(start, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("/**:\n  ros__parameters: {rate_hz: 25}\n/**/probe_node:\n  ros__parameters: {way: run, wya: run}\n"
                    "/**/other_node:\n  ros__parameters: {its_own: 1}\n")
    process = start("--params-file", str(file), "-r", "__ns:=/left")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "unknown parameter 'wya'" in err.splitlines()[-1] and "its_own" not in err.splitlines()[-1]


def test_wildcard_file_reaches_a_namespaced_node(start, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("/**/probe_node:\n  ros__parameters: {way: run}\n")
    process = start("--params-file", str(file), "-r", "__ns:=/left")
    assert process.stdout.readline() == "active /left/probe_node\n"


def test_broken_parameter_file_is_exit_code_2(start) -> None:
    process = start("--params-file", "/nowhere.yaml")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2 and "/nowhere.yaml" in err


def test_without_autostart_the_node_waits_to_be_told(start, graph) -> None:
    seen: list[str] = []
    peer = graph.add(Node("watcher"))
    topic = "/probe_node/transition_event"
    peer.create_subscription(TransitionEvent, topic, lambda msg: seen.append(msg.goal_state.label), 10)
    process = start("-p", "way:=run", "-p", "autostart:=false")
    graph.spin_until(lambda: ("probe_node", "/") in peer.get_node_names_and_namespaces(), "the node")
    graph.spin_until(lambda: peer.count_publishers(topic) == 1, "its transitions")
    assert seen == [] and process.poll() is None
