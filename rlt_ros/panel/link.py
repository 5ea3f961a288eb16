"""The panel's ROS side: nodes of its own in a thread of its own.

The thread of the windows never calls ROS and never waits: it reads `snapshot`, and `call` leaves a request behind.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.experimental import EventsExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Ended, Outcome, Phase
from rlt_ros.data.episodes import read_episodes
from rlt_ros.msg import ActionChunk, EpisodeState, HandOverBelief, LearnerStatus, SafetyState
from rlt_ros.panel.actions import ACTIONS
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import stamp_ns

POLL_S = 0.1
IMAGE_EVERY, GRAPH_EVERY = 2, 5  # polls: pictures at 5 Hz, the graph at 2 Hz
ANSWER_S = 2.0  # a service that says nothing for so long does not answer
STOP_ANSWER_S, STOP_TRIES = 0.5, 4  # the emergency stop is asked for again
SILENT_S = 3.0  # diagnostics come at 1 Hz
STALE_S = 1.5  # episode/state comes at 5 Hz, command/executed at the control rate
HISTORY = 200  # episodes
CAMERA = "wrist"


@dataclass(frozen=True)
class NodeHealth:
    """The newest diagnostics of one node; heard_s is monotonic."""

    level: int  # DiagnosticStatus: 0 OK, 1 WARN, 2 ERROR, 3 STALE
    message: str
    heard_s: float
    values: Mapping[str, str]

    def silent(self, now_s: float) -> bool:
        return now_s - self.heard_s > SILENT_S


@dataclass(frozen=True)
class Picture:
    """One camera picture as it came."""

    camera: str
    number: int
    encoding: str
    width: int
    height: int
    step: int
    data: bytes


@dataclass(frozen=True)
class Notice:
    """What became of a request."""

    number: int
    name: str
    good: bool
    text: str


@dataclass(frozen=True)
class Snapshot:
    """All that the panel knows, at one moment. Times are monotonic, in s; -inf: never."""

    taken_s: float = -float("inf")
    error: str = ""  # why there is no ROS side
    domain: int = 0
    phase: Phase = Phase.IDLE
    outcome: Outcome = Outcome.NONE
    committed: bool = True  # the outcome can no longer be taken back
    episode: int = 0
    start_tick: int = -1
    critical_tick: int = -1
    end_tick: int = -1
    counted: int = 0  # episodes of the session that count, as episode_node says
    episode_s: float = -float("inf")
    period_ns: int = 0  # of the control tick; 0: not known yet
    source: Source = Source.HOLD
    source_version: int = 0
    executed_s: float = -float("inf")
    tick: int = 0  # of the newest command: the present, by the nodes' clock, which may be simulated
    history: tuple = ()  # of Ended, oldest first
    belief: HandOverBelief | None = None
    learner: LearnerStatus | None = None
    learner_s: float = -float("inf")
    version: int = 0  # policy in use
    version_s: float = -float("inf")  # since when
    estop: bool = False
    holding: bool = False
    reason: str = ""
    causes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    safety_s: float = -float("inf")
    nodes: Mapping[str, NodeHealth] = field(default_factory=lambda: MappingProxyType({}))
    services: frozenset = frozenset()  # names of ACTIONS whose service is there
    asked: frozenset = frozenset()  # names of ACTIONS that wait for their answer
    picture: Picture | None = None
    notice: Notice | None = None

    @property
    def episode_known(self) -> bool:
        """episode_node speaks."""
        return self.taken_s - self.episode_s < STALE_S

    @property
    def label_any_time(self) -> bool:
        """episode_node takes labels without a hand-over: a person demonstrates."""
        health = self.nodes.get("episode_node")
        return health is not None and health.values.get("label_any_time") == "True"

    @property
    def driven(self) -> bool:
        """Somebody commands the robot, if only to hold."""
        return self.taken_s - self.executed_s < STALE_S

    def seconds(self, ticks: int) -> float:
        return ticks * self.period_ns * 1e-9


class Link:
    """Listens, and calls services; `changed()` is called from its thread after each new `snapshot`.

    namespace: of the nodes.  camera: "" takes `wrist`, else the first that is there.  session: folder whose episodes
    began the curves.  context: of rclpy, None makes one; args: ROS arguments for it.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        namespace: str = "",
        camera: str = "",
        session: Path | None = None,
        context: Context | None = None,
        args: list[str] | None = None,
    ) -> None:
        self.snapshot = Snapshot()
        self._changed, self._namespace, self._camera = changed, namespace, camera
        self._session, self._context, self._args = session, context, args
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._executor: EventsExecutor | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="panel_link", daemon=True)

    def start(self) -> None:
        """Begin; nodes are made in the thread, because discovery takes its time."""
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """End the thread and its nodes."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def call(self, name: str) -> None:
        """Ask for the action `name`; returns at once, what became of it is the next snapshot's notice."""
        self._requests.put(name)
        executor = self._executor
        if executor is not None:
            executor.create_task(self._serve)  # now, not at the next poll

    # From here on: the thread.

    def _run(self) -> None:
        own = self._context is None
        context = Context() if own else self._context
        try:
            if own:
                rclpy.init(context=context, args=self._args or [], signal_handler_options=SignalHandlerOptions.NO)
            self._wire(context)
        except Exception as error:
            self._publish(error=f"{type(error).__name__}: {error}")
            if own:
                rclpy.try_shutdown(context=context)
            return
        try:
            while not self._stop.is_set() and context.ok():
                self._executor.spin_once(POLL_S)
        except Exception as error:  # shown, not died of: the emergency button must not vanish silently
            self._publish(error=f"{type(error).__name__}: {error}")
        finally:
            executor, self._executor = self._executor, None
            executor.shutdown()
            self._node.destroy_node()
            self._eyes.destroy_node()
            if own:
                rclpy.try_shutdown(context=context)

    def _wire(self, context: Context) -> None:
        options = {"context": context, "namespace": self._namespace or None, "start_parameter_services": False}
        node = self._node = Node("rlt_panel", **options)
        # In no executor: what comes at the control rate lies in DDS until a poll takes the newest, and wakes nobody.
        self._eyes = Node("rlt_panel_eyes", **options)
        self._commands = self._eyes.create_subscription(ActionChunk, "command/executed", _never, qos.NEWEST)
        self._pictures = None  # (camera, subscription)
        self._taken = self._polls = self._told = 0
        self._pending: dict[str, tuple] = {}  # name -> (future, deadline, tries left)
        self._nodes: dict[str, NodeHealth] = {}
        self._history: dict[int, Ended] = {}
        for record in read_episodes(self._session) if self._session else []:
            outcome, helped = Outcome[record.outcome.upper()], record.interventions > 0
            self._history[record.index] = Ended(record.index, outcome, record.critical_steps, helped)
        self._clients = {name: node.create_client(Trigger, action.service) for name, action in ACTIONS.items()}
        node.create_subscription(EpisodeState, "episode/state", self._on_episode, qos.STATE)
        node.create_subscription(SafetyState, "safety/state", self._on_safety, qos.STATE)
        node.create_subscription(HandOverBelief, "handover/belief", self._on_belief, qos.STATE)
        node.create_subscription(LearnerStatus, "learner/status", self._on_learner, qos.EVENT)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.REPLAY)
        node.create_timer(POLL_S, self._poll)
        self._executor = EventsExecutor(context=context)
        self._executor.add_node(node)
        self._publish(domain=context.get_domain_id(), history=self._told_history())

    def _publish(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, taken_s=time.monotonic(), **changes)
        self._changed()

    def _note(self, name: str, good: bool, text: str) -> None:
        self._told += 1
        self._publish(notice=Notice(self._told, name, good, text), asked=frozenset(self._pending))

    # Services

    def _serve(self) -> None:
        while True:
            try:
                name = self._requests.get_nowait()
            except queue.Empty:
                return
            if name not in self._pending:
                self._send(name, STOP_TRIES if name == "stop" else 1)

    def _send(self, name: str, tries: int) -> None:
        action, client = ACTIONS[name], self._clients[name]
        if not client.service_is_ready():
            self._note(name, False, f"{action.node} does not answer: there is no service {action.service}")
            return
        future = client.call_async(Trigger.Request())
        wait_s = STOP_ANSWER_S if name == "stop" else ANSWER_S
        self._pending[name] = (future, time.monotonic() + wait_s, tries - 1)
        future.add_done_callback(lambda future: self._on_answer(name, future))
        self._publish(asked=frozenset(self._pending))

    def _on_answer(self, name: str, future) -> None:
        if self._pending.get(name, (None,))[0] is not future:  # given up already
            return
        del self._pending[name]
        if future.cancelled() or future.exception() is not None:
            self._note(name, False, f"{ACTIONS[name].node} does not answer: {future.exception() or 'cancelled'}")
            return
        answer = future.result()
        self._note(name, answer.success, f"{ACTIONS[name].label.capitalize()}: {answer.message}")

    def _give_up(self, now_s: float) -> None:
        for name, (future, deadline_s, tries) in list(self._pending.items()):
            if now_s < deadline_s:
                continue
            del self._pending[name]
            self._clients[name].remove_pending_request(future)
            if tries:
                self._send(name, tries)
            else:
                action = ACTIONS[name]
                self._note(name, False, f"{action.node} does not answer to {action.service}")

    # Topics

    def _poll(self) -> None:
        now_s, changes = time.monotonic(), {}
        self._polls += 1
        self._serve()
        self._give_up(now_s)
        command = _newest(self._commands, raw=False)
        if command is not None:
            changes |= {
                "source": Source(min(command.source, 3)),
                "source_version": command.policy_version,
                "executed_s": now_s,
                "tick": command.tick,
            }
            if command.tick > 0:  # the stamp is that of the tick itself
                changes["period_ns"] = round(stamp_ns(command.header.stamp) / command.tick)
        if self._polls % GRAPH_EVERY == 1:
            changes["services"] = frozenset(n for n, client in self._clients.items() if client.service_is_ready())
            self._choose_camera()
        if self._pictures is not None and self._polls % IMAGE_EVERY == 0:
            data = _newest(self._pictures[1], raw=True)
            if data is not None:
                msg = deserialize_message(data, Image)
                self._taken += 1
                changes["picture"] = Picture(
                    self._pictures[0], self._taken, msg.encoding, msg.width, msg.height, msg.step, bytes(msg.data)
                )
        self._publish(nodes=MappingProxyType(dict(self._nodes)), asked=frozenset(self._pending), **changes)

    def _choose_camera(self) -> None:
        prefix = self._eyes.get_namespace().rstrip("/") + "/camera/"
        there = [
            name[len(prefix) : -len("/image")]
            for name, types in self._eyes.get_topic_names_and_types()
            if name.startswith(prefix)
            and name.endswith("/image")
            and "sensor_msgs/msg/Image" in types
            and self._eyes.count_publishers(name)
        ]
        wanted = self._camera or (CAMERA if CAMERA in there else next(iter(there), ""))
        if not wanted or (self._pictures is not None and self._pictures[0] == wanted):
            return
        if self._pictures is not None:
            self._eyes.destroy_subscription(self._pictures[1])
        topic = f"camera/{wanted}/image"
        self._pictures = (wanted, self._eyes.create_subscription(Image, topic, _never, qos.SENSOR, raw=True))

    def _on_episode(self, msg: EpisodeState) -> None:
        now_s, outcome = time.monotonic(), Outcome(msg.outcome)
        if self._history and msg.episode + 1 < max(self._history):
            self._history.clear()  # the node began anew, without a session
        if outcome is Outcome.NONE:
            self._history.pop(msg.episode, None)  # under way, or its verdict was taken back
        elif msg.episode:
            steps = msg.end_tick - msg.critical_tick if msg.critical_tick >= 0 else 0
            self._history[msg.episode] = Ended(msg.episode, outcome, steps, msg.human_commands > 0)
        self._publish(
            phase=Phase(msg.phase),
            outcome=outcome,
            committed=msg.committed,
            episode=msg.episode,
            start_tick=msg.start_tick,
            critical_tick=msg.critical_tick,
            end_tick=msg.end_tick,
            episode_s=now_s,
            counted=msg.successes + msg.failures + msg.timeouts,
            history=self._told_history(),
        )

    def _told_history(self) -> tuple:
        return tuple(self._history[number] for number in sorted(self._history)[-HISTORY:])

    def _on_safety(self, msg: SafetyState) -> None:
        self._publish(
            estop=msg.estop,
            holding=msg.holding,
            reason=msg.reason,
            safety_s=time.monotonic(),
            causes=MappingProxyType(dict(zip(msg.causes, msg.counts))),
        )

    def _on_belief(self, msg: HandOverBelief) -> None:
        self._publish(belief=msg)

    def _on_learner(self, msg: LearnerStatus) -> None:
        self._publish(learner=msg, learner_s=time.monotonic())

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        now_s = time.monotonic()
        for status in msg.status:
            name = status.name.rsplit("/", 1)[-1]
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            values = {item.key: item.value for item in status.values}
            self._nodes[name] = NodeHealth(level, status.message, now_s, values)
            if name == "actor_node" and values.get("policy_version", "").isdigit():
                version = int(values["policy_version"])
                if version != self.snapshot.version:
                    self._publish(version=version, version_s=now_s)


def _never(_msg: object) -> None:
    """For subscriptions that are taken from by hand."""


def _newest(subscription, raw: bool):
    """What came last on a subscription that no executor reads, None when nothing came; older ones are dropped."""
    newest = None
    with subscription.handle:
        while (taken := subscription.handle.take_message(subscription.msg_type, raw)) is not None:
            newest = taken[0]
    return newest
