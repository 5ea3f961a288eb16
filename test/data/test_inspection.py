"""What `rlt demos inspect` finds."""

import numpy as np
import pytest

from rlt_ros.data import demos
from rlt_ros.data.inspection import inspect, lines, plot
from rlt_ros.sim.task import load_task

STEPS = 150


@pytest.fixture
def write(tmp_path):
    """write(number, **changes): a good demonstration of the Ethernet task, but for what is changed."""
    folder = tmp_path / "demos"
    folder.mkdir()

    def written(number: int = 0, change=lambda episode: None) -> None:
        at, random = np.arange(STEPS), np.random.default_rng(number)
        action = np.stack([0.6 * np.sin(at / 20), 0.5 * np.cos(at / 25), -0.4 + 0 * at, 0.2 * np.sin(at / 30)], 1)
        scale = np.array([0.0015, 0.0015, 0.0015, 0.02])
        pose = np.cumsum(np.vstack([np.zeros(4), action[:-1] * scale]), 0) + [0.45, 0, 0.2, 0]
        proprio = np.concatenate([pose, np.gradient(pose, 0.02, axis=0), np.zeros((STEPS, 6))], 1)
        ticks = np.arange(0, STEPS, 5)
        images = random.integers(30, 220, (len(ticks), 2, 16, 16, 3), dtype=np.uint8)
        episode = dict(
            images=images,
            frame_tick=ticks,
            proprio=proprio.astype(np.float32),
            action=action.astype(np.float32),
            success=np.asarray(True),
            critical_tick=np.asarray(60),
        )
        change(episode)
        np.savez(folder / f"episode_{number:06d}.npz", **episode)

    written.folder = folder
    return written


def found(write):
    return inspect(write.folder, load_task("ethernet"))


def test_good_demonstrations_have_nothing_wrong_and_are_summed_up(write, tmp_path):
    for number in range(3):
        write(number)
    seen = found(write)
    text = "\n".join(lines(seen))
    assert seen.findings == [] and "nothing wrong was found" in text
    assert "3 episodes, 3 successful, 90 pictures" in text and "150 in all, 90 in the critical phase" in text
    assert all(0.9 < gain < 1.1 for gain in seen.gains.values()) and len(seen.gains) == 4
    plot(seen, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def at(key: str, where, value):
    def change(episode):
        episode[key] = episode[key].copy()
        episode[key][where] = value

    return change


def times(key: str, columns, factor: float):
    def change(episode):
        episode[key][:, columns] *= factor

    return change


def gap(episode):
    keep = [i for i in range(30) if not 10 <= i < 14]
    episode["images"], episode["frame_tick"] = episode["images"][keep], episode["frame_tick"][keep]


def freeze(episode):
    episode["images"][4:, 1] = episode["images"][4, 1]


def clip(episode):
    episode["action"][:100, 2] = -1.0


def jump(episode):
    episode["proprio"][90:, 0] += 0.08


def nothing(episode):
    for key in ("images", "frame_tick", "proprio", "action"):
        episode[key] = episode[key][:0]


FAULTS = {
    "NaN": (at("proprio", (33, 5), np.nan), "not finite", "frame 33: twist[1] is nan"),
    "gap": (gap, "gap", "frame 45: the next picture is 25 ticks later, usual are 5"),
    "jump": (jump, "jump", "frame 90: pose[0] jumps by 0.0791"),
    "frozen camera": (freeze, "frozen camera", "frame 20: camera 'base' shows the same picture"),
    "black camera": (at("images", (7, 0), 0), "dark", "frame 35: camera 'wrist' is black"),
    "clipped actions": (clip, "clipped actions", "action z is at full action in 67 % of the ticks"),
    "over full action": (at("action", (12, 3), 1.7), "over full action", "frame 12: action yaw is 1.7"),
    "millimetres": (times("proprio", [0, 1, 2], 1000.0), "unit", "pose[0] reaches 486; is it in millimetres?"),
    "degrees": (times("proprio", [3], 180 / np.pi), "unit", "pose[3] reaches 13.75; is it in degrees?"),
    "actions in another unit": (
        times("action", [0, 1, 2, 3], 0.001),
        "unit",
        "no action exceeds 0.06 % of full action",
    ),
    "actions that say too little": (times("action", [0], 0.05), "unit", "action x moves pose[0] by 20 of what it says"),
    "sign": (
        times("action", [1], -1.0),
        "unit",
        "action y moves pose[1] by -1 of what it says, expected about 1; the sign",
    ),
    "no success": (lambda e: e.update(success=np.asarray(False)), "no success", "no episode is a success"),
    "empty": (nothing, "empty", "0 steps and 0 pictures"),
    "another task": (lambda e: e.update(action=e["action"][:, :2]), "shape", "action is (150, 2)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_found_and_named(write, fault):
    change, kind, says = FAULTS[fault]
    write(0, change)
    texts = {finding.kind: finding.text for finding in found(write).findings}
    assert kind in texts
    everything = " | ".join(f.text for f in found(write).findings if f.kind == kind)
    assert says in everything
    if "frame" in says:
        assert "episode_000000.npz" in everything


def test_an_unreadable_file_is_named_and_the_others_are_looked_at(write):
    write(0)
    write(1)
    path = write.folder / "episode_000000.npz"
    path.write_bytes(path.read_bytes()[:500])
    seen = found(write)
    assert [finding.kind for finding in seen.findings] == ["unreadable"]
    assert "episode_000000.npz" in seen.findings[0].text and len(seen.lengths) == 1
    assert demos.paths(write.folder)
