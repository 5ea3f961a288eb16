"""The simulated controllers refuse, replace and time out as the real ones do."""

import numpy as np
import pytest

from rlt_ros.core.kinematics import Arm, JointLimits
from rlt_ros.core.rotations import quaternion_of
from rlt_ros.core.targets import JointTargets, PoseTarget
from rlt_ros.sim.controllers import (
    CompliancePose,
    ForwardPositions,
    ForwardVelocities,
    JointTrajectories,
    Plant,
    ServoTwist,
    Waypoint,
)
from rlt_ros.sim.task import TaskEnv, load_task

MS = 1_000_000
NOW = 10**18
TICK = 20 * MS


# --- MoveIt Servo


def test_servo_stops_when_the_stamp_is_older_than_its_time_out():
    servo = ServoTwist("base_link")
    assert not servo.velocity(NOW).any()
    servo.command("base_link", NOW, [0.1, 0, 0, 9, 9, 0.2])
    np.testing.assert_allclose(servo.velocity(NOW + 99 * MS), [0.1, 0, 0, 0.2])
    assert not servo.velocity(NOW + 100 * MS).any()
    servo.command("base_link", NOW - 200 * MS, [0.1, 0, 0, 0, 0, 0])  # old when it comes
    assert not servo.velocity(NOW).any()


