"""Recorded demonstrations: one ``.npz`` an episode.

``images`` uint8 [F, cameras, S, S, 3], taken at ``frame_tick`` [F]; ``proprio`` float32 [T, P] and ``action`` float32
[T, A] (normalised, what was executed from that proprioception on) at every tick; ``success`` and ``critical_tick``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def load(folder: Path) -> list[dict[str, np.ndarray]]:
    """All episodes of a folder, by name. ValueError when there are none or one cannot be read."""
    paths = sorted(Path(folder).glob("episode_*.npz"))
    if not paths:
        raise ValueError(f"{folder}: no demonstrations (episode_*.npz); make them with `rlt demos record`")
    out = []
    for path in paths:
        try:
            with np.load(path) as file:
                out.append({k: file[k] for k in file.files})
        except Exception as error:
            raise ValueError(f"{path}: cannot be read ({error}); delete it and record it again") from error
    return out
