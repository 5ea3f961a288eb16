"""How soon a press in the operator's panel changes the episode, and what the panel costs while a robot practises.

The panel runs as a process of its own, painted but on no screen, and a real episode_node beside it, over DDS. This
process says what the other nodes of a practice say, as often as they do: pictures, commands, states, diagnostics. The
panel's own buttons are pressed once a second, an episode after the other. A press is answered when the panel has
heard the changed episode/state: the way to the node and back.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlt_ros.bench import percentile
from rlt_ros.bench.control import cpu_seconds

START_S = 60.0  # how long a busy machine may take until the panel presses
SETTLE_S = 3.0  # that is left out after it
PICTURES_HZ, EPISODES_HZ = 25.0, 1.0
SIDE = 96  # px, of a picture
PRESS_EVERY_MS = 1000
ANSWER_S = 5.0  # a press that changed nothing for so long is given up
# What is pressed, and the phase that it leads to, by name.
PRESSES = (("start", "APPROACH"), ("hand_over", "CRITICAL"), ("success", "ENDED"), ("reset", "IDLE"))
VALUES = 20  # in the diagnostics of a node
WEIGHTS_EVERY = 13  # ticks, from policy to policy: four a second


def measure(args: argparse.Namespace) -> dict:
    """Times of presses in ms, and the panel's processor time in % of one core, over args.seconds."""
    from rlt_ros.cli.domain import free_domain, stay_here
    from rlt_ros.sim.task import load_task

    # Before rclpy is imported: no other graph may be disturbed by this one.
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    stay_here()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from rlt_ros.ros.supervisor import Command, Supervisor, commands

    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            presses = Path(folder) / "presses.jsonl"
            panel = Command("panel", [sys.executable, "-m", "rlt_ros.bench.panel", str(presses)],
                            {"QT_QPA_PLATFORM": "offscreen", "RLT_WORK": "ordinary"})  # fmt: skip
            graph = [c for c in commands("sim", "simulated", "", args.task) if c.name == "episode_node"]
            with Supervisor([*graph, panel], Path(folder) / "log") as supervisor:
                return Practice(load_task(args.task)).run(args.seconds, supervisor, presses)
    finally:
        rclpy.try_shutdown()


