"""Recorded demonstrations: one ``.npz`` an episode.

``images`` uint8 [F, cameras, S, S, 3], taken at ``frame_tick`` [F]; ``proprio`` float32 [T, P] and ``action`` float32
[T, A] (normalised, what was executed from that proprioception on) at every tick; ``success`` and ``critical_tick``
(-1: it never came to the critical phase). What was imported also has ``instruction``.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rlt_ros.data.mapping import Mapping

KEYS = ("images", "frame_tick", "proprio", "action", "success", "critical_tick")


def paths(folder: Path) -> list[Path]:
    """The episodes of a folder, by name. ValueError when there are none."""
    found = sorted(Path(folder).glob("episode_*.npz"))
    if not found:
        raise ValueError(f"{folder}: no demonstrations (episode_*.npz); make them with `rlt demos record`, or import"
                         " others' with `rlt demos import`")
    return found


def read(path: Path) -> dict[str, np.ndarray]:
    """One episode. ValueError when it cannot be read."""
    try:
        with np.load(path) as file:
            episode = {k: file[k] for k in file.files}
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it and record it again") from error
    if missing := [key for key in KEYS if key not in episode]:
        raise ValueError(f"{path}: has no {', '.join(missing)}; delete it and record or import it again")
    return episode


def load(folder: Path) -> list[dict[str, np.ndarray]]:
    """All episodes of a folder, by name. ValueError when there are none or one cannot be read."""
    return [read(path) for path in paths(folder)]


def save(path: Path, images: Iterable[np.ndarray], count: int, **rest: np.ndarray) -> None:
    """Write an episode whose `count` pictures uint8 [cameras, S, S, 3] come one after another, and are not all kept."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            written = 0
            for picture in images:
                if not written:
                    head = {"descr": "|u1", "fortran_order": False, "shape": (count, *picture.shape)}
                    np.lib.format.write_array_header_1_0(member, head)
                member.write(np.ascontiguousarray(picture, np.uint8).data)
                written += 1
        if written != count:
            raise ValueError(f"{path}: {written} pictures came, expected {count}")
        for name, values in rest.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that gets its name at the end, and is gone when something fails.

    ValueError when `out` is there already.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: is there already, and nothing is written over; take another folder or delete it")
    part = out.with_name(f".{out.name}.part")  # of a run that was killed there may be one
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def note_origin(folder: Path, source: Path, mapping: Mapping, notes: list[str]) -> None:
    """import.json: where demonstrations come from, and how."""
    origin = {"source": str(Path(source).resolve()), "task": mapping.task.name, "notes": notes, "mapping": mapping.text}
    (folder / "import.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
