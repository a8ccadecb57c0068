"""sqlite-vec: floats or bits in one SQLite file, compared one by one by its virtual table."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, StringConstraints

from cbir_faiss import base
from cbir_faiss.backends.database import (
    Database,
    Shape,
    engine_errors,
    need_version,
    payload_of,
    present,
    search_filtered,
)
from cbir_faiss.base import Capabilities
from cbir_faiss.base.checks import within
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BackendError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

_DISTANCES = {"l2": "L2", "cosine": "cosine", "hamming": "hamming"}
_MOST_FOUND = 4096  # by the virtual table; for more, every row is asked for its distance
_WIDEST = 8192
_PATIENCE = 30.0  # seconds to wait for another writer
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]


class SqliteVec(Database):
    """Exact search: every vector is compared. Filters and ranges are applied here; several tables share a file."""

    name = "sqlite-vec"
    metrics = ("cosine", "l2", "hamming")
    capabilities = Capabilities(filter="emulated", range="emulated")
    exact = True
    name_option = "table"

    class Options(base.Options):
        path: RelativePath = Field(description="the SQLite file")
        table: Name = Field("cbir", description="name of the table")
        metric: Literal["l2", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        overwrite: bool = Field(False, description="a table that is there is dropped when it is made")

    options: Options

    # -- life

    def _connect(self) -> None:
        library = need_version("sqlite_vec", "sqlite-vec", "sqlite-vec", (0, 1))
        if not hasattr(sqlite3.Connection, "enable_load_extension"):
            raise Unsupported(
                "sqlite-vec: this Python's sqlite3 loads no extensions: take a Python that was built with "
                "--enable-loadable-sqlite-extensions"
            )
        self._library: Any = library
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._closed = False

    def _opened(self) -> sqlite3.Connection:
        """The file, which is made if need be."""
        with engine_errors(f"{self._place()}: cannot be opened"):
            self.options.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.options.path, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
            db.enable_load_extension(True)
            self._library.load(db)
            db.enable_load_extension(False)
        return db

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db, self._closed = None, True

    def _stored(self) -> Shape | None:
        with engine_errors(f"{self._place()}: cannot be opened"):
            # A look makes no file: its name may be mistyped.
            if not self._closed and self._db is None and not self.options.path.exists():
                return None
        if not self._run("SELECT 1 FROM sqlite_master WHERE name = ?", (self._table("shape"),)):
            return None
        ((dim, kind, metric, owner),) = self._run(f"SELECT dim, kind, metric, owner FROM {self._named('shape')}")
        return Shape(dim, cast("Kind", kind), cast("Metric", metric), owner)

    def _check_shape(self, shape: Shape) -> None:
        if shape.dim > _WIDEST:
            raise Unsupported(f"sqlite-vec: vectors have at most {_WIDEST:,} dimensions or bits, not {shape.dim:,}")

    def _make(self, shape: Shape) -> None:
        self._change("cannot be made", self._making(shape))

    def _drop(self) -> None:
        self._change("cannot be dropped", self._dropping())

    def _replace(self, shape: Shape) -> None:
        self._change("cannot be made anew", [*self._dropping(), *self._making(shape)])

    def _making(self, shape: Shape) -> list[tuple[str, Iterable[Any]]]:
        column = f"bit[{shape.dim}]" if shape.kind == "binary" else f"float[{shape.dim}]"
        measure = "" if shape.kind == "binary" else f" distance_metric={_DISTANCES[shape.metric]}"
        return [
            (f"CREATE TABLE {self._named('shape')} (dim INTEGER, kind TEXT, metric TEXT, owner TEXT)", [()]),
            (f"CREATE TABLE {self._named('payload')} (id INTEGER PRIMARY KEY, payload TEXT NOT NULL)", [()]),
            (
                f"CREATE VIRTUAL TABLE {self._named()} USING vec0(id INTEGER PRIMARY KEY, vector {column}{measure})",
                [()],
            ),
            (
                f"INSERT INTO {self._named('shape')} VALUES (?, ?, ?, ?)",
                [(shape.dim, shape.kind, shape.metric, shape.owner)],
            ),
        ]

    def _dropping(self) -> list[tuple[str, Iterable[Any]]]:
        return [(f"DROP TABLE {self._named(part)}", [()]) for part in ("", "payload", "shape")]

    def _adopt(self, owner: str) -> None:
        self._change("cannot be taken over", [(f"UPDATE {self._named('shape')} SET owner = ?", [(owner,)])])

    def _place(self) -> str:
        return f"sqlite-vec {self.options.path} table '{self.options.table}'"

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        keys = [(i,) for i in ids.tolist()]
        texts = [json.dumps(document) for document in payload_of(payload, slice(0, len(ids)))]
        given = zip(ids.tolist(), map(bytes, vectors), strict=True)
        self._change(
            "nothing of this batch is stored",
            [
                (f"DELETE FROM {self._named()} WHERE id = ?", keys),  # a virtual table replaces nothing
                (f"INSERT INTO {self._named()} (id, vector) VALUES (?, {self._vector})", given),
                (
                    f"INSERT OR REPLACE INTO {self._named('payload')} VALUES (?, ?)",
                    zip(ids.tolist(), texts, strict=True),
                ),
            ],
        )

    def _delete(self, ids: Ids) -> None:
        keys = [(i,) for i in ids.tolist()]
        parts = [(f"DELETE FROM {self._named(part)} WHERE id = ?", keys) for part in ("", "payload")]
        self._change("deleting failed", parts)

    def _count(self) -> int:
        return int(self._run(f"SELECT count(*) FROM {self._named('payload')}")[0][0])

    def _fetch(self, ids: Ids) -> Codes:
        found = self._read(ids, "vector")
        return self._vectors([found[i] for i in present(ids, found)])

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        found = self._read(ids, "payload")
        return [dict(json.loads(found[i])) for i in present(ids, found)]

    def _read(self, ids: Ids, column: Literal["vector", "payload"]) -> dict[int, Any]:
        query = f"SELECT id, {column} FROM {self._named('' if column == 'vector' else column)} WHERE id = ?"
        return dict(row for i in dict.fromkeys(ids.tolist()) for row in self._run(query, (i,)))

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        return self._scroll_after(-1, batch_size)

    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        query = f"SELECT id, payload FROM {self._named('payload')} WHERE id > ? ORDER BY id LIMIT ?"
        while rows := self._run(query, (after, batch_size)):
            after = rows[-1][0]
            ids = np.array([row[0] for row in rows], np.int64)
            vectors = self._read(ids, "vector")
            there = [row for row in rows if row[0] in vectors]  # another may have deleted some meanwhile
            yield Batch(
                np.array([row[0] for row in there], np.int64),
                self._vectors([vectors[row[0]] for row in there]),
                [json.loads(row[1]) for row in there],
            )

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        if where is not None:
            return search_filtered(self._nearest, self._payload, where, vectors, k, self._count())
        return self._nearest(vectors, k)

    def _nearest(self, vectors: Codes, k: int) -> Hits:
        query = f"SELECT id, distance FROM {self._named()} WHERE vector MATCH {self._vector} AND k = ?"
        if k > _MOST_FOUND:
            measure = f"vec_distance_{_DISTANCES[cast('Metric', self.metric)]}(vector, {self._vector})"
            query = f"SELECT id, {measure} AS distance FROM {self._named()} ORDER BY distance LIMIT ?"
        hits = missing_hits(len(vectors), k)
        for row, vector in enumerate(vectors):
            found = self._run(query, (bytes(vector), k))
            hits.ids[row, : len(found)] = [i for i, _ in found]
            hits.distances[row, : len(found)] = [distance for _, distance in found]
        if self.metric == "l2":  # sqlite-vec's is the root
            np.square(hits.distances, out=hits.distances)
        return hits

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        return within(self._search(vectors, max(1, self._count()), where, None), radius)

    @property
    def in_process(self) -> bool:
        return True

    def disk_bytes(self) -> int | None:
        """Of the whole file, with all of its tables."""
        return self.options.path.stat().st_blocks * 512 if self.options.path.is_file() else None

    # -- how

    def _table(self, part: str = "") -> str:
        return f"{self.options.table}_{part}" if part else self.options.table

    def _named(self, part: str = "") -> str:
        return f'"{self._table(part)}"'  # the option lets no quotation mark in

    @property
    def _vector(self) -> str:
        return "vec_bit(?)" if self.kind == "binary" else "vec_f32(?)"

    def _vectors(self, rows: list[bytes]) -> Codes:
        dim = cast("int", self.dim)
        if self.kind == "binary":
            return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), dim // 8)
        return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), dim)

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._closed:
            raise BackendError(f"{self._place()} is closed")
        if self._db is None:
            self._db = self._opened()
        return self._db

    def _run(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, engine_errors(f"{self._place()}: reading failed"):
            return self._open_db.execute(query, values).fetchall()

    def _change(self, doing: str, statements: Sequence[tuple[str, Iterable[Any]]]) -> None:
        """All of it, or nothing."""
        with self._lock, engine_errors(f"{self._place()}: {doing}"), self._open_db as db:
            db.execute("BEGIN IMMEDIATE")
            for query, rows in statements:
                db.executemany(query, rows)
