"""The controllers of a robot, between what the safety node sends and the simulated arm.

Each refuses what the real one refuses, replaces as it replaces, and does the same when it hears nothing more:

    ServoTwist         MoveIt Servo: stops when the newest stamp is older than `incoming_command_timeout`
    CompliancePose     Cartesian compliance controllers: keep the last target
    JointTrajectories  joint_trajectory_controller: goes on to the last point and stays there
    ForwardPositions   forward_command_controller: keeps the last positions
    ForwardVelocities  the same with velocities: keeps moving, unless the driver has a time-out

The plant is the arm's own Cartesian compliance controller.  Joint targets reach it through forward kinematics, as its
x, y, z and yaw; the arm holds its roll and pitch itself (docs/decisions/0021-controllers.md).  Times are ROS time in
ns.  A refused command is a ValueError, and what was commanded before goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlt_ros.core.kinematics import Arm
from rlt_ros.core.proprioception import yaw_of


@dataclass(frozen=True, eq=False)
class Plant:
    """The arm at the beginning of a step of `period_s` that ends at `end_ns`.

    target [4]: x, y, z (m) and yaw (rad) of its compliance controller.  joints [J]: measured, rad.  now_ns: ROS time.
    """

    arm: Arm
    target: np.ndarray
    joints: np.ndarray
    now_ns: int
    end_ns: int
    period_s: float

    def towards(self, joints: Sequence[float]) -> np.ndarray:
        """Change [4] of the target that takes it to the tool of these joints."""
        position, quaternion = self.arm.pose(joints)
        return self.towards_tool(np.array([*position, yaw_of(quaternion)]))

    def towards_tool(self, tool: np.ndarray) -> np.ndarray:
        """Change [4] of the target that takes it to `tool` [4]."""
        change = tool - self.target
        change[3] = (change[3] + np.pi) % (2 * np.pi) - np.pi
        return change


class ServoTwist:
    """Twists in the base frame move the Cartesian target."""

    def __init__(self, frame: str, timeout_ns: int = 100_000_000) -> None:
        self.frame, self.timeout_ns = frame, timeout_ns
        self._twist, self._stamp_ns = np.zeros(6), -timeout_ns

    def command(self, frame: str, stamp_ns: int, twist: Sequence[float]) -> None:
        """twist [6]: m/s and rad/s."""
        twist = np.asarray(twist, float)
        if frame != self.frame:
            raise ValueError(f"twist is in the frame '{frame}', there is no transform to '{self.frame}'")
        if not np.isfinite(twist).all():
            raise ValueError(f"twist is not finite: {twist.tolist()}")
        self._twist, self._stamp_ns = twist, stamp_ns

    def velocity(self, now_ns: int) -> np.ndarray:
        """[4]: x, y, z (m/s) and yaw (rad/s)."""
        return self._twist[[0, 1, 2, 5]] if now_ns - self._stamp_ns < self.timeout_ns else np.zeros(4)

    def step(self, plant: Plant) -> np.ndarray:
        """Change [4] of the plant's target."""
        return self.velocity(plant.now_ns) * plant.period_s


class CompliancePose:
    """The Cartesian target itself."""

    def __init__(self, frame: str) -> None:
        self.frame = frame
        self._target: np.ndarray | None = None

    def command(self, frame: str, position: Sequence[float], quaternion: Sequence[float]) -> None:
        """position [3], m; quaternion x y z w."""
        values = np.array([*position, *quaternion], float)
        if frame != self.frame:
            raise ValueError(f"target pose is in the frame '{frame}', expected '{self.frame}'")
        if not np.isfinite(values).all():
            raise ValueError(f"target pose is not finite: {values.tolist()}")
        self._target = np.array([*values[:3], yaw_of(values[3:])])

    def target(self) -> np.ndarray | None:
        """[4]: x, y, z and yaw; None before the first command."""
        return self._target

    def step(self, plant: Plant) -> np.ndarray:
        """Change [4] of the plant's target."""
        return np.zeros(4) if self._target is None else plant.towards_tool(self._target)


@dataclass(frozen=True)
class Waypoint:
    """One point of a trajectory; velocities empty: not given."""

    from_start_ns: int
    positions: Sequence[float]
    velocities: Sequence[float] = ()


