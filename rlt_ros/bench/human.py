"""From the press of the dead-man to the robot under human control, and back.

The real teleop_node, proprio_node, actor_node and safety_node run as processes over DDS, as in a practice, while the
actor drives in the critical phase; this process plays the robot's driver, the VLA, the episode and the gamepad. The
dead-man goes down and up at random moments, so at random phases of the control tick. A sample goes from the Joy message
being sent until the first `command/executed` is heard that is the person's, or no longer the person's.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rlt_ros.bench import percentile
from rlt_ros.bench.control import cpu_seconds

NODES = ("proprio_node", "teleop_node", "actor_node", "safety_node")
START_S = 90.0  # how long a busy machine may take until the actor acts
SETTLE_S = 2.0  # that is left out after it
SENSE, THINK = 0.01, 0.35  # when in a tick the driver's messages, and those of VLA and episode, come
AUTOREPEAT_S = 0.05  # as joy_node's 20 Hz
HELD_S = (0.1, 0.3)  # shortest and longest time that the dead-man is down, or up
GIVEN_UP_S = 1.0  # after a press that nobody obeyed


def measure(args: argparse.Namespace) -> dict:
    """Times in ms and in control periods over args.seconds at the task's rate."""
    from rlt_ros.sim.task import load_task

    task = load_task(args.task)
    if sorted(key.key for key in task.state) != ["pose", "twist", "wrench"] or "x" not in task.action_names:
        raise ValueError(f"task '{task.name}' has no arm with pose, twist and wrench to steer; take --task ethernet")
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

    from rlt_ros.ros.supervisor import Supervisor, commands

    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"rate_hz": task.rate}}}))
    start = commands("sim", "simulated", "", args.task, extra_files=[config], realtime=args.realtime)
    graph = [command for command in start if command.name in NODES]
    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with Supervisor(graph, folder / "log") as supervisor:
            return Bench(args, task, supervisor).run()
    finally:
        rclpy.try_shutdown()


