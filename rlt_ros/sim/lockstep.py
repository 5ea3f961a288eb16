"""One episode in one process, tick by tick, through the same core objects as the nodes: for the evaluator and for experiments.

Time is simulated: the VLA's answer to the frame of tick f is there at tick f + latency, as the schedule of the nodes
promises, however long it takes here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.commander import Commander
from rlt_ros.core.episode import EpisodeMachine, Outcome, Phase
from rlt_ros.core.limits import Limits, SafetyGate
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.sim.task import Task, TaskEnv
from rlt_ros.vla.frozen import FrozenVLA


@dataclass(frozen=True)
class Timing:
    """Ticks of the control clock, as in ``config/practice.yaml``."""

    chunk_steps: int = 10
    latency_ticks: int = 5
    max_age_ticks: int = 25
    stride: int = 2


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went. Steps are control ticks; ``critical_steps`` counts from the hand-over on."""

    seed: int
    outcome: Outcome
    steps: int
    critical_steps: int
    max_force: float

    @property
    def success(self) -> bool:
        return self.outcome is Outcome.SUCCESS


def gate_limits(task: Task) -> Limits:
    """The safety gate's limits for a task in the simulator."""
    return Limits.from_mapping({"force_index": task.wrench_index, **task.limits})


class LockStep:
    """Runs episodes of a task with a frozen VLA and, from the hand-over on, a policy (None: the VLA alone)."""

    def __init__(self, env: TaskEnv, vla: FrozenVLA, timing: Timing = Timing(), policy=None, exploration_std: float = 0.0, seed: int = 0):
        self.env, self.vla, self.timing, self.task = env, vla, timing, env.task
        self.period_s = 1.0 / self.task.rate
        self.commander = Commander(
            self.task.action_dim, timing.chunk_steps, timing.latency_ticks, timing.max_age_ticks,
            exploration_std=exploration_std, seed=seed,
        )  # fmt: skip
        if policy is not None:
            self.commander.offer_policy(policy, 1)
        self.machine = EpisodeMachine(round(self.task.critical_timeout * self.task.rate), round(self.task.approach_timeout * self.task.rate))
        self.gate = SafetyGate(
            gate_limits(self.task), self.task.action_names, self.task.action_scale, self.period_s,
            latency_ticks=timing.latency_ticks, max_age_ticks=timing.max_age_ticks + timing.chunk_steps,
        )  # fmt: skip
        self.tick = 0

    def run(self, seed: int, recorder: EpisodeRecorder | None = None) -> EpisodeResult:
        """One episode in the scene of ``seed``. With a recorder, its transitions are ready when this returns."""
        t, env, machine, commander = self.timing, self.env, self.machine, self.commander
        self.tick += 100 + (-self.tick) % t.chunk_steps
        env.reset(seed)
        self.vla.seed(seed)
        machine.reset(self.tick)
        machine.start(self.tick)
        due: list[tuple[int, object]] = []  # what the VLA will have answered, by the tick when it is there
        unseen: list[tuple[int, dict, np.ndarray]] = []  # mid-chunk frames that only the recorder wants tokens of
        max_force = 0.0
        while machine.phase in (Phase.APPROACH, Phase.CRITICAL):
            tick, proprio = self.tick, env.proprio()
            commander.set_phase(machine.phase, machine.start_tick, machine.episode)
            if tick % t.chunk_steps == (-t.latency_ticks) % t.chunk_steps or tick == machine.start_tick:
                reference, token = self.vla.infer(env.images(), proprio)
                due.append((tick + t.latency_ticks, (reference, token, tick, proprio)))
            elif recorder and machine.phase is Phase.CRITICAL and (tick + t.latency_ticks) % t.stride == 0:
                unseen.append((tick, env.images(), proprio))
            while due and due[0][0] <= tick:
                reference, token, frame, at_frame = due.pop(0)[1]
                chunk = Chunk(frame, reference, frame, Source.VLA, machine.episode)
                commander.add_reference(chunk)
                self.gate.add_reference(chunk)
                commander.add_state(frame, token, at_frame)
                if recorder:
                    recorder.add_reference(chunk)
                    recorder.add_token(TokenFrame(frame, token, at_frame))
            command = commander.step(tick, proprio)
            self.gate.offer(command.candidate, tick * self.period_s)
            executed = self.gate.step(tick, tick * self.period_s, proprio)
            if recorder:
                recorder.add_proprio(tick, proprio)
                recorder.add_executed(tick, executed.actions[0], executed.source)
                if command.planned is not None:
                    recorder.add_planned(command.planned)
            env.step(executed.actions[0])
            self.tick += 1
            i = self.task.wrench_index  # past the end without a wrench: no force
            max_force = max(max_force, float(np.linalg.norm(env.proprio()[i : i + 3])))
            if machine.phase is Phase.APPROACH and env.critical():
                machine.hand_over(self.tick)
                if recorder:
                    recorder.begin(machine.episode, machine.start_tick, machine.critical_tick)
            elif machine.phase is Phase.CRITICAL and env.success():
                machine.success(self.tick)
            elif machine.phase is Phase.CRITICAL and env.failure():
                machine.failure(self.tick)
            else:
                machine.step(self.tick)
        if recorder:
            for i in range(0, len(unseen), 16):
                tokens = self.vla.tokens([(images, at_frame) for _, images, at_frame in unseen[i : i + 16]])
                for (frame, _, at_frame), token in zip(unseen[i : i + 16], tokens, strict=True):
                    recorder.add_token(TokenFrame(frame, token, at_frame))
            recorder.add_proprio(self.tick, env.proprio())
            recorder.end(self.tick, machine.outcome)
        critical = machine.end_tick - machine.critical_tick if machine.critical_tick >= 0 else 0
        return EpisodeResult(seed, machine.outcome, machine.end_tick - machine.start_tick, critical, max_force)
