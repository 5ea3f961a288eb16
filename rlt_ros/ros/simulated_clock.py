"""Simulated time that waits for everybody: the clock of a simulator for a graph with use_sim_time.

Every node says on /clock/leave up to which moment the clock may go before the node has done, or got, something more: to
its next tick, to where its inputs end. The simulator sets /clock to the earliest of those moments, and so on. So a slow
machine makes time slow and changes nothing else: what is commanded in a tick depends on what was known at that tick.

This is conservative discrete-event simulation (K. M. Chandy and J. Misra, 1979) with DDS between the processes. It
relies on one writer's messages coming in the order in which they were sent: what a node publishes before its leave is
there before the clock moves on.
"""

import threading
import time
from collections.abc import Callable

from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from rlt_ros.ros import qos
from rlt_ros.ros.conversions import stamp_msg, stamp_ns

CLOCK = "/clock"
LEAVE = "/clock/leave"  # Header: frame_id is the node, stamp the moment
FOREVER_NS = (2**31 - 1) * 1_000_000_000  # the end of ROS time: the node does not hold the clock
REPEAT_S = 0.05  # /clock is best effort: a message that was lost must not stop time


class SimulatedClock:
    """Sets /clock. `advance` is for the simulator's own thread, the rest happens in the executor's.

    Attributes:
        now_ns: simulated ROS time.
        lost: nodes that were not waited for any longer, by name, until they are heard again.
    """

    def __init__(self, node, start_ns: int, patience_s: float, warn: Callable[[str], None]) -> None:  # noqa: ANN001
        """patience_s: of real time, that a silent node is waited for; it may have died. Nodes speak once a second."""
        self.now_ns = start_ns
        self.lost: set[str] = set()
        self._patience_s, self._warn = patience_s, warn
        self._leaves: dict[str, int] = {}  # node -> ROS time in ns
        self._heard_s: dict[str, float] = {}  # node -> real time
        self._changed = threading.Condition()
        self._closed = False
        self._topic = node.publish(Clock, CLOCK, qos.SENSOR)
        # Long: several messages of each node may wait.
        node.subscribe(Header, LEAVE, self._on_leave, qos.REPLAY)

    def _on_leave(self, msg: Header) -> None:
        with self._changed:
            self._leaves[msg.frame_id] = stamp_ns(msg.stamp)
            self._heard_s[msg.frame_id] = time.monotonic()
            self.lost.discard(msg.frame_id)
            self._changed.notify()

    def open(self) -> None:
        """Time goes on, after close()."""
        self._closed = False

    def advance(self, to_ns: int) -> bool:
        """Take the clock to `to_ns`, as fast as everybody lets it; False when it was closed before."""
        with self._changed:
            while self.now_ns < to_ns and not self._closed:
                holding = {name: until for name, until in self._leaves.items() if name not in self.lost}
                next_ns = min([to_ns, *holding.values()])
                if next_ns > self.now_ns:
                    self.now_ns = next_ns
                    self._publish()
                elif not self._changed.wait(REPEAT_S):
                    self._publish()
                    oldest_s = time.monotonic() - self._patience_s
                    late = {n for n, until in holding.items() if until <= self.now_ns and self._heard_s[n] < oldest_s}
                    if late:
                        self.lost |= late
                        self._warn(f"simulated time goes on without {', '.join(sorted(late))}: silent for"
                                   f" {self._patience_s:g} s")
            return not self._closed

    def _publish(self) -> None:
        self._topic.publish(Clock(clock=stamp_msg(self.now_ns)))

    def close(self) -> None:
        """Let whoever waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify()
