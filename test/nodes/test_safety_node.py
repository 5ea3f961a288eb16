"""The last word before the robot."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from rlt_ros.core.chunks import Source
from rlt_ros.core.episode import Phase
from rlt_ros.msg import ActionChunk, EpisodeState, Proprio, SafetyState
from rlt_ros.nodes.safety_node import SafetyNode
from rlt_ros.ros import qos, rivals
from rlt_ros.ros.conversions import header
from rlt_ros.sim.task import task_folder

LIMITS = {"limits__action_limit": 1.0, "limits__max_step_change": 2.0, "limits__command_timeout_s": 0.04}
UP = [0.0, 0.0, 0.5, 0.0]
FORCE = 8  # place of Fx in the Ethernet task's proprioception
URDF = Path(__file__).resolve().parents[2] / "rlt_ros" / "sim" / "assets" / "ethernet.urdf"
PROPRIO = np.array([0.45, 0.0, 0.08, 0.0] + 10 * [0.0], np.float32)  # inside the workspace, no force
JOINTS = [f"joint{i}" for i in range(1, 7)]
READY = [0.0, 0.2, -0.3, 0.1, 0.05, 0.2]
WATCHED = {"arm__joints": JOINTS, "arm__tip": "tcp", "limits__joint_margin": 0.1, "limits__min_singular_value": 0.05}


@pytest.fixture
def gate(gates):
    """A gate with the limits of the Ethernet task."""
    return gates()


@pytest.fixture
def gates(start, peer):
    """gates(**parameters): an active safety node; `drive()` sends proprioception and a candidate of the tick."""

    def made(**parameters):  # noqa: ANN202
        return driven_by(peer, start(SafetyNode, **parameters))

    return made


def driven_by(peer, node):
    """`node`, with what it executed in `heard`, its reasons in `reasons`, and `drive`."""
    node.heard = peer.hear(ActionChunk, "command/executed")
    node.driven = -1
    node.states = peer.hear(SafetyState, "safety/state", qos.STATE)
    node.diagnostics = peer.hear(DiagnosticArray, "/diagnostics")
    candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    proprio = peer.say(Proprio, "proprio", qos.SENSOR)

    def drive(action: list[float] = UP, steps: int = 3, source: Source = Source.VLA, force: float = 0.0) -> None:
        tick, values = peer.tick(), PROPRIO.copy()
        if tick == node.driven:  # one a tick, as the actor
            return
        node.driven = tick
        values[FORCE] = force
        proprio(peer.proprio(tick, values))
        candidate(peer.chunk(tick, action, steps, source))

    node.drive = drive
    return node


def moving(heard: list, source: Source = Source.VLA) -> bool:
    return bool(heard) and heard[-1].source == source


def told(node) -> str:
    """The newest reason that the operator was told."""
    return node.states[-1].reason if node.states else ""


def until_held(graph, node, reason: str, **drive) -> None:
    """Drive until the node says that it holds for `reason`, to the operator too."""

    def held() -> bool:
        node.drive(**drive)
        return holding(node.heard) and told(node) == reason

    graph.spin_until(held, f"the hold for {reason}")
    assert node.states[-1].holding and reason in node.states[-1].causes


def until_moving(graph, node, **drive) -> None:
    source = drive.get("source", Source.VLA)
    graph.spin_until(lambda: (node.drive(**drive), moving(node.heard, source))[1], "motion")


def until_told(graph, node, *words: str, **drive) -> None:
    """Drive until the node's diagnostics, which the panel shows, say all `words`."""

    def said() -> bool:
        node.drive(**drive)
        newest = [s for msg in node.diagnostics[-20:] for s in msg.status if s.name == "safety_node"][-1:]
        return bool(newest) and all(word in newest[0].message for word in words)

    graph.spin_until(said, f"diagnostics that say {words}")


def holding(heard: list) -> bool:
    return bool(heard) and heard[-1].source == Source.HOLD and not np.any(heard[-1].actions)


def driven(gate) -> bool:
    gate.drive()
    return moving(gate.heard)


def test_watchdog_wakes_up_for_no_tick_that_was_commanded(graph, gate):
    until_moving(graph, gate)
    graph.spin_until(lambda: (gate.drive(), gate.sent_tick == gate.driven)[1], "a candidate's command")
    due_ns = gate.control.stamp_ns(gate.driven + 1) + gate.params.watchdog_phase * gate.control.period_ns
    assert gate.watchdog.next_ns == pytest.approx(due_ns, abs=1)


