"""From sticks to actions, and back."""

import numpy as np
import pytest

from rlt_ros.core.gamepad import MOTIONS, REQUESTS, Gamepad, Layout, VirtualPad, from_tool, load_layout
from rlt_ros.sim.task import task_folder

NAN = float("nan")
FILES = sorted((task_folder().parent / "gamepads").glob("*.yaml"))
SIMPLE = {
    "deadman": 0,
    "dead_zone": 0.2,
    "motions": {"x": {"axis": 1, "scale": 1.0}, "yaw": {"axis": 0, "scale": -0.5}},
    "buttons": {"success": 1, "stop": 2},
}


def layout(**changes) -> Layout:
    return Layout.from_mapping(SIMPLE | changes, "mine")


def pad(actions=("x", "y", "yaw"), steer=None, timeout_s=0.3, **changes) -> Gamepad:
    return Gamepad(layout(**changes), actions, steer, timeout_s)


def steered(p: Gamepad, axes, buttons=(1, 0, 0)) -> np.ndarray | None:
    p.read(axes, buttons, 0.0)
    return p.action(0.0)


# --- motions


def test_stick_beyond_the_dead_zone_is_scaled_from_zero_to_full():
    p = pad()
    for stick, wanted in ((0.1, 0.0), (0.2, 0.0), (0.6, 0.5), (1.0, 1.0), (-1.0, -1.0), (7.0, 1.0)):
        assert steered(p, [0.0, stick])[0] == pytest.approx(wanted)


def test_motions_steer_the_actions_of_their_name_in_the_order_of_the_task():
    p = pad(actions=("yaw", "x", "z"))
    np.testing.assert_allclose(steered(p, [1.0, 1.0]), [-0.5, 1.0, 0.0])
    assert p.idle == ["z"]


def test_robot_names_other_motions_for_its_actions_and_inverts_them():
    p = pad(actions=("pan", "lift", "yaw"), steer={"pan": "x", "lift": "-x"})
    np.testing.assert_allclose(steered(p, [1.0, 1.0]), [1.0, -1.0, -0.5])


def test_expo_is_finer_about_the_middle_and_the_same_at_the_end():
    p = pad(expo=0.5, dead_zone=0.0)
    for stick, wanted in ((0.5, 0.5 * 0.5 + 0.5 * 0.125), (1.0, 1.0), (-0.5, -0.3125)):
        assert steered(p, [0.0, stick])[0] == pytest.approx(wanted)


def test_slow_while_held():
    p = pad(slow=3, slow_speed=0.25)
    assert [steered(p, [0.0, 1.0], (1, 0, 0, slow))[0] for slow in (0, 1, 1, 0)] == [1.0, 0.25, 0.25, 1.0]


def test_slow_from_press_to_press():
    p = pad(slow=3, slow_speed=0.25, slow_toggles=True)
    speeds = [steered(p, [0.0, 1.0], (1, 0, 0, slow))[0] for slow in (0, 1, 1, 0, 0, 1, 0)]
    assert speeds == [1.0, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0]


def test_two_buttons_steer_a_motion():
    p = pad(actions=("gripper",), motions={"gripper": {"plus": 3, "minus": {"axis": 0, "below": -0.5}, "scale": 0.6}})
    found = [float(steered(p, [axis], (1, 0, 0, plus))[0]) for axis, plus in ((0, 1), (-1, 0), (0, 0), (-1, 1))]
    assert found == pytest.approx([0.6, -0.6, 0.0, 0.0])


def test_stick_that_is_not_finite_counts_as_zero_and_is_told():
    p = pad()
    assert not steered(p, [0.0, NAN]).any()
    assert "axis 1 is nan" in p.oddity
    steered(p, [0.0, 1.0])
    assert p.oddity == ""


@pytest.mark.parametrize("yaw", [0.0, 0.5, np.pi / 2, -2.0])
def test_tool_frame_is_turned_by_the_tools_yaw(yaw):
    scale = [0.001, 0.002, 0.001]
    base = from_tool(np.float32([0.4, 0.1, 0.3]), (0, 1), scale, yaw)
    metres = base[:2] * scale[:2]
    back = [[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]] @ metres
    np.testing.assert_allclose(back, [0.0004, 0.0002], atol=1e-9)
    assert base[2] == np.float32(0.3)


