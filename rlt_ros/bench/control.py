"""How well the graph keeps time: a practice with all nodes as processes, beside a bare loop."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Hyper-parameters with which the learner never trains, and with which it always does.
IDLE = {"utd": 0.0}
# From the first transition on, whoever succeeds; its policy stays where it is, so that both see the same robot.
FULL = {"utd": 1e6, "max_backlog": 10**9, "warm_transitions": 1, "warm_successes": 0, "warm_updates": 10**9}
TURNS = 2


def measure(args: argparse.Namespace) -> dict:
    """A practice with all nodes as processes; with --learner, more of them, its learner idle and at full load."""
    with tempfile.TemporaryDirectory() as folder:
        found = practise(args, args.session or Path(folder) / "session")
        turns: dict[str, list[dict]] = {"idle": [], "full": []}
        for turn in range(TURNS if args.learner else 0):
            for name, td3 in (("idle", IDLE), ("full", FULL)):
                session = Path(folder) / f"{name}{turn}"
                write_learner(session, td3)
                turns[name].append(practise(args, session))
    for name, each in turns.items():
        if each:
            found[f"learner_{name}"] = {
                key: [round(one[key], 3) for one in each]
                for key in ("period_error_p99_ms", "bare_loop_p99_ms", "period_error_p99_over_bare_loop",
                            "ticks_without_fresh_command", "critical_ticks", "late_references", "updates_per_s")
            }  # fmt: skip
    return found


def write_learner(session: Path, td3: dict) -> None:
    """A session whose learner has these hyper-parameters; everything else as shipped."""
    import yaml

    from rlt_ros.sim.task import task_folder

    config = yaml.safe_load((task_folder().parent / "practice.yaml").read_text(encoding="utf-8"))
    config["/**/learner_node"]["ros__parameters"].setdefault("td3", {}).update(td3)
    session.mkdir()
    (session / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def practise(args: argparse.Namespace, session: Path) -> dict:
    """The figures of one practice; memory (proportional set size) and CPU are read from /proc all along."""
    # fmt: off
    command = ["rlt", "practice", "--task", args.task, "--session", str(session),
               "--minutes", str(args.minutes), "--episodes", "10000", "--no-eval"]
    # fmt: on
    process = subprocess.Popen(command, stdout=sys.stderr)
    bare = subprocess.Popen([sys.executable, "-c", BARE_LOOP], stdout=subprocess.PIPE, text=True)
    peak, cpu, start, stolen = 0.0, {}, time.monotonic(), stolen_seconds()
    while process.poll() is None:
        tree = descendants(process.pid)
        peak = max(peak, sum(memory_mb(pid) for pid in tree))
        cpu |= {pid: seconds for pid in tree if (seconds := cpu_seconds(pid)) is not None}
        time.sleep(2.0)
    bare.send_signal(signal.SIGINT)
    floor = json.loads(bare.communicate(timeout=10.0)[0])
    if process.returncode != 0:
        raise RuntimeError(f"the practice ended with exit code {process.returncode}; its messages are above")
    elapsed = time.monotonic() - start
    stolen = stolen_seconds() - stolen
    loops = json.loads((session / "loops.json").read_text())
    actor, simulator, learner_node = loops["actor_node"], loops["sim_node"], loops.get("learner_node", {})
    return {
        "period_error_p99_ms": actor["period_error_p99_ms"],
        # A loop that does nothing, in a process of its own beside the others: what this machine gives anybody.
        "bare_loop_p99_ms": floor["period_error_p99_ms"],
        "period_error_p99_over_bare_loop": actor["period_error_p99_ms"] / floor["period_error_p99_ms"],
        "bare_loop_p999_ms": floor["period_error_p999_ms"],
        "bare_loop_max_ms": floor["period_error_max_ms"],
        "cpu_stolen_percent": 100 * stolen / elapsed / (os.cpu_count() or 1),  # by the machine's host
        "period_error_p999_ms": actor["period_error_p999_ms"],
        "period_error_max_ms": actor["period_error_max_ms"],
        "missed_5ms": actor["late_5ms"],
        "ticks": actor["ticks"],
        "critical_ticks": simulator["critical_ticks"],
        "ticks_without_fresh_command": simulator["ticks_without_fresh_command"],
        "ticks_bridged": simulator["ticks_bridged"],
        "realtime_factor": simulator["realtime_factor"],
        "late_references": loops["vla_node"].get("late_references", 0.0),
        "updates": learner_node.get("updates", 0.0),
        "updates_per_s": learner_node.get("updates", 0.0) / elapsed,
        "cpu_percent": 100 * sum(cpu.values()) / elapsed,
        "memory_mb": peak,
        "loops": loops,
    }


# At 50 Hz, with the priority of a control process, until SIGINT; prints the summary.
BARE_LOOP = """
import json, signal, time
from rlt_ros.core.chunks import ControlClock
from rlt_ros.ros import priority
from rlt_ros.ros.loop import TickLoop
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job of a script
priority.apply("control")
loop = TickLoop(lambda tick: None, ControlClock(50.0))
loop.start()
try:
    time.sleep(1e6)
except KeyboardInterrupt:
    loop.stop()
    print(json.dumps(loop.statistics.summary()))
"""


def stolen_seconds() -> float:
    """Processor time that the host of a virtual machine has taken away, over all processors."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """A process and all that it started, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def memory_mb(pid: int) -> float:
    """Proportional set size: pages shared by several processes are counted once in all."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except (OSError, ProcessLookupError):
        pass
    return 0.0


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process so far."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
