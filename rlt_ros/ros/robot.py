"""What a robot says of itself: its URDF and its joint states."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sensor_msgs.msg import JointState

from rlt_ros.core.kinematics import Arm
from rlt_ros.ros.parameters import ArmParameters, ParameterError


# The latched topic on which a robot's driver says its URDF, and the word for it in arm.urdf.
DESCRIPTION = "robot_description"


def urdf_text(urdf: str) -> str:
    """The text of the parameter arm.urdf, which is a path or that text; "" when it is empty. ParameterError."""
    if not urdf or urdf.lstrip().startswith("<"):
        return urdf
    try:
        return Path(urdf).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"parameter 'arm.urdf' is {urdf!r}: {error}; write the file with `ros2 topic echo --once --full-length"
            " --field data /robot_description` or `xacro`"
        ) from None


def load_arm(params: ArmParameters, wanted_by: str) -> Arm:
    """The arm of the parameters `arm.*`; ParameterError says what is missing for `wanted_by`."""
    for name, value in (("arm.urdf", params.urdf), ("arm.joints", params.joints)):
        if not value:
            raise ParameterError(f"parameter '{name}' is not set, {wanted_by} needs it (config/robots has examples)")
    if params.urdf == DESCRIPTION:
        raise ParameterError(f"parameter 'arm.urdf' is '{DESCRIPTION}', the topic, but {wanted_by} needs a file")
    try:
        return Arm(urdf_text(params.urdf), params.base, params.tip, params.joints)
    except ValueError as error:
        raise ParameterError(f"arm: {error}") from None


FURTHEST = 1e4  # rad or m; nothing of an arm is there


class JointBook:
    """The newest position of each of `names`, from joint states of any order, also several messages for one robot."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._known: dict[str, tuple[float, float]] = {}
        self._since_s = np.inf

    def want(self, names: Sequence[str]) -> None:
        """Note these too."""
        self.names = tuple(dict.fromkeys([*self.names, *names]))

    def add(self, msg: JointState, now_s: float) -> None:
        """Note the joints of a message of the time `now_s`, on whatever clock; ValueError when it is malformed."""
        if len(msg.position) != len(msg.name):
            raise ValueError(f"joint states have {len(msg.position)} positions for {len(msg.name)} names")
        found = {name: value for name, value in zip(msg.name, msg.position) if name in self.names}
        if not np.isfinite(list(found.values())).all():
            raise ValueError(f"joint states are not finite: {found}")
        if any(abs(value) > FURTHEST for value in found.values()):
            raise ValueError(f"joint states have a position beyond {FURTHEST:g} rad or m: {found}; look at the driver")
        self._since_s = min(self._since_s, now_s)
        self._known |= {name: (value, now_s) for name, value in found.items()}

    def values(self, names: Sequence[str], oldest_s: float) -> np.ndarray | None:
        """Positions of `names` (rad or m), none of before `oldest_s`; None when one is missing."""
        known = [self._known.get(name, (0.0, -np.inf)) for name in names]
        return np.array([value for value, _ in known]) if all(at >= oldest_s for _, at in known) else None

    def oldest(self, names: Sequence[str]) -> float | None:
        """The time of that of `names` which was seen the longest ago; None when one was never seen."""
        times = [self._known[name][1] for name in names if name in self._known]
        return min(times) if len(times) == len(names) else None

    def lacking(self, oldest_s: float) -> list[str]:
        """Those of `names` not seen since `oldest_s`; none while the first message is younger than that, since
        those of other joints may be on their way."""
        if self._since_s >= oldest_s:
            return []
        return [name for name in self.names if self._known.get(name, (0.0, -np.inf))[1] < oldest_s]
