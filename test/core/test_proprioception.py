"""Joining the robot's streams."""

import numpy as np
import pytest

from rlt_ros.core.proprioception import ProprioAssembler, ProprioError, Velocity, yaw_of

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


ARM = [("joint_position", 2), ("joint_velocity", 2)]
NAMES = {"joint_position": ["a", "b"], "joint_velocity": ["a", "b"]}


def test_velocities_of_the_driver_are_used_where_there_are_some():
    a = ProprioAssembler(ARM, NAMES)
    a.add_joint_states(1, 20 * MS, ["b", "a"], [2.0, 1.0], [20.0, 10.0])
    assert a.join()[2].tolist() == [1, 2, 10, 20]


@pytest.mark.parametrize("missing", [[], [float("nan")] * 2])
def test_missing_velocities_are_computed_from_the_positions(missing):
    a = ProprioAssembler(ARM, NAMES)
    a.add_joint_states(1, 20 * MS, ["b", "a"], [0.0, 0.0], missing)
    assert a.join() is None and a.waiting_for() == ["joint_velocity"]
    a.add_joint_states(2, 40 * MS, ["b", "a"], [0.02, 0.01], missing)
    np.testing.assert_allclose(a.join()[2], [0.01, 0.02, 0.5, 1.0], rtol=1e-5)


def test_velocities_that_are_partly_missing_are_refused():
    a = ProprioAssembler(ARM, NAMES)
    with pytest.raises(ProprioError, match="joint_velocity: values .* are not all finite"):
        a.add_joint_states(1, 20 * MS, ["a", "b"], [0.0, 0.0], [1.0, float("nan")])


def test_position_that_is_not_finite_spoils_no_later_velocity():
    a = ProprioAssembler([("joint_velocity", 1)], {"joint_velocity": ["a"]})
    a.add_joint_states(1, 20 * MS, ["a"], [0.0], [])
    with pytest.raises(ProprioError, match="not all finite"):
        a.add_joint_states(2, 40 * MS, ["a"], [float("inf")], [])
    a.add_joint_states(3, 60 * MS, ["a"], [0.04], [])
    assert a.join()[2][0] == pytest.approx(1.0, rel=1e-5)


def test_velocity_follows_a_step_by_two_thirds_in_its_time_constant():
    velocity, position = Velocity(0.05), 0.0
    for ms in range(0, 300, 2):  # 500 Hz: still, then 1 m/s from 200 ms on
        position += 0.002 if ms > 200 else 0.0
        seen = velocity.see(ms * MS, np.array([position]))
        if ms == 250:
            assert seen[0] == pytest.approx(1 - np.exp(-1), abs=0.02)
    assert seen[0] == pytest.approx(1.0, abs=0.15)


def test_stamps_that_are_hardly_apart_make_no_large_velocity():
    velocity = Velocity(0.02)
    velocity.see(0, np.array([0.0]))
    velocity.see(2 * MS, np.array([0.0]))
    noise = 1e-4  # m, after 10 us: 10 m/s by the bare difference
    assert abs(velocity.see(2 * MS + 10_000, np.array([noise]))[0]) < noise / 0.02 * 1.01


def test_noise_of_the_positions_is_filtered():
    random, velocity = np.random.default_rng(0), Velocity(0.02)
    positions = np.cumsum(np.full(1000, 0.1 * 0.002)) + random.normal(0, 1e-5, 1000)  # 0.1 m/s at 500 Hz
    seen = [velocity.see(i * 2 * MS, np.array([x])) for i, x in enumerate(positions)]
    seen = np.concatenate(seen[1:])
    bare = np.diff(positions) / 0.002
    assert seen[100:].mean() == pytest.approx(0.1, rel=0.02)
    assert seen[100:].std() < 0.2 * bare.std()


def test_velocity_begins_afresh_after_a_gap():
    velocity = Velocity(0.02)
    velocity.see(0, np.array([0.0]))
    velocity.see(10 * MS, np.array([0.01]))
    assert velocity.see(1_000 * MS, np.array([5.0])) is None
    assert velocity.see(1_010 * MS, np.array([5.0]))[0] == 0.0


def test_same_moment_again_changes_no_velocity():
    velocity = Velocity(0.02)
    velocity.see(0, np.array([0.0]))
    first = velocity.see(10 * MS, np.array([0.01]))
    assert velocity.see(10 * MS, np.array([7.0])) is first


def test_parts_come_in_joint_states_of_their_own():
    a = ProprioAssembler([("arm", 2), ("gripper", 1)], {"arm": ["j1", "j2"], "gripper": ["finger"]})
    a.add_joint_states(1, 20 * MS, ["j2", "j1"], [2.0, 1.0], [])
    assert a.join() is None and a.waiting_for() == ["gripper"]
    a.add_joint_states(1, 21 * MS, ["finger"], [0.04], [])
    np.testing.assert_allclose(a.join()[2], [1, 2, 0.04])
    a.add_joint_states(2, 41 * MS, ["finger"], [0.03], [])
    assert a.join() is None and a.slowest() == "arm" and a.skew_ns == 21 * MS


def test_joint_states_of_another_robot_are_refused_by_name():
    a = ProprioAssembler([("arm", 1)], {"arm": ["j1"]})
    with pytest.raises(ProprioError, match=r"joint_states has no \['j1'\] among \['left_wheel'\]; set joints.arm"):
        a.add_joint_states(1, 20 * MS, ["left_wheel"], [0.0], [])


def test_older_reading_of_a_stream_is_refused_until_the_clock_is_said_to_be_set():
    a = ProprioAssembler([("wrench", 6)])
    a.add_wrench(10, 200 * MS, (1, 0, 0), (0, 0, 0))
    with pytest.raises(ProprioError, match="wrench: the stamp is 100.0 ms older"):
        a.add_wrench(5, 100 * MS, (2, 0, 0), (0, 0, 0))
    assert a.join()[0] == 10
    a.restart()
    a.add_wrench(5, 100 * MS, (2, 0, 0), (0, 0, 0))
    assert a.join()[0] == 5


@pytest.mark.parametrize("wrong", [(0.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0), (np.inf, 0.0, 0.0, 1.0)])
def test_orientation_that_is_none_is_refused(wrong):
    with pytest.raises(ProprioError, match="no quaternion"):
        ProprioAssembler(LAYOUT).add_pose(1, 20 * MS, (0.4, 0.0, 0.1), wrong)


def test_orientation_of_another_length_is_the_same():
    assert yaw_of((0.0, 0.0, 0.1, 0.1)) == pytest.approx(np.pi / 2)
    assert yaw_of((2.0, 0.0, 0.0, 2.0)) == pytest.approx(0.0)