def test_robot_is_held_until_somebody_commands(graph, gate):
    graph.spin_until(lambda: len(gate.heard) > 2, "the watchdog")
    assert all(msg.source == Source.HOLD for msg in gate.heard)


def test_candidate_is_let_through_and_its_silence_holds_the_robot(graph, gate):
    graph.spin_until(lambda: driven(gate), "motion")
    assert list(gate.heard[-1].actions[:4]) == UP
    graph.spin_until(lambda: holding(gate.heard), "the hold after the last candidate", timeout_s=2.0)


def test_each_tick_is_executed_once(graph, gate):
    graph.spin_until(lambda: driven(gate) and len(gate.heard) > 20, "commands")
    ticks = [msg.tick for msg in gate.heard]
    assert ticks == sorted(set(ticks))


def test_task_file_alone_is_enough(graph, gates):
    """The limits of the simulated arm stand in it; a robot's file replaces them one by one."""
    node = gates(task="ethernet")
    until_moving(graph, node)
    assert node.limits.max_force == 40.0 and node.gate.command_timeout_s == 0.04


def test_watchdog_follows_from_the_rate_and_a_slower_one_must_be_asked_for(make):
    node = make(SafetyNode, rate_hz=250.0)
    assert node.configure_error == "" and node.gate.command_timeout_s == pytest.approx(0.008)
    error = make(SafetyNode, rate_hz=250.0, limits__command_timeout_s=0.04).configure_error
    assert "command_timeout_s: got 0.04 s, expected at most 2 control periods of 0.004 s" in error
    slow = {"limits__command_timeout_s": 0.04, "limits__slow_watchdog": True}
    assert make(SafetyNode, rate_hz=250.0, **slow).configure_error == ""


def test_actor_is_compared_with_the_reference_that_the_vla_itself_sends(graph, gates, peer):
    node = gates(limits__max_deviation=0.25, latency_ticks=0)
    acting = {"action": [0.0, 0.0, 0.75, 0.0], "source": Source.ACTOR}
    until_held(graph, node, "no_reference", **acting)
    until_told(graph, node, "is vla_node alive?", **acting)
    reference = peer.say(ActionChunk, "vla/reference", qos.EVENT)

    def followed() -> bool:
        if peer.tick() % 5 == 0:
            reference(peer.chunk(peer.tick(), [0.0, 0.0, 0.25, 0.0], 50))
        node.drive(**acting)
        return moving(node.heard, Source.ACTOR)

    graph.spin_until(followed, "motion of the actor")
    assert list(node.heard[-1].actions[:4]) == [0.0, 0.0, 0.5, 0.0] and node.gate.counts["deviation"] > 0
    # The reference grows old: 25 ticks and the 10 of a chunk.
    until_held(graph, node, "no_reference", **acting)


def test_reference_that_cannot_be_used_is_dropped(graph, gates, peer):
    node = gates()
    reference = peer.say(ActionChunk, "vla/reference", qos.EVENT)
    bad = peer.chunk(peer.tick(), [0.0, 0.0], 50)
    graph.spin_until(lambda: (reference(bad), node.rejected["vla/reference"] > 0)[1], "the drop")


def test_person_steers_only_while_the_gamepad_is_heard(graph, gates, peer):
    node = gates()
    steering = {"source": Source.HUMAN}
    until_held(graph, node, "teleop_lost", **steering)
    until_told(graph, node, "is teleop_node alive?", **steering)
    human = peer.say(ActionChunk, "human/command", qos.COMMAND)

    def steered() -> bool:
        human(peer.chunk(peer.tick() + 1, UP, 1, Source.HUMAN))
        node.drive(**steering)
        return moving(node.heard, Source.HUMAN)

    graph.spin_until(steered, "motion by the human")
    until_held(graph, node, "teleop_lost", **steering)


