"""How much a flow is corrected towards the chunk before it (real-time chunking, arXiv 2506.07339)."""

from __future__ import annotations

# The largest weight of the guidance.  The published 5 overshoots here: the actions of a chunk go together, so the
# gradient is several times that of independent ones, and with ten steps the chunk begins to swing.
GUIDANCE = 1.0


def guidance(time: float) -> float:
    """Weight of the correction of a flow at `time` (1 noise, 0 actions)."""
    done = 1.0 - time
    spread = time**2 / (time**2 + done**2)  # of where the flow may end, as seen from here
    return GUIDANCE if done == 0.0 else min(GUIDANCE, time / (done * spread))
