"""The state machine of an episode, behind services."""

from dataclasses import dataclass
from pathlib import Path

from rlt_ros.core.episode import EpisodeMachine, Outcome, Phase
from rlt_ros.data.episodes import read_episodes
from rlt_ros.msg import ActionChunk, EpisodeState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task

SERVICES = ("start", "hand_over", "success", "failure", "abort", "undo", "reset")


class EpisodeNode(RltNode):
    """Panel, gamepad and simulated person call the same services; what is not allowed now is refused with the reason.

    Subscribes: human/command (ActionChunk), to count it.
    Services: episode/start, hand_over, success, failure, abort, undo, reset (Trigger).
    Publishes: episode/state (EpisodeState, latched, on change and at 5 Hz).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        critical_timeout_s: float = parameter(0.0, "longest critical phase; 0: as in the task file", unit="s", low=0.0)
        approach_timeout_s: float = parameter(0.0, "longest approach; 0: as in the task file", unit="s", low=0.0)
        undo_s: float = parameter(3.0, "a label can be taken back for so long, or until the reset", unit="s", low=0.0)
        reaction_s: float = parameter(
            0.0, "labels count for so much earlier than the press", unit="s", low=0.0, high=1.0
        )
        label_any_time: bool = parameter(
            False, "success and failure may be said without a hand-over: for demonstrations, that a person drives"
        )

    def on_configure_(self) -> None:
        task, p = load_task(self.params.task), self.params
        ticks = lambda seconds: round(seconds * p.rate_hz)  # noqa: E731
        self.machine = EpisodeMachine(
            timeout_ticks=ticks(p.critical_timeout_s or task.critical_timeout),
            approach_timeout_ticks=ticks(p.approach_timeout_s or task.approach_timeout),
            undo_ticks=ticks(p.undo_s),
            reaction_ticks=ticks(p.reaction_s),
            label_any_time=p.label_any_time,
        )
        # A resumed session goes on counting where its list ends.
        done = read_episodes(Path(p.session)) if p.session else []
        self.machine.episode = max((record.index for record in done), default=0)
        self.helped, self.human_commands = 0, 0  # in which episode a person did, and how often
        self.state = self.publish(EpisodeState, "episode/state", qos.STATE)
        self.subscribe(ActionChunk, "human/command", self.on_human, qos.COMMAND, raw=True)
        for name in SERVICES:
            self.trigger(f"episode/{name}", lambda name=name: self.request(name))
        self.every_tick(self.on_tick)
        self.every(0.2, self.send)

    def request(self, name: str) -> str:
        getattr(self.machine, name)(self.control.tick(self.now_ns()))
        self.send()
        return f"episode {self.machine.episode}: {self.machine.phase.name}"

    def on_human(self, _: bytes) -> None:
        if self.machine.phase == Phase.CRITICAL:
            again = self.helped == self.machine.episode
            self.helped, self.human_commands = self.machine.episode, 1 + (self.human_commands if again else 0)

    def on_tick(self, tick: int) -> None:
        if self.machine.step(tick):
            self.send()

    def on_diagnostics_(self) -> dict:
        return {"label_any_time": self.params.label_any_time}  # the panel asks before it switches a button off

    def send(self) -> None:
        m = self.machine
        self.state.publish(
            EpisodeState(
                header=header(self.now_ns()),
                episode=m.episode,
                phase=int(m.phase),
                outcome=int(m.outcome),
                start_tick=m.start_tick,
                critical_tick=m.critical_tick,
                end_tick=m.end_tick,
                committed=m.committed,
                successes=m.counters[Outcome.SUCCESS],
                failures=m.counters[Outcome.FAILURE],
                timeouts=m.counters[Outcome.TIMEOUT],
                aborts=m.counters[Outcome.ABORTED],
                human_commands=self.human_commands if self.helped == m.episode else 0,
            )
        )
