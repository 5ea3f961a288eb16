"""Demonstrations as a LeRobot dataset of version 3.0, with the mapping that brings it back (rlt_ros.data.lerobot).

A frame is a control tick: LeRobot knows one rate. A picture is repeated until the next one, which costs a video little.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlt_ros.data import demos
from rlt_ros.data.lerobot import DATA, EPISODES, INFO, STATS, TASKS, VERSION, VIDEOS
from rlt_ros.data.mapping import DemoError
from rlt_ros.data.video import VideoWriter
from rlt_ros.sim.task import Task

MAPPING = "meta/rlt_mapping.yaml"
FILES_PER_CHUNK = 1000
DATA_BYTES, VIDEO_BYTES = 100 << 20, 200 << 20  # a file of data, or of video, is closed when it is larger
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_STATE, _ACTION, _SUCCESS, _CRITICAL = "observation.state", "action", "next.success", "critical"
_INDEX = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
          "task_index": "int64"}  # fmt: skip


class _PictureStats:
    """Statistics of pictures, per channel in [0, 1], from counts of their values: exact, and of constant size."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)
        self.pictures = 0

    def add(self, picture: np.ndarray) -> None:
        for channel in range(3):
            self.counts[channel] += np.bincount(picture[..., channel].ravel(), minlength=256)
        self.pictures += 1

    def of(self) -> dict[str, list]:
        shades = np.arange(256) / 255
        total = self.counts.sum(1, keepdims=True)
        mean = (self.counts * shades).sum(1) / total[:, 0]
        std = np.sqrt((self.counts * (shades - mean[:, None]) ** 2).sum(1) / total[:, 0])
        summed = self.counts.cumsum(1) / total
        found = {"min": [shades[row > 0][0] for row in self.counts],
                 "max": [shades[row > 0][-1] for row in self.counts],
                 "mean": mean, "std": std}  # fmt: skip
        found |= {name: [shades[np.searchsorted(row, q)] for row in summed] for name, q in QUANTILES.items()}
        return {name: [[[float(v)]] for v in values] for name, values in found.items()} | {"count": [self.pictures]}

    def __iadd__(self, other: _PictureStats) -> _PictureStats:
        self.counts += other.counts
        self.pictures += other.pictures
        return self


def _stats(values: np.ndarray) -> dict[str, list]:
    """Statistics of values [frames, size]."""
    v = values.astype(np.float64)
    found = {"min": v.min(0), "max": v.max(0), "mean": v.mean(0), "std": v.std(0)}
    found |= {name: np.quantile(v, q, axis=0) for name, q in QUANTILES.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(v)]}


class _Files:
    """Numbers of chunk and file, and when the next one begins."""

    def __init__(self) -> None:
        self.chunk, self.file = 0, 0

    def next(self) -> None:
        self.chunk, self.file = (self.chunk + 1, 0) if self.file == FILES_PER_CHUNK - 1 else (self.chunk, self.file + 1)

    @property
    def at(self) -> dict[str, int]:
        return {"chunk_index": self.chunk, "file_index": self.file}


def _column(values: np.ndarray, dtype: str, size: int) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).ravel().astype("bool" if dtype == "bool" else dtype))
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def features_of(task: Task, size: int) -> dict[str, dict]:
    """The features of info.json for pictures of `size` px a side."""
    fps = round(task.rate)
    video = {"video.height": size, "video.width": size, "video.codec": VideoWriter.CODEC,
             "video.pix_fmt": VideoWriter.PIXELS, "video.fps": fps, "video.channels": 3, "video.is_depth_map": False,
             "has_audio": False}  # fmt: skip
    names = [f"{key.key}_{i}" for key in task.state for i in range(key.size)]
    out: dict[str, dict] = {
        _STATE: {"dtype": "float32", "shape": [len(names)], "names": names},
        _ACTION: {"dtype": "float32", "shape": [task.action_dim], "names": list(task.action_names)},
    }
    for camera in task.cameras:
        out[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": [size, size, 3],
            "names": ["height", "width", "channels"],
            "info": video,
        }
    for name in (_SUCCESS, _CRITICAL):
        out[name] = {"dtype": "bool", "shape": [1], "names": None}
    return out | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDEX.items()}


