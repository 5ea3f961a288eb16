"""From proprioception to safe command, over what DDS and Python take for the same messages.

The real proprio_node, actor_node and safety_node run as processes over DDS, as in a practice; this process plays the
robot's driver, the VLA and the episode. In the same ticks, a little later each:

    chain       driver -> proprio_node -> actor_node -> safety_node -> driver: 4 messages one after another
    same hops   the same 4 messages through bare nodes, which answer each with one that was made before
    ping-pong   proprioception to one bare node, which answers with a command: 2 messages

A sample of the chain is stamped in a tick that has begun, so that nothing is waited for but the nodes. In every other
block of ticks the driver does as the simulator: the state at the beginning of a tick comes shortly before that, and
the actor waits for the tick. That wait is part of `ahead_total`, and told apart.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rlt_ros.bench import percentile
from rlt_ros.bench.control import cpu_seconds

NODES = ("proprio_node", "actor_node", "safety_node")
START_S = 90.0  # how long a busy machine may take until the actor acts
SETTLE_S = 2.0  # that is left out after it
BLOCK = 50  # ticks, in turns of samples at once and ahead of their tick
# When in a tick, as a part of it. Random within 0.08 of a tick, so that nothing beats.
AT_ONCE, THINK, SAME_HOPS, PING_PONG, AHEAD, SPREAD = 0.01, 0.35, 0.42, 0.68, 0.85, 0.08
LAST = 0.9  # deadline of actor and gate in this graph


def measure(args: argparse.Namespace) -> dict:
    """Times in ms over args.seconds at the task's rate, and their ratios."""
    from rlt_ros.sim.task import load_task

    task = load_task(args.task)
    parts = [key.key for key in task.state]
    if sorted(parts) != ["pose", "twist", "wrench"]:
        raise ValueError(f"task '{task.name}' has the state {', '.join(parts)}, expected pose, twist, wrench, with"
                         " which latency is measured; take --task ethernet")  # fmt: skip
    # Before rclpy is imported: no other graph may be disturbed by this one.
    from rlt_ros.cli.domain import free_domain, stay_here

    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    stay_here()
    with tempfile.TemporaryDirectory() as folder:
        return run_graph(args, Path(folder), task)


def run_graph(args: argparse.Namespace, folder: Path, task) -> dict:
    import rclpy
    import yaml
    from rclpy.signals import SignalHandlerOptions

    from rlt_ros.bench.relay import ROLES
    from rlt_ros.ros.supervisor import Command, Supervisor, commands

    config = folder / "config.yaml"
    # No deadline cuts a slow chain short: what comes out has seen what went in.
    config.write_text(yaml.safe_dump({
        "/**": {"ros__parameters": {"rate_hz": task.rate}},
        "/**/actor_node": {"ros__parameters": {"phase": LAST}},
        "/**/safety_node": {"ros__parameters": {"watchdog_phase": LAST}},
    }))  # fmt: skip
    graph = [c for c in commands("sim", "simulated", "", args.task, extra_files=[config]) if c.name in NODES]
    relays = [
        Command(
            f"relay_{role}",
            [sys.executable, "-m", "rlt_ros.bench.relay", role, "--ros-args", "-p", f"role:={role}", "-p",
             f"task:={args.task}", "-p", f"rate_hz:={task.rate}"],
            {"RLT_WORK": "control", "OMP_NUM_THREADS": "1"},
        )
        for role in ROLES
    ]  # fmt: skip
    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with Supervisor([*relays, *graph], folder / "log") as supervisor:
            return Bench(args, task, supervisor).run()
    finally:
        rclpy.try_shutdown()


