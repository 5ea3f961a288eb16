"""A frozen VLA's embeddings of demonstrations, computed once a picture and kept on disk.

What is not there (the embeddings of a missing camera, by the VLA's mask) is zero, and known by that.

A cache is a folder of two files: ``embeddings.npy``, float16 [N, M, E], a row for each of :class:`frames.Frames`, and
``embeddings.json``, which says what they were computed from. It gets its name when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from rlt_ros.training.frames import Frames
from rlt_ros.training.processes import Processes
from rlt_ros.vla.backend import Backend

Progress = Callable[[int, int, dict[str, float]], None]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What this package puts beside a checkpoint. It decides nothing about the VLA.
OURS = ("token.json", "token.safetensors", "token_report.json", "token_report.md", "training", "tensorboard",
        "embeddings")  # fmt: skip
_ARRAY, _ABOUT = "embeddings.npy", "embeddings.json"
_BATCH = 64
_SAMPLES = 64  # rows that are compared with their checksum on opening; all of them may be 100 GB
_NAMES = {
    "checkpoint": "another VLA checkpoint", "demonstrations": "other demonstrations", "dtype": "another precision"
}  # fmt: skip


def checkpoint_files(folder: Path) -> list[Path]:
    """The VLA's own files of a checkpoint folder and those below it, by name; relative to it, hidden ones left out."""
    found = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(path for path in found
                  if path.parts[0] not in OURS and not any(part.startswith(".") for part in path.parts))  # fmt: skip


