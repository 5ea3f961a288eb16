"""How far a share or a median from few episodes can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson score)."""
    if episodes == 0:
        return 0.0, 1.0
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the median from the order of the values, whatever their distribution (binomial).

    Of few values (under 6 for 95 %) it is all of them. ValueError without any.
    """
    if not values:
        raise ValueError("the median of no values has no interval")
    ordered, n = sorted(values), len(values)
    below, outside = -1, 0.0  # the chance that no more values than `below` are under the median is still small
    while below + 1 < n // 2 and outside + math.comb(n, below + 1) / 2**n <= (1 - confidence) / 2:
        below += 1
        outside += math.comb(n, below) / 2**n
    first = max(0, below)
    return float(ordered[first]), float(ordered[n - 1 - first])
