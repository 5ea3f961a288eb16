"""What a controller is to reach next: targets that the actions move and that never run away from the robot.

A controller that takes targets, in joints or Cartesian, needs a sum of the actions, and not each on top of the
measured position: under a load each would begin a little lower than the last. So each class here keeps its own target,
on a leash: nothing is sent that is further than that from what is measured. Where the robot was moved by somebody else
(further off than a stretched leash explains) nothing is sent for ANCHOR_TICKS, in case a reading was wrong, and then
the target is where the robot is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlt_ros.core.kinematics import Arm, JointLimits
from rlt_ros.core.rotations import matrix_of, shortened, turn, vector_of

STRAY = 1.5  # leashes: what is further off was not left behind but moved
ANCHOR_TICKS = 10
# How fast joints that are behind the Cartesian target may make up for it: m/s and rad/s.
SLACK_M_S, SLACK_RAD_S = 0.025, 0.25
TOLERANCE_M = 0.001  # out of the box by first-order errors, along a wall

Box = tuple[Sequence[float], Sequence[float]]  # lower and upper corner, m


@dataclass(frozen=True)
class ActionLayout:
    """Which actions of a task move what, by their names.

    motion: indices of x, y, z and, where there is one, yaw of the tool in the base frame; () where there are none.
    joints: for each of the robot's joints the index of the action of that name; () where there are none.
    gripper: index of the action `gripper`, None without one.
    """

    motion: tuple[int, ...]
    joints: tuple[int, ...]
    gripper: int | None

    @classmethod
    def of(cls, names: Sequence[str], joints: Sequence[str]) -> ActionLayout:
        """`names` of the task's actions, `joints` of the robot in the controller's order."""
        names = list(names)
        gripper = names.index("gripper") if "gripper" in names and "gripper" not in joints else None
        rest = [name for name in names if gripper is None or name != "gripper"]
        motion = [names.index(name) for name in rest] if rest in (["x", "y", "z"], ["x", "y", "z", "yaw"]) else []
        same = bool(joints) and sorted(rest) == sorted(joints)
        return cls(tuple(motion), tuple(names.index(name) for name in joints) if same else (), gripper)


def within(box: Box | None, position: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`position`, m, brought into the box, or no further out than `at`."""
    return position if box is None else position.clip(np.minimum(box[0], at), np.maximum(box[1], at))


