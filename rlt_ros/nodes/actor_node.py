"""The critical-phase actor at control rate: who drives at this tick, and what."""

from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlt_ros.core.commander import Commander, human_timeout_steps
from rlt_ros.core.episode import Phase
from rlt_ros.core.latest import LatestWorker
from rlt_ros.core.networks import Actor
from rlt_ros.core.weights import WeightsRejected, pack, read_key, sign, unpack
from rlt_ros.msg import ActionChunk, EpisodeState, PolicyWeights, Proprio, RLState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import chunk_from_msg, packed
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter
from rlt_ros.ros.rivals import Sender
from rlt_ros.ros.wire import chunk_to_wire, proprio_from_wire, state_from_wire
from rlt_ros.sim.task import load_task

RUNNING = (Phase.APPROACH, Phase.CRITICAL)
ARRIVALS = 250  # ticks over which it is judged when proprioception comes
HELD_S = 0.5  # a running episode that is held for longer is reported; at its start the first reference takes its time


class ActorNode(RltNode):
    """Each tick: human, warm-up reference or refined chunk, by the Commander's rules; hold when something is missing.

    A tick's command is computed as soon as the tick has begun and its own proprioception is there, at the latest at
    `phase`, with what is there then.

    Subscribes: proprio, vla/rl_state, vla/reference, human/command, episode/state, learner/weights.
    Publishes: command/candidate (ActionChunk, every tick), actor/chunk (ActionChunk, each new chunk of C steps).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        exploration_std: float = parameter(
            0.05, "fixed standard deviation of the acting noise, normalised action", low=0.0, high=1.0, live=True
        )
        lookahead_steps: int = parameter(
            3, "actions in a candidate, to bridge a lost message", unit="ticks", low=1, high=10
        )
        join_ticks: int = parameter(
            4, "a chunk begins with the action before it and is itself so much later; 0: at once", unit="ticks", low=0
        )
        phase: float = parameter(
            0.2, "part of the tick that its own proprioception is waited for; 0: not at all", low=0.0, high=0.9
        )
        proprio_timeout_s: float = parameter(0.1, "proprioception older than this: hold", unit="s", low=0.02)
        episode_timeout_s: float = parameter(
            1.0, "episode/state (5 Hz) silent for longer in a running episode: hold", unit="s", low=0.3
        )
        weights: str = parameter(
            "learner", "where the policy comes from: learner, or session: its newest checkpoint, and no other",
            choices=("learner", "session"),
        )  # fmt: skip
        seed: int = parameter(0, "seed of the acting noise", low=0)

    def on_configure_(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.task = load_task(self.params.task)
        p = self.params
        self.commander = Commander(
            action_dim=self.task.action_dim,
            chunk_steps=p.chunk_steps,
            latency_ticks=p.latency_ticks,
            max_age_ticks=p.max_age_ticks,
            lookahead_steps=p.lookahead_steps,
            exploration_std=p.exploration_std,
            seed=p.seed,
            join_ticks=p.join_ticks,
            human_timeout=human_timeout_steps(self.control.period_s),
            angles=self.task.angle_index,
        )
        self.key = read_key(p.weights_key_file) if p.weights_key_file else None
        self.refused_weights: Counter[str] = Counter()  # reason -> how often
        self.version = 0
        self.token_dim = 0
        self.proprio: tuple[float, ...] | None = None
        self.proprio_s = -np.inf
        self.episode = EpisodeState()
        self.episode_s = -np.inf
        self.proprio_tick = self.acted_tick = -1
        self.behind = 0  # ticks whose own proprioception had not come: the actor acted on the one before
        self.arrivals: deque[float] = deque(maxlen=ARRIVALS)  # part of its tick after which proprioception came
        self.hold_reason = ""
        self.held: Counter[str] = Counter()  # why a running episode was held -> in how many ticks
        self.moved_s = self.now_s()  # when the robot was last not held in a running episode
        self.unusable = ""  # why the newest weights were refused
        self.candidates = self.publish(ActionChunk, "command/candidate", qos.COMMAND)
        self.chunks = self.publish(ActionChunk, "actor/chunk", qos.EVENT)
        self.subscribe(Proprio, "proprio", self.on_proprio, qos.SENSOR, raw=True)
        # The gate looks at what both of them hear. Tokens may overtake each other, but each has a frame of its own.
        tokens = self.subscribe(RLState, "vla/rl_state", self.on_state, qos.EVENT, raw=True)
        self.tokens_from = Sender(self, tokens)
        self.token_tick = -1
        self.senders = [self.tokens_from]
        self.subscribe(ActionChunk, "vla/reference", self.on_reference, qos.EVENT)
        self.subscribe(ActionChunk, "human/command", self.on_human, qos.COMMAND)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        if p.weights == "learner":
            learned = self.subscribe(PolicyWeights, "learner/weights", self.on_learned, qos.STATE)
            self.weights_from = Sender(self, learned)
            self.senders.append(self.weights_from)
        self.every(1.0, self.look_for_rivals, wall=True)
        # Checking and unpacking takes milliseconds: no tick waits for it.
        self.unpacking = LatestWorker("weights", self.take_weights, self.fail)
        self.on_undo(self.unpacking.close)
        self.latest_weights = self.of_session() if p.weights == "session" else None
        self.begun = False
        self.loop = self.every_tick(self.act, p.phase)

    def owed_ns(self) -> int | None:
        return self.control.stamp_ns(self.proprio_tick + 1) if self.proprio_tick >= 0 else None

    def on_parameters_(self) -> None:
        self.commander.exploration_std = self.params.exploration_std

    def on_proprio(self, data: bytes) -> None:
        tick, proprio = proprio_from_wire(data, self.task.proprio_dim)
        self.expect_recent("proprioception", tick, self.params.max_age_ticks)
        self.proprio_tick, self.proprio = tick, proprio
        self.proprio_s, now_ns = self.now_s(), self.now_ns()
        self.arrivals.append((now_ns - self.control.stamp_ns(tick)) / self.control.period_ns)
        self.loop.hurry(tick, now_ns)

    def on_state(self, data: bytes) -> None:
        frame = state_from_wire(data, proprio_dim=self.task.proprio_dim)
        self.expect_recent("RL token", frame.tick, None)
        self.tokens_from.doubled += frame.tick == self.token_tick
        self.token_tick = frame.tick
        self.expect_one(self.tokens_from)
        if self.version and len(frame.token) != self.token_dim:
            raise ValueError(
                f"RL token has {len(frame.token)} numbers, the policy in use takes {self.token_dim}; start vla_node"
                " with the model that the policy was trained with, or actor_node again"
            )
        self.commander.add_state(frame)
        self.token_dim = len(frame.token)
        if self.latest_weights is not None:
            self.on_weights(self.latest_weights)

    def on_reference(self, msg: ActionChunk) -> None:
        self.expect_recent("reference", msg.observation_tick, None)
        self.commander.add_reference(chunk_from_msg(msg, self.task.action_dim))

    def on_human(self, msg: ActionChunk) -> None:
        chunk = chunk_from_msg(msg, self.task.action_dim)
        if chunk.steps:  # a release counts whenever it comes
            self.expect_recent("human command", chunk.tick, human_timeout_steps(self.control.period_s))
        self.commander.set_human(chunk.actions[0] if chunk.steps else None)

    def on_episode(self, msg: EpisodeState) -> None:
        self.commander.set_phase(Phase(msg.phase), msg.start_tick, msg.episode)
        self.episode, self.episode_s = msg, self.now_s()
        if self.episode.phase in RUNNING and not self.begun:  # while the other nodes start nobody is waited for
            self.begun, self.behind = True, 0
            self.loop.statistics.reset()

    def of_session(self) -> PolicyWeights:
        """The session's newest policy, to be checked as if the learner had sent it. ValueError without one."""
        from rlt_ros.core.learner import load_actor

        path = Path(self.params.session) / "checkpoints" / "learner.ckpt"
        if not self.params.session or not path.is_file():
            raise ValueError(f"weights is 'session', but there is no checkpoint {path}; practise first, or set session")
        actor, version = load_actor(path)
        if version < 1:
            raise ValueError(f"checkpoint {path} is from the warm-up: no policy was ever used; practise on")
        data, sha256 = pack(actor, version)
        msg = PolicyWeights(version=version, sha256=sha256, hmac=sign(data, self.key))
        msg.data = packed(np.frombuffer(data, np.uint8), "B")
        return msg

    def look_for_rivals(self) -> None:
        for sender in self.senders:
            sender.look()

    def expect_one(self, sender: Sender) -> None:
        """ValueError while two send what nobody can tell apart."""
        if sender.rivals:
            raise ValueError(f"two nodes send on {sender.rivals}; stop one of them")

    def on_learned(self, msg: PolicyWeights) -> None:
        self.expect_one(self.weights_from)
        self.on_weights(msg)

    def on_weights(self, msg: PolicyWeights) -> None:
        self.latest_weights = msg
        if self.token_dim:  # latched weights come before the first token, and its size must be checked too
            self.latest_weights = None
            self.unpacking.put(msg)

    def take_weights(self, msg: PolicyWeights) -> None:
        """In the worker's thread: use weights that pass all checks; the policy in use stays otherwise."""
        try:
            actor = self.checked(msg)
        except ValueError as error:
            self.refused_weights[error.reason.value if isinstance(error, WeightsRejected) else "sizes"] += 1
            if self.params.weights == "session":  # no others will come, and the VLA alone is not what was asked for
                self.fail(ValueError(f"session {self.params.session!r}: {error}"))
                return
            self.reject("learner/weights", error)
            if msg.version != self.version:  # those in use, said again, are no news
                self.unusable = str(error)
            return
        with self._lock:
            self.version, self.unusable = msg.version, ""
            self.commander.offer_policy(actor.act, msg.version)

    def checked(self, msg: PolicyWeights) -> Actor:
        actor = unpack(bytes(msg.data), msg.sha256, msg.version, self.version, None, self.key, msg.hmac)
        sizes = {
            "token": self.token_dim,
            "rl_proprio": 2 * self.task.proprio_dim,
            "action": self.task.action_dim,
            "chunk": self.params.chunk_steps,
        }
        wrong = {name: actor.architecture[name] for name, size in sizes.items() if actor.architecture[name] != size}
        if wrong:
            raise ValueError(f"weights of version {msg.version} have {wrong}, this task needs {sizes}")
        return actor

    def act(self, tick: int) -> None:
        """Command a tick, once."""
        if tick <= self.acted_tick:
            if self.control.tick(self.now_ns()) >= self.acted_tick - 1:  # done, or overtaken while this process hung
                return
            self.get_logger().error("the clock was set back: the robot is held until its streams are of this time")
            self.commander.begin_anew()
            self.proprio, self.proprio_tick = None, -1
        self.acted_tick = tick
        now_s = self.now_s()
        fresh = now_s - self.proprio_s <= self.params.proprio_timeout_s
        silent = self.episode.phase in RUNNING and now_s - self.episode_s > self.params.episode_timeout_s
        if silent:  # nobody would end this episode: hold, and go on when its node is heard again
            self.commander.set_phase(Phase.IDLE, self.episode.start_tick, self.episode.episode)
        self.behind += self.proprio_tick < tick
        command = self.commander.step(tick, self.proprio if fresh else None)
        self.candidates.publish(chunk_to_wire(command.candidate, self.control))
        if command.planned is not None:
            self.chunks.publish(chunk_to_wire(command.planned, self.control))
        self.hold_reason = command.hold_reason
        if silent and command.hold_reason:
            self.hold_reason = (
                f"episode/state is silent for more than {self.params.episode_timeout_s} s; is episode_node alive?"
            )
        if not self.hold_reason or self.episode.phase not in RUNNING:
            self.moved_s = now_s
        else:
            self.held[self.hold_reason] += 1

    def trouble(self) -> str:
        """What somebody must see to, or ""."""
        if two := "; ".join(sender.rivals for sender in self.senders if sender.rivals):
            return f"two nodes send on a topic that one alone may send on: stop one of them ({two})"
        held_s = self.now_s() - self.moved_s
        if held_s > HELD_S:
            return f"holds the robot for {held_s:.1f} s: {self.hold_reason}"
        return f"goes on with weights of version {self.version}: {self.unusable}" if self.unusable else self.too_late()

    def too_late(self) -> str:
        """Whether `phase` is over before most of the proprioception is there, and what to set."""
        came, phase = sorted(self.arrivals), self.params.phase
        if len(came) < ARRIVALS or not phase or came[ARRIVALS // 2] <= phase:
            return ""
        ms = lambda part: f"{1e3 * part * self.control.period_s:.1f} ms"  # noqa: E731
        found = (
            f"proprioception comes {ms(came[ARRIVALS // 2])} into its tick, after phase ({phase:g} of it, {ms(phase)}):"
            " most commands follow that of the tick before"
        )
        enough = round(came[ARRIVALS * 9 // 10] + 0.05, 2)
        if enough > 0.7:
            return f"{found}; set phase to 0, or let the driver or proprio_node send earlier"
        return f"{found}; set phase to {enough:g}, and watchdog_phase of safety_node to {enough + 0.15:g} or more"

    def on_diagnostics_(self) -> dict:
        self.problem = self.trouble()
        refused = {f"weights_refused_{reason}": count for reason, count in self.refused_weights.items()}
        return {
            "policy_version": self.version,
            "holding": self.hold_reason,
            "ticks_with_older_proprio": self.behind,
            "exploration_std": self.params.exploration_std,
        } | refused | {f"held {reason}": ticks for reason, ticks in self.held.items()}
