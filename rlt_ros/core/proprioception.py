"""Joins the robot's streams to one proprioception vector a control tick. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Part of the vector -> the stream it is read from and its size (0: as many values as there are joints).
PARTS = {
    "pose": ("pose", 4),  # x y z [m], yaw [rad]
    "twist": ("twist", 4),  # vx vy vz [m/s], yaw rate [rad/s]
    "wrench": ("wrench", 6),  # fx fy fz [N], tx ty tz [N m]
    "joint_positions": ("joints", 0),  # rad or m
    "joint_velocities": ("joints", 0),  # rad/s or m/s
}


class ProprioError(ValueError):
    """A reading that cannot be used; the text names the stream, the value and what was expected."""


class ProprioAssembler:
    """Holds the newest reading of each stream and joins them in the order of `layout`.

    Args:
        layout: parts in order, each of PARTS.
        joints: names in the order wanted, needed by the joint parts.
        derive_twist: compute the twist from two poses, for robots that publish none.

    Raises:
        ProprioError: unknown part, or a joint part without joint names.
    """

    def __init__(self, layout: Sequence[str], joints: Sequence[str] = (), derive_twist: bool = False) -> None:
        for part in layout:
            if part not in PARTS:
                raise ProprioError(f"proprio.layout: unknown part '{part}', expected of {sorted(PARTS)}")
            if PARTS[part][1] == 0 and not joints:
                raise ProprioError(f"proprio.layout: part '{part}' needs joint names; set proprio.joints")
        self.layout = tuple(layout)
        self.joints = tuple(joints)
        self.derive_twist = derive_twist and "twist" in layout
        self.streams = {PARTS[part][0] for part in layout}
        self._values: dict[str, np.ndarray] = {}
        self._ticks: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._joined = -1

    @property
    def size(self) -> int:
        """Number of values P."""
        return sum(PARTS[part][1] or len(self.joints) for part in self.layout)

    def add_pose(self, tick: int, stamp_ns: int, position: Sequence[float], quaternion: Sequence[float]) -> None:
        """Position x y z [m] and orientation x y z w in the robot base; only the yaw of it is kept."""
        pose = np.array([*position, yaw_of(quaternion)], np.float32)
        if self.derive_twist and np.isfinite(pose).all() and "pose" in self._values:
            seconds = (stamp_ns - self._stamps["pose"]) * 1e-9
            if seconds > 0.0:
                step = pose - self._values["pose"]
                step[3] = (step[3] + np.pi) % (2 * np.pi) - np.pi
                self._add("twist", tick, stamp_ns, step / np.float32(seconds))
        self._add("pose", tick, stamp_ns, pose)

    def add_twist(self, tick: int, stamp_ns: int, linear: Sequence[float], yaw_rate: float) -> None:
        """Linear velocity [m/s] and yaw rate [rad/s] in the robot base."""
        self._add("twist", tick, stamp_ns, np.array([*linear, yaw_rate], np.float32))

    def add_wrench(self, tick: int, stamp_ns: int, force: Sequence[float], torque: Sequence[float]) -> None:
        """Force [N] and torque [N m]."""
        self._add("wrench", tick, stamp_ns, np.array([*force, *torque], np.float32))

    def add_joints(self, tick: int, stamp_ns: int, names: Sequence[str], fields: Mapping[str, Sequence[float]]) -> None:
        """Joint state as the driver orders it; `fields` has positions and velocities."""
        missing = [name for name in self.joints if name not in names]
        if missing:
            raise ProprioError(f"joint_states: no joints {missing} among {list(names)}; set proprio.joints")
        order = [list(names).index(name) for name in self.joints]
        for part in ("joint_positions", "joint_velocities"):
            if part not in self.layout:
                continue
            values = fields[part]
            if len(values) != len(names):
                raise ProprioError(f"joint_states: {len(values)} {part} for {len(names)} names")
            self._add("joints", tick, stamp_ns, np.array([values[i] for i in order], np.float32), key=part)

    def join(self) -> tuple[int, int, np.ndarray] | None:
        """(tick, stamp_ns, values float32[P]) once every stream has reached a tick that was not joined yet, else None."""
        if not self.streams <= self._ticks.keys():
            return None
        slowest = min(self.streams, key=self._stamps.__getitem__)
        tick = self._ticks[slowest]
        if tick <= self._joined:
            return None
        self._joined = tick
        return tick, self._stamps[slowest], np.concatenate([self._values[part] for part in self.layout])

    def waiting_for(self) -> list[str]:
        """Streams that have never delivered."""
        return sorted(self.streams - self._ticks.keys())

    def _add(self, stream: str, tick: int, stamp_ns: int, values: np.ndarray, key: str = "") -> None:
        if not np.isfinite(values).all():
            raise ProprioError(f"{stream}: values {values.tolist()} are not all finite; the reading is dropped")
        self._values[key or stream] = values
        self._ticks[stream] = tick
        self._stamps[stream] = stamp_ns


def yaw_of(quaternion: Sequence[float]) -> float:
    """Yaw [rad] about the base's z axis of an orientation x y z w."""
    x, y, z, w = (float(value) for value in quaternion)
    return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))
