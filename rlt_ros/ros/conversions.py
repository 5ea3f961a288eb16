"""Messages to the types of core and back.

Everything that arrives may be malformed: a wrong size, encoding or non-finite value is a ValueError that names it,
which RltNode turns into a counted, logged and dropped message. Large arrays are filled through array.array: rclpy
copies numpy arrays element by element (200 ms for an image).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped, WrenchStamped
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from rlt_ros.core.chunks import Chunk, ControlClock, Source
from rlt_ros.core.finite import all_finite
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.pictures import to_rgb
from rlt_ros.core.transition import Transition
from rlt_ros.msg import ActionChunk, Proprio, RLState
from rlt_ros.msg import Transition as TransitionMsg


def stamp_ns(stamp: Time) -> int:
    """ROS time of a stamp in ns."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp_msg(ns: int) -> Time:
    """ROS time `ns` as a stamp."""
    sec, nanosec = divmod(int(ns), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


def header(ns: int, frame_id: str = "") -> Header:
    """A header at ROS time `ns`."""
    return Header(stamp=stamp_msg(ns), frame_id=frame_id)


def packed(values: np.ndarray, typecode: str = "f") -> array:
    """`values` of any shape, row-major, as the array type that rclpy takes without a copy per element."""
    out = array(typecode)
    out.frombytes(np.ascontiguousarray(values, dtype=np.dtype(typecode)).data.cast("B") if np.size(values) else b"")
    return out


def vector(name: str, values: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
    """A float32 copy of a message's list; ValueError when it is not finite or not `size` long."""
    numbers = np.array(values, dtype=np.float32)
    if size is not None and numbers.size != size:
        raise ValueError(f"{name} has {numbers.size} values, expected {size}")
    if not all_finite(numbers):
        raise ValueError(f"{name} is not finite: {numbers[~np.isfinite(numbers)][:4]}")
    return numbers


def chunk_to_msg(chunk: Chunk, clock: ControlClock, frame_id: str = "") -> ActionChunk:
    """A chunk as ActionChunk; its stamp is the time of its first action."""
    steps, action_dim = chunk.actions.shape
    return ActionChunk(header=header(clock.stamp_ns(chunk.tick), frame_id), tick=chunk.tick,
                       observation_tick=chunk.observation_tick, episode=chunk.episode, source=int(chunk.source),
                       policy_version=chunk.policy_version, steps=steps, action_dim=action_dim,
                       actions=packed(chunk.actions))


def chunk_from_msg(msg: ActionChunk, action_dim: int | None = None) -> Chunk:
    """ActionChunk as a chunk, actions float32 [steps, A]; ValueError when sizes, source or values are wrong."""
    check_chunk(msg.tick, msg.source, msg.steps, msg.action_dim, len(msg.actions), action_dim)
    actions = np.array(msg.actions, dtype=np.float32).reshape(msg.steps, msg.action_dim)
    return Chunk(msg.tick, actions, msg.observation_tick, Source(msg.source), msg.episode, msg.policy_version)


def check_chunk(tick: int, source: int, steps: int, width: int, count: int, action_dim: int | None) -> None:
    """Whether the fields of an ActionChunk fit together, and `action_dim` where it is known: ValueError."""
    where = f"ActionChunk at tick {tick}"
    if width == 0 or action_dim not in (None, width):
        raise ValueError(f"{where}: action_dim is {width}, expected {action_dim or '> 0'}")
    if source not in Source._value2member_map_:
        raise ValueError(f"{where}: source is {source}, expected 0..{max(Source)}")
    if count != steps * width:
        raise ValueError(f"{where}: actions has {count} values, expected {steps * width}")


def proprio_to_msg(values: np.ndarray, clock: ControlClock, ns: int, frame_id: str = "") -> Proprio:
    """Proprioception [P] (SI) read at ROS time `ns`."""
    return Proprio(header=header(ns, frame_id), tick=clock.tick(ns), values=packed(values))


def proprio_from_msg(msg: Proprio, size: int | None = None) -> tuple[int, np.ndarray]:
    """(tick, float32 [P]); ValueError when it is not finite or not `size` long."""
    return msg.tick, vector(f"Proprio at tick {msg.tick}: values", msg.values, size)


def numbers_of(msg: PoseStamped | TwistStamped | WrenchStamped) -> tuple[float, ...]:
    """The numbers of a stamped message in the order of its definition."""
    if isinstance(msg, PoseStamped):
        p, q = msg.pose.position, msg.pose.orientation
        return p.x, p.y, p.z, q.x, q.y, q.z, q.w
    a, b = (msg.twist.linear, msg.twist.angular) if isinstance(msg, TwistStamped) else (msg.wrench.force,
                                                                                        msg.wrench.torque)
    return a.x, a.y, a.z, b.x, b.y, b.z


def state_to_msg(frame: TokenFrame, clock: ControlClock, ns: int | None = None) -> RLState:
    """A frame's token and proprioception; `ns` is the frame's own ROS time, by default that of its tick."""
    return RLState(header=header(clock.stamp_ns(frame.tick) if ns is None else ns), tick=frame.tick,
                   token=packed(frame.token), proprio=packed(frame.proprio))


def state_from_msg(msg: RLState, token_dim: int | None = None, proprio_dim: int | None = None) -> TokenFrame:
    """RLState as TokenFrame; ValueError when a size or value is wrong."""
    return token_frame(msg.tick, msg.token, msg.proprio, token_dim, proprio_dim)


def token_frame(tick: int, token: Sequence[float] | np.ndarray, proprio: Sequence[float] | np.ndarray,
                token_dim: int | None, proprio_dim: int | None) -> TokenFrame:
    """The fields of an RLState as state_from_msg gives them."""
    for name, values, size in (("token", token, token_dim), ("proprio", proprio, proprio_dim)):
        if size is not None and len(values) != size:
            raise ValueError(f"RLState at tick {tick}: {name} has {len(values)} values, expected {size}")
    return TokenFrame(tick, token, proprio)


def transition_to_msg(transition: Transition, session: str, clock: ControlClock) -> TransitionMsg:
    """A transition of core as a message of `session`."""
    t = transition
    chunk_steps, action_dim = t.action.shape
    return TransitionMsg(
        header=header(clock.stamp_ns(t.tick)), session=session, sequence=t.sequence, episode=t.episode, tick=t.tick,
        chunk_steps=chunk_steps, action_dim=action_dim, token=packed(t.token), proprio=packed(t.proprio),
        reference=packed(t.reference), action=packed(t.action), rewards=packed(t.rewards), steps=t.steps,
        next_token=packed(t.next_token), next_proprio=packed(t.next_proprio), next_reference=packed(t.next_reference),
        terminated=bool(t.terminated), truncated=bool(t.truncated), sources=packed(t.sources, "B"),
        token_age_ticks=t.token_age_ticks, policy_version=t.policy_version)


def transition_from_msg(msg: TransitionMsg) -> Transition:
    """A message as the transition of core; ValueError when its sizes disagree or a value is not finite."""
    where, size = f"Transition {msg.sequence}", msg.chunk_steps * msg.action_dim
    if size == 0 or not 1 <= msg.steps <= msg.chunk_steps:
        raise ValueError(f"{where}: {msg.steps} steps of a chunk of {msg.chunk_steps} x {msg.action_dim},"
                         " expected 1 <= steps <= chunk_steps and action_dim > 0")
    if len(msg.sources) != msg.chunk_steps:
        raise ValueError(f"{where}: sources has {len(msg.sources)} values, expected {msg.chunk_steps}")
    chunks = {name: vector(f"{where}: {name}", getattr(msg, name), size).reshape(msg.chunk_steps, msg.action_dim)
              for name in ("reference", "action", "next_reference")}
    vectors = {name: vector(f"{where}: {name}", getattr(msg, name)) for name in ("token", "proprio")}
    vectors |= {f"next_{name}": vector(f"{where}: next_{name}", getattr(msg, f"next_{name}"), value.size)
                for name, value in list(vectors.items())}
    return Transition(
        sequence=msg.sequence, episode=msg.episode, tick=msg.tick, **chunks, **vectors,
        rewards=vector(f"{where}: rewards", msg.rewards, msg.chunk_steps), steps=msg.steps,
        terminated=msg.terminated, truncated=msg.truncated, sources=np.array(msg.sources, dtype=np.uint8),
        token_age_ticks=msg.token_age_ticks, policy_version=msg.policy_version)


def check_rgb(rgb: np.ndarray) -> None:
    """Whether it is an image uint8 [h, w, 3]: ValueError."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"image is {rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)")


def image_to_msg(rgb: np.ndarray, ns: int, frame_id: str = "") -> Image:
    """An image uint8 [h, w, 3] in RGB order as rgb8; ValueError for another shape or type."""
    check_rgb(rgb)
    height, width, _ = rgb.shape
    return Image(header=header(ns, frame_id), height=height, width=width, encoding="rgb8", step=3 * width,
                 data=packed(rgb, "B"))


def image_from_msg(msg: Image) -> np.ndarray:
    """An image message as uint8 [h, w, 3] in RGB order, a copy of its own.

    Takes the encodings of rlt_ros.core.pictures, with padded rows; ValueError for anything else.
    """
    return to_rgb(msg.encoding, msg.height, msg.width, msg.step, msg.data, bool(msg.is_bigendian))