def test_turned_action_is_shortened_and_keeps_its_direction():
    base = from_tool(np.float32([1.0, 1.0]), (0, 1), [0.001, 0.001], np.pi / 4)
    np.testing.assert_allclose(base, [0.0, 1.0], atol=1e-6)


# --- dead-man and buttons


def test_no_action_without_the_dead_man_or_after_silence():
    p = pad()
    assert p.action(0.0) is None
    p.read([0.0, 1.0], [0, 0, 0], now_s=0.0)
    assert p.action(0.0) is None
    p.read([0.0, 1.0], [1, 0, 0], now_s=1.0)
    assert p.action(1.2) is not None
    assert p.action(1.4) is None and p.lost(1.4)


def test_a_button_is_pressed_once_and_one_held_at_the_start_is_not():
    p = pad()
    assert [p.read([0.0, 0.0], [0, down, 0], 0.0) for down in (1, 0, 1, 1)] == [[], [], ["success"], []]


@pytest.mark.parametrize(
    ("trigger", "values"),
    [
        ({"axis": 0, "below": -0.5}, (0.0, 1.0, -1.0, 1.0)),  # 0 until it is moved, 1 at rest
        ({"axis": 0, "above": 0.5}, (0.0, -1.0, 1.0, NAN)),
    ],
)
def test_trigger_or_hat_is_a_button_that_is_up_until_it_moves(trigger, values):
    p = pad(deadman=trigger, motions={"x": {"axis": 1, "scale": 1.0}})
    assert [steered(p, [v, 1.0], (0, 0, 0)) is not None for v in values] == [False, False, True, False]
    p = pad(buttons={"undo": trigger}, motions={})
    assert [p.read([v], [0], 0.0) for v in values] == [[], [], ["undo"], []]


# --- a gamepad that is another


def test_gamepad_that_lacks_something_is_not_steered_with_and_says_what_there_is():
    p = pad()
    assert steered(p, [0.0], (1, 0)) is None
    assert p.misfit == (
        "the gamepad file 'mine' does not fit: x: axis 1; stop: button 2;"
        " this gamepad has 1 axes (0 to 0), 2 buttons (0 to 1)"
    )
    assert steered(p, [0.0, 1.0]) is not None and p.misfit == ""


def test_dead_man_on_an_index_that_is_not_there_is_never_held():
    p = pad(deadman=5, buttons={})
    assert steered(p, [0.0, 1.0], (1, 1, 1, 1, 1)) is None
    assert "deadman: button 5" in p.misfit
    p = pad(deadman={"axis": 4, "below": -0.5})
    assert steered(p, [-1.0, -1.0], (1, 1, 1)) is None
    assert "deadman: axis 4 below -0.5" in p.misfit


def test_gamepad_with_nothing_on_it_says_so():
    p = pad()
    assert steered(p, [], []) is None
    assert p.misfit.endswith("this gamepad has no axes, no buttons")


def test_of_a_gamepad_that_does_not_fit_the_emergency_stop_alone_is_taken():
    p = pad(buttons={"success": 1, "stop": 2, "start": 9})
    p.read([0.0, 0.0], [0, 0, 0], 0.0)
    assert p.misfit and p.read([0.0, 0.0], [0, 1, 1], 0.0) == ["stop"]


def test_button_that_is_down_when_another_gamepad_comes_is_no_press():
    p = pad()
    p.read([0.0, 0.0], [0, 0, 0], 0.0)
    assert p.read([0.0, 0.0], [0, 1, 1, 0], 0.0) == []


def test_actions_and_motions_that_do_not_exist_are_refused_by_name():
    with pytest.raises(ValueError, match=r"steer\.z: the task has no such action; it has x, y, yaw"):
        pad(steer={"z": "x"})
    with pytest.raises(ValueError, match=r"steer\.x: got 'True', expected one of x, y, .*in quotes"):
        pad(steer={"x": True})


