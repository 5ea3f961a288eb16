"""Recorded demonstrations: one ``.npz`` an episode.

``images`` uint8 [F, cameras, S, S, 3], taken at ``frame_tick`` [F]; ``proprio`` float32 [T, P] and ``action`` float32
[T, A] (normalised, what was executed from that proprioception on) at every tick; ``success`` and ``critical_tick``
(-1: it never came to the critical phase). What was imported also has ``instruction``.
"""

from __future__ import annotations

import errno
import json
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rlt_ros.data.mapping import Mapping

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
KEYS = ("images", "frame_tick", "proprio", "action", "success", "critical_tick")


def paths(folder: Path) -> list[Path]:
    """The episodes of a folder, by name. ValueError when there are none."""
    found = sorted(Path(folder).glob("episode_*.npz"))
    if not found:
        raise ValueError(f"{folder}: no demonstrations (episode_*.npz); make them with `rlt demos record`, or import"
                         " others' with `rlt demos import`")
    return found


def read(path: Path, pictures: bool = True) -> dict[str, np.ndarray]:
    """One episode, without `images` unless `pictures`. ValueError when it cannot be read."""
    try:
        with np.load(path) as file:
            there = file.files
            episode = {k: file[k] for k in there if pictures or k != "images"}
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it and record it again") from error
    if missing := [key for key in KEYS if key not in there]:
        raise ValueError(f"{path}: has no {', '.join(missing)}; delete it and record or import it again")
    return episode


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of an ``.npz`` lie in their file, so that they can be read one by one.

    offset: of the first, in bytes.  shape: [F, cameras, S, S, 3], uint8.  checksum: of the file's content, from those
    that it carries.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    checksum: str

    @classmethod
    def find(cls, path: Path) -> Pictures:
        """ValueError when the file is damaged, or written in a way in which pictures cannot be read alone."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                (info,) = (m for m in members if m.filename == "images.npy")
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
                    shape, fortran, dtype = read_header(member)
                    head = member.tell()
            with open(path, "rb") as file:
                file.seek(info.header_offset + 26)  # lengths of name and extra field, which differ from the directory's
                name, extra = struct.unpack("<HH", file.read(4))
        except Exception as error:
            raise ValueError(f"{path}: its pictures cannot be read ({error}); delete it and record it again") from error
        if info.compress_type != zipfile.ZIP_STORED or fortran or dtype != np.uint8 or len(shape) != 5:
            raise ValueError(f"{path}: pictures are {dtype} {shape}, {'' if info.compress_type else 'not '}compressed;"
                             " expected uint8 [frames, cameras, side, side, 3] as numpy.savez writes them")
        checksum = ",".join(f"{m.filename}:{m.file_size}:{m.CRC:08x}" for m in members)
        return cls(Path(path), info.header_offset + 30 + name + extra + head, shape, checksum)

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture uint8 [cameras, S, S, 3] of all cameras. ValueError when the file ends before it."""
        count = int(np.prod(self.shape[1:]))
        values = np.fromfile(self.path, np.uint8, count, offset=self.offset + index * count)
        if len(values) != count:
            raise ValueError(f"{self.path}: ends within picture {index}; delete it and record it again")
        return values.reshape(self.shape[1:])


def load(folder: Path) -> list[dict[str, np.ndarray]]:
    """All episodes of a folder, by name. ValueError when there are none or one cannot be read."""
    return [read(path) for path in paths(folder)]


def save(path: Path, images: Iterable[np.ndarray], count: int, **rest: np.ndarray) -> None:
    """Write an episode whose `count` pictures uint8 [cameras, S, S, 3] come one after another, and are not all kept.

    ValueError when another number of pictures comes, or when the disk is full.
    """
    with _named(path), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
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
def _named(path: Path) -> Iterator[None]:
    """A full disk is a ValueError with the file's name, which the error of a write does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ValueError(
            f"{path}: cannot be written ({error.strerror}); make room there, or give another folder"
        ) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that gets its name at the end, and is gone when something fails.

    ValueError when `out` is there already, or when the disk is full.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: is there already, and nothing is written over; take another folder or delete it")
    part = out.with_name(f".{out.name}.part")  # of a run that was killed there may be one
    made = [parent for parent in part.parents if not parent.exists()]
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _named(out):
            part.mkdir(parents=True)
            yield part
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for parent in [] if out.exists() else made:
            with suppress(OSError):  # not empty any more
                parent.rmdir()


def require_room(out: Path, folder: Path, size: int) -> None:
    """ValueError when `folder`, the temporary one of `out`, cannot take so many bytes of pictures."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{out}: the pictures take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there; give another"
            " folder, or take fewer or smaller ones (pictures.every and pictures.size in the mapping)"
        )


def note_origin(folder: Path, source: Path, mapping: Mapping, notes: list[str]) -> None:
    """import.json: where demonstrations come from, and how."""
    origin = {"source": str(Path(source).resolve()), "task": mapping.task.name, "notes": notes, "mapping": mapping.text}
    (folder / "import.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
