import numpy as np
import pytest

from rlt_ros.core import commander as module
from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.commander import Commander
from rlt_ros.core.episode import Phase
from rlt_ros.core.observations import TokenFrame

PROPRIO = np.array([1.0, 2.0], dtype=np.float32)


def reference(observed, steps=50):
    """Each action tells its tick: tick / 1000."""
    ticks = observed + np.arange(steps)
    return Chunk(observed, np.stack((ticks / 1000, -ticks / 1000), axis=1), observed, Source.VLA)


def constant(value, calls=None):
    def policy(token, proprio, ref):
        if calls is not None:
            calls.append((token, proprio, ref))
        return np.full((10, 2), value, dtype=np.float32)

    return policy


def commander(phase=Phase.CRITICAL, since=0, policy=None, observed=(95,), **kwargs):
    c = Commander(**dict(action_dim=2, chunk_steps=10, latency_ticks=5, max_age_ticks=25) | kwargs)
    c.set_phase(phase, since, 1)
    if policy is not None:
        c.offer_policy(policy, 1)
    for tick in observed:
        c.add_reference(reference(tick))
        c.add_state(TokenFrame(tick, np.full(3, tick), np.zeros(2)))
    return c


def executed(c, ticks):
    """First action's first component at each tick."""
    return [round(float(c.step(t, PROPRIO).candidate.actions[0, 0]), 4) for t in ticks]


# --- who acts


def test_the_approach_executes_the_reference():
    command = commander(Phase.APPROACH, policy=constant(0.5)).step(100, PROPRIO)
    assert command.candidate.source is Source.VLA and command.hold_reason == ""
    assert np.allclose(command.candidate.actions[:, 0], [0.1, 0.101, 0.102])


def test_without_a_policy_the_critical_phase_executes_the_reference():
    candidate = commander().step(100, PROPRIO).candidate
    assert candidate.source is Source.VLA and candidate.policy_version == 0 and candidate.observation_tick == 95


def test_with_a_policy_the_critical_phase_executes_the_actor():
    calls = []
    command = commander(policy=constant(0.5, calls)).step(100, PROPRIO)
    assert command.candidate.source is Source.ACTOR and command.candidate.policy_version == 1
    assert (command.candidate.actions == 0.5).all()
    token, proprio, ref = calls[0]
    assert (token == 95).all() and np.array_equal(proprio, [1, 2, 1, 2])
    assert np.allclose(ref[:, 0], np.arange(100, 110) / 1000)


@pytest.mark.parametrize("phase", list(Phase))
def test_the_human_goes_before_everybody_in_every_phase(phase):
    c = commander(phase, policy=constant(0.5))
    c.step(100, PROPRIO)
    c.set_human(np.array([0.3, -3.0]))
    command = c.step(101, None)
    assert command.candidate.source is Source.HUMAN and command.hold_reason == ""
    assert np.allclose(command.candidate.actions, [[0.3, -1.0]])


def test_release_by_the_human_plans_anew_at_once():
    calls = []
    c = commander(policy=constant(0.5, calls))
    c.step(100, PROPRIO)
    c.set_human(np.zeros(2))
    c.step(101, PROPRIO)
    c.set_human(None)
    command = c.step(103, PROPRIO)
    assert command.candidate.source is Source.ACTOR and command.planned.tick == 103
    assert len(calls) == 2 and np.allclose(calls[1][2][0, 0], 0.103)


def test_a_human_who_falls_silent_stops_the_robot_until_a_release():
    c = commander(policy=constant(0.5))
    c.set_human(np.ones(2))
    sources = [c.step(100 + i, PROPRIO).candidate.source for i in range(module.HUMAN_TIMEOUT_STEPS + 3)]
    assert sources == [Source.HUMAN] * module.HUMAN_TIMEOUT_STEPS + [Source.HOLD] * 3
    assert "human command lost" in c.step(110, PROPRIO).hold_reason
    c.set_human(None)
    assert c.step(111, PROPRIO).candidate.source is Source.ACTOR


@pytest.mark.parametrize(("rate_hz", "ticks"), [(30.0, 5), (50.0, 5), (250.0, 25), (500.0, 50)])
def test_human_who_falls_silent_lasts_five_ticks_or_a_tenth_of_a_second(rate_hz, ticks):
    assert module.human_timeout_steps(1.0 / rate_hz) == ticks