class Practice:
    """Says what a practice says, but for the episode."""

    def __init__(self, task) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
        from rclpy.node import Node
        from sensor_msgs.msg import Image

        from rlt_ros.core.chunks import Chunk, ControlClock, Source
        from rlt_ros.msg import ActionChunk, LearnerStatus, SafetyState
        from rlt_ros.ros import processes, qos
        from rlt_ros.ros.conversions import chunk_to_msg, image_to_msg

        self.clock, self.node = ControlClock(task.rate), Node("bench_panel")
        make = self.node.create_publisher
        self.commands = make(ActionChunk, "command/executed", qos.COMMAND)
        self.pictures = [make(Image, f"camera/{camera}/image", qos.SENSOR) for camera in task.cameras]
        self.safety = make(SafetyState, "safety/state", qos.STATE)
        self.learner = make(LearnerStatus, "learner/status", qos.EVENT)
        self.diagnostics = make(DiagnosticArray, "/diagnostics", qos.EVENT)
        still = np.zeros((1, task.action_dim), np.float32)
        first = self.clock.tick(time.time_ns())
        version = lambda tick: 1 + (tick - first) // WEIGHTS_EVERY  # noqa: E731
        self.command = lambda tick: chunk_to_msg(Chunk(tick, still, tick, Source.ACTOR, 1, version(tick)), self.clock)
        # Each picture differs, so that it has to be painted.
        random = np.random.default_rng(0)
        seen = [random.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(8)]
        self.picture = lambda tick, ns: image_to_msg(seen[tick % len(seen)], ns)
        self.status = lambda tick: LearnerStatus(
            updates=tick - first, replay_size=(tick - first) // 2, updates_per_s=50.0, warm=True
        )
        self.state = lambda tick: SafetyState(
            causes=["velocity", "force"], counts=[(tick - first) // 10, (tick - first) // 100]
        )
        names = [p.name for p in processes.select("sim", "simulated") if p.name != "episode_node"]

        def diagnostics(tick: int) -> list[DiagnosticArray]:
            values = [KeyValue(key=f"value_{i}", value=str(tick + i)) for i in range(VALUES)]
            own = {"actor_node": [KeyValue(key="policy_version", value=str(version(tick)))]}
            return [
                DiagnosticArray(
                    status=[DiagnosticStatus(name=name, message="active", values=values + own.get(name, []))]
                )
                for name in names
            ]

        self.diagnosed = diagnostics

    def run(self, seconds: float, supervisor, presses: Path) -> dict:
        """Go until enough was measured."""
        gc.collect()
        gc.freeze()
        began_s, end_s, cpu, first = time.monotonic(), None, 0.0, 0
        try:
            while end_s is None or time.monotonic() < end_s:
                self.one_tick()
                if supervisor.dead():
                    raise RuntimeError(str(supervisor.dead()[0]))
                now_s = time.monotonic()
                if end_s is not None:
                    continue
                if not read(presses):
                    if now_s - began_s > START_S:
                        raise RuntimeError(f"the panel pressed nothing within {START_S:.0f} s")
                    settled_s = now_s + SETTLE_S
                elif now_s > settled_s:
                    end_s, cpu_s, first = now_s + seconds, now_s, len(read(presses))
                    cpu = cpu_seconds(supervisor.pids["panel"]) or 0.0
            percent = 100 * ((cpu_seconds(supervisor.pids["panel"]) or 0.0) - cpu) / (time.monotonic() - cpu_s)
        finally:
            self.node.destroy_node()
        ms = [found["ms"] for found in read(presses)[first:]]
        answered = [value for value in ms if value is not None]
        return {
            "press_to_state_p50_ms": percentile(answered, 50), "press_to_state_p99_ms": percentile(answered, 99),
            "press_to_state_max_ms": max(answered, default=float("nan")), "presses": len(ms),
            "unanswered": len(ms) - len(answered), "panel_cpu_percent": percent, "seconds": seconds,
        }  # fmt: skip

    def one_tick(self) -> None:
        """What is said in the tick that begins next."""
        tick, every = self.clock.tick(time.time_ns()) + 1, lambda hz: max(1, round(self.clock.rate_hz / hz))
        time.sleep(max(0.0, (self.clock.stamp_ns(tick) - time.time_ns()) * 1e-9))
        self.commands.publish(self.command(tick))
        if tick % every(PICTURES_HZ) == 0:
            for publisher in self.pictures:
                publisher.publish(self.picture(tick, self.clock.stamp_ns(tick)))
        if tick % every(EPISODES_HZ) == 0:
            self.safety.publish(self.state(tick))
            self.learner.publish(self.status(tick))
            for msg in self.diagnosed(tick):
                self.diagnostics.publish(msg)


def read(presses: Path) -> list[dict]:
    """What the panel's process noted so far: name of the button, ms until the state had changed, or None."""
    lines = presses.read_text().splitlines(keepends=True) if presses.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def window(presses: Path) -> int:
    """The panel's process: press its buttons and note how long each took; returns the exit code."""
    from rlt_ros.ros import run

    run._end_with_parent()
    from rlt_ros.panel.qt import QtCore, QtWidgets
    from rlt_ros.panel.widget import Panel

    app = QtWidgets.QApplication(["rlt panel"])
    panel = Panel()
    waits: list = []  # (button, phase, ns of the press)

    def heard() -> None:  # from the link's thread, at once
        if waits and panel.link.snapshot.phase.name == waits[0][1]:
            note((time.perf_counter_ns() - waits[0][2]) / 1e6)

    def note(ms: float | None) -> None:
        name, _, _ = waits.pop()
        with presses.open("a") as file:
            file.write(json.dumps({"button": name, "ms": ms}) + "\n")

    changed = panel.link._changed
    panel.link._changed = lambda: (heard(), changed())

    def press() -> None:
        if waits and time.perf_counter_ns() - waits[0][2] > 1e9 * ANSWER_S:
            note(None)
        if waits:
            return
        for name, leads_to in PRESSES:
            if panel.buttons[name].isEnabled() and not (name == "reset" and panel.seen.phase.name != "ENDED"):
                waits.append((name, leads_to, time.perf_counter_ns()))
                panel.buttons[name].click()
                return

    timer = QtCore.QTimer()
    timer.timeout.connect(press)
    timer.start(PRESS_EVERY_MS)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: app.quit())
    panel.show()
    try:
        return app.exec()
    finally:
        panel.shutdown()


if __name__ == "__main__":
    sys.exit(window(Path(sys.argv[1])))
