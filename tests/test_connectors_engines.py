"""What engines do behind our back: vectors of others, second handles, lost tables, lost connections, large numbers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import running_postgres
from cbir_connectors._qdrant_client import ClientTarget
from cbir_connectors._qdrant_target import Query
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch

from cbir_faiss.backends import database
from cbir_faiss.backends.database import retried
from cbir_faiss.base import Backend
from cbir_faiss.base.filters import And, In, Not, Or, Where
from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import BackendError, ConfigError, Unsupported
from cbir_faiss.types import Codes, Floats


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


def floats(n: int, dim: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture(scope="module")
def engines(postgres: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Backend]]:
    folder = tmp_path_factory.mktemp("engines")
    opened = [
        Qdrant(path=str(folder / "edge")),
        Pgvector(path=str(postgres), table="engines"),
        Lancedb(path=str(folder / "lance")),
        Usearch(),
    ]
    yield opened
    for backend in opened:
        backend.close()


# -- vectors and payload of others


@pytest.fixture(params=["edge", "memory"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Qdrant]:
    """The vector 'image' of points 0 and 1, which hold another, 'text', and payload of somebody else."""
    both, payload = {"image": [1.0, 0.0], "text": [0.0, 1.0]}, {"price": 3, "label": "old"}
    if request.param == "edge":
        import qdrant_edge as edge

        params = edge.EdgeVectorParams(size=2, distance=edge.Distance.Euclid)
        shard = edge.EdgeShard.create(str(tmp_path), edge.EdgeConfig(vectors=dict.fromkeys(both, params)))
        shard.update(edge.UpdateOperation.upsert_points([edge.Point(key, both, payload) for key in (0, 1)]))
        shard.flush()
        shard.close()
        backend = Qdrant(path=str(tmp_path), vector="image")
    else:
        from qdrant_client import models

        backend = Qdrant(url=":memory:", vector="image")
        client: Any = backend._target.client  # type: ignore[attr-defined]
        params = models.VectorParams(size=2, distance=models.Distance.EUCLID)
        client.create_collection("cbir", vectors_config=dict.fromkeys(both, params))
        client.upsert("cbir", [models.PointStruct(id=key, vector=both, payload=payload) for key in (0, 1)])
        backend._open()
    yield backend
    backend.close()


def test_a_named_vector_is_stored_beside_the_others(shared: Qdrant) -> None:
    new = np.array([[0.5, 0.5], [2, 2]], np.float32)
    for _ in range(2):  # again is the same
        shared.upsert(np.array([1, 7]), new, [{"label": "new"}, {"label": "seven"}])
    shared.flush()
    np.testing.assert_array_equal(shared.fetch(np.array([0, 1, 7])), [[1, 0], *new])
    assert shared.payload(np.array([0, 1, 7])) == [
        {"price": 3, "label": "old"},
        {"price": 3, "label": "new"},
        {"label": "seven"},
    ]
    if shared.options.path is not None:
        (record,) = shared._target._live.retrieve([1], with_payload=False, with_vector=True)  # type: ignore[attr-defined]
    else:
        (record,) = shared._target.client.retrieve("cbir", [1], with_vectors=True)  # type: ignore[attr-defined]
    assert record.vector == {"image": [0.5, 0.5], "text": [0.0, 1.0]}


def test_a_vector_that_has_the_points_for_itself_replaces_all_payload(tmp_path: Path) -> None:
    backend = Qdrant(path=str(tmp_path), vector="image")
    backend.upsert(np.arange(1), codes(1), [{"a": 1}])
    backend.upsert(np.arange(1), codes(1), [{"b": 2}])
    assert backend.payload(np.arange(1)) == [{"b": 2}]
    backend.close()


# -- several handles


def test_a_second_handle_of_lancedb_sees_what_the_first_writes(tmp_path: Path) -> None:
    one = Lancedb(path=str(tmp_path))
    one.create(64, "binary")
    two = Lancedb(path=str(tmp_path))
    one.upsert(np.arange(5), codes(5), [{"n": n} for n in range(5)])
    assert two.count() == 5
    assert two.search(codes(1), 1, {"n": 0}).ids[0, 0] == 0
    two.upsert(np.arange(5), codes(5, seed=1))
    assert (one.count(), two.count()) == (5, 5)
    assert np.array_equal(one.fetch(np.arange(5)), codes(5, seed=1))
    one.delete(np.arange(2))
    assert [batch.ids.tolist() for batch in two.scroll()] == [[2, 3, 4]]
    one.close()
    two.close()


@pytest.mark.parametrize("engine", ["lancedb", "pgvector"])
def test_a_table_that_another_handle_makes_is_found(engine: str, tmp_path: Path, postgres: Path) -> None:
    def opened() -> Backend:
        if engine == "lancedb":
            return Lancedb(path=str(tmp_path))
        return Pgvector(path=str(postgres), table="found")

    first, *others = (opened() for _ in range(5))
    assert [other.count() for other in others] == [0] * 4
    first.claim("me")
    first.upsert(np.arange(5), codes(5))
    assert others[0].count() == 5
    assert others[1].search(codes(1), 1).ids[0, 0] == 0
    assert [batch.ids.tolist() for batch in others[2].scroll()] == [[0, 1, 2, 3, 4]]
    with pytest.raises(ConfigError, match="belongs to a collection"):
        others[3].upsert(np.arange(5), codes(5, seed=1))
    for backend in (first, *others):
        backend.close()


def test_writers_at_once_store_an_id_once(tmp_path: Path, postgres: Path) -> None:
    for opened in (
        lambda: Lancedb(path=str(tmp_path / "lance")),
        lambda: Pgvector(path=str(postgres), table="at_once"),
    ):
        first = opened()
        first.create(64, "binary")
        first.close()
        together, errors = threading.Barrier(3), list[BaseException]()

        def write(
            seed: int,
            opened: Callable[[], Backend] = opened,
            together: threading.Barrier = together,
            errors: list[BaseException] = errors,
        ) -> None:
            backend = opened()
            try:
                for turn in range(3):
                    together.wait()
                    order = np.random.default_rng(seed).permutation(100) + 50 * turn
                    backend.upsert(order, codes(100, seed=seed), [{"seed": seed}] * 100)
            except BaseException as error:
                errors.append(error)
                together.abort()
            finally:
                backend.close()

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        again = opened()
        assert again.count() == 200
        assert [i for batch in again.scroll() for i in batch.ids.tolist()] == list(range(200))
        again.close()


# -- overwrite


@pytest.mark.parametrize(
    ("options", "dim"),
    [
        ({"plugin": "pgvector", "index": "hnsw"}, 2048),
        ({"plugin": "pgvector"}, 16_001),
        ({"plugin": "pgvector", "payload_column": "id"}, 8),  # a table of two columns of one name
        ({"plugin": "qdrant"}, 65_544),
        ({"plugin": "qdrant", "payload_indexes": {"a[": "keyword"}}, 8),
    ],
)
def test_what_cannot_be_made_replaces_nothing(
    options: dict[str, Any], dim: int, postgres: Path, tmp_path: Path
) -> None:
    options = dict(options)
    if options.pop("plugin") == "pgvector":
        plugin: Any = Pgvector
        place = {"path": str(postgres), "table": f"kept{dim}"}
    else:
        plugin, place = Qdrant, {"path": str(tmp_path / "edge")}
    first = plugin(**place, metric="l2")
    first.upsert(np.arange(5), floats(5))
    first.flush()
    first.close()
    again = plugin(**place, overwrite=True, **options)
    with pytest.raises((ConfigError, BackendError)):
        again.create(dim, "float")
    assert (again.dim, again.count()) == (16, 5)
    again.close()
    again = plugin(**place)
    np.testing.assert_array_equal(again.fetch(np.arange(5)), floats(5))
    again.close()


def test_a_lance_table_is_replaced_in_one_step(tmp_path: Path) -> None:
    first = Lancedb(path=str(tmp_path), metric="l2")
    first.upsert(np.arange(5), floats(5))
    reader = Lancedb(path=str(tmp_path))
    first.close()
    again = Lancedb(path=str(tmp_path), overwrite=True)
    again.create(64, "binary")
    again.upsert(np.arange(2), codes(2))
    assert again.count() == 2
    assert reader.count() == 2  # the same table, though of other vectors
    again.close()
    reader.close()


@pytest.mark.parametrize("path", ["s3://bucket/db", "gs://bucket/db", "file:///tmp/db"])
def test_an_address_is_no_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for plugin in (Lancedb, Qdrant):
        with pytest.raises(ConfigError, match="not a folder"):
            plugin(path=path)
    assert list(tmp_path.iterdir()) == []


# -- a server that is busy, or gone for a moment

ANSWERS = {
    "count": {"count": 3},
    "points": [{"id": 1, "vector": [1.0], "payload": {"a": 1}}],
    "scroll": {"points": [{"id": 1, "vector": [1.0], "payload": {"a": 1}}], "next_page_offset": None},
    "batch": [{"points": [{"id": 1, "version": 0, "score": 0.5}]}],
}
READS: list[Callable[[ClientTarget], Any]] = [
    lambda target: target.count(),
    lambda target: target.retrieve([1], vectors=True, payload=True),
    lambda target: list(target.scroll(10)),
    lambda target: target.query([[1.0]], Query(1, exact=True), None),
]


class Busy:
    """Answers every read of Qdrant, after as many troubles as it is given."""

    def __init__(self) -> None:
        self.troubles: list[tuple[int, dict[str, str]] | None] = []
        """A status and headers, or None: the connection is dropped."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                trouble = owner.troubles.pop(0) if owner.troubles else (200, {})
                if trouble is None:
                    self.close_connection = True
                    return
                answer = {"result": ANSWERS[self.path.split("?")[0].split("/")[-1]], "status": "ok", "time": 0.0}
                content = json.dumps(answer if trouble[0] == 200 else {"status": {"error": "busy"}}).encode()
                self.send_response(trouble[0])
                for name, value in {**trouble[1], "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that are made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(database.time, "sleep", made.append)
    return made


@pytest.fixture
def busy() -> Iterator[tuple[Busy, ClientTarget]]:
    server = Busy()
    target = ClientTarget(parse_options(Qdrant.Options, {"url": server.url, "retries": 3}))
    yield server, target
    target.close()
    server.http.shutdown()
    server.http.server_close()


@pytest.mark.parametrize("read", READS, ids=["count", "retrieve", "scroll", "query"])
def test_reads_are_tried_again(
    read: Callable[[ClientTarget], Any], busy: tuple[Busy, ClientTarget], pauses: list[float]
) -> None:
    server, target = busy
    expected = read(target)
    server.troubles = [(503, {}), None, (429, {"retry-after": "7"})]
    assert read(target) == expected
    assert pauses == [0.25, 0.5, 7]
    server.troubles = [(429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}), (503, {"retry-after": "2"})]
    assert read(target) == expected
    assert pauses[3:] == [0.25, 2]
    server.troubles = [(429, {"retry-after": "3600"})]
    with pytest.raises(BackendError) as caught:  # longer than anybody waits
        read(target)
    assert "\n" not in str(caught.value)
    server.troubles = [(400, {})]
    with pytest.raises(BackendError):
        read(target)
    assert len(pauses) == 5
    server.troubles = [(500, {})] * 9
    with pytest.raises(BackendError):
        read(target)
    assert len(server.troubles) == 5
    server.troubles = []


