"""The four connectors against the contract of a backend, on real engines: in this process, and servers where given."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from _postgres import running_postgres
from _qdrant_server import QdrantServer
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch

from cbir_faiss.backends.database import Database
from cbir_faiss.base import Backend
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case


class Shared(BackendContract):
    """One engine for the whole class, and a collection of its own for each test."""

    address: ClassVar[dict[str, Any]] = {}
    collection: ClassVar[str]
    made: ClassVar[set[str]] = set()

    def make(self, place: Path, case: Case) -> Backend:
        metric = {} if case[1] == "hamming" else {"metric": case[1]}
        name = f"cbir-test-{zlib.crc32(str(place).encode())}"
        backend = self.plugin(**{**self.options, **self.address, **metric, self.collection: name})
        self.made.add(name)
        return backend


FIRST: list[Case] = [("binary", "hamming"), ("float", "cosine")]
OTHERS: list[Case] = [("float", "l2"), ("float", "ip")]


class TestQdrantEdge(BackendContract):
    plugin = Qdrant
    cases = FIRST


@pytest.mark.slow
class TestQdrantEdgeOthers(BackendContract):
    plugin = Qdrant
    cases = OTHERS


class TestQdrantMemory(Shared):
    plugin = Qdrant
    options: ClassVar[dict[str, Any]] = {"url": ":memory:"}
    collection = "collection"
    cases = OTHERS


class TestPgvector(Shared):
    plugin = Pgvector
    collection = "table"
    cases = FIRST

    @pytest.fixture(scope="class", autouse=True)
    def server(self) -> Iterator[None]:
        with running_postgres() as path:
            type(self).address = {"path": str(path)}
            yield


@pytest.mark.slow
class TestPgvectorOthers(TestPgvector):
    cases = OTHERS


class TestLancedb(Shared):
    plugin = Lancedb
    options: ClassVar[dict[str, Any]] = {"path": "unused"}
    collection = "table"
    cases = FIRST

    @pytest.fixture(scope="class", autouse=True)
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).address = {"path": str(tmp_path_factory.mktemp("lancedb"))}


@pytest.mark.slow
class TestLancedbOthers(TestLancedb):
    cases = OTHERS


class TestUsearch(BackendContract):
    plugin = Usearch
    exhaustive: ClassVar[dict[str, Any]] = {"exact": True}


class TestUsearchHalf(BackendContract):
    plugin = Usearch
    options: ClassVar[dict[str, Any]] = {"datatype": "float16"}
    exhaustive: ClassVar[dict[str, Any]] = {"exact": True}
    cases: ClassVar[list[Case]] = [("float", "l2")]
    tolerance = 1e-2


class TestQdrantRest(Shared):
    """The client over a real socket, and Qdrant's own engine behind that."""

    plugin = Qdrant
    options: ClassVar[dict[str, Any]] = {"url": "unused", "retries": 0}
    collection = "collection"
    cases = FIRST

    @pytest.fixture(scope="class", autouse=True)
    def server(self) -> Iterator[None]:
        with QdrantServer() as server:
            type(self).address = {"url": server.url}
            yield


class Server(Shared):
    """A server that is somebody's: no collection is left on it."""

    @pytest.fixture(scope="class", autouse=True)
    def tidy(self) -> Iterator[None]:
        made = type(self).made = set()
        yield
        for name in made:
            backend = self.plugin(**{**self.options, **self.address, self.collection: name})
            if backend.dim is not None:
                assert isinstance(backend, Database)
                backend._drop()
            backend.close()


@pytest.mark.parametrize("variable", ["CBIR_QDRANT_URL", "CBIR_PG_DSN"])
def test_servers(variable: str) -> None:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no server to run the contract against")


if url := os.environ.get("CBIR_QDRANT_URL"):

    class TestQdrantServer(Server):
        plugin = Qdrant
        options: ClassVar[dict[str, Any]] = {"url": url}
        collection = "collection"

    class TestQdrantServerByGrpc(Server):
        plugin = Qdrant
        options: ClassVar[dict[str, Any]] = {"url": url, "prefer_grpc": True}
        collection = "collection"


if "CBIR_PG_DSN" in os.environ:

    class TestPostgresServer(Server):
        plugin = Pgvector
        collection = "table"
