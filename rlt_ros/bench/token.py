"""From a picture to its RL token, over the VLA's prefix alone.

The real camera_node and vla_node run as processes over DDS, as in a practice; this process plays the cameras' drivers,
the proprioception and the episode. Each process notes when a frame passes it. Between two frames the VLA's worker
thread computes the token of the frame before once more, with nothing around it: that is what the way is compared with.
Every other frame also gets a reference, with which its token leaves; it is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlt_ros.bench import percentile, ratio

EVERY = 5  # ticks from frame to frame: half a chunk, so that every other one is for a reference
REST_S = 0.03  # between a frame's token and the same alone, long after what the first one left to do
START_S = 120.0  # how long a busy machine may take until the first token comes
SETTLE = 6  # frames that are left out
PARTS = ("sent", "camera_in", "camera_out", "vla_in", "queued", "begin", "end", "published", "heard")


def measure(args: argparse.Namespace) -> dict:
    """Times in ms over args.seconds, by part of the way, and their ratio to the prefix alone."""
    # Before rclpy is imported: no other graph may be disturbed by this one.
    from rlt_ros.cli.domain import free_domain, stay_here

    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    stay_here()
    with tempfile.TemporaryDirectory() as folder:
        return figures(run_graph(args, Path(folder)))


def run_graph(args: argparse.Namespace, folder: Path) -> list[dict]:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from rlt_ros.ros.supervisor import Command, Supervisor, commands

    found = {c.name: c for c in commands("sim", "simulated", "", args.task)}
    start = []
    for name in ("camera_node", "vla_node"):
        code = f"import sys; from rlt_ros.bench.token import measured; sys.exit(measured({name!r}, {str(folder)!r}))"
        argv = [sys.executable, "-c", code, *found[name].argv[1:]]
        start.append(Command(name, argv, found[name].environment))  # the same arguments and priority
    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with Supervisor(start, folder / "log") as supervisor:
            sent = play(args, folder, supervisor)
    finally:
        rclpy.try_shutdown()
    noted = read(folder)
    frames = [{"tick": tick} | moments | noted.get(tick, {}) for tick, moments in sorted(sent.items())]
    return [frame for frame in frames[SETTLE:] if all(part in frame for part in PARTS)]


def play(args: argparse.Namespace, folder: Path, supervisor) -> dict[int, dict[str, int]]:
    """Be cameras, proprioception and episode until enough was measured; tick -> when it was sent and heard, in ns."""
    from rclpy.experimental import EventsExecutor
    from rclpy.node import Node
    from sensor_msgs.msg import Image

    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.core.episode import Phase
    from rlt_ros.msg import EpisodeState, Proprio, RLState
    from rlt_ros.ros import priority, qos
    from rlt_ros.ros.conversions import image_to_msg, proprio_to_msg
    from rlt_ros.sim.task import load_task

    for thread in os.listdir("/proc/self/task"):
        priority.apply("control", int(thread))
    task = load_task(args.task)
    clock, node, executor = ControlClock(task.rate), Node("bench_token"), EventsExecutor()
    executor.add_node(node)
    images = {name: node.create_publisher(Image, f"driver/{name}/image", qos.SENSOR) for name in task.cameras}
    proprio = node.create_publisher(Proprio, "proprio", qos.SENSOR)
    episode = node.create_publisher(EpisodeState, "episode/state", qos.STATE)
    frames: dict[int, dict[str, int]] = {}

    def hear(msg: RLState) -> None:
        if msg.tick in frames:
            frames[msg.tick]["heard"] = time.time_ns()

    node.create_subscription(RLState, "vla/rl_state", hear, qos.EVENT)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(8)]  # none is dark or the one before
    still = np.zeros(task.proprio_dim, np.float32)
    began, end_s, deadline = clock.tick(time.time_ns()), None, time.monotonic() + START_S
    tick = began
    try:
        while end_s is None or time.monotonic() < end_s:
            tick = max(tick + EVERY, clock.tick(time.time_ns()) // EVERY * EVERY + EVERY)
            due_ns = clock.stamp_ns(tick)
            while (left_ns := due_ns - time.time_ns()) > 0:
                executor.spin_once(left_ns * 1e-9)
            episode.publish(EpisodeState(episode=1, phase=int(Phase.CRITICAL), start_tick=began, critical_tick=began,
                                         end_tick=-1))  # fmt: skip
            proprio.publish(proprio_to_msg(still, clock, due_ns))
            messages = [(name, image_to_msg(pictures[tick // EVERY % 8], due_ns, name)) for name in images]
            frames[tick] = {"sent": time.time_ns()}
            for name, message in messages:
                images[name].publish(message)
            if end_s is None and any("heard" in frame for frame in frames.values()):
                frames.clear()
                end_s = time.monotonic() + args.seconds + SETTLE * EVERY * clock.period_s
            elif end_s is None and time.monotonic() > deadline:
                raise RuntimeError(f"no RL token came within {START_S:.0f} s; see {supervisor.log('vla_node')}")
            if supervisor.dead():
                raise RuntimeError(str(supervisor.dead()[0]))
    finally:
        executor.shutdown()
        node.destroy_node()
    return frames


SIDE = 96  # px, as the simulator's pictures


def figures(frames: list[dict]) -> dict:
    """Of frames with the moments of PARTS in ns, `alone_ms` and `full`."""
    tokens = [frame for frame in frames if not frame["full"] and "alone_ms" in frame]
    full = [frame for frame in frames if frame["full"]]
    if not tokens or not full:
        raise RuntimeError(f"{len(tokens)} frames with a token alone and {len(full)} with a reference came whole;"
                           " expected some of both: give it more --seconds")  # fmt: skip
    ms = lambda frame, first="sent", last="heard": (frame[last] - frame[first]) / 1e6  # noqa: E731
    way, alone = [ms(frame) for frame in tokens], [frame["alone_ms"] for frame in tokens]
    found = {
        "image_to_token_p50_ms": percentile(way, 50), "image_to_token_p99_ms": percentile(way, 99),
        "prefix_alone_p50_ms": percentile(alone, 50), "prefix_alone_p99_ms": percentile(alone, 99),
        "image_to_token_over_prefix_p50": ratio(way, alone),
        "image_to_token_over_prefix_p99": percentile(way, 99) / percentile(alone, 99),
        "image_to_token_with_reference_p50_ms": percentile([ms(frame) for frame in full], 50),
    }  # fmt: skip
    names = ("to_camera", "camera", "to_vla", "join", "queue", "prefix", "publish", "to_robot")
    for name, first, last in zip(names, PARTS, PARTS[1:], strict=False):
        found[f"part_{name}_ms"] = statistics.median(ms(frame, first, last) for frame in tokens)
    return found | {"frames": len(tokens), "frames_with_reference": len(full)}


def read(folder: Path) -> dict[int, dict]:
    """tick -> what the processes noted of it: the last moment of each part, as there are several cameras."""
    noted: dict[int, dict] = {}
    for path in sorted(folder.glob("*.moments")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            noted.setdefault(entry.pop("tick"), {}).update(entry)
    return noted


def measured(name: str, folder: str) -> int:
    """The process of a node that notes when a frame passes; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from rlt_ros.ros import run
    from rlt_ros.ros.wire import image_from_wire

    run._end_with_parent()
    notes: list[dict] = []

    def note(tick: int, **moments: object) -> None:
        notes.append({"tick": tick} | moments)  # written down when nothing waits

    if name == "camera_node":
        from rlt_ros.nodes.camera_node import CameraNode

        class MeasuredCamera(CameraNode):
            def take(self, camera, ns, frame_id, small) -> None:
                begin = time.time_ns()
                super().take(camera, ns, frame_id, small)
                note(self.control.tick(ns), camera_in=begin, camera_out=time.time_ns())

        node_class = MeasuredCamera
    else:
        from rlt_ros.nodes.vla_node import VlaNode

        class MeasuredVla(VlaNode):
            def on_configure_(self) -> None:
                super().on_configure_()
                put, tokens, infer = self.queue.put, self.model.tokens, self.model.infer
                self.moments: dict = {}

                def queued(frame, full: bool) -> None:
                    note(frame.tick, queued=time.time_ns())
                    put(frame, full)

                def timed(function):
                    def run_timed(*args):
                        self.moments["begin"] = time.time_ns()
                        answer = function(*args)
                        self.moments["end"] = time.time_ns()
                        return answer

                    return run_timed

                self.queue.put, self.alone = queued, tokens
                self.model.tokens, self.model.infer = timed(tokens), timed(infer)

            def on_image(self, camera: str, data: bytes) -> None:
                begin = time.time_ns()
                super().on_image(camera, data)
                note(self.control.tick(image_from_wire(data).ns), vla_in=begin)

            def send(self, frame, token, reference=None) -> None:
                super().send(frame, token, reference)
                moments, full = {"published": time.time_ns()} | self.moments, reference is not None
                if not full:
                    time.sleep(REST_S)
                    begin = time.perf_counter()
                    self.alone([(frame.images, frame.proprio)])
                    moments["alone_ms"] = 1e3 * (time.perf_counter() - begin)
                note(frame.tick, full=full, **moments)

        node_class = MeasuredVla
    try:
        return run.run(node_class, name)
    finally:
        lines = "".join(json.dumps(entry) + "\n" for entry in notes)
        (Path(folder) / f"{name}.moments").write_text(lines)
