"""The arm of a URDF: poses, Jacobian and limits against the simulator's own model of the same arm."""

from pathlib import Path

import mujoco
import numpy as np
import pytest

from rlt_ros.core.kinematics import Arm

ASSETS = Path(__file__).resolve().parents[2] / "rlt_ros" / "sim" / "assets"
URDF = (ASSETS / "ethernet.urdf").read_text()
JOINTS = tuple(f"joint{i}" for i in range(1, 7))


@pytest.fixture
def arm() -> Arm:
    return Arm(URDF, "base_link", "tcp", JOINTS)


def test_pose_is_the_simulated_arms_own(arm):
    model = mujoco.MjModel.from_xml_path(str(ASSETS / "ethernet.xml"))
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    for _ in range(20):
        joints = rng.uniform(-1.5, 1.5, 6)
        data.qpos[[model.joint(name).qposadr[0] for name in JOINTS]] = joints
        mujoco.mj_kinematics(model, data)
        position, (x, y, z, w) = arm.pose(joints)
        np.testing.assert_allclose(position, data.site("tcp").xpos, atol=1e-9)
        wanted = np.empty(4)
        mujoco.mju_mat2Quat(wanted, data.site("tcp").xmat)
        assert abs(np.dot(wanted, [w, x, y, z])) == pytest.approx(1.0, abs=1e-9)


def test_jacobian_is_the_change_of_the_pose(arm):
    rng, small = np.random.default_rng(1), 1e-6
    joints = rng.uniform(-1.0, 1.0, 6)
    jacobian = arm.jacobian(joints)
    for i in range(6):
        moved = joints.copy()
        moved[i] += small
        change = (arm.pose(moved)[0] - arm.pose(joints)[0]) / small
        np.testing.assert_allclose(jacobian[:3, i], change, atol=1e-5)
    np.testing.assert_allclose(jacobian[3:, 0], [0, 0, 1], atol=1e-9)  # the first joint turns about the base's z


def test_step_moves_the_tool_where_it_is_told_and_stays_small_at_a_singularity(arm):
    joints = np.array([0.1, 0.2, -0.3, 0.1, 0.05, 0.2])
    motion = np.array([0.001, -0.0005, 0.0015, 0.0, 0.0, 0.01])
    after = joints + arm.step(joints, motion, damping=1e-4)
    np.testing.assert_allclose(arm.pose(after)[0] - arm.pose(joints)[0], motion[:3], atol=2e-5)
    # Joint axes 1 and 6 in one line: no joint motion turns the tool about x without joint 5 bent the right way.
    straight = np.zeros(6)
    straight[4] = np.pi / 2
    assert np.abs(arm.step(straight, np.full(6, 0.01))).max() < 1.0


def test_order_of_joints_and_base_are_the_callers(arm):
    turned = Arm(URDF, "base_link", "tcp", JOINTS[::-1])
    joints = np.linspace(-0.5, 0.5, 6)
    np.testing.assert_allclose(turned.pose(joints[::-1])[0], arm.pose(joints)[0], atol=1e-12)
    np.testing.assert_allclose(turned.jacobian(joints[::-1])[:, ::-1], arm.jacobian(joints), atol=1e-12)
    # Seen from a link that moves itself: its own joint does not matter.
    hand = Arm(URDF, "link2", "tcp", JOINTS)
    other = joints.copy()
    other[0] = 1.0
    np.testing.assert_allclose(hand.pose(joints)[0], hand.pose(other)[0], atol=1e-9)


def test_limits_are_the_files(arm):
    assert [(limit.lower, limit.upper, limit.velocity) for limit in arm.limits] == [(-2.6, 2.6, 3.0)] * 6
    endless = Arm(URDF.replace('<joint name="joint6" type="revolute">', '<joint name="joint6" type="continuous">'),
                  "base_link", "tcp", JOINTS)
    assert endless.limits[5].upper == np.inf and endless.limits[5].velocity == 3.0


def test_meshes_are_not_looked_for():
    shown = URDF.replace(
        '<link name="link3"/>',
        '<link name="link3"><visual><geometry><mesh filename="package://a/b.dae"/>'
        "</geometry></visual><collision><geometry><mesh filename='package://a/b.stl'/></geometry>"
        "</collision></link>",
    )
    assert Arm(shown, "base_link", "tcp", JOINTS).pose(np.zeros(6))[0] == pytest.approx([0.45, 0, 0.12])


@pytest.mark.parametrize(
    ("urdf", "base", "tip", "names", "said"),
    [
        ("<robot", "base_link", "tcp", JOINTS, "not XML"),
        ("<mujoco/>", "base_link", "tcp", JOINTS, "expected <robot>"),
        (URDF, "world", "tcp", JOINTS, "no link 'world'"),
        (URDF, "base_link", "flange", JOINTS, "no link 'flange'"),
        (URDF, "base_link", "tcp", ("joint1", "elbow"), "no moving joint 'elbow'"),
        (URDF, "base_link", "tcp", ("tool0_mount",), "no moving joint 'tool0_mount'"),
        (
            URDF.replace('lower="-2.6" upper="2.6"', 'lower="2.6" upper="-2.6"'),
            "base_link",
            "tcp",
            JOINTS,
            "lower < upper",
        ),
        (URDF.replace('velocity="3.0"', 'velocity="0"'), "base_link", "tcp", JOINTS, "velocity above 0"),
        (URDF, "base_link", "tcp", JOINTS[1:], r"joint 'joint1' \(.*\) moves 'tcp' in 'base_link' and is not among"),
        (
            URDF.replace('<parent link="link1"/>', '<parent link="link1"/><mimic joint="joint1"/>'),
            "base_link",
            "tcp",
            JOINTS,
            "'joint2' between 'base_link' and 'tcp' mimics another",
        ),
    ],
)
def test_what_a_urdf_lacks_is_named(urdf, base, tip, names, said):
    with pytest.raises(ValueError, match=said):
        Arm(urdf, base, tip, names)


def test_joint_values_are_checked(arm):
    for wrong in (np.zeros(5), [0, 0, np.nan, 0, 0, 0]):
        with pytest.raises(ValueError, match="expected 6 finite numbers"):
            arm.pose(wrong)
