"""The replay buffer: transitions over chunks, ready for sampling as tensors."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlt_ros.core.chunks import Source
from rlt_ros.core.networks import Dims
from rlt_ros.core.transition import Transition


class ReplayBuffer:
    """A ring of transitions in preallocated tensors.

    The memory is touched only as rows are written.  `gamma` is the discount per control tick: the return of the chunk
    and gamma^n are computed once, on adding.
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
        stored = {name: shape for name, shape in self._shapes.items() if name != "rewards"}
        stored |= {"chunk_return": (), "discount": (), "terminated": ()}
        self._rows = {name: torch.empty(capacity, *shape) for name, shape in stored.items()}
        self._prior = torch.zeros(capacity, dtype=torch.bool)
        self._discounts = gamma ** np.arange(dims.chunk + 1)  # gamma^0 .. gamma^C
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Store one transition, over the oldest one when full.  ValueError names the field that is wrong."""
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
            values[name] = value
        rewards = values.pop("rewards")
        sources = np.asarray(transition.sources)[:n]
        row = self._added % self.capacity
        for name, value in values.items():
            self._rows[name][row] = torch.from_numpy(np.array(value))
        self._rows["chunk_return"][row] = float(rewards[:n] @ self._discounts[:n])  # sum_i gamma^i r_i, i < n
        self._rows["discount"][row] = float(self._discounts[n])  # gamma^n
        self._rows["terminated"][row] = float(transition.terminated)
        self._prior[row] = not bool((sources == Source.ACTOR).any())
        self._added += 1

    def states(self) -> tuple[Tensor, Tensor]:
        """token [len, D] and proprio [len, 2P] of everything stored."""
        return self._rows["token"][:len(self)], self._rows["proprio"][:len(self)]

    def sample(self, batch: int, generator: torch.Generator, prior_fraction: float = 0.0) -> dict[str, Tensor]:
        """`batch` rows drawn with replacement: every stored field, [batch, ...].

        prior_fraction: at least this share from rows in which the actor had no part (warm-up, human), if there are any:
        RLPD's symmetric sampling at 0.5.
        """
        size = len(self)
        if size == 0:
            raise ValueError("replay buffer is empty: add transitions before sampling")
        rows = torch.randint(size, (batch,), generator=generator)
        n_prior = round(batch * prior_fraction)
        if n_prior and len(prior := self._prior[:size].nonzero().squeeze(1)):
            rows[:n_prior] = prior[rows[:n_prior] % len(prior)]
        return {name: stored.index_select(0, rows) for name, stored in self._rows.items()}
