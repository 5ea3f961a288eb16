"""The learner: trains on the replay topic and pushes weights to the actor."""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from std_msgs.msg import UInt64, UInt64MultiArray

from rlt_ros.core.device import require_device
from rlt_ros.core.learner import Learner, checkpoint_dims
from rlt_ros.core.networks import Dims
from rlt_ros.core.td3 import TD3Config
from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Outcome, Phase, Score
from rlt_ros.core.transition import Transition
from rlt_ros.core.weights import read_key, sign
from rlt_ros.msg import EpisodeState, LearnerStatus, PolicyWeights
from rlt_ros.msg import Transition as TransitionMsg
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header, packed, transition_from_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.ros.stored import journal_of, stored_transitions
from rlt_ros.sim.task import load_task

SLICE_EVERY_S = 0.005
ASK_EVERY_S = 1.0  # twice as long after each request for the same transition, up to
ASK_AT_LEAST_S = 60.0
BEHIND = 25  # transitions whose updates are still owed, from which on simulated time waits: a second of data
IN_STATUS = ("critic_loss", "actor_loss", "q_mean", "anchor", "td_error", "prior_share")
CURVES = (*IN_STATUS, "q_max", "critic_grad", "actor_grad")
Q_TOLERANCE = 0.2  # returns are within [0, 1]; a Q further out than this is an alarm
ANCHOR_ALARM = 0.5  # mean square distance of the actor's chunk to the reference, of at most 4


