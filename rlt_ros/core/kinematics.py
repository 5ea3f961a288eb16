"""Where the tool is and how it moves with the joints, from the robot's URDF.

MuJoCo does the geometry: it reads URDF, and the simulator needs it anyway. Meshes, collision bodies and inertias are
left out before it sees the file, so that no mesh has to be found.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOVING = {"revolute": "rad", "continuous": "rad", "prismatic": "m"}


@dataclass(frozen=True)
class JointLimits:
    """What the URDF says of one joint: position [rad or m], velocity [rad/s or m/s]; infinite where it says nothing."""

    lower: float
    upper: float
    velocity: float


class Arm:
    """Joints `names` of a URDF, between the frames `base` and `tip`.

    Attributes:
        names: the moving joints, in the order in which joint vectors are given.
        limits: JointLimits of each, in that order.
    """

    def __init__(self, urdf: str, base: str, tip: str, names: Sequence[str]) -> None:
        """`urdf` is the text of the file (what /robot_description says); ValueError names what it lacks."""
        import mujoco

        root, self.names = _bare(urdf), tuple(names)
        links = [link.get("name") for link in root.findall("link")]
        joints = {joint.get("name"): joint for joint in root.findall("joint")}
        for frame in (base, tip):
            if frame not in links:
                raise ValueError(f"URDF: no link '{frame}', it has {', '.join(links)}")
        moving = {name: joint for name, joint in joints.items() if joint.get("type") in MOVING}
        for name in self.names:
            if name not in moving:
                raise ValueError(f"URDF: no moving joint '{name}', it has {', '.join(moving) or 'none'}")
        _expect_known(root, base, tip, self.names)
        self.limits = tuple(_limits(moving[name]) for name in self.names)
        self._mujoco = mujoco
        try:
            self._model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
        except ValueError as error:
            raise ValueError(f"URDF: {error}") from None
        self._data = mujoco.MjData(self._model)
        self._base, self._tip = (_body(self._model, links, name) for name in (base, tip))
        self._position = [int(self._model.joint(name).qposadr[0]) for name in self.names]
        self._velocity = [int(self._model.joint(name).dofadr[0]) for name in self.names]

    def pose(self, joints: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Position [3], m, and orientation [4], quaternion x y z w, of the tip in the base. joints: [n], rad or m."""
        position, rotation = self._at(joints)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        return position, quaternion[[1, 2, 3, 0]]

    def jacobian(self, joints: Sequence[float]) -> np.ndarray:
        """[6, n]: linear (m/s) over angular velocity (rad/s) of the tip in the base, a unit of joint velocity."""
        self._at(joints)
        linear, angular = np.zeros((2, 3, self._model.nv))
        self._mujoco.mj_jacBody(self._model, self._data, linear, angular, self._tip)
        base = self._data.xmat[self._base].reshape(3, 3)
        return np.concatenate([base.T @ linear, base.T @ angular])[:, self._velocity]

    def step(self, joints: Sequence[float], motion: Sequence[float], damping: float = 0.01) -> np.ndarray:
        """The change of the joints [n] that moves the tip by `motion` [6] (m and rad, base frame) to first order.

        Damped least squares: near a singularity the tip goes less far than asked rather than the joints far. `damping`
        is in the units of the Jacobian's singular values.
        """
        return self.inverse(joints, damping)[0] @ np.asarray(motion, float)

    def inverse(self, joints: Sequence[float], damping: float = 0.01) -> tuple[np.ndarray, float]:
        """[n, 6]: what `step` does with a motion, as a matrix, and the Jacobian's smallest singular value, 0 at a
        singularity."""
        left, values, right = np.linalg.svd(self.jacobian(joints), full_matrices=False)
        return (right.T * (values / (values**2 + damping**2))) @ left.T, float(values[-1])

    def _at(self, joints: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        joints = np.asarray(joints, float)
        if joints.shape != (len(self.names),) or not np.isfinite(joints).all():
            raise ValueError(f"joints: got {joints.tolist()}, expected {len(self.names)} finite numbers: {self.names}")
        data = self._data
        data.qpos[self._position] = joints
        self._mujoco.mj_kinematics(self._model, data)
        self._mujoco.mj_comPos(self._model, data)
        base = data.xmat[self._base].reshape(3, 3)
        position = base.T @ (data.xpos[self._tip] - data.xpos[self._base])
        return position, base.T @ data.xmat[self._tip].reshape(3, 3)


def _expect_known(root: ElementTree.Element, base: str, tip: str, names: Sequence[str]) -> None:
    """ValueError where something between base and tip moves that is not among `names`: the tool would be elsewhere."""
    above = {joint.find("child").get("link"): joint for joint in root.findall("joint")}

    def to_root(link: str) -> list[ElementTree.Element]:
        way = []
        while link in above and len(way) <= len(above):
            way.append(above[link])
            link = above[link].find("parent").get("link")
        return way

    ways = to_root(base), to_root(tip)
    for joint in [joint for way, other in (ways, ways[::-1]) for joint in way if joint not in other]:
        name, kind = joint.get("name"), joint.get("type")
        if joint.find("mimic") is not None:
            raise ValueError(f"URDF: joint '{name}' between '{base}' and '{tip}' mimics another, which is not supported")
        if kind != "fixed" and name not in names:
            raise ValueError(f"URDF: joint '{name}' ({kind}) moves '{tip}' in '{base}' and is not among the joints"
                             f" {', '.join(names)}; add it to arm.joints, or choose arm.base and arm.tip around it")


def _bare(urdf: str) -> ElementTree.Element:
    """The tree without what kinematics does not need, with a mass for each link, as MuJoCo wants one."""
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"URDF: not XML ({error}); expected the text of a .urdf, xacro already expanded") from None
    if root.tag != "robot":
        raise ValueError(f"URDF: the outermost element is <{root.tag}>, expected <robot>")
    for link in root.findall("link"):
        for part in list(link):
            link.remove(part)
        inertial = ElementTree.SubElement(link, "inertial")
        ElementTree.SubElement(inertial, "mass", value="1")
        ElementTree.SubElement(inertial, "inertia", ixx="1", iyy="1", izz="1", ixy="0", ixz="0", iyz="0")
    for other in root.findall("mujoco"):
        root.remove(other)
    for joint in root.findall("joint"):
        for part in joint.findall("safety_controller") + joint.findall("dynamics"):
            joint.remove(part)
    extension = ElementTree.SubElement(root, "mujoco")
    # Links behind fixed joints (tool0) stay bodies of their own.
    ElementTree.SubElement(extension, "compiler", fusestatic="false", autolimits="true")
    return root


def _limits(joint: ElementTree.Element) -> JointLimits:
    found = joint.find("limit")
    values = dict(found.attrib) if found is not None else {}
    free = joint.get("type") == "continuous"
    try:
        lower, upper, velocity = (float(values.get(key, default)) for key, default in (
            ("lower", "-inf" if free else "0"), ("upper", "inf" if free else "0"), ("velocity", "inf")))
    except ValueError as error:
        raise ValueError(f"URDF: limit of joint '{joint.get('name')}': {error}") from None
    if free:
        lower, upper = -np.inf, np.inf
    if not lower < upper or not velocity > 0:
        raise ValueError(f"URDF: joint '{joint.get('name')}' has the limits {lower} to {upper} and the velocity"
                         f" {velocity}, expected lower < upper and a velocity above 0")
    return JointLimits(lower, upper, velocity)


def _body(model: object, links: list, name: str) -> int:
    # The root link of a URDF is MuJoCo's world.
    return 0 if name not in [model.body(i).name for i in range(model.nbody)] else int(model.body(name).id)
