"""Ethernet insertion: a 6-joint arm with an RJ45 plug in its gripper, a jack on the table, a latch that clicks.

The arm hangs under a Cartesian compliance controller at 500 Hz, the usual way in which contact-rich tasks are run: the
policy moves the controller's target by a small step every control tick (50 Hz), the controller pulls the tool after it
like a spring, so that a wrong step is a push of some newtons and not a crash.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

MODEL = Path(__file__).parent / "assets" / "ethernet.xml"
URDF = MODEL.with_suffix(".urdf")
JOINTS = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6")
CAMERAS = ("wrist", "base")
PHYSICS_HZ = 500.0  # of the simulation and of the arm's controller, under a control tick
LATCHED_DEPTH = 0.0112  # metres: from here on the latch tab stands behind the lip


@dataclass(frozen=True)
class EthernetConfig:
    """What is drawn at random at every reset, and the controller's stiffness. Metres, radians, newtons."""

    jack_xy: float = 0.010  # the jack lies within this of its nominal place
    jack_z: float = 0.002
    jack_yaw: float = 0.04
    grasp_xy: float = 0.0008  # how the plug sits in the gripper
    grasp_z: float = 0.001
    grasp_yaw: float = 0.02
    start_xy: float = 0.010  # where the tool starts, about the jack's nominal place
    start_height: tuple[float, float] = (0.045, 0.065)  # of the plug over the jack's nominal mouth
    light: float = 0.4  # relative change of brightness; the lamp also moves
    colour: float = 0.12  # change of every surface's colour
    camera: float = 0.0005  # metres that a camera's mount is off
    stiffness: float = 1500.0  # N/m
    stiffness_rotation: float = 25.0  # Nm/rad
    leash: float = 0.006  # the controller's target never runs further than this ahead of the tool
    leash_yaw: float = 0.08
    image_size: int = 96
    rate: float = 50.0  # Hz, control ticks, as the task file's; a divisor of 500

    def __post_init__(self) -> None:
        if not (0.0 < self.rate <= PHYSICS_HZ) or PHYSICS_HZ % self.rate:
            raise ValueError(f"ethernet environment: rate is {self.rate} Hz, expected a divisor of {PHYSICS_HZ:g} Hz")

    @classmethod
    def from_mapping(cls, values: dict) -> EthernetConfig:
        """Build from a task file's ``env.arguments``; ValueError names an unknown key."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"ethernet environment: unknown argument {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class EthernetInsertion(gym.Env):
    """Gymnasium environment of the task.

    Action [4]: change of the controller's target, x, y, z in metres and yaw in radians, in the base frame, for one
    tick.
    Observation: ``pose`` [4] x, y, z, yaw of the tool centre point in the base frame; ``twist`` [4] its velocity;
    ``wrench`` [6] force (N) and torque (Nm) on the tool, base frame, tared at reset; ``joint_position`` [6],
    ``joint_velocity`` [6]. Images come from :meth:`camera` so that nobody pays for frames that nobody looks at.
    Reward 1 when the plug is fully in and latched. ``info`` holds what no robot knows: ``lateral_error``, ``depth``
    (metres, positive inside the jack), ``yaw_error``, ``success``, ``failure``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    urdf, base, tip, joint_names = URDF, "base_link", "tcp", JOINTS  # what the arm's driver would say of it

    def __init__(self, render_mode: str | None = "rgb_array", **arguments):
        self.config = EthernetConfig.from_mapping(arguments)
        self.render_mode = render_mode
        self.model = mujoco.MjModel.from_xml_path(str(MODEL))
        self.data = mujoco.MjData(self.model)
        self._nominal = {
            name: np.array(getattr(self.model, name))
            for name in ("body_pos", "body_quat", "mat_rgba", "light_pos", "light_diffuse", "cam_pos", "geom_matid")
        }
        m = self.model
        self._dof = np.array([m.joint(j).dofadr[0] for j in JOINTS])
        self._qpos = np.array([m.joint(j).qposadr[0] for j in JOINTS])
        self._tcp, self._tip, self._mouth = (m.site(s).id for s in ("tcp", "plug_tip", "mouth"))
        self._latch = m.joint("latch").qposadr[0]
        self._jac = np.zeros((6, m.nv))
        self._renderer: mujoco.Renderer | None = None
        self._moments = deque(mujoco.MjData(self.model) for _ in range(3))  # one drawn, one waiting, one being written
        box = lambda n: gym.spaces.Box(-np.inf, np.inf, (n,), np.float32)  # noqa: E731
        self.observation_space = gym.spaces.Dict(
            pose=box(4), twist=box(4), wrench=box(6), joint_position=box(6), joint_velocity=box(6)
        )
        step = np.array([0.0015, 0.0015, 0.0015, 0.02], np.float32)
        self.action_space = gym.spaces.Box(-step, step)

    # --- gymnasium ------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        rng, c, m, d = self.np_random, self.config, self.model, self.data
        for name, value in self._nominal.items():
            getattr(m, name)[:] = value
        sym = lambda width, n=None: rng.uniform(-width, width, n)  # noqa: E731

        jack, plug = m.body("jack").id, m.body("plug").id
        m.body_pos[jack] += [*sym(c.jack_xy, 2), sym(c.jack_z)]
        m.body_quat[jack] = _yaw_quat(sym(c.jack_yaw))
        m.body_pos[plug] += [*sym(c.grasp_xy, 2), sym(c.grasp_z)]
        m.body_quat[plug] = _yaw_quat(sym(c.grasp_yaw))
        self._dress(rng)

        mujoco.mj_resetData(m, d)
        mouth = self._nominal["body_pos"][jack]
        self._target = np.array([*(mouth[:2] + sym(c.start_xy, 2)), mouth[2] + rng.uniform(*c.start_height)])
        self._target_yaw = sym(0.03)
        self._solve_ik()
        self._velocity, self._yaw_rate = np.zeros(3), 0.0
        self._tare = np.zeros(6)
        for _ in range(25):
            self._substep()
        self._tare = self._wrench()
        return self._observe(), self._info()

    def step(self, action):
        c = self.config
        action = np.clip(np.asarray(action, float), self.action_space.low, self.action_space.high)
        position, yaw = self.data.site_xpos[self._tcp], self._tool_yaw()
        goal = position + _limit_norm(self._target + action[:3] - position, c.leash)
        goal_yaw = yaw + np.clip(self._target_yaw + action[3] - yaw, -c.leash_yaw, c.leash_yaw)
        substeps = round(PHYSICS_HZ / c.rate)
        dt = self.model.opt.timestep * substeps
        self._velocity, self._yaw_rate = (goal - self._target) / dt, (goal_yaw - self._target_yaw) / dt
        for _ in range(substeps):
            self._target = self._target + self._velocity * self.model.opt.timestep
            self._target_yaw += self._yaw_rate * self.model.opt.timestep
            self._substep()
        info = self._info()
        return self._observe(), float(info["success"]), info["success"] or info["failure"], False, info

    @property
    def target(self) -> np.ndarray:
        """Target of the compliance controller [4]: x, y, z (m) and yaw (rad) in the base frame."""
        return np.array([*self._target, self._target_yaw])

    def camera(self, name: str, moment: mujoco.MjData | None = None) -> np.ndarray:
        """Picture of camera ``wrist`` or ``base`` now, or at a :meth:`moment`; uint8 [S, S, 3] RGB.

        Pictures of moments may be drawn in another thread while this environment steps on, always in the same one, and
        not while it is reset.
        """
        if name not in CAMERAS:
            raise ValueError(f"camera {name!r} does not exist; there are: {', '.join(CAMERAS)}")
        return self._render(name, self.config.image_size, moment)

    def moment(self) -> mujoco.MjData:
        """The present, to be drawn later: valid until this was called `len(self._moments)` times more."""
        self._moments.rotate()
        mujoco.mj_copyData(self._moments[0], self.model, self.data)
        return self._moments[0]

    def render(self):
        return self._render("base", self.config.image_size)

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # --- what happens in there -------------------------------------------------------------------------------------

    def _render(self, name: str, size: int, moment: mujoco.MjData | None = None) -> np.ndarray:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, size, size)
        self._renderer.update_scene(self.data if moment is None else moment, name)
        # Shadows and reflections cost 20 times the rest on a software renderer.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return self._renderer.render()

    def _dress(self, rng: np.random.Generator) -> None:
        """Another light and other colours: a policy must not live on one lamp."""
        c, m = self.config, self.model
        m.mat_rgba[:, :3] = np.clip(m.mat_rgba[:, :3] + rng.uniform(-c.colour, c.colour, (m.nmat, 3)), 0.02, 1)
        tables = [m.material(f"table_{kind}").id for kind in ("checker", "gradient", "marks", "flat")]
        m.geom_matid[m.geom("table").id] = rng.choice(tables)
        m.light_pos[:] += rng.uniform(-0.3, 0.3, m.light_pos.shape)
        m.light_diffuse[:] *= 1 + rng.uniform(-c.light, c.light)
        m.cam_pos[:] += rng.uniform(-c.camera, c.camera, m.cam_pos.shape)

    def _solve_ik(self) -> None:
        """Put the joints where the tool is at the target: damped least squares from the ready pose."""
        d = self.data
        for _ in range(60):
            mujoco.mj_kinematics(self.model, d)
            mujoco.mj_comPos(self.model, d)
            error = self._pose_error()
            if np.abs(error).max() < 1e-6:
                break
            jac = self._jacobian()
            d.qpos[self._qpos] += jac.T @ np.linalg.solve(jac @ jac.T + 1e-6 * np.eye(6), error)
        mujoco.mj_forward(self.model, d)

    def _jacobian(self) -> np.ndarray:
        mujoco.mj_jacSite(self.model, self.data, self._jac[:3], self._jac[3:], self._tcp)
        return self._jac[:, self._dof]

    def _pose_error(self) -> np.ndarray:
        """Target minus tool: position (m) and rotation vector (rad), base frame."""
        d = self.data
        c, s = np.cos(self._target_yaw), np.sin(self._target_yaw)
        goal = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        current = d.site_xmat[self._tcp].reshape(3, 3)
        r = goal @ current.T  # half the vector of its skew part; np.cross took 60 % of a tick
        rotation = 0.5 * np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
        return np.concatenate([self._target - d.site_xpos[self._tcp], rotation])

    def _substep(self) -> None:
        c, d = self.config, self.data
        jac = self._jacobian()
        twist = jac @ d.qvel[self._dof]
        desired = np.array([*self._velocity, 0, 0, self._yaw_rate])
        # Damping: about critical for the arm's 4 kg and 0.02 kg m2 at the tool.
        stiffness = np.array([c.stiffness] * 3 + [c.stiffness_rotation] * 3)
        damping = np.array([160.0] * 3 + [1.5] * 3)
        force = stiffness * self._pose_error() + damping * (desired - twist)
        d.ctrl[:] = jac.T @ force + d.qfrc_bias[self._dof]
        mujoco.mj_step(self.model, d)

    def _tool_yaw(self) -> float:
        x = self.data.site_xmat[self._tcp]
        return float(np.arctan2(x[3], x[0]))

    def _wrench(self) -> np.ndarray:
        """Force and torque that the world puts on the tool, base frame, tared."""
        rotation = self.data.site_xmat[self.model.site("ft").id].reshape(3, 3)
        sensed = self.data.sensordata
        return -np.concatenate([rotation @ sensed[:3], rotation @ sensed[3:6]]) - self._tare

    def _observe(self) -> dict[str, np.ndarray]:
        d = self.data
        twist = self._jacobian() @ d.qvel[self._dof]
        values = dict(
            pose=[*d.site_xpos[self._tcp], self._tool_yaw()],
            twist=[*twist[:3], twist[5]],
            wrench=self._wrench(),
            joint_position=d.qpos[self._qpos],
            joint_velocity=d.qvel[self._dof],
        )
        return {k: np.asarray(v, np.float32) for k, v in values.items()}

    def _info(self) -> dict:
        d = self.data
        frame = d.site_xmat[self._mouth].reshape(3, 3)
        offset = frame.T @ (d.site_xpos[self._tip] - d.site_xpos[self._mouth])  # [x, y, height] in the jack's frame
        tip = d.site_xmat[self._tip]
        relative = frame.T @ tip.reshape(3, 3)
        depth = -float(offset[2])
        lateral = float(np.hypot(offset[0], offset[1]))
        success = depth > LATCHED_DEPTH and d.qpos[self._latch] > -0.0002 and lateral < 0.002
        away = np.abs(d.site_xpos[self._tcp] - self._nominal["body_pos"][self.model.body("jack").id]).max() > 0.15
        return dict(
            lateral_error=lateral,
            offset=offset.copy(),
            depth=depth,
            yaw_error=float(np.arctan2(relative[1, 0], relative[0, 0])),
            success=bool(success),
            failure=bool(away),
        )