class JointTrajectories:
    """Trajectories with positions and, where given, velocities: cubic then, linear otherwise.

    A new one replaces the old at once and is entered from the state that was commanded last
    (interpolate_from_desired_state), so that position and velocity do not jump where its points allow it.
    """

    def __init__(self, joints: Sequence[str], at: Sequence[float]) -> None:
        self.joints = tuple(joints)
        self._commanded = np.array(at, float), np.zeros(len(self.joints))
        self._commanded_ns: int | None = None
        self._points: list[tuple[int, np.ndarray, np.ndarray | None]] = []
        self._since_ns = 0

    def command(self, now_ns: int, stamp_ns: int, names: Sequence[str], points: Sequence[Waypoint]) -> None:
        """A trajectory that begins at stamp_ns (0: now)."""
        if sorted(names) != sorted(self.joints):
            raise ValueError(f"trajectory is for the joints {list(names)}, the controller has {list(self.joints)}")
        if not points:
            raise ValueError("trajectory has no points")
        order, begin_ns = [list(names).index(joint) for joint in self.joints], stamp_ns or now_ns
        taken, before_ns = [], -1
        for i, point in enumerate(points):
            if point.from_start_ns <= before_ns:
                raise ValueError(
                    f"trajectory: point {i} is due after {point.from_start_ns} ns, not later than the last"
                )
            before_ns = point.from_start_ns
            if len(point.positions) != len(order) or len(point.velocities) not in (0, len(order)):
                raise ValueError(f"trajectory: point {i} has {len(point.positions)} positions and "
                                 f"{len(point.velocities)} velocities for {len(order)} joints")
            if not np.isfinite([*point.positions, *point.velocities]).all():
                # Stricter than the real one, which does not look: nothing of the kind may get so far.
                raise ValueError(f"trajectory: point {i} is not finite")
            velocities = np.asarray(point.velocities, float)[order] if len(point.velocities) else None
            taken.append((begin_ns + point.from_start_ns, np.asarray(point.positions, float)[order], velocities))
        last = taken[-1][2]
        if last is not None and np.abs(last).max() > np.finfo(np.float32).eps:
            raise ValueError(f"trajectory ends with the velocities {last.tolist()}, expected zeros "
                             "(allow_nonzero_velocity_at_trajectory_end is false)")
        if stamp_ns and taken[-1][0] < now_ns:
            raise ValueError(f"trajectory ends {(now_ns - taken[-1][0]) * 1e-9:.3f} s in the past")
        self._since_ns = now_ns if self._commanded_ns is None else self._commanded_ns
        self._points = [(self._since_ns, *self._commanded), *taken]
        if taken[0][0] <= self._since_ns:  # begun before we look: no way in
            self._points.pop(0)

    def sample(self, now_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [J] and velocities [J] now; each call commands them."""
        self._commanded, self._commanded_ns = self._at(now_ns), now_ns
        return self._commanded

    def step(self, plant: Plant) -> np.ndarray:
        """Change [4] of the plant's target."""
        return plant.towards(self.sample(plant.end_ns)[0])

    def _at(self, now_ns: int) -> tuple[np.ndarray, np.ndarray]:
        points = self._points
        if not points or now_ns >= points[-1][0]:
            end = points[-1][1] if points else self._commanded[0]
            return end, np.zeros_like(end)
        after = next(i for i, point in enumerate(points) if point[0] > now_ns)
        if after == 0:
            return self._commanded
        (t0, p0, v0), (t1, p1, v1) = points[after - 1], points[after]
        span, share = (t1 - t0) * 1e-9, (now_ns - t0) / (t1 - t0)
        if v0 is None or v1 is None:
            return p0 + share * (p1 - p0), (p1 - p0) / span
        a, b = v0 * span, v1 * span
        c2, c3 = 3 * (p1 - p0) - 2 * a - b, 2 * (p0 - p1) + a + b
        return p0 + a * share + c2 * share**2 + c3 * share**3, (a + 2 * c2 * share + 3 * c3 * share**2) / span


class ForwardPositions:
    """Joint positions, as they come."""

    def __init__(self, joints: int, at: Sequence[float]) -> None:
        self._joints, self._at = joints, np.array(at, float)

    def command(self, values: Sequence[float]) -> None:
        """[J], rad or m."""
        self._at = forwarded(values, self._joints)

    def target(self) -> np.ndarray:
        """[J]."""
        return self._at

    def step(self, plant: Plant) -> np.ndarray:
        """Change [4] of the plant's target."""
        return plant.towards(self._at)


class ForwardVelocities:
    """Joint velocities, as they come, integrated no further than `leash` (rad) from the joints."""

    def __init__(self, joints: int, at: Sequence[float], leash: float = 0.1) -> None:
        self._joints, self._at, self._leash = joints, np.array(at, float), leash
        self._velocity = np.zeros(joints)

    def command(self, values: Sequence[float]) -> None:
        """[J], rad/s or m/s."""
        self._velocity = forwarded(values, self._joints)

    def target(self, measured: Sequence[float], seconds: float) -> np.ndarray:
        """[J] after so many seconds more."""
        after = self._at + self._velocity * seconds
        self._at = np.asarray(measured, float) + (after - measured).clip(-self._leash, self._leash)
        return self._at

    def step(self, plant: Plant) -> np.ndarray:
        """Change [4] of the plant's target."""
        return plant.towards(self.target(plant.joints, plant.period_s))


def forwarded(values: Sequence[float], joints: int) -> np.ndarray:
    """What a forward_command_controller of so many joints takes."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError(f"command is not finite: {values.tolist()}")
    if values.shape != (joints,):
        raise ValueError(f"command has {values.size} values for {joints} interfaces")
    return values
