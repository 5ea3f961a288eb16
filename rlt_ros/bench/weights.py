"""How long weights take from the learner's publish to the actor that uses them, under full load.

The real actor_node and learner_node run as processes over DDS, as in a practice; the learner trains without a pause,
and `--burners` more processes at niceness 19 burn what is left. This process plays the robot, the VLA and the replay.
The process of the actor notes three moments of each version: published (the learner's stamp), accepted (checked,
unpacked and offered to the commander), used (the first chunk that it computed, at the next chunk boundary).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlt_ros.bench import percentile

TOKEN_EVERY, REFERENCE_EVERY, EPISODE_EVERY = 2, 10, 10  # ticks
HORIZON = 50  # actions of a reference
ROWS = 600  # transitions that the learner trains on
START_S = 90.0  # how long a busy machine may take until the first version is used, or a next one
# At niceness 19 against the learner's SCHED_IDLE: they always run before it.
BURN = "import os\nos.nice(19)\nwhile os.getppid() == {parent}: sum(range(100000))"


def measure(args: argparse.Namespace) -> dict:
    """Latencies over args.seconds, with weights published args.hz times a second."""
    # Before rclpy is imported: no other graph may be disturbed by this one.
    from rlt_ros.cli.domain import free_domain, stay_here

    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    stay_here()
    with tempfile.TemporaryDirectory() as folder:
        moments = run_graph(args, Path(folder))
    found: dict = {"versions": len(moments)}
    for name, first, last in (
        ("publish_to_use", "published", "accepted"),  # from here on every new chunk is computed with it
        ("use_to_boundary", "accepted", "used"),  # the wait for the end of the chunk that is under way
        ("publish_to_first_chunk", "published", "used"),
    ):
        ms = [(m[last] - m[first]) / 1e6 for m in moments if first in m and last in m]
        found |= {f"{name}_p50_ms": percentile(ms, 50), f"{name}_p99_ms": percentile(ms, 99),
                  f"{name}_max_ms": max(ms, default=float("nan"))}  # fmt: skip
    return found | {"hz": args.hz, "burners": args.burners, "learner_updates_per_s": moments.updates_per_s,
                    "token": args.token, "hidden": [256, 256]}  # fmt: skip


class Moments(list):
    """One dict of times in ns per version, by name, and how fast the learner went meanwhile."""

    updates_per_s = 0.0


def run_graph(args: argparse.Namespace, folder: Path) -> Moments:
    import rclpy
    import yaml
    from rclpy.signals import SignalHandlerOptions

    from rlt_ros.ros.supervisor import Command, Supervisor, commands

    config = folder / "config.yaml"
    own = {
        "actor_node": {"exploration_std": 0.0},
        # It owes updates without end, and publishes from the start.
        "learner_node": {"publish_hz": float(args.hz), "checkpoint_s": 3600.0, "td3": {
            "batch_size": args.batch, "utd": 1e6, "max_backlog": 10**9, "warm_transitions": 1, "warm_updates": 1,
            "warm_successes": 0}},
    }  # fmt: skip
    config.write_text(yaml.safe_dump({f"/**/{node}": {"ros__parameters": values} for node, values in own.items()}))
    found = {c.name: c for c in commands("sim", "simulated", "", args.task, extra_files=[config])}
    actor = found["actor_node"]
    # The same node with the same arguments and priority, that also says when.
    code = f"import sys; from rlt_ros.bench.weights import measured_actor; sys.exit(measured_actor({str(folder)!r}))"
    start = [
        Command("actor_node", [sys.executable, "-c", code, *actor.argv[1:]], actor.environment),
        found["learner_node"],
    ]
    rclpy.init(args=["rlt"], signal_handler_options=SignalHandlerOptions.NO)
    burners: list[subprocess.Popen] = []
    try:
        with Supervisor(start, folder / "log") as supervisor:
            burners += [subprocess.Popen([sys.executable, "-c", BURN.format(parent=os.getpid())])
                        for _ in range(args.burners)]  # fmt: skip
            return play(args, folder, supervisor)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
        rclpy.try_shutdown()


def play(args: argparse.Namespace, folder: Path, supervisor) -> Moments:
    """Be the rest of the graph until enough was measured."""
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node

    from rlt_ros.core.chunks import Chunk, ControlClock, Source
    from rlt_ros.core.episode import Phase
    from rlt_ros.core.observations import TokenFrame
    from rlt_ros.msg import ActionChunk, EpisodeState, LearnerStatus, Proprio, RLState, Transition
    from rlt_ros.ros import qos
    from rlt_ros.ros.conversions import chunk_to_msg, proprio_to_msg, state_to_msg
    from rlt_ros.sim.task import load_task

    task = load_task(args.task)
    clock, node, rates = ControlClock(task.rate), Node("bench_weights"), []
    token, proprio = np.full(args.token, 0.1, np.float32), np.zeros(task.proprio_dim, np.float32)
    down = np.zeros((HORIZON, task.action_dim), np.float32)
    say = {
        name: node.create_publisher(kind, name, profile).publish
        for name, kind, profile in (
            ("proprio", Proprio, qos.SENSOR),
            ("vla/rl_state", RLState, qos.EVENT),
            ("vla/reference", ActionChunk, qos.EVENT),
            ("episode/state", EpisodeState, qos.STATE),
        )
    }
    replay = node.create_publisher(Transition, "replay", qos.REPLAY)
    node.create_subscription(LearnerStatus, "learner/status", lambda msg: rates.append(msg.updates_per_s), qos.EVENT)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    began_tick = clock.tick(time.time_ns())
    sent, rows, measured_from, deadline = began_tick, 0, None, time.monotonic() + START_S
    begin_ns = 0
    try:
        while (
            measured_from is None or time.monotonic() < measured_from + args.seconds or not measured(folder, begin_ns)
        ):
            executor.spin_once(0.002)
            now_ns = time.time_ns()
            tick = clock.tick(now_ns)
            if tick == sent:
                continue
            sent = tick
            say["proprio"](proprio_to_msg(proprio, clock, now_ns))
            if tick % EPISODE_EVERY == 0:
                say["episode/state"](EpisodeState(
                    episode=1, phase=int(Phase.CRITICAL), start_tick=began_tick, critical_tick=began_tick, end_tick=-1))
            if tick % REFERENCE_EVERY == 5:
                say["vla/reference"](chunk_to_msg(Chunk(tick, down, tick, Source.VLA), clock))
            if tick % TOKEN_EVERY == 0:
                say["vla/rl_state"](state_to_msg(TokenFrame(tick, token, proprio), clock))
            if rows < ROWS and replay.get_subscription_count():
                for _ in range(20):
                    replay.publish(transition(rows, args, task, clock))
                    rows += 1
            if measured_from is None:
                if any("used" in m for m in read(folder).values()):
                    measured_from, rates[:] = time.monotonic() + 1.0, []
                    begin_ns, deadline = time.time_ns() + 10**9, measured_from + args.seconds + START_S
            if time.monotonic() > deadline:
                raise RuntimeError(f"no weights were used within {START_S:.0f} s; {status(supervisor)}")
            if supervisor.dead():
                raise RuntimeError(str(supervisor.dead()[0]))
    finally:
        executor.shutdown()
        node.destroy_node()
    moments = Moments(measured(folder, begin_ns))
    moments.updates_per_s = float(np.median(rates)) if rates else 0.0
    return moments


def measured(folder: Path, begin_ns: int) -> list[dict[str, int]]:
    """What was accepted since `begin_ns`, once something of it was used; the newest may still be on their way."""
    end_ns = time.time_ns() - 500_000_000
    found = [m for m in read(folder).values() if "accepted" in m and begin_ns <= m["published"] <= end_ns]
    return found if any("used" in m for m in found) else []


def status(supervisor) -> str:
    return "; ".join(str(death) for death in supervisor.dead()) or "both processes are alive"


def transition(sequence: int, args: argparse.Namespace, task, clock):
    """Noise of the task's sizes, as a message."""
    from rlt_ros.bench.replay import noise
    from rlt_ros.ros.conversions import transition_to_msg

    return transition_to_msg(noise(sequence, args.token, task), "bench", clock)


