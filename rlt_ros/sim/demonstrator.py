"""The scripted demonstrator of the Ethernet task: as cautious and imprecise as a person at a gamepad.

It knows where plug and jack are only up to an error of its own, like an eye at a metre's distance, which it draws anew
at every attempt. It comes slowly, pauses over the jack, lowers the plug until it feels a contact, feels about, and
lifts and tries again when it has missed. It is the source of the demonstrations and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlt_ros.sim.task import Task, TaskEnv


STEERS = ("x", "y", "z", "yaw")  # motions, as the person's stick has them


@dataclass(frozen=True)
class Habits:
    """How this person works. Metres, seconds, newtons."""

    sight_error: float = 0.0003  # standard deviation per axis of one look at the offset
    sight_error_yaw: float = 0.01
    approach_speed: tuple[float, float] = (0.03, 0.05)
    lower_speed: tuple[float, float] = (0.010, 0.018)
    pause: tuple[float, float] = (0.2, 0.8)
    hesitation: float = 0.15  # pauses per second that have no reason
    feel: float = 3.0  # force at which a contact is noticed
    tremor: float = 0.02  # of a full stick


class Seen:
    """As much of a TaskEnv as a Demonstrator looks at, told by messages.

    offset: plug tip minus jack mouth [3], m.  yaw_error: rad.  values: proprioception [P].
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.offset, self.yaw_error, self.values = np.full(3, np.nan), np.nan, np.zeros(task.proprio_dim)

    def info(self) -> dict:
        return {"offset": self.offset, "yaw_error": self.yaw_error}

    def proprio(self) -> np.ndarray:
        return self.values


def knows(task: Task) -> bool:
    """Whether the scripted demonstrator can do a task: the Ethernet task, and what is built like it."""
    return task.action_names == STEERS and task.wrench_index == 8


class Demonstrator:
    """``action = step(env)`` once a control tick; normalised float32 [4]."""

    def __init__(self, env: TaskEnv | Seen, rng: np.random.Generator, habits: Habits = Habits()):
        self.rng, self.habits = rng, habits
        self.tick = 1.0 / env.task.rate
        self.scale = np.asarray(env.task.action_scale)
        self.approach_speed = rng.uniform(*habits.approach_speed)
        self.hover = rng.uniform(0.004, 0.009)
        self.state, self.wait = "approach", 0
        self.tremor = np.zeros(4)
        self.last = np.zeros(4)
        self._look(1.0)

    def _look(self, blur: float) -> None:
        h = self.habits
        self.bias = self.rng.normal(0, h.sight_error * blur, 2)
        self.bias_yaw = self.rng.normal(0, h.sight_error_yaw * blur)
        self.lower_speed = self.rng.uniform(*h.lower_speed)

    def _pause(self, factor: float = 1.0) -> None:
        self.wait = int(factor * self.rng.uniform(*self.habits.pause) / self.tick)

    def step(self, env: TaskEnv | Seen) -> np.ndarray:
        info = env.info()
        offset = np.asarray(info["offset"])
        seen = offset[:2] + self.bias
        force = float(np.linalg.norm(env.proprio()[8:11]))
        height = offset[2]
        velocity = np.zeros(3)
        yaw_rate = -1.5 * (info["yaw_error"] + self.bias_yaw)
        if self.wait > 0:
            self.wait -= 1
            yaw_rate = 0.0
        elif self.state == "approach":
            to = np.array([-seen[0], -seen[1], self.hover - height])
            distance = np.linalg.norm(to)
            velocity = to * min(2.5, self.approach_speed / max(distance, 1e-6))
            if distance < 0.0012:
                self.state = "lower"
                self._pause()
        elif self.state == "lower":
            velocity[:2] = -2.5 * seen
            aligned = np.linalg.norm(seen) < 0.0005
            velocity[2] = -self.lower_speed if aligned or height > 0.006 else 0.0
            if height < -0.0015:
                self.state = "push"
            elif force > self.habits.feel and height < 0.002:
                self.state, self.felt = "feel", 0
                self.angle = self.rng.uniform(0, 2 * np.pi)
                self._pause(0.3)
        elif self.state == "feel":
            self.felt += 1
            self.angle += 2 * np.pi * self.tick / 0.9
            velocity[:2] = 0.003 * np.array([np.cos(self.angle), np.sin(self.angle)]) - 1.5 * seen
            velocity[2] = -0.004 if force < 5 else 0.0
            if height < -0.0015:
                self.state = "push"
            elif self.felt > 0.9 / self.tick:
                self.state = "lift"
        elif self.state == "lift":
            velocity[2] = 0.015
            if height > 0.0035:
                self.state = "lower"
                self._look(0.7)
                self._pause()
        elif self.state == "push":
            velocity[2] = -self.lower_speed
            yaw_rate = 0.0
        if (
            self.wait == 0
            and self.state in ("approach", "lower")
            and self.rng.random() < self.habits.hesitation * self.tick
        ):
            self._pause(0.7)
        # From the jack's frame to the base frame: the jack is hardly turned, and a person steers by what is seen.
        action = np.array([*(velocity * self.tick), yaw_rate * self.tick]) / self.scale
        self.tremor = 0.9 * self.tremor + self.rng.normal(0, self.habits.tremor, 4) * 0.44
        moving = self.wait == 0
        self.last = 0.7 * self.last + 0.3 * (action + moving * self.tremor * [1, 1, 1, 0.3])
        return np.clip(self.last, -1, 1).astype(np.float32)
