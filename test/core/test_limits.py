from pathlib import Path

import numpy as np
import pytest
import yaml

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.kinematics import Arm
from rlt_ros.core.limits import BRIDGED_TICKS, SLOWEST, JointGuard, Limits, SafetyGate

PERIOD_S = 0.02
NAMES = ("x", "y", "z", "yaw")
SCALE = [0.01, 0.01, 0.01, 0.02]
VALUES = dict(
    action_limit=1.0, max_step_change=2.0, max_linear_velocity=None, max_angular_velocity=None,
    max_linear_acceleration=None, max_angular_acceleration=None, max_deviation=None,
    workspace_lower=[0.0, 0.0, 0.0], workspace_upper=[1.0, 1.0, 1.0], max_force=40.0, force_index=4,
)
PUSHED = dict(force_reaction="hold", retreat_direction=[0.0, 0.0, 1.0])
TOOL = {"workspace_lower": None, "workspace_upper": None, "max_force": None}


def limits(**changes):
    return Limits.from_mapping(VALUES | PUSHED | changes)


def proprio(place=(0.5, 0.5, 0.5), force=(0.0, 0.0, 0.0)):
    return np.array([*place, 0.0, *force], dtype=np.float32)


def gate(**changes):
    return SafetyGate(limits(**changes), NAMES, SCALE, PERIOD_S)


def chunk(tick=100, actions=((0.1, 0.2, 0.3, 0.4),) * 3, **kwargs):
    return Chunk(tick, np.array(actions), tick - 5, Source.ACTOR, 2, 7, **kwargs)


def stepped(g, action, **kwargs):
    g.offer(chunk(actions=[action]), 1.0)
    return g.step(100, 1.0, proprio(**kwargs))


def held(out, g, cause):
    assert out.source is Source.HOLD and not out.actions.any() and out.actions.shape == (3, 4)
    assert g.reason == cause and g.counts[cause] >= 1


def test_what_is_safe_passes_unchanged():
    g = gate()
    assert g.offer(chunk(), 1.0) is True
    out = g.step(100, 1.01, proprio())
    assert np.allclose(out.actions, [[0.1, 0.2, 0.3, 0.4]])
    assert (out.tick, out.observation_tick, out.source) == (100, 95, Source.ACTOR)
    assert (out.episode, out.policy_version) == (2, 7)
    assert g.reason == "" and not any(g.counts.values())


def test_next_ticks_are_given_along_limited_for_where_they_lead():
    def steps(actions, changes=(), **kwargs):
        g = gate(**dict(changes))
        g.offer(chunk(actions=actions), 1.0)
        out = g.step(100, 1.0, proprio(**kwargs))
        assert not any(g.counts.values())  # ticks to come are counted when they come
        return out.actions.tolist()

    def rise(z):
        return [0.0, 0.0, z, 0.0]

    calm, second = rise(0.25), rise(0.5)
    assert steps([calm]) == [calm]
    assert steps([calm, second, calm, calm]) == [calm, second, calm]  # a robot stops two periods after the last command
    assert steps([calm, [0.0, 0.0, 0.5, 2.0]]) == [calm, [0.0, 0.0, 0.5, 1.0]]  # range
    assert steps([calm, rise(-0.5), rise(-0.5)], {"max_step_change": 0.25}) == [calm, rise(0.0), rise(-0.25)]
    assert steps([calm, second, calm], place=(0.5, 0.5, 0.996)) == [calm, rise(0.0), rise(0.0)]  # the wall ahead


def test_a_hold_reaches_as_far_as_a_motion():
    g = gate()
    assert g.step(100, 1.0, proprio()).actions.tolist() == [[0.0] * 4] * 3 and g.counts["no_command"] == 1


def test_a_lost_message_is_bridged_with_the_lookahead():
    g = gate()
    g.offer(chunk(actions=[[0.1] * 4, [0.2] * 4]), 1.0)
    assert np.allclose(g.step(101, 1.02, proprio()).actions, 0.2)


def test_without_a_command_it_holds():
    g = gate()
    held(g.step(100, 1.0, proprio()), g, "no_command")


def test_a_command_that_is_stale_by_receive_time_holds():
    g = gate()
    g.offer(chunk(actions=[[0.1] * 4] * 50), 1.0)
    assert g.step(101, 1.039, proprio()).source is Source.ACTOR
    held(g.step(102, 1.041, proprio()), g, "stale")


@pytest.mark.parametrize("tick", [99, 103])
def test_a_tick_that_the_command_does_not_reach_holds(tick):
    g = gate()
    g.offer(chunk(), 1.0)
    held(g.step(tick, 1.0, proprio()), g, "exhausted")


@pytest.mark.parametrize("values", [None, np.zeros(3), np.full(7, np.nan)])
def test_without_proprioception_it_holds(values):
    g = gate()
    g.offer(chunk(), 1.0)
    held(g.step(100, 1.0, values), g, "no_proprio")


