import numpy as np
import pytest

from rlt_ros.core import recorder
from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.episode import Outcome
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.recorder import EpisodeRecorder

C, LATENCY, START, CRITICAL = 10, 5, 50, 100


def planned(tick, value=0.5, source=Source.ACTOR, observed=None, version=3):
    return Chunk(tick, np.full((C, 2), value), tick - LATENCY if observed is None else observed, source, 1, version)


class World:
    """Streams in which every value tells where it comes from: token = frame tick, proprio = tick, reference =
    tick / 1000, executed action = -tick / 1000."""

    def __init__(self, end, **kwargs):
        self.end = end
        self.recorder = EpisodeRecorder(C, 2, LATENCY, 25, **kwargs)
        self.no_token, self.no_proprio, self.no_reference, self.no_executed = set(), set(), set(), set()
        self.human, self.plans = set(), {}
        self.source = Source.ACTOR

    def tick(self, t):
        r = self.recorder
        if t % 2 == 1 and t not in self.no_token:
            r.add_token(TokenFrame(t, np.full(3, t), np.full(2, t)))
        if t % C == C - LATENCY and t not in self.no_reference:
            actions = np.repeat((t + np.arange(50))[:, None] / 1000, 2, axis=1)
            r.add_reference(Chunk(t, actions, t, Source.VLA))
        if t not in self.no_proprio:
            r.add_proprio(t, np.full(2, t))
        if t in self.plans:
            r.add_planned(self.plans[t])
        if t not in self.no_executed:
            r.add_executed(t, np.full(2, -t / 1000), Source.HUMAN if t in self.human else self.source)

    def run(self, outcome=Outcome.SUCCESS, heard=1):
        """The whole episode; its end is heard of `heard` ticks after it happened."""
        out = []
        for t in range(START, self.end + heard + 1):
            self.tick(t)
            if t == CRITICAL:
                self.recorder.begin(1, START, CRITICAL)
            if t == self.end + heard and outcome is not Outcome.NONE:
                self.recorder.end(self.end, outcome)
            out += self.recorder.ready()
        return {transition.tick: transition for transition in out}


def test_what_moved_is_the_shorter_way_for_angles():
    """As the actor sees it. Both values grow by 1 a tick, the second is said to be an angle."""
    for stored in World(130, angles=[1]).run().values():
        moved, turned = stored.proprio[2:]
        assert moved > np.pi and turned == pytest.approx(moved - 2 * np.pi, abs=1e-5)


def run(end=130, outcome=Outcome.SUCCESS, heard=1, **changes):
    world = World(end)
    for name, value in changes.items():
        setattr(world, name, value)
    return world.run(outcome, heard), world.recorder


# --- what a transition holds


def test_a_transition_holds_what_was_seen_and_done_tick_by_tick():
    t = run()[0][104]
    assert (t.token == 99).all() and t.token_age_ticks == 5  # newest frame <= 104 - 5
    assert np.array_equal(t.proprio, [104, 104, 5, 5])
    assert np.allclose(t.reference[:, 0], np.arange(104, 114) / 1000)
    assert np.allclose(t.action[:, 0], -np.arange(104, 114) / 1000)
    assert t.steps == C and (t.sources == Source.ACTOR).all()
    assert (t.next_token == 109).all()
    assert np.array_equal(t.next_proprio, [114, 114, 5, 5])
    assert np.allclose(t.next_reference[:, 0], np.arange(114, 124) / 1000)
    assert not t.terminated and not t.truncated and not t.rewards.any() and t.episode == 1


def test_states_are_two_ticks_apart_from_the_hand_over_to_the_last_before_the_end():
    assert list(run(end=130)[0]) == list(range(100, 130, 2))
    assert list(run(end=131)[0]) == list(range(100, 131, 2))


def test_states_keep_to_the_grid_when_the_hand_over_does_not():
    world = World(130)
    for t in range(START, 131):
        world.tick(t)
    world.recorder.begin(1, START, 103)
    world.recorder.end(130, Outcome.SUCCESS)
    assert [t.tick for t in world.recorder.ready()] == list(range(104, 130, 2))


def test_sequence_numbers_count_up_without_gaps_over_episodes():
    world = World(130, first_sequence=40)
    world.no_proprio = {110}
    numbers = [t.sequence for t in world.run().values()]
    assert numbers == list(range(40, 40 + len(numbers))) and world.recorder.next_sequence == 40 + len(numbers)


# --- ends


