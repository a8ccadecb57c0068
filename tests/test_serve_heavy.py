"""Work that takes minutes: it is done once for all who ask, keeps no search waiting, and does not keep the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from _serving import TOKEN, problem, serving, until

from cbir_faiss.collection import Collection
from cbir_faiss.collection.duplicates import expected_work
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError
from cbir_faiss.serve import api
from cbir_faiss.serve.heavy import Heavy
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem
from cbir_faiss.storage.store import Store


def run(test: Callable[[Heavy], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def within() -> None:
        heavy = Heavy(Limits(**limits))
        try:
            await test(heavy)
        finally:
            await heavy.close()

    asyncio.run(within())


class Slow:
    """A call that waits to be let go; how often it began."""

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), 0

    def __call__(self) -> int:
        self.began += 1
        assert self.go.wait(20)
        return 7


def test_who_asks_for_the_same_has_the_same_piece_of_work() -> None:
    slow = Slow()

    async def test(heavy: Heavy) -> None:
        asked = [asyncio.create_task(heavy.shared("a", slow)) for _ in range(5)]
        await asyncio.sleep(0)
        asked[0].cancel()
        slow.go.set()
        assert await asyncio.gather(*asked[1:]) == [7] * 4
        assert slow.began == 1
        assert await heavy.shared("a", lambda: 8) == 8

    run(test)


def test_one_piece_runs_after_the_other_and_an_error_is_its_own() -> None:
    running: list[str] = []

    def piece(name: str) -> str:
        running.append(name)
        assert len(running) == 1
        running.remove(name)
        if name == "b":
            raise InputError("not b")
        return name

    async def test(heavy: Heavy) -> None:
        asked = [heavy.shared(name, lambda name=name: piece(name)) for name in "abc"]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert (found[0], found[2]) == ("a", "c")
        assert isinstance(found[1], InputError)

    run(test)


def test_what_takes_long_goes_on_and_who_asks_again_joins() -> None:
    slow = Slow()

    async def test(heavy: Heavy) -> None:
        for _ in range(3):
            with pytest.raises(Problem, match="ask for the same again, which waits for what runs") as late:
                await heavy.shared("a", slow)
            assert late.value.status == 503
        again = asyncio.create_task(heavy.shared("a", slow))
        await asyncio.sleep(0)
        slow.go.set()
        assert await again == 7
        assert slow.began == 1

    run(test, seconds=0.05)


def test_what_nobody_waits_for_any_more_does_not_begin() -> None:
    slow, given_up = Slow(), Slow()

    async def test(heavy: Heavy) -> None:
        asked = [asyncio.create_task(heavy.shared("a", slow)), asyncio.create_task(heavy.shared("b", given_up))]
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.gather(asked[1], return_exceptions=True)
        slow.go.set()
        assert await asked[0] == 7
        assert await heavy.shared("c", lambda: 9) == 9
        assert given_up.began == 0

    run(test)


def test_too_much_is_sent_away_and_the_end_waits_for_nothing() -> None:
    slow = Slow()

    async def test(heavy: Heavy) -> None:
        asked = [asyncio.create_task(heavy.shared(name, slow)) for name in "abaab"]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="too much heavy work") as refused:
            await heavy.shared("c", slow)
        assert refused.value.status == 429
        await heavy.close()
        for told in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(told, Problem)
        assert not slow.go.is_set()

    run(test, heavy=2)
    slow.go.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((40, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    document = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "lsh", "bits": 32}],
        "backends": [{"name": "faiss-binary-flat"}],
    }
    Collection.build(parse_config(document), tmp_path / "x.cbir").close()
    return tmp_path / "x.cbir"


def test_searches_are_answered_beside_it_and_a_retry_has_what_came_late(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, slow = api.find_duplicates, Slow()

    def found(*given: Any) -> Any:
        slow()
        return find(*given)

    monkeypatch.setattr(api, "find_duplicates", found)
    with serving(folder, limits=Limits(seconds=1.5)) as served:
        path = "/api/v1/collections/x/duplicates"
        # As many as there are threads for searches, and more, half of them the same.
        radii = [*range(1, 8), *[0] * 8]
        with ThreadPoolExecutor(len(radii) + 1) as pool:
            asked = [pool.submit(served.client.get, path, params={"radius": 0})]
            until(lambda: slow.began)
            asked += [pool.submit(served.client.get, path, params={"radius": radius}) for radius in radii]
            assert served.search("x", ids=[0])
            for one in asked:
                assert "ask for the same again" in problem(one.result(), 503)
        assert "ask for the same again" in served.problem("GET", "collections/x/duplicates", 503, params={"radius": 0})
        slow.go.set()
        until(lambda: served.client.get(path, params={"radius": 0}).status_code == 200)
        assert served.get("collections/x/duplicates", params={"radius": 0})["total"] == 0
        assert slow.began == 1, "the others were given up before they began"


def test_a_radius_that_takes_too_long_is_refused_with_one_that_does_not(folder: Path) -> None:
    works = [expected_work(32, radius, 40) for radius in range(33)]
    assert works[0] == 0
    with serving(folder, limits=Limits(compared=works[4])) as served:
        path = "collections/x/duplicates"
        for _ in range(2):
            detail = served.problem("GET", path, 422, params={"radius": 20})
            assert "take a radius of at most 4" in detail
        assert served.problem("GET", path, 422, params={"radius": 1 << 16})
        assert served.get(path, params={"radius": 4})
    with serving(folder) as served:
        assert len(served.get(path, params={"radius": 1 << 16})["alike"][0]) == 40


def test_codes_that_do_not_spread_are_no_way_around_it(folder: Path) -> None:
    """Nearly all of them share a part, so that far more pairs are compared than of codes that spread."""
    with Store.open(folder) as store, pytest.MonkeyPatch.context() as patch:
        codes = np.random.default_rng(0).integers(0, 256, (2000, 4), np.uint8)
        codes[:, :2] = 0
        patch.setattr("cbir_faiss.collection.duplicates._codes", lambda _: (np.arange(len(codes)), codes))
        with pytest.raises(InputError, match="take a smaller radius"):
            api.find_duplicates(store, 1, 100_000)


STUCK = """
import sys, threading
from pathlib import Path
from cbir_faiss.serve import api
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.server import Server, Settings
def stuck(store, points):
    print("stuck", flush=True)
    threading.Event().wait()
api.plane = stuck
server = Server([Path(sys.argv[1])], [], Settings(port=0, token=sys.argv[2], warming=False, limits=Limits(seconds=1)))
print(server.port, flush=True)
server.run()
"""


@pytest.mark.parametrize("told", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_process_ends_though_it_runs(folder: Path, told: signal.Signals) -> None:
    words = [sys.executable, "-c", STUCK, str(folder), TOKEN]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        base = f"http://127.0.0.1:{process.stdout.readline().strip()}/api/v1"
        with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False) as client:
            problem(client.get(f"{base}/collections/x/map"), 503)
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(told)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    finally:
        process.kill()
        process.communicate()


def test_what_is_quickly_found_pushes_nothing_out_that_took_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plane = api.plane

    def counted(store: Store, points: int) -> Any:
        made.append(points)
        return plane(store, points)

    monkeypatch.setattr(api, "plane", counted)
    with serving(folder) as served:
        for number in range(20):
            served.get("collections/x/map", params={"points": 5})
            served.get("collections/x/facets", params={"where": f"a = {number}"})
    assert made == [5]