def test_a_human_who_goes_on_is_not_silent():
    c = commander()
    for tick in range(100, 140):
        c.set_human(np.ones(2))
        assert c.step(tick, PROPRIO).candidate.source is Source.HUMAN


# --- chunks on the grid


def test_a_chunk_is_planned_at_each_boundary_and_followed_between():
    c = commander(observed=(95, 105))
    planned = {t: c.step(t, PROPRIO).planned for t in range(100, 121)}
    assert [t for t, chunk in planned.items() if chunk is not None] == [100, 110, 120]
    assert planned[100].steps == 10 and planned[110].observation_tick == 105


def test_a_chunk_that_began_off_the_grid_is_replaced_at_the_next_boundary():
    c = commander(observed=(90, 95))
    planned = {t: c.step(t, PROPRIO).planned for t in range(97, 112)}
    assert [t for t, chunk in planned.items() if chunk is not None] == [97, 100, 110]
    assert planned[97].steps == 10


def test_a_late_reference_is_sliced_not_replayed():
    c = commander(observed=(82,))
    assert executed(c, range(100, 103)) == [0.1, 0.101, 0.102]


def test_a_reference_that_comes_between_boundaries_waits_for_the_next():
    c = commander(observed=(85,))
    c.step(100, PROPRIO)
    c.add_reference(Chunk(90, np.full((50, 2), 0.9), 90, Source.VLA))
    assert executed(c, [101, 109, 110]) == [0.101, 0.109, 0.9]


def test_lookahead_repeats_the_last_action_past_the_end_of_the_chunk():
    c = commander(lookahead_steps=4)
    ahead = [c.step(t, PROPRIO).candidate.actions[:, 0] for t in range(100, 110)]
    assert np.allclose(ahead[6], [0.106, 0.107, 0.108, 0.109])
    assert np.allclose(ahead[8], [0.108, 0.109, 0.109, 0.109])
    assert np.allclose(ahead[9], 0.109) and len(ahead[9]) == 4


def test_the_humans_action_is_repeated_as_far_as_the_lookahead_reaches():
    c = commander(lookahead_steps=3)
    c.set_human(np.full(c.action_dim, 0.5))
    assert np.allclose(c.step(100, PROPRIO).candidate.actions, 0.5) and c.step(101, PROPRIO).candidate.steps == 3


def test_lookahead_bridges_with_the_actions_of_the_following_ticks():
    c = commander()
    c.step(100, PROPRIO)
    candidate = c.step(104, PROPRIO).candidate
    assert candidate.tick == 104 and np.allclose(candidate.actions[:, 0], [0.104, 0.105, 0.106])


def test_a_skipped_tick_does_not_shift_the_chunk():
    c = commander()
    c.step(100, PROPRIO)
    assert executed(c, [103, 107]) == [0.103, 0.107]


def test_a_boundary_that_was_skipped_is_made_up_for():
    c = commander(observed=(95, 105))
    c.step(100, PROPRIO)
    assert c.step(112, PROPRIO).planned.tick == 112


def test_hand_over_takes_effect_on_the_next_command():
    c = commander(Phase.APPROACH, policy=constant(0.5))
    assert c.step(100, PROPRIO).candidate.source is Source.VLA
    c.set_phase(Phase.CRITICAL, 0, 1)
    command = c.step(103, PROPRIO)
    assert command.candidate.source is Source.ACTOR and command.planned.tick == 103


def test_hearing_the_same_phase_again_changes_nothing():
    c = commander(policy=constant(0.5))
    c.step(100, PROPRIO)
    c.set_phase(Phase.CRITICAL, 0, 1)
    assert c.step(101, PROPRIO).planned is None


# --- joined chunks


def jumps(c, ticks, proprio=PROPRIO):
    """Change of the first action's first component from each tick to the next, and what was commanded."""
    actions = np.array([c.step(t, proprio).candidate.actions[0, 0] for t in ticks])
    return np.diff(actions), actions


def from_chunk_to_chunk():
    values = iter((0.5, -0.5, 0.5))
    return lambda token, proprio, ref: np.full((10, 2), next(values), dtype=np.float32)


