"""QoS profiles by name."""

import pytest
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from rlt_ros.ros import qos


def test_profiles_have_the_promised_depth_and_reliability() -> None:
    table = {name: (p.depth, p.reliability, p.durability) for name, p in qos.PROFILES.items()}
    reliable, volatile = ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE
    assert table["sensor"] == (5, ReliabilityPolicy.BEST_EFFORT, volatile)
    assert table["command"] == (1, reliable, volatile)
    assert table["state"] == (1, reliable, DurabilityPolicy.TRANSIENT_LOCAL)
    assert table["history"] == (100, reliable, DurabilityPolicy.TRANSIENT_LOCAL)
    assert table["replay"] == (1000, reliable, volatile)


def test_unknown_name_fails() -> None:
    with pytest.raises(ValueError, match="unknown QoS profile 'fast'; expected one of sensor, command"):
        qos.named("fast")
