"""What the operator can ask for: names, keys, services, and when each makes sense. Imports neither Qt nor ROS."""

import re
from dataclasses import dataclass

from rlt_ros.core.episode import EpisodeError, EpisodeMachine, Outcome, Phase


@dataclass(frozen=True)
class Action:
    """One button. `keys` are Qt key sequences; the first is shown on the button."""

    name: str
    label: str
    keys: tuple[str, ...]
    service: str
    node: str = "episode_node"


ACTIONS = {
    action.name: action
    for action in (
        Action("start", "Start", ("S",), "episode/start"),
        Action("hand_over", "Hand over", ("H",), "episode/hand_over"),
        # As on the gamepad.
        Action("success", "Success", ("A",), "episode/success"),
        Action("failure", "Failure", ("B",), "episode/failure"),
        Action("abort", "Abort", ("Backspace",), "episode/abort"),
        Action("undo", "Undo", ("Ctrl+Z",), "episode/undo"),
        Action("reset", "Reset", ("R",), "episode/reset"),
        Action("stop", "EMERGENCY STOP", ("Space", "Esc"), "safety/stop", "safety_node"),
        Action("release", "Release", ("Ctrl+R",), "safety/release", "safety_node"),
    )
}


def refusal(name: str, phase: Phase, outcome: Outcome = Outcome.NONE, committed: bool = True,
            label_any_time: bool = False) -> str:
    """Why EpisodeMachine would refuse `name` in this state, in the words of the buttons; "" when it would not."""
    machine = EpisodeMachine(timeout_ticks=1, approach_timeout_ticks=1, label_any_time=label_any_time)
    machine.phase, machine.outcome, machine.committed = phase, outcome, committed
    request = getattr(machine, name, None)
    if request is None:  # not a request of the machine
        return ""
    try:
        request(0)
    except EpisodeError as error:
        return _in_words(str(error))
    return ""


def in_short(reason: str) -> str:
    """What to do instead, short enough for a button."""
    what, _, instead = reason.rpartition("; ")
    if not instead.startswith(("press ", "end ")):  # nothing can be done: say what is the matter
        instead = what.rpartition(": ")[2]
    return re.sub(r" \(.*\)", "", instead)


def _in_words(text: str) -> str:
    """`text` with labels in place of services."""
    text = re.sub(r"\bcall (?=episode/)", "press ", text)
    text = re.sub(r"episode/(\w+)", lambda m: ACTIONS[m[1]].label if m[1] in ACTIONS else m[0], text)
    text = re.sub(r", and for \d+ ticks at most", "", text)  # of the machine that was asked here, not of the node's
    return text.replace("Success, failure or abort", "Success, Failure or Abort")
