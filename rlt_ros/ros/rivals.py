"""Two nodes on a topic that one alone may send on: a second gamepad, VLA or gate that somebody started by mistake."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlt_ros.ros.node import RltNode

LEFT_S = 45.0  # s of real time; DDS lists a process that was killed for no more than half a minute


class Sender:
    """Who sends on the topic of a subscription.

    Two nodes are told apart by their names. Two of one name count when both speak, or when they have been there for
    longer than what is left of a killed process: a node that is started again must not wait for that.

    Attributes:
        doubled: messages since the last look that one sender alone would not have sent, as two for one tick.
        rivals: who sends when there are two, as long as both are listed; "" otherwise.
    """

    def __init__(self, node: "RltNode", subscription: Any, chance: int = 1) -> None:
        """chance: how many `doubled` from one look to the next are one sender's own."""
        self._node, self._subscription, self._chance = node, subscription, chance
        self._listed, self._since_s = 1, 0.0
        self.doubled, self.rivals = 0, ""

    def look(self) -> str:
        """`rivals`, as it is now."""
        doubled, self.doubled = self.doubled, 0
        listed, now_s = self._subscription.get_publisher_count(), time.monotonic()
        if listed != self._listed:  # one more, or what was left of one is gone
            self._listed, self._since_s = listed, now_s
        if listed < 2:
            self.rivals = ""
            return ""
        topic = self._subscription.topic_name
        found = self._node.get_publishers_info_by_topic(topic)
        names = sorted({f"{end.node_namespace.rstrip('/')}/{end.node_name}" for end in found})
        if self.rivals or len(names) > 1 or doubled > self._chance or now_s - self._since_s > LEFT_S:
            before, self.rivals = self.rivals, f"{topic}: {len(found)} publishers, of {', '.join(names)}"
            if not before:
                self._node.get_logger().error(f"two nodes send on {self.rivals}; stop one of them")
        return self.rivals


def who_else_sends(node: "RltNode", publisher: Any) -> str:
    """The topic of a publisher of `node` and the other nodes that publish on it, "" when there are none."""
    topic = publisher.topic_name
    if node.count_publishers(topic) < 2:
        return ""
    found = node.get_publishers_info_by_topic(topic)
    names = {f"{end.node_namespace.rstrip('/')}/{end.node_name}" for end in found} - {node.get_fully_qualified_name()}
    return f"{', '.join(sorted(names))} on {topic}" if names else ""
