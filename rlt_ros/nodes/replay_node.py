"""The replay: joins what the actor saw with what the robot did, journals it, then offers it for training."""

import time
from dataclasses import dataclass
from pathlib import Path

from rclpy.serialization import serialize_message
from std_msgs.msg import UInt64

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.data.journal import Journal
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState, Transition
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg, proprio_from_msg, state_from_msg, transition_to_msg
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter

TYPE = "rlt_ros/msg/Transition"
SEND_HZ = 20.0


class ReplayNode(RltNode):
    """Stream the transitions of the critical phase, each written to the session's journal before it is published.

    Subscribes: vla/rl_state, vla/reference, proprio, actor/chunk, command/executed, episode/state, replay/request
    (UInt64: the sequence number from which a learner wants everything again).  Publishes: replay (Transition).
    Writes: <session>/journal/*.mcap, <session>/episodes.jsonl.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        stride: int = parameter(2, "ticks between stored states", unit="ticks", low=1)
        episode_timeout_s: float = parameter(
            1.0, "episode/state (5 Hz) silent for longer: the episode is lost, its tail dropped", unit="s", low=0.3
        )
        catch_up_per_s: float = parameter(2000.0, "transitions sent again to a learner that asks", unit="1/s", low=20.0)

    def on_configure_(self) -> None:
        p = self.params
        self.session = Path(p.session) if p.session else None
        self.journal = Journal(
            self.session / "journal" if self.session else None, TYPE, ros2msg(TYPE), warn=self.get_logger().warning
        )
        self.recorder = EpisodeRecorder(
            p.chunk_steps, p.stride, p.latency_ticks, p.max_age_ticks, first_sequence=self.journal.next_sequence
        )
        # After a restart the latched end of an episode that is in the list already must not be listed twice.
        self.listed = {record.index for record in read_episodes(self.session)} if self.session else set()
        # The episode that is being recorded, by number and start: an episode_node that was restarted in the middle of
        # one gives its number again, and the next one's outcome is not that one's.
        self.episode, self.start_tick = -1, -1
        self.heard_s, self.heard_tick = 0.0, -1  # of the newest episode/state
        self.interventions = self.policy_version = 0
        self.source = Source.HOLD
        self.replay = self.publish(Transition, "replay", qos.REPLAY)
        # Deep queues: what is lost here is a hole in an episode.
        self.subscribe(RLState, "vla/rl_state", lambda msg: self.recorder.add_token(state_from_msg(msg)), qos.REPLAY)
        self.subscribe(
            ActionChunk, "vla/reference", lambda msg: self.recorder.add_reference(chunk_from_msg(msg)), qos.REPLAY
        )
        self.subscribe(Proprio, "proprio", lambda msg: self.recorder.add_proprio(*proprio_from_msg(msg)), qos.RECORD)
        self.subscribe(
            ActionChunk, "actor/chunk", lambda msg: self.recorder.add_planned(chunk_from_msg(msg)), qos.REPLAY
        )
        self.subscribe(ActionChunk, "command/executed", self.on_executed, qos.REPLAY)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.subscribe(UInt64, "replay/request", lambda msg: self.journal.rewind(msg.data), qos.EVENT)
        self.every(1.0 / SEND_HZ, self.send)

    def on_deactivate_(self) -> None:
        self.send()

    def on_cleanup_(self) -> None:
        self.journal.close()

    def on_executed(self, msg: ActionChunk) -> None:
        chunk = chunk_from_msg(msg)
        self.recorder.add_executed(chunk.tick, chunk.actions[0], chunk.source)
        self.interventions += chunk.source == Source.HUMAN != self.source
        self.policy_version = max(self.policy_version, chunk.policy_version)
        self.source = chunk.source

    def on_episode(self, msg: EpisodeState) -> None:
        if not self.recorded(msg):
            self.lose_episode()  # the one before, when its outcome was never heard
        self.heard_s, self.heard_tick = time.monotonic(), self.control.tick(self.now_ns())
        if msg.phase == Phase.CRITICAL and not self.recorded(msg):
            self.episode, self.start_tick = msg.episode, msg.start_tick
            self.interventions = self.policy_version = 0
            self.recorder.begin(msg.episode, msg.start_tick, msg.critical_tick)
        if msg.outcome != Outcome.NONE and msg.episode not in self.listed:
            self.finish(msg)

    def recorded(self, msg: EpisodeState) -> bool:
        """Whether `msg` is about the episode that is being recorded."""
        return (msg.episode, msg.start_tick) == (self.episode, self.start_tick)

    def lose_episode(self) -> None:
        """Nobody will say how the episode ended: what was certain stays, the tail is dropped. Harmless without one."""
        self.recorder.end(self.heard_tick, Outcome.ABORTED)

    def finish(self, msg: EpisodeState) -> None:
        self.listed.add(msg.episode)
        critical = msg.critical_tick >= 0 and self.recorded(msg)
        if critical:
            self.recorder.end(msg.end_tick, Outcome(msg.outcome))
        if self.session is not None:
            append_episode(
                self.session,
                EpisodeRecord(
                    index=msg.episode,
                    outcome=Outcome(msg.outcome).name.lower(),
                    critical_steps=msg.end_tick - msg.critical_tick if msg.critical_tick >= 0 else 0,
                    total_steps=msg.end_tick - msg.start_tick,
                    interventions=self.interventions if critical else 0,
                    policy_version=self.policy_version if critical else 0,
                ),
            )

    def send(self) -> None:
        session = self.session.name if self.session else ""
        if time.monotonic() - self.heard_s > self.params.episode_timeout_s:
            self.lose_episode()
        for transition in self.recorder.ready():
            msg = transition_to_msg(transition, session, self.control)
            self.journal.append(serialize_message(msg), self.now_ns())
        for data in self.journal.take(round(self.params.catch_up_per_s / SEND_HZ)):
            self.replay.publish(data)

    def on_diagnostics_(self) -> dict:
        return {"transitions": self.journal.next_sequence} | {
            f"skipped_{k}": n for k, n in self.recorder.skipped.items()
        }