@pytest.mark.parametrize("bad, cause", [
    (Chunk(101, np.ones((3, 3)), 95, Source.ACTOR), "wrong_size"),
    (Chunk(101, np.zeros((0, 4)), 95, Source.ACTOR), "empty"),
    (Chunk(99, np.ones((3, 4)), 94, Source.ACTOR), "old_tick"),
])
def test_a_refused_command_is_counted_and_leaves_the_last_one(bad, cause):
    g = gate()
    g.offer(chunk(), 1.0)
    assert g.offer(bad, 1.01) is False
    assert g.counts[cause] == 1
    assert np.allclose(g.step(101, 1.01, proprio()).actions[0], [0.1, 0.2, 0.3, 0.4])


def test_a_command_that_could_not_be_read_is_counted():
    g = gate()
    g.refuse("malformed")
    assert g.counts["malformed"] == 1
    with pytest.raises(KeyError):
        g.refuse("no such cause")


def test_refused_commands_do_not_keep_the_robot_alive():
    g = gate()
    g.offer(chunk(actions=[[0.1] * 4] * 50), 1.0)
    for i in range(1, 4):
        assert g.offer(chunk(tick=90), 1.0 + 0.01 * i) is False
    held(g.step(103, 1.05, proprio()), g, "stale")


def test_a_sender_that_restarted_on_an_earlier_clock_is_heard_after_a_silence():
    g = gate()
    g.offer(chunk(tick=100), 1.0)
    assert g.offer(chunk(tick=5), 1.02) is False
    assert g.offer(chunk(tick=6), 1.1) is True
    assert g.step(6, 1.1, proprio()).source is Source.ACTOR


def test_actions_out_of_range_are_clipped_and_counted():
    g = gate(action_limit=0.5)
    assert np.allclose(stepped(g, [0.9, -0.9, 0.5, 0.1]).actions, [[0.5, -0.5, 0.5, 0.1]])
    assert g.counts["range"] == 1


def test_a_jump_from_one_tick_to_the_next_is_limited():
    g = gate(max_step_change=0.25)
    g.offer(chunk(actions=[[1.0, -1.0, 0.1, 0.0]] * 3), 1.0)
    assert np.allclose(g.step(100, 1.0, proprio()).actions[0], [0.25, -0.25, 0.1, 0.0])
    assert np.allclose(g.step(101, 1.0, proprio()).actions[0], [0.5, -0.5, 0.1, 0.0])
    assert g.counts["step_change"] == 2


def test_after_a_hold_motion_starts_from_rest():
    g = gate(max_step_change=0.5)
    g.offer(chunk(actions=[[0.5] * 4] * 3), 1.0)
    g.step(100, 1.0, proprio())
    g.step(101, 1.0, None)
    g.offer(chunk(tick=102, actions=[[1.0] * 4]), 1.0)
    assert np.allclose(g.step(102, 1.0, proprio()).actions, 0.5)