def test_running_episode_that_falls_silent_holds_until_it_is_heard_again(graph, gates, peer):
    node = gates(episode_timeout_s=0.3)
    until_moving(graph, node)  # without any episode: nobody is lost
    episode = peer.say(EpisodeState, "episode/state", qos.STATE)
    episode(peer.episode(Phase.CRITICAL, start_tick=1, critical_tick=2))
    until_held(graph, node, "episode_lost")
    until_told(graph, node, "is episode_node alive?")

    def heard() -> bool:
        episode(peer.episode(Phase.CRITICAL, start_tick=1, critical_tick=2))
        node.drive()
        return moving(node.heard)

    graph.spin_until(heard, "motion")


def test_second_publisher_of_the_same_name_holds_the_robot_once_it_speaks(graph, gate, peer):
    """As an actor that runs twice; one that died and is listed still says nothing."""
    until_moving(graph, gate)
    say = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    first = len(gate.heard)
    graph.spin_until(lambda: driven(gate) and len(gate.heard) > first + 25, "25 ticks beside a silent one")
    assert not gate.gate.rivals

    def spoken() -> bool:
        say(peer.chunk(peer.tick(), UP, 3))
        gate.drive()
        return holding(gate.heard) and told(gate) == "two_publishers"

    graph.spin_until(spoken, "the hold")


# What one node alone may send: topic -> (type, QoS, the message of a tick)
ALONE = {
    "proprio": (Proprio, qos.SENSOR, lambda peer, tick: peer.proprio(tick)),
    "vla/reference": (ActionChunk, qos.EVENT, lambda peer, tick: peer.chunk(tick, UP, 50)),
    "human/command": (ActionChunk, qos.COMMAND, lambda peer, tick: peer.chunk(tick + 1, UP, 1, Source.HUMAN)),
    "episode/state": (EpisodeState, qos.STATE, lambda peer, tick: peer.episode(Phase.IDLE)),
    "safety/state": (SafetyState, qos.STATE, None),
}


@pytest.mark.parametrize("topic", ALONE)
def test_second_node_on_a_topic_holds_the_robot_until_it_is_gone(graph, gate, peer, topic):
    msg_type, profile, _ = ALONE[topic]
    if topic not in ("proprio", "safety/state"):  # those have a sender already
        peer.say(msg_type, topic, profile)
    until_moving(graph, gate)
    second = graph.add(Node("second"))
    publisher = second.create_publisher(msg_type, topic, profile)
    until_held(graph, gate, "two_publishers")
    until_told(graph, gate, "stop one of them", f"/{topic}: 2 publishers", "/second")
    second.destroy_publisher(publisher)
    until_moving(graph, gate)


@pytest.mark.parametrize("topic", [topic for topic, (*_, message) in ALONE.items() if message])
def test_second_sender_of_the_same_name_holds_the_robot_once_both_speak(graph, gate, peer, topic):
    """One that died is listed for a while: whoever is started in its place must not wait for that."""
    msg_type, profile, message = ALONE[topic]
    first = (lambda msg: None) if topic == "proprio" else peer.say(msg_type, topic, profile)  # driven sends that
    until_moving(graph, gate)
    second = peer.say(msg_type, topic, profile)
    sent = [0, 0]  # newest tick of each

    def drive(*senders: Callable) -> None:
        """The second one a tick after the first, of the same frame."""
        gate.drive()
        for late, send in enumerate(senders):
            tick = peer.tick() - late
            if tick % 4 == 0 and tick > sent[late]:
                sent[late] = tick
                say(send, tick)

    def say(send: Callable, tick: int) -> None:
        send(peer.episode(Phase.APPROACH, 1) if topic == "episode/state" and send is second else message(peer, tick))

    begin = len(gate.heard)
    graph.spin_until(lambda: (drive(first), len(gate.heard) > begin + 110)[1], "two seconds beside a silent one")
    assert not gate.gate.rivals and moving(gate.heard)
    graph.spin_until(lambda: (drive(first, second), told(gate) == "two_publishers")[1], "the hold")


def test_sender_of_the_same_name_that_stays_is_no_leftover(graph, gate, peer, monkeypatch):
    monkeypatch.setattr(rivals, "LEFT_S", 1.5)
    peer.say(ActionChunk, "human/command", qos.COMMAND)
    peer.say(ActionChunk, "human/command", qos.COMMAND)
    until_moving(graph, gate)
    until_held(graph, gate, "two_publishers")


def test_second_gate_is_noticed_by_both(graph, gate, start, peer):
    until_moving(graph, gate)
    second = start(SafetyNode)
    graph.spin_until(lambda: (gate.drive(), gate.gate.reason == second.gate.reason == "two_publishers")[1], "the hold")


