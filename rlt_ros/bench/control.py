"""How well the loop keeps time: in a practice with all nodes as processes, or alone at any rate; beside a bare loop.

With a rate it is the graph of the loop, proprio_node, actor_node and safety_node, whose driver, VLA and episode this
process plays; with --learner a vla_node and a learner_node at full load stand beside them, in a namespace of their own.
What is measured begins with the first episode: while processes start nobody is waited for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rlt_ros.bench import stage
from rlt_ros.ros import processes

# Hyper-parameters with which the learner never trains, and with which it always does.
IDLE = {"utd": 0.0}
# From its start on, whoever succeeds; its policy stays where it is, so that both see the same robot.
FULL = {"utd": 1e6, "max_backlog": 10**9, "min_buffer": 1, "warm_transitions": 1, "warm_successes": 0,
        "warm_updates": 10**9}  # fmt: skip
# That the session of a learner at full load has before it begins: it need not wait for the first critical phase.
ROWS = 512
TURNS = 2
LOOP = ("proprio_node", "actor_node", "safety_node")
# Messages take their 1 to 2 ms at any rate: of a short tick that is a larger part than the parameters' defaults leave.
WAIT, WATCH = 0.55, 0.75
START_S = 120.0  # how long a busy machine may take until everything runs
SETTLE_S = 3.0  # of the first episode that are not counted
KEPT = (
    "period_error_p99_ms", "bare_loop_p99_ms", "period_error_p99_over_bare_loop", "period_error_p999_ms",
    "bare_loop_p999_ms", "period_error_p999_over_bare_loop", "missed_5ms", "bare_loop_missed_5ms",
    "ticks", "ticks_with_older_proprio", "ticks_without_fresh_command",
    "critical_ticks", "late_references", "updates_per_s", "learner_cpu_percent", "cpu_actor_safety_percent",
)  # fmt: skip


def measure(args: argparse.Namespace) -> dict:
    """A practice with all nodes as processes; with --learner, more of them in turns, its learner idle and at full load.

    With --rate the loop alone at that rate; with --learner also beside a VLA and a learner at full load.
    """
    from rlt_ros.cli.domain import free_domain, stay_here

    # Before rclpy is imported: no other graph may be disturbed by this one, and this process looks on.
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    stay_here()
    with tempfile.TemporaryDirectory() as folder:
        if args.rate:
            stage(f"the loop alone for {args.minutes:g} min")
            found = at_rate(args, Path(folder) / "alone", loaded=False)
            if args.learner:
                stage(f"beside VLA and learner for {args.minutes:g} min")
                found["loaded"] = at_rate(args, Path(folder) / "loaded", loaded=True)
                found["loaded"]["learner_alone_updates_per_s"] = learner_alone(args)
            return found
        stage(f"a practice of {args.minutes:g} min of critical phase")
        found = practise(args, args.session or Path(folder) / "session")
        turns: dict[str, list[dict]] = {"idle": [], "full": []}
        for turn in range(TURNS if args.learner else 0):
            for name, td3 in (("idle", IDLE), ("full", FULL)):
                session = Path(folder) / f"{name}{turn}"
                write_learner(session, td3)
                if td3 is FULL:
                    write_journal(session, args)
                stage(f"practice {turn + 1} of {TURNS} with the learner {name}")
                turns[name].append(practise(args, session))
    for name, each in turns.items():
        if each:
            found[f"learner_{name}"] = {key: [round(one[key], 3) for one in each] for key in KEPT}
    if args.learner:
        found["learner_alone_updates_per_s"] = learner_alone(args)
    return found


def shipped() -> dict:
    """The parameters that are shipped."""
    import yaml

    from rlt_ros.sim.task import task_folder

    return yaml.safe_load((task_folder().parent / "practice.yaml").read_text(encoding="utf-8"))


def write_learner(session: Path, td3: dict) -> None:
    """A session whose learner has these hyper-parameters; everything else as shipped."""
    import yaml

    config = shipped()
    config["/**/learner_node"]["ros__parameters"].setdefault("td3", {}).update(td3)
    session.mkdir()
    (session / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def write_journal(session: Path, args: argparse.Namespace) -> None:
    """Transitions of noise in the session's journal, as if it had been practised before."""
    from rclpy.serialization import serialize_message

    from rlt_ros.bench.replay import noise
    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.data.journal import Journal
    from rlt_ros.ros.conversions import transition_to_msg
    from rlt_ros.ros.definitions import ros2msg
    from rlt_ros.sim.task import load_task

    task, kind = load_task(args.task), "rlt_ros/msg/Transition"
    journal = Journal(session / "journal", kind, ros2msg(kind), sync_ms=-1.0)
    for i in range(ROWS):
        message = transition_to_msg(noise(i, args.token, task), session.name, ControlClock(task.rate))
        journal.append(serialize_message(message), time.time_ns())
    journal.close()