class Bench:
    """The driver's process."""

    def __init__(self, args: argparse.Namespace, task, supervisor) -> None:
        from rclpy.experimental import EventsExecutor
        from rclpy.node import Node

        from rlt_ros.bench.relay import PROFILES, ROLES
        from rlt_ros.bench.robot import Robot
        from rlt_ros.core.chunks import ControlClock
        from rlt_ros.msg import ActionChunk
        from rlt_ros.ros import qos
        from rlt_ros.ros.conversions import proprio_to_msg
        from rlt_ros.ros.watch import Watch

        self.args, self.supervisor = args, supervisor
        self.node, self.clock = Node("bench_latency"), ControlClock(task.rate)
        self.robot = Robot(self.node, task, self.clock, args.token, chunk_steps=10, latency_ticks=5)
        self.watch = Watch(self.node)
        self.relayed = [self.node.create_publisher(kind, topic, PROFILES[kind]) for kind, topic in ROLES["proprio"]]
        ((kind, topic),) = ROLES["echo"]
        self.ping, self.pinged = self.node.create_publisher(kind, topic, PROFILES[kind]), proprio_to_msg(
            self.robot.proprio, self.clock, 0
        )
        self.sent: dict[tuple[str, int], int] = {}  # (way, tick) -> ns
        self.ms: dict[str, list[float]] = defaultdict(list)
        self.measuring, self.acting, self.unanswered = False, 0, 0
        for way, topic in (("chain", "command/executed"), ("hops", "bench/executed"), ("ping", "bench/pong")):
            self.node.create_subscription(ActionChunk, topic, self.hearing(way), qos.NEWEST)
        self.executor = EventsExecutor()
        self.executor.add_node(self.node)

    def hearing(self, way: str):
        def hear(msg) -> None:
            now_ns = time.time_ns()
            if way == "chain":
                self.acting = msg.source
            sent_ns = self.sent.pop((way, msg.tick), None)
            if sent_ns is None:
                return
            begin_ns = self.clock.stamp_ns(msg.tick) if way == "chain" else sent_ns
            if sent_ns >= begin_ns:
                self.ms[way].append((now_ns - sent_ns) / 1e6)
            else:
                self.ms["total"].append((now_ns - sent_ns) / 1e6)
                self.ms["wait"].append((begin_ns - sent_ns) / 1e6)
                self.ms["after"].append((now_ns - begin_ns) / 1e6)

        return hear

    def run(self) -> dict:
        """Go until enough was measured."""
        from rlt_ros.core.chunks import Source
        from rlt_ros.ros import priority

        priority.apply_to_process("control")
        sys.setswitchinterval(0.0005)
        gc.collect()
        gc.freeze()
        began_s, end_s, cpu, older = time.monotonic(), None, {}, 0.0
        try:
            while end_s is None or time.monotonic() < end_s:
                self.one_tick()
                if self.supervisor.dead():
                    raise RuntimeError(str(self.supervisor.dead()[0]))
                now_s = time.monotonic()
                if self.acting != Source.ACTOR or not self.robot.ready():
                    if now_s - began_s > START_S:
                        problems = self.watch.picture.problems()
                        raise RuntimeError(f"the actor did not act within {START_S:.0f} s: {problems}")
                elif end_s is None:
                    if not self.measuring:
                        self.measuring, began_s = True, now_s
                    elif now_s - began_s > SETTLE_S:
                        end_s = now_s + self.args.seconds
                        self.ms.clear()
                        self.sent.clear()
                        cpu, cpu_s = self.cpu(), now_s
                        older = self.watch.picture.value("actor_node", "ticks_with_older_proprio")
            share = 100 / (time.monotonic() - cpu_s)
            spent = {name: share * (seconds - cpu[name]) for name, seconds in self.cpu().items()}
            older = self.watch.picture.value("actor_node", "ticks_with_older_proprio") - older
        finally:
            self.executor.shutdown()
            self.node.destroy_node()
        return self.figures(spent) | {"ticks_with_older_proprio": older}

    def one_tick(self) -> None:
        """What this process does in the tick that begins next."""
        from rlt_ros.bench.robot import driver_messages

        tick = self.clock.tick(time.time_ns()) + 1
        ahead = tick // BLOCK % 2 == 1
        near = lambda phase: phase + random.uniform(0.0, SPREAD)  # noqa: E731
        if not ahead or tick % BLOCK == 0:  # the first of a block was not sent before
            self.until(tick, near(AT_ONCE))
            if not ahead:
                self.note("chain", tick)
            self.robot.sense(time.time_ns())
        self.until(tick, THINK)
        self.robot.think(tick)
        self.until(tick, near(SAME_HOPS))
        self.note("hops", tick)
        for publisher, message in zip(self.relayed, driver_messages(self.clock.stamp_ns(tick)), strict=True):
            publisher.publish(message)
        self.until(tick, near(PING_PONG))
        self.pinged.tick = tick
        self.note("ping", tick)
        self.ping.publish(self.pinged)
        self.until(tick, AHEAD)
        if ahead and (tick + 1) % BLOCK:
            self.note("chain", tick + 1)
            self.robot.sense(self.clock.stamp_ns(tick + 1))
        self.until(tick, 0.95)

    def note(self, way: str, tick: int) -> None:
        if self.measuring:
            self.unanswered += self.sent.pop((way, tick - 2 * BLOCK), None) is not None
            self.sent[way, tick] = time.time_ns()

    def until(self, tick: int, phase: float) -> None:
        """Receive until that part of the tick; something at least, however late it is."""
        due_ns = self.clock.stamp_ns(tick) + round(phase * self.clock.period_ns)
        self.executor.spin_once(0.0)
        while (left_ns := due_ns - time.time_ns()) > 0:
            self.executor.spin_once(left_ns * 1e-9)

    def cpu(self) -> dict[str, float]:
        """Processor time of each process so far."""
        return {name: cpu_seconds(pid) or 0.0 for name, pid in self.supervisor.pids.items()}

    def figures(self, spent: dict[str, float]) -> dict:
        found: dict = {}
        names = {"chain": "chain", "hops": "same_hops", "ping": "ping_pong", "total": "ahead_total",
                 "wait": "ahead_wait", "after": "ahead_after_wait"}  # fmt: skip
        for way, name in names.items():
            found |= {f"{name}_p50_ms": percentile(self.ms[way], 50), f"{name}_p99_ms": percentile(self.ms[way], 99)}
        for q in ("p50", "p99"):
            for under in ("same_hops", "ping_pong"):
                found[f"chain_over_{under}_{q}"] = found[f"chain_{q}_ms"] / found[f"{under}_{q}_ms"]
        actor_safety = spent["actor_node"] + spent["safety_node"]
        bare = spent["relay_actor"] + spent["relay_safety"]
        return found | {
            "samples": len(self.ms["chain"]), "ahead_samples": len(self.ms["total"]), "unanswered": self.unanswered,
            "cpu_actor_safety_percent": actor_safety, "cpu_bare_percent": bare,
            "cpu_actor_safety_over_bare": actor_safety / bare if bare else float("nan"),
            "cpu_percent": {name: round(percent, 2) for name, percent in spent.items()},
            "rate_hz": self.clock.rate_hz, "nodes": list(spent),
        }  # fmt: skip
