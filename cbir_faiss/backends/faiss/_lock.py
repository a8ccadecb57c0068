"""Many searches at once, or one change: FAISS allows the first without a lock and the second only alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """A readers–writer lock; a waiting writer goes before new readers. Not re-entrant.

    ``acquire``/``release`` are a reader's, plain methods because they stand in the path of every query.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # entered directly where nobody has to wait: half the price of a Condition
        self._changed = threading.Condition(self._mutex)
        self._readers = 0
        self._writing = False

    def acquire(self) -> None:
        with self._mutex:
            while self._writing:
                self._changed.wait()
            self._readers += 1

    def release(self) -> None:
        with self._mutex:
            self._readers -= 1
            if self._writing:
                self._changed.notify_all()

    @contextmanager
    def shared(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            while self._writing:
                self._changed.wait()
            self._writing = True
            while self._readers:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
