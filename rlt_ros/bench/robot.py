"""Plays what a graph needs to move a robot and is not measured itself: driver, VLA, episode and the actor's weights."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from rclpy.node import Node

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.episode import Phase
from rlt_ros.core.networks import Actor, Dims
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.weights import pack
from rlt_ros.msg import ActionChunk, EpisodeState, PolicyWeights, RLState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, header, packed, state_to_msg

HORIZON = 50  # actions of a reference
PLACE = (0.45, 0.0, 0.08)  # m, of the tool: within the workspace of the Ethernet task
TOKENS_HZ, EPISODES_HZ = 25.0, 5.0  # as in a practice at 50 Hz


class Robot:
    """A robot that stands in the critical phase, with a reference of zeros and an actor that knows nothing.

    What is said at 50 Hz in a practice is said as often a second at other rates; references come once a chunk.
    """

    def __init__(self, node: Node, task, clock: ControlClock, token: int, chunk_steps: int, latency_ticks: int) -> None:
        self.clock, self.task, self.began = clock, task, -1
        self.chunk_steps, self.latency_ticks = chunk_steps, latency_ticks
        self.token, self.proprio = np.full(token, 0.1, np.float32), np.zeros(task.proprio_dim, np.float32)
        self.rest = np.zeros((HORIZON, task.action_dim), np.float32)
        make = node.create_publisher
        self.driver = [
            make(TwistStamped, "driver/twist", qos.SENSOR),
            make(WrenchStamped, "driver/wrench", qos.SENSOR),
            make(PoseStamped, "driver/pose", qos.SENSOR),
        ]
        self.references = make(ActionChunk, "vla/reference", qos.EVENT)
        self.states = make(RLState, "vla/rl_state", qos.EVENT)
        self.episodes = make(EpisodeState, "episode/state", qos.STATE)
        dims = Dims(token=token, rl_proprio=2 * task.proprio_dim, action=task.action_dim, chunk=chunk_steps)
        data, sha256 = pack(Actor(dims), 1)
        self.weights = make(PolicyWeights, "learner/weights", qos.STATE)
        self.weights.publish(PolicyWeights(version=1, sha256=sha256, data=packed(np.frombuffer(data, np.uint8), "B")))

    def ready(self) -> bool:
        """Whether somebody listens to everything."""
        made = (*self.driver, self.references, self.states, self.episodes)
        return all(publisher.get_subscription_count() for publisher in made)

    def sense(self, ns: int) -> None:
        """The driver's messages with stamp `ns`, in the order in which the simulator sends them."""
        messages = driver_messages(ns)
        for publisher, message in zip(self.driver, messages, strict=True):
            publisher.publish(message)

    def think(self, tick: int) -> None:
        """What the VLA and the episode say in a tick."""
        every = lambda hz: max(1, round(self.clock.rate_hz / hz))  # noqa: E731
        if self.began < 0:
            self.began = tick
        if tick % every(EPISODES_HZ) == 0:
            self.episodes.publish(EpisodeState(episode=1, phase=int(Phase.CRITICAL), start_tick=self.began,
                                               critical_tick=self.began, end_tick=-1))  # fmt: skip
        if (tick + self.latency_ticks) % self.chunk_steps == 0:
            self.references.publish(chunk_to_msg(Chunk(tick, self.rest, tick, Source.VLA, 1), self.clock))
        if tick % every(TOKENS_HZ) == 0:
            self.states.publish(state_to_msg(TokenFrame(tick, self.token, self.proprio), self.clock))


def driver_messages(ns: int) -> tuple[TwistStamped, WrenchStamped, PoseStamped]:
    """What a driver sends of a robot that stands, with stamp `ns`."""
    top, pose = header(ns, "base_link"), PoseStamped(header=header(ns, "base_link"))
    place = pose.pose.position
    (place.x, place.y, place.z), pose.pose.orientation.w = PLACE, 1.0
    return TwistStamped(header=top), WrenchStamped(header=top), pose