def test_force_over_the_limit_makes_the_arm_back_off(graph, gates):
    node = gates(limits__force_reaction="retreat", limits__retreat_velocity=0.03, limits__retreat_distance=0.01,
                 limits__retreat_direction=[0.0, 0.0, 2.0])  # fmt: skip
    pushing = {"action": [0.0, 0.0, -0.5, 0.0], "force": 50.0}
    rises = lambda: [msg for msg in node.heard if msg.source == Source.VLA and msg.actions[2] > 0.0]  # noqa: E731
    graph.spin_until(lambda: (node.drive(**pushing), bool(rises()))[1], "the retreat")
    assert rises()[0].actions[2] == pytest.approx(0.03 * 0.02 / 0.0015)
    assert not any(np.any(msg.actions) for msg in node.heard if msg not in rises())
    pushing["force"] = 10.0
    graph.spin_until(lambda: (node.drive(**pushing), node.heard[-1].actions[2] == -0.5)[1], "the end of it")
    graph.spin_until(lambda: bool(node.states) and "retreat" in node.states[-1].causes, "word of it to the operator")


def joint_states(peer, names: list[str] = JOINTS):
    """say(positions): joint states, when somebody listens."""
    publish = peer.say(JointState, "driver/joint_states", qos.SENSOR)
    return lambda positions: publish(JointState(name=names, position=[float(v) for v in positions]))


def test_watched_joints_hold_the_robot_while_they_are_not_known(graph, gates, peer):
    node = gates(arm__urdf=str(URDF), **WATCHED)
    until_held(graph, node, "no_joints")
    say = joint_states(peer, JOINTS[::-1] + ["gripper"])
    moved = lambda: (say([*READY[::-1], 0.02]), node.drive(), moving(node.heard))[2]  # noqa: E731
    graph.spin_until(moved, "motion")
    assert node.book.values(JOINTS, 0.0).tolist() == pytest.approx(READY)
    until_held(graph, node, "no_joints")  # they are silent
    until_told(graph, node, "driver/joint_states has no joint1, joint2, joint3, joint4, joint5, joint6")


def test_watched_joints_may_come_in_several_messages_and_each_must_come(graph, gates, peer):
    node = gates(arm__urdf=str(URDF), **WATCHED)
    say, say_others = joint_states(peer, JOINTS[:2]), joint_states(peer, ["gripper", *JOINTS[2:]])
    both = lambda: (say(READY[:2]), say_others([0.02, *READY[2:]]), node.drive(), moving(node.heard))[3]  # noqa: E731
    graph.spin_until(both, "motion")
    assert node.gate.counts["wrong_joints"] == 0
    held = lambda: (say(READY[:2]), node.drive(), told(node) == "no_joints")[2]  # noqa: E731
    graph.spin_until(held, "the hold without the others")
    graph.spin_until(lambda: (say(READY[:2]), node.gate.counts["wrong_joints"] > 0)[1], "the refusal")
    graph.spin_until(both, "motion again")


def test_motion_towards_a_joint_limit_is_refused_and_the_joint_named(graph, gates, peer):
    node = gates(arm__urdf=str(URDF), **WATCHED)
    say = joint_states(peer)
    near = [2.5, *READY[1:]]  # of joint1, which turns the arm about z; its limit is 2.6, the margin 0.1
    away = {"action": [0.0, 0.0, 0.0, -1.0]}
    onward = {"action": [0.0, 0.0, 0.0, 1.0]}
    x, y, _ = node.gate.joints._arm.pose(near)[0]
    for way, sign in ((away, 1.0), (onward, -1.0)):
        way["action"][:2] = [0.5 * sign * y / np.hypot(x, y), -0.5 * sign * x / np.hypot(x, y)]

    def refused() -> bool:
        say(near)
        node.drive(**onward)
        return holding(node.heard) and told(node) == "joint_limit" and "joint1" in node.gate.detail

    graph.spin_until(refused, "the refusal")
    graph.spin_until(lambda: (say(near), node.drive(**away), moving(node.heard))[2], "the way back")


