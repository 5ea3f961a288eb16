"""Watches a running graph from outside: episodes, learner, and how well the loops keep time."""

import time
from collections import Counter
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from rlt_ros.core.episode import Ended, Outcome, Phase, Score
from rlt_ros.msg import EpisodeState, LearnerStatus
from rlt_ros.ros import qos

SILENT_S = 5.0  # diagnostics come once a second


@dataclass
class Picture:
    """What is known of the graph now."""

    phase: Phase = Phase.IDLE
    episode: int = 0
    score: Score = field(default_factory=Score)  # of the newest episodes
    ended: list[Ended] = field(default_factory=list)  # since the watch began
    updates: int = 0
    updates_per_s: float = 0.0
    replay_size: int = 0
    diagnostics: dict = field(default_factory=dict)  # node -> (message, values), as texts
    heard_s: dict = field(default_factory=dict)  # node -> when its newest diagnostics came, monotonic

    def value(self, node: str, key: str, default: float = 0.0) -> float:
        """A number from a node's diagnostics."""
        return float(self.words(node, key) or default)

    def words(self, node: str, key: str) -> str:
        """A text from a node's diagnostics."""
        return self.diagnostics.get(node, ("", {}))[1].get(key, "")

    def counts(self, node: str, prefix: str) -> Counter:
        """Those of a node's numbers whose names begin with `prefix`, without it."""
        values = self.diagnostics.get(node, ("", {}))[1].items()
        return Counter({k.removeprefix(prefix): int(v) for k, v in values if k.startswith(prefix) and v.isdigit()})

    @property
    def person_is_done(self) -> bool:
        """The simulated person has seen as much as it was told to."""
        return self.words("operator_node", "done") == "True"

    def loops(self) -> dict[str, dict[str, float]]:
        """How well each loop kept time: node -> period errors [ms], missed ticks and what else it counts."""
        kept = (
            "ticks",
            "missed",
            "late_5ms",
            "period_error_p50_ms",
            "period_error_p99_ms",
            "period_error_p999_ms",
            "period_error_max_ms",
            "realtime_factor",
            "critical_ticks",
            "ticks_without_fresh_command",
            "ticks_bridged",
            "late_references",
            "updates",
            "ticks_with_older_proprio",
        )
        found = {
            node: {k: float(v) for k, v in values.items() if k in kept}
            for node, (_, values) in self.diagnostics.items()
        }
        return {node: values for node, values in found.items() if values}

    def problems(self) -> dict[str, str]:
        """Node -> what its diagnostics say other than that it is active, or that they ceased."""
        now_s = time.monotonic()
        silent = {node: now_s - heard_s for node, heard_s in self.heard_s.items() if now_s - heard_s > SILENT_S}
        return {node: message for node, (message, _) in self.diagnostics.items() if message != "active"} | {
            node: f"silent for {seconds:.0f} s" for node, seconds in silent.items()
        }


class Watch:
    """Subscribes on a host node; look at `picture` after spinning."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.picture = Picture()
        node.create_subscription(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        node.create_subscription(LearnerStatus, "learner/status", self.on_learner, qos.EVENT)
        node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, qos.REPLAY)

    def on_episode(self, msg: EpisodeState) -> None:
        p = self.picture
        p.phase, p.episode = Phase(msg.phase), msg.episode
        outcome = Outcome(msg.outcome) if msg.committed else Outcome.NONE
        steps = msg.end_tick - msg.critical_tick if msg.critical_tick >= 0 else 0
        helped = msg.human_commands > 0
        if p.score.see(msg.episode, p.phase, outcome, steps, time.monotonic(), helped):
            p.ended.append(Ended(msg.episode, outcome, steps, helped))

    def on_learner(self, msg: LearnerStatus) -> None:
        p = self.picture
        p.updates, p.updates_per_s, p.replay_size = msg.updates, msg.updates_per_s, msg.replay_size

    def on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            node = status.name.rsplit("/", 1)[-1]
            self.picture.heard_s[node] = time.monotonic()
            self.picture.diagnostics[node] = (status.message, {v.key: v.value for v in status.values})