class Bench:
    """The driver's and the person's process."""

    def __init__(self, args: argparse.Namespace, task, supervisor) -> None:
        from rclpy.experimental import EventsExecutor
        from rclpy.node import Node
        from sensor_msgs.msg import Joy

        from rlt_ros.bench.robot import Robot
        from rlt_ros.core.chunks import ControlClock
        from rlt_ros.core.gamepad import VirtualPad, load_layout
        from rlt_ros.msg import ActionChunk
        from rlt_ros.ros import qos
        from rlt_ros.ros.processes import gamepad_file
        from rlt_ros.ros.watch import Watch
        from rlt_ros.sim.task import task_folder

        self.args, self.supervisor = args, supervisor
        self.node, self.clock = Node("bench_human"), ControlClock(task.rate)
        self.robot = Robot(self.node, task, self.clock, args.token, chunk_steps=10, latency_ticks=5)
        self.watch = Watch(self.node)
        pad = VirtualPad(load_layout(gamepad_file(task_folder().parents[1], "xbox")))
        self.readings = [Joy(axes=axes, buttons=buttons) for axes, buttons in (
            pad.reading({}, ()), pad.reading({"x": 0.5}, ("deadman",)))]  # fmt: skip
        self.joy = self.node.create_publisher(Joy, "joy", qos.EVENT)
        self.node.create_subscription(ActionChunk, "command/executed", self.on_executed, qos.NEWEST)
        self.node.create_subscription(ActionChunk, "human/command", self.on_human, qos.COMMAND)
        self.ms: dict[str, list[float]] = defaultdict(list)
        self.down, self.asked_s = False, 0.0  # whether the dead-man is, and when that changed
        self.passed_on = self.obeyed = True  # by the teleop node, by the gate
        self.joy_s = self.change_s = 0.0  # when the next reading is due, and the next press or release
        self.source, self.unanswered = 0, 0
        self.executor = EventsExecutor()
        self.executor.add_node(self.node)

    def on_human(self, msg) -> None:
        if not self.passed_on and bool(msg.actions) == self.down:
            self.passed_on = True
            self.ms["command" if self.down else "release_command"].append((time.monotonic() - self.asked_s) * 1e3)

    def on_executed(self, msg) -> None:
        from rlt_ros.core.chunks import Source

        self.source = msg.source
        if not self.obeyed and (msg.source == Source.HUMAN) == self.down:
            now_s = time.monotonic()
            self.ms["press" if self.down else "release"].append((now_s - self.asked_s) * 1e3)
            self.obeyed, self.change_s = True, now_s + random.uniform(*HELD_S)

    def run(self) -> dict:
        """Go until enough was measured."""
        import gc

        from rlt_ros.core.chunks import Source
        from rlt_ros.ros import priority, processes

        priority.apply_to_process("control")
        if self.args.realtime:
            priority.realtime(processes.realtime_of("sim_node"), False, [])
        sys.setswitchinterval(0.0005)
        gc.collect()
        gc.freeze()
        began_s, steering, end_s, cpu = time.monotonic(), False, None, 0.0
        try:
            while end_s is None or time.monotonic() < end_s:
                self.one_tick(steering)
                if self.supervisor.dead():
                    raise RuntimeError(str(self.supervisor.dead()[0]))
                now_s = time.monotonic()
                if not steering:
                    if self.source == Source.ACTOR and self.robot.ready() and self.joy.get_subscription_count():
                        steering, began_s = True, now_s
                    elif now_s - began_s > START_S:
                        problems = self.watch.picture.problems()
                        raise RuntimeError(f"the actor did not act within {START_S:.0f} s: {problems}")
                elif end_s is None and now_s - began_s > SETTLE_S:
                    end_s, cpu = now_s + self.args.seconds, self.cpu()
                    self.ms.clear()
                    self.unanswered = 0
            spent = 100.0 * (self.cpu() - cpu) / (time.monotonic() - end_s + self.args.seconds)
        finally:
            self.executor.shutdown()
            self.node.destroy_node()
        return self.figures(spent)

    def one_tick(self, steering: bool) -> None:
        """What this process does in the tick that begins next."""
        tick = self.clock.tick(time.time_ns()) + 1
        self.until(tick, SENSE, steering)
        self.robot.sense(time.time_ns())
        self.until(tick, THINK, steering)
        self.robot.think(tick)
        self.until(tick, 0.98, steering)

    def until(self, tick: int, phase: float, steering: bool) -> None:
        """Receive, press and release until that part of the tick."""
        due_ns = self.clock.stamp_ns(tick) + round(phase * self.clock.period_ns)
        while True:
            left_s = (due_ns - time.time_ns()) * 1e-9
            now_s = time.monotonic()
            if steering:
                self.use_gamepad(now_s)
                left_s = min(left_s, max(0.0, self.joy_s - now_s), max(0.0, self.change_s - now_s))
            self.executor.spin_once(max(0.0, left_s))
            if time.time_ns() >= due_ns:
                return

    def use_gamepad(self, now_s: float) -> None:
        pressing = now_s >= self.change_s
        if pressing:
            self.unanswered += not self.obeyed
            self.down, self.asked_s, self.change_s = not self.down, now_s, now_s + GIVEN_UP_S
            self.passed_on = self.obeyed = False
        if pressing or now_s >= self.joy_s:
            self.joy_s = now_s + AUTOREPEAT_S
            self.joy.publish(self.readings[self.down])

    def cpu(self) -> float:
        """Processor time of the teleop node so far, s."""
        return cpu_seconds(self.supervisor.pids["teleop_node"]) or 0.0

    def figures(self, spent: float) -> dict:
        period_ms, found = self.clock.period_s * 1e3, {}
        names = {"press": "press_to_human", "release": "release_to_actor", "command": "press_to_command",
                 "release_command": "release_to_command"}  # fmt: skip
        for way, name in names.items():
            for q, label in ((50, "p50"), (99, "p99"), (100, "max")):
                found[f"{name}_{label}_ms"] = percentile(self.ms[way], q)
                if way in ("press", "release"):
                    found[f"{name}_{label}_periods"] = found[f"{name}_{label}_ms"] / period_ms
        return found | {
            "presses": len(self.ms["press"]), "releases": len(self.ms["release"]), "unanswered": self.unanswered,
            "rate_hz": self.clock.rate_hz, "cpu_teleop_percent": spent, "nodes": list(NODES),
        }  # fmt: skip