def test_robot_description_may_come_by_its_topic(graph, gates, peer):
    node = gates(arm__urdf="robot_description", **WATCHED)
    say = joint_states(peer)
    describe = peer.say(String, "robot_description", qos.STATE)
    until_told(graph, node, "no robot description on robot_description yet")
    describe(String(data="<robot name='other'><link name='base_link'/></robot>"))
    until_told(graph, node, "no link 'tcp'")
    assert holding(node.heard)
    describe(String(data=URDF.read_text()))
    graph.spin_until(lambda: (say(READY), node.drive(), moving(node.heard))[2], "motion")
    # Another arm than the one that stands here is not taken on while it moves.
    guard = node.gate.joints
    other = String(data=URDF.read_text().replace('velocity="3.0"', 'velocity="9.0"'))
    graph.spin_until(lambda: (describe(other), node.rejected["robot_description"] > 1)[1], "the refusal")
    assert node.gate.joints is guard


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"limits__joint_margin": 0.1}, "'limits.joint_margin' is set, but 'arm.joints' is empty"),
        (WATCHED, "'joint_lower' is missing, and no URDF says it for joint1"),
        (WATCHED | {"arm__urdf": "/nowhere/arm.urdf"}, "No such file"),
        (WATCHED | {"arm__urdf": str(URDF), "arm__tip": "flange"}, "no link 'flange'"),
        (WATCHED | {"arm__urdf": str(URDF), "arm__joints": ["joint1", "elbow"]}, "no moving joint 'elbow'"),
        ({"arm__urdf": str(URDF), "arm__joints": JOINTS, "arm__tip": "tcp"}, "'joint_margin' is missing"),
        (WATCHED | {"arm__urdf": str(URDF), "limits__joint_velocity": [1.0]}, "expected one for each of joint1"),
    ],
)
def test_what_is_missing_to_watch_the_joints_fails_at_configure(make, parameters, said):
    assert said in make(SafetyNode, **parameters).configure_error


def test_causes_are_counted_in_the_diagnostics(graph, gate):
    def counted(cause: str) -> int:
        newest = [s for msg in gate.diagnostics[-20:] for s in msg.status if s.name == "safety_node"][-1:]
        return int({item.key: item.value for s in newest for item in s.values}.get(f"gate_{cause}", 0))

    graph.spin_until(lambda: (gate.drive(action=[0.0, 0.0, 3.0, 0.0]), counted("range"))[1], "the changed actions")
    graph.spin_until(lambda: counted("stale") > 0, "the ticks held after the last of them")


def test_twist_interface_sends_metres_per_second_and_ends_with_zero(graph, start, peer, stop):
    node = start(SafetyNode, interface="twist", **LIMITS)
    twists = peer.hear(TwistStamped, "driver/delta_twist_cmds")
    candidate = peer.say(ActionChunk, "command/candidate", qos.COMMAND)
    proprio = peer.say(Proprio, "proprio", qos.SENSOR)

    def rising() -> bool:
        proprio(peer.proprio(peer.tick()))
        candidate(peer.chunk(peer.tick(), UP, 3))
        return bool(twists) and twists[-1].twist.linear.z > 0.0

    graph.spin_until(rising, "a twist")
    assert twists[-1].twist.linear.z == pytest.approx(0.5 * 0.0015 / 0.02, rel=1e-5)
    count = len(twists)
    stop(node)
    graph.spin_until(lambda: len(twists) > count and twists[-1].twist.linear.z == 0.0, "the last, zero twist")


def test_twist_of_a_task_with_other_actions_fails_at_configure(make):
    error = make(SafetyNode, task="reacher", interface="twist", **LIMITS).configure_error
    assert "interface 'twist'" in error and "shoulder, elbow" in error


# --- what was before a pause, or before the clock was set back


class Shifted(SafetyNode):
    """A gate whose clock can be set, as NTP does it."""

    shift_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.shift_ns


def test_clock_that_is_set_back_holds_the_robot_and_it_goes_on_by_commands_of_the_new_time(graph, start, peer):
    node = driven_by(peer, start(type("SafetyNode", (Shifted,), {}), **LIMITS))
    until_moving(graph, node)
    before, back = node.sent_tick, 500  # ticks
    node.shift_ns = -back * peer.clock.period_ns
    held = lambda: [msg for msg in node.heard if msg.tick < before - back + 100]  # noqa: E731
    graph.spin_until(lambda: len(held()) > 5, "ticks of the new time, without any command of it")
    assert all(msg.source == Source.HOLD for msg in held())
    peer.tick = lambda: peer.clock.tick(time.time_ns()) - back
    until_moving(graph, node)
    assert node.heard[-1].tick < before


