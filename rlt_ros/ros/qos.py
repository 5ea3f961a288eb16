"""Quality of service by kind of data. A topic takes one of these by name; there are no others."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

_RELIABLE, _VOLATILE = ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE

# Images, proprioception, poses: the newest counts, a lost one is replaced by the next.
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=_VOLATILE)
# What moves the robot: never queued, because an old command is worse than none.
COMMAND = QoSProfile(depth=1, reliability=_RELIABLE, durability=_VOLATILE)
# The same for whoever needs no more than the newest of it: hears the same publishers without acknowledging each, which
# takes both sides as long as the message itself.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=_VOLATILE)
# States and weights: whoever joins late gets the newest at once.
STATE = QoSProfile(depth=1, reliability=_RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# States for whoever records them: hears the same publishers, but one that lasted a tick is not overwritten by the next.
HISTORY = QoSProfile(depth=100, reliability=_RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Transitions: none may be lost, so the queue is long; it is bounded, and the learner asks again for what it missed.
REPLAY = QoSProfile(depth=1000, reliability=_RELIABLE, durability=_VOLATILE)
# Sensor data for whoever records it: hears the same publishers, but a pause of its process loses nothing.
RECORD = QoSProfile(depth=500, reliability=ReliabilityPolicy.BEST_EFFORT, durability=_VOLATILE)
# Diagnostics, gamepad, requests: reliable and few.
EVENT = QoSProfile(depth=10, reliability=_RELIABLE, durability=_VOLATILE)

PROFILES = {"sensor": SENSOR, "command": COMMAND, "newest": NEWEST, "state": STATE, "history": HISTORY, "replay": REPLAY,
            "record": RECORD, "event": EVENT}  # fmt: skip


def named(name: str) -> QoSProfile:
    """Return the profile called `name`; raise ValueError for a name that is not in PROFILES."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"unknown QoS profile {name!r}; expected one of {', '.join(PROFILES)}") from None
