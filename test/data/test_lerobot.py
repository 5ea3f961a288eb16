"""LeRobot datasets: import of others', export and back, and what is wrong with a dataset."""

import json
import multiprocessing as mp
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlt_ros.data import demos
from rlt_ros.data.lerobot import Dataset, import_lerobot
from rlt_ros.data.lerobot_export import MAPPING, export_lerobot
from rlt_ros.data.mapping import DemoError, load_mapping
from rlt_ros.data.video import VideoWriter
from rlt_ros.sim.task import load_task

DEG = np.pi / 180
KEY = "observation.images.front"
VIDEO, DATA = "videos/observation.images.front/chunk-000/file-000.mp4", "data/chunk-000/file-000.parquet"


def shade(frame: int) -> int:
    return 30 + 4 * (frame % 50)  # as conftest.py paints it


@pytest.fixture
def episodes(tmp_path):
    """A folder of three demonstrations of the Ethernet task, the second a failure."""
    folder, random = tmp_path / "recorded", np.random.default_rng(0)
    folder.mkdir()
    for number, steps in enumerate((41, 60, 33)):
        ticks = np.arange(0, steps, 5)
        y, x = np.mgrid[:32, :32]
        images = np.stack([[np.stack([128 + 80 * np.sin(x / 9 + t / 20 + c), 4 * y + c, 200 - 3 * x + 0 * t], -1)
                            for c in range(2)] for t in ticks]).astype(np.uint8)  # fmt: skip
        noise = lambda n: random.uniform(-1, 1, (steps, n)).astype(np.float32)  # noqa: E731
        demos.save(
            folder / f"episode_{number:06d}.npz",
            iter(images),
            len(images),
            frame_tick=ticks,
            proprio=noise(14),
            action=noise(4),
            success=np.asarray(number != 1),
            critical_tick=np.asarray((12, -1, 0)[number]),
        )
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_export_then_import_gives_the_same_numbers_and_pictures_within_the_codecs_loss(tmp_path, episodes, processes):
    totals = export_lerobot(episodes, load_task("ethernet"), "ethernet", tmp_path / "lerobot")
    assert totals == {"episodes": 3, "frames": 134}
    mapping = load_mapping(tmp_path / "lerobot" / MAPPING)
    summary = import_lerobot(tmp_path / "lerobot", mapping, tmp_path / "back", processes)
    assert (summary.episodes, summary.ticks, summary.notes) == (3, 134, [])
    for before, after in zip(demos.load(episodes), demos.load(tmp_path / "back"), strict=True):
        for key in ("frame_tick", "proprio", "action", "success", "critical_tick"):
            np.testing.assert_array_equal(before[key], after[key], err_msg=key)
            assert before[key].dtype == after[key].dtype or before[key].dtype.kind == "i"
        loss = np.abs(before["images"].astype(int) - after["images"])
        assert before["images"].shape == after["images"].shape and loss.mean() < 3 and np.quantile(loss, 0.99) < 12
        assert str(after["instruction"]) == "plug the ethernet cable into the jack"


