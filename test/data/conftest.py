"""A small task, and LeRobot datasets of an arm with two joints, written as others write them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlt_ros.data.video import VideoWriter
from rlt_ros.sim.task import Task, load_task

NAMES = ["pan.pos", "lift.pos"]
KEY = "observation.images.front"


@pytest.fixture
def arm(tmp_path) -> Task:
    """Two joints at 50 Hz, one camera."""
    path = tmp_path / "arm.yaml"
    limits = dict.fromkeys(("max_linear_velocity", "max_angular_velocity", "max_linear_acceleration",
                            "max_angular_acceleration", "max_deviation", "workspace_lower", "workspace_upper",
                            "max_force")) | {"action_limit": 1.0, "max_step_change": 2.0}  # fmt: skip
    path.write_text(yaml.safe_dump({
        "name": "arm", "instruction": "wave", "environment": {"id": "none:Robot"}, "rate": 50.0,
        "cameras": {"front": "camera:front"},
        "state": [{"key": "joint_position", "size": 2, "scale": [0.5, 0.5], "moved": [0.1, 0.1]}],
        "action": {"names": ["pan", "lift"], "scale": [0.02, 0.02]}, "success": {"key": "success"},
        "critical_timeout": 5.0, "approach_timeout": 5.0, "limits": limits,
    }))  # fmt: skip
    return load_task(path)


@pytest.fixture
def mapping_file(tmp_path, arm) -> Callable[..., Path]:
    """mapping_file(**changes): one for the datasets of `lerobot`; a change of None takes the key out."""

    def write(**changes: object) -> Path:
        raw = {
            "task": "arm.yaml",
            "pictures": {"size": 16, "every": 5},
            "cameras": {"front": KEY},
            "state": {"joint_position": {"from": "observation.state", "pick": NAMES, "unit": "deg"}},
            "action": {"from": "action", "pick": NAMES, "kind": "position", "unit": "deg"},
            "critical": {"before_end": 0.2},
        } | changes
        path = tmp_path / "map.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
        return path

    return write


def shade(frame: int) -> int:
    """Brightness of a whole dataset's frame, by which a picture is known again."""
    return 30 + 4 * (frame % 50)


class Made:
    """A dataset: change its parts and `write` it."""

    def __init__(self, root: Path, fps: int = 30, lengths: tuple[int, ...] = (20, 31, 25)) -> None:
        self.root, self.fps, self.lengths = root, fps, list(lengths)
        self.info: dict = {"codebase_version": "v3.0", "fps": fps, "total_episodes": len(lengths)}
        self.states, self.actions, self.stamps, first = [], [], [], 0
        for length in lengths:
            at = np.arange(length)
            state = np.stack([15 * np.sin(at / 10), 90 + at * 0.3], 1).astype(np.float32)  # degrees
            self.states.append(state)
            self.actions.append(state + np.float32(1.0))  # a leader that is ahead
            self.stamps.append((at / fps).astype(np.float32))
            first += length
        self.shown = [list(range(sum(lengths[:i]), sum(lengths[: i + 1]))) for i in range(len(lengths))]
        self.names: list[str] = list(NAMES)
        self.stats: dict | None = {}
        self.video = self.root / f"videos/{KEY}/chunk-000/file-000.mp4"
        self.data = self.root / "data/chunk-000/file-000.parquet"

    def write(self, picture_dtype: str = "video") -> Path:
        (self.root / "meta/episodes/chunk-000").mkdir(parents=True)
        self.data.parent.mkdir(parents=True)
        rows, tables, first = [], [], 0
        for i, length in enumerate(self.lengths):
            rows.append({
                "episode_index": i, "tasks": ["wave the arm"], "length": length, "data/chunk_index": 0,
                "data/file_index": 0, "dataset_from_index": first, "dataset_to_index": first + length,
                f"videos/{KEY}/chunk_index": 0, f"videos/{KEY}/file_index": 0,
                f"videos/{KEY}/from_timestamp": first / self.fps,
                f"videos/{KEY}/to_timestamp": (first + length) / self.fps,
            })  # fmt: skip
            some = len(self.states[i])
            columns = {
                "observation.state": list(self.states[i]), "action": list(self.actions[i]),
                "timestamp": self.stamps[i], "frame_index": np.arange(some), "index": first + np.arange(some),
                "episode_index": np.full(some, i), "task_index": np.zeros(some, np.int64),
            }  # fmt: skip
            if picture_dtype == "image":
                import cv2

                png = [
                    cv2.imencode(".png", np.full((32, 48, 3), shade(f), np.uint8))[1].tobytes() for f in self.shown[i]
                ]
                columns[KEY] = [{"bytes": data, "path": None} for data in png]
            tables.append(pa.table(columns))
            first += length
        pq.write_table(pa.Table.from_pylist(rows), self.root / "meta/episodes/chunk-000/file-000.parquet")
        pq.write_table(pa.concat_tables(table for table in tables if len(table)), self.data)
        tasks = pa.table({"task_index": [0], "__index_level_0__": ["wave the arm"]})
        pq.write_table(tasks, self.root / "meta/tasks.parquet")
        if picture_dtype == "video":
            video = VideoWriter(self.video, self.fps, 32, 48)
            for frame in (f for shown in self.shown for f in shown):
                video.add(np.full((32, 48, 3), shade(frame), np.uint8))
            video.close()
        features = {
            "observation.state": {"dtype": "float32", "shape": [len(self.names)], "names": self.names},
            "action": {"dtype": "float32", "shape": [self.actions[0].shape[1]], "names": self.names},
            KEY: {"dtype": picture_dtype, "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
        }  # fmt: skip
        (self.root / "meta/info.json").write_text(json.dumps({"features": features} | self.info))
        if self.stats is not None:
            both = {"observation.state": np.concatenate(self.states), "action": np.concatenate(self.actions)}
            made = {
                name: {what: getattr(np, what)(v, axis=0).tolist() for what in ("min", "max", "mean", "std")}
                for name, v in both.items()
            }
            for name, change in self.stats.items():
                made[name] |= change
            (self.root / "meta/stats.json").write_text(json.dumps(made))
        return self.root


@pytest.fixture
def made(tmp_path) -> Callable[..., Made]:
    """made(...): a dataset that is not written yet."""
    return lambda **how: Made(tmp_path / "dataset", **how)
