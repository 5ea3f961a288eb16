"""What a robot says of itself."""

import numpy as np
import pytest
from sensor_msgs.msg import JointState

from rlt_ros.ros.conversions import packed
from rlt_ros.ros.robot import JointBook


def said(names, positions) -> JointState:
    return JointState(name=list(names), position=packed(np.array(positions, float), "d"))


def test_joints_are_read_by_name_in_any_order_and_out_of_several_messages():
    book = JointBook(["a", "b", "c"])
    book.add(said(["gripper", "c", "a"], [9.0, 3.0, 1.0]), 1.0)
    assert book.values(["a", "b", "c"], 0.0) is None
    assert book.values(["c", "a"], 0.0).tolist() == [3.0, 1.0]
    book.add(said(["b"], [2.0]), 1.0)
    assert book.values(["a", "b", "c"], 0.0).tolist() == [1.0, 2.0, 3.0]
    assert book.values(["a", "b", "c"], np.inf) is None  # too old


def test_joints_that_are_wanted_later_are_noted_too():
    book = JointBook(["a"])
    book.want(["b", "a"])
    assert book.names == ("a", "b")
    book.add(said(["a", "b"], [1.0, 2.0]), 1.0)
    assert book.values(["b"], 0.0).tolist() == [2.0]


@pytest.mark.parametrize("names, positions, what", [
    (["a", "b"], [0.0], "1 positions for 2 names"),
    (["a", "b"], [0.0, np.nan], "not finite: {'a': 0.0, 'b': nan}"),
    (["a", "b"], [-np.inf, 0.0], "not finite"),
    (["a", "b"], [0.0, 1e308], "beyond"),
])
def test_joint_states_that_cannot_be_used_change_nothing(names, positions, what):
    book = JointBook(["a", "b"])
    book.add(said(["a", "b"], [1.0, 2.0]), 1.0)
    with pytest.raises(ValueError, match=what):
        book.add(said(names, positions), 1.0)
    assert book.values(["a", "b"], 0.0).tolist() == [1.0, 2.0]


def test_what_is_not_wanted_may_be_anything():
    book = JointBook(["a"])
    book.add(said(["wheel", "a"], [np.nan, 1.0]), 1.0)
    assert book.values(["a"], 0.0).tolist() == [1.0]


def test_joints_that_do_not_come_are_named_but_not_before_they_had_time():
    book = JointBook(["a", "b"])
    assert book.lacking(np.inf) == []  # nobody speaks: that is not a matter of names
    book.add(said(["shoulder", "a"], [0.0, 1.0]), 1.0)
    assert book.lacking(0.9) == []  # its messages are younger than that
    book.add(said(["a"], [1.0]), 2.0)
    assert book.lacking(1.5) == ["b"]
    assert book.lacking(np.inf) == ["a", "b"]
