"""The four connectors against the contract of a backend, on real engines: in this process, and servers where given."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch

from cbir_faiss.base import Backend
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case


class Shared(BackendContract):
    """One engine for the whole class, and a collection of its own for each test."""

    address: ClassVar[dict[str, Any]] = {}
    collection: ClassVar[str]

    def make(self, place: Path, case: Case) -> Backend:
        metric = {} if case[1] == "hamming" else {"metric": case[1]}
        name = f"t{zlib.crc32(str(place).encode())}"
        return self.plugin(**{**self.options, **self.address, **metric, self.collection: name})


class TestQdrantEdge(BackendContract):
    plugin = Qdrant


class TestQdrantMemory(Shared):
    plugin = Qdrant
    options: ClassVar[dict[str, Any]] = {"url": ":memory:"}
    collection = "collection"


class TestPgvector(Shared):
    plugin = Pgvector
    collection = "table"

    @pytest.fixture(scope="class", autouse=True)
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """Held open, because starting it takes a second."""
        path = tmp_path_factory.mktemp("postgres") / "data"
        type(self).address = {"path": str(path)}
        keep = Pgvector(path=str(path))
        yield
        keep.close()


class TestLancedb(Shared):
    plugin = Lancedb
    options: ClassVar[dict[str, Any]] = {"path": "unused"}
    collection = "table"

    @pytest.fixture(scope="class", autouse=True)
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).address = {"path": str(tmp_path_factory.mktemp("lancedb"))}


class TestUsearch(BackendContract):
    plugin = Usearch
    exhaustive: ClassVar[dict[str, Any]] = {"exact": True}


class TestUsearchHalf(BackendContract):
    plugin = Usearch
    options: ClassVar[dict[str, Any]] = {"datatype": "float16"}
    exhaustive: ClassVar[dict[str, Any]] = {"exact": True}
    cases: ClassVar[list[Case]] = [("float", "l2")]
    tolerance = 1e-2
