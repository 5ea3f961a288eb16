"""The worker on the newest item."""

import threading

from rlt_ros.core.latest import LatestWorker

PATIENCE_S = 10.0


def test_newest_is_worked_on_and_nobody_waits() -> None:
    begun, go, seen, errors = threading.Event(), threading.Event(), [], []
    all_done = threading.Event()

    def work(item: int) -> None:
        begun.set()
        assert go.wait(PATIENCE_S)
        seen.append(item)
        if item == 4:
            all_done.set()

    worker = LatestWorker("test", work, errors.append)
    worker.put(1)
    assert begun.wait(PATIENCE_S)
    for item in (2, 3, 4):
        worker.put(item)
    go.set()
    assert all_done.wait(PATIENCE_S)
    worker.close()
    worker.close()
    assert (seen, worker.dropped, errors) == ([1, 4], 2, [])


def test_preparation_is_in_the_thread_and_errors_are_told() -> None:
    told, prepared = threading.Event(), []
    error: list[BaseException] = []

    def work(_: int) -> None:
        raise ValueError("no such item")

    def on_error(found: BaseException) -> None:
        error.append(found)
        told.set()

    worker = LatestWorker("test", work, on_error, prepare=lambda: prepared.append(threading.current_thread().name))
    worker.put(1)
    assert told.wait(PATIENCE_S)
    assert prepared == ["test"] and str(error[0]) == "no such item"