def test_the_velocity_does_not_jump_where_a_chunk_follows_another():
    c = commander(policy=from_chunk_to_chunk(), observed=(95, 105), join_ticks=4)
    change, actions = jumps(c, range(100, 120))
    assert np.allclose(actions[4:10], 0.5) and np.allclose(actions[14:], -0.5)
    assert np.allclose(change[9:14], [0.0, -0.25, -0.25, -0.25, -0.25], atol=1e-6)  # the seam and the ramp


def test_without_joining_it_does():
    change, _ = jumps(commander(policy=from_chunk_to_chunk(), observed=(95, 105)), range(100, 120))
    assert change[9] == -1.0


def test_the_actor_begins_with_what_the_reference_was_doing():
    c = commander(Phase.APPROACH, policy=constant(0.5), join_ticks=4)
    executed(c, range(90, 110))
    c.set_phase(Phase.CRITICAL, 0, 1)
    last, gap = 0.109, 0.5 - 0.109
    assert np.allclose(jumps(c, range(110, 116))[1], [last + gap * k / 4 for k in (0, 1, 2, 3, 4, 4)], atol=1e-5)


def test_after_a_release_it_begins_with_the_humans_last_action():
    c = commander(policy=constant(0.5), join_ticks=4)
    c.set_human(np.full(2, -0.5))
    executed(c, range(100, 103))
    c.set_human(None)
    command = c.step(103, PROPRIO)
    assert command.candidate.source is Source.ACTOR
    assert np.allclose(command.planned.actions[:, 0], [-0.5, -0.25, 0.0, 0.25] + [0.5] * 6)


def bold(token, proprio, ref):
    return np.tile(np.float32([[0.5], [-0.5]]), (5, 2))


def test_a_bold_actor_is_not_smoothed_but_begins_where_another_ended():
    c = commander(policy=bold, observed=(95, 105), join_ticks=4)
    c.set_human(np.full(2, -0.5))
    executed(c, range(95, 100))
    c.set_human(None)
    first, second = (executed(c, range(t, t + 10)) for t in (100, 110))
    assert first == [-0.5, -1.0, 0.0, -0.75] + [0.5, -0.5] * 3 and second == [0.5, -0.5] * 5


def test_a_human_who_takes_over_has_all_say_after_two_ticks_and_no_jump_before():
    c = commander(policy=constant(0.5), join_ticks=4)
    executed(c, range(100, 106))
    c.set_human(np.full(2, -0.4))
    command = c.step(106, PROPRIO)
    assert command.candidate.source is Source.HUMAN
    assert np.allclose(command.candidate.actions[:, 0], [0.2, -0.1, -0.4])  # the lookahead goes the same way
    assert executed(c, range(107, 110)) == [-0.1, -0.4, -0.4]


def test_a_human_who_goes_on_steering_is_obeyed_at_once():
    c = commander(policy=constant(0.5), join_ticks=4)
    c.set_human(np.full(2, -0.5))
    executed(c, range(100, 105))
    c.set_human(np.full(2, 1.0))
    assert executed(c, [105]) == [1.0]


def test_a_human_who_takes_over_a_robot_at_rest_begins_from_rest():
    c = commander(Phase.IDLE, join_ticks=4)
    executed(c, range(100, 103))
    c.set_human(np.full(2, 0.9))
    assert executed(c, range(103, 107)) == [0.3, 0.6, 0.9, 0.9]


def test_a_human_who_takes_over_again_begins_with_what_was_done_in_between():
    c = commander(policy=constant(0.6), join_ticks=4)
    c.set_human(np.full(2, -0.3))
    executed(c, range(100, 104))
    c.set_human(None)
    assert executed(c, range(104, 109)) == [-0.3, -0.075, 0.15, 0.375, 0.6]
    c.set_human(np.full(2, -0.3))
    assert executed(c, range(109, 112)) == [0.3, 0.0, -0.3]


@pytest.mark.parametrize("told", [True, False], ids=["begun anew", "not told"])
def test_a_human_who_steers_while_the_clock_is_set_back_is_obeyed(told):
    c = commander(join_ticks=4)
    for tick in range(1000, 1010):
        c.set_human(np.array([0.3, 0.0]))
        c.step(tick, PROPRIO)
    if told:
        c.begin_anew()
    c.set_human(np.array([0.3, 0.0]))
    assert executed(c, [500, 501, 502]) == [0.1, 0.2, 0.3]  # from rest, as nobody knows what was before