def test_success_rewards_the_last_step_and_only_it():
    out, _ = run(end=130)
    for tick, t in out.items():
        inside = tick + C >= 130
        assert t.terminated == inside and not t.truncated
        assert t.steps == min(C, 130 - tick)
        expected = np.zeros(C)
        if inside:
            expected[130 - tick - 1] = 1.0
        assert np.array_equal(t.rewards, expected), tick


def test_a_chunk_that_ends_exactly_with_the_episode_is_terminal():
    out, _ = run(end=130)
    assert out[120].steps == C and out[120].rewards[9] == 1.0 and out[120].terminated
    assert not out[118].terminated and not out[118].rewards.any()


def test_failure_terminates_without_reward():
    out, _ = run(outcome=Outcome.FAILURE)
    assert not any(t.rewards.any() for t in out.values())
    assert [tick for tick, t in out.items() if t.terminated] == [120, 122, 124, 126, 128]


def test_a_time_out_truncates_and_bootstraps_from_the_state_at_the_end():
    out, _ = run(outcome=Outcome.TIMEOUT)
    assert not any(t.terminated or t.rewards.any() for t in out.values())
    assert [tick for tick, t in out.items() if t.truncated] == [120, 122, 124, 126, 128]
    t = out[126]
    assert t.steps == 4
    assert np.array_equal(t.next_proprio, [130, 130, 5, 5]) and (t.next_token == 125).all()
    assert np.allclose(t.next_reference[:, 0], np.arange(130, 140) / 1000)


def test_an_aborted_episode_keeps_whole_chunks_and_drops_its_tail():
    out, _ = run(outcome=Outcome.ABORTED)
    assert list(out) == list(range(100, 121, 2))
    assert not any(t.terminated or t.truncated or t.rewards.any() for t in out.values())


def test_a_tail_is_padded_with_the_planned_chunk():
    out, _ = run(end=126, plans={t: planned(t, value=t / 200) for t in range(100, 130, 10)})
    t = out[122]
    assert t.steps == 4
    assert np.allclose(t.action[:4, 0], -np.arange(122, 126) / 1000)
    assert np.allclose(t.action[4:8, 0], 0.6)  # the plan of 120 reaches to 129
    assert np.allclose(t.action[8:, 0], np.array([130, 131]) / 1000)  # then the reference
    assert (t.sources[4:] == Source.HOLD).all()


def test_a_tail_without_a_plan_is_padded_with_the_reference():
    t = run(end=126)[0][122]
    assert np.allclose(t.action[4:, 0], np.arange(126, 132) / 1000)


def test_a_tail_that_a_person_steered_is_padded_with_the_reference_not_with_the_plan_that_was_dropped():
    plans = {t: planned(t, value=t / 200) for t in range(100, 130, 10)}
    t = run(end=126, plans=plans, human={124, 125})[0][122]
    assert np.allclose(t.action[4:, 0], np.arange(126, 132) / 1000)


def test_success_within_the_first_chunk():
    out, _ = run(end=105)
    assert list(out) == [100, 102, 104]
    assert [t.steps for t in out.values()] == [5, 3, 1]
    assert all(t.terminated and t.rewards.sum() == 1.0 and t.rewards[t.steps - 1] == 1.0 for t in out.values())


# --- interventions, warm-up


def test_an_intervention_replaces_the_reference_step_by_step():
    out, _ = run(human={106, 107, 112})
    t = out[104]
    for i in range(C):
        by_human = 104 + i in {106, 107, 112}
        assert t.sources[i] == (Source.HUMAN if by_human else Source.ACTOR)
        assert np.allclose(t.reference[i], -(104 + i) / 1000 if by_human else (104 + i) / 1000, atol=1e-6), i
    assert np.allclose(t.action[:, 0], -np.arange(104, 114) / 1000)


def test_the_next_reference_stays_the_vlas():
    t = run(human={116})[0][104]
    assert np.allclose(t.next_reference[:, 0], np.arange(114, 124) / 1000)


def test_replacing_references_does_not_leak_into_other_transitions():
    out, _ = run(human={106})
    assert np.allclose(out[108].reference[:, 0], np.arange(108, 118) / 1000)
    assert np.allclose(out[96 + 4].reference[6, 0], -0.106)


def test_warm_up_is_stored_like_everything_else():
    warm, _ = run(source=Source.VLA, plans={t: planned(t, source=Source.VLA, version=0) for t in range(100, 130, 10)})
    acted, _ = run()
    assert list(warm) == list(acted)
    for tick, t in warm.items():
        assert (t.sources[:t.steps] == Source.VLA).all() and t.policy_version == 0
        for name in ("token", "proprio", "reference", "rewards", "next_token", "steps", "terminated"):
            assert np.array_equal(getattr(t, name), getattr(acted[tick], name)), name


