"""RltNode over real DDS, in process."""

import threading
from dataclasses import dataclass

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.msg import ActionChunk
from rlt_ros.ros import conversions, qos
from rlt_ros.ros.node import RltNode
from rlt_ros.ros.parameters import SharedParameters, parameter


class EchoNode(RltNode):
    """Sends back the chunks that it gets; its gain may change while it runs."""

    @dataclass(frozen=True, kw_only=True)
    class Parameters(SharedParameters):
        action_dim: int = parameter(description="numbers in one action", low=1)
        gain: float = parameter(1.0, "factor on the actions", low=0.0, high=2.0, live=True)

    def on_configure_(self) -> None:
        self.ticks: list[int] = []
        self.out = self.publish(ActionChunk, "out", qos.COMMAND)
        self.subscribe(ActionChunk, "in", self.on_chunk, qos.COMMAND)
        self.trigger("hello", lambda: "hello back")
        self.trigger("refuse", self.refuse)
        self.every_tick(self.ticks.append)

    def on_chunk(self, msg: ActionChunk) -> None:
        chunk = conversions.chunk_from_msg(msg, self.params.action_dim)
        self.out.publish(conversions.chunk_to_msg(chunk, self.control))

    def refuse(self) -> str:
        raise RuntimeError("not now; call hello first")

    def on_diagnostics_(self) -> dict:
        return {"gain": self.params.gain}


def made(name: str = "echo_node", **values: object) -> EchoNode:
    """An EchoNode with parameters as a file would give them."""
    return EchoNode(name, parameter_overrides=[Parameter(key, value=value) for key, value in values.items()])


def started(graph, **values: object) -> EchoNode:
    node = graph.add(made(action_dim=4, **values))
    node.trigger_configure()
    node.trigger_activate()
    assert node.configure_error == ""
    return node


@pytest.fixture
def peer(graph) -> Node:
    return graph.add(Node("peer"))


def chunk_msg(node: EchoNode) -> ActionChunk:
    return conversions.chunk_to_msg(Chunk(7, [[0.1, 0.2, 0.3, 0.4]], 2, Source.ACTOR), node.control)


def call(graph, peer: Node, name: str) -> Trigger.Response:
    client = peer.create_client(Trigger, name)
    graph.spin_until(client.service_is_ready, f"service {name}")
    future = client.call_async(Trigger.Request())
    graph.spin_until(future.done, f"an answer of {name}")
    return future.result()


def connected(graph, peer: Node, topic: str):
    publisher = peer.create_publisher(ActionChunk, topic, qos.COMMAND)
    graph.spin_until(lambda: publisher.get_subscription_count() == 1, f"a subscriber of {topic}")
    return publisher


def test_active_node_answers_messages(graph, peer) -> None:
    node = started(graph)
    got: list[ActionChunk] = []
    peer.create_subscription(ActionChunk, "out", got.append, qos.COMMAND)
    publisher = connected(graph, peer, "in")
    graph.spin_until(lambda: node.out.get_subscription_count() == 1, "the peer's subscription")
    publisher.publish(chunk_msg(node))
    graph.spin_until(lambda: got, "the echo")
    assert got[0].tick == 7 and got[0].source == ActionChunk.SOURCE_ACTOR


def test_malformed_message_is_dropped_and_counted(graph, peer) -> None:
    node = started(graph)
    publisher = connected(graph, peer, "in")
    bad = chunk_msg(node)
    bad.steps = 3
    publisher.publish(bad)
    graph.spin_until(lambda: node.rejected["in"] == 1, "the rejection")
    assert node.failure is None and node.active


def test_diagnostics_name_the_topics_that_nobody_sends(graph, peer) -> None:
    node = started(graph)
    said: list = []
    peer.create_subscription(DiagnosticArray, "/diagnostics", said.append, qos.EVENT)
    silent = lambda: {v.key: v.value for v in said[-1].status[0].values}["nobody_sends"] if said else None  # noqa: E731
    graph.spin_until(lambda: silent() == "/in", "the complaint")
    connected(graph, peer, "in")
    graph.spin_until(lambda: silent() == "", "its end")


def test_exception_in_callback_is_the_nodes_failure(graph, peer) -> None:
    node = started(graph)
    node.out = None
    connected(graph, peer, "in").publish(chunk_msg(node))
    graph.spin_until(lambda: node.failure is not None, "the failure")
    assert isinstance(node.failure, AttributeError)


def test_exception_in_tick_is_the_nodes_failure(graph) -> None:
    node = graph.add(made(action_dim=4))
    node.trigger_configure()
    node.every_tick(lambda tick: 1 / 0)
    node.trigger_activate()
    graph.spin_until(lambda: node.failure is not None, "the failure")
    assert isinstance(node.failure, ZeroDivisionError)