# --- files


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"deadman": None}, "deadman: got None, expected the index of a button"),
        ({"deadman": -1}, "deadman: got -1"),
        ({"deadman": True}, "deadman: got True"),
        ({"deadman": {"axis": 2}}, r"deadman: got {'axis': 2}, expected {axis: i, above: 0.5} or"),
        ({"deadman": {"axis": 2, "above": 0.0}}, "deadman.above: got 0.0, expected a number from 0.05"),
        ({"dead_zone": 1.0}, "dead_zone: got 1.0, expected a number from 0 to 0.9"),
        ({"expo": NAN}, "expo: got nan"),
        ({"motions": {"yow": {"axis": 0, "scale": 1.0}}}, "motions.yow: got an unknown name, expected one of x, y, z"),
        ({"motions": {"x": {"axis": 0}}}, "motions.x.scale: got None, expected a number from -1 to 1"),
        ({"motions": {"x": {"axis": 0, "plus": 1, "scale": 1.0}}}, "motions.x: got .*expected an axis, or plus and"),
        ({"buttons": {"jump": 3}}, "buttons.jump: got an unknown name, expected one of start, hand_over"),
        ({"buttons": {"success": 0}}, "success: got button 0, expected another place than that of deadman"),
        ({"buttons": {"undo": {"axis": 1, "above": 0.5}}}, "undo: got axis 1 above 0.5, expected an axis that steers"),
        ({"driver": "usb"}, "driver: got 'usb', expected one of joy, spacenav, none"),
        ({"slow_toggles": 1}, "slow_toggles: got 1, expected one of False, True"),
        ({"speed": 1}, "speed: got an unknown name"),
    ],
)
def test_file_that_cannot_work_is_refused_by_key(changes, text):
    with pytest.raises(ValueError, match=text):
        layout(**changes)


def test_dead_man_is_required():
    with pytest.raises(ValueError, match="'mine': deadman: got missing, expected the button that must be held"):
        Layout.from_mapping({"motions": {}}, "mine")
    with pytest.raises(ValueError, match="the file: got None, expected a mapping"):
        Layout.from_mapping(None)


def test_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("deadman: [")
    with pytest.raises(ValueError, match="broken.yaml: not YAML"):
        load_layout(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_fit_their_pads(path):
    there = {"xbox": (8, 11), "playstation": (8, 13), "spacemouse": (6, 2), "keyboard": (7, 10)}
    made = load_layout(path)
    assert made.missing(*there[path.stem]) == ""
    assert {"x", "y", "z", "yaw"} <= set(made.motions) and "stop" in made.buttons


def test_pads_have_all_that_a_session_needs():
    for name in ("xbox", "playstation"):
        made = load_layout(FILES[0].with_name(f"{name}.yaml"))
        assert set(made.buttons) == set(REQUESTS) - {"release"} and made.slow is not None
    keyboard = load_layout(FILES[0].with_name("keyboard.yaml"))
    assert set(keyboard.buttons) == set(REQUESTS) and set(keyboard.motions) == set(MOTIONS)


# --- a pad that is not there


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_virtual_pad_is_read_as_what_it_was_told(path):
    made = load_layout(path)
    virtual, real = VirtualPad(made), Gamepad(made, MOTIONS)
    for speed in (0.02, 0.15, 0.5, -0.7, 1.0, -1.0):
        for motion in made.motions:
            real.read(*virtual.reading({motion: speed}, ("deadman",)), 0.0)
            wanted = [speed * abs(made.motions[motion].scale) if name == motion else 0.0 for name in MOTIONS]
            np.testing.assert_allclose(real.action(0.0), wanted, atol=1e-5)
    assert real.misfit == ""
    for request in made.buttons:
        real.read(*virtual.reading({}, ()), 0.0)
        assert real.read(*virtual.reading({}, (request,)), 0.0) == [request]
        assert real.action(0.0) is None


def test_virtual_pad_leaves_out_what_its_layout_does_not_have():
    axes, buttons = VirtualPad(layout()).reading({"z": 1.0}, ("undo",))
    assert not any(axes) and not any(buttons)
