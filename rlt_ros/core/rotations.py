"""Orientations as matrices [3, 3], rotation vectors [3] (axis times angle, rad) and quaternions [4] (x y z w)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def turn(vector: Sequence[float]) -> np.ndarray:
    """The matrix of a rotation vector."""
    vector = np.asarray(vector, float)
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / angle if angle > 1e-12 else vector
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def vector_of(matrix: np.ndarray) -> np.ndarray:
    """The rotation vector of a matrix; its norm is at most pi."""
    x, y, z, w = quaternion_of(matrix)
    axis = np.array([x, y, z])
    sine = float(np.linalg.norm(axis))
    return 2.0 * axis if sine < 1e-12 else axis * (2.0 * np.arctan2(sine, w) / sine)


def matrix_of(quaternion: Sequence[float]) -> np.ndarray:
    """The matrix of a quaternion of any length; ValueError when it is not finite or has none."""
    quaternion = np.asarray(quaternion, float)
    norm = float(np.linalg.norm(quaternion))
    if not np.isfinite(norm) or norm < 1e-6:
        raise ValueError(f"orientation {quaternion.tolist()} is no quaternion x y z w: expected finite, of length 1")
    x, y, z, w = quaternion / norm
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def quaternion_of(matrix: np.ndarray) -> np.ndarray:
    """The quaternion of a matrix, of length 1, with w >= 0."""
    m = matrix
    # Four ways to the same quaternion up to its sign; the longest is the one that divides by the largest number.
    ways = np.array([
        [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m[0, 0] + m[1, 1] + m[2, 2]],
        [1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
        [m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
        [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2], m[1, 0] - m[0, 1]],
    ])  # fmt: skip
    longest = ways[int(np.argmax(np.einsum("ij,ij->i", ways, ways)))]
    return longest / np.linalg.norm(longest) * (1.0 if longest[3] >= 0.0 else -1.0)


def shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    """`vector`, at most `limit` long."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= limit else vector * (limit / norm)