def test_what_is_not_transient_is_not_tried_again(pauses: list[float]) -> None:
    tries: list[int] = []

    def call() -> int:
        tries.append(1)
        raise ValueError

    with pytest.raises(ValueError):
        retried(call, retries=3, transient=lambda error: not isinstance(error, ValueError))
    assert (len(tries), pauses) == (1, [])
    with pytest.raises(ValueError):
        retried(call, retries=8, transient=lambda error: True)
    assert (len(tries), pauses[-1], len(pauses)) == (10, 10, 8)


def test_a_postgres_connection_that_was_lost_is_made_again(postgres: Path, pauses: list[float]) -> None:
    admin, backend = Pgvector(path=str(postgres)), Pgvector(path=str(postgres), table="lost")
    backend.upsert(np.arange(5), codes(5))
    reads: list[Callable[[], Any]] = [
        backend.count,
        lambda: backend.search(codes(1), 1).ids.tolist(),
        lambda: backend.fetch(np.arange(5)).tolist(),
        lambda: [batch.ids.tolist() for batch in backend.scroll()],
        lambda: backend.upsert(np.arange(5), codes(5)),
    ]
    for read in reads:
        expected = read()
        admin._rows("SELECT pg_terminate_backend(%s)", [backend._rows("SELECT pg_backend_pid()")[0][0]])
        assert read() == expected
    assert pauses == [0.25] * len(reads)
    backend.close()
    admin.close()


