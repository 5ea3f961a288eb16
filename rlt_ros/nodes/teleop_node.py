"""The gamepad: interventions while the dead-man is held, and the buttons of an episode."""

from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.gamepad import Gamepad
from rlt_ros.msg import ActionChunk
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_to_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.sim.task import load_task

SERVICES = {"stop": "safety/stop", "release": "safety/release"} | {
    name: f"episode/{name}" for name in ("start", "hand_over", "success", "failure", "abort", "undo", "reset")
}


class TeleopNode(RltNode):
    """Turn the gamepad into human actions and into the calls of the services that the panel calls too.

    Subscribes: joy (Joy; autorepeat must be on and sticky_buttons off in the joy node).
    Publishes: human/command (ActionChunk): one step a tick while the dead-man is held, one with no steps on release.
    Calls: episode/*, safety/stop, safety/release (Trigger).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        axes: list[int] = parameter(
            [1, 0, 4, 3], "index into Joy.axes for each action; -1 or left out: not steered", low=-1
        )
        scale: list[float] = parameter(
            [0.8, 0.8, 0.8, 0.5], "action at full stick; negative inverts", low=-1.0, high=1.0
        )
        deadman: int = parameter(description="index into Joy.buttons of the button that must be held", low=0)
        dead_zone: float = parameter(0.1, "part of the stick's way that counts as zero", low=0.0, high=0.9)
        timeout_s: float = parameter(0.3, "gamepad silent for longer: intervention ends", unit="s", low=0.02)
        buttons: dict = parameter(
            {}, f"buttons.<request>: index into Joy.buttons, -1: none; requests: {', '.join(SERVICES)}"
        )

    def on_configure_(self) -> None:
        unknown = sorted(set(self.params.buttons) - set(SERVICES))
        if unknown:
            raise ParameterError(
                f"{self.get_name()}: buttons.{unknown[0]} is unknown, expected one of {', '.join(SERVICES)}"
            )
        task, p = load_task(self.params.task), self.params
        self.action_dim = task.action_dim
        self.gamepad = Gamepad(p.axes, p.scale, p.deadman, p.dead_zone, p.timeout_s, p.buttons, self.action_dim)
        idle = [name for name, axis in zip(task.action_names, self.gamepad.axes, strict=True) if axis < 0]
        if idle:
            self.get_logger().info(f"no stick steers {', '.join(idle)}; set axes and scale")
        self.commanding = False
        self.commands = self.publish(ActionChunk, "human/command", qos.COMMAND)
        self.requests = {name: self.client(Trigger, SERVICES[name]) for name in p.buttons}
        self.subscribe(Joy, "joy", self.on_joy, qos.EVENT)
        # Late in the tick before: the actor finds the newest stick position at its own phase.
        self.every_tick(self.on_tick, phase=0.9)

    def on_deactivate_(self) -> None:
        if self.commanding:
            self.send(0, np.zeros((0, self.action_dim), np.float32))

    def on_joy(self, msg: Joy) -> None:
        for name in self.gamepad.read(msg.axes, msg.buttons, self.now_s()):
            client = self.requests[name]
            if client.service_is_ready():
                client.call_async(Trigger.Request()).add_done_callback(
                    lambda future, name=name: self.on_answer(name, future)
                )
            else:
                self.get_logger().warning(f"button '{name}': nobody offers {SERVICES[name]}")
        self.problem = self.gamepad.out_of_range

    def on_answer(self, name: str, future) -> None:
        answer = future.result()
        if answer is not None and not answer.success:
            self.get_logger().warning(f"button '{name}': {answer.message}")

    def on_tick(self, tick: int) -> None:
        action = self.gamepad.action(self.now_s())
        if action is not None:
            self.send(tick + 1, action[None])
        elif self.commanding:
            if self.gamepad.lost(self.now_s()):
                self.problem = (
                    f"the gamepad is silent for more than {self.params.timeout_s} s: the intervention has ended; is it"
                    " plugged in, and joy_node alive?"
                )
                self.get_logger().warning(self.problem)
            self.send(tick + 1, np.zeros((0, self.action_dim), np.float32))
        self.commanding = action is not None

    def send(self, tick: int, actions: np.ndarray) -> None:
        self.commands.publish(chunk_to_msg(Chunk(tick, actions, tick, Source.HUMAN), self.control))