def test_export_has_the_layout_that_lerobot_reads(tmp_path, episodes):
    root = tmp_path / "lerobot"
    export_lerobot(episodes, load_task("ethernet"), "ethernet", root)
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 50 and info["total_frames"] == 134
    video = root / info["video_path"].format(video_key="observation.images.wrist", chunk_index=0, file_index=0)
    data = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=0))
    assert video.is_file() and data["index"].to_pylist() == list(range(134))
    assert data.schema.field("action").type == pa.list_(pa.float32(), 4)
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.wrist/"
    assert [row["length"] for row in rows] == [41, 60, 33]
    assert [row[key + "from_timestamp"] for row in rows] == pytest.approx([0, 0.82, 2.02])
    assert [row[key + "to_timestamp"] for row in rows] == pytest.approx([0.82, 2.02, 2.68])
    assert [row["dataset_from_index"] for row in rows] == [0, 41, 101]
    stats = json.loads((root / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], np.stack(data["action"].to_numpy()).mean(0), atol=1e-6)
    assert np.shape(stats["observation.images.wrist"]["mean"]) == (3, 1, 1) and stats["action"]["count"] == [134]
    # pandas takes the texts for its index by this
    assert json.loads(pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"])["index_columns"] == ["task"]


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_degrees_targets_and_another_rate_become_radians_deltas_and_ticks(tmp_path, made, mapping_file, dtype):
    dataset = made()
    dataset.write(dtype)
    summary = import_lerobot(dataset.root, load_mapping(mapping_file()), tmp_path / "out")
    assert "resampled from 30 to 50 Hz" in summary.notes[0]
    assert "the episodes say 'wave the arm', the task 'arm' says 'wave'" in summary.notes[1]
    first, second, _ = demos.load(tmp_path / "out")
    ticks = np.arange(int(19 / 30 * 50) + 1) / 50
    expected = np.stack([np.interp(ticks, np.arange(20) / 30, v) for v in dataset.states[0].T], 1) * DEG
    np.testing.assert_allclose(first["proprio"], expected, atol=1e-6)
    # The targets lead by a degree; what they move by a tick is the same.
    np.testing.assert_allclose(first["action"][1:], np.diff(expected, axis=0) / 0.02, atol=1e-4)
    assert (first["action"][0] == 0).all()
    assert first["critical_tick"] == len(ticks) - 10 and first["success"]
    for episode, begin in ((first, 0), (second, 20)):
        shown = begin + np.floor(episode["frame_tick"] / 50 * 30 + 1e-6).astype(int)
        np.testing.assert_allclose(episode["images"].mean((1, 2, 3, 4)), [shade(f) for f in shown], atol=1.5)


def add_feature(root: Path, name: str, rows: list, names: list[str]) -> None:
    """One more feature in a dataset that is written; `rows`: of all its frames."""
    path = root / DATA
    pq.write_table(pq.read_table(path).append_column(name, pa.array(rows)), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "float32", "shape": [len(names)], "names": names}
    (root / "meta/info.json").write_text(json.dumps(info))


def state_of(tmp_path, **sizes: int) -> None:
    """Give the task another state."""
    task = yaml.safe_load((tmp_path / "arm.yaml").read_text())
    task["state"] = [{"key": key, "size": size} for key, size in sizes.items()]
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(task))


@pytest.mark.parametrize("pick", [["pan.pos", "lift.pos"], [0, 1]], ids=["by name", "by index"])
def test_parts_may_have_the_same_names_or_indices_in_features_of_their_own(tmp_path, made, mapping_file, pick):
    dataset = made()
    root, frames = dataset.write(), sum(dataset.lengths)
    add_feature(root, "observation.velocity", [np.float32([1000 + i, 2000]) for i in range(frames)], dataset.names)
    add_feature(root, "observation.gripper", [np.float32([0.04])] * frames, ["width"])
    path = mapping_file(state={
        "joint_position": {"from": "observation.state", "pick": pick, "unit": "deg"},
        "joint_velocity": {"from": "observation.velocity", "pick": pick, "unit": "deg/s"},
        "gripper": {"from": "observation.gripper", "pick": [0]},
    })  # fmt: skip
    state_of(tmp_path, joint_position=2, joint_velocity=2, gripper=1)
    import_lerobot(root, load_mapping(path), tmp_path / "out")
    first = demos.load(tmp_path / "out")[0]["proprio"][0]
    np.testing.assert_allclose(first[:4] / DEG, [*dataset.states[0][0], 1000, 2000], atol=1e-3)
    assert first[4] == np.float32(0.04)


def pose_dataset(tmp_path, made, mapping_file, unit, length: float = 1.0):
    """A dataset with a pose of 7 values in mm, yaw 0.8, and its mapping; from episode 1 on quaternions of `length`."""
    dataset = made()
    root, first = dataset.write(), dataset.lengths[0]
    sizes = [1.0 if i < first else length for i in range(sum(dataset.lengths))]
    rows = [np.float32([450, 10, 80, 0, 0, size * np.sin(0.4), size * np.cos(0.4)]) for size in sizes]
    add_feature(root, "observation.pose", rows, ["x", "y", "z", "qx", "qy", "qz", "qw"])
    path = mapping_file(state={"pose": {"from": "observation.pose", "unit": unit}})
    state_of(tmp_path, pose=4)
    return root, load_mapping(path)


