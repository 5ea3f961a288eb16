"""The frozen VLA: reference chunks and RL tokens from camera frames."""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import Image

from rlt_ros.core.chunks import Chunk
from rlt_ros.core.episode import Phase
from rlt_ros.core.joining import DEFAULT_JOIN, Join, Prefix, References
from rlt_ros.core.observations import TokenFrame
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, RLState
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import image_from_msg
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import ParameterError, SharedParameters, parameter
from rlt_ros.ros.wire import chunk_from_wire, chunk_to_wire, image_from_wire, proprio_from_wire, state_to_wire
from rlt_ros.sim.task import Task, load_task
from rlt_ros.vla import load
from rlt_ros.vla.schedule import Forecast, FrameJoiner, FrameQueue, FrameSet, Latency, Schedule, needed_age
from rlt_ros.vla.traced import TracedVLA

RUNNING = (Phase.APPROACH, Phase.CRITICAL)
SILENT_S = 0.5  # without a frame for longer: reported
USELESS = 250  # pictures and proprioception refused before the first frame: 3 s or more
SILENT_TICKS = 2  # a gate whose last command is so much older than the frame is not heard


class VlaNode(RltNode):
    """Run the VLA on the frames that the chunk boundaries need, and the prefix alone on those in between.

    It ends where it can be of no use: at configure when the model is of another task, when an inference fails, and when
    USELESS messages were refused and no frame ever came of any. A stream that goes bad later is a fault that may pass:
    the robot is held meanwhile, and the node stays.

    Subscribes: camera/<name>/image (Image), proprio (Proprio), episode/state (EpisodeState), command/executed
    (ActionChunk: who drives; references are joined to one another while the robot executes them).
    Publishes: vla/reference (ActionChunk, H steps from the frame's tick on), vla/rl_state (RLState).
    """

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        model: str = parameter(description="folder of the VLA's checkpoint")
        max_skew_s: float = parameter(0.01, "cameras further apart than this are not one frame", unit="s", low=0.0)
        max_proprio_age_ticks: int = parameter(2, "proprioception of a frame may be so much older", unit="ticks", low=0)
        threads: int = parameter(1, "torch threads", low=1)
        trace: bool = parameter(True, "record the model's operations once: the same numbers in half the time on a CPU")
        join: str = parameter(
            DEFAULT_JOIN.value, "how a reference goes on from the one before", choices=tuple(how.value for how in Join)
        )

    def on_configure_(self) -> None:
        import torch

        torch.set_num_threads(self.params.threads)
        self.model = load(self.params.model)
        if self.params.trace:
            self.model = TracedVLA(self.model, joins=self.params.join == Join.RTC.value)
        self.expect_to_fit(load_task(self.params.task))
        # The first inference allocates; it must not be the one that the robot waits for.
        size = self.model.image_size
        blank = {name: np.zeros((size, size, 3), np.uint8) for name in self.model.camera_names}
        rest = np.zeros(self.model.proprio_dim, np.float32)
        self.model.infer(blank, rest)
        if self.params.join == Join.RTC.value:  # also, a VLA that cannot go on from a chunk says so now
            self.model.infer(blank, rest, Prefix(np.zeros((1, self.model.action_dim), np.float32), 1))
        self.model.tokens([(blank, rest)])

        p = self.params
        self.joiner = FrameJoiner(self.model.camera_names, self.control.period_ns, round(p.max_skew_s * 1e9))
        self.schedule = Schedule(p.chunk_steps, p.latency_ticks)
        self.latency = Latency(self.control.period_ns, p.latency_ticks)
        self.joined = References(p.join)
        self.executed: Chunk | None = None
        self.queue = FrameQueue()
        self.forecast = Forecast(p.chunk_steps, self.control.period_ns)
        self.proprios: deque[tuple[int, np.ndarray]] = deque(maxlen=16)
        self.waiting: FrameSet | None = None
        self.seen_tick = -1  # of the newest frame
        self.useless = 0  # messages refused before the first frame
        self.phase = Phase.IDLE
        self.episode = 0
        self.full_ms: deque[float] = deque(maxlen=100)
        self.prefix_ms: deque[float] = deque(maxlen=100)
        self.late = 0
        self.references = self.publish(ActionChunk, "vla/reference", qos.EVENT)
        self.states = self.publish(RLState, "vla/rl_state", qos.EVENT)
        for name in self.model.camera_names:
            self.subscribe(Image, f"camera/{name}/image", lambda data, name=name: self.on_image(name, data), qos.SENSOR,
                           raw=True)
        self.subscribe(Proprio, "proprio", self.on_proprio, qos.SENSOR, raw=True)
        self.subscribe(EpisodeState, "episode/state", self.on_episode, qos.STATE)
        self.subscribe(ActionChunk, "command/executed", self.on_executed, qos.NEWEST, raw=True)

    def expect_to_fit(self, task: Task) -> None:
        """ParameterError when the model is of another robot than the task's, or its actions would be of another speed."""
        if self.params.rate_hz != task.rate:
            raise ParameterError(
                f"{self.get_name()}: parameter 'rate_hz' is {self.params.rate_hz:g}, expected {task.rate:g}, the rate of"
                f" task '{task.name}': its actions are so much a tick; set rate_hz for all nodes"
            )
        model, wrong = self.model, []
        if model.proprio_dim != task.proprio_dim:
            wrong.append(f"takes {model.proprio_dim} values of proprioception, expected {task.proprio_dim}")
        if model.action_dim != task.action_dim:
            wrong.append(f"gives {model.action_dim} actions, expected {task.action_dim}")
        if lacking := [name for name in model.camera_names if name not in task.cameras]:
            wrong.append(f"looks at camera '{lacking[0]}', expected one of {', '.join(task.cameras)}")
        if wrong:
            raise ParameterError(
                f"{self.get_name()}: parameter 'model' is '{self.params.model}', which {', and '.join(wrong)} of task"
                f" '{task.name}'; give a model that was trained for this task"
            )

    def reject(self, topic: str, error: Exception) -> None:
        super().reject(topic, error)
        if self.seen_tick >= 0:
            return
        self.useless += 1
        if self.useless == USELESS:
            self.fail(ValueError(f"{USELESS} messages were refused and no frame came of any; the last one: {error}"))

    def owed_ns(self) -> int | None:
        """A boundary that a frame serves waits for it, and for the next one, which may come any time."""
        if self.phase not in RUNNING or self.seen_tick < 0:
            return None
        oldest = self.queue.oldest()
        frame = self.seen_tick + self.schedule.interval if oldest is None else oldest
        return self.control.stamp_ns(frame + self.params.latency_ticks)

    def on_activate_(self) -> None:
        self.seen_s = self.matched_s = self.now_s()  # of the newest frame, and of the newest with proprioception
        self.worker = threading.Thread(target=self.work, name="vla", daemon=True)
        self.queue.open()
        self.worker.start()

    def on_deactivate_(self) -> None:
        self.queue.close()
        self.worker.join(5.0)

    def on_episode(self, msg: EpisodeState) -> None:
        self.phase, self.episode = Phase(msg.phase), msg.episode

    def on_executed(self, data: bytes) -> None:
        self.executed = chunk_from_wire(data, self.model.action_dim)

    def on_proprio(self, data: bytes) -> None:
        tick, values = proprio_from_wire(data, self.model.proprio_dim)
        self.proprios.append((tick, np.array(values, np.float32)))
        self.schedule_waiting()

    def on_image(self, name: str, data: bytes) -> None:
        msg = image_from_wire(data)
        picture = image_from_msg(msg)
        size = self.model.image_size
        if picture.shape != (size, size, 3):
            raise ValueError(
                f"camera '{name}': picture is {picture.shape}, the model wants {(size, size, 3)}; set image_size"
            )
        frame = self.joiner.add(name, msg.ns, picture)
        if frame is not None:
            self.waiting, self.seen_s = frame, self.now_s()
            self.schedule_waiting()

    def schedule_waiting(self) -> None:
        """Hand the newest frame to the worker as soon as the proprioception of its tick is there."""
        frame = self.waiting
        if frame is None or not self.proprios or self.proprios[-1][0] < frame.tick - self.params.max_proprio_age_ticks:
            return
        fitting = [
            values
            for tick, values in self.proprios
            if frame.tick - self.params.max_proprio_age_ticks <= tick <= frame.tick
        ]
        if not fitting:
            self.waiting = None
            raise ValueError(
                f"no proprioception for the frame of tick {frame.tick}; newest is of {self.proprios[-1][0]}"
            )
        if self.proprios[-1][0] < frame.tick:
            return  # the tick's own may still come
        self.waiting, self.matched_s = None, self.now_s()
        frame.proprio = fitting[-1]
        full = self.schedule.is_full(frame.tick)
        self.forecast.arrived(frame.tick, full, self.now_ns())
        self.seen_tick = frame.tick
        if self.executed is not None and self.executed.tick >= frame.tick - SILENT_TICKS:
            frame.driver = self.executed.source  # of a gate that fell silent nobody knows what the robot does
        if self.phase in RUNNING and (full or self.phase == Phase.CRITICAL):
            self.queue.put(frame, full)

    def work(self) -> None:
        """The worker: torch releases the interpreter, so that pictures are received meanwhile."""
        try:
            # Simulated time waits, so that there is always room.
            room = (lambda: Forecast.ALL) if self.simulated_time else (lambda: self.forecast.room(self.now_ns()))
            while (work := self.queue.take(room)) is not None:
                full, others = work
                begin = time.monotonic()
                if full is not None:
                    ahead = self.schedule.ahead(full.tick)
                    reference, token = self.look(full, ahead)
                    self.send(full, token, reference)
                    self.full_ms.append(1e3 * (time.monotonic() - begin))
                    # The phase is asked last: nobody waits for a reference of an episode that is over.
                    self.late += self.control.tick(self.now_ns()) >= full.tick + ahead and self.phase in RUNNING
                    if not self.simulated_time:  # which keeps the promise by waiting
                        self.latency.took(self.now_ns() - self.control.stamp_ns(full.tick))
                        self.schedule.expect(max(self.params.latency_ticks, self.latency.ticks))
                elif others:
                    for frame, token in zip(
                        others, self.model.tokens([(f.images, f.proprio) for f in others]), strict=True
                    ):
                        self.send(frame, token)
                    self.prefix_ms.append(1e3 * (time.monotonic() - begin) / len(others))
                    self.forecast.took(1e9 * (time.monotonic() - begin), len(others))
                self.queue.done()
                self.give_leave()
        except Exception as error:
            self.fail(error)

    def look(self, frame: FrameSet, ahead: int) -> tuple[Chunk, np.ndarray]:
        """Reference and token of a frame; the reference is used `ahead` ticks later."""
        infer = lambda prefix: self.model.infer(frame.images, frame.proprio, prefix)  # noqa: E731
        return self.joined.next(infer, frame.tick, ahead, self.episode, frame.driver)

    def send(self, frame: FrameSet, token: np.ndarray, reference: Chunk | None = None) -> None:
        if reference is not None:
            self.references.publish(chunk_to_wire(reference, self.control))
        self.states.publish(state_to_wire(TokenFrame(frame.tick, token, frame.proprio), frame.stamp_ns))

    def on_diagnostics_(self) -> dict:
        self.problem = self.joiner.trouble() or self.silence() or self.slowness()
        mean = lambda values: round(float(np.mean(values)), 1) if values else 0.0  # noqa: E731
        return {
            "frame_delay_ms": round(self.forecast.delay_ms, 1),
            "reference_ms": mean(self.full_ms),
            "prefix_ms": mean(self.prefix_ms),
            "latency_ms": round(self.latency.ns / 1e6, 1),
            "latency_ticks": self.latency.ticks,
            "late_references": self.late,
            "joined_references": self.joined.joined,
            "dropped_frames": self.queue.dropped,
            "skew_ms": round(self.joiner.skew_ns * 1e-6, 1),
            "unmatched_pictures": self.joiner.unmatched,
        }

    def silence(self) -> str:
        """What the frames lack that do not come; "" while they come."""
        now_s = self.now_s()
        if now_s - self.seen_s > SILENT_S:
            return f"no pictures for {now_s - self.seen_s:.1f} s: is camera_node alive, and what does it say?"
        if now_s - self.matched_s > SILENT_S:
            return (
                f"no proprioception of the pictures' time for {now_s - self.matched_s:.1f} s: is proprio_node alive,"
                " and what does it say?"
            )
        return ""

    def slowness(self) -> str:
        """What to set when references take longer than latency_ticks; "" when they do not."""
        p, needed = self.params, self.latency.ticks
        if needed <= p.latency_ticks:
            return ""
        age = needed_age(needed, p.chunk_steps)
        older = f" and max_age_ticks to {age}" if age > p.max_age_ticks else ""
        return (
            f"references take {self.latency.ns / 1e6:.0f} ms from their frame, {needed} ticks, and latency_ticks is "
            f"{p.latency_ticks}; set latency_ticks to {needed}{older} for all nodes, or make the VLA faster"
        )
