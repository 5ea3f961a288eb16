"""Demonstrations as prior data of the learner: the frozen VLA looks at them as it would have, a human acts."""

from __future__ import annotations

import numpy as np

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.episode import Outcome
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.recorder import EpisodeRecorder
from rlt_ros.core.transition import Transition
from rlt_ros.vla.backend import VLAError
from rlt_ros.vla.frozen import FrozenVLA
from rlt_ros.vla.schedule import Schedule


def demonstration_transitions(
    demo: dict[str, np.ndarray],
    vla: FrozenVLA,
    cameras: list[str],
    recorder: EpisodeRecorder,
    episode: int,
    start_tick: int,
) -> list[Transition]:
    """The transitions of a demonstration's critical phase, as the replay node would have recorded them.

    demo: as rlt_ros.data.demos.  cameras: names of its pictures, in their order.  start_tick: of the episode, after all
    that the recorder has seen.  Empty when the demonstration failed or never came to the critical phase.

    VLAError names the tick at which the demonstration does not fit, or is not finite.
    """
    critical, steps = int(demo["critical_tick"]), len(demo["action"])
    if not bool(demo["success"]) or critical < 0:
        return []
    proprio, schedule = demo["proprio"], Schedule(recorder.chunk_steps, recorder.latency_ticks)
    if demo["action"].shape[1] != vla.action_dim:
        raise VLAError(f"the demonstration has {demo['action'].shape[1]} actions, the VLA gives {vla.action_dim}; give"
                       " a model that was trained for this task")  # fmt: skip
    for name in ("proprio", "action"):
        if not (finite := np.isfinite(demo[name]).all(1)).all():
            tick = int(np.argmin(finite))
            raise VLAError(f"tick {tick}: {name} is {demo[name][tick].tolist()}, expected finite numbers")
    recorder.begin(episode, start_tick, start_tick + critical)
    for pictures, at in zip(demo["images"], demo["frame_tick"].tolist(), strict=True):
        tick, images = start_tick + at, dict(zip(cameras, pictures, strict=True))
        # As the VLA node decides, which is told of every frame; the first one, too, must have a reference.
        full = schedule.is_full(tick)
        try:
            if full or at == 0:
                reference, token = vla.infer(images, proprio[at])
                recorder.add_reference(Chunk(tick, np.clip(reference, -1.0, 1.0), tick, Source.VLA, episode))
            else:
                token = vla.tokens([(images, proprio[at])])[0]
        except VLAError as error:
            raise VLAError(f"tick {at}: {error}") from error
        recorder.add_token(TokenFrame(tick, token, proprio[at]))
    for at in range(steps):
        recorder.add_proprio(start_tick + at, proprio[at])
        recorder.add_executed(start_tick + at, demo["action"][at], Source.HUMAN)
    recorder.add_proprio(start_tick + steps, proprio[-1])  # nobody looked again after the last action; terminal: unused
    recorder.end(start_tick + steps, Outcome.SUCCESS)
    return recorder.ready()
