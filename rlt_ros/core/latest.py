"""A thread that works on the newest of what it is given, so that nobody waits for it."""

import threading
from collections.abc import Callable
from typing import Any


class LatestWorker:
    """Calls `work(item)` in a thread of its own; an item that is still waiting when the next comes is dropped.

    prepare: called once in that thread before the first item.
    on_error: gets what `work` or `prepare` raises; the thread ends then.
    """

    def __init__(self, name: str, work: Callable[[Any], None], on_error: Callable[[BaseException], None],
                 prepare: Callable[[], None] = lambda: None) -> None:
        self._work, self._prepare, self._on_error = work, prepare, on_error
        self._news = threading.Condition()
        self._item: Any = None
        self._closed = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Hand `item` (not None) over; never waits."""
        with self._news:
            self.dropped += self._item is not None
            self._item = item
            self._news.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """End after the item that is being worked on; one that waits is dropped. May be called twice."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._prepare()
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._closed or self._item is not None)
                    if self._closed:
                        return
                    item, self._item = self._item, None
                self._work(item)
        except Exception as error:
            self._on_error(error)
