"""Kinds of work, as the kernel sees them."""

import os
import threading
from collections.abc import Callable

import pytest

from rlt_ros.ros import priority


def in_thread(function: Callable[[], object]) -> object:
    """What `function` returns in a thread that ends afterwards: nothing here must change the tests' own priority."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def state_of(kind: str) -> tuple[int, int]:
    def applied() -> tuple[int, int]:
        priority.apply(kind)
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)

    return in_thread(applied)


def test_the_background_yields_to_the_ordinary_and_that_to_control() -> None:
    assert state_of("background") == (os.SCHED_BATCH, 19)
    assert state_of("ordinary") == (os.SCHED_OTHER, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
    assert state_of("control") == (os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))


def test_real_time_priority_of_whoever_started_the_process_is_left() -> None:
    if not priority.realtime_allowed(1):
        pytest.skip("SCHED_FIFO is not allowed here; `rlt doctor` says how to allow it")

    def left() -> int:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        priority.leave_realtime()
        return os.sched_getscheduler(0)

    assert in_thread(left) == os.SCHED_OTHER


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError):
        priority.apply("urgent")


def test_what_is_refused_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    refused = priority.realtime(20, False, [99])
    assert len(refused) == 2
    assert "realtime_priority 20 was refused" in refused[0] and "rtprio 20" in refused[0]
    assert "cpus [99] were refused" in refused[1]
    assert priority.realtime(0, False, []) == []
