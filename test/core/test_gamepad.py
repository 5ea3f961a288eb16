"""From sticks to actions."""

import numpy as np
import pytest

from rlt_ros.core.gamepad import Gamepad


def pad(**changes) -> Gamepad:
    values = dict(
        axes=[1, -1, 0], scale=[1.0, 1.0, -0.5], deadman=0, dead_zone=0.2, timeout_s=0.3, buttons={"success": 1}
    )
    return Gamepad(**(values | changes))


def test_stick_beyond_the_dead_zone_is_scaled_from_zero_to_full():
    p = pad()
    for stick, wanted in ((0.1, 0.0), (0.2, 0.0), (0.6, 0.5), (1.0, 1.0), (-1.0, -1.0)):
        p.read([0.0, stick], [1, 0], now_s=0.0)
        assert p.action(0.0)[0] == pytest.approx(wanted)


def test_axis_minus_one_is_not_steered_and_a_negative_scale_inverts():
    p = pad()
    p.read([1.0, 1.0], [1, 0], now_s=0.0)
    np.testing.assert_allclose(p.action(0.0), [1.0, 0.0, -0.5])


def test_no_action_without_the_dead_man_or_after_silence():
    p = pad()
    assert p.action(0.0) is None
    p.read([0.0, 1.0], [0, 0], now_s=0.0)
    assert p.action(0.0) is None
    p.read([0.0, 1.0], [1, 0], now_s=1.0)
    assert p.action(1.2) is not None
    assert p.action(1.4) is None and p.lost(1.4)


def test_a_button_is_pressed_once_and_one_held_at_the_start_is_not():
    p = pad()
    assert p.read([0.0, 0.0], [0, 1], 0.0) == []
    assert p.read([0.0, 0.0], [0, 0], 0.0) == []
    assert p.read([0.0, 0.0], [0, 1], 0.0) == ["success"]
    assert p.read([0.0, 0.0], [0, 1], 0.0) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale": [1.0]}, "3 axes but 1 scales"),
        ({"deadman": -1}, "a dead-man button is required"),
        ({"dead_zone": 1.0}, "expected 0 <= dead_zone < 1"),
    ],
)
def test_what_cannot_work_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        pad(**changes)


@pytest.mark.parametrize(("action_dim", "wanted"), [(1, [1.0]), (3, [1.0, 0.0, -0.5]), (5, [1.0, 0.0, -0.5, 0.0, 0.0])])
def test_axes_steer_the_actions_in_order_as_far_as_both_reach(action_dim, wanted):
    p = pad(action_dim=action_dim)
    p.read([1.0, 1.0], [1, 0], now_s=0.0)
    np.testing.assert_allclose(p.action(0.0), wanted)


def test_an_axis_that_steers_nothing_need_not_exist():
    p = pad(axes=[0, 9, 9], action_dim=1)
    p.read([1.0], [1, 0], now_s=0.0)
    assert p.out_of_range == ""