@pytest.mark.parametrize("unit", ["mm", ["mm", "mm", "mm", 1.0, 1.0, 1.0, 1.0]], ids=["for all", "for each"])
def test_a_unit_is_of_the_position_and_not_of_the_quaternion(tmp_path, made, mapping_file, unit):
    root, mapping = pose_dataset(tmp_path, made, mapping_file, unit)
    import_lerobot(root, mapping, tmp_path / "out")
    np.testing.assert_allclose(demos.load(tmp_path / "out")[0]["proprio"][0], [0.45, 0.01, 0.08, 0.8], atol=1e-6)


@pytest.mark.parametrize(("unit", "length", "says"), [
    ("mm", 1.1, [DATA, "episode 1, frame 0: observation.pose has the quaternion", "of length 1.1, expected 1"]),
    (["mm", "mm", "mm", "rad"], 1.0, ["info.json", "state.pose takes 7", "state.pose.unit in", "has 4 entries"]),
], ids=["quaternion", "unit"])  # fmt: skip
def test_a_pose_that_is_none_is_named(tmp_path, made, mapping_file, unit, length, says):
    root, mapping = pose_dataset(tmp_path, made, mapping_file, unit, length)
    with pytest.raises(DemoError) as error:
        import_lerobot(root, mapping, tmp_path / "out")
    for text in says:
        assert text in str(error.value)


def test_pictures_are_cut_as_live(tmp_path, made, mapping_file):
    dataset = made()
    dataset.write("image")
    table = pq.read_table(dataset.data)
    import cv2

    picture = np.zeros((32, 48, 3), np.uint8)
    picture[4:20, 6:22] = (10, 120, 230)
    png = {"bytes": cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), "path": None}
    key = "observation.images.front"
    pq.write_table(table.set_column(table.column_names.index(key), key, pa.array([png] * len(table))), dataset.data)
    mapping = load_mapping(mapping_file(cameras={"front": {"from": key, "crop": [6, 4, 16, 16]}}))
    import_lerobot(dataset.root, mapping, tmp_path / "out")
    assert (demos.load(tmp_path / "out")[0]["images"] == (10, 120, 230)).all()


def test_success_and_episodes_are_chosen_by_the_mapping(tmp_path, made, mapping_file):
    dataset = made()
    dataset.write()
    mapping = load_mapping(
        mapping_file(success={"from": "action", "above": 118.0}, skip=[0], critical=True, tasks=["wave the arm"])
    )
    summary = import_lerobot(dataset.root, mapping, tmp_path / "out")
    assert summary.episodes == 2
    assert [path.name for path in demos.paths(tmp_path / "out")] == ["episode_000001.npz", "episode_000002.npz"]
    assert [bool(e["success"]) for e in demos.load(tmp_path / "out")] == [False, False]
    with pytest.raises(DemoError, match=r"tasks.parquet: no task 'jump'; there are: \['wave the arm'\]"):
        import_lerobot(dataset.root, load_mapping(mapping_file(tasks=["jump"])), tmp_path / "other")


# What is wrong with a dataset: the change before it is written, the change after, and what the error says.


def nan(made):
    made.actions[1][7, 1] = np.nan


def nan_state(made):
    made.states[2][3, 0] = np.nan


def far(made):
    made.stats = {"action": {"max": [180.0, 1.0]}}


def cut(path: str, part: float = 0.5):
    return lambda root: os.truncate(root / path, int(part * (root / path).stat().st_size))


def gone(path: str):
    return lambda root: (root / path).unlink()


def short_video(root: Path):
    """A whole file that ends in the middle of the second episode."""
    path = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    writer = VideoWriter(path, 30, 32, 48)
    for frame in range(36):
        writer.add(np.full((32, 48, 3), shade(frame), np.uint8))
    writer.close()


