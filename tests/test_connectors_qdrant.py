"""How a Qdrant server is asked: several queries in one request, several threads at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from _qdrant_server import QdrantServer
from cbir_connectors.qdrant import Qdrant

from cbir_faiss.types import Floats


def floats(n: int) -> Floats:
    return np.random.default_rng(0).standard_normal((n, 8), dtype=np.float32)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server


def opened(server: QdrantServer) -> Qdrant:
    backend = Qdrant(url=server.url, metric="l2")
    backend.upsert(np.arange(50), floats(50), [{"n": n, "name": f"{n:02}"} for n in range(50)])
    return backend


def test_several_queries_are_one_request(server: QdrantServer) -> None:
    with closing(opened(server)) as backend:
        for where, requests in ((None, ["query/batch"]), ({"n": {"lt": 9}}, ["query/batch"])):
            server.requests.clear()
            backend.search(floats(40), 3, where)
            assert [one.split("/points/")[1] for one in server.requests] == requests
        server.requests.clear()
        backend.search(floats(40), 3, {"name": {"lt": "30"}})  # what Qdrant cannot compare is over-fetched
        assert sum("query/batch" in one for one in server.requests) == 1
        server.requests.clear()
        backend.fetch(np.arange(50))
        assert len(server.requests) == 1


class Meeting(list[str]):
    """Requests, of which searches are answered only when two are there."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    def append(self, request: str) -> None:
        if "query" in request:
            self._both.wait(30)
        super().append(request)


def test_searches_of_several_threads_are_under_way_at_once(server: QdrantServer) -> None:
    """Which is what asyncio needs, too."""

    async def both(backend: Qdrant) -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(backend.search, floats(9)[i : i + 1], 1) for i in (7, 8)))

    with closing(opened(server)) as backend:
        server.requests = Meeting()
        assert [hits.ids.tolist() for hits in asyncio.run(both(backend))] == [[[7]], [[8]]]
