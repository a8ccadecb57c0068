"""Connections that calls from several threads share.

psycopg's own pool keeps threads that open connections ahead of time. Here, a process that asks one thing at a time has
one connection, and no threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_IDLE = 0  # of libpq's states of a transaction: there is none


class Pool:
    """At most ``most`` connections, each made by ``connect`` when a call finds none idle; then calls wait for one.

    patience: seconds that a call waits. full: whether an error of ``connect`` says that the server takes no more; then
    the connections that there are must do.
    """

    def __init__(
        self, connect: Callable[[], Any], *, most: int, patience: float, full: Callable[[BaseException], bool]
    ) -> None:
        self._connect, self._most, self._patience, self._full = connect, most, patience, full
        self._idle: list[Any] = []
        self._busy, self._closed = 0, False
        self._changed = threading.Condition()

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection for one call, in no transaction.

        Raises:
            TimeoutError: none came back within ``patience`` seconds.
            ConnectionError: the pool is closed.
        """
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close what is idle now, and what is busy when it comes back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _take(self) -> Any:
        most = self._most
        while True:
            idle, others = self._reserve(most)
            if idle is not None:
                return idle
            try:
                return self._connect()
            except BaseException as error:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify()
                if not others or not self._full(error):
                    raise
                most = 1  # one of the others must do, unless there are none

    def _reserve(self, most: int) -> tuple[Any, int]:
        """An idle connection, or None and leave to make one; and how many others are busy."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._idle or self._busy < most, self._patience):
                raise TimeoutError(f"its {self._busy} connections were busy for {self._patience:g} seconds")
            if self._closed:
                raise ConnectionError("it is closed")
            self._busy += 1
            return (self._idle.pop() if self._idle else None), self._busy - 1

    def _give_back(self, connection: Any) -> None:
        stale = []
        with self._changed:
            self._busy -= 1
            if connection.closed:  # what ended it, a restart of the server, say, has ended the idle ones as well
                stale, self._idle = self._idle, []
            elif self._closed or connection.info.transaction_status != _IDLE:
                stale = [connection]
            else:
                self._idle.append(connection)
            self._changed.notify()
        for one in stale:
            one.close()
