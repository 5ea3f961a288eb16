"""How many transitions a second the replay takes, journal included, and how much memory stored steps need.

The journal's part is what replay_node does with each transition: message, bytes, journal, offered for publishing. The
buffer's part is one long critical phase, a state every second tick, into the learner's real buffer; the memory of
a million steps is extrapolated from what the process grew by over the second half of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from rlt_ros.bench import percentile

ROBOT_PER_S = 25.0  # one robot: a state every second tick at 50 Hz
STRIDE = 2  # ticks between stored states
MILLION = 1_000_000


def measure(args: argparse.Namespace) -> dict:
    """The figures of both parts."""
    from rlt_ros.sim.task import load_task

    task = load_task(args.task)
    return journal(args, task) | memory(args, task)


def noise(i: int, token: int, task, chunk: int = 10):
    """The transition of state i in one endless critical phase: its next state is the state of transition i + 5."""
    from rlt_ros.core.transition import Transition

    action = (chunk, task.action_dim)

    def state(j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(j)
        draw = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)  # noqa: E731
        return draw(token), draw(2 * task.proprio_dim), draw(*action)

    (now, proprio, reference), (then, next_proprio, next_reference) = state(i), state(i + chunk // STRIDE)
    return Transition(
        sequence=i, episode=1, tick=STRIDE * i, token=now, proprio=proprio, reference=reference, action=-reference,
        rewards=np.zeros(chunk, np.float32), steps=chunk, next_token=then, next_proprio=next_proprio,
        next_reference=next_reference, terminated=False, truncated=False, sources=np.full(chunk, 2, np.uint8),
        token_age_ticks=5, policy_version=1,
    )  # fmt: skip


def journal(args: argparse.Namespace, task) -> dict:
    """Transitions a second into the journal and out of it to be published, without and with a sync of each."""
    from rclpy.serialization import serialize_message

    from rlt_ros.core.chunks import ControlClock
    from rlt_ros.data.journal import Journal
    from rlt_ros.ros.conversions import transition_to_msg
    from rlt_ros.ros.definitions import ros2msg

    kind, clock = "rlt_ros/msg/Transition", ControlClock(task.rate)
    some = [noise(i, args.token, task) for i in range(64)]
    figures: dict = {}
    for name, sync_ms in (("", -1.0), ("_fsync", 0.0)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            book = Journal(Path(folder), kind, ros2msg(kind), sync_ms=sync_ms)
            each, count, start = [], 0, time.perf_counter()
            try:
                while (begun := time.perf_counter()) - start < args.seconds / 2:
                    message = transition_to_msg(some[count % len(some)], "bench", clock)
                    book.append(serialize_message(message), time.time_ns())
                    book.sync()
                    if len(book.take(1)) != 1:
                        raise RuntimeError("the journal did not give out what it was given")
                    count += 1
                    each.append(time.perf_counter() - begun)
                rate = count / (time.perf_counter() - start)
            finally:
                book.close()
            figures |= {
                f"transitions{name}_per_s": rate,
                f"transitions{name}_over_one_robot": rate / ROBOT_PER_S,
                f"insert{name}_p99_ms": 1e3 * percentile(each, 99),
                f"insert{name}_max_ms": 1e3 * max(each),
            }
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            figures["journal_bytes_per_transition"] = size / count
    return figures


def memory(args: argparse.Namespace, task) -> dict:
    """What the buffer takes: resident memory per step, and the time of an addition and of a sample."""
    import torch

    from rlt_ros.core.networks import Dims
    from rlt_ros.core.replay import ReplayBuffer

    dims = Dims(token=args.token, rl_proprio=2 * task.proprio_dim, action=task.action_dim, chunk=10)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        buffer = ReplayBuffer(MILLION, dims, 0.99)
        half, adding = args.steps // 2, 0.0
        resident = [resident_bytes()]
        for i in range(2 * half):
            made = noise(i, args.token, task)
            start = time.perf_counter()
            buffer.add(made)
            adding += time.perf_counter() - start
            if i + 1 in (half, 2 * half):
                resident.append(resident_bytes())
        generator, samples = torch.Generator().manual_seed(0), []
        for _ in range(50):
            start = time.perf_counter()
            buffer.sample(args.batch, generator)
            samples.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    # The first half pays for what is there once: libraries, indices. A page is the least that can be seen.
    per_step = (resident[2] - resident[1]) / half
    gib = (resident[1] - resident[0] + per_step * (MILLION - half)) / 2**30
    return {
        "bytes_per_step": per_step,
        "memory_1m_steps_gib": gib,
        "memory_over_fp16_tokens": gib * 2**30 / (2.0 * args.token * MILLION),
        "steps_stored": len(buffer),
        "buffer_add_per_s": 2 * half / adding,
        "sample_ms": 1e3 * statistics.median(samples),
        "batch": args.batch,
        "token": args.token,
    }


def resident_bytes() -> int:
    """Memory of this process that is in use and not of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon; this needs Linux")
