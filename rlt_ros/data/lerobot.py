"""LeRobot datasets of version 3.0: what stands in them, checked, and their import as demonstrations.

    meta/info.json                              rate, features, totals, patterns of paths
    meta/stats.json                             min, max, mean, std, count and quantiles of every feature
    meta/tasks.parquet                          task_index, task
    meta/episodes/chunk-000/file-000.parquet    a row an episode: length, tasks, and in which files it is from where on
    data/chunk-000/file-000.parquet             a row a frame, of several episodes
    videos/<feature>/chunk-000/file-000.mp4     pictures of several episodes, one after another

Episodes are read one at a time. Every DemoError names file, episode and frame.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlt_ros.core import pictures
from rlt_ros.core.pictures import PictureError
from rlt_ros.core.proprioception import SIZES, ProprioError
from rlt_ros.data import demos, resample
from rlt_ros.data.mapping import DemoError, Mapping, Part, When
from rlt_ros.data.video import Video, VideoError

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_CAMERA = {"video", "image"}
_DIGITS = str.maketrans("", "", "0123456789")
_FAR = 0.02  # of the range of a value: a mean or standard deviation that is further off is wrong
_UNIT = 0.01  # a quaternion's length is not further from 1; rounded to 3 digits it is nearer


@dataclass(frozen=True)
class Episode:
    """A row of meta/episodes."""

    index: int
    length: int
    tasks: tuple[str, ...]
    first: int  # its first frame, counted over the whole dataset
    data: tuple[int, int]  # chunk and file
    videos: dict[str, tuple[int, int, float, float]]  # feature -> chunk, file, from and to [s]
    where: str  # file of the row


class Dataset:
    """A dataset's meta data, checked. DemoError says what is wrong with which file.

    Attributes:
        fps: frames a second.
        features: name -> {dtype, shape, names, ...} as in info.json.
        episodes: in their order.
        stats: feature -> statistic -> values; empty without meta/stats.json.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        info = self._json(INFO)
        version = str(info.get("codebase_version", ""))
        if not version.startswith("v3."):
            raise DemoError(
                f"{self.root / INFO}: codebase_version is {version!r}, expected {VERSION}; LeRobot converts"
                " older datasets: python -m lerobot.scripts.convert_dataset_v21_to_v30"
            )
        try:
            self.fps = float(info["fps"])
            self.features: dict[str, dict] = dict(info["features"])
            self._data, self._video = info.get("data_path") or DATA, info.get("video_path") or VIDEOS
            shapes = [feature["dtype"] and len(feature["shape"]) for feature in self.features.values()]
        except (KeyError, TypeError, ValueError) as error:
            raise DemoError(f"{self.root / INFO}: {error!r}, expected fps and features with dtype and shape") from None
        if not (np.isfinite(self.fps) and self.fps > 0 and shapes):
            raise DemoError(
                f"{self.root / INFO}: fps is {self.fps:g} with {len(shapes)} features, expected both above 0"
            )
        self.stats = self._json(STATS) if (self.root / STATS).is_file() else {}
        self.tasks = self._tasks()
        self.episodes = self._episodes()
        frames = sum(episode.length for episode in self.episodes)
        for total, has in (("total_episodes", len(self.episodes)), ("total_frames", frames)):
            if info.get(total) not in (None, has):
                raise DemoError(
                    f"{self.root / INFO}: {total} is {info[total]}, but meta/episodes has {has}; a part of the dataset"
                    " is missing: fetch it again"
                )
        self._open: tuple[Path, pq.ParquetFile, np.ndarray] | None = None
        self._kept: tuple[Path, list[int], list[str], pa.Table] | None = None  # groups of rows that were read last
        self._videos: dict[str, tuple[Path, Video]] = {}  # of each feature the file that was read last

    def _json(self, name: str) -> dict:
        try:
            found = json.loads((self.root / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise DemoError(f"{self.root / name}: {error.strerror}; expected the folder of a LeRobot dataset") from None
        except ValueError as error:
            raise DemoError(f"{self.root / name}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise DemoError(f"{self.root / name}: is a {type(found).__name__}, expected keys and values")
        return found

    def _table(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            return pq.read_table(path, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DemoError(
                f"{path}: cannot be read ({error}); it is missing, cut off or damaged: fetch it again"
            ) from None

    def _tasks(self) -> dict[int, str]:
        path = self.root / TASKS
        table = self._table(path)
        text = next(
            (f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)), ""
        )
        if not text or "task_index" not in table.column_names:
            raise DemoError(f"{path}: has the columns {', '.join(table.column_names)}, expected task and task_index")
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))

    def _episodes(self) -> list[Episode]:
        found = []
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise DemoError(
                f"{self.root / 'meta/episodes'}: no episodes (chunk-*/file-*.parquet); the dataset is empty"
                " or not whole"
            )
        keys = [name for name, feature in self.features.items() if feature["dtype"] == "video"]
        for path in files:
            names = self._schema(path)
            rows = self._table(path, [name for name in names if not name.startswith("stats/")]).to_pylist()
            for row in rows:
                try:
                    videos = {
                        key: (
                            row[f"videos/{key}/chunk_index"],
                            row[f"videos/{key}/file_index"],
                            float(row[f"videos/{key}/from_timestamp"]),
                            float(row[f"videos/{key}/to_timestamp"]),
                        )
                        for key in keys
                        if row.get(f"videos/{key}/chunk_index") is not None
                    }
                    found.append(
                        Episode(
                            int(row["episode_index"]),
                            int(row["length"]),
                            tuple(row.get("tasks") or ()),
                            int(row["dataset_from_index"]),
                            (int(row["data/chunk_index"]), int(row["data/file_index"])),
                            videos,
                            str(path),
                        )
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise DemoError(
                        f"{path}: episode {row.get('episode_index')}: {error!r}; expected the columns of"
                        f" version {VERSION}"
                    ) from None
        found.sort(key=lambda episode: episode.index)
        if [episode.index for episode in found] != list(range(len(found))):
            raise DemoError(
                f"{self.root / 'meta/episodes'}: episode_index is not 0, 1, 2 ... ; files are missing or there twice"
            )
        return found

    def _schema(self, path: Path) -> list[str]:
        try:
            return pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise DemoError(f"{path}: cannot be read ({error}); fetch it again") from None

    def data_path(self, episode: Episode) -> Path:
        chunk, file = episode.data
        return self.root / self._data.format(
            chunk_index=chunk, file_index=file, episode_chunk=chunk, episode_index=episode.index
        )

    def video_path(self, episode: Episode, key: str) -> Path:
        chunk, file = episode.videos[key][:2]
        return self.root / self._video.format(video_key=key, chunk_index=chunk, file_index=file)

    def rows(self, episode: Episode, columns: Sequence[str], keep: bool = False) -> pa.Table:
        """An episode's rows of data, with these columns only.

        keep: what was read for it, for the next episode's; a file may have one group of rows for all of them.
        """
        path = self.data_path(episode)
        try:
            if self._open is None or self._open[0] != path:
                file = pq.ParquetFile(path)
                missing = [name for name in columns if name not in file.schema_arrow.names]
                if missing:
                    raise DemoError(f"{path}: episode {episode.index}, frame 0: has no column {missing[0]!r}")
                index = file.read(columns=["episode_index"])["episode_index"].to_numpy()
                self._open = path, file, index
            _, file, index = self._open
            rows = np.flatnonzero(index == episode.index)
            if len(rows) != episode.length or (len(rows) and rows[-1] - rows[0] + 1 != len(rows)):
                raise DemoError(
                    f"{path}: episode {episode.index}, frame {min(len(rows), episode.length)}: the file has"
                    f" {len(rows)} frames of it, {episode.where} says {episode.length}; one of them is cut"
                    " off or damaged"
                )
            groups, start, end, before = [], int(rows[0]), int(rows[-1]) + 1, 0
            skipped = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if before + size <= start:
                    skipped = before + size
                elif before < end:
                    groups.append(group)
                before += size
            read = path, groups, list(columns)
            if self._kept is not None and self._kept[:3] == read:
                table = self._kept[3]
            else:
                self._kept = None  # before there are two
                table = file.read_row_groups(groups, columns=read[2])
                self._kept = (*read, table) if keep else None
            return table.slice(start - skipped, end - start)
        except (pa.ArrowException, OSError) as error:
            raise DemoError(
                f"{path}: episode {episode.index}, frame 0: cannot be read ({error}); the file is missing,"
                " cut off or damaged: fetch it again"
            ) from None

    def numbers(self, episode: Episode, features: Sequence[str]) -> dict[str, np.ndarray]:
        """Feature -> its values float64 [frames, size] and `timestamp` [frames, 1], finite and in their order."""
        names = list(dict.fromkeys([*features, "timestamp"]))
        table, out = self.rows(episode, names, keep=True), {}
        where = f"{self.data_path(episode)}: episode {episode.index}, frame"
        for name in names:
            column = table[name].combine_chunks()
            size = int(np.prod(self.features[name]["shape"])) if name in self.features else 1
            while (
                pa.types.is_list(column.type)
                or pa.types.is_fixed_size_list(column.type)
                or (pa.types.is_large_list(column.type))
            ):
                column = column.flatten()
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)
            if len(values) != size * episode.length:
                raise DemoError(
                    f"{where} 0: {name} has {len(values)} numbers for {episode.length} frames, info.json"
                    f" says {size} a frame"
                )
            values = values.reshape(episode.length, size)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                frame, i = (int(v) for v in bad[0])
                raise DemoError(
                    f"{where} {frame}: {name}[{i}]{self._called(name, i)} is {values[frame, i]}, expected a"
                    f" finite number; mend it, or leave the episode out with skip: [{episode.index}]"
                )
            out[name] = values
        off = np.abs(out["timestamp"][:, 0] - np.arange(episode.length) / self.fps)
        if len(off) and off.max() > 0.5 / self.fps:
            frame = int(np.argmax(off > 0.5 / self.fps))
            raise DemoError(
                f"{where} {frame}: timestamp is {out['timestamp'][frame, 0]:.4f} s, expected"
                f" {frame / self.fps:.4f} s at {self.fps:g} frames a second; frames were dropped, or fps in"
                " meta/info.json is wrong"
            )
        return out

    def names(self, feature: str) -> list[str]:
        """What the values of a feature are called, as far as info.json says it."""
        names = self.features[feature].get("names")
        if isinstance(names, dict):
            names = [name for value in names.values() for name in (value if isinstance(value, list) else [value])]
        return [str(name) for name in names or []]

    def _called(self, feature: str, i: int) -> str:
        names = self.names(feature) if feature in self.features else []
        return f" ({names[i]})" if i < len(names) else ""

    def pictures(
        self, episode: Episode, key: str, frames: np.ndarray, stamps_s: np.ndarray, size: int, crop: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """Pictures uint8 [size, size, 3] of these frames, cut and shrunk as camera_node does."""
        if self.features[key]["dtype"] == "image":
            yield from self._stored_pictures(episode, key, frames, size, crop)
            return
        if key not in episode.videos:
            raise DemoError(
                f"{episode.where}: episode {episode.index}, frame 0: no video of {key!r}; the camera is"
                f" missing in this episode: leave it out with skip: [{episode.index}]"
            )
        path, (_, _, begin, end) = self.video_path(episode, key), episode.videos[key]
        if not path.is_file():
            raise DemoError(
                f"{path}: episode {episode.index}, frame 0: the file is not there; fetch it, or map the"
                " camera to another feature"
            )
        if abs((end - begin) * self.fps - episode.length) > 1.0:
            raise DemoError(
                f"{episode.where}: episode {episode.index}, frame 0: {key} lasts from {begin:.3f} to"
                f" {end:.3f} s, which is {(end - begin) * self.fps:.1f} frames, but the episode has"
                f" {episode.length}"
            )
        try:
            video = self._take_video(key, path)
            for picture in video.pictures((begin + stamps_s[frames]).tolist(), 0.5 / self.fps):
                yield pictures.shrink(picture, size, crop)
            self._keep_video(key, path, video)
        except VideoError as error:
            at = int(frames[min(error.frame, len(frames) - 1)])
            raise DemoError(f"{path}: episode {episode.index}, frame {at}: {error}") from None
        except PictureError as error:
            raise DemoError(f"{path}: episode {episode.index}: {error}") from None

    def _take_video(self, key: str, path: Path) -> Video:
        """A feature's file, open and nobody else's: two cameras may look at the same feature."""
        kept = self._videos.pop(key, None)
        if kept is not None and kept[0] == path:
            return kept[1]
        if kept is not None:
            kept[1].close()
        return Video(path)

    def _keep_video(self, key: str, path: Path, video: Video) -> None:
        """For the episodes that follow in the file."""
        if key in self._videos:
            self._videos[key][1].close()
        self._videos[key] = path, video

    def _stored_pictures(
        self, episode: Episode, key: str, frames: np.ndarray, size: int, crop: Sequence[int]
    ) -> Iterator[np.ndarray]:
        column = self.rows(episode, [key])[key]
        for frame in frames.tolist():
            value = column[frame].as_py()
            where = f"{self.data_path(episode)}: episode {episode.index}, frame {frame}"
            data = (value or {}).get("bytes") if isinstance(value, dict) else None
            if not data:
                raise DemoError(f"{where}: {key} has no picture in the file")
            try:
                yield pictures.shrink_compressed(data, size, crop)
            except PictureError as error:
                raise DemoError(f"{where}: {key}: {error}") from None


# --- import ----------------------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """The numbers of an episode at the task's ticks."""

    frames: np.ndarray  # [F] frames of the dataset that are looked at, one a picture
    stamps_s: np.ndarray  # [frames of the dataset]
    rest: dict[str, np.ndarray]  # what demos.save takes besides the pictures
    over: int  # actions beyond full action, which are clipped
    count: int
    worst: tuple[float, int, int] = (0.0, 0, 0)  # the largest action, its frame, and which


@dataclass
class Summary:
    """What an import did, for the person who asked for it."""

    episodes: int = 0
    ticks: int = 0
    pictures: int = 0
    notes: list[str] = field(default_factory=list)


def import_lerobot(
    source: Path,
    mapping: Mapping,
    out: Path,
    processes: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Summary:
    """Import a dataset into the new folder `out`; it is there whole or, after any error, not at all.

    The numbers of all episodes are looked at before the first picture.  DemoError, ValueError.
    """
    if mapping.proprio or mapping.episodes or not mapping.size:
        raise DemoError(
            f"mapping {mapping.path}: state as one topic, episodes and pictures.size 0 are for recordings; a LeRobot"
            " dataset has features: name those of each part of the state"
        )
    importer = Importer(Dataset(source), mapping)
    dataset, summary = importer.dataset, Summary()
    chosen = importer.chosen()
    over = count = 0
    worst = (0.0, 0, 0, 0)
    statistics = _Statistics()
    with demos.new_folder(out) as folder:
        for done, episode in enumerate(chosen, 1):
            found = dataset.numbers(episode, importer.features)
            statistics.add(episode.index, found)
            numbers = importer.numbers(episode, found)
            over, count = over + numbers.over, count + numbers.count
            worst = max(worst, (numbers.worst[0], episode.index, *numbers.worst[1:]))
            summary.ticks += len(numbers.rest["action"])
            summary.pictures += len(numbers.frames)
            progress("numbers", done, len(chosen))
        if over > mapping.max_clipped * count:
            raise DemoError(
                f"{dataset.data_path(dataset.episodes[worst[1]])}: episode {worst[1]}, frame {worst[2]}: action"
                f" '{mapping.task.action_names[worst[3]]}' is {worst[0]:.3g} of full action, and"
                f" {100 * over / count:.1f} % of all are over 1, more than max_clipped ({mapping.max_clipped:.0%})"
                "; look at action.unit and action.kind in the mapping and at action.scale of the task"
            )
        whole = len(chosen) == len(dataset.episodes)
        if mapping.check_statistics and whole:
            statistics.check(dataset)
        summary.notes = importer.notes(over, count)
        if mapping.check_statistics and dataset.stats and not whole:
            summary.notes.append(f"{STATS} was not compared with the data: it is of all episodes")
        summary.episodes = len(chosen)
        demos.require_room(out, folder, summary.pictures * len(mapping.cameras) * 3 * mapping.size**2)
        if processes <= 1:
            for done, episode in enumerate(chosen, 1):
                importer.write(episode, folder)
                progress("pictures", done, len(chosen))
        else:
            jobs = [(episode.index, folder) for episode in chosen]
            tell = lambda done: progress("pictures", done, len(chosen))  # noqa: E731
            _side_by_side(processes, source, mapping, jobs, tell)
        demos.note_origin(folder, source, mapping, summary.notes)
    return summary


def _side_by_side(
    processes: int, source: Path, mapping: Mapping, jobs: list[tuple[int, Path]], tell: Callable[[int], None]
) -> None:
    """Write episodes in several processes, none of which is left afterwards. DemoError when one of them is killed.

    tell: is told how many are done.
    """
    others = set(mp.active_children())
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp.get_context("spawn"), _begin, (source, mapping))
    try:
        with _deaf_to_ctrl_c():  # they start with the jobs
            written = [pool.submit(_write, job) for job in jobs]
        for done, (episode, _) in enumerate(jobs, 1):
            try:
                written[done - 1].result()
            except BrokenProcessPool:
                raise DemoError(
                    f"{source}: a process that wrote pictures was killed, about episode {episode}; if memory was short,"
                    " try --processes 1 or smaller pictures"
                ) from None
            tell(done)
    except BaseException:
        for process in set(mp.active_children()) - others:  # nobody wants the rest
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started within leave Ctrl-C, which a terminal sends to all, to this one, which ends them."""
    if threading.current_thread() is not threading.main_thread():  # no other may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_importer: Importer | None = None  # of a process of the pool


def _begin(source: Path, mapping: Mapping) -> None:
    import cv2

    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # the processes are the threads
    global _importer
    _importer = Importer(Dataset(source), mapping)


def _end_with_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write(job: tuple[int, Path]) -> None:
    importer = _importer
    assert importer is not None
    importer.write(importer.dataset.episodes[job[0]], job[1])


class Importer:
    """Episodes of a dataset as demonstrations of a mapping's task. DemoError when the two do not fit."""

    def __init__(self, dataset: Dataset, mapping: Mapping) -> None:
        self.dataset, self.mapping, self.task = dataset, mapping, mapping.task
        self.info = dataset.root / INFO
        self.same_rate = abs(dataset.fps - self.task.rate) < 1e-6 * self.task.rate
        if mapping.kind == "normalised" and not self.same_rate:
            raise DemoError(
                f"{self.info}: fps is {dataset.fps:g} and the task '{self.task.name}' has a rate of"
                f" {self.task.rate:g}, but action.kind is normalised, which says nothing at another rate;"
                " say what the actions are: delta, velocity or position, with their unit"
            )
        for camera, source in mapping.cameras.items():
            feature = self._feature(source.source, f"cameras.{camera}")
            if feature["dtype"] not in _CAMERA:
                raise DemoError(
                    f"{self.info}: {source.source} has dtype {feature['dtype']}, expected video or image for"
                    f" the camera '{camera}'"
                )
            told = feature.get("info") or {}
            if told.get("video.is_depth_map") or told.get("is_depth_map"):  # as versions of LeRobot have it
                raise DemoError(f"{self.info}: {source.source} is a depth map, expected colours for '{camera}'")
        self.columns: dict[str, np.ndarray] = {}
        sizes = {key.key: key.size for key in self.task.state}
        for part, source in mapping.state.items():
            wanted = (4, 7) if part == "pose" else (sizes[part],)
            self.columns[part] = self._columns(f"state.{part}", source, wanted, part in SIZES)
        self.columns["action"] = self._columns("action", mapping.action, (self.task.action_dim,), True)
        self.in_order = self._expect_these_actions()
        whens = [when.source for when in (mapping.success, mapping.critical) if when.source]
        for when in whens:
            self._feature(when, "success or critical")
        sources = [source.source for source in mapping.state.values()]
        self.features = list(dict.fromkeys([*sources, mapping.action.source, *whens]))

    def _feature(self, name: str, where: str) -> dict:
        if name not in self.dataset.features:
            raise DemoError(
                f"{self.info}: no feature {name!r}, which {where} in {self.mapping.path} names; there are:"
                f" {', '.join(self.dataset.features)}"
            )
        return self.dataset.features[name]

    def _columns(self, where: str, part: Part, sizes: tuple[int, ...], by_name: bool) -> np.ndarray:
        """Which values of a feature are meant, as indices."""
        feature = self._feature(part.source, where)
        if feature["dtype"] in (*_CAMERA, "string"):
            raise DemoError(f"{self.info}: {part.source} has dtype {feature['dtype']}, expected numbers for {where}")
        size, names = int(np.prod(feature["shape"])), self.dataset.names(part.source)
        has = f"{part.source} has {size} values" + (f" ({', '.join(names)})" if names else "")
        columns = []
        for entry in part.pick or range(size):
            if isinstance(entry, str) and entry in names:
                entry = names.index(entry)
            if not isinstance(entry, int) or not 0 <= entry < size:
                raise DemoError(f"{self.info}: {has}, but {where}.pick in {self.mapping.path} names {entry!r}")
            columns.append(entry)
        if len(columns) not in sizes:
            what = ", ".join(self.task.action_names) if where == "action" else "values"
            raise DemoError(
                f"{self.info}: {has}, but {where} of the task '{self.task.name}' wants"
                f" {' or '.join(map(str, sizes))} ({what}): another "
                f"{'action' if where == 'action' else 'state'} space; pick the values that fit, if there are"
                " any, or write a task file for this robot"
            )
        if len(part.factor) not in (1, len(columns)):
            raise DemoError(
                f"{self.info}: {has}, of which {where} takes {len(columns)}, but {where}.unit in"
                f" {self.mapping.path} has {len(part.factor)} entries, expected one for all or one for each"
            )
        return np.array(columns)

    def _expect_these_actions(self) -> str:
        """What is to be said of actions that the mapping does not pick. DemoError when their names are of others."""
        names, wanted = self.dataset.names(self.mapping.action.source), self.task.action_names
        if self.mapping.action.pick or len(names) != len(wanted):
            return ""
        if all(ours.lower() in theirs.lower() for ours, theirs in zip(wanted, names, strict=True)):
            return ""
        if len({theirs.translate(_DIGITS) for theirs in names}) == 1:  # motor_0, motor_1 ... say nothing
            return f"the actions {', '.join(names)} are taken for {', '.join(wanted)}, in this order"
        raise DemoError(
            f"{self.info}: {self.mapping.action.source} has the values {', '.join(names)}, the task"
            f" '{self.task.name}' has the actions {', '.join(wanted)}: another action space, or another order; if they"
            f" do fit, say with action.pick in {self.mapping.path} which is which"
        )

    def chosen(self) -> list[Episode]:
        """The episodes that the mapping wants; DemoError for an empty one, or when none is left."""
        if unknown := [number for number in self.mapping.skip if not 0 <= number < len(self.dataset.episodes)]:
            raise DemoError(
                f"mapping {self.mapping.path}: skip has {unknown[0]}, the dataset has the episodes 0 to"
                f" {len(self.dataset.episodes) - 1}"
            )
        known = set(self.dataset.tasks.values())
        if missing := [text for text in self.mapping.tasks if text not in known]:
            raise DemoError(f"{self.dataset.root / TASKS}: no task {missing[0]!r}; there are: {sorted(known)}")
        chosen = [
            episode
            for episode in self.dataset.episodes
            if episode.index not in self.mapping.skip
            and (not self.mapping.tasks or set(episode.tasks) & set(self.mapping.tasks))
        ]
        for episode in chosen:
            if episode.length < 2:
                raise DemoError(
                    f"{episode.where}: episode {episode.index}, frame 0: the episode has {episode.length}"
                    f" frames, expected at least 2; leave it out with skip: [{episode.index}]"
                )
        if not chosen:
            raise DemoError(
                f"{self.dataset.root}: no episode is left of {len(self.dataset.episodes)}; look at skip and"
                f" tasks in {self.mapping.path}"
            )
        return chosen

    def numbers(self, episode: Episode, found: dict[str, np.ndarray] | None = None) -> Numbers:
        """An episode's numbers at the task's ticks. DemoError."""
        mapping, task, fps = self.mapping, self.task, self.dataset.fps
        found = self.dataset.numbers(episode, self.features) if found is None else found
        where = f"{self.dataset.data_path(episode)}: episode {episode.index}, frame"
        first, proprio = self._joined(found, where)
        times = np.arange(episode.length) / fps
        raw = found[mapping.action.source][:, self.columns["action"]] * np.array(mapping.action.factor)
        period, scale = 1.0 / task.rate, np.array(task.action_scale)
        if self.same_rate:
            ticks = times[first:]
        else:
            ticks = times[first] + np.arange(int((times[-1] - times[first]) * task.rate + 1e-6) + 1) * period
            proprio = resample.interpolate(ticks, times[first:], proprio, mapping.angles)
        action = resample.actions(ticks, times, raw, mapping.kind, scale, task.action_names, 1.0 / fps)
        size = np.abs(action)
        tick, which = np.unravel_index(int(np.argmax(size)), size.shape)
        frames = resample.newest(ticks, times)
        at = np.arange(0, len(ticks), mapping.every)
        rest = dict(
            frame_tick=at, proprio=proprio, action=np.clip(action, -1.0, 1.0),
            success=np.asarray(self._success(mapping.success, found)),
            critical_tick=np.asarray(self._critical(mapping.critical, found, frames, len(ticks))),
            instruction=np.asarray(episode.tasks[0] if episode.tasks else task.instruction),
        )  # fmt: skip
        worst = float(size[tick, which]), int(frames[tick]), int(which)
        return Numbers(
            frames[at], found["timestamp"][:, 0], rest, int(np.count_nonzero(size > 1 + 1e-4)), size.size, worst
        )

    def _joined(self, found: dict[str, np.ndarray], where: str) -> tuple[int, np.ndarray]:
        """(first frame, proprioception [frames from it on, P]), through what joins it live."""
        assembler, mapping = self.mapping.assembler(), self.mapping
        parts = {part: self._values(part, source, found, where).tolist() for part, source in mapping.state.items()}
        first, rows = -1, []
        for frame in range(len(found["timestamp"])):
            ns = round(frame / self.dataset.fps * 1e9)
            try:
                for part, values in parts.items():
                    v = values[frame]
                    if part == "pose":
                        turn = v[3:] if len(v) == 7 else [0.0, 0.0, np.sin(v[3] / 2), np.cos(v[3] / 2)]
                        assembler.add_pose(frame, ns, v[:3], turn)
                    elif part == "twist":
                        assembler.add_twist(frame, ns, v[:3], v[3])
                    elif part == "wrench":
                        assembler.add_wrench(frame, ns, v[:3], v[3:])
                    else:
                        # By its name: other parts may have joints of the same names, or no names at all.
                        assembler.add_part(part, frame, ns, v)
            except ProprioError as error:
                raise DemoError(f"{where} {frame}: {error}") from None
            joined = assembler.join()
            if joined is not None:
                first = frame if first < 0 else first
                rows.append(joined[2])
        if len(rows) < 2 or first + len(rows) != len(found["timestamp"]):
            raise DemoError(
                f"{where} {max(first, 0)}: the parts of the state never come together; waiting for"
                f" {assembler.waiting_for()}"
            )
        return first, np.stack(rows)

    def _values(self, part: str, source: Part, found: dict[str, np.ndarray], where: str) -> np.ndarray:
        """A part's values in SI. A quaternion has no unit; DemoError where its length is not 1."""
        raw, factor = found[source.source][:, self.columns[part]], np.array(source.factor)
        if part != "pose" or raw.shape[1] != 7:
            return raw * factor
        length = np.linalg.norm(raw[:, 3:], axis=1)
        if (wrong := ~(np.abs(length - 1) <= _UNIT)).any():
            frame = int(np.argmax(wrong))
            raise DemoError(
                f"{where} {frame}: {source.source} has the quaternion {raw[frame, 3:].tolist()} (x, y, z, w) of length"
                f" {length[frame]:.3g}, expected 1; look at state.pose.pick in {self.mapping.path}, or leave the"
                " episode out with skip"
            )
        return np.hstack([raw[:, :3] * factor[:3], raw[:, 3:]])

    @staticmethod
    def _success(when: When, found: dict[str, np.ndarray]) -> bool:
        return when.constant if when.constant is not None else bool((found[when.source] > when.above).any())

    def _critical(self, when: When, found: dict[str, np.ndarray], frames: np.ndarray, ticks: int) -> int:
        """The tick at which the critical phase begins; -1: never. True: at once."""
        if when.constant is not None:
            return 0 if when.constant else -1
        if when.before_end_s is not None:
            return max(0, ticks - round(when.before_end_s * self.task.rate))
        held = (found[when.source] > when.above).any(1)[frames]
        return int(np.argmax(held)) if held.any() else -1

    def write(self, episode: Episode, folder: Path) -> None:
        """An episode with its pictures into the folder. DemoError."""
        mapping, numbers = self.mapping, self.numbers(episode)
        streams = [
            self.dataset.pictures(episode, c.source, numbers.frames, numbers.stamps_s, mapping.size, c.crop)
            for c in mapping.cameras.values()
        ]
        images = (np.stack(shots) for shots in zip(*streams, strict=True))
        demos.save(folder / f"episode_{episode.index:06d}.npz", images, len(numbers.frames), **numbers.rest)

    def notes(self, over: int, count: int) -> list[str]:
        """What a person should know of the import."""
        task, notes = self.task, []
        if not self.same_rate:
            notes.append(
                f"resampled from {self.dataset.fps:g} to {task.rate:g} Hz: state and targets linearly, pictures"
                " and other actions by the newest frame"
            )
        if self.in_order:
            notes.append(self.in_order)
        if over:
            notes.append(f"{100 * over / count:.2g} % of the actions were over full action and are clipped")
        if not self.dataset.stats:
            notes.append(f"{STATS} is not there: nothing was compared with it")
        others = sorted({text for episode in self.chosen() for text in episode.tasks} - {task.instruction})
        if others:
            notes.append(
                f"the episodes say {others[0]!r}"
                + (f" and {len(others) - 1} others" if len(others) > 1 else "")
                + f", the task '{task.name}' says {task.instruction!r}, which is what a VLA will be told"
            )
        return notes


class _Statistics:
    """Minimum, maximum, mean and deviation of features, to compare with what a dataset says of itself."""

    def __init__(self) -> None:
        self._sums: dict[str, list[np.ndarray]] = {}
        self._count = 0
        self._at: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # feature -> (episode, frame) of minimum and maximum

    def add(self, episode: int, found: dict[str, np.ndarray]) -> None:
        self._count += len(found["timestamp"])
        for name, v in found.items():
            if name == "timestamp":
                continue
            low, high = v.min(0), v.max(0)
            here = [np.stack([np.full(v.shape[1], episode), getattr(v, f)(0)]) for f in ("argmin", "argmax")]
            if name not in self._sums:
                self._sums[name] = [low, high, v.sum(0), np.square(v).sum(0)]
                self._at[name] = here[0], here[1]
                continue
            sums, at = self._sums[name], self._at[name]
            for i, better in ((0, low < sums[0]), (1, high > sums[1])):
                at[i][:, better] = here[i][:, better]
            sums[0], sums[1] = np.minimum(sums[0], low), np.maximum(sums[1], high)
            sums[2] += v.sum(0)
            sums[3] += np.square(v).sum(0)

    def check(self, dataset: Dataset) -> None:
        """DemoError when meta/stats.json says something else."""
        path = dataset.root / STATS
        for name, (low, high, total, squares) in self._sums.items():
            said = dataset.stats.get(name)
            if not isinstance(said, dict):
                continue
            mean = total / self._count
            std = np.sqrt(np.maximum(squares / self._count - mean**2, 0))
            room = np.maximum(high - low, 1e-6 * np.maximum(np.abs(high), 1))
            for key, values, at in (("min", low, 0), ("max", high, 1), ("mean", mean, None), ("std", std, None)):
                if key not in said:
                    continue
                try:
                    stated = np.asarray(said[key], float).ravel()
                except (TypeError, ValueError):
                    stated = np.full(len(values), np.nan)
                if len(stated) != len(values):
                    raise DemoError(f"{path}: {name}: {key} has {len(stated)} values, the feature has {len(values)}")
                wrong = ~(np.abs(stated - values) <= _FAR * room)
                if not wrong.any():
                    continue
                i = int(np.argmax(wrong))
                if at is None:
                    place = f"over all {len(dataset.episodes)} episodes"
                else:
                    episode, frame = (int(v) for v in self._at[name][at][:, i])
                    place = f"episode {episode}, frame {frame}"
                raise DemoError(
                    f"{path}: {name}[{i}]: {key} is {stated[i]:.6g}, but the data have {values[i]:.6g}"
                    f" ({place}); the statistics are wrong or episodes are missing: compute them again, or"
                    " say check_statistics: false in the mapping (they are not used)"
                )
