"""What is learned from: one state of the critical phase, what was done, what came of it. Imports no torch."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(eq=False)
class Transition:
    """<x_t, a_t:t+C-1, ref, r, x_t+n>: a state of the critical phase, what was done for a chunk, what came of it."""

    sequence: int  # place in the session's journal, from 0, without gaps
    episode: int
    tick: int  # control tick of the state
    token: np.ndarray  # float32 [D]
    proprio: np.ndarray  # float32 [2P], SI: now, now - at the token's frame
    reference: np.ndarray  # float32 [C, A], human steps replaced by the human's action
    action: np.ndarray  # float32 [C, A], what was executed (steps >= n: padding)
    rewards: np.ndarray  # float32 [C], of each executed step
    steps: int  # n <= C, executed steps between the state and the next one
    next_token: np.ndarray  # float32 [D]
    next_proprio: np.ndarray  # float32 [2P]
    next_reference: np.ndarray  # float32 [C, A]
    terminated: bool  # success or failure: no value after it
    truncated: bool  # time-out: the value goes on
    sources: np.ndarray  # uint8 [C], chunks.Source of each step
    token_age_ticks: int
    policy_version: int
