"""What goes wrong outside, on real sockets and real engines: one clear error, the cause chained, nothing half-done."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import running_postgres
from _qdrant_server import Fault, QdrantServer
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch

from cbir_faiss.backends import database
from cbir_faiss.base import Backend
from cbir_faiss.errors import BackendError, ConfigError, DimensionMismatch, MissingDependency, Unsupported
from cbir_faiss.types import Codes

QUOTED = """o'ne "table"; DROP TABLE x; --"""


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    """The folder of an embedded PostgreSQL that is kept running."""
    with running_postgres() as path:
        yield path


@pytest.fixture(params=["qdrant", "pgvector", "lancedb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Backend]:
    """Opens one and the same place again and again, in each engine that keeps its own storage."""
    if request.param == "qdrant":
        return lambda **options: Qdrant(path=str(tmp_path / "edge"), **options)
    if request.param == "pgvector":
        path = request.getfixturevalue("postgres")
        table = f"t{abs(hash(str(tmp_path)))}"
        return lambda **options: Pgvector(path=str(path), table=table, **options)
    return lambda **options: Lancedb(path=str(tmp_path / "lance"), **options)


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Cable:
    """A TCP port in front of a Unix socket that is cut once ``budget`` bytes went through it, and can be mended."""

    def __init__(self, target: str) -> None:
        self.target, self.budget = target, 10**9
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self.target)
            while self.budget > 0:
                for source in select.select([client, engine], [], [], 0.1)[0]:
                    block = source.recv(65536)
                    if not block:
                        return
                    self.budget -= len(block) if source is client else 0
                    if self.budget <= 0:
                        return
                    (engine if source is client else client).sendall(block)


def allow(connection: Any, postgres: Path, rule: str) -> None:
    """Put a rule before the others of pg_hba.conf, and wait until the server has read it."""
    rules = postgres / "pg_hba.conf"
    rules.write_text(f"{rule}\n{rules.read_text()}")
    before = connection.execute("SELECT pg_conf_load_time()").fetchone()
    connection.execute("SELECT pg_reload_conf()")
    while connection.execute("SELECT pg_conf_load_time()").fetchone() == before:
        time.sleep(0.01)


# -- the collection that is there is not the one that is meant


def test_what_is_stored_brings_its_shape(place: Callable[..., Backend]) -> None:
    first = place()
    first.upsert(np.arange(5), codes(5))
    first.flush()
    first.close()
    again = place()
    assert (again.dim, again.kind, again.metric, again.count()) == (64, "binary", "hamming", 5)
    with pytest.raises(DimensionMismatch, match="64 bits, got 32"):
        again.upsert(np.arange(5), codes(5, 32))
    again.close()


def test_another_metric_is_refused(place: Callable[..., Backend]) -> None:
    first = place(metric="l2")
    first.create(8, "float")
    first.close()
    with pytest.raises(ConfigError, match=r"metric: .*8 dimensions \(l2\)"):
        place(metric="ip")
    again = place()
    assert again.metric == "l2"
    again.close()


def test_create_does_not_take_what_holds_something(place: Callable[..., Backend]) -> None:
    first = place()
    first.create(64, "binary")
    first.create(64, "binary")  # empty, and as wanted
    with pytest.raises(ConfigError, match="64-bit codes"):
        first.create(32, "binary")
    assert first.dim == 64
    first.upsert(np.arange(5), codes(5))
    first.flush()
    with pytest.raises(ConfigError, match=r"already holds 5 items.*overwrite"):
        first.create(64, "binary")
    assert first.count() == 5
    first.close()
    again = place(overwrite=True)
    again.create(32, "binary")
    assert (again.dim, again.count()) == (32, 0)
    again.close()


def test_scoped_places_do_not_meet(tmp_path: Path, postgres: Path) -> None:
    long = "caltech101-" * 9 + "日本/itq 256"
    places: list[tuple[type[Backend], dict[str, Any]]] = [
        (Qdrant, {"path": str(tmp_path / "edge")}),
        (Qdrant, {"url": ":memory:"}),
        (Pgvector, {"path": str(postgres), "table": "scoped"}),
        (Lancedb, {"path": str(tmp_path / "lance")}),
    ]
    for plugin, options in places:
        one, two = plugin(**plugin.scoped(options, long + "1")), plugin(**plugin.scoped(options, long + "2"))
        one.upsert(np.arange(3), codes(3))
        two.upsert(np.arange(4), codes(4))
        assert (one.count(), two.count()) == (3, 4)
        again = plugin(**plugin.scoped(options, long + "3"))
        again.create(64, "binary")
        for backend in (one, two, again):
            backend.close()


# -- names


def test_a_table_name_with_quotes_is_only_a_name(postgres: Path) -> None:
    backend = Pgvector(path=str(postgres), table=QUOTED, id_column='i"d', payload_column="pay'load")
    backend.upsert(np.arange(3), codes(3), [{QUOTED: QUOTED}, {QUOTED: 2}, {}])
    backend.flush()
    for where in ({QUOTED: QUOTED}, {QUOTED: {"lt": 3}}):
        assert backend.search(codes(1), 3, where).ids[0, 1] == -1
    assert backend.search(codes(1), 3, {QUOTED: QUOTED}).ids[0, 0] == 0
    backend.delete(np.array([0]))
    backend.close()
    again = Pgvector(path=str(postgres), table=QUOTED, id_column='i"d', payload_column="pay'load")
    assert (again.count(), again.payload(np.array([1]))) == (2, [{QUOTED: 2}])
    again._drop()
    again.close()


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        (Qdrant, {"url": ":memory:", "collection": 'a"b'}, "collection: "),
        (Qdrant, {"url": "http://user:pass@host"}, "CBIR_QDRANT_API_KEY"),
        (Qdrant, {}, "'path'"),
        (Qdrant, {"url": ":memory:", "path": "x"}, "'path'"),
        (Qdrant, {"path": "x", "collection": "y"}, "collection"),
        (Lancedb, {"path": "x", "table": "o'ne"}, "table: "),
        (Lancedb, {}, "give one of 'path'"),
        (Pgvector, {"path": "x", "table": "t" * 64}, "63 bytes"),
        (Pgvector, {"path": "x", "table": "100%s"}, "percent"),
        (Pgvector, {"path": "x", "hnsw_m": 64, "hnsw_ef_construct": 64}, "hnsw_ef_construct"),
    ],
)
def test_options_that_cannot_be(plugin: type[Backend], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugin(**options)


# -- Qdrant


def test_no_qdrant_server() -> None:
    with pytest.raises(BackendError, match="no server answers") as caught:
        Qdrant(url=f"http://127.0.0.1:{free_port()}")
    assert caught.value.__cause__ is not None


def test_a_silent_qdrant_server() -> None:
    with silent_server() as port, pytest.raises(BackendError, match="'timeout' seconds") as caught:
        Qdrant(url=f"http://127.0.0.1:{port}", timeout=1)
    assert caught.value.__cause__ is not None


def test_a_wrong_api_key_is_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CBIR_QDRANT_API_KEY", "hunter2")
    caplog.set_level(logging.DEBUG)
    with QdrantServer(api_key="hunter2") as server:
        with pytest.warns(UserWarning, match="insecure"):
            backend = Qdrant(url=server.url)
        backend.create(64, "binary")
        assert "hunter2" not in repr(backend)
        backend.close()
        monkeypatch.setenv("CBIR_QDRANT_API_KEY", "hunter3")
        refused = r"refused the API key; .* CBIR_QDRANT_API_KEY"
        with pytest.warns(UserWarning, match="insecure"), pytest.raises(BackendError, match=refused) as caught:
            Qdrant(url=server.url)
    assert "hunter" not in str(caught.value)
    assert "hunter" not in str(caught.value.__cause__)
    assert "hunter" not in caplog.text


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_qdrant_server_dies_in_the_middle_of_a_push(parallel: int) -> None:
    data, ids = codes(100), np.arange(100)
    with QdrantServer() as server:
        backend = Qdrant(url=server.url, batch_size=10, parallel=parallel, retries=0)
        backend.create(64, "binary")
        server.lives = 4
        with pytest.raises(BackendError, match=r"storing stopped, \d+ of 100 items are known to be stored") as caught:
            backend.upsert(ids, data)
        assert caught.value.__cause__ is not None
        told = int(str(caught.value).split("storing stopped, ")[1].split(" ")[0])
        assert told <= server.engine.count("cbir").count == 40
        server.stop()
        with pytest.raises(BackendError, match="no server answers"):
            backend.count()
        server.lives = None
        server.start()
        backend.upsert(ids, data)
        backend.flush()
        assert backend.count() == 100
        assert backend.search(data[:1], 1).distances[0, 0] == 0
        backend.close()


def test_a_busy_qdrant_server_is_asked_again() -> None:
    with QdrantServer() as server:
        backend = Qdrant(url=server.url, batch_size=10, parallel=2, retries=2)
        backend.create(64, "binary")
        server.faults = [Fault(503), Fault(429)]
        backend.upsert(np.arange(30), codes(30))
        assert backend.count() == 30
        server.faults = [Fault(503)]
        backend.delete(np.arange(10))
        assert backend.count() == 20
        server.faults = [Fault(400)]
        with pytest.raises(BackendError, match="storing stopped"):
            backend.upsert(np.arange(5), codes(5))
        backend.close()


READS: dict[str, Callable[[Backend], Any]] = {
    "search": lambda backend: backend.search(codes(1), 3),
    "range": lambda backend: backend.range_search(codes(1), 3),
    "fetch": lambda backend: backend.fetch(np.arange(3)),
    "payload": lambda backend: backend.payload(np.arange(3)),
    "scroll": lambda backend: list(backend.scroll()),
    "count": lambda backend: backend.count(),
}
WRITES: dict[str, Callable[[Backend], Any]] = {
    "upsert": lambda backend: backend.upsert(np.arange(3), codes(3, seed=1)),
    "delete": lambda backend: backend.delete(np.arange(3)),
}
CALLS = {**{name: ("read", call) for name, call in READS.items()}, **{n: ("write", call) for n, call in WRITES.items()}}


@pytest.fixture
def served() -> Iterator[tuple[QdrantServer, Qdrant]]:
    """A server, and a backend of it that holds 30 codes and asks nothing twice."""
    with QdrantServer() as server:
        backend = Qdrant(url=server.url, retries=0, timeout=1)
        backend.upsert(np.arange(30), codes(30))
        backend.flush()
        yield server, backend
        server.faults = []
        assert backend.count() in (27, 30)
        backend.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "API key"), (413, "batch_size"), (429, "retry later"), (500, "internal error"), ("hang up", "disconnected")],
)
def test_whatever_qdrant_answers_is_one_line(
    status: Any, said: str, call: str, served: tuple[QdrantServer, Qdrant]
) -> None:
    server, backend = served
    kind, run = CALLS[call]
    server.faults = [Fault(status, on=kind, times=100, retry_after=1)]
    with pytest.raises(BackendError, match=said) as caught:
        run(backend)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("status", [401, 500, "hang up"])
