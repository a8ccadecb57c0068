"""Work that may take minutes, away from the threads that searches have: one piece after the other.

Who asks for the same has the same piece, also who asks again after being told that it takes long. The process ends
though one runs: its thread is a daemon, which neither the pool's end nor Python's waits for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem
from cbir_faiss.serve.work import give, in_time


@dataclass
class _Piece:
    """``call``, and who waits for what it gives."""

    call: Callable[[], Any]
    asking: list[asyncio.Future[Any]] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        return any(not answer.done() for answer in self.asking)


class Heavy:
    """Used from one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: dict[Hashable, _Piece] = {}  # as they came; the first one runs
        self._running: asyncio.Task[None] | None = None

    async def shared(self, what: Hashable, call: Callable[[], Any]) -> Any:
        """What ``call()`` gives, which whoever asks for the same ``what`` meanwhile has too.

        A call that runs goes on though nobody waits any more; one that nobody waits for does not begin. So ``call``
        keeps what it gives, for who comes later.

        Raises:
            Problem: 429 where too many others are before it, 503 where it takes too long; or what ``call`` raised.
        """
        if what not in self._pieces:
            if sum(piece.wanted for piece in self._pieces.values()) >= self._limits.heavy:
                raise Problem(429, "too much heavy work is asked for: try again in a minute", {"Retry-After": "60"})
            self._pieces[what] = _Piece(call)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pieces[what].asking.append(answer)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())
        seconds = self._limits.seconds
        again = f"takes more than {seconds:g} s: ask for the same again, which waits for what runs, until it is done"
        return await in_time(answer, seconds, Problem(503, again, {"Retry-After": "5"}))

    async def close(self) -> None:
        """What runs is left to itself."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for piece in self._pieces.values():
            for answer in piece.asking:
                give(answer, Problem(503, "the server ends: ask again when it is back"))
        self._pieces.clear()

    async def _run(self) -> None:
        """Piece after piece, until nobody waits."""
        while self._pieces:
            what, piece = next(iter(self._pieces.items()))
            found = await _beside(piece.call) if piece.wanted else None
            for answer in self._pieces.pop(what).asking:
                give(answer, found)


def _beside(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """What ``call()`` gives or raises, as a result, from a thread that nothing waits for."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def tell(outcome: Any) -> None:
        if not found.done():
            found.set_result(outcome)

    def run() -> None:
        try:
            outcome = call()
        except BaseException as error:
            outcome = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="heavy", daemon=True).start()
    return found