class PoseTarget:
    """A Cartesian target: moved by x, y, z and yaw in the base frame; roll and pitch stay those of the start."""

    def __init__(self, leash_m: float, leash_rad: float, box: Box | None = None) -> None:
        """box: lower and upper corner, m, that no target leads out of; from outside it may lead back."""
        self._box = box
        self.leash_m, self.leash_rad = leash_m, leash_rad
        self._target: tuple[np.ndarray, np.ndarray] | None = None
        self._measured: tuple[np.ndarray, np.ndarray] | None = None
        self._astray = 0

    def observe(self, position: Sequence[float], quaternion: Sequence[float]) -> bool:
        """Where the tool is, once a tick before `step`: m, and x y z w. False while it is too far from the target."""
        position, rotation = np.asarray(position, float), matrix_of(quaternion)
        if position.shape != (3,) or not np.isfinite(position).all():
            raise ValueError(f"position of the tool is {position.tolist()}, expected three finite numbers (m)")
        self._measured = position, rotation
        if self._target is None:
            self._target = self._measured
        ahead, turned = self._ahead()
        far = np.linalg.norm(ahead) > STRAY * self.leash_m or np.linalg.norm(turned) > STRAY * self.leash_rad
        self._astray = self._astray + 1 if far else 0
        if self._astray >= ANCHOR_TICKS:
            self._target, self._astray = self._measured, 0
        return not self._astray

    def forget(self) -> None:
        """Let the target be where the tool is observed next."""
        self._target, self._astray = None, 0

    def step(self, motion: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
        """Target of this tick: position [3], m, and rotation [3, 3]; None when nothing may be sent.

        motion: x, y, z (m) and, where there is one, yaw (rad) of this tick; zeros hold.
        """
        if self._target is None or self._astray:
            return None
        position, rotation = self._target
        yaw = motion[3] if len(motion) > 3 else 0.0
        self._target = position + np.asarray(motion[:3], float), turn([0.0, 0.0, yaw]) @ rotation
        ahead, turned = self._ahead()
        at, facing = self._measured
        position = within(self._box, at + shortened(ahead, self.leash_m), at)
        self._target = position, turn(shortened(turned, self.leash_rad)) @ facing
        return self._target

    def _ahead(self) -> tuple[np.ndarray, np.ndarray]:
        """Target less measured: m, and as a rotation vector."""
        return self._target[0] - self._measured[0], vector_of(self._target[1] @ self._measured[1].T)


@dataclass(frozen=True, eq=False)
class JointPlan:
    """Joint positions [n, J] at the end of this tick and the following ones, and velocities [n, J]; the last is zero.

    start [J]: the target at the beginning of the tick.
    """

    start: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray


@dataclass(frozen=True, eq=False)
class _Point:
    """A joint target and, when it follows the tool, the tool's pose there and the one that it was to have."""

    joints: np.ndarray
    at: np.ndarray | None = None
    facing: np.ndarray | None = None
    position: np.ndarray | None = None
    rotation: np.ndarray | None = None


class JointTargets:
    """Joint targets: moved by joint actions, or with an `arm` by x, y, z and yaw of its tip in the base frame.

    With an arm the joints follow a Cartesian target that is summed on its own, so that the errors of single steps do
    not add up and roll and pitch stay.  Position and velocity limits shorten a step and keep its direction.
    """

    def __init__(self, limits: Sequence[JointLimits], leash: float, period_s: float, arm: Arm | None = None,
                 box: Box | None = None) -> None:
        """leash: rad or m, the furthest that a target is from the measured joint.  box: with an arm, as of PoseTarget.

        `measured` [J] is what was observed last.
        """
        self.leash = leash
        self._arm, self._period_s, self._box = arm, period_s, box
        self._lower = np.array([limit.lower for limit in limits])
        self._upper = np.array([limit.upper for limit in limits])
        self._fastest = np.array([limit.velocity for limit in limits]) * period_s  # rad or m a tick
        self.measured: np.ndarray | None = None
        self._astray = 0
        self._path: list[_Point] = []  # targets at the ends of ticks _tick, _tick + 1 ...
        self._tick = 0

    def observe(self, measured: Sequence[float]) -> bool:
        """Measured joints [J], once a tick before `plan`; False while they are too far from the target."""
        self.measured = np.asarray(measured, float)
        if self.measured.shape != self._lower.shape or not np.isfinite(self.measured).all():
            raise ValueError(f"joints: got {self.measured.tolist()}, expected {len(self._lower)} finite numbers")
        far = bool(self._path) and np.abs(self._path[0].joints - self.measured).max() > STRAY * self.leash
        self._astray = self._astray + 1 if far else 0
        if not self._path or self._astray >= ANCHOR_TICKS:
            self._path, self._astray = [self._at(self.measured)], 0
        return not self._astray

    def forget(self) -> None:
        """Let the target be where the joints are observed next."""
        self._path, self._astray = [], 0

    def plan(self, tick: int, actions: np.ndarray) -> JointPlan | None:
        """Targets from `tick` on; None when nothing may be sent.

        actions: [n, J] changes of the joints, or with an arm [n, 3 or 4] motions of its tip, a tick each (m, rad);
        zeros hold. Where plans for ticks before this one did not come, the controller has gone on along the last one.
        """
        if not self._path or self._astray:
            return None
        # In the same tick again (an emergency stop): from where this tick leads, not back.
        base = self._path[min(max(tick - 1 - self._tick, 0), len(self._path) - 1)]
        path = [base]
        for action in actions:
            path.append(self._move(path[-1], np.asarray(action, float)))
        self._path, self._tick = path[1:], tick
        positions = np.array([point.joints for point in path])
        velocities = np.zeros((len(path) - 1, positions.shape[1]))
        velocities[:-1] = (positions[2:] - positions[:-2]) / (2.0 * self._period_s)
        return JointPlan(positions[0], positions[1:], velocities)

    def _at(self, joints: np.ndarray) -> _Point:
        if self._arm is None:
            return _Point(joints)
        position, quaternion = self._arm.pose(joints)
        rotation = matrix_of(quaternion)
        return _Point(joints, position, rotation, position, rotation)

    def _move(self, point: _Point, action: np.ndarray) -> _Point:
        if self._arm is None:
            return _Point(self._bounded(point.joints, action))
        yaw = action[3] if len(action) > 3 else 0.0
        position = within(self._box, point.position + action[:3], point.at)
        rotation = turn([0.0, 0.0, yaw]) @ point.rotation
        change = np.zeros_like(point.joints)
        if np.any(action):  # a hold is a hold: the joints do not make up for what they are behind
            motion = np.concatenate([position - point.at, vector_of(rotation @ point.facing.T)])
            change = self._arm.step(point.joints, motion)
        there = self._at(self._bounded(point.joints, change))
        # A turn that the arm cannot make in place moves the tool, too: not out of the box.
        if self._outside(there.at) > max(self._outside(point.at), TOLERANCE_M):
            there = self._at(self._bounded(point.joints, np.zeros_like(change)))
        behind = shortened(position - there.at, SLACK_M_S * self._period_s)
        turned = shortened(vector_of(rotation @ there.facing.T), SLACK_RAD_S * self._period_s)
        return replace(there, position=there.at + behind, rotation=turn(turned) @ there.facing)

    def _outside(self, at: np.ndarray) -> float:
        """How far out of the box a place is, m, on its worst axis; 0 inside."""
        if self._box is None:
            return 0.0
        lower, upper = self._box
        return max(0.0, *np.subtract(lower, at), *np.subtract(at, upper))

    def _bounded(self, joints: np.ndarray, change: np.ndarray) -> np.ndarray:
        """`joints` after as much of `change` as limits and leash allow."""
        room = np.maximum(np.where(change > 0.0, self._upper - joints, joints - self._lower), 0.0)
        moves = np.abs(change) > 1e-12
        share = min(1.0, *(np.minimum(room, self._fastest)[moves] / np.abs(change)[moves]).tolist(), 1.0)
        after = joints + share * change
        return self.measured + (after - self.measured).clip(-self.leash, self.leash)


class GripperTarget:
    """Opening of a gripper (m or rad), moved by one action; a hold keeps it, and with it the grip."""

    def __init__(self, lower: float, upper: float, leash: float) -> None:
        """leash: furthest that the target is from the measured opening: how hard it squeezes."""
        self._lower, self._upper, self._leash = lower, upper, leash
        self._measured: float | None = None
        self._target = 0.0

    def forget(self) -> None:
        """Let the target be the opening that is measured next."""
        self._measured = None

    def observe(self, measured: float) -> None:
        """The measured opening, once a tick before `step`."""
        if self._measured is None:
            self._target = measured
        self._measured = measured

    def step(self, change: float) -> float | None:
        """The target of this tick; None before the first measurement."""
        if self._measured is None:
            return None
        near = min(max(self._target + change, self._measured - self._leash), self._measured + self._leash)
        self._target = min(max(near, self._lower), self._upper)
        return self._target


def tracking_error(joints: Sequence[str], names: Sequence[str], errors: Sequence[float]) -> float:
    """The largest error (rad or m) of `joints` in a controller's report; inf for one that is missing or not finite."""
    known = dict(zip(names, errors, strict=False))
    values = [abs(float(known.get(name, np.inf))) for name in joints]
    return max((value if np.isfinite(value) else np.inf for value in values), default=np.inf)
