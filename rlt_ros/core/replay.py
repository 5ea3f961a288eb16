"""The replay buffer: transitions over chunks, ready for sampling as tensors; every state is stored once."""
from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from rlt_ros.core.chunks import Source
from rlt_ros.core.networks import Dims
from rlt_ros.core.transition import Transition

# A state comes back as the next state of transitions a chunk earlier, or was one: so many newest states are looked
# through.
RECENT_STATES = 256
# Tokens are stored in half precision: three digits, and half the memory of what is nearly all of it.
TOKEN_DTYPE = torch.float16
LARGEST_TOKEN = float(torch.finfo(TOKEN_DTYPE).max)


class ReplayBuffer:
    """A ring of transitions in preallocated tensors, behind those that are kept for good (`add(..., keep=True)`).

    Memory is touched only as it is written: with a token of D numbers about 2 D + 600 bytes a transition.  `gamma` is
    the discount per control tick: the return of the chunk and gamma^n are computed once, on adding.
    """

    def __init__(self, capacity: int, dims: Dims, gamma: float = 0.99):
        if capacity < 1:
            raise ValueError(f"replay capacity: got {capacity}, expected at least 1")
        self.capacity = capacity
        self.dims = dims
        self.gamma = gamma
        chunk = (dims.chunk, dims.action)
        self._shapes = {
            "token": (dims.token,), "proprio": (dims.rl_proprio,), "reference": chunk, "action": chunk,
            "rewards": (dims.chunk,),
            "next_token": (dims.token,), "next_proprio": (dims.rl_proprio,), "next_reference": chunk,
        }
        # A row: chunk_return, discount, terminated, then the three chunks; one gather fetches it all.
        self._rows = torch.empty(capacity, 3 + 3 * dims.flat_action)
        self._states = torch.empty(capacity, 2, dtype=torch.int64)  # slots of the state and of the next one
        slots = 2 * capacity  # no more than two a transition are ever in use, in practice little more than one
        self._tokens = torch.empty(slots, dims.token, dtype=TOKEN_DTYPE)
        self._proprios = torch.empty(slots, dims.rl_proprio)
        self._users = np.zeros(slots, np.int32)  # how often a slot is used
        self._free: list[int] = []  # slots below _touched that are free again
        self._touched = 0
        self._recent: OrderedDict[bytes, int] = OrderedDict()  # state -> slot
        self._key_of: dict[int, bytes] = {}  # and back
        self._prior = np.zeros(capacity, bool)
        self._prior_rows: Tensor | None = None  # cache
        self._discounts = gamma ** np.arange(dims.chunk + 1)  # gamma^0 .. gamma^C
        self._added = 0
        self.kept = 0  # rows that the ring goes around

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, transition: Transition, keep: bool = False) -> None:
        """Store one transition, over the oldest one when full.  ValueError names the field that is wrong.

        keep: prior data, never overwritten and always counted as prior; to be added before everything else.
        """
        n = int(transition.steps)
        if not 1 <= n <= self.dims.chunk:
            raise ValueError(f"transition {transition.sequence}: steps is {n}, expected 1..{self.dims.chunk}")
        values = {}
        for name, shape in self._shapes.items():
            value = np.asarray(getattr(transition, name), dtype=np.float32)
            if value.shape != shape:
                raise ValueError(f"transition {transition.sequence}: {name} has shape {value.shape}, expected {shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"transition {transition.sequence}: {name} is not finite")
            if name.endswith("token") and np.abs(value).max() > LARGEST_TOKEN:
                raise ValueError(
                    f"transition {transition.sequence}: {name} reaches {np.abs(value).max():.3g}, expected at"
                    f" most {LARGEST_TOKEN:g}; scale the token"
                )
            values[name] = value
        if keep and (self._added != self.kept or self.kept + 1 >= self.capacity):
            raise ValueError(
                f"transition {transition.sequence}: prior data comes before everything else and leaves room;"
                f" {self._added} transitions are stored, the capacity is {self.capacity}"
            )
        row = self._added if self._added < self.capacity else \
            self.kept + (self._added - self.kept) % (self.capacity - self.kept)
        if self._added >= self.capacity:
            for slot in self._states[row].tolist():
                self._release(slot)
        rewards = values["rewards"]
        self._states[row, 0] = self._slot(values["token"], values["proprio"])
        self._states[row, 1] = self._slot(values["next_token"], values["next_proprio"])
        self._rows[row] = torch.from_numpy(np.concatenate([
            [rewards[:n] @ self._discounts[:n],  # sum_i gamma^i r_i, i < n
             self._discounts[n],  # gamma^n
             transition.terminated],
            values["reference"].ravel(), values["action"].ravel(), values["next_reference"].ravel(),
        ]).astype(np.float32))
        sources = np.asarray(transition.sources)[:n]
        self._prior[row] = keep or not bool((sources == Source.ACTOR).any())
        self._prior_rows = None
        self._added += 1
        self.kept += keep

    def _slot(self, token: np.ndarray, proprio: np.ndarray) -> int:
        """The slot of a state, the one that it has already if it was here a moment ago."""
        key = token.tobytes() + proprio.tobytes()
        slot = self._recent.get(key)
        if slot is None:
            slot = self._free.pop() if self._free else self._touched
            self._touched = max(self._touched, slot + 1)
            self._tokens[slot] = torch.tensor(token)  # frames are read-only
            self._proprios[slot] = torch.from_numpy(proprio)
            self._recent[key] = slot
            self._key_of[slot] = key
            if len(self._recent) > RECENT_STATES:
                _, old = self._recent.popitem(last=False)
                del self._key_of[old]
        self._users[slot] += 1
        return slot

    def _release(self, slot: int) -> None:
        self._users[slot] -= 1
        if self._users[slot] == 0:
            self._free.append(slot)
            key = self._key_of.pop(slot, None)
            if key is not None:
                del self._recent[key]

    @property
    def stored_states(self) -> int:
        """How many states are in memory for the transitions that are stored."""
        return self._touched - len(self._free)

    def states(self) -> tuple[Tensor, Tensor]:
        """token [M, D] and proprio [M, 2P] of the state of every transition stored."""
        slots = self._states[:len(self), 0]
        return self._tokens[slots].float(), self._proprios[slots]

    def sample(self, batch: int, generator: torch.Generator, prior_fraction: float = 0.0) -> dict[str, Tensor]:
        """`batch` rows drawn with replacement: every stored field, [batch, ...].

        prior_fraction: at least this share from rows in which the actor had no part (earlier data, warm-up, human), if
        there are any: RLPD's symmetric sampling at 0.5.
        """
        size = len(self)
        if size == 0:
            raise ValueError("replay buffer is empty: add transitions before sampling")
        rows = torch.randint(size, (batch,), generator=generator)
        n_prior = round(batch * prior_fraction)
        if n_prior:
            if self._prior_rows is None:
                self._prior_rows = torch.from_numpy(np.flatnonzero(self._prior[:size]))
            if len(self._prior_rows):
                rows[:n_prior] = self._prior_rows[torch.randint(len(self._prior_rows), (n_prior,), generator=generator)]
        flat = self.dims.flat_action
        numbers, reference, action, next_reference = self._rows.index_select(0, rows).split(
            (3, flat, flat, flat), dim=1
        )
        slots = self._states.index_select(0, rows).t().reshape(-1)  # the states, then the next ones
        token, next_token = self._tokens.index_select(0, slots).float().chunk(2)
        proprio, next_proprio = self._proprios.index_select(0, slots).chunk(2)
        as_chunk = (batch, self.dims.chunk, self.dims.action)
        return {
            "token": token, "proprio": proprio, "reference": reference.reshape(as_chunk),
            "action": action.reshape(as_chunk), "next_token": next_token, "next_proprio": next_proprio,
            "next_reference": next_reference.reshape(as_chunk),
            "chunk_return": numbers[:, 0], "discount": numbers[:, 1], "terminated": numbers[:, 2],
            "prior": torch.from_numpy(self._prior[rows.numpy()]),
        }
