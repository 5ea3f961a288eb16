"""A simulated person in the operator's place; only for the simulator."""

from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Joy
from std_srvs.srv import Trigger

from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.gamepad import VirtualPad, load_layout
from rlt_ros.msg import EpisodeState, Proprio, SimTruth
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import header, packed
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.processes import gamepad_file
from rlt_ros.ros.wire import proprio_from_wire
from rlt_ros.sim.demonstrator import STEERS, Demonstrator, Seen, knows
from rlt_ros.sim.person import Habits, SimulatedPerson, View
from rlt_ros.sim.task import Task, load_task, task_folder

REQUESTS = {"sim_reset": "sim/reset"} | {
    name: f"episode/{name}" for name in ("reset", "start", "hand_over", "success", "failure")
}
JOY_EVERY = 2  # ticks; 25 Hz, about what a joy node's autorepeat sends


class OperatorNode(RltNode):
    """Looks at sim/truth, presses the buttons of the episode and steers now and then, through a person's interfaces.

    After some episodes without success the person does one alone, as the scripted demonstrator does.
    One who demonstrates steers from start to end as the scripted demonstrator does, and hands nothing over.

    Subscribes: sim/truth (SimTruth), episode/state, and proprio where the demonstrator knows the task.
    Publishes: joy (Joy, 25 Hz; by hand 50 Hz).
    Calls: sim/reset, episode/reset, start, hand_over, success, failure (Trigger).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        episodes: int = parameter(0, "stop after so many; 0: no end", low=0)
        minutes: float = parameter(0.0, "stop after so much critical phase; 0: no end", unit="min", low=0.0)
        reaction_s: list[float] = parameter(
            [0.15, 0.3], "shortest and longest time from seeing to pressing", unit="s", low=0.0
        )
        rest_s: float = parameter(1.3, "pause after an episode", unit="s", low=0.0)
        intervention_share: float = parameter(0.2, "part of the episodes with an intervention", low=0.0, high=1.0)
        intervention_s: list[float] = parameter([0.8, 1.6], "shortest and longest intervention", unit="s", low=0.0)
        helps_after: int = parameter(
            3, "episodes in a row without success, after which the person does one by hand; 0: never", low=0
        )
        steering_noise_m: float = parameter(0.0005, "how wrongly the person sees the offset", unit="m", low=0.0)
        hands_over: bool = parameter(True, "hands over when the critical phase begins; false: handover_node does")
        demonstrates: bool = parameter(False, "drives from start to end, as where demonstrations are recorded")
        gamepad: str = parameter("xbox", "gamepad file that the person holds: as the teleop node's")
        wait_for: list[str] = parameter(
            [], "nodes whose diagnostics must say that they are active before the first episode"
        )
        seed: int = parameter(0, "of the person's chances", low=0)

    def on_configure_(self) -> None:
        p = self.params
        task = load_task(p.task)
        self.person = SimulatedPerson(
            Habits(
                reaction_s=tuple(p.reaction_s),
                rest_s=p.rest_s,
                intervention_share=p.intervention_share,
                intervention_s=tuple(p.intervention_s),
                helps_after=p.helps_after if knows(task) else 0,
                steering_noise_m=p.steering_noise_m,
                hands_over=p.hands_over,
                demonstrates=p.demonstrates,
            ),
            p.seed,
        )
        self.episode: EpisodeState | None = None
        self.finished: set[int] = set()
        self.critical_s = 0.0
        self.awaited = set(p.wait_for)
        self.pad = VirtualPad(load_layout(gamepad_file(task_folder().parents[1], p.gamepad)))
        self.joy = self.publish(Joy, "joy", qos.EVENT)
        self.requests = {name: self.client(Trigger, topic) for name, topic in REQUESTS.items()}
        self.subscribe(SimTruth, "sim/truth", self.on_truth, qos.SENSOR)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.subscribe(DiagnosticArray, "/diagnostics", self.on_diagnostics, qos.EVENT)
        self.asked = 0  # requests that wait for their answer
        self.hand: Demonstrator | None = None
        self.seen: Seen | None = None  # what the hand needs
        self.by_hand = p.demonstrates
        if p.demonstrates or (p.helps_after and knows(task)):
            self.learn_to_demonstrate(task)
        self.every_tick(self.on_tick, phase=0.5)

    def learn_to_demonstrate(self, task: Task) -> None:
        if not knows(task):
            raise ParameterError(
                f"{self.get_name()}: parameter 'demonstrates' is set, but the scripted demonstrator knows the Ethernet"
                f" task, with actions {', '.join(STEERS)} and a wrench after pose and twist; task '{task.name}' has"
                f" {', '.join(task.action_names)}"
            )
        self.seen = Seen(task)
        self.random = np.random.default_rng([self.params.seed, 2])
        self.demonstrated = -1  # start of the episode that `hand` is for
        self.subscribe(Proprio, "proprio", self.on_proprio, qos.SENSOR, raw=True)

    def on_proprio(self, data: bytes) -> None:
        self.seen.values = proprio_from_wire(data, self.seen.task.proprio_dim)[1]

    def on_truth(self, msg: SimTruth) -> None:
        offset = np.array(msg.offset) if len(msg.offset) == 3 else np.array([msg.lateral_error, 0.0, -msg.depth])
        self.person.see(self.now_s(), View(offset, msg.yaw_error, msg.critical, msg.success, msg.failure))
        if self.seen is not None:
            self.seen.offset, self.seen.yaw_error = offset, msg.yaw_error

    def on_episode(self, msg: EpisodeState) -> None:
        self.episode = msg
        if msg.start_tick >= 0:  # whoever comes to a practice that runs waits for nobody
            self.awaited.clear()
        if msg.phase == Phase.ENDED and msg.episode not in self.finished:
            self.finished.add(msg.episode)
            if msg.critical_tick >= 0:
                self.critical_s += (msg.end_tick - msg.critical_tick) * self.control.period_s

    def on_diagnostics(self, msg: DiagnosticArray) -> None:
        self.awaited -= {
            s.name.rsplit("/", 1)[-1] for s in msg.status if s.level == DiagnosticStatus.OK and s.message == "active"
        }

    @property
    def done(self) -> bool:
        """The person has had enough, and no episode is running."""
        p = self.params
        enough = (0 < p.episodes <= len(self.finished)) or (0.0 < p.minutes * 60.0 <= self.critical_s)
        return enough and self.episode.phase in (Phase.IDLE, Phase.ENDED) and self.episode.committed

    def owed_ns(self) -> int | None:
        return self.now_ns() + 1 if self.asked else None

    def on_tick(self, tick: int) -> None:
        if tick % JOY_EVERY and not self.by_hand:
            return
        self.problem = f"waiting for {', '.join(sorted(self.awaited))}" if self.awaited else ""
        if self.episode is None or self.awaited or self.done:
            return
        wish = self.person.act(self.now_s(), Phase(self.episode.phase), Outcome(self.episode.outcome))
        for name in wish.requests:
            if not self.requests[name].service_is_ready():
                self.person.was_not_heard()
                continue
            self.asked += 1
            future = self.requests[name].call_async(Trigger.Request())
            future.add_done_callback(lambda future, name=name: self.on_answer(name, future))
        self.by_hand = self.params.demonstrates or wish.by_hand
        motions = self.demonstrated_motions() if self.by_hand else {}
        steers = bool(motions) or wish.stick is not None
        if wish.stick is not None:
            zone = self.pad.layout.dead_zone  # small motions of the hand get lost in it
            ways = (np.abs(wish.stick) - zone).clip(0.0) / (1.0 - zone)
            motions = dict(zip(STEERS, np.sign(wish.stick) * ways, strict=True))
        axes, buttons = self.pad.reading(motions, ("deadman",) if steers else ())
        self.joy.publish(Joy(header=header(self.now_ns()), axes=packed(np.array(axes)), buttons=buttons))

    def demonstrated_motions(self) -> dict[str, float]:
        """The next tick's motions of who demonstrates, as parts of the sticks' full speed; none outside an episode."""
        if self.episode.phase not in (Phase.APPROACH, Phase.CRITICAL) or not np.isfinite(self.seen.offset).all():
            return {}
        if self.episode.start_tick != self.demonstrated:
            self.demonstrated, self.hand = self.episode.start_tick, Demonstrator(self.seen, self.random)
        full = [abs(self.pad.layout.motions[name].scale) for name in STEERS]
        return {name: float(a) / most for name, a, most in zip(STEERS, self.hand.step(self.seen), full, strict=True)}

    def on_answer(self, name: str, future) -> None:
        answer = future.result()
        with self._lock:
            self.asked -= 1
            if answer is None or not answer.success:
                self.get_logger().warning(f"{name}: {answer.message if answer else 'no answer'}")
            elif name == "sim_reset":
                self.person.scene_is_reset()
        self.give_leave()

    def on_diagnostics_(self) -> dict:
        return {
            "episodes": len(self.finished),
            "critical_s": round(self.critical_s, 1),
            "done": self.episode is not None and self.done,
        }
