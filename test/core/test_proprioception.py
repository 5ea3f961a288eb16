"""Joining the robot's streams."""

import numpy as np
import pytest

from rlt_ros.core.proprioception import ProprioAssembler, ProprioError, yaw_of

LAYOUT = [("pose", 4), ("twist", 4)]
UP = (0.0, 0.0, 0.0, 1.0)
MS = 1_000_000


def test_nothing_before_every_stream_has_come():
    a = ProprioAssembler(LAYOUT)
    a.add_pose(1, 20 * MS, (1, 2, 3), UP)
    assert a.join() is None and a.waiting_for() == ["twist"]


def test_tick_is_joined_once_and_in_the_order_of_the_layout():
    a = ProprioAssembler([("twist", 4), ("pose", 4)])
    a.add_pose(1, 20 * MS, (1, 2, 3), UP)
    a.add_twist(1, 20 * MS, (4, 5, 6), 7)
    tick, stamp, values = a.join()
    assert (tick, stamp) == (1, 20 * MS)
    assert values.tolist() == [4, 5, 6, 7, 1, 2, 3, 0]
    a.add_pose(1, 21 * MS, (9, 9, 9), UP)
    assert a.join() is None


def test_slowest_stream_decides_the_tick():
    a = ProprioAssembler(LAYOUT)
    a.add_twist(1, 20 * MS, (0, 0, 0), 0)
    a.add_pose(3, 60 * MS, (1, 2, 3), UP)
    assert a.join()[0] == 1


def test_twist_can_be_derived_from_poses_over_the_turn_of_yaw():
    a = ProprioAssembler(LAYOUT, derive_twist=True)
    turned = lambda yaw: (0.0, 0.0, float(np.sin(yaw / 2)), float(np.cos(yaw / 2)))  # noqa: E731
    a.add_pose(1, 20 * MS, (0.0, 0.0, 0.0), turned(np.pi - 0.01))
    assert a.join() is None
    a.add_pose(2, 40 * MS, (0.001, 0.0, 0.0), turned(-np.pi + 0.01))
    np.testing.assert_allclose(a.join()[2][4:], [0.05, 0, 0, 1.0], atol=1e-4)


def test_yaw_of_a_tool_that_points_down():
    half = 0.3 / 2
    assert yaw_of((float(np.cos(half)), float(np.sin(half)), 0.0, 0.0)) == pytest.approx(0.3)


def test_wrong_size_of_a_known_part_is_refused():
    with pytest.raises(ProprioError, match="'pose' has 4 values, the task wants 7"):
        ProprioAssembler([("pose", 7)])


def test_other_parts_come_from_joints_named_after_them():
    a = ProprioAssembler([("observation", 2)])
    a.add_joint_states(1, 20 * MS, ["observation_1", "observation_0"], [5.0, 4.0], [])
    assert a.join()[2].tolist() == [4.0, 5.0]
