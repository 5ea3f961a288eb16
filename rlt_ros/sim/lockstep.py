"""One episode in one process, tick by tick, through the same core objects as the nodes, for evaluation and experiments.

Time is simulated: the VLA's answer to the frame of tick f is there at tick f + latency, as the schedule of the nodes
promises, however long it takes here. With a latency of its own the VLA is as slow as that and does one frame at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlt_ros.core.chunks import Source
from rlt_ros.core.commander import Commander
from rlt_ros.core.episode import EpisodeMachine, Outcome, Phase
from rlt_ros.core.joining import DEFAULT_JOIN, References
from rlt_ros.core.limits import Limits, SafetyGate
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.sim.handover import Rule
from rlt_ros.sim.task import Task, TaskEnv
from rlt_ros.vla.frozen import FrozenVLA
from rlt_ros.vla.schedule import Schedule


@dataclass(frozen=True)
class Timing:
    """Ticks of the control clock and how chunks are joined, as in ``config/practice.yaml``."""

    chunk_steps: int = 10
    latency_ticks: int = 5
    max_age_ticks: int = 25
    stride: int = 2
    join_ticks: int = 4  # the commander's
    join: str = DEFAULT_JOIN.value  # the references'


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went. Steps are control ticks; ``critical_steps`` counts from the hand-over on."""

    seed: int
    outcome: Outcome
    steps: int
    critical_steps: int
    max_force: float
    motion: Motion | None = None

    @property
    def success(self) -> bool:
        return self.outcome is Outcome.SUCCESS


@dataclass
class Motion:
    """How steadily an episode was commanded, from its first command on. Jumps are the largest change of any normalised
    action from a tick to the next: at the seams (a chunk or a hold begins) and inside of chunks. The first chunk, which
    sets the robot in motion, is left out of both."""

    ticks: int = 0
    without_command: int = 0
    seam: float = 0.0
    inside: float = 0.0

    def add(self, other: Motion) -> None:
        """Take another episode's in."""
        self.ticks += other.ticks
        self.without_command += other.without_command
        self.seam, self.inside = max(self.seam, other.seam), max(self.inside, other.inside)


class MotionMeter:
    """Takes the `motion` of an episode, tick by tick."""

    def __init__(self) -> None:
        self.motion = Motion()
        self._last: np.ndarray | None = None  # None until the first command: the first chunk is waited for at rest
        self._moving = False  # past the first chunk

    def step(self, action: np.ndarray, seam: bool, commanded: bool) -> None:
        """The next tick's action [A]."""
        motion = self.motion
        if self._last is None:
            if not commanded:
                return
        elif self._moving or seam or not commanded:
            self._moving = True
            jump = float(np.abs(action - self._last).max())
            if seam or not commanded:
                motion.seam = max(motion.seam, jump)
            else:
                motion.inside = max(motion.inside, jump)
        motion.ticks += 1
        motion.without_command += not commanded
        self._last = np.array(action)


def gate_limits(task: Task) -> Limits:
    """The safety gate's limits for a task in the simulator."""
    return Limits.from_mapping({**task.layout, **task.limits})


