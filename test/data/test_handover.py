"""What a session keeps of its hand-overs."""

from dataclasses import replace

import numpy as np
import pytest

from rlt_ros.cli.main import main
from rlt_ros.core.handover import Approach, HandOverError, train
from rlt_ros.data.handover import FOLDER, load_classifier, read_approaches, save_approach, save_classifier


def approach(number: int) -> Approach:
    """Twenty frames; the first value of the proprioception says whether the press has come."""
    start = 1000 * number
    ticks = start + 10 * np.arange(20)
    proprios = np.random.default_rng(number).normal(size=(20, 3))
    proprios[:, 0] = (ticks >= start + 100) + 0.0
    return Approach(number, start, start + 100, 0.02, ticks, ticks + 5, np.zeros((20, 4)), proprios)


def test_approaches_are_kept_a_file_each_in_order(tmp_path) -> None:
    for number in (2, 11, 1):
        save_approach(tmp_path, approach(number))
    found = read_approaches(tmp_path)
    assert [a.episode for a in found] == [1, 2, 11]
    assert np.array_equal(found[2].proprios, approach(11).proprios) and found[2].press_tick == 11_100
    assert np.array_equal(found[2].features, approach(11).features)
    assert read_approaches(tmp_path / "nowhere") == []


def test_arrays_that_another_version_added_to_a_recording_are_left_alone(tmp_path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    path = save_approach(tmp_path, approach(1))
    with safe_open(path, "np") as file:
        about = file.metadata()
    looks = {"looks": np.zeros((40, 3), np.float32), "look_ticks": np.arange(40), "look_frames": np.arange(40) // 2}
    save_file(load_file(path) | looks, path, about)
    (found,) = read_approaches(tmp_path, pytest.fail)
    assert np.array_equal(found.features, approach(1).features) and found.press_tick == 1100


def test_a_torn_file_costs_its_episode_only_and_is_named(tmp_path) -> None:
    for number in range(3):
        path = save_approach(tmp_path, approach(number))
    path.write_bytes(path.read_bytes()[:-100])
    save_approach(tmp_path, approach(7))
    (path.parent / "000009-5.safetensors").write_text("no safetensors")
    warned: list[str] = []
    assert [a.episode for a in read_approaches(tmp_path, warned.append)] == [0, 1, 7]
    assert len(warned) == 2 and str(path) in warned[0] and "000009-5" in warned[1]


def test_a_folder_in_the_way_is_an_oserror_and_leaves_nothing_half_written(tmp_path) -> None:
    path = save_approach(tmp_path, approach(1))
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        save_approach(tmp_path, approach(1))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_classifier_and_what_it_is_worth_are_found_again(tmp_path) -> None:
    classifier, report = train([approach(i) for i in range(8)])
    save_classifier(tmp_path, classifier, report)
    again, told = load_classifier(tmp_path)
    assert again.pack() == classifier.pack()
    assert (told.presses, told.recall) == (8, report.recall)


def test_what_is_missing_or_spoiled_is_named_with_what_to_do(tmp_path) -> None:
    with pytest.raises(HandOverError, match="has no hand-over classifier .*rlt train handover"):
        load_classifier(tmp_path)
    classifier, report = train([approach(i) for i in range(8)])
    save_classifier(tmp_path, replace(classifier, needed=5), report)
    with pytest.raises(HandOverError, match=r"classifier\.safetensors: .*5 of 3 frames"):
        load_classifier(tmp_path)
    save_classifier(tmp_path, classifier, report)
    (tmp_path / FOLDER / "report.json").write_text("{}")
    with pytest.raises(HandOverError, match=r"report\.json: not a report"):
        load_classifier(tmp_path)
    (tmp_path / FOLDER / "report.json").unlink()
    with pytest.raises(HandOverError, match=r"report\.json"):
        load_classifier(tmp_path)


def test_the_command_trains_from_a_sessions_presses(tmp_path, capsys) -> None:
    assert main(["train", "handover", "--session", str(tmp_path)]) == 1
    assert "0 presses, expected at least 5" in capsys.readouterr().err
    for number in range(8):
        save_approach(tmp_path, approach(number))
    assert main(["train", "handover", "--session", str(tmp_path)]) == 0
    assert '"presses": 8' in capsys.readouterr().out
    assert load_classifier(tmp_path)[1].presses == 8
    assert main(["train", "handover"]) == 2