def read(folder: Path) -> dict[int, dict[str, int]]:
    """version -> {"published", "accepted", "used": ns}."""
    moments: dict[int, dict[str, int]] = {}
    path = folder / "moments.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # still being written
            continue
        moments.setdefault(entry.pop("version"), {}).update(entry)
    return moments


def measured_actor(folder: str) -> int:
    """The process of actor_node, with a note of when each version was accepted and used; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from rlt_ros.nodes.actor_node import ActorNode
    from rlt_ros.ros import run

    with (Path(folder) / "moments.jsonl").open("a") as file:

        class MeasuredActor(ActorNode):
            used = 0

            def note(self, version: int, **times: int) -> None:
                file.write(json.dumps({"version": version} | times) + "\n")
                file.flush()

            def take_weights(self, msg) -> None:
                super().take_weights(msg)
                if self.version == msg.version:
                    now_ns, stamp = time.time_ns(), msg.header.stamp
                    self.note(msg.version, published=stamp.sec * 10**9 + stamp.nanosec, accepted=now_ns)

            def act(self, tick: int) -> None:
                super().act(tick)  # a new chunk is published when this returns
                if self.commander.policy_version != self.used:
                    self.used = self.commander.policy_version
                    self.note(self.used, used=time.time_ns())

        return run.run(MeasuredActor, "actor_node")
