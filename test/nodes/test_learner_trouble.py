"""What a learner does with data that no replay should send, too many of them, and a checkpoint that it cannot read."""

import os
import re
import subprocess
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray

from rlt_ros.msg import Transition as TransitionMsg
from rlt_ros.nodes.learner_node import LearnerNode
from rlt_ros.ros import qos
from rlt_ros.ros.conversions import transition_to_msg


@pytest.fixture
def message(peer, transition):
    """message(sequence): a transition as the replay sends it."""
    return lambda sequence: transition_to_msg(transition(sequence), "test", peer.clock)


@pytest.fixture
def never_warm(quick) -> dict:
    return quick | {"td3__warm_transitions": 10_000, "td3__max_backlog": 50}


def not_finite(msg: TransitionMsg) -> None:
    msg.next_token[2] = float("nan")


def endless(msg: TransitionMsg) -> None:
    msg.action[7] = float("inf")


def fewer_actions(msg: TransitionMsg) -> None:
    msg.action = msg.action[:-1]


def more_rewards(msg: TransitionMsg) -> None:
    msg.rewards.append(0.0)


def other_proprio(msg: TransitionMsg) -> None:
    msg.next_proprio.append(0.0)


def too_many_steps(msg: TransitionMsg) -> None:
    msg.steps = 11


@pytest.mark.parametrize("spoil", [not_finite, endless, fewer_actions, more_rewards, other_proprio, too_many_steps])
def test_transition_that_cannot_be_right_is_dropped_and_training_goes_on(
    graph, start, peer, spoil, message, never_warm
):
    node = start(LearnerNode, **never_warm)
    say = peer.say(TransitionMsg, "replay", qos.REPLAY)
    bad = message(3)
    spoil(bad)
    for msg in (*(message(i) for i in range(3)), bad, *(message(i) for i in range(4, 20))):
        say(msg)
    graph.spin_until(lambda: node.learner is not None and len(node.learner.buffer) == 19, "all others")
    assert node.rejected["replay"] == 1 and node.learner.next_sequence == 20  # it is not asked for again
    graph.spin_until(lambda: node.learner.updates >= 19, "the updates of the others")
    assert all(np.isfinite(value) for value in node.learner.metrics.values()) and node.failure is None


def test_flood_of_ten_times_the_practice_is_taken_in_whole_and_the_debt_is_bounded(
    graph, start, peer, message, never_warm
):
    """250 a second for 4 s, to a learner that cannot train on so many: nothing is lost, and it stays reachable."""
    node = start(LearnerNode, **never_warm | {"td3__utd": 20.0})
    say = peer.say(TransitionMsg, "replay", qos.REPLAY)
    diagnostics = peer.hear(DiagnosticArray, "/diagnostics")
    graph.spin_until(lambda: bool(diagnostics), "its diagnostics")
    sent, debts, heard, began_s = 0, [], len(diagnostics), time.monotonic()

    def flooded() -> bool:
        nonlocal sent
        while sent < min(1000, 250.0 * (time.monotonic() - began_s)):
            say(message(sent))
            sent += 1
        if node.learner is not None:
            debts.append(node.learner.due())
        return sent == 1000 and node.learner.next_sequence == 1000

    graph.spin_until(flooded, "a thousand transitions", timeout_s=40.0)
    assert len(node.learner.buffer) == node.learner.transitions == 1000
    assert max(debts) <= 50 and node.learner.updates > 0 and node.learner.forgiven > 0
    graph.spin_until(lambda: len(diagnostics) > heard, "news of it")
    graph.spin_until(lambda: node.learner.due() == 0, "the rest of the debt")


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "not a learner checkpoint"),
        (b"rlt-learner-1\n" + bytes(64), r"damaged \(checksum differs\); remove it or restore a copy"),
    ],
    ids=["empty", "wrong checksum"],
)
def test_process_with_a_damaged_checkpoint_ends_with_1_and_says_which_and_what_to_do(
    graph, python, tmp_path, content, cause
):
    path = tmp_path / "checkpoints" / "learner.ckpt"
    path.parent.mkdir()
    path.write_bytes(content)
    code = "import sys; from rlt_ros.ros.run import main; sys.exit(main('learner_node'))"
    done = subprocess.run(
        [python, "-c", code, "--ros-args", "-p", f"session:={tmp_path}"],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("learner_node: configure failed: CheckpointError: checkpoint ") and str(path) in last
    assert re.search(cause, last)
