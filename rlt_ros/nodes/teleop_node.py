"""The gamepad: interventions while the dead-man is held, and the buttons of an episode."""

from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.gamepad import REQUESTS, Gamepad, from_tool, load_layout
from rlt_ros.msg import ActionChunk, Proprio
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg, proprio_from_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.processes import gamepad_file
from rlt_ros.sim.task import load_task, task_folder

SERVICES = {name: f"{'safety' if name in ('stop', 'release') else 'episode'}/{name}" for name in REQUESTS}
POSE_TIMEOUT_S = 0.1  # an older yaw of the tool is not steered by
YAW = 3  # of the pose's x y z yaw


class TeleopNode(RltNode):
    """Turn the gamepad into human actions and into the calls of the services that the panel calls too.

    Subscribes: joy (Joy; autorepeat must be on and sticky_buttons off in the joy node); with frame `tool` proprio.
    Publishes: human/command (ActionChunk): one step a tick while the dead-man is held, one with no steps on release.
    Calls: episode/*, safety/stop, safety/release (Trigger).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        gamepad: str = parameter("xbox", "what is where on it: a name in config/gamepads, or the path of a file")
        frame: str = parameter(
            "base", "along whose axes x and y steer; the tool's are turned by its yaw", choices=("base", "tool")
        )
        steer: dict = parameter(
            {}, "steer.<action>: motion of the gamepad file that steers it, -x to invert; left out: that of its name"
        )
        timeout_s: float = parameter(0.3, "gamepad silent for longer: intervention ends", unit="s", low=0.02)

    def on_configure_(self) -> None:
        task, p = load_task(self.params.task), self.params
        try:
            self.layout = load_layout(gamepad_file(task_folder().parents[1], p.gamepad))
            self.gamepad = Gamepad(self.layout, task.action_names, p.steer, p.timeout_s)
        except (OSError, ValueError) as error:
            raise ParameterError(f"{self.get_name()}: {error}") from None
        self.task, self.action_dim = task, task.action_dim
        self.say_what_is_on_nothing()
        self.yaw, self.yaw_s = 0.0, -np.inf
        if p.frame == "tool":
            self.look_at_the_tool()
        self.commanding = self.blind = False
        self.commands = self.publish(ActionChunk, "human/command", qos.COMMAND)
        self.requests = {name: self.client(Trigger, SERVICES[name]) for name in self.layout.buttons}
        self.subscribe(Joy, "joy", self.on_joy, qos.EVENT)
        # Late in the tick before: the actor finds the newest stick position at its own phase.
        self.every_tick(self.on_tick, phase=0.9)

    def say_what_is_on_nothing(self) -> None:
        if self.gamepad.idle:
            self.get_logger().info(
                f"the gamepad file '{self.layout.name}' steers no {', '.join(self.gamepad.idle)}; it has"
                f" {', '.join(self.layout.motions) or 'no motions'}; set steer.{self.gamepad.idle[0]} to one of them"
            )
        if none := [name for name in REQUESTS if name not in self.layout.buttons]:
            self.get_logger().info(
                f"on no button of '{self.layout.name}': {', '.join(none)}; the panel and the services have them"
            )

    def look_at_the_tool(self) -> None:
        """Hear the tool's yaw."""
        parts, names = [part.key for part in self.task.state], self.task.action_names
        if "pose" not in parts or not {"x", "y"} <= set(names):
            raise ParameterError(
                f"{self.get_name()}: parameter 'frame' is 'tool', but task '{self.task.name}' has actions"
                f" {', '.join(names)} and state {', '.join(parts)}; it needs x, y and a pose; set frame: base"
            )
        sizes = [part.size for part in self.task.state]
        self.yaw_index = sum(sizes[: parts.index("pose")]) + YAW
        self.xy = names.index("x"), names.index("y")
        self.subscribe(Proprio, "proprio", self.on_proprio, qos.SENSOR)

    def on_deactivate_(self) -> None:
        if self.commanding:
            self.send(0, np.zeros((0, self.action_dim), np.float32))

    def on_proprio(self, msg: Proprio) -> None:
        _, values = proprio_from_msg(msg, self.task.proprio_dim)
        self.yaw, self.yaw_s = float(values[self.yaw_index]), self.now_s()

    def on_joy(self, msg: Joy) -> None:
        for name in self.gamepad.read(msg.axes, msg.buttons, self.now_s()):
            client = self.requests[name]
            if client.service_is_ready():
                client.call_async(Trigger.Request()).add_done_callback(
                    lambda future, name=name: self.on_answer(name, future)
                )
            else:
                self.get_logger().warning(f"button '{name}': nobody offers {SERVICES[name]}")
        if self.gamepad.misfit and self.gamepad.misfit != self.error:
            self.get_logger().error(self.gamepad.misfit)
        self.error, self.problem = self.gamepad.misfit, self.gamepad.oddity
        # Taking over and letting go are passed on at once: what comes after this node's tick is not a tick late.
        # Simulated time has its order of things, and nothing comes late.
        if (self.gamepad.action(self.now_s()) is not None) != self.commanding and not self.simulated_time:
            self.on_tick(self.control.tick(self.now_ns()))

    def on_answer(self, name: str, future) -> None:
        answer = future.result()
        if answer is not None and not answer.success:
            self.get_logger().warning(f"button '{name}': {answer.message}")

    def on_tick(self, tick: int) -> None:
        action = self.gamepad.action(self.now_s())
        if action is not None:
            self.send(tick + 1, self.in_base(action)[None])
        elif self.commanding:
            if self.gamepad.lost(self.now_s()):
                self.problem = (
                    f"the gamepad is silent for more than {self.params.timeout_s} s: the intervention has ended; is it"
                    " plugged in, and its driver alive?"
                )
                self.get_logger().warning(self.problem)
            self.send(tick + 1, np.zeros((0, self.action_dim), np.float32))
        self.commanding = action is not None
        self.blind &= self.commanding

    def in_base(self, action: np.ndarray) -> np.ndarray:
        """The action in the base frame; without a fresh yaw a tool stands still in the person's hand."""
        if self.params.frame == "base":
            return action
        self.blind = self.now_s() - self.yaw_s > POSE_TIMEOUT_S
        if self.blind:
            return np.zeros_like(action)
        return from_tool(action, self.xy, self.task.action_scale, self.yaw)

    def send(self, tick: int, actions: np.ndarray) -> None:
        self.commands.publish(chunk_to_msg(Chunk(tick, actions, tick, Source.HUMAN), self.control))

    def on_diagnostics_(self) -> dict:
        if self.blind:
            self.problem = f"frame is 'tool', but no proprio for {POSE_TIMEOUT_S} s says how it is turned: it stands"
        return {
            "gamepad": self.params.gamepad,
            "steering": self.commanding,
            "slow": self.gamepad.slow,
            "not_steered": ", ".join(self.gamepad.idle),
        }
