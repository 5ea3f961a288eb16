"""Joins the robot's streams to one proprioception vector a control tick. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SIZES = {"pose": 4, "twist": 4, "wrench": 6}  # x y z yaw, their velocities, force and torque


class ProprioError(ValueError):
    """A reading that cannot be used; the text names the stream, the value and what was expected."""


class ProprioAssembler:
    """Holds the newest reading of each stream and joins them in the order of `layout`.

    Args:
        layout: (part, size) in order. `pose` [m, rad], `twist` [m/s, rad/s] and `wrench` [N, N m] have streams of their
            own; `joint_velocity` and every other part are read from the joint states: velocities, else positions.
        joints: part -> its joint names in the order wanted, for parts that are read from the joint states;
            missing: part_0, part_1 ...
        derive_twist: compute the twist from two poses, for robots that publish none.

    Raises:
        ProprioError: a size that does not fit its part.
    """

    def __init__(
        self,
        layout: Sequence[tuple[str, int]],
        joints: Mapping[str, Sequence[str]] | None = None,
        derive_twist: bool = False,
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
        self.streams = {part if part in SIZES else "joint_states" for part in self.layout}
        self.derive_twist = derive_twist and "twist" in self.streams
        if self.derive_twist and "pose" not in self.streams:
            raise ProprioError("derive_twist needs the part 'pose' in the task's state")
        self._values: dict[str, np.ndarray] = {}
        self._ticks: dict[str, int] = {}
        self._stamps: dict[str, int] = {}
        self._joined = -1

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

    def add_joint_states(
        self, tick: int, stamp_ns: int, names: Sequence[str], positions: Sequence[float], velocities: Sequence[float]
    ) -> None:
        """Joint states as the driver orders them [rad or m, rad/s or m/s]."""
        index = {name: i for i, name in enumerate(names)}
        for part, joints in self.joints.items():
            missing = [name for name in joints if name not in index]
            if missing:
                raise ProprioError(f"joint_states has no {missing} among {list(names)}; set joints.{part}")
            kind, values = ("velocities", velocities) if part == "joint_velocity" else ("positions", positions)
            if len(values) != len(names):
                raise ProprioError(
                    f"joint_states has {len(values)} {kind} for {len(names)} names; the driver must send both"
                )
            self._add("joint_states", tick, stamp_ns, np.array([values[index[n]] for n in joints], np.float32), part)

    def join(self) -> tuple[int, int, np.ndarray] | None:
        """(tick, stamp_ns, values float32[P]) once every stream has reached a tick not joined yet, else None."""
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
