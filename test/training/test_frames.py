"""Samples of demonstrations: they are what was recorded, and what does not fit is named."""

import numpy as np
import pytest


def test_a_row_is_a_picture_with_its_state_and_the_actions_from_then_on(folder, frames, episode):
    first, second = episode(folder, 0), episode(folder, 1)
    row = 12 + 11  # the last picture of the second episode
    assert len(frames) == 48 and frames.tick[row] == 55
    np.testing.assert_array_equal(frames.images([0, row]), np.stack([first["images"][0], second["images"][11]]))
    np.testing.assert_array_equal(frames.proprio[row], second["proprio"][55])
    np.testing.assert_array_equal(frames.actions[row], second["action"][55:60])
    assert frames.where(row) == f"{folder / 'episode_000001.npz'}, picture 11 (tick 55)"


def test_past_the_end_nothing_moves(tmp_path, make_demos, read_frames):
    frames = read_frames(make_demos(tmp_path, ticks=57, frame_tick=np.arange(12) * 5))
    assert (frames.actions[11][:2] != 0).any() and (frames.actions[11][2:] == 0).all()


def test_each_nth_picture_is_taken(folder, read_frames):
    frames = read_frames(folder, every=5)
    assert frames.frame[:4].tolist() == [0, 5, 10, 0] and frames.tick[:3].tolist() == [0, 25, 50]


def test_cameras_come_in_the_order_of_the_vla(folder, frames, read_frames):
    turned = read_frames(folder, want=["base", "wrist"])
    np.testing.assert_array_equal(turned.images([5]), frames.images([5])[:, ::-1])
    assert turned.checksum != frames.checksum
    only = read_frames(folder, want=["base"])
    np.testing.assert_array_equal(only.images([5]), frames.images([5])[:, 1:])


def test_pictures_of_another_size_are_fitted(tmp_path, make_demos, read_frames):
    small, large = make_demos(tmp_path / "small"), make_demos(tmp_path / "large", size=32)
    np.testing.assert_array_equal(read_frames(large).images([3, 20]), read_frames(small).images([3, 20]))


def test_whole_episodes_are_held_out_and_failed_ones_are_not_learned_from(frames, tmp_path, make_demos, read_frames):
    train, held = frames.split()
    assert set(frames.episode[train]) == {0, 1} and set(frames.episode[held]) == {2}
    many = read_frames(make_demos(tmp_path / "many", episodes=21), every=6)
    train, held = many.split()
    assert set(many.episode[held]) == {9, 19} and len(train) + len(held) == len(many)
    alone = read_frames(make_demos(tmp_path / "alone", episodes=1))
    assert len(alone.split()[0]) == 12 and len(alone.split()[1]) == 0


def test_the_checksum_is_of_what_the_pictures_show(folder, frames, read_frames, episode):
    assert read_frames(folder).checksum == frames.checksum != read_frames(folder, every=2).checksum
    changed = episode(folder, 2)
    changed["images"][4, 0, 3, 3, 1] ^= 1
    np.savez(folder / "episode_000002.npz", **changed)
    assert read_frames(folder).checksum != frames.checksum


@pytest.mark.parametrize(("changes", "words"), [
    ({"cameras": 1}, "episode_000000.npz: pictures of 1 cameras, expected the task's 2"),
    ({"proprio": np.zeros((60, 7), np.float32)}, r"proprio is \(60, 7\), expected \(60, 14\); .* another robot"),
    ({"action": np.zeros((60, 6), np.float32)}, r"action is \(60, 6\), expected \(60, 4\)"),
    ({"action": np.zeros((0, 4), np.float32)}, "an empty episode, with 0 ticks and 12 pictures"),
    ({"pictures": 0}, "an empty episode, with 60 ticks and 0 pictures"),
    ({"frame_tick": np.arange(12) * 6}, "12 ticks 0 to 66 of 12 pictures, expected one each within 0 to 59"),
    ({"failed": (0, 1, 2, 3)}, "none of 4 demonstrations succeeded"),
])  # fmt: skip
def test_demonstrations_that_do_not_fit_are_refused(tmp_path, make_demos, read_frames, changes, words):
    with pytest.raises(ValueError, match=words):
        read_frames(make_demos(tmp_path, **changes))


@pytest.mark.parametrize("name", ["proprio", "action"])
def test_a_number_that_is_none_is_named_by_file_picture_and_tick(folder, read_frames, episode, name):
    changed = episode(folder, 1)
    changed[name][33, 2] = np.nan
    np.savez(folder / "episode_000001.npz", **changed)
    with pytest.raises(ValueError, match=rf"episode_000001.npz, picture 6, tick 33: {name}\[2\] is nan"):
        read_frames(folder)


def test_a_camera_that_nobody_recorded_is_named(folder, read_frames):
    with pytest.raises(ValueError, match="wants camera 'side', the task of these demonstrations has wrist, base"):
        read_frames(folder, want=["wrist", "side"])


def test_files_that_are_missing_cut_off_or_compressed_are_named(tmp_path, folder, read_frames, episode):
    with pytest.raises(ValueError, match=f"{tmp_path / 'nowhere'}: no demonstrations"):
        read_frames(tmp_path / "nowhere")
    path = folder / "episode_000002.npz"
    whole = episode(folder, 2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{path}: cannot be read"):
        read_frames(folder)
    np.savez_compressed(path, **whole)
    with pytest.raises(ValueError, match=f"{path}: pictures are uint8 .* compressed; expected"):
        read_frames(folder)
