"""Measure how well the graph keeps time on this machine, and how fast the learner is against the machine's own limit.

examples:
  rlt bench control --minutes 2          # a short practice with every node: jitter, missed commands, CPU, memory, updates
  rlt bench learner --json learner.json  # updates per second over the rate of a bare matrix product of the same shapes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `rlt bench`."""
    parser.add_argument("name", choices=("control", "learner", "all"), help="what to measure")
    parser.add_argument("--task", default="ethernet", help="task name or file (default: ethernet)")
    parser.add_argument("--minutes", type=float, default=2.0, help="control: of critical phase (default: 2)")
    parser.add_argument("--session", type=Path, help="control: keep the practice session here (default: thrown away)")
    parser.add_argument("--json", type=Path, help="write the result there as well")


def run(args: argparse.Namespace) -> int:
    """Measure; return the exit code."""
    names = ("control", "learner") if args.name == "all" else (args.name,)
    metrics: dict = {}
    for name in names:
        metrics |= {f"{name}.{k}" if len(names) > 1 else k: v for k, v in {"control": control, "learner": learner}[name](args).items()}
    result = {"name": args.name, "metrics": metrics, "machine": machine()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def machine() -> dict:
    """What the figures were measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def control(args: argparse.Namespace) -> dict:
    """A practice with all nodes as processes; memory (proportional set size) and CPU are read from /proc all along."""
    with tempfile.TemporaryDirectory() as folder:
        session = args.session or Path(folder) / "session"
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
import json, time
from rlt_ros.core.chunks import ControlClock
from rlt_ros.ros import priority
from rlt_ros.ros.loop import TickLoop
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


def learner(args: argparse.Namespace) -> dict:
    """TD3 updates per second on one thread, and their matrix products' floating-point rate over the machine's own."""
    import numpy as np
    import torch

    from rlt_ros.core.learner import Learner
    from rlt_ros.core.networks import Dims
    from rlt_ros.core.replay import Transition
    from rlt_ros.core.td3 import TD3Config
    from rlt_ros.sim.task import load_task

    torch.set_num_threads(1)
    task, rng = load_task(args.task), np.random.default_rng(0)
    dims = Dims(token=96, rl_proprio=2 * task.proprio_dim, action=task.action_dim, chunk=10)
    config = TD3Config(utd=1e9, max_backlog=10**9)
    made = Learner(config, dims, None, task.proprio_scale)
    some = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)  # noqa: E731
    for i in range(2000):
        made.add(
            Transition(
                sequence=i, episode=0, tick=i, token=some(dims.token), proprio=some(dims.rl_proprio),
                reference=some(10, dims.action), action=some(10, dims.action), rewards=np.zeros(10, np.float32), steps=10,
                next_token=some(dims.token), next_proprio=some(dims.rl_proprio), next_reference=some(10, dims.action),
                terminated=False, truncated=False, sources=np.zeros(10, np.uint8), token_age_ticks=5, policy_version=0,
            )
        )  # fmt: skip
    for _ in range(50):
        made.step()
    count, start = 300, time.perf_counter()
    for _ in range(count):
        made.step()
    rate = count / (time.perf_counter() - start)

    inputs, width, batch = dims.token + dims.rl_proprio + dims.flat_action, config.hidden[0], config.batch_size
    mlp = 2 * batch * (inputs * width + width * width + width * dims.flat_action)  # one actor forward, FLOPs
    q = 2 * batch * (inputs * width + width * width + width)
    n = config.ensemble
    # Critic: target actor, target critics, critics forward and twice that backward. Actor, every other update: forward and
    # backward through actor and one critic.
    flops = mlp + n * q + 3 * n * q + (3 * mlp + 3 * q) / config.policy_delay
    a, b = torch.randn(batch, width), torch.randn(width, width)
    for _ in range(20):
        a @ b
    start = time.perf_counter()
    for _ in range(500):
        a @ b
    gemm = 500 * 2 * batch * width * width / (time.perf_counter() - start)
    return {
        "updates_per_s": rate, "gflop_per_update": flops / 1e9, "gemm_gflop_per_s": gemm / 1e9,
        "gemm_fraction": rate * flops / gemm, "dtype": "float32", "batch": batch, "threads": 1,
    }  # fmt: skip


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
