"""The replay: joins what the actor saw with what the robot did, journals it, then offers it for training."""

import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from rclpy.serialization import serialize_message
from std_msgs.msg import UInt64, UInt64MultiArray

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.core.transition import Transition as Recorded
from rlt_ros.data.episodes import EpisodeRecord, append_episode, read_episodes
from rlt_ros.data.journal import Journal, JournalError
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState, SafetyState, Transition
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg, proprio_from_msg, state_from_msg, transition_to_msg
from rlt_ros.ros.definitions import ros2msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.sim.task import load_task

TYPE = "rlt_ros/msg/Transition"
SEND_HZ = 20.0
RETRY_S = 1.0  # between two tries to write to a disk that refuses
WAITING = 1000  # transitions that wait for such a disk, 40 s of critical phase; then the oldest are given up
REMIND_S = 10.0
TELL_S = 1.0


class ReplayNode(RltNode):
    """Stream the transitions of the critical phase, each written to the session's journal before it is published.

    Subscribes: vla/rl_state, vla/reference, proprio, actor/chunk, command/executed, episode/state, safety/state (for
    the list of episodes), replay/request (UInt64: the sequence number from which a learner wants everything again).
    Publishes: replay (Transition), replay/journal (UInt64MultiArray, latched: what the journal has, so that a
    learner knows what to ask for and what to go on without).
    Writes: <session>/journal/*.mcap, <session>/episodes.jsonl.

    While the disk refuses, nothing new is published, since it would not survive; the newest WAITING transitions are
    kept, and the node goes on by itself when the disk takes them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        stride: int = parameter(2, "ticks between stored states", unit="ticks", low=1)
        episode_timeout_s: float = parameter(
            1.0, "episode/state (5 Hz) silent for longer: nothing more is given out until it is heard", unit="s", low=0.3
        )
        sync_ms: int = parameter(
            200,
            "a power cut loses at most what is younger; 0: sync before publishing; -1: the operating system decides",
            unit="ms",
            low=-1,
        )
        catch_up_per_s: float = parameter(2000.0, "transitions sent again to a learner that asks", unit="1/s", low=20.0)

    def on_configure_(self) -> None:
        p = self.params
        self.session = Path(p.session) if p.session else None
        self.journal = Journal(
            self.session / "journal" if self.session else None,
            TYPE,
            ros2msg(TYPE),
            warn=self.get_logger().warning,
            sync_ms=p.sync_ms,
        )
        # What is not in the files yet.
        self.waiting: deque[Recorded] = deque()
        self.unlisted: deque[EpisodeRecord] = deque(maxlen=WAITING)
        self.given_up = 0  # transitions for which there was no room, neither on the disk nor here
        self.retry_s = 0.0
        self.recorder = EpisodeRecorder(
            p.chunk_steps, p.stride, p.latency_ticks, p.max_age_ticks, first_sequence=self.journal.next_sequence,
            angles=load_task(p.task).angle_index,
        )  # fmt: skip
        # After a restart the latched end of an episode that is in the list already must not be listed twice.
        self.listed = {record.index for record in read_episodes(self.session)} if self.session else set()
        # The episode that is being recorded, by number and start: an episode_node that was restarted in the middle of
        # one gives its number again, and the next one's outcome is not that one's.
        self.episode, self.start_tick = -1, -1
        self.heard_s, self.heard_tick = 0.0, -1  # of the newest episode/state
        self.labelled: EpisodeState | None = None  # an end that can still be taken back
        self.critical = False
        self.interventions = self.human_steps = self.policy_version = 0
        self.gate: Counter[str] = Counter()  # since the last episode that is in the list
        self.gate_counts: dict[str, int] | None = None  # as the safety node said last
        self.source = Source.HOLD
        self.token_dim: int | None = None  # as of the first token
        self.replay = self.publish(Transition, "replay", qos.REPLAY)
        self.has = self.publish(UInt64MultiArray, "replay/journal", qos.STATE)
        self.run = time.time_ns()
        self.told: dict[int, int] | None = None  # the holes as published
        self.told_s = 0.0
        # Deep queues: what is lost here is a hole in an episode. What has another size would spoil all that it joins.
        task = load_task(p.task)
        self.action_dim, self.proprio_dim = task.action_dim, task.proprio_dim
        chunk = lambda msg: chunk_from_msg(msg, self.action_dim)  # noqa: E731
        proprio = lambda msg: proprio_from_msg(msg, self.proprio_dim)  # noqa: E731
        self.subscribe(RLState, "vla/rl_state", self.on_state, qos.REPLAY)
        self.subscribe(ActionChunk, "vla/reference", lambda msg: self.recorder.add_reference(chunk(msg)), qos.REPLAY)
        self.subscribe(Proprio, "proprio", lambda msg: self.recorder.add_proprio(*proprio(msg)), qos.RECORD)
        self.subscribe(ActionChunk, "actor/chunk", lambda msg: self.recorder.add_planned(chunk(msg)), qos.REPLAY)
        self.subscribe(ActionChunk, "command/executed", self.on_executed, qos.RECORD)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.subscribe(SafetyState, "safety/state", self.on_safety, qos.STATE)
        self.subscribe(UInt64, "replay/request", lambda msg: self.journal.rewind(msg.data), qos.EVENT)
        self.every(1.0 / SEND_HZ, self.send)

    def on_deactivate_(self) -> None:
        self.commit()
        self.retry_s = 0.0
        self.send()
        if self.waiting or self.unlisted:
            self.get_logger().error(
                f"{len(self.waiting)} transitions and {len(self.unlisted)} episodes are lost: {self.problem}"
            )

    def on_cleanup_(self) -> None:
        self.journal.close()

    def on_state(self, msg: RLState) -> None:
        frame = state_from_msg(msg, self.token_dim, self.proprio_dim)
        self.token_dim = len(frame.token)
        self.recorder.add_token(frame)

    def on_executed(self, msg: ActionChunk) -> None:
        chunk = chunk_from_msg(msg, self.action_dim)
        self.recorder.add_executed(chunk.tick, chunk.actions[0], chunk.source)
        if self.critical:
            self.interventions += chunk.source == Source.HUMAN != self.source
            self.human_steps += chunk.source == Source.HUMAN
        self.policy_version = max(self.policy_version, chunk.policy_version)
        self.source = chunk.source

    def on_episode(self, msg: EpisodeState) -> None:
        labelled = self.labelled
        if labelled is not None and (msg.episode, msg.start_tick) != (labelled.episode, labelled.start_tick):
            self.commit()
        if not self.recorded(msg):
            self.lose_episode()  # the one before, when its outcome was never heard
        self.heard_s, self.heard_tick = self.now_s(), self.control.tick(self.now_ns())
        if msg.phase == Phase.CRITICAL and not self.recorded(msg):
            self.episode, self.start_tick = msg.episode, msg.start_tick
            self.interventions = self.human_steps = self.policy_version = 0
            self.recorder.begin(msg.episode, msg.start_tick, msg.critical_tick)
        self.critical = msg.phase == Phase.CRITICAL
        if self.critical:
            self.recorder.go_on()  # after a silence in which it might have ended
        if msg.phase == Phase.ENDED and self.recorded(msg):
            self.recorder.hold_back(msg.end_tick)
        self.labelled = None
        if msg.outcome != Outcome.NONE and msg.episode not in self.listed:
            self.labelled = msg
            if msg.committed:
                self.commit()

    def on_safety(self, msg: SafetyState) -> None:
        counts = dict(zip(msg.causes, msg.counts))
        before = self.gate_counts
        if before is not None:
            began_anew = any(counts.get(cause, 0) < count for cause, count in before.items())
            self.gate += Counter(counts) - Counter({} if began_anew else before)
        self.gate_counts = counts

    def recorded(self, msg: EpisodeState) -> bool:
        """Whether `msg` is about the episode that is being recorded."""
        return (msg.episode, msg.start_tick) == (self.episode, self.start_tick)

    def commit(self) -> None:
        """The newest label stands: nobody can take it back any more. Harmless without one."""
        if self.labelled is not None:
            msg, self.labelled = self.labelled, None
            self.finish(msg)

    def lose_episode(self) -> None:
        """Nobody will say how the episode ended: what was certain stays, the tail is dropped. Harmless without one."""
        self.recorder.end(self.heard_tick, Outcome.ABORTED)

    def finish(self, msg: EpisodeState) -> None:
        self.listed.add(msg.episode)
        critical = msg.critical_tick >= 0 and self.recorded(msg)
        if critical:
            self.recorder.end(msg.end_tick, Outcome(msg.outcome))
        if self.session is not None:
            self.unlisted.append(
                EpisodeRecord(
                    index=msg.episode,
                    outcome=Outcome(msg.outcome).name.lower(),
                    critical_steps=msg.end_tick - msg.critical_tick if msg.critical_tick >= 0 else 0,
                    total_steps=msg.end_tick - msg.start_tick,
                    interventions=self.interventions if critical else 0,
                    policy_version=self.policy_version if critical else 0,
                    human_steps=self.human_steps if critical else 0,
                    end_s=round(1e-9 * self.control.stamp_ns(msg.end_tick), 3),
                    gate=dict(self.gate),
                )
            )
            self.gate.clear()
            self.store()

    def send(self) -> None:
        if self.now_s() - self.heard_s > self.params.episode_timeout_s:
            self.commit()  # a label that was given is not lost with the node that took it
            self.recorder.hold_back(self.heard_tick)
        self.waiting.extend(self.recorder.ready())
        while len(self.waiting) > WAITING and self.problem:
            self.waiting.popleft()
            self.given_up += 1
        self.store()
        for data in self.journal.take(round(self.params.catch_up_per_s / SEND_HZ)):
            self.replay.publish(data)
        self.tell()

    def tell(self) -> None:
        """Say what the journal has: run, its first number, one past the newest given out, then pairs: lost from, to."""
        journal, now_s = self.journal, time.monotonic()
        if journal.holes != self.told or now_s - self.told_s > TELL_S:
            self.told, self.told_s = dict(journal.holes), now_s
            numbers = [self.run, journal.begins, journal.given]
            for hole in self.told.items():
                numbers += hole
            self.has.publish(UInt64MultiArray(data=array("Q", numbers)))

    def store(self) -> None:
        """Write what waits. When the disk refuses, say so and try again a little later."""
        if self.now_s() < self.retry_s:
            return
        session = self.session.name if self.session else ""
        try:
            while self.waiting:
                # Numbered here: whatever never came to the journal leaves no gap.
                self.waiting[0].sequence = self.journal.next_sequence
                msg = transition_to_msg(self.waiting[0], session, self.control)
                self.journal.append(serialize_message(msg), self.now_ns())
                self.waiting.popleft()
            self.journal.sync(within_s=1.0 / SEND_HZ)
            while self.unlisted:
                append_episode(self.session, self.unlisted[0])
                self.unlisted.popleft()
        except (JournalError, OSError) as error:
            self.retry_s = self.now_s() + RETRY_S
            self.problem = (
                f"{error}; nothing new is recorded or trained on until then, and only the newest {WAITING} transitions"
                " wait for it. It goes on by itself"
            )
            self.get_logger().error(self.problem, throttle_duration_sec=REMIND_S)
            return
        if self.problem:
            self.get_logger().warning(f"recording again; {self.given_up} transitions were given up so far")
            self.problem = ""

    def on_diagnostics_(self) -> dict:
        return {
            "transitions": self.journal.next_sequence,
            "waiting_for_disk": len(self.waiting),
            "given_up": self.given_up,
        } | {f"skipped_{k}": n for k, n in self.recorder.skipped.items()}
