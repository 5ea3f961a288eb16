"""How long the import of a LeRobot dataset takes and what memory, over the bare decoding of its videos.

The dataset is as LeRobot writes one of an SO-101: 640x480 at 30 frames a second from two cameras, a key picture at
every second frame. One episode of each camera is encoded, its packets are muxed again and again into a file of several
minutes, and the other files are links to that one: whoever reads them has the work of all. It is imported by the command
itself, whose start and end are counted, with the shipped mapping. The decoding beside it is PyAV alone in as many
processes, whose start is not counted: of all pictures, and of those that the import has to decode.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlt_ros.bench import stage
from rlt_ros.bench.control import descendants, memory_mb
from rlt_ros.data.lerobot import DATA, EPISODES, INFO, STATS, TASKS, VERSION, VIDEOS
from rlt_ros.data.mapping import Mapping, load_mapping
from rlt_ros.data.video import Video, VideoWriter

MAPPING = "so101_lerobot"
FPS, HEIGHT, WIDTH = 30, 480, 640
EPISODE_S, FILE_EPISODES = 15, 20
CODECS = ("av1", "h264")
START_S = 120.0  # how long a busy machine may take until all processes run
LOOK_S = 0.2  # how often memory is looked at
_PROGRAM = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"


def measure(args: argparse.Namespace) -> dict:
    """The figures of one import of args.minutes."""
    mapping = load_mapping(Path(MAPPING))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder) / "dataset"
        stage(f"writing a dataset of {args.minutes:g} min")
        episodes = write_dataset(root, mapping, args.minutes, args.codec)
        stage(f"importing {episodes} episodes")
        found = run_import(root, Path(folder) / "out", args.processes)
        videos = sorted(root.glob("videos/*/*/*.mp4"))
        size = sum(path.stat().st_size for path in videos)
        jobs = [(path, *within(path, episodes, mapping.every)) for path in videos]
        stage(f"import took {found['seconds']:.0f} s; decoding alone, which takes up to twice as long")
        needed, everything = decode(jobs, args.processes)
    pictures = len(range(0, EPISODE_S * FPS, mapping.every)) * episodes * len(mapping.cameras)
    hours = episodes * EPISODE_S / 3600
    return {
        "seconds": found["seconds"],
        "seconds_per_hour": found["seconds"] / hours,
        "cpu_seconds": found["cpu_seconds"],
        "memory_mb": found["memory_mb"],
        "memory_largest_process_mb": found["memory_largest_process_mb"],
        "decode_needed_seconds": needed,
        "decode_all_seconds": everything,
        "import_over_decode_needed": found["seconds"] / needed,
        "import_over_decode_all": found["seconds"] / everything,
        "minutes": 60 * hours,
        "episodes": episodes,
        "frames": episodes * EPISODE_S * FPS,
        "pictures": pictures,
        "video_mb": size / 1e6,
        "codec": args.codec,
        "processes": args.processes,
    }


# --- the dataset -----------------------------------------------------------------------------------------------------


def write_dataset(root: Path, mapping: Mapping, minutes: float, codec: str) -> int:
    """A dataset of at least so many minutes that the mapping fits; returns the number of its episodes."""
    episodes, frames = math.ceil(60 * minutes / EPISODE_S), EPISODE_S * FPS
    names = [str(name) for name in mapping.action.pick]
    at = np.arange(frames)[:, None] / FPS
    state = (20.0 * np.sin(0.7 * at + np.arange(len(names)))).astype(np.float32)  # degrees
    columns = {"observation.state": state, "action": state + np.float32(1.0)}  # a leader that is ahead
    features: dict[str, dict] = {
        name: {"dtype": "float32", "shape": [len(names)], "names": names} for name in columns
    }
    keys = [camera.source for camera in mapping.cameras.values()]
    for number, key in enumerate(keys):
        features[key] = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]}
        write_videos(root, key, number, episodes, codec)
    rows = []
    path = root / DATA.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    writer = None
    for episode in range(episodes):
        table = pa.table({name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(names))
                          for name, values in columns.items()} | {
            "timestamp": at[:, 0].astype(np.float32), "frame_index": np.arange(frames),
            "episode_index": np.full(frames, episode), "index": episode * frames + np.arange(frames),
            "task_index": np.zeros(frames, np.int64),
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)  # a group of rows an episode
        file, within = divmod(episode, FILE_EPISODES)
        row = {"episode_index": episode, "tasks": [mapping.task.instruction], "length": frames, "data/chunk_index": 0,
               "data/file_index": 0, "dataset_from_index": episode * frames,
               "dataset_to_index": (episode + 1) * frames}  # fmt: skip
        for key in keys:
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file,
                    f"videos/{key}/from_timestamp": float(within * EPISODE_S),
                    f"videos/{key}/to_timestamp": float((within + 1) * EPISODE_S)}  # fmt: skip
        rows.append(row)
    assert writer is not None
    writer.close()
    path = root / EPISODES.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    pq.write_table(pa.table({"task_index": [0], "task": [mapping.task.instruction]}), root / TASKS)
    stats = {
        name: {what: getattr(np, what)(values, axis=0).tolist() for what in ("min", "max", "mean", "std")}
        for name, values in columns.items()
    }
    (root / STATS).write_text(json.dumps(stats))
    info = {"codebase_version": VERSION, "fps": FPS, "total_episodes": episodes, "total_frames": episodes * frames,
            "data_path": DATA, "video_path": VIDEOS, "features": features}  # fmt: skip
    (root / INFO).write_text(json.dumps(info))
    return episodes


def write_videos(root: Path, key: str, seed: int, episodes: int, codec: str) -> None:
    """Files of FILE_EPISODES episodes of a camera, all but the first one links to it."""
    first = root / VIDEOS.format(video_key=key, chunk_index=0, file_index=0)
    first.parent.mkdir(parents=True)
    episode = first.with_name("episode.mp4")
    encode(episode, seed, codec)
    length = 0
    with av.open(str(first), "w", options={"movflags": "faststart"}) as out:
        stream = None
        for _ in range(min(episodes, FILE_EPISODES)):
            with av.open(str(episode)) as source:
                given = source.streams.video[0]
                stream = stream or out.add_stream_from_template(given, opaque=True)
                for packet in source.demux(given):
                    if packet.dts is None:  # the end
                        continue
                    packet.pts, packet.dts = packet.pts + length, packet.dts + length
                    packet.stream = stream
                    out.mux(packet)
                length += round(EPISODE_S / given.time_base)
    episode.unlink()
    for file in range(1, -(-episodes // FILE_EPISODES)):
        os.link(first, root / VIDEOS.format(video_key=key, chunk_index=0, file_index=file))


def encode(path: Path, seed: int, codec: str) -> None:
    """One episode: a textured table that moves, with a sensor's noise."""
    random = np.random.default_rng(seed)
    table = texture(random)
    noise = random.normal(0.0, 3.0, (8, HEIGHT, WIDTH, 1))
    if codec == "h264":
        writer = VideoWriter(path, FPS, HEIGHT, WIDTH)
        for frame in range(EPISODE_S * FPS):
            writer.add(shot(table, noise, frame))
        writer.close()
        return
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    with av.open(str(path), "w") as out:  # as LeRobot does it
        stream = out.add_stream("libsvtav1", rate=FPS, options={"g": "2", "crf": "30", "preset": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(EPISODE_S * FPS):
            frame = av.VideoFrame.from_ndarray(shot(table, noise, number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def texture(random: np.random.Generator) -> np.ndarray:
    """float [2 HEIGHT, 2 WIDTH, 3] with detail of all sizes."""
    import cv2

    out = np.full((2 * HEIGHT, 2 * WIDTH, 3), 110.0)
    for size, strength in ((4, 10.0), (16, 20.0), (64, 30.0)):
        small = random.normal(0.0, strength, (max(1, 2 * HEIGHT // size), max(1, 2 * WIDTH // size), 3))
        out += cv2.resize(small, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC)
    return out


def shot(table: np.ndarray, noise: np.ndarray, frame: int) -> np.ndarray:
    """A picture uint8 [HEIGHT, WIDTH, 3] of the table from where the camera is at a frame."""
    y = round(HEIGHT * (0.5 + 0.4 * np.sin(0.7 * frame / FPS)))
    x = round(WIDTH * (0.5 + 0.4 * np.cos(0.5 * frame / FPS)))
    return (table[y : y + HEIGHT, x : x + WIDTH] + noise[frame % len(noise)]).clip(0, 255).astype(np.uint8)


# --- the import, and the decoding alone ------------------------------------------------------------------------------


def run_import(root: Path, out: Path, processes: int) -> dict[str, float]:
    """`rlt demos import` as a process: time, processor time and memory of it and of those that it starts."""
    arguments = ("demos", "import", "--from", "lerobot", str(root), "--map", MAPPING, "--out", str(out))
    log = out.with_name("log")
    start, peak = time.perf_counter(), 0.0
    with log.open("wb") as output:
        command = [sys.executable, "-c", _PROGRAM, *arguments, "--processes", str(processes)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    while True:
        peak = max(peak, sum(memory_mb(pid) for pid in descendants(process.pid)))
        time.sleep(LOOK_S)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"rlt demos import ended with {process.returncode}: {log.read_text().strip()[-500:]}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "memory_mb": peak,
            "memory_largest_process_mb": usage.ru_maxrss / 1024}  # fmt: skip


def within(path: Path, episodes: int, every: int) -> tuple[int, list[float]]:
    """Of a file of the dataset: how many pictures of it are of episodes, and the times [s] of those that are needed."""
    file, length = int(path.stem.rsplit("-", 1)[1]), EPISODE_S * FPS
    there = min(FILE_EPISODES, episodes - file * FILE_EPISODES)
    times = [(e * length + frame) / FPS for e in range(there) for frame in range(0, length, every)]
    return there * length, times


def decode(jobs: list[tuple[Path, int, list[float]]], processes: int) -> tuple[float, float]:
    """Seconds that decoding alone takes, in so many processes: of what the import needs, and of all pictures."""
    context = mp.get_context("spawn")
    ready = context.Barrier(processes + 1)
    seconds = []
    with context.Pool(processes, _wait_for_all, (ready,)) as pool:
        ready.wait(START_S)
        for decoded in (_decode_needed, _decode_all):
            start = time.perf_counter()
            pool.map(decoded, jobs, chunksize=1)
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def _wait_for_all(ready) -> None:
    ready.wait(START_S)


def _decode_needed(job: tuple[Path, int, list[float]]) -> None:
    path, _, times = job
    video = Video(path)
    for _ in video.frames(times, 0.5 / FPS):
        pass
    video.close()


def _decode_all(job: tuple[Path, int, list[float]]) -> None:
    path, frames, _ = job
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in islice(container.decode(stream), frames):
            pass