class LockStep:
    """Runs episodes of a task with a frozen VLA and, from the hand-over on, a policy (None: the VLA alone).

    latency: ticks that the VLA takes (None: timing.latency_ticks, which it is promised to keep).  wait: the robot
    stands while the VLA computes, at each chunk.  hand_over: who does it (None: the task's rule).  watch: told at each
    tick of the phase, and of the time since the episode's start [s].
    """

    def __init__(
        self, env: TaskEnv, vla: FrozenVLA, timing: Timing = Timing(), policy=None, exploration_std: float = 0.0,
        seed: int = 0, latency: int | None = None, wait: bool = False, hand_over: Rule | None = None,
        watch: Callable[[Phase, float], None] | None = None,
    ):  # fmt: skip
        self.env, self.vla, self.timing, self.task = env, vla, timing, env.task
        self.period_s = 1.0 / self.task.rate
        self.latency = timing.latency_ticks if latency is None else latency
        self.wait, self.references = wait, References(timing.join)
        self.hand_over = hand_over or Rule()
        self.watch = watch or (lambda phase, seconds: None)
        self.commander = Commander(
            self.task.action_dim, timing.chunk_steps, 0 if wait else timing.latency_ticks, timing.max_age_ticks,
            exploration_std=exploration_std, seed=seed, join_ticks=timing.join_ticks, angles=self.task.angle_index,
        )  # fmt: skip
        if policy is not None:
            self.commander.offer_policy(policy, 1)
        self.machine = EpisodeMachine(
            round(self.task.critical_timeout * self.task.rate), round(self.task.approach_timeout * self.task.rate)
        )
        self.gate = SafetyGate(
            gate_limits(self.task), self.task.action_names, self.task.action_scale, self.period_s,
            latency_ticks=timing.latency_ticks, max_age_ticks=timing.max_age_ticks + timing.chunk_steps,
        )  # fmt: skip
        self.tick = 0

    def run(self, seed: int, recorder: EpisodeRecorder | None = None) -> EpisodeResult:
        """One episode in the scene of ``seed``. With a recorder, its transitions are ready when this returns."""
        t, env, machine, commander = self.timing, self.env, self.machine, self.commander
        if recorder and self.wait:
            raise ValueError("an episode with wait cannot be recorded: its ticks stand still")
        self.tick += 100 + (-self.tick) % t.chunk_steps
        env.reset(seed)
        self.vla.seed(seed)
        machine.reset(self.tick)
        machine.start(self.tick)
        self.hand_over.begin(machine.episode, machine.start_tick, seed)
        self.meter, self.max_force, self.stood = MotionMeter(), 0.0, 0
        schedule = Schedule(t.chunk_steps, max(t.latency_ticks, self.latency))
        asked: tuple[int, dict, np.ndarray] | None = None  # the newest frame that the VLA has had no time for
        free = self.tick  # the tick from which on the VLA can take another frame
        due: list[tuple[int, object]] = []  # what the VLA will have answered, by the tick when it is there
        unseen: list[tuple[int, dict, np.ndarray]] = []  # mid-chunk frames that only the recorder wants tokens of
        driver = None
        while machine.phase in (Phase.APPROACH, Phase.CRITICAL):
            tick, proprio = self.tick, env.proprio()
            self.watch(machine.phase, (tick - machine.start_tick) * self.period_s)
            commander.set_phase(machine.phase, machine.start_tick, machine.episode)
            if self.wait:
                if tick % t.chunk_steps == 0:
                    due.append((tick, self._look(tick, env.images(), proprio, 0, driver)))
                    self._stand(self.latency)
                    if machine.phase is Phase.ENDED:
                        break
                    proprio = env.proprio()
            elif schedule.is_full(tick) or tick == machine.start_tick:
                if tick >= free or not schedule.always:  # else a newer one takes its place before the VLA has time
                    asked = tick, env.images(), proprio
            elif recorder and machine.phase is Phase.CRITICAL and (tick + t.latency_ticks) % t.stride == 0:
                unseen.append((tick, env.images(), proprio))
            if asked is not None and tick >= free:
                due.append((tick + self.latency, self._look(*asked, schedule.ahead(asked[0]), driver)))
                asked, free = None, tick + self.latency
            while due and due[0][0] <= tick:
                chunk, frame = due.pop(0)[1]
                commander.add_reference(chunk)
                self.gate.add_reference(chunk)
                commander.add_state(frame)
                self.hand_over.see(frame, tick)
                if recorder:
                    recorder.add_reference(chunk)
                    recorder.add_token(frame)
            command = commander.step(tick, proprio)
            self.meter.step(command.candidate.actions[0], command.planned is not None, not command.hold_reason)
            self.gate.offer(command.candidate, tick * self.period_s)
            executed = self.gate.step(tick, tick * self.period_s, proprio)
            driver = executed.source
            if recorder:
                recorder.add_proprio(tick, proprio)
                recorder.add_executed(tick, executed.actions[0], executed.source)
                if command.planned is not None:
                    recorder.add_planned(command.planned)
            self.tick += 1
            self._act(executed.actions[0])
            if recorder and machine.phase is Phase.CRITICAL and machine.critical_tick == self.tick:
                recorder.begin(machine.episode, machine.start_tick, machine.critical_tick)
        if recorder:
            for i in range(0, len(unseen), 16):
                tokens = self.vla.tokens([(images, at_frame) for _, images, at_frame in unseen[i : i + 16]])
                for (frame, _, at_frame), token in zip(unseen[i : i + 16], tokens, strict=True):
                    recorder.add_token(TokenFrame(frame, token, at_frame))
            recorder.add_proprio(self.tick, env.proprio())
            recorder.end(self.tick, machine.outcome)
        self.hand_over.end(machine.critical_tick)
        critical = machine.end_tick - machine.critical_tick if machine.critical_tick >= 0 else 0
        steps = machine.end_tick - machine.start_tick
        return EpisodeResult(seed, machine.outcome, steps, critical, self.max_force, self.meter.motion)

    def _look(self, tick: int, images: dict, proprio: np.ndarray, ahead: int, driver: Source | None):
        """Reference and token of a frame, the reference joined to the one before."""
        infer = lambda prefix: self.vla.infer(images, proprio, prefix)  # noqa: E731
        chunk, token = self.references.next(infer, tick, ahead, self.machine.episode, driver)
        return chunk, TokenFrame(tick, token, proprio)

    def _stand(self, ticks: int) -> None:
        """The robot waits. The commander's ticks stand still meanwhile; those of the episode go on."""
        still = np.zeros(self.task.action_dim, np.float32)
        for _ in range(ticks):
            if self.machine.phase not in (Phase.APPROACH, Phase.CRITICAL):
                return
            self.stood += 1
            self.meter.step(still, True, False)
            self._act(still)

    def _act(self, action: np.ndarray) -> None:
        """A tick of the robot, and what becomes of the episode by it."""
        env, machine = self.env, self.machine
        env.step(action)
        tick, i = self.tick + self.stood, self.task.wrench_index  # past the end without a wrench: no force
        self.max_force = max(self.max_force, float(np.linalg.norm(env.proprio()[i : i + 3])))
        if machine.phase is Phase.APPROACH and self.hand_over.now(tick, env.critical()):
            machine.hand_over(tick)
        elif machine.phase is Phase.CRITICAL and env.success():
            machine.success(tick)
        elif machine.phase is Phase.CRITICAL and env.failure():
            machine.failure(tick)
        else:
            machine.step(tick)
