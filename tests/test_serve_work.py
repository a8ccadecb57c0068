"""Batches of what arrives together, and the limits of waiting and of time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from cbir_faiss.errors import InputError
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem
from cbir_faiss.serve.work import Work


def run(test: Callable[[Work], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def within() -> None:
        work = Work(2, Limits(**limits))
        try:
            await test(work)
        finally:
            work.close()

    asyncio.run(within())


def test_what_arrives_while_one_is_answered_is_the_next_batch() -> None:
    go, batches = threading.Event(), []

    def answer(questions: Sequence[int]) -> list[int]:
        go.wait(20)
        batches.append(list(questions))
        return [2 * question for question in questions]

    async def test(work: Work) -> None:
        asked = [asyncio.create_task(work.together("kind", answer, number)) for number in range(9)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*asked) == [2 * number for number in range(9)]
        assert batches == [[0], [*range(1, 9)]]
        assert await work.together("kind", answer, 7) == 14

    run(test)


def test_what_is_on_its_way_is_waited_for_but_not_for_long() -> None:
    batches: list[list[int]] = []

    def answer(questions: Sequence[int]) -> list[int]:
        batches.append(list(questions))
        return list(questions)

    async def test(work: Work) -> None:
        left = 3

        async def later(number: int) -> int:
            nonlocal left
            left -= 1
            return await work.together("kind", answer, number, lambda: left > 0)

        first = asyncio.create_task(work.together("kind", answer, 0, lambda: left > 0))
        await asyncio.sleep(0)
        assert await asyncio.gather(first, *map(later, [1, 2, 3])) == [0, 1, 2, 3]
        assert batches == [[0, 1, 2, 3]]
        assert await work.together("kind", answer, 5, lambda: True) == 5, "and nobody came"

    run(test)


def test_a_batch_has_a_size_whoever_is_coming() -> None:
    go, sizes = threading.Event(), []

    def answer(questions: Sequence[int]) -> list[int]:
        go.wait(20)
        sizes.append(len(questions))
        return list(questions)

    async def test(work: Work) -> None:
        asked = [asyncio.create_task(work.together("kind", answer, number, lambda: True)) for number in range(150)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*asked) == [*range(150)]
        assert sizes == [64, 64, 22]

    run(test)


def test_as_many_batches_at_once_as_there_are_lanes() -> None:
    both, batches = threading.Barrier(2, timeout=20), []

    def answer(questions: Sequence[int]) -> list[int]:
        if len(batches) < 2:
            batches.append(list(questions))
            both.wait()  # broken unless there are two
        else:
            batches.append(list(questions))
        return list(questions)

    async def test(work: Work) -> None:
        asked = [asyncio.create_task(work.together("kind", answer, number, lanes=2)) for number in range(70)]
        assert await asyncio.gather(*asked) == [*range(70)]
        assert sorted(batches[:2]) == [[0], [1]]
        assert sorted(number for batch in batches for number in batch) == [*range(70)]
        assert await work.together("kind", answer, 7, lanes=2) == 7
        assert not work._queues

    run(test)


def test_kinds_do_not_wait_for_each_other() -> None:
    go = threading.Event()

    async def test(work: Work) -> None:
        slow = asyncio.gather(work.together("slow", lambda some: [go.wait(20) for _ in some], 0))
        await asyncio.sleep(0)
        assert await work.together("quick", lambda some: list(some), 1) == 1
        go.set()
        assert await slow

    run(test)


def test_each_is_told_its_own_error() -> None:
    def answer(questions: Sequence[int]) -> list[int]:
        if 3 in questions:
            raise InputError("not three")
        return list(questions)

    async def test(work: Work) -> None:
        asked = [asyncio.create_task(work.together("kind", answer, number)) for number in range(6)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [one for one in found if isinstance(one, int)] == [0, 1, 2, 4, 5]
        assert isinstance(found[3], InputError)

    run(test)


def test_too_many_in_line_are_sent_away() -> None:
    go = threading.Event()

    async def test(work: Work) -> None:
        asked = [asyncio.create_task(work.together("k", lambda some: [go.wait(20) for _ in some], n)) for n in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await work.together("k", lambda some: list(some), 9)
        assert refused.value.status == 429
        go.set()
        await asyncio.gather(*asked)

    run(test, waiting=3)


def test_what_takes_too_long_is_left_to_itself() -> None:
    go = threading.Event()

    async def test(work: Work) -> None:
        for _ in range(2):
            with pytest.raises(Problem) as late:
                await work.together("k", lambda some: [go.wait(20) for _ in some], 0)
            assert late.value.status == 503
        with pytest.raises(Problem):
            await work.alone(lambda: go.wait(20))
        go.set()
        assert await work.alone(lambda: 5) == 5

    run(test, seconds=0.05)


def test_one_who_goes_away_takes_nobody_along() -> None:
    go = threading.Event()

    async def test(work: Work) -> None:
        def answer(questions: Sequence[int]) -> list[int]:
            go.wait(20)
            return list(questions)

        asked = [asyncio.create_task(work.together("k", answer, number)) for number in range(5)]
        await asyncio.sleep(0)
        asked[2].cancel()
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [one for one in found if isinstance(one, int)] == [0, 1, 3, 4]

    run(test)