@pytest.mark.parametrize(("frame", "x", "said"), [("tool0", 0.1, "frame 'tool0'"), ("base_link", np.nan, "not finite")])
def test_servo_refuses(frame, x, said):
    servo = ServoTwist("base_link")
    servo.command("base_link", NOW, [0.1, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=said):
        servo.command(frame, NOW, [x, 0, 0, 0, 0, 0])
    assert servo.velocity(NOW)[0] == 0.1


# --- compliance controllers


def test_pose_target_stays_for_ever_and_a_bad_one_changes_nothing():
    pose = CompliancePose("base_link")
    assert pose.target() is None
    pose.command("base_link", [0.4, 0.1, 0.2], [0, 0, np.sin(0.1), np.cos(0.1)])
    for frame, x, said in (("base", 0.5, "expected 'base_link'"), ("base_link", np.inf, "not finite")):
        with pytest.raises(ValueError, match=said):
            pose.command(frame, [x, 0, 0], [0, 0, 0, 1])
    np.testing.assert_allclose(pose.target(), [0.4, 0.1, 0.2, 0.2])


# --- joint_trajectory_controller


def waypoints(plan) -> list[Waypoint]:
    return [Waypoint((i + 1) * TICK, p, v) for i, (p, v) in enumerate(zip(plan.positions, plan.velocities))]


def controller() -> JointTrajectories:
    made = JointTrajectories(["a", "b"], [0.0, 1.0])
    made.sample(NOW)
    return made


def test_trajectory_is_followed_to_its_end_and_held_there():
    jtc = controller()
    points = [Waypoint(TICK, [1.0, 0.1], [0.0, 5.0]), Waypoint(2 * TICK, [1.0, 0.2], [0.0, 0.0])]
    jtc.command(NOW, NOW, ["b", "a"], points)
    np.testing.assert_allclose(jtc.sample(NOW + TICK)[0], [0.1, 1.0])  # in the controller's own order
    np.testing.assert_allclose(jtc.sample(NOW + TICK)[1], [5.0, 0.0])
    for later in (2 * TICK, 1000 * TICK):
        positions, velocities = jtc.sample(NOW + later)
        np.testing.assert_allclose(positions, [0.2, 1.0])
        assert not velocities.any()


def test_positions_alone_are_joined_by_lines():
    jtc = controller()
    jtc.command(NOW, 0, ["a", "b"], [Waypoint(TICK, [0.1, 1.0]), Waypoint(2 * TICK, [0.3, 1.0])])
    np.testing.assert_allclose(jtc.sample(NOW + TICK // 2)[0], [0.05, 1.0])
    np.testing.assert_allclose(jtc.sample(NOW + TICK * 3 // 2), [[0.2, 1.0], [10.0, 0.0]])


@pytest.mark.parametrize(
    ("names", "points", "said"),
    [
        (["a"], [Waypoint(TICK, [0.1])], "for the joints"),
        (["a", "c"], [Waypoint(TICK, [0.1, 0.1])], "for the joints"),
        (["a", "b"], [], "no points"),
        (["a", "b"], [Waypoint(TICK, [0.1, 0.1]), Waypoint(TICK, [0.2, 0.2])], "not later than the last"),
        (["a", "b"], [Waypoint(TICK, [0.1])], "point 0 has 1 positions"),
        (["a", "b"], [Waypoint(TICK, [0.1, 0.1], [0.0])], "1 velocities"),
        (["a", "b"], [Waypoint(TICK, [0.1, np.nan])], "not finite"),
        (["a", "b"], [Waypoint(TICK, [0.1, 0.1], [np.inf, 0.0])], "not finite"),
        (["a", "b"], [Waypoint(TICK, [0.1, 0.1], [0.1, 0.0])], "allow_nonzero_velocity_at_trajectory_end"),
    ],
)
def test_trajectory_that_is_wrong_is_refused_and_the_old_one_goes_on(names, points, said):
    jtc = controller()
    jtc.command(NOW, NOW, ["a", "b"], [Waypoint(10 * TICK, [0.5, 0.5])])
    with pytest.raises(ValueError, match=said):
        jtc.command(NOW, NOW, names, points)
    np.testing.assert_allclose(jtc.sample(NOW + 10 * TICK)[0], [0.5, 0.5])


def test_trajectory_that_is_over_when_it_comes_is_refused():
    jtc = controller()
    with pytest.raises(ValueError, match="in the past"):
        jtc.command(NOW, NOW - 3 * TICK, ["a", "b"], [Waypoint(TICK, [0.1, 0.1]), Waypoint(2 * TICK, [0.2, 0.2])])
    np.testing.assert_allclose(jtc.sample(NOW)[0], [0.0, 1.0])


def test_streamed_plans_make_one_motion_without_jumps_of_velocity():
    """Plans of 3 ticks, each replaced after one, at the jitter of a loaded machine, sampled at 500 Hz."""
    targets, jtc = JointTargets([JointLimits(-3, 3, 100)] * 2, 1.0, 0.02), JointTrajectories(["a", "b"], [0.0, 0.0])
    targets.observe([0.0, 0.0])
    rng, velocities, ends = np.random.default_rng(0), [], []
    speed = lambda tick: np.array([0.01 * np.sin(tick / 10), 0.005])  # noqa: E731
    for tick in range(100):
        plan = targets.plan(tick, np.array([speed(tick + i) for i in range(3)]))
        arrives = NOW + tick * TICK + int(rng.uniform(0, 8)) * MS
        for ms in range(0, 20, 2):
            now = NOW + tick * TICK + ms * MS
            if now >= arrives and arrives:
                jtc.command(now, NOW + tick * TICK, ["a", "b"], waypoints(plan))
                arrives = 0
                if tick == 0:
                    jtc.sample(now)
            velocities.append(jtc.sample(now)[1])
        ends.append(jtc.sample(NOW + (tick + 1) * TICK - 1)[0] - plan.positions[0])
    assert np.abs(ends[1:]).max() < 1e-6  # where the plan says at the end of each tick
    seams = np.abs(np.diff(velocities[30:], axis=0))  # rad/s from one sample to the next
    inside = np.abs(np.diff([speed(t) for t in range(100)], axis=0)).max() / 0.02  # commanded change a tick
    assert seams.max() <= inside


# --- forward_command_controller


@pytest.mark.parametrize("kind", [ForwardPositions, ForwardVelocities])
def test_forward_command_refuses_other_sizes_and_what_is_not_finite(kind):
    forward = kind(2, [0.0, 0.0])
    for values, said in (([0.1], "1 values for 2"), ([0.1, 0.1, 0.1], "3 values"), ([0.1, np.nan], "not finite")):
        with pytest.raises(ValueError, match=said):
            forward.command(values)


def test_forward_positions_stay():
    forward = ForwardPositions(2, [0.1, 0.2])
    np.testing.assert_allclose(forward.target(), [0.1, 0.2])
    forward.command([0.3, 0.4])
    np.testing.assert_allclose(forward.target(), [0.3, 0.4])


def test_forward_velocities_go_on_without_a_new_command():
    forward = ForwardVelocities(1, [0.0], leash=0.05)
    forward.command([1.0])
    for i in range(50):
        at = forward.target([0.02 * i], 0.02)
    np.testing.assert_allclose(at, [1.0])
    for _ in range(50):
        at = forward.target([1.0], 0.02)  # against a wall
    np.testing.assert_allclose(at, [1.05])


# --- with the arm, tick for tick


class Path:
    """From actions to the simulated arm by one interface, without the time between: what the nodes do in a tick."""

    def __init__(self, interface: str) -> None:
        self.interface, self.task = interface, load_task("ethernet")
        self.env = TaskEnv(self.task, 7)
        plant = self.env.env.unwrapped
        self.arm = Arm(plant.urdf.read_text(), plant.base, plant.tip, plant.joint_names)
        self.scale, self.now = np.array(self.task.action_scale), NOW - NOW % TICK
        joints = self.joints()
        self.controller = {"chunk": lambda: None, "twist": lambda: ServoTwist("base_link"),
                           "pose": lambda: CompliancePose("base_link"),
                           "joint_trajectory": lambda: JointTrajectories(self.arm.names, joints),
                           "positions": lambda: ForwardPositions(6, joints),
                           "velocities": lambda: ForwardVelocities(6, joints)}[interface]()  # fmt: skip
        self.pose_target = PoseTarget(0.006, 0.08)
        self.targets = JointTargets(self.arm.limits, 0.05, 0.02, self.arm)

    def joints(self) -> np.ndarray:
        return np.array(self.env.observation()["joint_position"], float)

    def pose(self) -> np.ndarray:
        return np.array(self.env.observation()["pose"], float)

    def tick(self, actions: np.ndarray) -> None:
        """actions [n, 4], normalised: of this tick and the next ones."""
        motions, c, names = actions * self.scale, self.controller, self.arm.names
        if self.interface == "twist":
            x, y, z, yaw = motions[0] / 0.02
            c.command("base_link", self.now, [x, y, z, 0, 0, yaw])
        elif self.interface == "pose":
            self.pose_target.observe(*self.arm.pose(self.joints()))
            position, rotation = self.pose_target.step(motions[0])
            c.command("base_link", position, quaternion_of(rotation))
        elif self.interface != "chunk":
            self.targets.observe(self.joints())
            plan = self.targets.plan(self.now // TICK, motions if self.interface == "joint_trajectory" else motions[:1])
            if self.interface == "joint_trajectory":
                c.command(self.now, self.now, names, waypoints(plan))
            elif self.interface == "positions":
                c.command(plan.positions[0])
            else:
                c.command((plan.positions[0] - plan.start) / 0.02)
        if c is None:
            self.env.step(actions[0])
        else:
            target = self.env.env.unwrapped.target
            self.env.step(c.step(Plant(self.arm, target, self.joints(), self.now, self.now + TICK, 0.02)) / self.scale)
        self.now += TICK


@pytest.mark.parametrize("interface", ["twist", "pose", "joint_trajectory", "positions", "velocities"])
def test_each_interface_moves_the_arm_where_chunks_do(interface):
    """In free space, over 5 cm and 0.4 rad: within 0.05 mm and 0.2 mrad at every tick."""
    rng = np.random.default_rng(1)
    actions = np.concatenate([rng.uniform(-0.6, 0.6, (60, 4)) + [0.3, -0.2, 0.5, 0.25], np.zeros((20, 4))]).clip(-1, 1)
    paths = Path("chunk"), Path(interface)
    start, worst = paths[0].pose(), np.zeros(4)
    for tick in range(len(actions) - 3):
        for path in paths:
            path.tick(actions[tick : tick + 3])
        worst = np.maximum(worst, np.abs(paths[0].pose() - paths[1].pose()))
    assert np.linalg.norm(paths[0].pose()[:3] - start[:3]) > 0.03
    print(f"{interface}: {1e3 * worst[:3].max():.3f} mm, {1e3 * worst[3]:.2f} mrad")
    assert worst[:3].max() < 5e-5 and worst[3] < 2e-4