def test_ticks_are_consecutive_and_follow_the_ros_clock(graph) -> None:
    node = started(graph, rate_hz=100.0)
    graph.spin_until(lambda: len(node.ticks) >= 20, "20 ticks")
    assert abs(node.control.tick(node.now_ns()) - node.ticks[-1]) <= 2
    node.trigger_deactivate()
    count = len(node.ticks)
    assert sorted(set(node.ticks)) == node.ticks
    graph.spin_once(0.05)
    assert len(node.ticks) == count


def test_trigger_answers_and_refuses_with_the_reason(graph, peer) -> None:
    started(graph)
    assert call(graph, peer, "hello").message == "hello back"
    refused = call(graph, peer, "refuse")
    assert not refused.success and refused.message == "not now; call hello first"


def test_inactive_node_refuses_a_trigger(graph, peer) -> None:
    node = started(graph)
    node.trigger_deactivate()
    answer = call(graph, peer, "hello")
    assert not answer.success and "echo_node is not active" in answer.message


def test_node_can_be_cleaned_up_and_configured_again(graph) -> None:
    node = started(graph)
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert "/in" not in dict(node.get_topic_names_and_types()) or node.count_subscribers("/in") == 0
    node.trigger_configure()
    node.trigger_activate()
    assert node.active and node.count_subscribers("/in") == 1


def test_missing_required_parameter_fails_configure_by_name(graph) -> None:
    node = graph.add(made())
    node.trigger_configure()
    assert "parameter 'action_dim' is required" in node.configure_error


def test_unknown_parameter_fails_configure_by_name(graph) -> None:
    node = graph.add(made(action_dim=4, gian=1.0))
    node.trigger_configure()
    assert "unknown parameter 'gian'" in node.configure_error and "gain" in node.configure_error


def test_wrong_type_and_range_fail_configure_by_name(graph) -> None:
    node = graph.add(made(action_dim="four", gain=3.0))
    node.trigger_configure()
    assert "parameter 'action_dim' is 'four', expected int" in node.configure_error
    assert "parameter 'gain' is 3.0, expected float >= 0.0, <= 2.0" in node.configure_error


def test_configure_works_after_the_parameter_was_corrected(graph) -> None:
    node = graph.add(made())
    node.trigger_configure()
    assert node.set_parameters([Parameter("action_dim", value=4)])[0].successful
    node.trigger_configure()
    assert node.configure_error == "" and node.params.action_dim == 4


def test_live_parameter_changes_and_others_refuse(graph) -> None:
    node = started(graph)
    assert node.set_parameters([Parameter("gain", value=2)])[0].successful
    assert node.params.gain == 2.0
    out_of_range = node.set_parameters([Parameter("gain", value=9.0)])[0]
    assert not out_of_range.successful and "gain" in out_of_range.reason and node.params.gain == 2.0
    fixed = node.set_parameters([Parameter("action_dim", value=5)])[0]
    assert not fixed.successful and "cannot change" in fixed.reason


def test_diagnostics_wait_for_a_tick_that_is_due_soon_but_not_twice(graph, monkeypatch) -> None:
    node = started(graph)
    said: list[float] = []
    monkeypatch.setattr(node, "_publish_diagnostics", lambda: said.append(node.left_s()))
    node.left_s = lambda: 0.016
    node.give_news()
    before = len(said)
    assert before
    node.left_s = lambda: 0.004
    node.run_due()
    node.give_news()
    assert len(said) == before
    node.left_s = lambda: 0.016
    node.run_due()
    assert said[before:] == [0.016]
    node.left_s = lambda: 0.004
    node.give_news()
    node.give_news()
    assert len(said) == before + 2


def test_ticks_apart_do_not_wait_for_callbacks(graph) -> None:
    node, ticked = graph.add(made(action_dim=4)), threading.Event()
    node.trigger_configure()
    node.every_tick(lambda tick: ticked.set(), apart=True)
    node.trigger_activate()
    with node._lock:  # as a callback holds it
        assert ticked.wait(10.0)


def test_diagnostics_carry_the_hooks_values_and_the_loops(graph, peer) -> None:
    node = started(graph)
    got: list[DiagnosticStatus] = []
    peer.create_subscription(DiagnosticArray, "/diagnostics", lambda msg: got.extend(msg.status), qos.EVENT)
    graph.spin_until(lambda: any(s.message == "active" for s in got), "diagnostics of the active node")
    graph.spin_until(lambda: any(v.key == "period_error_p99_ms" for v in got[-1].values), "the loop's statistics")
    assert {v.key: v.value for v in got[-1].values}["gain"] == "1.0"
    node.problem = "no image since 2 s"
    graph.spin_until(lambda: got[-1].level == DiagnosticStatus.WARN, "a warning")
    assert got[-1].message == "no image since 2 s"