def hash_checkpoint(folder: Path, backend: Backend | None = None) -> str:
    """SHA-256 of what may decide the embeddings: all files, since a back end has its weights in whatever it likes."""
    digest, seen = hashlib.sha256(), set()
    for source in (folder, *getattr(backend, "sources", ())):
        source = Path(source).resolve()
        if source in seen:
            continue
        seen.add(source)
        for path in [Path()] if source.is_file() else checkpoint_files(source):
            with (source / path).open("rb") as file:
                digest.update(str(path).encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def move(backend: Backend, device: torch.device) -> None:
    """Have a back end that is a torch module compute there; another stays where its own settings have it."""
    if isinstance(backend, torch.nn.Module):
        backend.to(device)
        with suppress(AttributeError):  # one that asks its weights where they are
            backend.device = device


@torch.no_grad()
def embed(backend: Backend, images: np.ndarray, processes: Processes, dtype: str = "float32") -> torch.Tensor:
    """Final-layer embeddings float32 [n, M, E] of pictures uint8 [n, cameras, S, S, 3], on the processes' device."""
    with torch.autocast(backend.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        embeddings, seen, _ = backend.look(images)
    return torch.where(seen[..., None], embeddings.float(), 0.0).to(processes.device)


def there(embeddings: torch.Tensor) -> torch.Tensor:
    """bool [n, M] of embeddings [n, M, E]: False for those of what is not to be seen."""
    return (embeddings != 0).any(-1)


def compute(
    backend: Backend, frames: Frames, rows: range, processes: Processes, dtype: str,
    put: Callable[[int, np.ndarray], None], progress: Progress | None = None,
) -> None:  # fmt: skip
    """Call `put(first row, float16 [n, M, E])` for all `rows`, in their order. ValueError where one is not finite."""
    for first in range(rows.start, rows.stop, _BATCH):
        some = range(first, min(first + _BATCH, rows.stop))
        values = embed(backend, frames.images(some), processes, dtype).half().cpu().numpy()
        finite = np.isfinite(values).all((1, 2))
        if not finite.all():
            raise ValueError(f"{frames.where(some[int(np.argmin(finite))])}: the VLA's embeddings are not finite in"
                             f" {dtype}; check the checkpoint, or try --dtype float32")
        put(first, values)
        if progress:
            progress(some.stop - rows.start, len(rows), {})


def embeddings(
    backend: Backend, frames: Frames, checkpoint: str, folder: Path | None, processes: Processes,
    dtype: str = "float32", say: Callable[[str], None] = print, progress: Progress | None = None,
) -> np.ndarray:  # fmt: skip
    """float16 [N, M, E] of all frames, mapped from `folder` where they are, else computed and put there first.

    checkpoint: its hash.  folder: None keeps them in memory.  Several processes compute a part each, into a folder
    that all of them must see.  ValueError when `folder` holds something else, OSError when the disk is too small; then
    nothing is left of it.
    """
    shape = (len(frames), backend.image_tokens, backend.embedding_dim)
    if folder is None:
        out = np.empty(shape, np.float16)

        def put(first: int, values: np.ndarray) -> None:
            out[first : first + len(values)] = values

        compute(backend, frames, range(len(frames)), processes, dtype, put, progress)
        return out
    folder = Path(folder)
    about = {"checkpoint": checkpoint, "demonstrations": frames.checksum, "dtype": dtype}
    why = processes.share(unfit(folder, about, shape) if processes.first else None)
    if why:
        begin = time.monotonic()
        if processes.first:
            say(f"{folder}: {why}; {shape[0]} pictures go through the VLA once ({_bytes(shape) / 1e9:.2f} GB)")
        _write(backend, frames, about, folder, shape, processes, dtype, progress)
        if processes.first:
            say(f"{folder}: {shape[0] / (time.monotonic() - begin):.0f} pictures a second")
    elif processes.first:
        say(f"{folder}: the embeddings of {shape[0]} pictures are there")
        if progress:
            progress(shape[0], shape[0], {})
    try:
        return np.load(folder / _ARRAY, mmap_mode="r")
    except OSError as error:
        raise ValueError(f"{folder}: process {processes.rank} does not see it ({error}); the folder must be shared by"
                         " all machines") from error


def unfit(folder: Path, about: dict[str, str], shape: tuple[int, int, int]) -> str:
    """Why a cache cannot be used, and has to be written; "" when it can. ValueError when the folder is none of ours."""
    if not folder.exists():
        return "no embeddings yet"
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in (_ARRAY, _ABOUT))
    if strangers:
        raise ValueError(f"{folder}: is no cache of embeddings, there is {strangers[0]!r} in it; nothing is written"
                         " over; give --cache another folder")
    try:
        known = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        if other := [text for key, text in _NAMES.items() if known["about"][key] != about[key]]:
            return f"the embeddings there are of {' and '.join(other)}"
        array = np.load(folder / _ARRAY, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"the embeddings there are damaged ({error})"
    if array.shape != shape or array.dtype != np.float16 or _sample(array) != known["sample"]:
        return "the embeddings there are damaged (size or checksum differs)"
    return ""


def _sample(array: np.ndarray) -> int:
    """Checksum of some rows, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(array) - 1, _SAMPLES).astype(int))
    return zlib.crc32(np.ascontiguousarray(array[rows]))


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _write(backend, frames, about, folder, shape, processes, dtype, progress) -> None:
    """Fill a folder beside the wanted one, each process a part, and rename it."""
    part = folder.with_name(f".{folder.name}.part")
    with _new(part, folder, shape) if processes.first else _nothing():
        processes.wait()
        row_bytes, share = _bytes(shape[1:]), -(-shape[0] // processes.count)
        mine = range(min(processes.rank * share, shape[0]), min((processes.rank + 1) * share, shape[0]))
        with (part / _ARRAY).open("r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            head = file.tell()

            def put(first: int, values: np.ndarray) -> None:
                file.seek(head + first * row_bytes)
                file.write(np.ascontiguousarray(values).data)

            compute(backend, frames, mine, processes, dtype, put, progress)
            file.flush()
            os.fsync(file.fileno())
        processes.wait()
        if processes.first:
            sample = _sample(np.load(part / _ARRAY, mmap_mode="r"))
            with (part / _ABOUT).open("w", encoding="utf-8") as file:
                json.dump({"about": about, "sample": sample}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(part)
            shutil.rmtree(folder, ignore_errors=True)  # checked before to hold nothing but embeddings
            part.rename(folder)
            sync_folder(folder.parent)
    processes.wait()


@contextmanager
def _new(part: Path, folder: Path, shape: tuple[int, ...]):
    """An empty folder with room for the embeddings, gone when something fails."""
    part.mkdir(parents=True, exist_ok=True)
    lock = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{part}: another run computes these embeddings now; wait for it, or use --no-cache"
                             " or another --cache") from error
        try:
            with (part / _ARRAY).open("wb") as file:  # over what a killed run left
                np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
                file.flush()
                try:
                    os.posix_fallocate(file.fileno(), 0, file.tell() + _bytes(shape))
                except OSError as error:
                    free = shutil.disk_usage(part).free
                    text = (f"{folder}: the embeddings take {_bytes(shape) / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
                            f" ({error.strerror}); free some, give --cache another disk, or use --no-cache")
                    raise OSError(error.errno, text) from error
            yield
        finally:
            shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def _nothing():
    yield


def sync_folder(folder: Path) -> None:
    """Have renames in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