# -- numbers


def test_integers_come_back_as_they_were_given(engines: list[Backend]) -> None:
    payload = {
        "signed": -(2**63),
        "unsigned": 2**64 - 1,
        "odd": 2**53 + 1,
        "list": [2**63, 1, True, 1.0],
        "floats": [1e23, 1e300, -1e16, 0.1],
        "text": 'not 1e+23 "1e+23"',
        "true": True,
        "one": 1,
    }
    for backend in engines:
        backend.upsert(np.arange(1), codes(1), [payload])
        backend.flush()
        assert repr(sorted(backend.payload(np.arange(1))[0].items())) == repr(sorted(payload.items()))
        (batch,) = backend.scroll()
        assert repr(sorted(batch.payload[0].items())) == repr(sorted(payload.items()))
        for key in ("signed", "unsigned", "odd"):
            assert backend.search(codes(1), 1, {key: payload[key]}).ids[0, 0] == 0
            assert backend.search(codes(1), 1, {key: int(str(payload[key])[:-1] + "7")}).ids[0, 0] == -1
        assert backend.search(codes(1), 1, {"odd": {"gt": 2**53}}).ids[0, 0] == 0
        assert backend.search(codes(1), 1, {"odd": {"lt": 2**53 + 1}}).ids[0, 0] == -1
        backend.delete(np.arange(1))