def test_watchdog_that_comes_late_after_a_hang_is_not_a_clock_that_was_set_back(graph, gate):
    until_moving(graph, gate)
    with gate._lock:
        sent, count = gate.sent_tick, len(gate.heard)
        gate.on_watchdog(sent - 20)
        assert gate.sent_tick == sent and gate.gate._chunk is not None
    graph.spin_until(lambda: (gate.drive(), len(gate.heard) > count + 5)[1], "commands")
    ticks = [msg.tick for msg in gate.heard]
    assert ticks == sorted(set(ticks))


def test_stop_is_latched_while_inactive_and_over_a_clean_up(graph, start, peer):
    node = driven_by(peer, start(SafetyNode, **LIMITS))
    node.trigger_deactivate()
    assert peer.call(Trigger, "safety/stop").success
    node.trigger_activate()
    until_held(graph, node, "estop")
    for change in (node.trigger_deactivate, node.trigger_cleanup, node.trigger_configure, node.trigger_activate):
        change()
    assert node.configure_error == "" and node.gate.stopped
    until_held(graph, node, "estop")
    peer.call(Trigger, "safety/release")
    until_moving(graph, node)


def test_stop_outlives_the_process_of_the_gate_in_its_session(graph, start, peer, stop, tmp_path):
    first = driven_by(peer, start(SafetyNode, session=str(tmp_path), **LIMITS))
    assert peer.call(Trigger, "safety/stop").success
    stop(first)
    node = driven_by(peer, start(SafetyNode, session=str(tmp_path), **LIMITS))
    until_held(graph, node, "estop")
    peer.call(Trigger, "safety/release")
    until_moving(graph, node)
    stop(node)
    assert not start(SafetyNode, session=str(tmp_path), **LIMITS).gate.stopped


def test_activated_again_it_starts_from_rest_and_by_new_commands(graph, start, peer):
    """Another controller may have had the arm meanwhile."""
    node = driven_by(peer, start(SafetyNode, **LIMITS, limits__max_linear_acceleration=0.2))
    until_moving(graph, node)
    graph.spin_until(lambda: (node.drive(), node.gate._last[2] > 0.3)[1], "speed")
    node.trigger_deactivate()
    graph.spin_until(lambda: holding(node.heard), "the last word")
    count = len(node.heard)
    node.trigger_activate()
    until_moving(graph, node)
    first = next(msg for msg in node.heard[count:] if msg.source != Source.HOLD)
    assert 0.0 < first.actions[2] <= 0.2 * peer.clock.period_s**2 / 0.0015 + 1e-6
    assert all(msg.source == Source.HOLD for msg in node.heard[count : node.heard.index(first)])


@pytest.mark.parametrize("age_s", [5.0, -5.0])
def test_joint_states_of_another_time_are_refused(graph, gates, peer, age_s):
    node = gates(arm__urdf=str(URDF), **LIMITS, **WATCHED)
    say = peer.say(JointState, "driver/joint_states", qos.SENSOR)

    def sent() -> bool:
        stamp = header(time.time_ns() - round(age_s * 1e9))
        say(JointState(header=stamp, name=JOINTS, position=READY))
        node.drive()
        return node.rejected["driver/joint_states"] > 3

    graph.spin_until(sent, "refusals")
    until_held(graph, node, "no_joints")


@pytest.mark.parametrize("state, said", [
    ([("twist", 4), ("pose", 4), ("wrench", 6)], ""),
    ([("pose", 4), ("twist", 4)], "limits.max_force is 40.0, but the state has no wrench"),
    ([("twist", 4), ("wrench", 6)], "limits.workspace_lower: .* has no 'pose'"),
])
def test_limits_are_judged_where_the_task_has_its_pose_and_force(make, tmp_path, state, said):
    task = yaml.safe_load((task_folder() / "ethernet.yaml").read_text())
    task["state"] = [{"key": key, "size": size} for key, size in state]
    task["vla_state"] = [state[0][0]]
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(task))
    node = make(SafetyNode, task=str(path))
    assert re.search(said, node.configure_error) if said else node.configure_error == ""
    if not said:
        assert (node.limits.pose_index, node.limits.force_index) == (4, 8)