def test_the_policy_version_is_that_of_the_chunk_under_way():
    out, _ = run(plans={100: planned(100, version=3), 110: planned(110, version=4)})
    assert [out[t].policy_version for t in (100, 108, 110, 118, 120)] == [3, 3, 4, 4, 0]


# --- train as you act


def test_mid_chunk_states_have_their_own_token():
    out, _ = run()
    assert [int(out[t].token[0]) for t in (100, 102, 104, 106)] == [95, 97, 99, 101]


def test_a_state_in_which_the_actor_decided_has_the_frame_that_it_had():
    """At 110 the frames 103 and 105 were still on their way."""
    out, _ = run(plans={110: planned(110, observed=101)})
    t = out[110]
    assert (t.token == 101).all() and t.token_age_ticks == 9
    assert np.array_equal(t.proprio, [110, 110, 9, 9])
    assert (out[100].next_token == 101).all()
    assert (out[112].token == 107).all()


def test_a_missing_token_gives_way_to_the_frame_before():
    out, _ = run(no_token={99})
    assert (out[104].token == 97).all() and out[104].token_age_ticks == 7


# --- what is missing


def test_a_state_without_a_young_enough_token_is_skipped_and_counted():
    out, recorder = run(end=160, no_token=set(range(99, 141)))
    # newest frame before the gap: 97; age limit 25 reaches to state 122, whose next state is then at 112
    assert [t for t in range(100, 160, 2) if t not in out] == list(range(114, 146, 2))
    assert recorder.skipped == {"token": 16}


def test_a_state_without_proprioception_is_skipped_and_so_is_the_one_that_leads_to_it():
    out, recorder = run(no_proprio={112})
    assert [t for t in range(100, 130, 2) if t not in out] == [102, 112]
    assert recorder.skipped == {"proprio": 2}


def test_states_without_a_reference_are_skipped():
    out, recorder = run(no_reference=set(range(START, 200)))
    assert not out and recorder.skipped == {"reference": 15}


def test_an_action_that_was_not_heard_of_spoils_the_chunks_that_have_it():
    out, recorder = run(no_executed={111})
    assert [t for t in range(100, 130, 2) if t not in out] == [102, 104, 106, 108, 110]
    assert recorder.skipped == {"executed": 5}


def test_the_reward_survives_a_lost_last_action():
    out, _ = run(end=130, no_executed={129}, heard=10)
    assert max(out) == 128 and out[128].steps == 1 and out[128].rewards[0] == 1.0 and out[128].terminated


def test_frames_and_references_from_before_the_episode_are_not_used():
    world = World(130)
    for t in range(START, 131):
        world.tick(t)
    world.recorder.begin(1, 98, 100)
    world.recorder.end(130, Outcome.SUCCESS)
    out = world.recorder.ready()
    assert min(t.tick for t in out) == 110  # the first reference of the episode is from 105
    assert all(t.tick - t.token_age_ticks >= 98 for t in out)
    assert world.recorder.skipped["token"] == 2 and world.recorder.skipped["reference"] == 3


# --- streaming


def test_transitions_stream_while_the_episode_runs():
    world = World(300)
    for t in range(START, 141):
        world.tick(t)
        if t == CRITICAL:
            world.recorder.begin(1, START, CRITICAL)
    assert [t.tick for t in world.recorder.ready()] == list(range(100, 121, 2))  # 120 + C + settle = 140
    assert world.recorder.ready() == []


@pytest.mark.parametrize("heard", [0, 1, 7, 10])
def test_a_verdict_that_comes_a_little_late_labels_the_same_transitions(heard):
    prompt, _ = run(end=130, heard=0)
    late, _ = run(end=130, heard=heard)
    assert list(late) == list(prompt)
    for tick, t in late.items():
        assert np.array_equal(t.rewards, prompt[tick].rewards) and t.terminated == prompt[tick].terminated


def test_a_verdict_that_comes_very_late_moves_the_end_behind_what_is_out():
    """Success at 130 is heard of at 150, when the transition from 128 to 138 is out."""
    out, _ = run(end=130, heard=20)
    assert not out[128].terminated and not out[128].rewards.any()
    terminal = [t for t in out.values() if t.terminated]
    assert [t.tick for t in terminal] == [130, 132, 134, 136, 138]
    assert all(t.tick + t.steps == 139 and t.rewards[t.steps - 1] == 1.0 for t in terminal)


def test_the_tail_waits_for_the_last_action_when_the_verdict_overtakes_it():
    world = World(130)
    for t in range(START, 128):
        world.tick(t)
    world.recorder.begin(1, START, CRITICAL)
    world.recorder.end(130, Outcome.SUCCESS)
    assert world.recorder.ready() == []
    for t in range(128, 131):
        world.tick(t)
    assert max(t.tick for t in world.recorder.ready()) == 128


