"""What becomes of a robot's readings on their way in: the same live, in camera_node and proprio_node, and on import.

`received_ns` is when a message came: now, or when it was written into a recording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from rlt_ros.core.pictures import PictureWatch
from rlt_ros.core.proprioception import ProprioAssembler
from rlt_ros.core.streams import SYNCHRONISE, ClockOffset, StampWatch


class CameraIngest:
    """Judges the pictures of one camera.

    Attributes:
        stamps: rate, delay and losses.
        watch: finds frozen, dark and blown-out pictures.
        refused: what was wrong -> pictures refused, besides those of wrong stamps.
    """

    def __init__(
        self,
        shortest_ns: int,
        max_ahead_s: float = 0.1,
        freeze_s: float = 0.25,
        dark_level: int = 10,
        bright_level: int = 250,
        advice: str = SYNCHRONISE,
    ) -> None:
        """shortest_ns: pictures that follow a taken one sooner are left out. Others: as StampWatch, PictureWatch."""
        self.stamps = StampWatch(max_ahead_s, advice=advice)
        self.watch = PictureWatch(freeze_s, dark_level, bright_level)
        self.refused: Counter[str] = Counter()
        self._shortest_ns = shortest_ns
        self._taken_ns = 0

    def take(self, ns: int, received_ns: int, small: Callable[[], np.ndarray]) -> tuple[np.ndarray | None, str]:
        """(picture uint8 [S, S, 3], "") of ROS time `ns`, or (None, why): too_many, frozen, dark or bright.

        small: makes the picture; called when its stamp is good.  StampError, and what `small` raises.
        """
        self.stamps.note(ns, received_ns)
        if 0 <= ns - self._taken_ns < self._shortest_ns:  # more than two a tick serve nobody
            self.refused["too_many"] += 1
            return None, "too_many"
        picture = small()
        wrong = self.watch.judge(picture, ns)
        if wrong:
            self.refused[wrong] += 1
            return None, wrong
        self._taken_ns = ns
        return picture, ""


class ProprioIngest:
    """Joins the messages of several streams to one vector a tick.

    Attributes:
        clocks: stream -> how old its messages are.
    """

    def __init__(
        self, assembler: ProprioAssembler, streams: Iterable[str], max_ahead_s: float = 0.1, advice: str = SYNCHRONISE
    ) -> None:
        self.assembler = assembler
        self.clocks = {stream: ClockOffset(max_ahead_s, advice=advice) for stream in sorted(streams)}

    def take(
        self, stream: str, ns: int, received_ns: int, add: Callable[[], None]
    ) -> tuple[int, int, np.ndarray] | None:
        """What ProprioAssembler.join gives after a message of ROS time `ns`, which `add` adds.

        Raises StampError, and ProprioError as the assembler does.
        """
        if self.clocks[stream].note(ns, received_ns):
            self.assembler.restart()
        add()
        return self.assembler.join()