def test_opening_what_qdrant_does_not_let_be_opened(status: Any) -> None:
    with QdrantServer() as server:
        server.faults = [Fault(status, on="read", times=100)]
        with pytest.raises(BackendError, match="cannot be opened") as caught:
            Qdrant(url=server.url, retries=0)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("call", ["search", "upsert"])
def test_qdrant_says_nothing(call: str, served: tuple[QdrantServer, Qdrant]) -> None:
    server, backend = served
    kind, run = CALLS[call]
    server.faults = [Fault("silence", on=kind, times=100)]
    with pytest.raises(BackendError, match="'timeout' seconds"):
        run(backend)


@pytest.mark.parametrize("call", CALLS)
def test_retry_after_is_waited_for(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantServer() as server:
        backend = Qdrant(url=server.url, retries=2)
        backend.upsert(np.arange(30), codes(30))
        kind, run = CALLS[call]
        server.faults = [Fault(429, on=kind, retry_after=7)]
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        run(backend)
        assert waited == [7]
        backend.close()


@pytest.mark.parametrize("call", WRITES)
def test_a_write_whose_answer_is_lost_is_repeated(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantServer() as server:
        backend = Qdrant(url=server.url, retries=2)
        backend.upsert(np.arange(30), codes(30))
        server.faults = [Fault("hang up", done=True)]
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        WRITES[call](backend)
        assert backend.count() == (30 if call == "upsert" else 27)
        backend.close()


def test_flush_waits_until_qdrant_is_green() -> None:
    with QdrantServer() as server:
        backend = Qdrant(url=server.url)
        backend.flush()  # there is no collection to wait for
        backend.upsert(np.arange(5), codes(5))
        server.statuses = ["yellow", "grey", "yellow"]
        backend.flush()
        assert server.statuses == []
        assert server.woken == 1
        server.statuses = ["red"]
        with pytest.raises(BackendError, match="is red"):
            backend.flush()
        backend.close()


def test_no_qdrant_server_by_grpc() -> None:
    port = free_port()
    with pytest.raises(BackendError, match="no server answers") as caught:
        Qdrant(url=f"http://127.0.0.1:{port}", prefer_grpc=True, grpc_port=port, timeout=5)
    assert caught.value.__cause__ is not None


def test_a_silent_qdrant_server_by_grpc() -> None:
    with silent_server() as port, pytest.raises(BackendError, match=r"no server answers|'timeout' seconds"):
        Qdrant(url=f"http://127.0.0.1:{port}", prefer_grpc=True, grpc_port=port, timeout=1)


def test_qdrant_collections_of_others_that_cannot_be_used() -> None:
    from qdrant_client import models

    with QdrantServer() as server:
        manhattan = models.VectorParams(size=8, distance=models.Distance.MANHATTAN)
        euclid = models.VectorParams(size=8, distance=models.Distance.EUCLID)
        server.engine.create_collection("taxi", vectors_config=manhattan)
        server.engine.create_collection("named", vectors_config={"image": euclid, "text": euclid})
        with pytest.raises(Unsupported, match="Manhattan"):
            Qdrant(url=server.url, collection="taxi")
        with pytest.raises(ConfigError, match="'image', 'text'"):
            Qdrant(url=server.url, collection="named")
        with pytest.raises(ConfigError, match="metric"):
            Qdrant(url=server.url, collection="named", vector="image", metric="cosine")
        backend = Qdrant(url=server.url, collection="named", vector="image")
        assert (backend.dim, backend.metric) == (8, "l2")
        backend.close()


def test_qdrant_edge_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    first = Qdrant(path=str(tmp_path / "edge"))
    first.upsert(np.arange(3), codes(3))
    with pytest.raises(BackendError, match="is it open elsewhere") as caught:
        Qdrant(path=str(tmp_path / "edge"))
    assert caught.value.__cause__ is not None
    first.close()
    with pytest.raises(BackendError, match="closed"):
        first.count()


def test_qdrant_edge_damaged(tmp_path: Path) -> None:
    first = Qdrant(path=str(tmp_path / "edge"))
    first.upsert(np.arange(3), codes(3))
    first.flush()
    first.close()
    config = tmp_path / "edge" / "edge_config.json"
    config.write_text(config.read_text()[:-20])
    with pytest.raises(BackendError) as caught:
        Qdrant(path=str(tmp_path / "edge"))
    assert caught.value.__cause__ is not None


# -- PostgreSQL


def test_no_postgres_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CBIR_PG_DSN", raising=False)
    with pytest.raises(ConfigError, match="CBIR_PG_DSN"):
        Pgvector()
    monkeypatch.setenv("CBIR_PG_DSN", f"postgresql://me:hunter2@127.0.0.1:{free_port()}/db")
    with pytest.raises(BackendError, match="no server answers") as caught:
        Pgvector()
    assert caught.value.__cause__ is not None
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)


def test_a_dsn_that_cannot_be_read_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_PG_DSN", "host=x password=hunter2 hunter2")
    with pytest.raises(ConfigError, match="not an address") as caught:
        Pgvector()
    assert caught.value.__cause__ is None
    assert "hunter2" not in str(caught.value)


def test_a_silent_postgres_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as port:
        monkeypatch.setenv("CBIR_PG_DSN", f"postgresql://me@127.0.0.1:{port}/db")
        with pytest.raises(BackendError, match="'timeout' seconds"):
            Pgvector(timeout=1)


def test_a_wrong_postgres_password(postgres: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    admin = Pgvector(path=str(postgres))
    with psycopg.connect(admin._server.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
        allow(connection, postgres, "local all guest scram-sha-256")
        host = psycopg.conninfo.conninfo_to_dict(admin._server.dsn)["host"]
        monkeypatch.setenv("CBIR_PG_DSN", f"postgresql://guest:hunter3@/postgres?host={host}")
        with pytest.raises(BackendError, match="password in CBIR_PG_DSN") as caught:
            Pgvector()
        assert "hunter" not in str(caught.value) + str(caught.value.__cause__)
        monkeypatch.setenv("CBIR_PG_DSN", f"postgresql://guest:hunter2@/postgres?host={host}")
        backend = Pgvector(table="guests")
        assert "hunter2" not in repr(backend)
        with pytest.raises(BackendError, match="permission denied"):
            backend.create(8, "float")
        backend.close()
    admin.close()


def test_a_postgres_connection_is_cut_in_the_middle_of_a_push(postgres: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    admin = Pgvector(path=str(postgres), table="cut")
    host = psycopg.conninfo.conninfo_to_dict(admin._server.dsn)["host"]
    cable = Cable(f"{host}/.s.PGSQL.5432")
    with psycopg.connect(admin._server.dsn, autocommit=True) as connection:
        allow(connection, postgres, "host all all 127.0.0.1/32 trust")
    monkeypatch.setenv("CBIR_PG_DSN", f"postgresql://postgres@127.0.0.1:{cable.port}/postgres")
    backend = Pgvector(table="cut", retries=0)
    data, ids = codes(5000, 256), np.arange(5000)
    backend.upsert(ids[:1000], data[:1000])
    cable.budget = 50_000
    with pytest.raises(BackendError, match="nothing of this batch is stored") as caught:
        backend.upsert(ids[1000:], data[1000:])
    assert caught.value.__cause__ is not None
    assert admin._rows("SELECT count(*) FROM {table}") == [(1000,)]
    cable.budget = 10**9
    backend.upsert(ids[1000:], data[1000:])  # on a new connection
    assert backend.count() == 5000
    assert backend.search(data[4321:4322], 1).ids[0, 0] == 4321
    backend.close()
    admin.close()
    cable.close()


def test_a_slow_statement_is_given_up(postgres: Path) -> None:
    import psycopg

    backend = Pgvector(path=str(postgres), table="slow", timeout=0.2)
    backend.upsert(np.arange(3), codes(3))
    with psycopg.connect(backend._server.dsn) as other:
        other.execute("LOCK TABLE slow IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(BackendError, match="'timeout' seconds") as caught:
            backend.search(codes(1), 1)
        assert caught.value.__cause__ is not None
    assert backend.search(codes(1), 1).ids[0, 0] == 0
    backend.close()


def test_somebody_else_stores_the_same_ids(postgres: Path) -> None:
    """Ids below the largest one, and ids that clash, go by way of a merge."""
    one, two = (Pgvector(path=str(postgres), table="together") for _ in range(2))
    one.upsert(np.arange(10), codes(10))
    two.close()
    two = Pgvector(path=str(postgres), table="together")
    two.upsert(np.arange(5, 15), codes(10, seed=1))
    assert one.count() == 15
    assert np.array_equal(one.fetch(np.arange(5, 15)), codes(10, seed=1))
    one.close()
    two.close()


# -- libraries


@pytest.mark.parametrize(
    ("plugin", "options", "module", "extra"),
    [
        (Qdrant, {"path": "x"}, "qdrant_edge", "qdrant"),
        (Qdrant, {"url": ":memory:"}, "qdrant_client", "qdrant"),
        (Pgvector, {"path": "x"}, "psycopg", "pgvector"),
        (Lancedb, {"path": "x"}, "lancedb", "lancedb"),
        (Usearch, {}, "usearch.index", "usearch"),
    ],
)
def test_a_client_that_is_old_or_not_there(
    plugin: type[Backend], options: dict[str, Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "version", lambda package: "0.1.9")
        with pytest.raises(MissingDependency, match=rf"0\.1\.9 is too old.*cbir-faiss\[{extra}\]"):
            plugin(**options)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependency, match=rf"cbir-faiss\[{extra}\]"):
        plugin(**options)