def mapping_of(task: Task, task_reference: str, size: int, every: int) -> dict:
    """The mapping with which the import of an export gives the same demonstrations."""
    state, start = {}, 0
    for key in task.state:
        state[key.key] = {"from": _STATE, "pick": [f"{key.key}_{i}" for i in range(key.size)]}
        start += key.size
    return {"task": task_reference, "pictures": {"size": size, "every": every},
            "cameras": {camera: f"observation.images.{camera}" for camera in task.cameras}, "state": state,
            "action": {"from": _ACTION, "kind": "normalised"}, "success": {"from": _SUCCESS},
            "critical": {"from": _CRITICAL}}  # fmt: skip


def export_lerobot(
    source: Path,
    task: Task,
    task_reference: str,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write the demonstrations of a folder into the new folder `out`; it is there whole or, after an error, not at all.

    task_reference: the task's name or file, for the mapping.  Returns totals of episodes and frames.  ValueError.
    """
    paths = demos.paths(source)
    fps = round(task.rate)
    if abs(fps - task.rate) > 1e-9:
        raise DemoError(f"task '{task.name}': rate is {task.rate:g}, a LeRobot dataset has whole frames a second")
    first = demos.read(paths[0])
    size = first["images"].shape[2]
    if size % 2:
        raise DemoError(f"{paths[0]}: pictures have {size} px a side, a video needs an even number")
    features = features_of(task, size)
    if Path(task_reference).is_file():
        task_reference = str(Path(task_reference).resolve())
    with demos.new_folder(out) as root:
        writer = _Writer(root, task, features, fps, size)
        every = 0
        for done, path in enumerate(paths, 1):
            episode = first if done == 1 else demos.read(path)
            ticks = episode["frame_tick"]
            every = every or (int(ticks[1] - ticks[0]) if len(ticks) > 1 else 0)
            writer.add(path, episode)
            progress(done, len(paths))
        writer.finish()
        text = yaml.safe_dump(mapping_of(task, task_reference, size, every or 1), sort_keys=False)
        (root / MAPPING).write_text("# Brings this dataset back: rlt demos import --from lerobot\n" + text)
    return {"episodes": len(paths), "frames": writer.frames}


class _Writer:
    def __init__(self, root: Path, task: Task, features: dict[str, dict], fps: int, size: int) -> None:
        self.root, self.task, self.features, self.fps, self.size = root, task, features, fps, size
        self.frames = 0
        self.rows: list[dict] = []
        self.tasks: dict[str, int] = {}
        self.data, self.parquet = _Files(), None
        self.videos: dict[str, tuple[_Files, VideoWriter | None]] = {}
        self.pictures = {camera: _PictureStats() for camera in task.cameras}
        self.numbers: dict[str, list[np.ndarray]] = {}  # for the quantiles: some 100 bytes a frame

    def add(self, path: Path, episode: dict[str, np.ndarray]) -> None:
        steps, ticks, images = len(episode["action"]), episode["frame_tick"], episode["images"]
        shapes = (self.task.proprio_dim, self.task.action_dim, (len(self.task.cameras), self.size, self.size, 3))
        has = (episode["proprio"].shape[1:], episode["action"].shape[1:], images.shape[1:])
        if has != ((shapes[0],), (shapes[1],), shapes[2]) or len(episode["proprio"]) != steps or not steps:
            raise DemoError(
                f"{path}: {steps} steps with proprioception, action and pictures of {has}, expected {shapes}"
                f" of the task '{self.task.name}'; is it the right --task?"
            )
        for name in ("proprio", "action"):
            bad = np.argwhere(~np.isfinite(episode[name]))
            if len(bad):
                raise DemoError(f"{path}: frame {bad[0][0]}: {name}[{bad[0][1]}] is not finite; delete the file")
        if not len(ticks) or ticks[0] != 0 or (np.diff(ticks) <= 0).any() or ticks[-1] >= steps:
            raise DemoError(f"{path}: frame_tick is not 0 to {steps - 1}, growing; delete the file")
        index, text = len(self.rows), str(episode.get("instruction", self.task.instruction))
        number = self.tasks.setdefault(text, len(self.tasks))
        at, success = np.arange(steps), np.zeros(steps, bool)
        success[-1] = bool(episode["success"])
        begins = int(episode["critical_tick"])
        columns = {_STATE: episode["proprio"], _ACTION: episode["action"], _SUCCESS: success,
                   _CRITICAL: (at >= begins) & (begins >= 0), "timestamp": (at / self.fps).astype(np.float32),
                   "frame_index": at, "episode_index": np.full(steps, index), "index": self.frames + at,
                   "task_index": np.full(steps, number)}  # fmt: skip
        row = {"episode_index": index, "tasks": [text], "length": steps} | self._save_data(columns)
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + steps}
        stats = {name: _stats(np.asarray(values, np.float64).reshape(steps, -1)) for name, values in columns.items()}
        held = np.searchsorted(ticks, at, side="right") - 1
        for i, camera in enumerate(self.task.cameras):
            key, found = f"observation.images.{camera}", _PictureStats()
            for picture in images[:, i]:
                found.add(picture)
            self.pictures[camera] += found
            stats[key] = found.of()
            row |= self._save_video(key, images[:, i], held)
        row |= {f"stats/{name}/{what}": value for name, some in stats.items() for what, value in some.items()}
        self.rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        for name, values in columns.items():
            self.numbers.setdefault(name, []).append(np.asarray(values, np.float64 if name == "index" else np.float32))
        self.frames += steps

    def _save_data(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        table = pa.table(
            {
                name: _column(values, self.features[name]["dtype"], int(np.prod(self.features[name]["shape"])))
                for name, values in columns.items()
            }
        )
        if self.parquet is None:
            path = self.root / DATA.format(**self.data.at)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parquet = pq.ParquetWriter(path, table.schema, compression="snappy"), path
        writer, path = self.parquet
        writer.write_table(table)  # a group of rows an episode
        where = {f"data/{name}": value for name, value in self.data.at.items()}
        if path.stat().st_size > DATA_BYTES:
            self._close_data()
        return where

    def _close_data(self) -> None:
        if self.parquet is not None:
            self.parquet[0].close()
            self.parquet = None
            self.data.next()

    def _save_video(self, key: str, images: np.ndarray, held: np.ndarray) -> dict:
        files, video = self.videos.get(key, (_Files(), None))
        if video is None:
            path = self.root / VIDEOS.format(video_key=key, **files.at)
            video = VideoWriter(path, self.fps, self.size, self.size)
        begin = video.count / self.fps
        for picture in held:
            video.add(images[picture])
        where = {f"videos/{key}/{name}": value for name, value in files.at.items()}
        where |= {f"videos/{key}/from_timestamp": begin, f"videos/{key}/to_timestamp": video.count / self.fps}
        if video.path.stat().st_size > VIDEO_BYTES:
            video.close()
            files.next()
            video = None
        self.videos[key] = files, video
        return where

    def finish(self) -> None:
        self._close_data()
        for _, video in self.videos.values():
            if video is not None:
                video.close()
        path = self.root / EPISODES.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self.rows), path, compression="snappy")
        self._write_tasks()
        stats = {}
        for name, parts in self.numbers.items():
            stats[name] = _stats(np.concatenate(parts).reshape(self.frames, -1))
        stats |= {f"observation.images.{camera}": found.of() for camera, found in self.pictures.items()}
        (self.root / STATS).write_text(json.dumps(stats, indent=4))
        info = {"codebase_version": VERSION, "robot_type": self.task.name, "total_episodes": len(self.rows),
                "total_frames": self.frames, "total_tasks": len(self.tasks), "chunks_size": FILES_PER_CHUNK,
                "data_files_size_in_mb": DATA_BYTES >> 20, "video_files_size_in_mb": VIDEO_BYTES >> 20, "fps": self.fps,
                "splits": {"train": f"0:{len(self.rows)}"}, "data_path": DATA, "video_path": VIDEOS,
                "features": self.features}  # fmt: skip
        (self.root / INFO).write_text(json.dumps(info, indent=4))

    def _write_tasks(self) -> None:
        """LeRobot reads this table with pandas, with the texts as its index, which is what the metadata say."""
        table = pa.table({"task_index": pa.array(list(self.tasks.values()), pa.int64()), "task": list(self.tasks)})
        kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in kinds
        ]
        pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0",
                  "creator": {"library": "rlt_ros", "version": "0"}}  # fmt: skip
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), self.root / TASKS)