def learner_alone(args: argparse.Namespace) -> float:
    """Updates a second of the learner as shipped, one thread, with nothing beside it."""
    import statistics

    import torch

    from rlt_ros.bench import in_turns
    from rlt_ros.bench.learner import ours
    from rlt_ros.core.networks import Dims
    from rlt_ros.core.td3 import TD3Config
    from rlt_ros.sim.task import load_task

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = load_task(args.task)
        config = TD3Config.from_mapping(shipped()["/**/learner_node"]["ros__parameters"].get("td3", {}))
        dims = Dims(token=args.token, rl_proprio=2 * task.proprio_dim, action=task.action_dim, chunk=10)
        call = ours(config, dims, task.proprio_scale, "cpu", 20)
        in_turns({"learner": call}, 1)
        return 20 / statistics.median(in_turns({"learner": call}, 10)["learner"])
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def looking_on() -> Iterator[tuple]:
    """(node, executor) of this process in the graph; nobody else's rclpy is touched."""
    import rclpy
    from rclpy.experimental import EventsExecutor
    from rclpy.node import Node
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    rclpy.init(args=["rlt"], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("bench_control", context=context)
    executor = EventsExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


class BareLoop:
    """A loop that does nothing, in a process of its own beside the others: what this machine gives anybody."""

    def __init__(self, rate: float, realtime: bool) -> None:
        priority = processes.realtime_of("actor_node") if realtime else 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", BARE_LOOP.format(rate=float(rate), priority=priority)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._process.stdout.readline()  # from here on it takes signals

    def reset(self) -> None:
        """Forget what was."""
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()

    def end(self) -> dict:
        """Its figures; it ends."""
        self._process.send_signal(signal.SIGINT)
        return json.loads(self._process.communicate(timeout=10.0)[0])


class Costs:
    """Processor time and updates from begin() on; figures() are of the newest see()."""

    def __init__(self, picture) -> None:
        self.picture, self.first, self.last = picture, None, None

    def see(self, cpu: dict[str, float]) -> None:
        """cpu: node -> seconds so far."""
        now = (time.monotonic(), cpu, self.picture.value("learner_node", "updates"))
        self.first, self.last = self.first or now, now

    def figures(self) -> dict:
        """Percent of a core and updates a second."""
        if self.first is None or self.first is self.last:
            raise RuntimeError("it ended before anything was measured; give it more --minutes")
        (then_s, then, updates), (now_s, now, more) = self.first, self.last
        spent = {name: 100 * (seconds - then.get(name, 0.0)) / (now_s - then_s) for name, seconds in now.items()}
        return {
            "cpu_actor_safety_percent": spent.get("actor_node", 0.0) + spent.get("safety_node", 0.0),
            "learner_cpu_percent": spent.get("learner_node", 0.0),
            "cpu_percent_by_node": {name: round(percent, 1) for name, percent in spent.items()},
            "updates_per_s": (more - updates) / (now_s - then_s),
        }


def loop_figures(actor: dict[str, float], floor: dict[str, float]) -> dict:
    """The actor's commands over the ticks of the bare loop."""
    if not ("period_error_p999_ms" in actor and "period_error_p999_ms" in floor):
        raise RuntimeError("the actor's diagnostics have no period errors yet; give it more --minutes")
    return {
        "period_error_p99_ms": actor["period_error_p99_ms"],
        "bare_loop_p99_ms": floor["period_error_p99_ms"],
        "period_error_p99_over_bare_loop": actor["period_error_p99_ms"] / floor["period_error_p99_ms"],
        "period_error_p999_ms": actor["period_error_p999_ms"],
        "bare_loop_p999_ms": floor["period_error_p999_ms"],
        "period_error_p999_over_bare_loop": actor["period_error_p999_ms"] / floor["period_error_p999_ms"],
        "period_error_max_ms": actor["period_error_max_ms"],
        "bare_loop_max_ms": floor["period_error_max_ms"],
        "missed_5ms": actor["late_5ms"],
        "bare_loop_missed_5ms": floor["late_5ms"],
        "ticks": actor["ticks"],
        "ticks_with_older_proprio": actor["ticks_with_older_proprio"],
    }


def practise(args: argparse.Namespace, session: Path) -> dict:
    """The figures of one practice; memory (proportional set size) and CPU are read from /proc all along."""
    from rlt_ros.core.episode import Phase
    from rlt_ros.ros.watch import Watch

    # fmt: off
    command = ["rlt", "practice", "--task", args.task, "--session", str(session),
               "--minutes", str(args.minutes), "--episodes", "10000", "--no-eval",
               "--realtime" if args.realtime else "--no-realtime"]
    # fmt: on
    bare = BareLoop(50.0, args.realtime)
    process = subprocess.Popen(command, stdout=sys.stderr)
    peak, cpu, start, stolen, due_s, begun = 0.0, {}, time.monotonic(), stolen_seconds(), 0.0, False
    try:
        with looking_on() as (node, executor):
            picture = Watch(node).picture
            costs = Costs(picture)
            while process.poll() is None:
                executor.spin_once(0.2)
                if not begun and picture.phase in (Phase.APPROACH, Phase.CRITICAL):
                    begun, due_s = True, 0.0
                    bare.reset()
                if time.monotonic() < due_s:
                    continue
                due_s = time.monotonic() + 2.0
                tree = descendants(process.pid)
                peak = max(peak, sum(memory_mb(pid) for pid in tree))
                cpu |= {pid: seconds for pid in tree if (seconds := cpu_seconds(pid)) is not None}
                by_name = {name: cpu[pid] for pid in tree if pid in cpu and (name := node_of(pid))}
                if begun and {"actor_node", "safety_node"} <= by_name.keys() and not picture.person_is_done:
                    costs.see(by_name)
        floor = bare.end()
    finally:
        bare.kill()
    if process.returncode != 0:
        raise RuntimeError(f"the practice ended with exit code {process.returncode}; its messages are above")
    elapsed = time.monotonic() - start
    stolen = stolen_seconds() - stolen
    loops = json.loads((session / "loops.json").read_text())
    simulator, learner_node = loops["sim_node"], loops.get("learner_node", {})
    return loop_figures(loops["actor_node"], floor) | costs.figures() | {
        "cpu_stolen_percent": 100 * stolen / elapsed / (os.cpu_count() or 1),  # by the machine's host
        "critical_ticks": simulator["critical_ticks"],
        "ticks_without_fresh_command": simulator["ticks_without_fresh_command"],
        "ticks_bridged": simulator["ticks_bridged"],
        "realtime_factor": simulator["realtime_factor"],
        "late_references": loops["vla_node"].get("late_references", 0.0),
        "updates": learner_node.get("updates", 0.0),
        "cpu_percent": 100 * sum(cpu.values()) / elapsed,
        "memory_mb": peak,
        "loops": loops,
    }  # fmt: skip


def at_rate(args: argparse.Namespace, folder: Path, loaded: bool) -> dict:
    """The figures of the loop's nodes at args.rate, with a VLA and a learner beside them or not."""
    import yaml

    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.ros.supervisor import Command, Supervisor, commands
    from rlt_ros.sim.task import load_task

    folder.mkdir()
    config, task = folder / "config.yaml", load_task(args.task)
    config.write_text(yaml.safe_dump({
        "/**": {"ros__parameters": {"rate_hz": float(args.rate)}},
        "/actor_node": {"ros__parameters": {"phase": WAIT if args.rate > 100.0 else 0.2}},
        "/safety_node": {"ros__parameters": {"watchdog_phase": WATCH if args.rate > 100.0 else 0.35}},
        "/load/**": {"ros__parameters": {"rate_hz": task.rate}},
        "/load/learner_node": {"ros__parameters": {"td3": FULL, "checkpoint_s": 3600.0, "stale_s": 3600.0}},
    }))  # fmt: skip
    start = [c for c in commands("sim", "simulated", "", args.task, extra_files=[config], realtime=args.realtime)
             if c.name in LOOP]
    if loaded:
        beside = commands("sim", "simulated", "", args.task, namespace="load", extra_files=[config])
        start += [c for c in beside if c.name in ("vla_node", "learner_node")]
        start.append(Command("load", [
            sys.executable, "-m", "rlt_ros.bench.load", "--ros-args", "-r", "__ns:=/load",
            "-p", f"token:={args.token}", "-p", f"task:={args.task}", "-p", f"rate_hz:={task.rate}",
        ], {"RLT_WORK": "ordinary", "OMP_NUM_THREADS": "1"}))  # fmt: skip
    stolen, began_s, bare = stolen_seconds(), time.monotonic(), BareLoop(args.rate, args.realtime)
    try:
        with Supervisor(start, folder / "log") as supervisor, looking_on() as (node, executor):
            player = Player(node, executor, supervisor, task, ControlClock(args.rate), args.token,
                            args.realtime)
            found = player.run(args.minutes * 60.0, bare, loaded)
        floor = bare.end()
    finally:
        bare.kill()
    stolen = 100 * (stolen_seconds() - stolen) / (time.monotonic() - began_s) / (os.cpu_count() or 1)
    return loop_figures(found.pop("actor"), floor) | found | {
        "rate_hz": float(args.rate), "nodes": [command.name for command in start], "cpu_stolen_percent": stolen,
    }  # fmt: skip


class Player:
    """Plays the robot for the nodes of the loop, and looks on."""

    AHEAD_S = 0.0025  # that the driver speaks before its tick: that of the next command, by the actor's own clock

    def __init__(self, node, executor, supervisor, task, clock, token: int, realtime: bool) -> None:
        from rlt_ros.bench.robot import Robot
        from rlt_ros.core.chunks import Source
        from rlt_ros.msg import ActionChunk
        from rlt_ros.ros import qos
        from rlt_ros.ros.watch import Watch

        self.executor, self.supervisor, self.clock, self.realtime = executor, supervisor, clock, realtime
        self.robot = Robot(node, task, clock, token, chunk_steps=10, latency_ticks=5)
        self.picture = Watch(node).picture
        self.commands = self.held = 0
        self.thought = -1  # the newest tick that VLA and episode were played for

        def on_executed(msg: ActionChunk) -> None:
            self.commands += 1
            self.held += msg.source == Source.HOLD

        node.create_subscription(ActionChunk, "command/executed", on_executed, qos.NEWEST)

    def run(self, seconds: float, bare: BareLoop, loaded: bool) -> dict:
        """Go for so long after everything runs."""
        from rlt_ros.ros import priority

        priority.apply_to_process("control")
        if self.realtime:
            priority.realtime(processes.realtime_of("sim_node"), False, [])
        costs, began_s, ready_s, from_s, due_s = Costs(self.picture), time.monotonic(), None, None, 0.0
        before: Counter[str] = Counter()
        while from_s is None or time.monotonic() < from_s + seconds:
            self.one_tick(ready_s is not None)
            now_s = time.monotonic()
            if self.supervisor.dead():
                raise RuntimeError(str(self.supervisor.dead()[0]))
            if ready_s is None:
                ready_s = now_s if self.ready(loaded) else None
                if now_s - began_s > START_S:
                    raise RuntimeError(f"not everything runs after {START_S:.0f} s: {self.picture.problems()}")
            elif from_s is None and now_s > ready_s + SETTLE_S:
                from_s, self.commands, self.held, before = now_s, 0, 0, self.causes()
                bare.reset()
            if from_s is not None and now_s >= due_s:
                due_s = now_s + 1.0
                costs.see({name: cpu_seconds(pid) or 0.0 for name, pid in self.supervisor.pids.items()})
        return costs.figures() | {
            "actor": self.picture.loops()["actor_node"], "commands": self.commands, "commands_held": self.held,
            "held_by_cause": dict(self.causes() - before),
        }  # fmt: skip

    def causes(self) -> Counter[str]:
        """Why the actor and the gate held the robot so far, and in how many ticks, by their diagnostics."""
        return self.picture.counts("actor_node", "held ") + self.picture.counts("safety_node", "gate_")

    def ready(self, loaded: bool) -> bool:
        """Whether the loop commands, and VLA and learner work."""
        works = (("learner_node", "updates"), ("vla_node", "reference_ms"))
        at_work = all(self.picture.value(*sign) > 0 for sign in works)
        return self.robot.ready() and self.commands > 0 and (at_work or not loaded)

    def one_tick(self, running: bool) -> None:
        """The tick that begins next."""
        tick = self.clock.tick(time.time_ns()) + 1
        self.until(tick, 0.0)
        if running:
            # What began in a tick that was left out is said late, not never.
            for each in range(self.thought + 1 if self.thought > 0 else tick, tick + 1):
                self.robot.think(each)
            self.thought = tick
        self.until(tick, 1.0 - self.AHEAD_S * self.clock.rate_hz)
        self.robot.sense(self.clock.stamp_ns(tick + 1))

    def until(self, tick: int, phase: float) -> None:
        """Receive until that part of the tick; something at least, however late it is."""
        due_ns = self.clock.stamp_ns(tick) + round(phase * self.clock.period_ns)
        self.executor.spin_once(0.0)
        while (left_ns := due_ns - time.time_ns()) > 0:
            self.executor.spin_once(left_ns * 1e-9)


# With the priority of the actor, until SIGINT; prints the summary since the last SIGUSR1.
BARE_LOOP = """
import json, os, signal, time
from rlt_ros.core.chunks import ControlClock
from rlt_ros.ros import priority
from rlt_ros.ros.loop import LoopThread, TickLoop
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job of a script
priority.apply("control")
loop = TickLoop(lambda tick: None, ControlClock({rate}))
thread = LoopThread(loop)
signal.signal(signal.SIGUSR1, lambda *_: loop.statistics.reset())
try:
    thread.start()
    priority.realtime({priority}, False, [])
    print(flush=True)
    time.sleep(1e6)
except KeyboardInterrupt:
    thread.stop()
    print(json.dumps(loop.statistics.summary()))
"""


def node_of(pid: int) -> str:
    """Which executable of the graph a process is, "" for others."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:3]
    except OSError:
        return ""
    return next((name for argument in arguments if (name := Path(argument).name).endswith("_node")), "")


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
