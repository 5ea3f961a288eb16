"""What each button may do when, without Qt and ROS."""

import pytest

from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.panel.actions import ACTIONS, in_short, refusal


@pytest.mark.parametrize(
    ("phase", "allowed"),
    [
        (Phase.IDLE, {"start", "reset"}),
        (Phase.APPROACH, {"hand_over", "abort", "reset"}),
        (Phase.CRITICAL, {"success", "failure", "abort", "reset"}),
        (Phase.ENDED, {"reset"}),
    ],
)
def test_buttons_follow_the_state_machine(phase: Phase, allowed: set) -> None:
    names = {"start", "hand_over", "success", "failure", "abort", "reset"}
    outcome = Outcome.SUCCESS if phase is Phase.ENDED else Outcome.NONE
    assert {name for name in names if not refusal(name, phase, outcome)} == allowed


def test_a_label_can_be_taken_back_and_given_again_until_it_is_committed() -> None:
    assert refusal("undo", Phase.ENDED, Outcome.SUCCESS, committed=False) == ""
    assert in_short(refusal("undo", Phase.ENDED, Outcome.SUCCESS, committed=True)) == "it is learned from already"
    assert in_short(refusal("undo", Phase.IDLE)) == "there is no label"
    assert not any(
        refusal(name, Phase.ENDED, Outcome.NONE, committed=False) for name in ("success", "failure", "abort")
    )


def test_where_a_person_demonstrates_the_approach_can_be_labelled() -> None:
    names = ("hand_over", "success", "failure", "abort", "reset")
    assert not any(refusal(name, Phase.APPROACH, label_any_time=True) for name in names)
    assert in_short(refusal("success", Phase.IDLE, label_any_time=True)) == "press Start first"


def test_a_refusal_names_buttons_instead_of_services() -> None:
    for name in ("start", "hand_over", "success", "failure", "abort"):
        for phase in Phase:
            assert "episode/" not in refusal(name, phase, Outcome.SUCCESS)
    assert in_short(refusal("success", Phase.IDLE)) == "press Start first"
    assert in_short(refusal("success", Phase.APPROACH)) == "press Hand over or Abort first"
    assert in_short(refusal("start", Phase.CRITICAL)) == "end the episode first"
    assert "Success, Failure or Abort" in refusal("start", Phase.CRITICAL)


def test_the_emergency_stop_is_refused_in_no_phase() -> None:
    assert not any(refusal(name, phase) for name in ("stop", "release") for phase in Phase)


def test_no_two_buttons_share_a_key() -> None:
    keys = [key for action in ACTIONS.values() for key in action.keys]
    assert len(keys) == len(set(keys)) and all(action.keys for action in ACTIONS.values())
