"""PostgreSQL with pgvector: a server named by CBIR_PG_DSN, or one that this process starts in a folder (``path``).

One table: id, vector and a jsonb payload. Its metric, and the collection that owns it, are kept in the table's comment.
Codes are ``bit(n)``, compared by ``<~>``, which counts differing bits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from cbir_connectors import _pgvector_index as indexes
from cbir_connectors._keys import Keys
from cbir_connectors._pgvector_rows import copy_rows, decode, encode, parse_payload
from cbir_connectors._pgvector_server import Server, Value
from cbir_connectors._pgvector_sql import compile_where
from cbir_faiss import base
from cbir_faiss.backends.database import (
    Answer,
    Database,
    Shape,
    present,
    scoped_name,
    to_hits,
    to_range,
)
from cbir_faiss.base import Capabilities
from cbir_faiss.base.checks import directions
from cbir_faiss.base.filters import Where
from cbir_faiss.base.item_bytes import ROW_BYTES, ItemBytes
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import BackendError, ConfigError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits

_OPERATORS: dict[Metric, str] = {"l2": "<->", "ip": "<#>", "cosine": "<=>", "hamming": "<~>"}
_OPCLASSES: dict[Metric, str] = {"l2": "l2_ops", "ip": "ip_ops", "cosine": "cosine_ops", "hamming": "hamming_ops"}
_LONGEST = {"vector": 16_000, "halfvec": 16_000, "bit": 83_886_080}
_COLUMN = re.compile(r"(vector|halfvec|bit)\((\d+)\)")
_NEAREST = "SELECT {id}, {vector} {operator} %b FROM {table} WHERE {filled} AND ({test}) ORDER BY 2 LIMIT {k}"
# No index is of a sum. To forbid indexes by a setting does not do: plans that were made without it stay in use.
_EXACT = "SELECT {id}, ({vector} {operator} %b) + 0 FROM {table} WHERE {filled} AND ({test}) ORDER BY 2 LIMIT {k}"
_WITHIN = """SELECT {id}, ({vector} {operator} %b) + 0 FROM {table}
    WHERE {filled} AND ({test}) AND ({vector} {operator} %b) <= %s ORDER BY 2"""
_BY_SIGNS = """SELECT {id}, {vector} {operator} %b FROM (
    SELECT {id}, {vector} FROM {table} WHERE {filled} AND ({test})
    ORDER BY {signs} <~> binary_quantize(%b::{type}) LIMIT {candidates}) candidates ORDER BY 2 LIMIT {k}"""
_OLDEST_PGVECTOR = (0, 8)
_LONGEST_NAME, _STANDBY = 63, "standby"
_SLACK = 1 + 1e-9


def _identifier(name: str) -> str:
    if not name or "\0" in name or len(name.encode()) > _LONGEST_NAME:
        raise ValueError("a name in PostgreSQL has 1 to 63 bytes")
    if "%" in name:  # the client reads it as the place of a parameter, quoted or not
        raise ValueError("a name with a percent sign cannot be used")
    return name


Identifier = Annotated[str, AfterValidator(_identifier)]


class Pgvector(Database):
    """Exact search in SQL, or through an ``index``, which ``flush`` builds when it is not there.

    The signs that ``index: binary`` keeps say something of vectors that are centred and rotated, as codec ``rotate``
    gives them; features behind a ReLU have no negative values.

    A table that somebody else made is read as it is: without a payload column, all its other columns are the payload.
    """

    name = "pgvector"
    capabilities = Capabilities()
    name_option = "table"

    class Options(base.Options):
        path: RelativePath | None = Field(None, description="a folder: PostgreSQL is started there; None: CBIR_PG_DSN")
        table: Identifier = Field("cbir", description="name of the table")
        namespace: Identifier | None = Field(None, description="schema of the table; None: the search path")
        id_column: Identifier = Field("id", description="its key")
        vector_column: Identifier = Field("embedding", description="a vector(n), halfvec(n) or bit(n)")
        payload_column: Identifier = Field("payload", description="a jsonb; without it, all other columns")
        metric: Literal["l2", "ip", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        overwrite: bool = Field(False, description="a table that is there is dropped when it is made")
        datatype: Literal["float32", "float16"] = Field("float32", description="how floats are stored")
        index: Literal["none", "hnsw", "ivfflat", "binary"] = Field(
            "none", description="none: exact; binary: HNSW over the signs of floats, which then rank the candidates"
        )
        hnsw_m: int = Field(16, ge=2, le=100, description="links a node keeps")
        hnsw_ef_construct: int = Field(64, ge=4, le=1000, description="candidates while building, at least 2 * hnsw_m")
        lists: int | None = Field(None, ge=1, le=32_768, description="of ivfflat; None: a thousandth of the items")
        build_memory: int | None = Field(None, ge=1, description="MB for building an index; None: the server's setting")
        connections: int = Field(4, ge=1, le=1000, description="at most, made when threads ask at once")
        timeout: float = Field(60, gt=0, description="seconds a statement may take, or wait for a connection")
        retries: int = Field(4, ge=0, description="times a statement is tried again when the connection was lost")

        @model_validator(mode="after")
        def _graph(self) -> Pgvector.Options:
            if self.hnsw_ef_construct < 2 * self.hnsw_m:
                raise ValueError("hnsw_ef_construct must be at least 2 * hnsw_m")
            return self

    class SearchOptions(base.Options):
        exact: bool = Field(False, description="compare with everything although there is an index")
        ef_search: int | None = Field(None, ge=1, le=1000, description="candidates that HNSW keeps; None: 40")
        probes: int | None = Field(None, ge=1, le=32_768, description="lists of ivfflat looked into; None: their root")
        oversample: float | None = Field(None, ge=1, description="candidates of binary, times k; None: 10")

    options: Options

    # -- life

    def _connect(self) -> None:
        self._server = Server(self.options)
        self._sql: Any = need("psycopg.sql", "pgvector")
        self._keys = Keys()
        self._column, self._id_type, self._has_payload, self._ours = "", "bigint", True, True
        self._index: indexes.Index | None = None
        try:
            with self._errors("cannot be reached"), self._server.connection():
                pass
        except BackendError:
            self.close()
            raise

    def _stored(self) -> Shape | None:
        columns = {
            name: (kind, typename)
            for name, kind, typename in self._rows(
                """SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname
                FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped""",
                [self._quoted()],
            )
        }
        if not columns:
            return None
        chosen = self.options
        for option in ("id_column", "vector_column"):
            if getattr(chosen, option) not in columns:
                raise ConfigError(f"{self._place()} has no such column; it has {', '.join(columns)}", path=option)
        found = _COLUMN.fullmatch(columns[chosen.vector_column][0])
        if found is None:
            raise ConfigError(
                f"{self._place()}: '{chosen.vector_column}' is a {columns[chosen.vector_column][0]}, "
                "not a vector(n), halfvec(n) or bit(n)"
            )
        self._has_payload = columns.get(chosen.payload_column, ("", ""))[1] == "jsonb"
        self._id_type = columns[chosen.id_column][0]
        self._index = self._found_index()
        self._column = found.group(1)
        return self._shape_of(int(found.group(2)))

    def _shape_of(self, width: int) -> Shape:
        noted = self._noted().get("cbir", {})
        owner, marked = noted.get("owner"), next((m for m in _OPERATORS if m == noted.get("metric")), None)
        self._ours = marked is not None
        if self._column == "bit":
            if width % 8:
                raise Unsupported(f"{self._place()}: codes of {width} bits; only multiples of 8 can be used")
            return Shape(width, "binary", "hamming", owner)
        return Shape(width, "float", marked or self._indexed_metric() or self.options.metric or "cosine", owner)

    def _noted(self) -> dict[str, Any]:
        """The table's comment: ours is an object with the key ``cbir``; somebody else's is kept beside it."""
        ((comment,),) = self._rows("SELECT obj_description(to_regclass(%s), 'pg_class')", [self._quoted()])
        try:
            noted = json.loads(comment or "{}")
        except ValueError:
            noted = None
        if isinstance(noted, dict) and isinstance(noted.get("cbir", {}), dict):
            return noted
        return {"comment": comment}

    def _adopt(self, owner: str) -> None:
        noted = self._noted()
        comment = json.dumps({**noted, "cbir": {**noted.get("cbir", {}), "owner": owner}})
        self._execute(
            "COMMENT ON TABLE {table} IS {text}", doing="cannot be taken over", text=self._sql.Literal(comment)
        )

    def _indexed_metric(self) -> Metric | None:
        names = self._rows(
            """SELECT o.opcname FROM pg_index i JOIN pg_opclass o ON o.oid = ANY (i.indclass)
            JOIN pg_attribute t ON t.attrelid = i.indrelid AND t.attnum = ANY (i.indkey)
            WHERE i.indrelid = to_regclass(%s) AND t.attname = %s""",
            [self._quoted(), self.options.vector_column],
        )
        found = {name.split("_", 1)[1] for (name,) in names if name.startswith(("vector_", "halfvec_"))}
        return next((metric for metric, opclass in _OPCLASSES.items() if opclass in found), None)

    def _check_shape(self, shape: Shape) -> None:
        column = self._column_for(shape)
        indexes.check(self.options.index, column, shape.dim)
        if shape.dim > _LONGEST[column]:
            raise ConfigError(f"pgvector stores a {column} of at most {_LONGEST[column]}, not {shape.dim}")

    def _make(self, shape: Shape, *, instead: bool = False) -> None:
        column = self._column_for(shape)
        noted = {"metric": shape.metric, **({"owner": shape.owner} if shape.owner else {})}

        def made(connection: Any) -> None:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._check_version(connection)
                if instead:
                    connection.execute(self._format("DROP TABLE {table}"))
                connection.execute(
                    self._format(
                        "CREATE TABLE {table} ({id} bigint PRIMARY KEY, {vector} {type} NOT NULL, "
                        "{payload} jsonb NOT NULL)",
                        type=self._sql.SQL(f"{column}({int(shape.dim)})"),
                    )
                )
                comment = self._sql.Literal(json.dumps({"cbir": noted}))
                connection.execute(self._format("COMMENT ON TABLE {table} IS {text}", text=comment))

        self._run("cannot be made", made)
        self._has_payload, self._id_type, self._ours, self._index = True, "bigint", True, None
        self._column = column

    def _replace(self, shape: Shape) -> None:
        self._make(shape, instead=True)

    def _column_for(self, shape: Shape) -> str:
        return "bit" if shape.kind == "binary" else {"float32": "vector", "float16": "halfvec"}[self.options.datatype]

    def _check_version(self, connection: Any) -> None:
        found = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        ((version,),) = found.fetchall()
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
            raise BackendError(f"{self._place()}: pgvector {version} on this server is too old, 0.8 is needed")

    def _drop(self) -> None:
        self._execute("DROP TABLE {table}", doing="cannot be dropped")

    def standby(self) -> dict[str, Any]:
        return self.scoped(self.options.model_dump(mode="json", exclude_unset=True), _STANDBY)

    def swap(self) -> None:
        live, standby = self.options.table, self.standby()["table"]
        aside = scoped_name(live, "aside", _LONGEST_NAME)
        renames = [(live, aside), (standby, live), (aside, standby)] if self.dim is not None else [(standby, live)]
        # Not by _run: done twice, it would be undone.
        with self._errors("cannot be renamed"), self._server.connection() as connection, connection.transaction():
            for old, new in renames:
                connection.execute(
                    self._sql.SQL("ALTER TABLE {} RENAME TO {}").format(self._table(old), self._sql.Identifier(new))
                )

    def _place(self) -> str:
        return f"pgvector {self._server.name} table {self.options.table!r}"

    def close(self) -> None:
        self._server.close()

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        if self._keyed:
            raise Unsupported(f"{self._place()} has keys of type {self._id_type}: it can be read, not written")
        if not self._has_payload:
            raise Unsupported(f"{self._place()} has no jsonb column '{self.options.payload_column}': it is read-only")
        first, rows = int(ids.min()), copy_rows(ids, vectors, self._column, payload)
        self._run("nothing of this batch is stored", lambda connection: self._store(connection, first, rows))

    def _store(self, connection: Any, first: int, rows: bytes) -> None:
        with connection.transaction():
            self._merge(connection, first, rows)

    def _merge(self, connection: Any, first: int, rows: bytes) -> None:
        last = connection.execute(self._format("SELECT max({id}) FROM {table}")).fetchone()[0]
        if self._id_type == "bigint" and (last is None or first > last):
            try:
                with connection.transaction():
                    self._copy(connection, self._format("{table} ({id}, {vector}, {payload})"), rows)
                return
            except self._server.psycopg.errors.UniqueViolation:
                pass  # somebody else stored one of these ids since the look at max(id)
        kind = self._sql.SQL(f"{self._column}({int(cast('int', self.dim))})")
        connection.execute(
            self._format(
                "CREATE TEMP TABLE cbir_new (id bigint, vector {type}, payload jsonb) ON COMMIT DROP", type=kind
            )
        )
        self._copy(connection, self._sql.SQL("cbir_new (id, vector, payload)"), rows)
        connection.execute(
            self._format(
                "INSERT INTO {table} ({id}, {vector}, {payload}) SELECT id, vector, payload FROM cbir_new "
                "ON CONFLICT ({id}) DO UPDATE SET {vector} = excluded.{vector}, {payload} = excluded.{payload}"
            )
        )

    def _copy(self, connection: Any, into: Any, rows: bytes) -> None:
        statement = self._sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(into)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(rows)

    def _flush(self) -> None:
        kind = self.options.index
        if self.dim is None or kind == "none" or (self._index is not None and self._index.kind == kind):
            return
        if kind == "ivfflat" and not self._count():
            return  # it learns its lists from what is there
        self._execute(
            f"CREATE INDEX ON {{table}} USING {'hnsw' if kind == 'binary' else kind} ({{of}} {{ops}}) WITH ({{how}})",
            doing="cannot be indexed",
            patient=True,
            **self._index_parts(kind),
        )
        self._execute("ANALYZE {table}", doing="cannot be analysed", patient=True)
        self._index = self._found_index()

    def _index_parts(self, kind: str) -> dict[str, Any]:
        chosen, sql = self.options, self._sql
        ops = f"{self._column}_{_OPCLASSES[cast('Metric', self.metric)]}"
        of, how = self._format("{vector}"), f"m = {chosen.hnsw_m}, ef_construction = {chosen.hnsw_ef_construct}"
        if kind == "ivfflat":
            how = f"lists = {indexes.lists_for(self._count(), chosen.lists)}"
        if kind == "binary":
            ops, of = "bit_hamming_ops", self._signs()
        return {"of": of, "ops": sql.Identifier(ops), "how": sql.SQL(how)}

    def _signs(self) -> Any:
        return self._format(f"(binary_quantize({{vector}})::bit({int(cast('int', self.dim))}))")

    def _found_index(self) -> indexes.Index | None:
        rows: Any = self._rows(indexes.INDEXES, [self.options.vector_column, self._quoted()])
        return indexes.found(rows, self.options.vector_column, self.options.index)

    def _delete(self, ids: Ids) -> None:
        self._execute("DELETE FROM {table} WHERE {id} = ANY (%s)", [self._known(ids)], doing="deleting failed")

    def _count(self) -> int:
        return int(self._rows("SELECT count(*) FROM {table} WHERE {filled}")[0][0])

    def _fetch(self, ids: Ids) -> Codes:
        rows = self._rows("SELECT {id}, {vector} FROM {table} WHERE {filled} AND {id} = ANY (%b)", [self._known(ids)])
        found = {self._keys.id(key): vector for key, vector in rows}
        return self._vectors([found[i] for i in present(ids, found)])

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        rows = self._rows("SELECT {id}, {document}::text FROM {table} WHERE {id} = ANY (%b)", [self._known(ids)])
        found = {self._keys.id(key): parse_payload(text) for key, text in rows}
        return [dict(found[i]) for i in present(ids, found)]

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        return self._pages(batch_size, None)

    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        return self._pages(batch_size, after)

    def _pages(self, batch_size: int, last: Any) -> Iterator[Batch]:
        # What has no vector is read, too: it is said to be left out.
        query = "SELECT {id}, {vector}, {document}::text FROM {table} WHERE {after} ORDER BY {id} LIMIT {n}"
        behind = self._format("{id} > %s::{type}", type=self._sql.SQL(self._id_type))
        limit = self._sql.Literal(batch_size)
        while rows := (
            self._rows(query, after=self._sql.SQL("TRUE"), n=limit)
            if last is None
            else self._rows(query, [str(last)], after=behind, n=limit)
        ):
            last = rows[-1][0]
            filled = [row for row in rows if row[1] is not None]
            yield Batch(
                np.array([self._keys.id(key) for key, _, _ in filled], np.int64),
                self._vectors([vector for _, vector, _ in filled]),
                [self._keys.labelled(key, parse_payload(text)) for key, _, text in filled],
                [(str(key), "it has no vector") for key, vector, _ in rows if vector is None],
                last if isinstance(last, int) else str(last),
            )

    def _vectors(self, values: Sequence[bytes]) -> Codes:
        dim = cast("int", self.dim)
        vectors = decode(values, self._column, dim // 8 if self._column == "bit" else dim)
        return directions(vectors) if self.metric == "cosine" and not self._ours and len(vectors) else vectors

    def _known(self, ids: Ids) -> list[Any]:
        """Keys of the table's own type; an id of which no such key is known is not in the table."""
        return [key for key in map(self._keys.key, ids.tolist()) if isinstance(key, int) != self._keyed]

    @property
    def _keyed(self) -> bool:
        return self._id_type not in ("bigint", "integer", "smallint")

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        rows = self._nearest(vectors, k, where, options)
        # A scan of an index ends when it has passed over 20,000 items, or has filled its memory, whatever is found.
        few = [] if self._index is None or options.exact else [n for n, row in enumerate(rows) if len(row) < k]
        if few:
            everything = options.model_copy(update={"exact": True})
            for n, row in zip(few, self._nearest(vectors[few], k, where, everything), strict=True):
                rows[n] = row
        return to_hits(rows, k)

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        # l2's operator gives the root; what its rounding lets in is dropped here.
        bound = math.copysign(math.sqrt(abs(radius)) * _SLACK, radius) if self.metric == "l2" else radius
        rows = self._ask(_WITHIN, vectors, where, again=[bound])
        return to_range([[hit for hit in row if hit[1] <= radius] for row in rows])

    def _nearest(self, vectors: Codes, k: int, where: Where | None, options: Any) -> list[list[tuple[int, float]]]:
        limit = self._sql.Literal(k)
        if options.exact:
            return self._ask(_EXACT, vectors, where, k=limit)
        settings = indexes.settings(self._index, options, k, where is not None)
        if self._index is None or self._index.kind != "binary":
            return self._ask(_NEAREST, vectors, where, settings, k=limit)
        candidates = self._sql.Literal(indexes.candidates(k, options.oversample))
        parts = {"k": limit, "candidates": candidates, "signs": self._signs(), "type": self._sql.SQL(self._column)}
        return self._ask(_BY_SIGNS, vectors, where, settings, again=[], **parts)

    def _ask(
        self,
        query: str,
        vectors: Codes,
        where: Where | None,
        settings: Sequence[tuple[str, str]] = (),
        again: Sequence[Any] | None = None,
        **parts: Any,
    ) -> list[list[tuple[int, float]]]:
        """Per query, (id, distance), nearest first; ``again``: what follows the second mention of the vector."""
        test, bound = (
            (self._sql.SQL("TRUE"), []) if where is None else compile_where(where, self._document(), self._sql)
        )
        operator = self._sql.SQL(_OPERATORS[cast("Metric", self.metric)])
        statement = self._format(query, operator=operator, test=test, **parts)
        values = [Value(value.tobytes()) for value in encode(vectors, self._column)]
        rows = [[value, *bound, *([] if again is None else [value, *again])] for value in values]
        answers = self._run("searching failed", lambda connection: _asked(connection, statement, rows, settings))
        square = self.metric == "l2"
        # What an index finds in a relaxed order is nearly in order.
        ranked = [sorted(answer, key=itemgetter(1)) for answer in answers]
        return [[(self._keys.id(key), d * d if square else d) for key, d in answer] for answer in ranked]

    @property
    def quantizes(self) -> bool:
        return self._index is not None and self._index.kind == "binary"

    @classmethod
    def item_bytes(cls, options: Mapping[str, Any], dim: int, kind: Kind) -> ItemBytes:
        chosen = cls.Options.model_validate(dict(options))
        vector = dim / 8 if kind == "binary" else dim * (2 if chosen.datatype == "float16" else 4)
        table, index = vector + ROW_BYTES, indexes.item_bytes(chosen, vector, dim)
        return ItemBytes.of(index or table, table + index)

    def _exact_by_default(self) -> bool:
        return self._index is None and self.options.index == "none"

    def disk_bytes(self) -> int | None:
        return int(self._rows("SELECT pg_total_relation_size(to_regclass(%s))", [self._quoted()])[0][0] or 0)

    # -- SQL

    def _run(self, doing: str, call: Callable[[Any], Answer]) -> Answer:
        """``call(connection)``, again where the connection was lost: whatever is done here can be done twice."""
        with self._errors(doing):
            return self._server.run(call)

    def _rows(self, query: str, parameters: Sequence[Any] = (), **parts: Any) -> list[tuple[Any, ...]]:
        def read(connection: Any) -> list[tuple[Any, ...]]:
            with connection.cursor(binary=True) as cursor:
                cursor.execute(self._format(query, **parts), parameters)
                return cast("list[tuple[Any, ...]]", cursor.fetchall())

        return self._run("reading failed", read)

    def _execute(
        self, query: str, parameters: Sequence[Any] = (), *, doing: str, patient: bool = False, **parts: Any
    ) -> None:
        def execute(connection: Any) -> None:
            with connection.transaction():
                if patient:  # building an index takes as long as it takes
                    connection.execute("SELECT set_config('statement_timeout', '0', true)")
                    if memory := self.options.build_memory:
                        connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", [f"{memory}MB"])
                connection.execute(self._format(query, **parts), parameters)

        self._run(doing, execute)

    def _format(self, query: str, **parts: Any) -> Any:
        chosen, identifier = self.options, self._sql.Identifier
        return self._sql.SQL(query).format(
            table=self._table(),
            id=identifier(chosen.id_column),
            vector=identifier(chosen.vector_column),
            payload=identifier(chosen.payload_column),
            document=self._document(),
            # A table of somebody else may have items without a vector.
            filled=self._sql.SQL("TRUE" if self._ours else "{} IS NOT NULL").format(identifier(chosen.vector_column)),
            **parts,
        )

    def _table(self, name: str | None = None) -> Any:
        spaces = [self.options.namespace] if self.options.namespace else []
        return self._sql.Identifier(*spaces, name or self.options.table)

    def _quoted(self) -> str:
        return str(self._table().as_string(None))

    def _document(self) -> Any:
        """The payload as a jsonb expression: its column, or all the other columns."""
        chosen = self.options
        if self._has_payload:
            return self._sql.Identifier(chosen.payload_column)
        return self._sql.SQL("(to_jsonb({}) - {}::text - {}::text)").format(
            self._sql.Identifier(chosen.table),
            self._sql.Literal(chosen.id_column),
            self._sql.Literal(chosen.vector_column),
        )

    def _errors(self, doing: str) -> Any:
        return self._server.errors(f"{self._place()}: {doing}")


def _asked(
    connection: Any, query: Any, rows: Sequence[Sequence[Any]], settings: Sequence[tuple[str, str]]
) -> list[list[tuple[Any, float]]]:
    """Answers of ``query`` with each row of parameters; all is sent before any answer is waited for."""
    several = settings or len(rows) > 1  # of one statement a pipeline makes three
    with connection.pipeline() if several else nullcontext(), connection.transaction() if settings else nullcontext():
        for setting in settings:  # until the transaction ends
            connection.execute("SELECT set_config(%s, %s, true)", setting)
        cursors = [connection.execute(query, row, prepare=True, binary=True) for row in rows]
        return [cursor.fetchall() for cursor in cursors]
