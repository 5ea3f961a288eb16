"""A bare node in place of one of the graph's: hears the same messages and says the same, and does nothing else."""

import os
import sys
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.msg import ActionChunk, Proprio
from rlt_ros.ros import qos, run
from rlt_ros.ros.conversions import chunk_to_msg, proprio_to_msg, stamp_ns
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task

LOOKAHEAD = 3  # actions in a command

# In the place of which node -> what is heard; the last of it is answered. `echo` is the other side of a ping-pong.
ROLES = {
    "proprio": ((TwistStamped, "bench/twist"), (WrenchStamped, "bench/wrench"), (PoseStamped, "bench/pose")),
    "actor": ((Proprio, "bench/proprio"),),
    "safety": ((ActionChunk, "bench/candidate"),),
    "echo": ((Proprio, "bench/ping"),),
}
ANSWERS = {
    "proprio": (Proprio, "bench/proprio"),
    "actor": (ActionChunk, "bench/candidate"),
    "safety": (ActionChunk, "bench/executed"),
    "echo": (ActionChunk, "bench/pong"),
}
PROFILES = {Proprio: qos.SENSOR, TwistStamped: qos.SENSOR, WrenchStamped: qos.SENSOR, PoseStamped: qos.SENSOR,
            ActionChunk: qos.COMMAND}  # fmt: skip


class RelayNode(RltNode):
    """Answers each message of its role with one that was made before; its callbacks have nothing of RltNode around."""

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        role: str = parameter(description="in the place of which node", choices=tuple(ROLES))

    def on_configure_(self) -> None:
        task, role = load_task(self.params.task), self.params.role
        kind, topic = ANSWERS[role]
        answer = self.create_publisher(kind, topic, PROFILES[kind])
        if kind is Proprio:
            made = proprio_to_msg(np.zeros(task.proprio_dim, np.float32), self.control, 0)
        else:
            still = np.zeros((LOOKAHEAD, task.action_dim), np.float32)
            made = chunk_to_msg(Chunk(0, still, 0, Source.ACTOR), self.control)
        period_ns = self.control.period_ns

        def tick_of(msg: object) -> int:
            return msg.tick if hasattr(msg, "tick") else stamp_ns(msg.header.stamp) // period_ns

        def reply(msg: object) -> None:
            made.tick = tick_of(msg)
            answer.publish(made)

        *others, (last, heard) = ROLES[role]
        for other, name in others:
            self.create_subscription(other, name, lambda msg: None, PROFILES[other])
        self.create_subscription(last, heard, reply, PROFILES[last])


def main(role: str) -> int:
    """The process of a relay; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run._end_with_parent()
    return run.run(RelayNode, f"relay_{role}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
