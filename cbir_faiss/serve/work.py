"""Threads for what would keep others waiting; questions of a kind that arrive together are answered together.

A question that finds a lane of its kind idle is answered at once, and what arrives while none is, is the next batch; it
waits for others only where they are known to be on their way, and then not for long. So a batch is as large as the load
asks for, and a lone question pays nothing for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem

T = TypeVar("T")
_BATCH = 64  # questions answered by one call
_COMPANY = 8  # questions that are worth a call while more are on their way
_PATIENCE, _POLL = 0.005, 0.001  # seconds they are waited for


@dataclass
class _Queue:
    """Questions of a kind that wait, with their answers; lanes: how many batches of it are being answered."""

    waiting: list[tuple[Any, asyncio.Future[Any]]] = field(default_factory=list)
    lanes: int = 0


class Work:
    """Used from one event loop."""

    def __init__(self, threads: int, limits: Limits) -> None:
        self._pool = ThreadPoolExecutor(threads, "work")
        self._limits = limits
        self._queues: dict[Hashable, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def alone(self, call: Callable[[], T]) -> T:
        """``call()`` in a thread."""
        return await self.together(object(), lambda _: [call()], None)

    async def together(
        self,
        kind: Hashable,
        call: Callable[[list[Any]], Sequence[T]],
        question: Any,
        coming: Callable[[], bool] = lambda: False,
        lanes: int = 1,
    ) -> T:
        """The answer to ``question`` of ``call(questions)``, which has one for each of those that came together.

        coming: whether more of the kind are on their way; then they are waited for, a few milliseconds at most.
        lanes: batches of the kind that are answered at once; one where a call uses all cores by itself.

        Raises:
            Problem: 429 where too many wait, 503 where it takes too long; or what ``call`` raised for this one.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        queue = self._queues.setdefault(kind, _Queue())
        if queue.lanes < lanes:
            queue.lanes += 1
            task = loop.create_task(self._answer(kind, queue, call, coming, [(question, answer)]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(queue.waiting) >= self._limits.waiting:
            raise Problem(429, "too many requests at once: try again in a moment", {"Retry-After": "1"})
        else:
            queue.waiting.append((question, answer))
        late = Problem(503, f"took more than {self._limits.seconds:g} s: ask for less, or later")
        return await in_time(answer, self._limits.seconds, late)

    async def whole(self, call: Callable[[], T]) -> T:
        """``call()`` in a thread, however long it takes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown(cancel_futures=True)

    async def _answer(
        self,
        kind: Hashable,
        queue: _Queue,
        call: Callable[[list[Any]], Sequence[Any]],
        coming: Callable[[], bool],
        asked: list[tuple[Any, asyncio.Future[Any]]],
    ) -> None:
        """Batch after batch, until nobody waits."""
        loop, waiting = asyncio.get_running_loop(), queue.waiting
        try:
            while asked:
                if coming():
                    await _joined(asked, waiting, coming)
                asked = [(question, answer) for question, answer in asked if not answer.done()]
                found = await loop.run_in_executor(self._pool, _answers, call, [question for question, _ in asked])
                for (_, answer), one in zip(asked, found, strict=True):
                    give(answer, one)
                asked = waiting[:_BATCH]
                del waiting[:_BATCH]
        except BaseException as error:
            for _, answer in [*asked, *waiting]:
                give(answer, error)
            waiting.clear()
            if not isinstance(error, Exception):
                raise
        finally:
            queue.lanes -= 1
            if not queue.lanes:
                del self._queues[kind]


async def in_time(answer: asyncio.Future[T], seconds: float, late: Problem) -> T:
    """The answer; raises ``late`` where there is none after so many seconds."""
    timer = asyncio.get_running_loop().call_later(seconds, give, answer, late)
    try:
        return await answer
    finally:
        timer.cancel()


async def _joined(asked: list[Any], waiting: list[Any], coming: Callable[[], bool]) -> None:
    """Have those that wait answered with those that are asked, once they are enough, or nobody comes any more."""
    end = time.monotonic() + _PATIENCE
    while len(asked) + len(waiting) < _COMPANY and coming() and time.monotonic() < end:
        await asyncio.sleep(_POLL)
    more = waiting[: max(0, _BATCH - len(asked))]
    del waiting[: len(more)]
    asked += more


def _answers(call: Callable[[list[Any]], Sequence[Any]], questions: list[Any]) -> list[Any]:
    """An answer or an error for each; one that cannot be answered does not spoil the others'."""
    if not questions:
        return []
    try:
        return list(call(questions))
    except Exception as error:
        if len(questions) == 1:
            return [error]
    return [_answers(call, [question])[0] for question in questions]


def give(answer: asyncio.Future[Any], found: Any) -> None:
    """``found`` to who waits for it still; an error is raised there."""
    if answer.done():
        return
    if isinstance(found, BaseException):
        answer.set_exception(found if isinstance(found, Exception) else asyncio.CancelledError())
    else:
        answer.set_result(found)
