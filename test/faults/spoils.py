"""What a wire does to messages in place of handing them on: each takes a message and gives those that are sent."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy
from time import monotonic

import numpy as np
from safetensors.torch import load, save

from rlt_ros.ros.conversions import packed, stamp_msg, stamp_ns

NAN, HUGE = float("nan"), 3e38  # the largest of float32, nearly


def silent(_msg) -> Iterable:  # noqa: ANN001
    return ()


def twice(msg) -> Iterable:  # noqa: ANN001
    return (msg, msg)


def ten_times(msg) -> Iterable:  # noqa: ANN001
    return (msg,) * 10


def ten_pictures(msg) -> Iterable:  # noqa: ANN001
    """As a camera at ten times the rate: each with a stamp of its own."""
    for i in range(10):
        new = deepcopy(msg)
        new.header.stamp = stamp_msg(stamp_ns(msg.header.stamp) + i * 4_000_000)
        yield new


class Swapped:
    """Every second message before the one that came before it."""

    def __init__(self) -> None:
        self.waiting = None

    def __call__(self, msg) -> Iterable:  # noqa: ANN001
        if self.waiting is None:
            self.waiting = msg
            return ()
        first, self.waiting = self.waiting, None
        return (msg, first)


class Late:
    """Messages `seconds` after they came."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.waiting = seconds, deque()

    def __call__(self, msg) -> Iterable:  # noqa: ANN001
        self.waiting.append((monotonic() + self.seconds, msg))
        return ()

    def due(self) -> Iterable:
        """Those whose time has come."""
        while self.waiting and self.waiting[0][0] <= monotonic():
            yield self.waiting.popleft()[1]


class Changed:
    """Each message as `change` leaves it."""

    def __init__(self, change: Callable[[object], None]) -> None:
        self.change = change

    def __call__(self, msg) -> Iterable:  # noqa: ANN001
        self.change(msg)
        return (msg,)


# Changes of a message


def put(name: str, value: float, index: int = 0) -> Callable:
    """Set one number of the array called `name`."""

    def change(msg) -> None:  # noqa: ANN001
        getattr(msg, name)[index] = value

    return change


def shorter(name: str) -> Callable:
    """Without the last number of the array called `name`."""

    def change(msg) -> None:  # noqa: ANN001
        setattr(msg, name, getattr(msg, name)[:-1])

    return change


def one_action_less(msg) -> None:  # noqa: ANN001
    """A chunk that is whole, of a robot with one action less."""
    msg.action_dim -= 1
    msg.actions = msg.actions[: msg.steps * msg.action_dim]


def stamped(seconds: float) -> Callable:
    """As by a clock that is `seconds` ahead."""

    def change(msg) -> None:  # noqa: ANN001
        msg.header.stamp = stamp_msg(stamp_ns(msg.header.stamp) + round(seconds * 1e9))

    return change


def pushed(msg) -> None:  # noqa: ANN001
    msg.wrench.force.z = 60.0


def other_names(msg) -> None:  # noqa: ANN001
    msg.name = [f"left_{name}" for name in msg.name]


def black(msg) -> None:  # noqa: ANN001
    msg.data = packed(np.zeros(len(msg.data)), "B")


class Frozen:
    """The first picture again and again, with stamps of its own."""

    def __init__(self) -> None:
        self.data = None

    def __call__(self, msg) -> None:  # noqa: ANN001
        self.data = msg.data if self.data is None else self.data
        msg.data = self.data


# Changes of weights


def wrong_checksum(msg) -> None:  # noqa: ANN001
    msg.sha256 = "0" * 64


def repacked(change: Callable[[dict, dict], None]) -> Callable:
    """Weights whose `tensors` and architecture were changed, under a checksum that fits."""

    def changed(msg) -> None:  # noqa: ANN001
        data = bytes(msg.data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, architecture = load(data), json.loads(metadata["architecture"])
        change(tensors, architecture)
        data = save(tensors, metadata=metadata | {"architecture": json.dumps(architecture)})
        msg.data, msg.sha256 = packed(np.frombuffer(data, np.uint8), "B"), hashlib.sha256(data).hexdigest()

    return changed


def layers(tensors: dict, kind: str) -> list:
    """The MLP's weights or biases, first layer first."""
    return [tensors[name] for name in sorted(tensors) if name.startswith("mlp.") and name.endswith(kind)]


def not_finite(tensors: dict, _architecture: dict) -> None:
    tensors["skip.weight"][0, 0] = NAN


def another_architecture(_tensors: dict, architecture: dict) -> None:
    architecture["hidden"] = [8, 8]


def wild(tensors: dict, _architecture: dict) -> None:
    """A policy that goes from one end of the range to the other in every tick."""
    actions = np.where(np.arange(layers(tensors, "bias")[-1].numel()) // 4 % 2, -4.0, 4.0)
    layers(tensors, "bias")[-1][:] = tensors["skip.weight"].new_tensor(actions)


def endless(tensors: dict, _architecture: dict) -> None:
    """Finite weights, of which nothing finite can be computed."""
    first, second, last = layers(tensors, "weight")
    first.zero_()
    layers(tensors, "bias")[0].fill_(HUGE)
    second.fill_(1.0)
    last[:, 0::2], last[:, 1::2] = 1.0, -1.0
