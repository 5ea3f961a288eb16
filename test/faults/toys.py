"""Small ends of a real graph: an arm that does what it is told, and a VLA that looks at nothing.

Run as a program it is the vla_node with this VLA; its parameter `model` is a file with the seconds of an inference.
"""

import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

HOME = np.array([0.45, 0.0, 0.12])  # m, in the middle of the Ethernet task's workspace
JOINTS = np.array([0.0, 0.2, -0.3, 0.1, 0.05, 0.2])  # rad, far from all limits of its URDF
SPEED, ROUND_S, PULL = 0.25, 2.0, 20.0  # normalised; s for a circle; 1/m, back to the middle
PRESS = -0.15  # normalised, downwards: where the force is too high, nothing is asked for that leads away from it


class Arm(gymnasium.Env):
    """A tool that moves by exactly the action, and cameras that see noise."""

    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
    joint_names = tuple(f"joint{i}" for i in range(1, 7))

    def __init__(self, render_mode: str = "") -> None:
        self.random = np.random.default_rng(0)

    def reset(self, seed: int | None = None, options: dict | None = None):
        self.pose = np.array([*HOME, 0.0])
        return self.seen(), {"success": 0.0}

    def step(self, action: np.ndarray):
        self.pose = self.pose + action
        self.pose[2] = max(self.pose[2], HOME[2])  # it stands on something
        return self.seen(), 0.0, False, False, {"success": 0.0}

    def seen(self) -> dict:
        picture = lambda: self.random.integers(50, 200, (48, 48, 3), dtype=np.uint8)  # noqa: E731
        return {
            "pose": self.pose, "twist": np.zeros(4), "wrench": np.full(6, 0.1), "joint_position": JOINTS,
            "joint_velocity": np.zeros(6), "wrist": picture(), "base": picture(),
        }  # fmt: skip


class Model:
    """The interface of FrozenVLA: references that go round in a circle about HOME."""

    camera_names, image_size = ["wrist", "base"], 32
    proprio_dim, action_dim, horizon, token_dim = 14, 4, 50, 6

    def __init__(self, delay: str) -> None:
        self.delay = Path(delay)

    def infer(self, images: dict, proprio: np.ndarray, prefix: object = None) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(float(self.delay.read_text()))
        angle = 2 * np.pi / ROUND_S * (time.time() + 0.02 * np.arange(self.horizon))
        reference = np.zeros((self.horizon, 4), np.float32)
        reference[:, 0], reference[:, 1] = SPEED * np.cos(angle), SPEED * np.sin(angle)
        reference[:, :2] += (PULL * (HOME - proprio[:3])[:2]).clip(-0.1, 0.1)
        reference[:, 2] = PRESS
        return reference, np.ones(self.token_dim, np.float32)

    def tokens(self, observations: list) -> np.ndarray:
        return np.ones((len(observations), self.token_dim), np.float32)


if __name__ == "__main__":
    from rlt_ros.nodes import vla_node
    from rlt_ros.ros.run import main

    vla_node.load = Model
    sys.exit(main("vla_node"))