@pytest.mark.parametrize("place, action, expected", [
    ((0.999, 0.5, 0.5), [1.0, 0.3, 0.0, 0.2], [0.0, 0.3, 0.0, 0.2]),  # out through the upper wall: that component only
    ((0.5, 0.001, 0.5), [0.2, -1.0, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]),
    ((0.5, 0.5, 0.005), [0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
    ((0.98, 0.5, 0.5), [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),  # still inside after it
    ((1.2, 0.5, 0.5), [-1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]),  # outside already: the way back is open
    ((1.2, 0.5, 0.5), [0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
])
def test_motion_does_not_leave_the_workspace(place, action, expected):
    g = gate()
    assert np.allclose(stepped(g, action, place=place).actions, [expected])
    assert g.counts["workspace"] == (action != expected)


def test_the_place_is_read_where_the_task_has_it():
    g = SafetyGate(limits(force_index=0, pose_index=6), NAMES, SCALE, PERIOD_S)
    g.offer(chunk(actions=[[0.5, 0.5, 0.0, 0.0]]), 1.0)
    values = [0.0] * 6 + [0.999, 0.5, 0.5, 0.0]  # a wrench before the pose, which is at the wall in x
    assert np.allclose(g.step(100, 1.0, values).actions, [[0.0, 0.5, 0.0, 0.0]])
    held(g.step(101, 1.02, values[:8]), g, "exhausted")
    g.offer(chunk(101, [[0.5, 0.5, 0.0, 0.0]]), 1.02)
    held(g.step(101, 1.02, values[:8]), g, "no_proprio")


@pytest.mark.parametrize(("index", "part", "key"), [("pose_index", "pose", "workspace_lower"),
                                                    ("force_index", "wrench", "max_force")])
def test_what_the_task_does_not_measure_cannot_be_limited(index, part, key):
    with pytest.raises(ValueError, match=f"limits.{key}: .* no '{part}'"):
        limits(**{index: None})


def test_begun_anew_nothing_of_before_counts():
    g = gate(max_linear_acceleration=5.0)  # 0.1 m/s a tick: action 0.2
    g.offer(chunk(actions=[[0.0, 1.0, 0.0, 0.0]] * 3), 1.0)
    assert np.allclose([g.step(100, 1.0, proprio()).actions[0], g.step(101, 1.02, proprio()).actions[0]],
                       [[0, 0.2, 0, 0], [0, 0.4, 0, 0]])
    g.begin_anew()
    g.offer(chunk(50, [[0.0, 1.0, 0.0, 0.0]]), 1.02)  # of an earlier tick
    assert np.allclose(g.step(50, 1.02, proprio()).actions[0], [0, 0.2, 0, 0])
    g.begin_anew()
    held(g.step(51, 1.04, proprio()), g, "no_command")
    g = gate(max_deviation=0.5)
    g.add_reference(Chunk(95, np.full((20, 4), 0.1), 95, Source.VLA))
    g.begin_anew()
    held(stepped(g, [0.1] * 4), g, "no_reference")


def test_over_the_force_limit_it_holds():
    g = gate()
    held(stepped(g, [0.0, 0.0, -0.5, 0.0], force=(0.0, 30.0, 30.0)), g, "force")


def test_over_the_force_limit_it_may_retreat_upwards_and_nothing_else():
    g = gate()
    out = stepped(g, [0.4, 0.4, 0.5, 0.4], force=(0.0, 0.0, 50.0))
    assert np.allclose(out.actions, [[0.0, 0.0, 0.5, 0.0]]) and out.source is Source.ACTOR
    assert g.counts["force"] == 1 and g.reason == ""


def test_under_the_force_limit_it_may_push():
    assert np.allclose(stepped(gate(), [0.0, 0.0, -0.5, 0.0], force=(0.0, 0.0, 39.0)).actions, [[0, 0, -0.5, 0]])


def test_the_emergency_stop_stays_until_a_person_releases_it():
    g = gate()
    g.offer(chunk(), 1.0)
    g.estop()
    held(g.step(100, 1.0, proprio()), g, "estop")
    g.offer(chunk(tick=101), 1.0)
    held(g.step(101, 1.0, proprio()), g, "estop")


def test_after_the_release_only_new_commands_move():
    g = gate()
    g.estop()
    g.offer(chunk(), 1.0)
    g.release_estop()
    held(g.step(100, 1.0, proprio()), g, "no_command")
    g.offer(chunk(tick=101), 1.0)
    assert g.step(101, 1.0, proprio()).source is Source.ACTOR


@pytest.mark.parametrize("key", list(VALUES))
def test_a_missing_limit_is_named(key):
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        Limits.from_mapping({k: v for k, v in (VALUES | PUSHED).items() if k != key})


def test_all_missing_limits_are_named_with_where_to_set_them():
    with pytest.raises(ValueError, match="'action_limit' is missing, .*'max_force' is missing.*task file.*robot file"):
        Limits.from_mapping({})


def test_an_unknown_limit_is_named():
    with pytest.raises(ValueError, match="unknown key 'max_forse'"):
        limits(max_forse=3.0)


NAN = float("nan")


@pytest.mark.parametrize("key, value", [
    ("action_limit", 0.0), ("action_limit", 1.5), ("action_limit", None), ("action_limit", "1"),
    ("max_step_change", 0.0), ("max_step_change", None), ("max_step_change", NAN),
    ("max_linear_velocity", 0.0), ("max_angular_velocity", NAN), ("max_linear_acceleration", -1.0),
    ("max_angular_acceleration", float("inf")), ("max_deviation", 0.0),
    ("max_force", -1.0), ("max_force", NAN), ("max_force", True), ("force_index", -1), ("force_index", 1.5),
    ("force_reaction", None), ("force_reaction", "flee"), ("retreat_direction", None), ("retreat_direction", [0, 0, 0]),
    ("retreat_direction", [0.0, 1.0]), ("retreat_direction", "up"),
    ("command_timeout_s", 0.0), ("slow_watchdog", 1),
    ("workspace_lower", [0.0, 0.0]), ("workspace_upper", [1.0, NAN, 1.0]), ("workspace_lower", None),
    ("joint_margin", 0.0), ("joint_velocity", [1.0, 0.0]), ("joint_lower", 3.0), ("joint_upper", [NAN]),
])
def test_a_limit_that_makes_no_sense_is_refused(key, value):
    with pytest.raises(ValueError, match=f"limits.{key}: got"):
        limits(**{key: value})


def test_a_workspace_without_room_is_refused():
    with pytest.raises(ValueError, match="limits.workspace_upper"):
        limits(workspace_lower=[0.0, 2.0, 0.0])


@pytest.mark.parametrize("missing", ["retreat_velocity", "retreat_distance", "workspace_lower"])
def test_a_retreat_needs_a_speed_an_end_and_walls(missing):
    changes = dict(force_reaction="retreat", retreat_velocity=0.1, retreat_distance=0.01) | {missing: None}
    if missing == "workspace_lower":
        changes["workspace_upper"] = None
    with pytest.raises(ValueError, match=f"limits.{missing}.*as force_reaction is 'retreat'"):
        limits(**changes)


@pytest.mark.parametrize("scale", [[0.01] * 3, [0.01, 0.01, 0.01, 0.0], [0.01, 0.01, 0.01, NAN]])
def test_an_action_scale_that_does_not_fit_is_refused(scale):
    with pytest.raises(ValueError, match="action_scale"):
        SafetyGate(limits(), NAMES, scale, PERIOD_S)


def test_the_watchdog_follows_from_the_rate():
    assert gate().command_timeout_s == 0.04
    assert SafetyGate(limits(), NAMES, SCALE, 0.004).command_timeout_s == 0.008
    assert gate(command_timeout_s=0.03).command_timeout_s == 0.03
    assert gate(command_timeout_s=0.04).command_timeout_s == 0.04


def test_a_slow_watchdog_must_be_asked_for():
    with pytest.raises(ValueError, match="command_timeout_s: got 0.05 s, expected at most 2 control periods of 0.02 s"):
        gate(command_timeout_s=0.05)
    assert gate(command_timeout_s=0.05, slow_watchdog=True).command_timeout_s == 0.05


TORQUES = TOOL | {"max_step_change": 0.5}


def bare(**changes):
    """A gate of two actions that move no tool."""
    return SafetyGate(limits(**TORQUES | changes), ("shoulder", "elbow"), [1.0, 1.0], PERIOD_S)


def test_a_task_without_a_tool_says_so_and_is_limited_in_range_step_and_age_only():
    g = bare()
    g.offer(Chunk(100, np.array([[2.0, -0.1]] * 3), 95, Source.ACTOR), 1.0)
    assert np.allclose(g.step(100, 1.0, np.array([9.0])).actions[0], [0.5, -0.1])
    assert g.counts["range"] == g.counts["step_change"] == 1
    assert g.step(101, 1.1, np.array([9.0])).source is Source.HOLD and g.reason == "stale"


def test_a_task_without_a_tool_still_holds_without_proprioception():
    g = bare()
    g.offer(Chunk(100, np.ones((3, 2)), 95, Source.ACTOR), 1.0)
    assert g.step(100, 1.0, None).source is Source.HOLD and g.reason == "no_proprio"


@pytest.mark.parametrize("limited", [
    {"max_force": 40.0}, {"workspace_lower": [0, 0, 0], "workspace_upper": [1, 1, 1]}, {"max_linear_velocity": 1.0},
    {"max_angular_acceleration": 1.0},
])
def test_limits_of_a_tool_need_actions_that_move_it(limited):
    with pytest.raises(ValueError, match="has shoulder, elbow; set them to null"):
        bare(**limited)


ROBOTS = sorted((Path(__file__).resolve().parents[2] / "config" / "robots").glob("*.yaml"))


@pytest.mark.parametrize("path", ROBOTS, ids=lambda path: path.stem)
def test_a_robot_file_inherits_no_limit_of_the_simulated_arm(path):
    own = yaml.safe_load(path.read_text())["/**/safety_node"]["ros__parameters"]["limits"]
    layout = {"force_index": 8}
    assert Limits.from_mapping(layout | own).action_limit < 1.0


# --- velocity and acceleration


def speeds(actions):
    """m/s and rad/s of each action."""
    moved = np.asarray(actions, float) * SCALE / PERIOD_S
    return np.linalg.norm(moved[:, :3], axis=1), np.abs(moved[:, 3])


def test_velocity_is_limited_in_metres_and_radians_a_second_along_the_same_way():
    g = gate(max_linear_velocity=0.25, max_angular_velocity=0.4)  # full action: 0.5 m/s and 1 rad/s
    out = stepped(g, [0.6, -0.8, 0.0, 0.9]).actions[0]
    assert np.allclose(out, [0.3, -0.4, 0.0, 0.4])
    assert g.counts["velocity"] == 2


@pytest.mark.parametrize("most", [0.1, 0.3])
def test_velocity_stays_limited_where_the_step_is_too(most):
    """Bends at full speed: each axis changed on its own by at most a step would leave the circle between them."""
    g, random = gate(max_step_change=most, max_linear_velocity=0.25, max_angular_velocity=0.4), np.random.default_rng(0)
    g.step(100, 1.0, proprio())
    last = np.zeros(4)
    for tick in range(101, 1101):
        if tick % 7 == 0:
            wanted = random.uniform(-1.0, 1.0, 4)
        else:
            wanted = last if tick == 101 else wanted
        g.offer(chunk(tick, [wanted]), tick * PERIOD_S)
        out = np.asarray(g.step(tick, tick * PERIOD_S, proprio()).actions[0], float)
        (linear,), (angular,) = speeds([out])
        assert linear <= 0.25 * 1.00001 and angular <= 0.4 * 1.00001
        assert np.abs(out - last).max() <= most + 1e-6
        last = out
    assert g.counts["step_change"] and g.counts["velocity"]


def test_what_stands_exactly_at_the_limits_is_not_over_them():
    g = gate(max_linear_velocity=0.5, max_angular_velocity=1.0, max_linear_acceleration=25.0,
             max_angular_acceleration=50.0)
    assert np.allclose(stepped(g, [0.6, 0.8, 0.0, -1.0]).actions[0], [0.6, 0.8, 0.0, -1.0])
    assert not any(g.counts.values())


def test_acceleration_is_limited_from_rest_and_in_turns():
    g = gate(max_linear_acceleration=5.0)  # 0.1 m/s a tick: action 0.2
    g.offer(chunk(actions=[[0.0, 1.0, 0.0, 1.0]] * 3), 1.0)
    assert np.allclose(g.step(100, 1.0, proprio()).actions, [[0, 0.2, 0, 1], [0, 0.4, 0, 1], [0, 0.6, 0, 1]])
    g.offer(chunk(tick=101, actions=[[0.2, 0.2, 0.0, 1.0]]), 1.0)
    turned = g.step(101, 1.0, proprio()).actions[0]
    assert np.allclose(turned, [0.2, 0.2, 0.0, 1.0])  # 0.2 along x is all that a tick allows
    assert g.counts["acceleration"] == 1


def test_a_hold_stops_at_once_whatever_the_acceleration():
    g = gate(max_linear_acceleration=1.0)
    g.offer(chunk(actions=[[0.0, 0.04, 0.0, 0.0]] * 3), 1.0)
    assert g.step(100, 1.0, proprio()).actions[0].any()
    g.offer(Chunk(101, np.ones((1, 4)), 101, Source.HOLD), 1.01)  # the actor holds; what it adds to that is not heard
    out = g.step(101, 1.01, proprio())
    assert out.source is Source.HOLD and not out.actions.any()
    held(g.step(103, 1.01, proprio()), g, "exhausted")


# --- deviation from the reference


def reference(tick=90, action=(0.0, 0.5, 0.0, 0.0), steps=50):
    return Chunk(tick, np.tile(action, (steps, 1)), tick, Source.VLA)


def test_the_actor_may_not_go_far_from_the_reference():
    g = gate(max_deviation=0.3)
    g.add_reference(reference())
    out = stepped(g, [0.5, 0.1, 0.3, -0.9])
    assert np.allclose(out.actions, [[0.3, 0.2, 0.3, -0.3]]) and out.source is Source.ACTOR
    assert g.counts["deviation"] == 1


def test_the_reference_is_that_of_the_tick_also_for_the_ticks_to_come():
    g = gate(max_deviation=0.25)
    ramp = np.zeros((50, 4))
    ramp[:, 1] = np.linspace(0.0, 0.98, 50)
    g.add_reference(Chunk(90, ramp, 90, Source.VLA))
    g.offer(chunk(actions=np.zeros((3, 4))), 1.0)
    assert np.allclose(g.step(100, 1.0, proprio()).actions[:, 1], 0.0)
    g.offer(chunk(tick=110, actions=np.zeros((3, 4))), 1.0)
    assert np.allclose(g.step(110, 1.0, proprio()).actions[:, 1], [0.15, 0.17, 0.19], atol=1e-6)


@pytest.mark.parametrize("source", [Source.HUMAN, Source.VLA])
def test_the_human_and_the_reference_itself_are_exempt(source):
    g = gate(max_deviation=0.3)
    g.hear_human(1.0)
    g.offer(Chunk(100, np.full((1, 4), 0.9), 100, source), 1.0)
    assert np.allclose(g.step(100, 1.0, proprio()).actions, 0.9)


@pytest.mark.parametrize("references", [[], [reference(tick=60)], [reference(tick=90, steps=5)], [reference(tick=98)]])
def test_an_actor_without_a_usable_reference_holds(references):
    """None; too old; too short; younger than the rule of L ticks allows."""
    g = SafetyGate(limits(max_deviation=2.0), NAMES, SCALE, PERIOD_S, latency_ticks=5, max_age_ticks=35)
    for item in references:
        g.add_reference(item)
    held(stepped(g, [0.1] * 4), g, "no_reference")


def test_a_reference_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 actions a step, expected 4"):
        gate().add_reference(reference(action=(0.0, 0.0, 0.0)))


# --- who is upstream


def test_a_human_whose_gamepad_is_silent_holds():
    g = gate()

    def human(tick):
        g.offer(Chunk(tick, np.full((3, 4), 0.1), tick, Source.HUMAN), 1.0 + 0.02 * (tick - 100))

    human(100)
    held(g.step(100, 1.0, proprio()), g, "teleop_lost")
    g.hear_human(1.0)
    for tick in range(101, 106):
        human(tick)
        assert g.step(tick, 1.0 + 0.02 * (tick - 100), proprio()).source is Source.HUMAN
    human(107)
    held(g.step(107, 1.14, proprio()), g, "teleop_lost")


def test_a_running_episode_whose_node_is_silent_holds_all_but_the_human():
    g = gate()
    g.hear_episode(True, 1.0)
    g.offer(chunk(tick=149, actions=[[0.1] * 4] * 3), 1.98)
    assert g.step(149, 1.98, proprio()).source is Source.ACTOR
    g.offer(chunk(tick=151, actions=[[0.1] * 4] * 3), 2.02)
    held(g.step(151, 2.02, proprio()), g, "episode_lost")
    g.hear_human(2.03)
    g.offer(Chunk(152, np.full((3, 4), 0.1), 152, Source.HUMAN), 2.04)
    assert g.step(152, 2.04, proprio()).source is Source.HUMAN
    g.hear_episode(False, 2.05)
    g.offer(chunk(tick=300, actions=[[0.1] * 4] * 3), 9.0)  # an episode that is over may be silent
    assert g.step(300, 9.0, proprio()).source is Source.ACTOR


def test_two_publishers_hold_until_one_is_left():
    g = gate()
    g.rivals = "actor_node, other_node"
    g.offer(chunk(), 1.0)
    held(g.step(100, 1.0, proprio()), g, "two_publishers")
    assert g.detail == "actor_node, other_node"
    g.rivals = ""
    g.offer(chunk(tick=101), 1.02)
    assert g.step(101, 1.02, proprio()).source is Source.ACTOR and g.detail == ""


def test_candidates_for_the_same_tick_are_told():
    g = gate()
    for tick in (100, 101, 102):
        g.offer(chunk(tick=tick), 1.0)
    assert g.repeated == 0
    g.offer(chunk(tick=102), 1.0)
    g.offer(chunk(tick=101), 1.0)
    assert g.repeated == 2


# --- the reaction to a force


def retreating(**changes):
    return gate(**dict(force_reaction="retreat", retreat_velocity=0.1, retreat_distance=0.01) | changes)


def pushed(g, tick, place=(0.5, 0.5, 0.5), force=(0.0, 0.0, 50.0), action=(0.0, 0.0, -0.5, 0.3), source=Source.VLA):
    now = 1.0 + PERIOD_S * (tick - 100)
    g.offer(Chunk(tick, np.tile(action, (3, 1)), tick, source), now)
    return g.step(tick, now, proprio(place, force))


def test_a_retreat_backs_off_whatever_was_commanded():
    g = retreating()
    assert np.allclose(pushed(g, 100).actions, [[0.0, 0.0, 0.2, 0.0]] * 3)
    assert g.counts["retreat"] == 1 and g.reason == ""
    assert np.allclose(pushed(g, 101, force=(0.0, 0.0, 30.0)).actions[0], [0.0, 0.0, -0.5, 0.3])


def test_a_retreat_ends_after_its_distance():
    g = retreating()
    pushed(g, 100)
    out = pushed(g, 101, place=(0.5, 0.5, 0.5085))
    assert np.allclose(out.actions, [[0.0, 0.0, 0.2, 0.0]])  # the next tick would be beyond it
    held(pushed(g, 102, place=(0.5, 0.5, 0.5101)), g, "force")
    pushed(g, 103, place=(0.5, 0.5, 0.5101), force=(0.0, 0.0, 0.0))
    assert pushed(g, 104, place=(0.5, 0.5, 0.5101)).actions[0, 2] > 0.0  # another push, another retreat


def test_a_retreat_goes_where_it_is_told_and_not_through_a_wall():
    g = retreating(retreat_direction=[-3.0, 4.0, 0.0])
    assert np.allclose(pushed(g, 100).actions[0], [-0.12, 0.16, 0.0, 0.0])
    g = retreating()
    assert not pushed(g, 100, place=(0.5, 0.5, 0.9999)).actions.any() and g.counts["workspace"] == 1


def test_a_retreat_starts_from_rest_within_the_acceleration():
    g = retreating(max_linear_acceleration=2.5)  # action 0.1 a tick
    g.offer(chunk(actions=[[0.0, 0.0, -0.1, 0.0]] * 3), 0.98)
    g.step(100, 0.98, proprio())
    assert np.allclose(pushed(g, 101).actions[:, 2], [0.1, 0.2, 0.2])


@pytest.mark.parametrize("reaction", ["hold", "retreat"])
def test_a_robot_that_nobody_drives_does_not_move_when_somebody_leans_on_it(reaction):
    g = retreating(force_reaction=reaction)
    held(pushed(g, 100, action=(0.0, 0.0, 0.0, 0.0), source=Source.HOLD), g, "force")


def test_the_way_that_is_left_open_under_force_can_be_chosen():
    g = gate(retreat_direction=[-1.0, 0.0, 0.0])
    assert np.allclose(pushed(g, 100, action=(-0.5, 0.2, 0.1, 0.3)).actions[0], [-0.5, 0.0, 0.0, 0.0])
    held(pushed(g, 101, action=(0.5, 0.0, 0.5, 0.0)), g, "force")


# --- joints

URDF = (Path(__file__).resolve().parents[2] / "rlt_ros" / "sim" / "assets" / "ethernet.urdf").read_text()
JOINTS = tuple(f"joint{i}" for i in range(1, 7))
READY = np.array([0.0, 0.2, -0.3, 0.1, 0.05, 0.2])
FINE = [0.0015, 0.0015, 0.0015, 0.02]


def guarded(urdf=URDF, names=JOINTS, actions=NAMES, scale=FINE, **changes):
    """A gate that watches the joints of the simulated arm, with limits of the joints that `changes`."""
    values = limits(**dict(joint_margin=0.1, min_singular_value=0.05) | TOOL | changes)
    g = SafetyGate(values, actions, scale, PERIOD_S, watch_joints=True)
    g.joints = JointGuard(values, names, actions, scale, PERIOD_S, urdf, "base_link", "tcp")
    return g


def turned(g, joints, action, steps=1, tick=100):
    g.offer(Chunk(tick, np.tile(action, (steps, 1)), tick, Source.VLA), 1.0 + PERIOD_S * (tick - 100))
    return g.step(tick, 1.0 + PERIOD_S * (tick - 100), proprio(), joints)


def motion(action):
    """m and rad [6] of an action x, y, z, yaw."""
    x, y, z, yaw = np.asarray(action, float) * FINE
    return [x, y, z, 0.0, 0.0, yaw]


def test_joints_within_their_limits_change_nothing():
    g = guarded()
    assert np.allclose(turned(g, READY, [1.0, -1.0, 1.0, 1.0], steps=3).actions, [1.0, -1.0, 1.0, 1.0])
    assert not any(g.counts.values())


def test_the_prediction_is_the_arms_own():
    g, arm = guarded(), Arm(URDF, "base_link", "tcp", JOINTS)
    moves, share = g.joints.at(READY)
    action = np.array([0.3, -0.2, 0.9, 0.5])
    assert np.allclose(moves @ action, arm.step(READY, motion(action), damping=0.001)) and share == 1.0


def test_what_would_turn_a_joint_too_fast_is_slowed_down_along_its_way():
    g, arm = guarded(joint_velocity=[0.05] * 6), Arm(URDF, "base_link", "tcp", JOINTS)
    action = np.array([1.0, -0.5, 1.0, 1.0])
    out = turned(g, READY, action).actions[0]
    share = out[0] / action[0]
    assert 0.0 < share < 1.0 and np.allclose(out, share * action)
    assert np.abs(arm.step(READY, motion(out), damping=0.001)).max() == pytest.approx(0.05 * PERIOD_S, rel=1e-5)
    assert g.counts["joint_velocity"] == 1


def test_nothing_goes_further_towards_a_joint_limit_but_the_way_back_is_open():
    near = READY + [2.6 - 0.1 - 0.0001, 0, 0, 0, 0, 0]  # joint1 turns the arm about z
    arm = Arm(URDF, "base_link", "tcp", JOINTS)
    way = np.array([*(arm.jacobian(near)[:2, 0] / FINE[0]), 0.0, 0.0])
    way *= 0.9 / np.abs(way).max()
    assert arm.step(near, motion(way))[0] > 0.0001
    g = guarded()
    held(turned(g, near, way), g, "joint_limit")
    assert "joint1 is at 2.500" in g.detail
    assert np.allclose(turned(g, near, -way, tick=101).actions[0], -way, atol=1e-6) and g.detail == ""
    assert np.allclose(turned(g, near - [0.05, 0, 0, 0, 0, 0], way, tick=102).actions[0], way, atol=1e-6)


def test_near_a_singularity_it_slows_down_and_can_leave():
    g, arm = guarded(min_singular_value=0.05), Arm(URDF, "base_link", "tcp", JOINTS)
    values = []
    for bend in np.linspace(0.0, np.pi / 2, 101):  # the axes of the wrist come into one plane
        joints = np.array([0.0, 0.2, -0.3, 0.1, bend, 0.2])
        values.append((arm.inverse(joints)[1], joints))
    smallest, joints = min(values, key=lambda item: item[0])
    assert smallest < 0.05 * SLOWEST
    moves, share = g.joints.at(joints)
    assert share == SLOWEST
    slow = turned(g, joints, [0.2, 0.1, 0.2, 0.1]).actions[0]
    assert slow.any() and np.abs(slow).max() <= 0.2 * SLOWEST + 1e-6
    assert g.counts["singularity"] == 1
    half, joints = min(values, key=lambda item: abs(item[0] - 0.025))
    assert g.joints.at(joints)[1] == pytest.approx(half / 0.05)


@pytest.mark.parametrize("joints", [None, "no robot"])
def test_watched_joints_that_are_not_known_hold(joints):
    g = guarded()
    if joints is not None:
        g.joints = None
    held(turned(g, None if joints is None else READY, [0.1] * 4), g, "no_joints")
    assert g.detail


def test_actions_that_are_joints_need_no_urdf_and_lose_only_what_goes_too_far():
    own = dict(joint_lower=[-1.0, -1.0], joint_upper=[1.0, 1.0], joint_velocity=[1.0, 2.0])
    g = guarded("", ("pan", "lift"), ("lift", "pan", "grip"), [0.05, 0.01, 1.0], **own)
    assert np.allclose(turned(g, np.array([0.0, 0.0]), [0.5, 0.5, 1.0]).actions[0], [0.5, 0.5, 1.0])
    assert np.allclose(turned(g, np.array([0.898, 0.0]), [0.5, 0.5, 1.0], tick=101).actions[0], [0.5, 0.0, 1.0])
    assert g.counts["joint_limit"] == 1
    assert np.allclose(turned(g, np.array([0.0, 0.0]), [1.0, 0.5, 0.5], tick=102).actions[0], [0.8, 0.4, 0.4])
    assert g.counts["joint_velocity"] == 1  # 2.5 rad/s of 2


def test_the_narrower_of_file_and_urdf_holds():
    guard = guarded(joint_lower=[-1.0] * 6, joint_upper=[3.0] * 6, joint_velocity=[5.0] * 6).joints
    assert np.allclose(guard.lower, -0.9) and np.allclose(guard.upper, 2.5) and np.allclose(guard.velocity, 3.0)
    guard = guarded(joint_velocity=[0.5] * 6).joints
    assert np.allclose(guard.lower, -2.5) and np.allclose(guard.velocity, 0.5)


@pytest.mark.parametrize("changes, said", [
    ({"joint_margin": None}, "'joint_margin' is missing"),
    ({"min_singular_value": None}, "'min_singular_value' is missing"),
    ({"joint_margin": 2.7}, "joint 'joint1' may move from 0.100 to -0.100"),
    ({"joint_lower": [0.0] * 5}, "limits.joint_lower: got 5 numbers, expected one for each of joint1"),
    ({"urdf": URDF.replace('velocity="3.0"', "")}, "'joint_velocity' is missing, and the URDF says nothing for joint1"),
    ({"urdf": ""}, "'joint_lower' is missing, and no URDF says it for joint1"),
    ({"urdf": "", "joint_lower": [-1.0] * 6, "joint_upper": [1.0] * 6, "joint_velocity": [1.0] * 6}, "set 'urdf'"),
    ({"names": ("joint1", "joint1")}, "has a name twice"),
    ({"names": ("joint1", "elbow")}, "no moving joint 'elbow'"),
    ({"actions": ("a", "b", "c", "d")}, "actions a, b, c, d are neither joints"),
])
def test_what_is_missing_to_watch_the_joints_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        guarded(**changes)


# --- all of it


def test_every_action_that_goes_out_obeys_every_limit_also_those_for_the_ticks_to_come():
    """Wild candidates, a place that follows them, forces now and then."""
    random, values = np.random.default_rng(3), dict(
        action_limit=0.8, max_step_change=0.3, max_linear_velocity=0.03, max_angular_velocity=0.5,
        max_linear_acceleration=1.5, max_angular_acceleration=20.0, max_deviation=0.7,
        workspace_lower=[0.45, -0.005, 0.1], workspace_upper=[0.455, 0.005, 0.105], max_force=40.0,
        force_reaction="retreat", retreat_velocity=0.02, retreat_distance=0.002, joint_velocity=[0.08] * 6,
        joint_margin=0.1, min_singular_value=0.05)
    own = limits(**values)
    g = SafetyGate(own, NAMES, FINE, PERIOD_S)
    g.joints = JointGuard(own, JOINTS, NAMES, FINE, PERIOD_S, URDF, "base_link", "tcp")
    arm, joints = Arm(URDF, "base_link", "tcp", JOINTS), np.array([0.0, 0.0, 0.05, -0.02, 0.0, 0.0])
    place, last, force, lengths = np.array([0.4525, 0.0, 0.1025]), np.zeros(4), 0.0, set()
    for tick in range(1000, 2000):
        if tick % 10 == 0:
            g.add_reference(Chunk(tick, np.repeat(random.uniform(-1, 1, (5, 4)), 10, 0), tick, Source.VLA))
            force = random.choice([0.0, 50.0], p=[0.8, 0.2])
        now = tick * PERIOD_S
        g.hear_human(now)
        source = Source(int(random.choice([1, 2, 2, 2, 3])))
        g.offer(Chunk(tick, random.uniform(-2, 2, (3, 4)), tick, source), now)
        out = g.step(tick, now, proprio(place, (0.0, 0.0, force)), joints)
        lengths.add(out.steps)
        then, before, moved = place.copy(), last, joints.copy()
        for action in np.asarray(out.actions, float):
            assert np.abs(action).max() <= 0.8 + 1e-6
            (linear,), (angular,) = np.linalg.norm([action[:3] * FINE[:3]], axis=1), [abs(action[3]) * FINE[3]]
            assert linear <= 0.03 * PERIOD_S * 1.00001 and angular <= 0.5 * PERIOD_S * 1.00001
            # What speeds up is limited; what a wall, a joint, a force or a hold takes away goes at once.
            faster = np.abs(action) - np.where(action * before > 0, np.abs(before), 0.0)
            assert (faster[:3] * FINE[:3]).max() <= 1.5 * PERIOD_S**2 * 1.00001
            assert faster.max() <= 0.3 + 1e-6
            after = then + action[:3] * FINE[:3]
            assert ((after <= np.array(own.workspace_upper) + 1e-7) | (after <= then + 1e-9)).all()
            assert ((after >= np.array(own.workspace_lower) - 1e-7) | (after >= then - 1e-9)).all()
            turn = arm.step(joints, motion(action), damping=0.001)
            assert np.abs(turn).max() <= 0.08 * PERIOD_S * 1.00001
            then, before, moved = after, action, moved + turn
        last, place = np.asarray(out.actions[0], float), place + out.actions[0, :3] * FINE[:3]
        joints = joints + arm.step(joints, motion(out.actions[0]), damping=0.001)
    assert BRIDGED_TICKS + 1 in lengths
    counted = {cause for cause, count in g.counts.items() if count}
    assert counted == {"deviation", "range", "velocity", "step_change", "acceleration", "workspace", "joint_velocity",
                       "retreat", "force"}
