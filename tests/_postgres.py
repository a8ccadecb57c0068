"""An embedded PostgreSQL for a module or class of tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cbir_connectors.pgvector import Pgvector


@contextmanager
def running_postgres() -> Iterator[Path]:
    """The folder of a server that is kept running, because starting it takes a second; it has the extension.

    Not in pytest's own folder: PostgreSQL does not run as root but as a user of its own, whom every new pytest session
    locks out of there.
    """
    with tempfile.TemporaryDirectory(prefix="cbir-postgres-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "data")
        with closing(Pgvector(path=str(path))), administrator(path) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("ALTER SYSTEM SET fsync = off")  # a killed server loses nothing by it
            connection.execute("SELECT pg_reload_conf()")
            yield path


@contextmanager
def administrator(path: Path) -> Iterator[Any]:
    """A bare connection to the server of :func:`running_postgres` in which each statement commits itself."""
    import psycopg

    with (
        closing(Pgvector(path=str(path))) as backend,
        psycopg.connect(backend._server.dsn, autocommit=True) as connection,
    ):
        yield connection