def test_integers_beyond_64_bits_are_exact_or_refused(engines: list[Backend]) -> None:
    for backend in engines:
        for value in (2**64, -(2**63) - 1, 10**40):
            payload = {"a": [{"b": value}]}
            if backend.name == "qdrant":
                with pytest.raises(Unsupported, match="id 3 holds an integer beyond 64 bits"):
                    backend.upsert(np.array([3]), codes(1), [payload])
                continue
            backend.upsert(np.array([3]), codes(1), [payload])
            assert backend.payload(np.array([3])) == [payload]


# -- filters that are large


def test_long_lists_and_deep_filters_are_answered(engines: list[Backend]) -> None:
    stored = [{"x": n, "s": str(n), "t": [n, float(n)]} for n in range(20)] + [{"x": True}, {"x": None}, {}]
    numbers, texts = In("x", tuple(range(5, 40_005))), In("s", tuple(str(n) for n in range(5, 40_005)))
    deep: Where = In("x", (3,))
    for turn in range(70):
        deep = Not(deep) if turn % 3 else And((deep, Or((In("s", ("3",)), In("t", (3,))))))
    asked: list[Where] = [
        numbers,
        texts,
        In("t", numbers.values),
        In("x", (None, True, *numbers.values)),
        Not(numbers),
        deep,
    ]
    for backend in engines:
        backend.upsert(np.arange(len(stored)), codes(len(stored)), stored)
        backend.flush()
        for where in asked:
            right = {i for i, payload in enumerate(stored) if where.matches(payload)}
            hits = backend.search(codes(1), len(stored), where)
            assert set(hits.ids[hits.ids >= 0].tolist()) == right, f"{backend}: {str(where)[:80]}"
        backend.delete(np.arange(len(stored)))


def test_lancedb_filters_by_itself_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Lancedb(path=str(tmp_path))
    backend.upsert(np.arange(9), codes(9), [{"label": "ab"[n % 2], "n": n} for n in range(9)])
    asked: list[int] = []
    matching = backend._matching
    monkeypatch.setattr(backend, "_matching", lambda where, among: asked.append(1) or matching(where, among))
    for where, found in (
        ({"label": "a"}, 5),
        ({"label": {"in": ["a", "b"]}, "n": 3.0}, 1),
        ({"not": {"or": [{"label": "a"}, {"n": 1}]}}, 3),
    ):
        assert (backend.search(codes(1), 9, where).ids >= 0).sum() == found
    assert not asked
    assert (backend.search(codes(1), 9, {"label": "a", "n": {"gt": 3}}).ids >= 0).sum() == 3
    assert asked
    backend.close()


def test_a_lance_table_of_an_earlier_version(tmp_path: Path) -> None:
    """It has no column of terms, and its ids are no key."""
    import lancedb
    import pyarrow as pa

    schema = pa.schema(
        [("id", pa.int64()), ("vector", pa.list_(pa.uint8(), 8)), ("payload", pa.string())],
        metadata={"cbir": json.dumps({"metric": "hamming"})},
    )
    lancedb.connect(tmp_path).create_table("cbir", schema=schema)
    backend = Lancedb(path=str(tmp_path))
    backend.upsert(np.arange(4), codes(4), [{"label": "ab"[n % 2]} for n in range(4)])
    assert sorted(backend.search(codes(1), 4, {"label": "a"}).ids[0].tolist()) == [-1, -1, 0, 2]
    backend.claim("me", adopt=True)
    backend.delete(np.array([0]))
    backend.close()
    again = Lancedb(path=str(tmp_path))
    again.claim("me")
    assert again.count() == 3
    again.close()
