"""Each fault of entries.py, in a running graph: what the robot did, what the operator was told, how it goes on."""

import pytest
from entries import Fault, faults
from rig import CLOCK, Rig
from table import DOCUMENT, HOW_TO, documented, table

from rlt_ros.core.chunks import Source

FAULTS = faults()


@pytest.fixture(scope="module")
def rig(ros, tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.group}: {fault.name}".replace("`", ""))
def test_fault(rig, fault: Fault):
    rig.ready(fault.steering)
    before = [told.before(rig) for told in fault.told]
    end = fault.begin(rig)
    since_tick = rig.since_tick
    try:
        tick = fault.robot.follows(rig, since_tick)
        for told, known in zip(fault.told, before, strict=True):
            rig.until(lambda told=told, known=known: told.seen(rig, known), f"what the operator is told: {told.text}")
    finally:
        end_tick = rig.tick()
        end()
    fault.robot.lasts(rig, tick, end_tick)
    fault.recovery.act(rig)
    wanted = Source.HUMAN if rig.steering else Source.ACTOR
    rig.until(lambda: rig.driven_by(wanted, since_tick=end_tick), "motion after the fault")
    unsafe, rig.unsafe = rig.unsafe, []
    assert not unsafe, unsafe
    again = next(e.tick for e in rig.executed if e.tick > end_tick and e.moving)
    seconds = [round(ticks * CLOCK.period_s, 2) for ticks in (tick - since_tick, again - end_tick)]
    print(f"{fault.robot.text}: after {seconds[0]} s; moved again after {seconds[1]} s")  # pytest -rP shows it


def test_rows_are_told_apart():
    names = [(fault.group, fault.name) for fault in FAULTS]
    assert len(set(names)) == len(names) >= 25


def test_the_document_has_the_table_that_these_tests_hold():
    assert documented(DOCUMENT.read_text(encoding="utf-8")) == table(), f"{DOCUMENT} is not up to date; {HOW_TO}"
