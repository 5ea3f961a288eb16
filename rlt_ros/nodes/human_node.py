"""A person alone drives: in the actor's place where demonstrations are recorded."""

from rlt_ros.core.commander import HUMAN_JOIN_TICKS, Commander, human_timeout_steps
from rlt_ros.msg import ActionChunk
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg, chunk_to_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.sim.task import load_task


class HumanNode(RltNode):
    """Each tick what the person says, by the rules of the Commander that the actor node has too; else hold.

    It knows neither VLA nor policy, and the phase does not matter: the dead-man says who drives. The safety gate has
    the last word as ever.

    Subscribes: human/command (ActionChunk).  Publishes: command/candidate (ActionChunk, every tick).
    """

    def on_configure_(self) -> None:
        p = self.params
        self.action_dim = load_task(p.task).action_dim
        self.commander = Commander(
            action_dim=self.action_dim,
            chunk_steps=p.chunk_steps,
            latency_ticks=p.latency_ticks,
            max_age_ticks=p.max_age_ticks,
            join_ticks=HUMAN_JOIN_TICKS,
            human_timeout=human_timeout_steps(self.control.period_s),
        )
        self.steers = False  # by the newest command
        self.driven_ticks = 0
        self.candidates = self.publish(ActionChunk, "command/candidate", qos.COMMAND)
        self.subscribe(ActionChunk, "human/command", self.on_human, qos.COMMAND)
        self.every_tick(self.on_tick)

    def on_human(self, msg: ActionChunk) -> None:
        chunk = chunk_from_msg(msg, self.action_dim)
        if chunk.steps:  # a release counts whenever it comes
            self.expect_recent("human command", chunk.tick, human_timeout_steps(self.control.period_s))
        self.steers = chunk.steps > 0
        self.commander.set_human(chunk.actions[0] if chunk.steps else None)

    def on_tick(self, tick: int) -> None:
        command = self.commander.step(tick, None)
        self.candidates.publish(chunk_to_msg(command.candidate, self.control))
        self.driven_ticks += not command.hold_reason
        self.problem = command.hold_reason if self.steers and command.hold_reason else ""

    def on_diagnostics_(self) -> dict:
        return {"steers": self.steers, "driven_ticks": self.driven_ticks}