def test_without_joining_the_human_is_obeyed_at_once():
    c = commander(policy=constant(0.5))
    executed(c, range(100, 106))
    c.set_human(np.full(2, -0.5))
    assert executed(c, [106]) == [-0.5]


def test_after_a_hold_it_begins_from_rest():
    c = commander(policy=constant(0.5), join_ticks=4)
    executed(c, range(100, 106))
    assert c.step(106, None).hold_reason == "no proprioception"
    assert executed(c, range(107, 112)) == [0.0, 0.125, 0.25, 0.25, 0.3125]  # from 110 on the grid's own


def test_a_hold_stops_at_once():
    c = commander(policy=constant(0.5), join_ticks=4)
    executed(c, range(100, 106))
    assert not c.step(106, None).candidate.actions.any()


def test_ticks_that_were_skipped_are_taken_as_the_robot_bridged_them():
    c = commander(policy=from_chunk_to_chunk(), observed=(95, 105), join_ticks=4)
    executed(c, range(100, 109))
    assert executed(c, [111]) == [0.5]  # the candidate of 108 reached to 110: the robot went on at 0.5
    c = commander(policy=from_chunk_to_chunk(), observed=(95, 105), join_ticks=4)
    executed(c, range(100, 108))
    assert executed(c, [111]) == [0.0]  # longer than that it stood


def test_what_is_planned_is_what_is_executed():
    c = commander(policy=from_chunk_to_chunk(), observed=(95, 105), join_ticks=4)
    commands = [c.step(t, PROPRIO) for t in range(100, 120)]
    for planned in (commands[0].planned, commands[10].planned):
        done = [command.candidate.actions[0] for command in commands[planned.tick - 100:planned.tick - 90]]
        assert np.array_equal(planned.actions, done)


def test_joining_for_less_than_no_time_is_refused():
    with pytest.raises(ValueError, match="join_ticks: got -1"):
        commander(join_ticks=-1)


# --- a VLA that is slower than a chunk


@pytest.mark.parametrize("policy", [None, constant(0.5)])
def test_the_old_reference_is_gone_on_with_by_its_age_up_to_a_limit(policy):
    calls = []
    c = commander(policy=policy and constant(0.5, calls), observed=(95,))
    for tick in range(100, 130):
        command = c.step(tick, PROPRIO)
        assert command.hold_reason == ""
        if policy is None:
            assert np.allclose(command.candidate.actions[0], [tick / 1000, -tick / 1000])
    assert policy is None or np.allclose([call[2][0, 0] for call in calls], [0.1, 0.11, 0.12])
    assert "no fresh" in c.step(130, PROPRIO).hold_reason  # 35 ticks old, 25 are allowed


def test_a_reference_that_comes_after_the_hold_moves_it_on():
    c = commander()
    for tick in range(100, 131):
        command = c.step(tick, PROPRIO)
    assert command.hold_reason
    c.add_reference(reference(110))
    assert executed(c, [131]) == [0.131]


# --- policies


def test_a_policy_is_swapped_only_at_a_boundary():
    c = commander(policy=constant(0.5), observed=(95, 105))
    c.step(100, PROPRIO)
    c.offer_policy(constant(-0.5), 2)
    assert executed(c, range(101, 111)) == [0.5] * 9 + [-0.5]
    assert c.policy_version == 2


def test_the_first_policy_too_waits_for_a_boundary():
    c = commander(observed=(95, 105))
    c.step(100, PROPRIO)
    c.offer_policy(constant(0.5), 1)
    assert [c.step(t, PROPRIO).candidate.source for t in (105, 109, 110)] == [Source.VLA, Source.VLA, Source.ACTOR]


def test_of_two_policies_offered_within_a_chunk_the_newer_is_used():
    c = commander(policy=constant(0.1))
    c.offer_policy(constant(0.2), 2)
    assert executed(c, [100]) == [0.2]


@pytest.mark.parametrize("bad", [np.full((10, 2), np.nan), np.zeros((9, 2))])
def test_a_policy_that_gives_no_proper_chunk_holds(bad):
    command = commander(policy=lambda token, proprio, ref: bad).step(100, PROPRIO)
    assert command.candidate.source is Source.HOLD and "policy 1 gave" in command.hold_reason


def test_without_noise_commands_are_the_policys_mean():
    one, two = (commander(policy=constant(0.5), seed=s).step(100, PROPRIO).planned.actions for s in (1, 2))
    assert np.array_equal(one, two) and (one == 0.5).all()


