"""A process that dies at a chosen moment: at the n-th call that makes a change last, before it is made or just after.

In this process dying is an exception that nobody may recover from; what runs on its way out (``finally``, cleaning up)
finds that nothing it does has an effect any more, as after a power cut. In a process of its own it is a real SIGKILL.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple
from unittest import mock

from cbir_faiss.base import Backend

LASTING: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir")),
    *((Backend, name) for name in ("create", "upsert", "flush", "delete")),
)


class Died(BaseException):
    """Not an ``Exception``: whoever catches those must not live on."""


class Death(NamedTuple):
    """When to die: at which call (more than are made: not at all), before it or after it."""

    call: int
    after: bool


class Life:
    """Counts the calls, and ends at the one that ``death`` names."""

    def __init__(self, death: Death | None, die: Callable[[], None]) -> None:
        self._death, self._die = death, die
        self.calls, self.ended = 0, False

    def counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.ended:
                raise Died
            self.calls += 1
            last = self._death is not None and self.calls == self._death.call
            if last and not self._death.after:
                self._end()
            result = call(*args, **kwargs)
            if last:
                self._end()
            return result

        return step

    def _end(self) -> None:
        self.ended = True
        self._die()


def unwind() -> None:
    raise Died


def kill() -> None:
    """A real end: no cleaning up, no flushing."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def mortal(death: Death | None, die: Callable[[], None] = unwind) -> Iterator[Life]:
    """Within the block, ``death`` comes if its call does; then, in this process, the block ends without an error."""
    life = Life(death, die)
    with ExitStack() as stack:
        for owner, name in LASTING:
            stack.enter_context(mock.patch.object(owner, name, life.counting(getattr(owner, name))))
        with suppress(Died):
            yield life


def live(death: Death | None, change: Callable[..., None], *args: Any) -> None:
    """What a process of its own does: make a change, or be killed over it."""
    with mortal(death, kill):
        change(*args)
