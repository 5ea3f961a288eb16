"""Real nodes over DDS: started in process, spoken to by a peer."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from rclpy.node import Node

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, proprio_to_msg

CLOCK = ControlClock(50.0)
PROPRIO = np.array([0.45, 0.0, 0.08, 0.0] + 10 * [0.0], np.float32)  # inside the Ethernet task's workspace, no force


class Peer:
    """The other side of a node's topics."""

    def __init__(self, graph, node: Node) -> None:  # noqa: ANN001
        self.graph, self.node, self.clock = graph, node, CLOCK

    def hear(self, msg_type: type, topic: str, profile=qos.REPLAY) -> list:  # noqa: ANN001
        """All messages on `topic`, as a list that grows."""
        heard: list = []
        self.node.create_subscription(msg_type, topic, heard.append, profile)
        return heard

    def say(self, msg_type: type, topic: str, profile, timeout_s: float = 20.0) -> Callable:  # noqa: ANN001
        """A function that publishes on `topic`; somebody listens already when this returns."""
        publisher = self.node.create_publisher(msg_type, topic, profile)
        self.graph.spin_until(lambda: publisher.get_subscription_count() > 0, f"a subscriber of {topic}", timeout_s)
        return publisher.publish

    def call(self, srv_type: type, name: str):  # noqa: ANN201
        """The answer of a service."""
        client = self.node.create_client(srv_type, name)
        self.graph.spin_until(client.service_is_ready, f"service {name}")
        future = client.call_async(srv_type.Request())
        self.graph.spin_until(future.done, f"the answer of {name}")
        return future.result()

    def ask(self, srv_type: type, name: str, seen: Callable[[], bool], timeout_s: float = 40.0) -> None:
        """Call a service of another process, once a second, until what it does is `seen`.

        As a person presses again: one that has just started may hear the request before it has found the way back.
        """
        client = self.node.create_client(srv_type, name)
        asked_s = 0.0

        def done() -> bool:
            nonlocal asked_s
            if not seen() and client.service_is_ready() and time.monotonic() - asked_s > 1.0:
                asked_s = time.monotonic()
                client.call_async(srv_type.Request())
            return bool(seen())

        self.graph.spin_until(done, f"what {name} does", timeout_s)

    def tick(self) -> int:
        """The present control tick."""
        return self.clock.tick(time.time_ns())

    # Messages that several nodes listen to.

    def proprio(self, tick: int, values: np.ndarray = PROPRIO) -> Proprio:
        return proprio_to_msg(values, self.clock, self.clock.stamp_ns(tick))

    def chunk(
        self, tick: int, action: list[float], steps: int = 1, source: Source = Source.VLA, **fields
    ) -> ActionChunk:
        """The same action `steps` times from `tick` on."""
        actions = np.tile(np.array(action, np.float32), (steps, 1))
        return chunk_to_msg(Chunk(tick, actions, fields.pop("observation_tick", tick), source, **fields), self.clock)

    def episode(
        self,
        phase: Phase,
        start_tick: int = -1,
        critical_tick: int = -1,
        end_tick: int = -1,
        outcome: Outcome = Outcome.NONE,
        episode: int = 1,
        committed: bool = True,
    ) -> EpisodeState:
        return EpisodeState(
            episode=episode,
            phase=int(phase),
            outcome=int(outcome),
            start_tick=start_tick,
            critical_tick=critical_tick,
            end_tick=end_tick,
            committed=committed,
        )


@pytest.fixture
def peer(graph) -> Peer:  # noqa: ANN001
    return Peer(graph, graph.add(Node("peer")))
