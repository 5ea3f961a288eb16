"""Keeps a VLA and a learner at full load: pictures, proprioception, an episode and transitions."""

import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import UInt64

from rlt_ros.bench.replay import noise
from rlt_ros.core.episode import Phase
from rlt_ros.msg import EpisodeState, Proprio, Transition
from rlt_ros.ros import qos, run
from rlt_ros.ros.conversions import image_to_msg, proprio_to_msg, transition_to_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task

SIDE = 96  # px, as the simulator's pictures
CAMERA_EVERY = 2  # ticks, as the simulator
ROWS = 600  # transitions that the learner trains on
BURST = 20  # of them in a tick


class LoadNode(RltNode):
    """What vla_node and learner_node live on, at 50 Hz."""

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        token: int = parameter(96, "size of the transitions' RL token", low=1)

    def on_configure_(self) -> None:
        self.task, self.rows = load_task(self.params.task), ROWS
        random = np.random.default_rng(0)
        self.pictures = [random.integers(0, 255, (SIDE, SIDE, 3), np.uint8) for _ in range(8)]
        self.images = {name: self.publish(Image, f"camera/{name}/image", qos.SENSOR) for name in self.task.cameras}
        self.proprio = self.publish(Proprio, "proprio", qos.SENSOR)
        self.episode = self.publish(EpisodeState, "episode/state", qos.STATE)
        self.replay = self.publish(Transition, "replay", qos.REPLAY)
        self.subscribe(UInt64, "replay/request", self.on_request, qos.EVENT)
        self.still = np.zeros(self.task.proprio_dim, np.float32)
        self.began = self.control.tick(time.time_ns())
        self.every_tick(self.on_tick)

    def on_request(self, msg: UInt64) -> None:
        """As the replay node: from that sequence on again."""
        self.rows = min(self.rows, msg.data)

    def on_tick(self, tick: int) -> None:
        ns = self.control.stamp_ns(tick)
        self.proprio.publish(proprio_to_msg(self.still, self.control, ns))
        if tick % CAMERA_EVERY == (self.params.chunk_steps - self.params.latency_ticks) % CAMERA_EVERY:
            for name, images in self.images.items():
                images.publish(image_to_msg(self.pictures[tick % 8], ns, name))
        if tick % 10 == 0:
            self.episode.publish(EpisodeState(episode=1, phase=int(Phase.CRITICAL), start_tick=self.began,
                                              critical_tick=self.began, end_tick=-1))  # fmt: skip
        for _ in range(min(BURST, ROWS - self.rows)):
            made = noise(self.rows, self.params.token, self.task)
            self.replay.publish(transition_to_msg(made, "bench", self.control))
            self.rows += 1


def main() -> int:
    """The process; returns the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run._end_with_parent()
    return run.run(LoadNode, "load")


if __name__ == "__main__":
    sys.exit(main())