class LearnerNode(RltNode):
    """Train in short slices between messages, at the update-to-data ratio; save; resume; ask for what was missed.

    Subscribes: replay (Transition), replay/journal (UInt64MultiArray, latched: what of it there is), episode/state.
    Publishes: replay/request (UInt64), learner/weights (PolicyWeights, latched), learner/status (LearnerStatus, 1 Hz).
    Writes: <session>/checkpoints/learner.ckpt, <session>/metrics (TensorBoard).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        publish_hz: float = parameter(4.0, "weights at most so often", unit="Hz", low=0.1, high=50.0)
        checkpoint_s: float = parameter(20.0, "time between checkpoints", unit="s", low=1.0)
        slice_ms: float = parameter(20.0, "training between two looks at the messages", unit="ms", low=1.0, high=1000.0)
        threads: int = parameter(1, "torch threads", low=1)
        device: str = parameter("cpu", "where it computes", choices=("cpu", "cuda"))
        keep_checkpoints: int = parameter(5, "older checkpoints kept beside the newest", low=0)
        stale_s: float = parameter(30.0, "no transition for so long in a critical phase: alarm", unit="s", low=1.0)
        prior: list[str] = parameter([], "folders of earlier sessions whose transitions are prior data")
        beta: float = parameter(-1.0, "weight of the anchor; -1: as in td3.beta", low=-1.0, high=10.0, live=True)
        td3: dict = parameter({}, "td3.<name>: hyper-parameters, see rlt_ros/core/td3.py; td3.preset: td3 or rlpd")

    def on_configure_(self) -> None:
        import torch

        torch.set_num_threads(self.params.threads)
        require_device(self.params.device)
        self.config = TD3Config.from_mapping(self.params.td3)
        self.task = load_task(self.params.task)
        self.session = Path(self.params.session) if self.params.session else None
        self.curves = None
        if self.session is not None:
            (self.session / "metrics").mkdir(parents=True, exist_ok=True)
        self.key = read_key(self.params.weights_key_file) if self.params.weights_key_file else None
        for folder in self.params.prior:
            journal_of(folder)  # complain at once, not at the first transition
        self.score = Score()
        self.unsaved = ""  # why the newest checkpoint could not be written
        self.renumbered = ""  # what the journal lost that was learned from
        self.steps = self.human_steps = 0
        self.heard_s = self.now_s()  # of the newest transition, or of the beginning of the critical phase
        self.means: dict[str, float] = {}  # of the last second
        self.learner: Learner | None = None
        self.published_updates = 0
        self.asked, self.times = 0, 0  # the transition that was asked for last, and how often
        self.asked_s = self.advanced_s = float("-inf")  # of the newest request, and of the newest that was waited for
        self.journal: list[int] = []  # as the replay said last
        self.heard = 0  # one more than the highest sequence number that was heard
        self.counted = (time.monotonic(), 0)
        self.sums: dict[str, float] = defaultdict(float)
        checkpoint = self.session / "checkpoints" / "learner.ckpt" if self.session else None
        if checkpoint is not None and checkpoint.exists():
            learner = self.make_learner(checkpoint_dims(checkpoint))
            learner.load()
            if self.params.beta >= 0.0:
                learner.set("beta", self.params.beta)
            self.learner = learner
            self.save()  # the versions from here on are never given twice
            self.counted = (time.monotonic(), self.learner.updates)
            self.get_logger().info(f"resumed {checkpoint}: {self.learner.updates} updates")
        self.weights = self.publish(PolicyWeights, "learner/weights", qos.STATE)
        self.status = self.publish(LearnerStatus, "learner/status", qos.EVENT)
        self.request = self.publish(UInt64, "replay/request", qos.EVENT)
        self.subscribe(TransitionMsg, "replay", self.on_transition, qos.REPLAY)
        self.subscribe(UInt64MultiArray, "replay/journal", self.on_journal, qos.STATE)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        for period_s, action in (
            (SLICE_EVERY_S, self.train),
            (1.0 / self.params.publish_hz, self.publish_weights),
            (1.0, self.report),
            (0.05, self.catch_up),
            (self.params.checkpoint_s, self.save),
        ):
            self.every(period_s, action, wall=True)

    def owed_ns(self) -> int | None:
        behind = self.learner is not None and self.learner.due() > self.config.utd * BEHIND
        return self.now_ns() + 1 if behind else None

    def on_deactivate_(self) -> None:
        self.save()

    def on_cleanup_(self) -> None:
        if self.curves is not None:
            self.curves.close()

    def make_curves(self):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.session / "metrics"), flush_secs=10)

    def make_learner(self, dims: Dims) -> Learner:
        """One with all prior data. RuntimeError, which ends the node, when some of it does not fit."""
        wanted = Dims(
            token=dims.token,
            rl_proprio=2 * self.task.proprio_dim,
            action=self.task.action_dim,
            chunk=self.params.chunk_steps,
        )
        if dims != wanted:
            raise ValueError(
                f"this session has {dims}, task '{self.task.name}' needs {wanted}; take another session folder"
            )
        learner = Learner(self.config, dims, self.session, self.task.proprio_scale, self.params.device)
        for folder in self.params.prior:
            try:
                for transition in stored_transitions(Path(folder), self.get_logger().warning):
                    learner.add_prior(transition, folder)
            except ValueError as error:
                raise RuntimeError(
                    f"prior session {folder}: {error}; take it out of `prior`, or take one of the same VLA and task"
                ) from error
            self.get_logger().info(f"{learner.buffer.kept} transitions of prior data after {folder}")
        if self.params.beta >= 0.0:
            learner.set("beta", self.params.beta)
        return learner

    def on_parameters_(self) -> None:
        if self.learner is not None:
            self.learner.set("beta", self.params.beta if self.params.beta >= 0.0 else self.config.beta)

    def on_episode(self, msg: EpisodeState) -> None:
        if msg.phase == Phase.CRITICAL and self.score.phase != Phase.CRITICAL:
            self.heard_s = self.now_s()
        outcome = Outcome(msg.outcome) if msg.committed else Outcome.NONE
        ticks = msg.end_tick - msg.critical_tick
        self.score.see(msg.episode, Phase(msg.phase), outcome, ticks, self.now_s(), msg.human_commands > 0)

    def on_transition(self, msg: TransitionMsg) -> None:
        try:
            transition = transition_from_msg(msg)
            if self.learner is None:
                self.learner = self.make_learner(dims_of(transition))
                self.follow()
            before = self.learner.next_sequence
            new = self.learner.add(transition)
        except ValueError:
            if self.learner is not None:
                self.learner.give_up(msg.sequence, msg.sequence + 1)  # it would come again as it is
            raise
        self.heard_s = self.now_s()
        self.heard = max(self.heard, msg.sequence + 1)
        if new:
            self.steps += transition.steps
            self.human_steps += int((transition.sources[:transition.steps] == Source.HUMAN).sum())
        if self.learner.next_sequence > before:
            self.advanced_s = time.monotonic()

    def on_journal(self, msg: UInt64MultiArray) -> None:
        self.journal = list(msg.data)
        self.follow()

    def follow(self) -> None:
        """Take the replay's numbers as it gives them now, and go on without what it says is lost."""
        if self.learner is None or not self.journal:
            return
        run, begins = self.journal[:2]
        anew = self.learner.follow(run, begins)
        if anew:
            self.heard = begins
            self.renumbered = (
                f"replay_node began again and numbers from {begins}: {anew} transitions that were learned from are no"
                " longer stored; new ones are learned from, but a restarted learner lacks the old; for practice that"
                " lasts give a session, and sync_ms 0 against power cuts"
            )
            self.get_logger().error(self.renumbered)
        for first, end in zip(self.journal[3::2], self.journal[4::2]):
            lost = self.learner.give_up(first, end)
            if lost:
                self.get_logger().error(
                    f"the replay has lost {lost} transitions from number {first} to {end - 1}; going on without them"
                )

    def catch_up(self) -> None:
        """Ask for what is missing: at once after a restart, which must not lose a second; not while it is coming."""
        sequence = 0 if self.learner is None else self.learner.next_sequence
        given = self.journal[2] if self.journal else 1  # not heard of yet: ask, in case
        if sequence < max(given, self.heard):
            self.ask(sequence)

    def ask(self, sequence: int) -> None:
        """Ask the replay for everything from `sequence` on. Seldom: each time it begins anew there."""
        times = self.times if sequence == self.asked else 0
        wait_s = min(ASK_EVERY_S * 2 ** max(0, times - 1), ASK_AT_LEAST_S)
        now_s = time.monotonic()
        if now_s - max(self.asked_s, self.advanced_s) < wait_s or self.request.get_subscription_count() == 0:
            return
        self.asked, self.times, self.asked_s = sequence, times + 1, now_s
        self.request.publish(UInt64(data=sequence))

    def train(self) -> None:
        if self.learner is None:
            return
        end_s = time.monotonic() + self.params.slice_ms * 1e-3
        while self.learner.due() and time.monotonic() < end_s:
            metrics = self.learner.step()
            self.sums["n"] += 1
            for name in CURVES:
                self.sums[name] += metrics[name]

    def publish_weights(self) -> None:
        learner = self.learner
        if learner is None or not learner.warm() or learner.updates == self.published_updates:
            return
        self.published_updates = learner.updates
        data, sha256, version = learner.publish()
        self.weights.publish(
            PolicyWeights(
                header=header(self.now_ns()),
                version=version,
                updates=learner.updates,
                sha256=sha256,
                hmac=sign(data, self.key),
                data=packed(np.frombuffer(data, np.uint8), "B"),
            )
        )

    def report(self) -> None:
        learner = self.learner
        if learner is None:
            return
        now_s, (then_s, then_updates) = time.monotonic(), self.counted
        rate = (learner.updates - then_updates) / (now_s - then_s)
        self.counted = (now_s, learner.updates)
        trained = self.sums["n"] > 0
        if trained:
            self.means = {name: self.sums[name] / self.sums["n"] for name in CURVES}
        self.sums = defaultdict(float)
        means = {name: self.means.get(name, 0.0) for name in CURVES}
        more = {
            "human_share": self.human_steps / max(1, self.steps),
            "updates_per_transition": learner.metrics["updates_per_transition"],
            "beta": learner.td3.anchor_weight(),
            "success_rate": self.score.success_rate,
            "median_steps": self.score.median_steps,
            "successes_per_10min": self.score.successes_per_10min,
        }
        self.status.publish(
            LearnerStatus(
                header=header(self.now_ns()),
                updates=learner.updates,
                version=learner.version,
                replay_size=len(learner.buffer),
                transitions=learner.transitions,
                updates_per_s=rate,
                warm=learner.warm(),
                **{name: means[name] for name in IN_STATUS},
                critic_gradient=means["critic_grad"],
                actor_gradient=means["actor_grad"],
                **more,
            )
        )
        if self.session is not None and trained and self.curves is None:
            self.curves = self.make_curves()  # its import takes most of a second, which a restart need not wait for
        if self.curves is not None and trained:
            for name, value in {**means, **more, "updates_per_s": rate, "replay_size": len(learner.buffer)}.items():
                self.curves.add_scalar(name, value, learner.updates)

    def save(self) -> None:
        if self.learner is not None and self.session is not None:
            try:
                self.learner.save(keep=self.params.keep_checkpoints)
                self.unsaved = ""
            except OSError as error:  # learning goes on; the next one may find room
                self.unsaved = f"checkpoint not written ({error}); make room in {self.session}"
                self.get_logger().error(self.unsaved, throttle_duration_sec=10.0)

    def alarm(self) -> str:
        """What is wrong with the learning, or ""."""
        if self.unsaved:
            return self.unsaved
        q, anchor = self.means.get("q_max", 0.0), self.means.get("anchor", 0.0)
        low = self.means.get("q_mean", 0.0)
        if not (q <= 1.0 + Q_TOLERANCE and low >= -Q_TOLERANCE):  # or no number
            return f"Q is out of range: mean {low:.2f}, largest {q:.2f}, returns are within [0, 1]"
        if anchor > ANCHOR_ALARM:
            return (
                f"the actor is far from the reference: mean square {anchor:.2f}, more than {ANCHOR_ALARM}; raise beta"
            )
        silent_s = self.now_s() - self.heard_s
        if self.score.phase == Phase.CRITICAL and silent_s > self.params.stale_s:
            return f"no transition for {silent_s:.0f} s although the critical phase is on; is replay_node alive?"
        return self.renumbered

    def on_diagnostics_(self) -> dict:
        self.problem = self.alarm()
        return (
            {}
            if self.learner is None
            else {
                "updates": self.learner.updates,
                "owed": self.learner.due(),
                "forgiven": self.learner.forgiven,
                "successes": self.learner.successes,
                "warm_up": self.learner.waiting_for(),
                "version": self.learner.version,
                "missing_from": self.learner.next_sequence,
            }
        )


def dims_of(transition: Transition) -> Dims:
    """Sizes of the networks that fit a transition."""
    chunk, action = transition.action.shape
    return Dims(token=len(transition.token), rl_proprio=len(transition.proprio), action=action, chunk=chunk)