def _yaw_quat(yaw: float) -> np.ndarray:
    return np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])


def _limit_norm(vector: np.ndarray, limit: float) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector if norm <= limit else vector * (limit / norm)


def scene(env: EthernetInsertion, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A still picture of plug and jack somewhere about each other, and where they are: for grounding a vision model.

    Returns uint8 [2, S, S, 3] and float32 [4]: the plug's front from the jack's mouth, x, y, height (m), and yaw (rad),
    in the jack's frame.
    """
    env.reset(seed=int(rng.integers(2**31)))
    height = rng.choice(
        [rng.uniform(-0.0112, 0.0), rng.uniform(0.0, 0.006), rng.uniform(0.0, 0.06)], p=[0.15, 0.5, 0.35]
    )
    spread = 0.00013 if height < 0 else min(0.0015 + 0.4 * height, 0.012)
    offset = np.array([*rng.uniform(-spread, spread, 2), height])
    frame = env.data.site_xmat[env._mouth].reshape(3, 3)
    env._target = (
        env.data.site_xpos[env._mouth] + frame @ offset - (env.data.site_xpos[env._tip] - env.data.site_xpos[env._tcp])
    )
    env._target_yaw = env._tool_yaw() + rng.uniform(-0.05, 0.05) * (height > 0)
    env._solve_ik()
    info = env._info()
    images = np.stack([env.camera(name) for name in CAMERAS])
    return images, np.array([*info["offset"], info["yaw_error"]], np.float32)