def damaged(root: Path):
    """Nonsense in the middle of a whole file."""
    path = root / "videos/observation.images.front/chunk-000/file-000.mp4"
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    path.write_bytes(data)


def lost_rows(root: Path):
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 4), path)


def depth(root: Path):
    content = json.loads((root / "meta/info.json").read_text())
    content["features"][KEY]["info"] = {"video.is_depth_map": True}
    (root / "meta/info.json").write_text(json.dumps(content))


def info(**change):
    return lambda made: made.info.update(change)


def empty(made):
    made.lengths[1], made.shown[1] = 0, []
    made.states[1], made.actions[1], made.stamps[1] = made.states[1][:0], made.actions[1][:0], made.stamps[1][:0]


def dropped(made):
    made.stamps[2][12:] += 0.1


def three_joints(made):
    made.names = [*made.names, "grip.pos"]
    made.states = [np.pad(s, ((0, 0), (0, 1))) for s in made.states]
    made.actions = [np.pad(a, ((0, 0), (0, 1))) for a in made.actions]


def called(*names: str):
    return lambda made: made.__setattr__("names", list(names))


SAME = lambda _: None  # noqa: E731
UNPICKED = {"joint_position": {"from": "observation.state", "unit": "deg"}}
ALL = {"action": {"from": "action", "kind": "position", "unit": "deg"}}
FAULTS = {
    "NaN": (nan, SAME, {}, [DATA, "episode 1, frame 7", "action[1] (lift.pos) is nan", "skip: [1]"]),
    "NaN in the state": (nan_state, SAME, {}, [DATA, "episode 2, frame 3", "observation.state[0] (pan.pos) is nan"]),
    "damaged video": (SAME, damaged, {}, [VIDEO, "episode 1, frame ", "cannot be decoded", "fetch it again"]),
    "truncated video": (SAME, cut(VIDEO), {}, [VIDEO, "episode 0, frame ", "fetch it again"]),
    "video of nothing": (SAME, cut(VIDEO, 0.01), {}, [VIDEO, "episode 0, frame 0", "the video does not open"]),
    "short video": (SAME, short_video, {}, [VIDEO, "episode 1, frame 18", "the video ends before 1.2667 s"]),
    "missing video": (SAME, gone(VIDEO), {}, [VIDEO, "episode 0, frame 0", "the file is not there"]),
    "missing camera": (SAME, SAME, {"cameras": {"front": "observation.images.top"}},
                       ["info.json", "no feature 'observation.images.top'", "there are: observation.state, action"]),
    "depth in place of colours": (SAME, depth, {}, ["observation.images.front is a depth map", "colours for 'front'"]),
    "camera of the task not mapped": (SAME, SAME, {"cameras": {}}, ["map.yaml", "'cameras' lacks 'front'"]),
    "empty episode": (empty, SAME, {}, ["meta/episodes", "episode 1, frame 0", "has 0 frames", "skip: [1]"]),
    "wrong statistics": (far, SAME, {}, ["meta/stats.json", "action[0]: max is 180", "episode 0, frame 16"]),
    "wrong mean": (lambda m: m.__setattr__("stats", {"action": {"mean": [0.0, 0.0]}}), SAME, {},
                   ["meta/stats.json", "mean is 0", "over all 3 episodes", "check_statistics: false"]),
    "dropped frames": (dropped, SAME, {}, [DATA, "episode 2, frame 12", "timestamp is 0.5000 s, expected 0.4000 s"]),
    "lost rows": (SAME, lost_rows, {}, [DATA, "episode 2, frame 21", "the file has 21 frames"]),
    "truncated data": (SAME, cut(DATA), {}, [DATA, "episode 0, frame 0", "cannot be read"]),
    "truncated episodes": (SAME, cut("meta/episodes/chunk-000/file-000.parquet"), {}, ["file-000.parquet", "fetch it"]),
    "missing tasks": (SAME, gone("meta/tasks.parquet"), {}, ["meta/tasks.parquet", "cannot be read"]),
    "older version": (info(codebase_version="v2.1"), SAME, {}, ["codebase_version is 'v2.1'", "convert_dataset"]),
    "missing episode": (info(total_episodes=4), SAME, {}, ["total_episodes is 4, but meta/episodes has 3"]),
    "missing frames": (info(total_frames=99), SAME, {}, ["total_frames is 99, but meta/episodes has 76"]),
    "broken info": (SAME, cut("meta/info.json"), {}, ["meta/info.json: not JSON"]),
    "another action space": (three_joints, SAME, ALL,
                             ["action has 3 values (pan.pos, lift.pos, grip.pos)", "wants 2", "another action space"]),
    "an action space of the same size": (called("x", "y"), SAME, ALL | {"state": UNPICKED},
                                         ["meta/info.json", "action has the values x, y", "the actions pan, lift",
                                          "action.pick"]),
    "actions in another order": (called("lift.pos", "pan.pos"), SAME, ALL | {"state": UNPICKED},
                                 ["action has the values lift.pos, pan.pos", "or another order", "action.pick"]),
    "normalised at another rate": (SAME, SAME, {"action": {"from": "action", "kind": "normalised"}},
                                   ["fps is 30", "a rate of 50", "action.kind is normalised"]),
    "degrees taken as radians": (SAME, SAME, {"action": {"from": "action", "kind": "position"}},
                                 [DATA, "episode", "of full action", "max_clipped", "action.unit"]),
    "no such value": (SAME, SAME,
                      {"state": {"joint_position": {"from": "observation.state", "pick": ["pan.pos", "x"]}}},
                      ["observation.state has 2 values (pan.pos, lift.pos)", "pick", "names 'x'"]),
    "skip of none": (SAME, SAME, {"skip": [9]}, ["skip has 9, the dataset has the episodes 0 to 2"]),
    "all skipped": (SAME, SAME, {"skip": [0, 1, 2]}, ["no episode is left of 3"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_and_nothing_is_left_behind(tmp_path, made, mapping_file, fault):
    before, after, changes, says = FAULTS[fault]
    dataset = made()
    before(dataset)
    after(dataset.write())
    there = set(tmp_path.iterdir()) | {tmp_path / "map.yaml"}
    with pytest.raises(DemoError) as error:
        import_lerobot(dataset.root, load_mapping(mapping_file(**changes)), tmp_path / "out")
    for text in says:
        assert text in str(error.value)
    assert set(tmp_path.iterdir()) <= there


def test_a_fault_in_another_process_is_named_too(tmp_path, made, mapping_file):
    dataset = made()
    short_video(dataset.write())
    with pytest.raises(DemoError, match="episode 1, frame 18: the video ends before"):
        import_lerobot(dataset.root, load_mapping(mapping_file()), tmp_path / "out", processes=2)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*out*"))


def test_what_can_be_left_out_is(tmp_path, made, mapping_file):
    dataset = made()
    nan(dataset)
    dataset.stats = None
    dataset.write()
    summary = import_lerobot(dataset.root, load_mapping(mapping_file(skip=[1])), tmp_path / "out")
    assert summary.episodes == 2 and any("meta/stats.json is not there" in note for note in summary.notes)


def test_statistics_that_are_not_compared_are_mentioned(tmp_path, made, mapping_file):
    summary = import_lerobot(made().write(), load_mapping(mapping_file(skip=[1])), tmp_path / "out")
    assert any("meta/stats.json was not compared with the data" in note for note in summary.notes)


def test_actions_without_telling_names_are_taken_in_their_order_and_that_is_said(tmp_path, made, mapping_file):
    dataset = made()
    dataset.names = ["motor_0", "motor_1"]
    mapping = load_mapping(mapping_file(**ALL, state=UNPICKED))
    summary = import_lerobot(dataset.write(), mapping, tmp_path / "out")
    assert "the actions motor_0, motor_1 are taken for pan, lift, in this order" in summary.notes


def test_two_cameras_may_look_at_one_feature(made, tmp_path):
    dataset = Dataset(made().write())
    for episode in dataset.episodes:
        frames, stamps = np.arange(episode.length), np.arange(episode.length) / 30
        both = [dataset.pictures(episode, KEY, frames, stamps, 16, ()) for _ in range(2)]
        shades = np.array([[picture.mean() for picture in pair] for pair in zip(*both, strict=True)])
        expected = [shade(episode.first + frame) for frame in frames]
        np.testing.assert_allclose(shades, np.stack([expected, expected], 1), atol=1.5)


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


def test_an_import_for_which_there_is_no_room_does_not_begin(tmp_path, made, mapping_file, monkeypatch):
    root, mapping = made().write(), load_mapping(mapping_file())
    before = left(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(ValueError, match="deep/out: the pictures take 0.00 GB, and 0.00 GB are free there"):
        import_lerobot(root, mapping, tmp_path / "deep/out")
    assert left(tmp_path) == before  # not even the folder above


@pytest.fixture
def full_disk():
    """full_disk(size): no file can grow larger, here and in processes that start from now on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_named_and_nothing_is_left_behind(tmp_path, made, mapping_file, full_disk, processes):
    root, mapping = made().write(), load_mapping(mapping_file())
    before = left(tmp_path)
    full_disk(9000)  # the first episode needs 5 kB of pictures, the second 8
    with pytest.raises(ValueError, match="episode_000001.npz: cannot be written .* make room there"):
        import_lerobot(root, mapping, tmp_path / "out", processes)
    assert left(tmp_path) == before


def many(made, count: int) -> Path:
    dataset = made(lengths=(20,) * count)
    dataset.stats = None
    return dataset.write("image")


def test_a_process_that_is_killed_ends_the_import(tmp_path, made, mapping_file):
    root, mapping = many(made, 150), load_mapping(mapping_file())
    before = left(tmp_path)

    def kill(what: str, done: int, total: int) -> None:
        if what == "pictures" and done == 1:
            for process in mp.active_children():
                process.kill()

    with pytest.raises(DemoError, match="a process that wrote pictures was killed, about episode"):
        import_lerobot(root, mapping, tmp_path / "out", 2, kill)
    assert left(tmp_path) == before


@pytest.mark.parametrize(("sent", "processes"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_ctrl_c_leaves_nothing_and_says_no_more_than_that(tmp_path, made, mapping_file, python, sent, processes):
    root = many(made, 250)
    arguments = ["--map", str(mapping_file()), "--out", str(tmp_path / "out"), "--processes", str(processes)]
    before = left(tmp_path)
    code = "import sys; from rlt_ros.cli.main import main; sys.exit(main())"
    command = [python, "-c", code, "demos", "import", "--from", "lerobot", str(root), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.part/episode_*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
    else:
        process.send_signal(sent)
    assert process.communicate(timeout=120)[1].strip() == "interrupted"
    assert process.returncode == 130 and left(tmp_path) == before


def test_wrong_statistics_can_be_ignored(tmp_path, made, mapping_file):
    dataset = made()
    far(dataset)
    dataset.write()
    assert import_lerobot(dataset.root, load_mapping(mapping_file(check_statistics=False)), tmp_path / "out").episodes


def test_nothing_is_written_over_and_what_a_killed_run_left_goes_away(tmp_path, made, mapping_file):
    root, mapping = made().write(), load_mapping(mapping_file())
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/episode_000009.npz").write_bytes(b"half")
    import_lerobot(root, mapping, tmp_path / "out")
    assert len(demos.paths(tmp_path / "out")) == 3 and not (tmp_path / ".out.part").exists()
    with pytest.raises(ValueError, match="is there already, and nothing is written over"):
        import_lerobot(root, mapping, tmp_path / "out")


def test_an_export_that_fails_leaves_nothing(tmp_path, episodes):
    os.truncate(episodes / "episode_000002.npz", 1000)
    with pytest.raises(ValueError, match=r"episode_000002.npz: cannot be read"):
        export_lerobot(episodes, load_task("ethernet"), "ethernet", tmp_path / "lerobot")
    assert [path.name for path in tmp_path.iterdir()] == ["recorded"]
    with pytest.raises(DemoError, match="is it the right --task"):
        (episodes / "episode_000002.npz").unlink()
        export_lerobot(episodes, load_task("so101"), "so101", tmp_path / "lerobot")
