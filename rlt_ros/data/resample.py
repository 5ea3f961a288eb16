"""From the rate and the kind of action of a recording to a vector a control tick. Pure numpy."""

from __future__ import annotations

import numpy as np


def interpolate(at_s: np.ndarray, times_s: np.ndarray, values: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Values [F, N] of times [F] at times [T], linearly, float32 [T, N]; `angles` bool [N] wrap around, in rad."""
    out = np.empty((len(at_s), values.shape[1]), np.float32)
    for i, column in enumerate(values.T.astype(np.float64)):
        if angles[i]:
            column = (np.interp(at_s, times_s, np.unwrap(column)) + np.pi) % (2 * np.pi) - np.pi
            out[:, i] = column
        else:
            out[:, i] = np.interp(at_s, times_s, column)
    return out


def newest(at_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Index [T] of the newest of times [F] that is not after each of times [T]; the first where there is none."""
    return (np.searchsorted(times_s, at_s + 1e-6, side="right") - 1).clip(0)


def wrapped(differences: np.ndarray) -> np.ndarray:
    """Differences of angles, within half a turn."""
    return (differences + np.pi) % (2 * np.pi) - np.pi


def actions(
    at_s: np.ndarray,
    times_s: np.ndarray,
    values: np.ndarray,
    kind: str,
    scale: np.ndarray,
    names: tuple[str, ...],
    frame_s: float | None = None,
) -> np.ndarray:
    """Normalised actions float32 [T, A] at ticks of times [T] from a recording's, [F, A] of times [F], SI.

    kind: `normalised` (as they are), `delta` (a frame of `frame_s`), `velocity`, or `position`: targets, of which a
    tick's action is how far they went since the tick before.  scale [A]: SI a tick at full action.
    """
    period_s = (at_s[1] - at_s[0]) if len(at_s) > 1 else 1.0
    if kind == "position":
        turns = np.array([name == "yaw" for name in names])
        targets = np.stack(
            [
                np.interp(at_s, times_s, np.unwrap(c) if turns[i] else c)
                for i, c in enumerate(values.T.astype(np.float64))
            ],
            1,
        )
        steps = np.diff(targets, axis=0, prepend=targets[:1])
        return (steps / scale).astype(np.float32)
    held = values[newest(at_s, times_s)]
    if kind == "normalised":
        return held.astype(np.float32)
    factor = period_s if kind == "velocity" else period_s / (frame_s or period_s)
    return (held.astype(np.float64) * factor / scale).astype(np.float32)
