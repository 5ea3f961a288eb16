"""Every node says how it is, once a second, whatever state it is in."""

import importlib
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node

from rlt_ros.ros import processes, qos
from rlt_ros.ros.node import RltNode

NAMES = [process.name for process in processes.TABLE if process.package == processes.PACKAGE]
HEARD = 4  # messages of each node


def class_of(name: str) -> type:
    """The one node class of a node's file."""
    module = importlib.import_module(f"rlt_ros.nodes.{name}")
    (found,) = [
        kind for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, RltNode) and kind.__module__ == module.__name__
    ]  # fmt: skip
    return found


def test_every_node_of_the_table_publishes_its_diagnostics_at_1_hz(graph) -> None:
    heard: dict[str, list[tuple[float, DiagnosticArray]]] = {name: [] for name in set(NAMES)}
    ear = graph.add(Node("ear"))

    def hear(msg: DiagnosticArray) -> None:
        (status,) = msg.status
        heard[status.name].append((time.monotonic(), msg))

    classes = {name: class_of(name) for name in heard}  # imported before anything is timed
    ear.create_subscription(DiagnosticArray, "/diagnostics", hear, qos.REPLAY)
    for name, kind in classes.items():
        graph.add(kind(name))
    graph.spin_until(lambda: all(heard.values()), f"diagnostics of each of {', '.join(heard)}", 60.0)
    for messages in heard.values():
        messages.clear()  # what piled up while the others were made
    enough = lambda: all(len(messages) >= HEARD for messages in heard.values())  # noqa: E731
    graph.spin_until(enough, f"{HEARD} more of each", 60.0)
    for name, messages in heard.items():
        times = [at for at, _ in messages]
        between_s = (times[-1] - times[0]) / (len(times) - 1)
        assert between_s == pytest.approx(1.0, abs=0.4), name
        status = messages[-1][1].status[0]
        assert status.message == "unconfigured" and status.hardware_id == "rlt_ros", name
        assert messages[-1][1].header.stamp.sec > 0


def test_a_node_that_cannot_configure_says_why_once_a_second(make, peer, graph) -> None:
    heard = peer.hear(DiagnosticArray, "/diagnostics")
    node = make(class_of("replay_node"), task="nothing")
    assert node.configure_error
    graph.spin_until(lambda: len(heard) >= 2, "its diagnostics")
    status = heard[-1].status[0]
    assert status.level == b"\x02" and status.message == node.configure_error and "nothing" in status.message


def test_a_node_says_at_once_that_it_is_active_and_that_it_has_what_it_needs(make, peer, graph) -> None:
    heard = peer.hear(DiagnosticArray, "/diagnostics")
    node = make(class_of("episode_node"))
    graph.spin_until(lambda: bool(heard), "its diagnostics")
    for timer in node.timers:
        timer.cancel()  # those of once a second
    heard.clear()
    node.problem = "no robot"
    node.trigger_activate()
    said = lambda: [msg.status[0].message for msg in heard]  # noqa: E731
    graph.spin_until(lambda: "no robot" in said(), "what it lacks")
    node.problem = ""
    graph.spin_until(lambda: "active" in said(), "that all is well")
    assert all(timer.is_canceled() for timer in node.timers)  # from then on it is said once a second again
