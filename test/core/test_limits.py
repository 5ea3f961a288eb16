import numpy as np
import pytest

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.limits import Limits, SafetyGate

VALUES = dict(
    action_limit=1.0, max_step_change=2.0, workspace_lower=[0.0, 0.0, 0.0], workspace_upper=[1.0, 1.0, 1.0],
    max_force=40.0, force_index=4, command_timeout_s=0.04,
)


def proprio(place=(0.5, 0.5, 0.5), force=(0.0, 0.0, 0.0)):
    return np.array([*place, 0.0, *force], dtype=np.float32)


def gate(**changes):
    return SafetyGate(Limits.from_mapping(VALUES | changes), 4, [0.01, 0.01, 0.01, 0.02])


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
        Limits.from_mapping({k: v for k, v in VALUES.items() if k != key})


def test_an_unknown_limit_is_named():
    with pytest.raises(ValueError, match="unknown key 'max_forse'"):
        Limits.from_mapping(VALUES | {"max_forse": 3.0})


@pytest.mark.parametrize("key, value", [
    ("action_limit", 0.0), ("action_limit", 1.5), ("max_step_change", 0.0), ("max_force", -1.0),
    ("command_timeout_s", 0.0),
    ("workspace_lower", [0.0, 0.0]), ("workspace_lower", [0.0, 2.0, 0.0]),
    ("workspace_upper", [1.0, float("nan"), 1.0]), ("workspace_lower", None),
    ("force_index", -1), ("max_force", float("nan")),
])
def test_a_limit_that_makes_no_sense_is_refused(key, value):
    with pytest.raises(ValueError, match="limits.workspace_upper" if value == [0.0, 2.0, 0.0] else f"limits.{key}"):
        Limits.from_mapping(VALUES | {key: value})


@pytest.mark.parametrize("dim, scale", [(4, [0.01] * 3), (2, [0.01] * 3)])
def test_an_action_scale_that_does_not_fit_is_refused(dim, scale):
    with pytest.raises(ValueError, match="action_scale"):
        SafetyGate(Limits.from_mapping(VALUES), dim, scale)


JOINTS = {"workspace_lower": None, "workspace_upper": None, "max_force": None}


def test_a_task_without_a_tool_says_so_and_is_limited_in_range_step_and_age_only():
    g = SafetyGate(Limits.from_mapping(VALUES | JOINTS | {"max_step_change": 0.5}), 2, [1.0, 1.0])
    g.offer(Chunk(100, np.array([[2.0, -0.1]] * 3), 95, Source.ACTOR), 1.0)
    assert np.allclose(g.step(100, 1.0, np.array([9.0])).actions[0], [0.5, -0.1])
    assert g.counts["range"] == g.counts["step_change"] == 1
    assert g.step(101, 1.1, np.array([9.0])).source is Source.HOLD and g.reason == "stale"


def test_a_task_without_a_tool_still_holds_without_proprioception():
    g = SafetyGate(Limits.from_mapping(VALUES | JOINTS), 2, [1.0, 1.0])
    g.offer(Chunk(100, np.ones((3, 2)), 95, Source.ACTOR), 1.0)
    assert g.step(100, 1.0, None).source is Source.HOLD and g.reason == "no_proprio"


@pytest.mark.parametrize("limited", [JOINTS | {"max_force": 40.0}, {"max_force": None}])
def test_limits_of_a_tool_need_actions_that_move_it(limited):
    with pytest.raises(ValueError, match="set them to null"):
        SafetyGate(Limits.from_mapping(VALUES | limited), 2, [1.0, 1.0])