def test_noise_has_the_set_spread_is_seeded_and_stays_in_range():
    def planned(**kwargs):
        c = commander(policy=constant(0.0), **kwargs)
        return np.stack([c.step(t, PROPRIO).planned.actions for t in [100] * 200])

    noisy = planned(exploration_std=0.05)
    assert noisy.std() == pytest.approx(0.05, rel=0.1) and abs(noisy.mean()) < 0.005
    assert np.array_equal(noisy, planned(exploration_std=0.05))
    assert not np.array_equal(noisy, planned(exploration_std=0.05, seed=1))
    assert np.abs(planned(exploration_std=3.0)).max() == 1.0


def test_noise_can_be_switched_off_while_running():
    c = commander(policy=constant(0.5), exploration_std=0.2)
    assert not (c.step(100, PROPRIO).planned.actions == 0.5).all()
    c.exploration_std = 0.0
    assert (c.step(110, PROPRIO).planned.actions == 0.5).all()


def test_the_warm_up_reference_gets_no_noise():
    assert executed(commander(exploration_std=0.5), [100]) == [0.1]


# --- holding still


@pytest.mark.parametrize("case, why", [
    (dict(phase=Phase.IDLE), "phase is IDLE"),
    (dict(phase=Phase.ENDED), "phase is ENDED"),
    (dict(observed=()), "no fresh reference"),
    (dict(observed=(96,)), "no fresh reference"),  # younger than the latency
    (dict(observed=(74,)), "no fresh reference"),  # too old
    (dict(since=96), "no fresh reference"),  # from before the episode
])
def test_it_holds_with_a_reason(case, why):
    command = commander(**case).step(100, PROPRIO)
    assert command.hold_reason == why and command.planned is None
    assert command.candidate.source is Source.HOLD and not command.candidate.actions.any()
    assert command.candidate.tick == 100 and command.candidate.steps == 1


def test_it_holds_without_proprioception():
    assert commander().step(100, None).hold_reason == "no proprioception"


@pytest.mark.parametrize("frames", [(), (74,), (96,)])
def test_the_actor_holds_without_a_fresh_token(frames):
    c = commander(policy=constant(0.5), observed=())
    c.add_reference(reference(95))
    for tick in frames:
        c.add_state(TokenFrame(tick, np.zeros(3), np.zeros(2)))
    assert c.step(100, PROPRIO).hold_reason == "no fresh RL token"


def test_a_boundary_without_data_holds_though_the_old_chunk_would_reach_on():
    c = commander(observed=(80,))
    c.step(103, PROPRIO)  # to tick 112
    assert c.step(110, PROPRIO).hold_reason == "no fresh reference"
    assert c.step(111, PROPRIO).hold_reason == "no fresh reference"


def test_it_moves_on_as_soon_as_data_are_back():
    c = commander(observed=())
    assert c.step(100, PROPRIO).hold_reason
    c.add_reference(reference(95))
    assert c.step(102, PROPRIO).planned.tick == 102


def test_the_reference_of_the_last_episode_is_not_used_in_the_next():
    c = commander(observed=(95,))
    c.step(100, PROPRIO)
    c.set_phase(Phase.ENDED, 0, 1)
    c.set_phase(Phase.APPROACH, 101, 2)
    assert c.step(102, PROPRIO).hold_reason == "no fresh reference"


def test_chunks_carry_the_episode():
    c = commander(Phase.APPROACH)
    c.set_phase(Phase.APPROACH, 0, 7)
    assert c.step(100, PROPRIO).candidate.episode == 7


@pytest.mark.parametrize("action", [np.zeros(3), np.array([0.0, np.nan])])
def test_a_human_action_that_is_none_is_refused(action):
    with pytest.raises(ValueError, match="human action"):
        commander().set_human(action)


def test_a_reference_of_another_robot_is_refused():
    with pytest.raises(ValueError, match="3 actions a step, expected 2"):
        commander().add_reference(Chunk(90, np.zeros((50, 3)), 90, Source.VLA))


def test_the_policy_is_told_the_shorter_way_for_angles():
    calls = []
    commander(policy=constant(0.5, calls), angles=[1]).step(100, np.array([4.0, 4.0], np.float32))
    assert np.allclose(calls[0][1], [4.0, 4.0, 4.0, 4.0 - 2 * np.pi], atol=1e-6)