def test_the_next_episode_does_not_wait_for_the_tail_of_the_last():
    world = World(130)
    for t in range(START, 130):
        world.tick(t)
    world.recorder.begin(1, START, CRITICAL)
    world.recorder.end(130, Outcome.SUCCESS)
    world.recorder.begin(2, 200, 220)
    out = world.recorder.ready()
    assert max(t.tick for t in out) == 128 and {t.episode for t in out} == {1}
    assert out[-1].steps == 2 and np.array_equal(out[-1].rewards[:2], [0.0, 1.0])


def test_hearing_of_the_beginning_again_changes_nothing():
    world = World(130)
    for t in range(START, 131):
        world.tick(t)
    world.recorder.begin(1, START, CRITICAL)
    first = world.recorder.ready()
    world.recorder.begin(1, START, CRITICAL)
    world.recorder.end(130, Outcome.SUCCESS)
    second = world.recorder.ready()
    assert [t.tick for t in first + second] == list(range(100, 130, 2))


def test_an_end_without_a_beginning_and_a_second_end_do_nothing():
    world = World(130)
    for t in range(START, 131):
        world.tick(t)
    world.recorder.end(130, Outcome.SUCCESS)
    assert world.recorder.ready() == []
    world.recorder.begin(1, START, CRITICAL)
    world.recorder.end(130, Outcome.SUCCESS)
    world.recorder.end(120, Outcome.FAILURE)
    assert world.recorder.ready()[-1].rewards.sum() == 1.0


def test_memory_stays_bounded_over_a_long_session():
    world = World(10**9)
    for t in range(6_000):
        world.tick(t)
        world.recorder.ready()
    assert len(world.recorder._proprio) < 2500 and len(world.recorder._executed) < 2500


def test_a_chunk_that_is_no_whole_number_of_strides_is_refused():
    with pytest.raises(ValueError, match="whole strides"):
        EpisodeRecorder(10, 3, 5, 25)


def run_uncertain(certain_at, outcome):
    """An episode that probably ended at 160, of which one is certain only later; yields each transition with the tick
    at which it was given out."""
    world = World(160)
    for t in range(START, certain_at + 20):
        world.tick(t)
        if t == CRITICAL:
            world.recorder.begin(1, START, CRITICAL)
        if t == 161:
            world.recorder.hold_back(160)
        if t == 200:  # whoever knows of the end falls silent, before one knows how it was
            world.recorder.hold_back(199)
        if t == certain_at:
            world.recorder.end(160, outcome)
        yield from ((t, transition) for transition in world.recorder.ready())


def test_an_outcome_that_is_not_certain_is_waited_for_as_long_as_it_takes():
    prompt, _ = run(end=160)
    out = list(run_uncertain(590, Outcome.SUCCESS))
    # Those whose next state is before the end need not wait for it.
    assert max(transition.tick for t, transition in out if t < 590) == 148
    assert [transition.tick for _, transition in out] == list(prompt)
    for _, transition in out:
        assert np.array_equal(transition.rewards, prompt[transition.tick].rewards)
        assert transition.steps == prompt[transition.tick].steps


def test_an_uncertain_end_that_was_an_abort_drops_the_tail():
    out = [transition for _, transition in run_uncertain(250, Outcome.ABORTED)]
    assert max(t.tick for t in out) == 150 and not any(t.rewards.any() or t.terminated for t in out)


def test_an_end_that_was_none_gives_out_what_was_held_back():
    prompt, _ = run(end=160)
    world = World(160)
    out = []
    for t in range(START, 181):
        world.tick(t)
        if t == CRITICAL:
            world.recorder.begin(1, START, CRITICAL)
        if t == 120:
            world.recorder.hold_back(120)
        out += world.recorder.ready()
        if t == 150:
            assert max(transition.tick for transition in out) == 108
            world.recorder.go_on()
        if t == 160:
            world.recorder.end(160, Outcome.SUCCESS)
    assert [transition.tick for transition in out] == list(prompt)
    assert sum(transition.rewards.sum() for transition in out) == sum(t.rewards.sum() for t in prompt.values())


def test_what_is_held_back_for_hours_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(recorder, "KEPT_TICKS", 3000)
    world = World(10**9)
    world.recorder.begin(1, START, CRITICAL)
    for t in range(9_000):
        world.tick(t)
        if t == 200:
            world.recorder.hold_back(200)
        world.recorder.ready()
    assert len(world.recorder._proprio) < 5500
