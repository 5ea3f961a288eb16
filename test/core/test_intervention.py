"""A person takes over in the middle of a chunk and lets go again: what the robot does, and what is learned from it.

Commander, safety gate and recorder as in the nodes, tick by tick.
"""

import numpy as np
import pytest

from rlt_ros.core.chunks import Chunk, Source
from rlt_ros.core.commander import HUMAN_JOIN_TICKS, Commander
from rlt_ros.core.episode import Outcome, Phase
from rlt_ros.core.limits import Limits, SafetyGate
from rlt_ros.core.observations import TokenFrame
from rlt_ros.core.recorder import EpisodeRecorder

C, LATENCY, AGE, JOIN = 10, 5, 25, 4
START, CRITICAL, END = 60, 100, 140
ACTED, STEERED, REFERENCE = 0.5, -0.4, 0.2
UNLIMITED = dict.fromkeys(
    ("max_linear_velocity", "max_angular_velocity", "max_linear_acceleration", "max_angular_acceleration",
     "max_deviation", "workspace_lower", "workspace_upper", "max_force")
)  # fmt: skip


def session(human: range, action_limit: float = 1.0, join_ticks: int = JOIN, end: int = END):
    """(executed actions by tick, their sources, transitions by tick, plans by tick); STEERED is held in `human`."""
    limits = Limits(action_limit=action_limit, max_step_change=2.0, force_index=0, **UNLIMITED)
    gate = SafetyGate(limits, ("x", "y"), (0.001, 0.001), 0.02)
    commander = Commander(2, C, LATENCY, AGE, join_ticks=join_ticks)
    recorder = EpisodeRecorder(C, 2, LATENCY, AGE)
    commander.offer_policy(lambda token, proprio, reference: np.full((C, 2), ACTED, np.float32), 1)
    executed, sources, plans, found = {}, {}, {}, []
    recorder.begin(1, START, CRITICAL)
    for tick in range(START, end + 1):
        commander.set_phase(Phase.CRITICAL if tick >= CRITICAL else Phase.APPROACH, START, 1)
        if tick % C == C - LATENCY:
            reference = Chunk(tick, np.full((50, 2), REFERENCE), tick, Source.VLA)
            commander.add_reference(reference)
            recorder.add_reference(reference)
        frame = TokenFrame(tick, np.full(3, tick), np.zeros(1))
        commander.add_state(frame)
        recorder.add_token(frame)
        recorder.add_proprio(tick, np.zeros(1))
        if tick == end:
            break
        if tick in human:
            commander.set_human(np.full(2, STEERED))
        elif tick == human.stop:
            commander.set_human(None)
        now_s = tick * 0.02
        command = commander.step(tick, np.zeros(1))
        gate.hear_human(now_s)
        gate.hear_episode(True, now_s)
        assert gate.offer(command.candidate, now_s)
        done = gate.step(tick, now_s, np.zeros(1))
        executed[tick], sources[tick] = float(done.actions[0, 0]), done.source
        if command.planned is not None:
            plans[tick] = command.planned
            recorder.add_planned(command.planned)
        recorder.add_executed(tick, done.actions[0], done.source)
        found += recorder.ready()
    recorder.end(end, Outcome.SUCCESS)
    found += recorder.ready()
    return executed, sources, {t.tick: t for t in found}, plans


def test_the_robot_neither_jumps_when_a_person_takes_over_nor_at_the_release():
    executed, sources, _, _ = session(range(113, 118))
    gap = ACTED - STEERED
    change = np.abs(np.diff([executed[tick] for tick in range(110, 140)])).max()
    assert change == pytest.approx(gap / (HUMAN_JOIN_TICKS + 1), abs=1e-6)  # and not all of it at once
    assert [executed[tick] for tick in range(112, 120)] == pytest.approx(
        [ACTED, ACTED - gap / 3, ACTED - 2 * gap / 3, STEERED, STEERED, STEERED, STEERED, STEERED + gap / 4], abs=1e-6
    )
    assert [tick for tick in sources if sources[tick] is Source.HUMAN] == list(range(113, 118))


def test_the_person_has_all_say_within_two_periods():
    executed, sources, _, _ = session(range(113, 130))
    assert sources[113] is Source.HUMAN
    assert [executed[tick] for tick in range(113 + HUMAN_JOIN_TICKS, 130)] == pytest.approx([STEERED] * 15)


def test_without_joining_it_does_jump():
    executed, _, _, _ = session(range(113, 118), join_ticks=0)
    assert executed[113] - executed[112] == pytest.approx(STEERED - ACTED)


def test_a_chunk_ends_where_the_person_takes_over_and_a_new_one_begins_at_the_release():
    _, sources, _, plans = session(range(113, 116))
    assert [tick for tick in plans if tick >= CRITICAL] == [100, 110, 116, 120, 130]  # then the grid again
    assert sources[115] is Source.HUMAN and sources[116] is Source.ACTOR


def test_what_is_learned_from_is_what_the_robot_was_told():
    human = range(113, 116)
    executed, sources, transitions, plans = session(human)
    for tick in (104, 106, 112, 114, 116):  # each has the intervention elsewhere in its chunk, or not at all
        t = transitions[tick]
        ticks = range(tick, tick + C)
        assert t.action[:, 0] == pytest.approx([executed[k] for k in ticks])
        assert list(t.sources) == [sources[k] for k in ticks]
        wanted = [executed[k] if k in human else REFERENCE for k in ticks]
        assert t.reference[:, 0] == pytest.approx(wanted), "the reference is replaced on the steered ticks alone"
        assert t.next_reference[:, 0] == pytest.approx([REFERENCE] * C)
    assert transitions[112].action[1, 0] not in (STEERED, ACTED)  # the blend, as it was done
    # The state at the release has the token that the new chunk was computed from.
    assert transitions[116].token[0] == plans[116].observation_tick


def test_what_the_gate_took_away_is_learned_from_as_taken_away():
    executed, _, transitions, _ = session(range(113, 120), action_limit=0.3)
    assert executed[118] == pytest.approx(-0.3)
    t = transitions[112]
    assert t.action[6, 0] == t.reference[6, 0] == np.float32(-0.3)


def test_an_episode_that_ends_in_a_persons_hand_is_padded_with_the_reference():
    _, _, transitions, _ = session(range(131, 137), end=137)
    t = transitions[134]
    assert t.steps == 3 and t.terminated and t.rewards[2] == 1.0
    assert t.action[:3, 0] == pytest.approx([STEERED] * 3) and t.reference[:3, 0] == pytest.approx([STEERED] * 3)
    assert t.action[3:, 0] == pytest.approx([REFERENCE] * 7)
