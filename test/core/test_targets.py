"""Targets of controllers: continuous, on a leash, within limits, still on a hold."""

from pathlib import Path

import numpy as np
import pytest

from rlt_ros.core.kinematics import Arm, JointLimits
from rlt_ros.core.rotations import matrix_of, quaternion_of, turn, vector_of
from rlt_ros.core.targets import ANCHOR_TICKS, ActionLayout, GripperTarget, JointTargets, PoseTarget, tracking_error

URDF = (Path(__file__).resolve().parents[2] / "rlt_ros" / "sim" / "assets" / "ethernet.urdf").read_text()
JOINTS = tuple(f"joint{i}" for i in range(1, 7))
START = np.array([0.05, 0.1, -0.1, 0.02, 0.03, 0.1])
DT = 0.02
STILL = np.zeros((1, 4))
FREE = JointLimits(-3.0, 3.0, 100.0)


@pytest.fixture(scope="module")
def arm() -> Arm:
    return Arm(URDF, "base_link", "tcp", JOINTS)


def followed(arm, leash=0.05) -> JointTargets:
    targets = JointTargets(arm.limits, leash, DT, arm)
    assert targets.observe(START)
    return targets


# --- rotations


def test_rotations_go_there_and_back():
    rng = np.random.default_rng(0)
    for angle in (0.0, 1e-9, 0.3, 2.0, np.pi - 1e-6):
        axis = rng.normal(size=3)
        wanted = axis / np.linalg.norm(axis) * angle
        matrix = turn(wanted)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(vector_of(matrix), wanted, atol=1e-6)
        np.testing.assert_allclose(matrix_of(quaternion_of(matrix)), matrix, atol=1e-12)
    np.testing.assert_allclose(turn([0, 0, np.pi / 2]) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("wrong", [[0, 0, 0, 0], [0, 0, 0, np.nan], [np.inf, 0, 0, 1]])
def test_what_is_no_quaternion_is_refused(wrong):
    with pytest.raises(ValueError, match="no quaternion"):
        matrix_of(wrong)


# --- which action moves what


def test_actions_are_told_apart_by_their_names():
    of = ActionLayout.of
    assert of(["x", "y", "z", "yaw"], JOINTS) == ActionLayout((0, 1, 2, 3), (), None)
    assert of(["x", "y", "z", "gripper"], ()) == ActionLayout((0, 1, 2), (), 3)
    assert of(["elbow", "gripper", "pan"], ["pan", "elbow"]) == ActionLayout((), (2, 0), 1)
    assert of(["elbow", "gripper"], ["gripper", "elbow"]) == ActionLayout((), (1, 0), None)  # one controller for all
    assert of(["a0", "a1", "a2", "a3"], JOINTS) == ActionLayout((), (), None)
    assert of(["pan"], ["pan", "elbow"]) == ActionLayout((), (), None)


# --- Cartesian targets


def test_pose_target_starts_where_the_tool_is_and_sums_the_motions():
    target = PoseTarget(0.02, 0.2)
    assert target.step([0.001, 0, 0, 0]) is None  # where from?
    tilted = quaternion_of(turn([0.3, 0.0, 0.0]))
    for i in range(10):
        assert target.observe([0.4, 0, 0.1], tilted)
        position, rotation = target.step([0.001, 0, -0.0005, 0.01])
        np.testing.assert_allclose(position, [0.4 + 0.001 * (i + 1), 0, 0.1 - 0.0005 * (i + 1)], atol=1e-12)
    np.testing.assert_allclose(rotation, turn([0, 0, 0.1]) @ turn([0.3, 0, 0]), atol=1e-12)


def test_pose_target_does_not_run_from_a_tool_that_is_stopped():
    target = PoseTarget(0.006, 0.05)
    for _ in range(100):
        target.observe([0.4, 0, 0.1], [0, 0, 0, 1])
        position, rotation = target.step([0.001, 0.001, 0, 0.01])
        assert np.linalg.norm(position - [0.4, 0, 0.1]) <= 0.006 + 1e-12
        assert np.linalg.norm(vector_of(rotation)) <= 0.05 + 1e-12
    position, _ = target.step([-0.001, 0, 0, 0])  # and comes back at once
    assert position[0] == pytest.approx(0.4 + 0.006 / np.sqrt(2) - 0.001)


def test_pose_target_stays_on_a_hold_although_the_tool_sags():
    target = PoseTarget(0.006, 0.05)
    for sag in np.linspace(0.0, 0.004, 200):
        target.observe([0.4, 0, 0.1 - sag], [0, 0, 0, 1])
        position, _ = target.step([0, 0, 0, 0])
    np.testing.assert_allclose(position, [0.4, 0, 0.1])


def test_tool_that_was_moved_by_hand_is_waited_for_and_held_where_it_is():
    target = PoseTarget(0.006, 0.05)
    target.observe([0.4, 0, 0.1], [0, 0, 0, 1])
    assert target.step([0, 0, 0, 0]) is not None
    for _ in range(ANCHOR_TICKS - 1):
        assert not target.observe([0.45, 0, 0.1], [0, 0, 0, 1])
        assert target.step([0.001, 0, 0, 0]) is None
    assert target.observe([0.45, 0, 0.1], [0, 0, 0, 1])
    np.testing.assert_allclose(target.step([0, 0, 0, 0])[0], [0.45, 0, 0.1])


def test_target_that_was_forgotten_begins_where_the_tool_is():
    target = PoseTarget(0.006, 0.05)
    target.observe([0.4, 0, 0.1], [0, 0, 0, 1])
    target.forget()
    assert target.step([0.001, 0, 0, 0]) is None
    target.observe([0.403, 0, 0.1], [0, 0, 0, 1])
    np.testing.assert_allclose(target.step([0, 0, 0, 0])[0], [0.403, 0, 0.1])


def test_one_wrong_reading_moves_nothing():
    target = PoseTarget(0.006, 0.05)
    target.observe([0.4, 0, 0.1], [0, 0, 0, 1])
    target.observe([0.9, 0, 0.1], [0, 0, 0, 1])
    assert target.step([0, 0, 0, 0]) is None
    assert target.observe([0.4, 0, 0.1], [0, 0, 0, 1])
    np.testing.assert_allclose(target.step([0, 0, 0, 0])[0], [0.4, 0, 0.1])


@pytest.mark.parametrize("position", [[np.nan, 0, 0], [0, np.inf, 0], [0, 0]])
def test_position_that_is_none_is_refused(position):
    with pytest.raises(ValueError, match="position of the tool"):
        PoseTarget(0.01, 0.1).observe(position, [0, 0, 0, 1])


# --- joint targets from Cartesian actions


def test_joints_take_the_tool_where_the_actions_say_and_keep_roll_and_pitch(arm):
    targets, joints, rng = followed(arm, 0.2), START, np.random.default_rng(3)
    position, quaternion = arm.pose(START)
    total = np.zeros(4)
    for tick in range(400):
        action = rng.uniform(-1, 1, 4) * [0.0015, 0.0015, 0.0015, 0.02] + [0.0002, -0.0002, 0.0001, 0.0005]
        total += action
        assert targets.observe(joints)
        joints = targets.plan(tick, action[None]).positions[0]
    there, facing = arm.pose(joints)
    assert np.linalg.norm(there - position - total[:3]) < 2e-4
    turned = vector_of(matrix_of(facing) @ matrix_of(quaternion).T)
    np.testing.assert_allclose(turned, [0, 0, total[3]], atol=1e-3)


def test_plan_ends_at_rest_and_its_velocities_are_those_of_its_positions(arm):
    plan = followed(arm).plan(7, np.tile([0.0015, 0, 0, 0], (3, 1)))
    assert plan.positions.shape == plan.velocities.shape == (3, 6)
    assert not plan.velocities[-1].any()
    steps = np.diff([plan.start, *plan.positions], axis=0) / DT
    np.testing.assert_allclose(plan.velocities[0], steps[:2].mean(axis=0), atol=1e-9)


def test_consecutive_plans_join(arm):
    """The next plan begins where the last one said that the tick would end, also when ticks were missed."""
    targets, action = followed(arm), np.tile([0.001, 0.0005, 0, 0.005], (3, 1))
    first = targets.plan(10, action)
    second = targets.plan(11, action)
    np.testing.assert_array_equal(second.start, first.positions[0])
    late = targets.plan(13, action)  # tick 12 never came: the controller went on along the second
    np.testing.assert_array_equal(late.start, second.positions[1])
    after = targets.plan(40, action)
    np.testing.assert_array_equal(after.start, late.positions[2])
    again = targets.plan(40, STILL)  # an emergency stop in the same tick
    np.testing.assert_array_equal(again.start, after.positions[0])


def test_hold_is_the_same_point_again_and_again(arm):
    targets = followed(arm)
    moving = targets.plan(0, np.tile([0.0015, 0, 0, 0], (3, 1)))
    for tick in range(1, 50):
        targets.observe(START)
        plan = targets.plan(tick, np.zeros((3, 4)))
        np.testing.assert_array_equal(plan.positions, moving.positions[[0, 0, 0]])
        assert not plan.velocities.any()


def test_joint_targets_stay_on_the_leash_of_joints_that_do_not_move(arm):
    targets = followed(arm, 0.01)
    for tick in range(200):
        targets.observe(START)
        plan = targets.plan(tick, np.tile([0.0015, 0.0015, -0.0015, 0.02], (3, 1)))
        assert np.abs(plan.positions - START).max() <= 0.01 + 1e-12
    # And the Cartesian target did not run away either: the way back begins at once.
    targets.observe(START)
    assert plan.positions[-1][5] == pytest.approx(START[5] + 0.01)
    assert targets.plan(200, np.array([[0.0, 0.0, 0.0, -0.02]])).positions[0][5] < START[5]


def test_velocity_limit_shortens_a_step_and_keeps_its_direction():
    slow = JointTargets([JointLimits(-3, 3, 1.0), JointLimits(-3, 3, 2.0)], 1.0, DT)
    slow.observe([0.0, 0.0])
    plan = slow.plan(0, np.array([[0.08, 0.04]]))
    np.testing.assert_allclose(plan.positions[0], [0.02, 0.01])


def test_position_limit_stops_a_joint_and_lets_it_back():
    narrow = JointTargets([JointLimits(-1, 1, 10.0)], 1.0, DT)
    narrow.observe([0.99])
    assert narrow.plan(0, np.array([[0.05]])).positions[0] == pytest.approx(1.0)
    assert narrow.plan(1, np.array([[0.05]])).positions[0] == pytest.approx(1.0)
    assert narrow.plan(2, np.array([[-0.05]])).positions[0] == pytest.approx(0.95)
    outside = JointTargets([JointLimits(-1, 1, 10.0)] * 2, 1.0, DT)
    outside.observe([1.1, 0.0])
    np.testing.assert_allclose(outside.plan(0, np.array([[0.05, 0.05]])).positions[0], [1.1, 0.0])
    np.testing.assert_allclose(outside.plan(1, np.array([[-0.05, 0.05]])).positions[0], [1.05, 0.05])
    at_its_limit = JointTargets([JointLimits(-1, 1, 10.0)] * 2, 1.0, DT)
    at_its_limit.observe([1.0, 0.0])
    np.testing.assert_allclose(at_its_limit.plan(0, np.array([[0.0, 0.05]])).positions[0], [1.0, 0.05])


def test_joints_that_were_moved_are_waited_for():
    targets = JointTargets([FREE], 0.05, DT)
    targets.observe([0.0])
    targets.plan(0, np.array([[0.01]]))
    for _ in range(ANCHOR_TICKS - 1):
        assert not targets.observe([0.5])
        assert targets.plan(1, np.array([[0.01]])) is None
    assert targets.observe([0.5])
    assert targets.plan(2, np.array([[0.0]])).positions[0] == pytest.approx(0.5)
    targets.forget()
    assert targets.plan(3, np.array([[0.01]])) is None
    targets.observe([0.7])
    assert targets.plan(4, np.array([[0.0]])).positions[0] == pytest.approx(0.7)


@pytest.mark.parametrize("joints", [[np.nan], [0.0, 0.0]])
def test_joints_that_are_none_are_refused(joints):
    with pytest.raises(ValueError, match="expected 1 finite numbers"):
        JointTargets([FREE], 0.05, DT).observe(joints)


# --- gripper and tracking error


def test_gripper_keeps_its_grip_and_its_range():
    gripper = GripperTarget(0.0, 0.04, 0.01)
    assert gripper.step(0.001) is None
    gripper.observe(0.02)
    assert gripper.step(-0.005) == pytest.approx(0.015)
    gripper.observe(0.018)  # stopped by what it holds
    for _ in range(5):
        last = gripper.step(-0.005)
    assert last == pytest.approx(0.008)  # a leash of squeeze
    assert gripper.step(0.0) == pytest.approx(0.008)
    gripper.observe(0.035)
    for _ in range(5):
        last = gripper.step(0.005)
    assert last == pytest.approx(0.04)


def test_tracking_error_is_that_of_the_worst_joint_and_unknown_is_infinite():
    assert tracking_error(["a", "b"], ["b", "c", "a"], [-0.2, 9.0, 0.1]) == pytest.approx(0.2)
    assert tracking_error(["a", "b"], ["a"], [0.1]) == np.inf
    assert tracking_error(["a"], ["a"], [np.nan]) == np.inf
    assert tracking_error(["a"], ["a"], []) == np.inf


def test_pose_target_does_not_leave_its_box_and_leads_back_from_outside():
    target = PoseTarget(0.02, 0.2, ([0.3, -0.1, 0.05], [0.5, 0.1, 0.2]))
    for _ in range(40):  # a tool that is stopped just above the floor
        target.observe([0.4, 0.0, 0.055], [0, 0, 0, 1])
        position, _ = target.step([0.0, 0.0, -0.001, 0.0])
    assert position[2] == pytest.approx(0.05)
    target.forget()
    target.observe([0.4, 0.0, 0.045], [0, 0, 0, 1])  # somebody pushed it through
    np.testing.assert_allclose(target.step([0, 0, -0.001, 0])[0], [0.4, 0.0, 0.045])  # no further
    np.testing.assert_allclose(target.step([0, 0, 0.001, 0])[0], [0.4, 0.0, 0.046])


@pytest.mark.parametrize("rate", [50.0, 250.0, 500.0])
def test_joints_that_are_stuck_are_not_driven_faster_at_a_higher_rate(arm, rate):
    """What the joints are behind is made up for at a speed, not by a length a tick."""
    targets, fastest = JointTargets(arm.limits, 0.02, 1.0 / rate, arm), 0.0
    motion = np.array([[0.0, 0.06, 0.0, 0.0]]) / rate  # 0.06 m/s
    targets.observe(START)
    before = targets.plan(0, STILL).positions[0]
    for tick in range(1, int(rate)):
        targets.observe(START if tick < rate / 2 else before)
        after = targets.plan(tick, motion).positions[0]
        moved = arm.pose(after)[0] - arm.pose(before)[0]
        fastest, before = max(fastest, np.linalg.norm(moved) * rate), after
    assert fastest <= 0.06 + 0.025 + 0.005


def test_gripper_that_was_forgotten_begins_where_it_is():
    gripper = GripperTarget(0.0, 0.04, 0.01)
    gripper.observe(0.02)
    assert gripper.step(-0.005) == pytest.approx(0.015)
    gripper.forget()
    assert gripper.step(0.0) is None
    gripper.observe(0.035)
    assert gripper.step(0.0) == pytest.approx(0.035)


def test_joint_targets_do_not_take_the_tool_out_of_the_box(arm):
    floor = arm.pose(START)[0][2] - 0.003
    targets = JointTargets(arm.limits, 0.2, DT, arm, ([-1.0, -1.0, floor], [1.0, 1.0, 1.0]))
    targets.observe(START)  # a stiff arm that lags: it stays where it is
    for tick in range(20):
        plan = targets.plan(tick, np.array([[0.001, 0.0, -0.001, 0.0]]))
    (x, _, z), (x0, _, _) = arm.pose(plan.positions[0])[0], arm.pose(START)[0]
    assert z == pytest.approx(floor, abs=2e-4) and x > x0 + 0.015  # along the floor it goes on


@pytest.mark.parametrize("lag", [1.0, 0.5], ids=["at once", "behind"])
def test_joint_targets_keep_a_tool_that_turns_in_its_box(arm, lag):
    """Also in postures in which the arm cannot turn the tool in place."""
    rng = np.random.default_rng(0)
    furthest = 0.0
    for _ in range(12):
        joints = rng.uniform(-0.9, 0.9, 6)
        middle, _ = arm.pose(joints)
        targets = JointTargets(arm.limits, 0.02, 0.02, arm, (middle - 0.02, middle + 0.02))
        for tick in range(120):
            targets.observe(joints)
            plan = targets.plan(tick, np.tile([0.0, 0.0, 0.0, 0.015], (3, 1)))
            joints = joints + lag * (plan.positions[0] - joints)
            furthest = max(furthest, np.abs(arm.pose(joints)[0] - middle).max())
    assert furthest < 0.0215
