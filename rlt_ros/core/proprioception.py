"""Joins the robot's streams to one proprioception vector a control tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import atan2, inf

import numpy as np

from rlt_ros.core.finite import fit_float32

SIZES = {"pose": 4, "twist": 4, "wrench": 6}  # x y z yaw, their velocities, force and torque
_LEAST = 1e-12  # square of a quaternion's norm, below which it says nothing
_GAP_S = 0.2  # positions further apart say nothing of the velocity now


class ProprioError(ValueError):
    """A reading that cannot be used; the text names the stream, the value and what was expected."""


class Velocity:
    """Velocity from positions and their stamps, for drivers that send none.

    The difference of two positions over the time between their stamps, then a low pass of first order with time
    constant `filter_s`: v += (dx / dt - v) * dt / (filter_s + dt). Two stamps that are hardly apart can therefore not
    make a large velocity, and a change is seen to 63 % after `filter_s`. It begins with the first difference, again
    after a gap of 0.2 s.
    """

    def __init__(self, filter_s: float, angles: Sequence[bool] = ()) -> None:
        """`angles`: which values are angles [rad] that wrap around; empty: none."""
        self._filter_s, self._angles = filter_s, np.array(angles, bool)
        self._last: tuple[int, np.ndarray] | None = None
        self._velocity: np.ndarray | None = None

    def see(self, stamp_ns: int, position: np.ndarray) -> np.ndarray | None:
        """The velocity [unit of position / s] at a finite position float [N], or None where it is not known yet."""
        last = self._last
        if last is not None and last[0] == stamp_ns:
            return self._velocity
        self._last = (stamp_ns, position.astype(np.float64))
        seconds = (stamp_ns - last[0]) * 1e-9 if last is not None else 0.0
        if not 0.0 < seconds <= _GAP_S:
            self._velocity = None
            return None
        step = self._last[1] - last[1]
        if self._angles.any():
            step[self._angles] = (step[self._angles] + np.pi) % (2 * np.pi) - np.pi
        now = step / seconds
        if self._velocity is not None:
            now = self._velocity + (now - self._velocity) * (seconds / (self._filter_s + seconds))
        self._velocity = now
        return now


class ProprioAssembler:
    """Holds the newest reading of each part and joins them in the order of `layout`.

    Args:
        layout: (part, size) in order. `pose` [m, rad], `twist` [m/s, rad/s] and `wrench` [N, N m] have streams of their
            own; `joint_velocity` and every other part are read from the joint states: velocities, else positions.
        joints: part -> its joint names in the order wanted, for parts that are read from the joint states;
            missing: part_0, part_1 ... Parts may come in joint states of their own, as a gripper's do.
        derive_twist: compute the twist from poses, for robots that publish none.
        velocity_filter_s: time constant of velocities that are computed, see `Velocity` [s].

    Raises:
        ProprioError: a size that does not fit its part.
    """

    def __init__(
        self,
        layout: Sequence[tuple[str, int]],
        joints: Mapping[str, Sequence[str]] | None = None,
        derive_twist: bool = False,
        velocity_filter_s: float = 0.02,
    ) -> None:
        given = joints or {}
        self.layout = tuple(part for part, _ in layout)
        self.joints: dict[str, tuple[str, ...]] = {}
        for part, size in layout:
            if part not in SIZES:
                self.joints[part] = tuple(given.get(part, [f"{part}_{i}" for i in range(size)]))
            have = SIZES.get(part) or len(self.joints[part])
            if have != size:
                raise ProprioError(f"proprioception part '{part}' has {have} values, the task wants {size}")
        self.size = sum(size for _, size in layout)
        self.derive_twist = derive_twist and "twist" in self.layout
        self.streams = {self.stream_of(part) for part in self.layout}
        if self.derive_twist and "pose" not in self.layout:
            raise ProprioError("derive_twist needs the part 'pose' in the task's state")
        self._filter_s = velocity_filter_s
        self.restart()

    def restart(self) -> None:
        """Forget all readings, as after a clock that was set back."""
        self._values: dict[str, Sequence[float]] = {}
        self._ticks: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._twist = Velocity(self._filter_s, [False, False, False, True])
        self._joint_velocity = Velocity(self._filter_s)
        self._joined = -1

    def add_pose(self, tick: int, stamp_ns: int, position: Sequence[float], quaternion: Sequence[float]) -> None:
        """Position x y z [m] and orientation x y z w in the robot base; only the yaw of it is kept."""
        pose = (*position, yaw_of(quaternion))
        self._add("pose", tick, stamp_ns, pose)
        if self.derive_twist and (twist := self._twist.see(stamp_ns, np.array(pose))) is not None:
            self._add("twist", tick, stamp_ns, twist.tolist())

    def add_twist(self, tick: int, stamp_ns: int, linear: Sequence[float], yaw_rate: float) -> None:
        """Linear velocity [m/s] and yaw rate [rad/s] in the robot base."""
        self._add("twist", tick, stamp_ns, (*linear, yaw_rate))

    def add_wrench(self, tick: int, stamp_ns: int, force: Sequence[float], torque: Sequence[float]) -> None:
        """Force [N] and torque [N m]."""
        self._add("wrench", tick, stamp_ns, (*force, *torque))

    def add_joint_states(
        self, tick: int, stamp_ns: int, names: Sequence[str], positions: Sequence[float], velocities: Sequence[float]
    ) -> None:
        """Joint states as the driver orders them [rad or m, rad/s or m/s].

        Parts of which it has no joint are left to other messages. Where velocities are missing, or NaN as
        ros2_control writes for joints without them, they are computed from the positions.
        """
        index = {name: i for i, name in enumerate(names)}
        found = {part: joints for part, joints in self.joints.items() if any(name in index for name in joints)}
        for part, joints in (found or self.joints).items():
            missing = [name for name in joints if name not in index]
            if missing:
                raise ProprioError(f"joint_states has no {missing} among {list(names)}; set joints.{part}")
            rows = [index[name] for name in joints]
            if part != "joint_velocity":
                self._add(part, tick, stamp_ns, _picked("positions", positions, names, rows).tolist())
                continue
            velocity = _picked("velocities", velocities, names, rows) if len(velocities) else None
            if velocity is None or np.isnan(velocity).all():
                position = _picked("positions", positions, names, rows)
                if not np.isfinite(position).all():
                    raise ProprioError(f"{part}: positions {position.tolist()} are not all finite; the reading is"
                                       " dropped")
                velocity = self._joint_velocity.see(stamp_ns, position)
            if velocity is not None:
                self._add(part, tick, stamp_ns, velocity.tolist())

    def add_part(self, part: str, tick: int, stamp_ns: int, values: Sequence[float]) -> None:
        """A part's values as they are, where no message and no names of joints stand between."""
        self._add(part, tick, stamp_ns, values)

    def join(self) -> tuple[int, int, np.ndarray] | None:
        """(tick, stamp_ns, values float32[P]) once every part has reached a tick not joined yet, else None."""
        if len(self._ticks) < len(self.layout):
            return None
        slowest = self.slowest()
        tick = self._ticks[slowest]
        if tick <= self._joined:
            return None
        self._joined = tick
        joined = [value for part in self.layout for value in self._values[part]]
        return tick, self._stamps[slowest], np.array(joined, np.float32)

    def slowest(self) -> str:
        """The part whose newest reading is the oldest, or "" before there is one."""
        return min(self._stamps, key=self._stamps.__getitem__, default="")

    @property
    def skew_ns(self) -> int:
        """How far the newest readings of the parts are apart."""
        return max(self._stamps.values()) - min(self._stamps.values()) if self._stamps else 0

    def waiting_for(self) -> list[str]:
        """Parts that have never been delivered."""
        return sorted(set(self.layout) - self._ticks.keys())

    def stream_of(self, part: str) -> str:
        """The stream that a part is read from: pose, twist, wrench or joint_states."""
        if part == "twist" and self.derive_twist:
            return "pose"
        return part if part in SIZES else "joint_states"

    def _add(self, part: str, tick: int, stamp_ns: int, values: Sequence[float]) -> None:
        if not fit_float32(values):
            raise ProprioError(f"{part}: values {list(values)} are not all finite; the reading is dropped")
        late_ns = self._stamps.get(part, stamp_ns) - stamp_ns
        if late_ns > 0:
            raise ProprioError(f"{part}: the stamp is {late_ns * 1e-6:.1f} ms older than the one before, expected a"
                               " newer one; look for a second publisher on the topic")
        self._values[part] = values
        self._ticks[part] = tick
        self._stamps[part] = stamp_ns


def _picked(kind: str, values: Sequence[float], names: Sequence[str], rows: Sequence[int]) -> np.ndarray:
    if len(values) != len(names):
        raise ProprioError(f"joint_states has {len(values)} {kind} for {len(names)} names, expected one for each;"
                           " the driver must send them")
    return np.array([values[row] for row in rows], np.float32)


def yaw_of(quaternion: Sequence[float]) -> float:
    """Yaw [rad] about the base's z axis of an orientation x y z w; ProprioError when it is none."""
    x, y, z, w = quaternion
    if not _LEAST < x * x + y * y + z * z + w * w < inf:  # nor NaN
        raise ProprioError(f"pose: orientation {list(quaternion)} is no quaternion, expected four finite numbers with"
                           " a norm of 1; the reading is dropped")
    return atan2(2.0 * (w * z + x * y), w * w + x * x - y * y - z * z)  # of any length
