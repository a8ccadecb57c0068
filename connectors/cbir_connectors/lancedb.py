"""LanceDB: a table in a folder or an object store, searched in this process, or on LanceDB's servers.

Codes are packed bytes under its Hamming distance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, field_validator, model_validator

from cbir_connectors import _lancedb_index as indexes
from cbir_connectors import _lancedb_place as places
from cbir_connectors._foreign import as_payload
from cbir_connectors._keys import Keys
from cbir_connectors._terms import compile_where, terms_of
from cbir_faiss import base
from cbir_faiss.backends.database import (
    Database,
    Shape,
    batches,
    engine_errors,
    folder_bytes,
    need_version,
    payload_of,
    present,
    retried,
)
from cbir_faiss.base import Capabilities
from cbir_faiss.base.checks import directions, within
from cbir_faiss.base.filters import Where
from cbir_faiss.base.item_bytes import ROW_BYTES, ItemBytes
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import BackendError, ConfigError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

_DISTANCES: dict[Metric, str] = {"l2": "l2", "ip": "dot", "cosine": "cosine", "hamming": "hamming"}
_IDS_A_CALL = 5000
_PATIENCE = timedelta(minutes=119)  # for an index that LanceDB's servers build; they refuse two hours
_PREEMPTED, _RETRIES = "Retryable commit conflict", 8
_OWNER = b"cbir:owner"  # in the metadata of the column of ids
_PRIMARY_KEY = {b"lance-schema:unenforced-primary-key": b"true"}
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]


class Lancedb(Database):
    """Exact search, or an ``index``, which ``flush`` builds when it is not there; codes take ``ivf_flat``.

    A quantized index gives candidates, which the stored vectors rank. An API key for ``db://`` is read from
    CBIR_LANCEDB_API_KEY; object stores find theirs in the environment, where their own tools do.

    Its payload is one column of JSON text. Beside it stands a column of terms, by which LanceDB filters where equality,
    ``in``, ``and``, ``or`` and ``not`` are asked for. Other filters are applied here: payloads are read, and the search
    is confined to the ids that match. A table that somebody else made has all its other columns as its payload.
    """

    name = "lancedb"
    capabilities = Capabilities(filter="emulated", range="emulated")
    name_option = "table"
    longest_name = 200

    class Options(base.Options):
        path: RelativePath | None = Field(None, description="folder of the database")
        uri: str | None = Field(None, description="its address: s3://…, gs://…, az://…, or db://… of LanceDB's servers")
        region: str = Field("us-east-1", description="of LanceDB's servers")
        host: str | None = Field(None, description="address of a LanceDB server of one's own, for db://")
        table: Name = Field("cbir", description="name of the table")
        id_column: str = Field("id", description="its key")
        vector_column: str = Field("vector", description="a fixed-size list of floats, or of uint8 for codes")
        payload_column: str = Field("payload", description="JSON text; a foreign table's other columns are its payload")
        metric: Literal["l2", "ip", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        overwrite: bool = Field(False, description="a table that is there is dropped when it is made")
        datatype: Literal["float32", "float16"] = Field("float32", description="how floats are stored")
        index: Literal["none", "ivf_flat", "ivf_pq", "ivf_rq", "ivf_hnsw_sq"] = Field(
            "none", description="none: exact; others are built by flush, of product codes, RaBitQ, or int8 with HNSW"
        )
        nlist: int | None = Field(None, ge=1, description="inverted lists; None: LanceDB's choice")
        sub_vectors: int | None = Field(None, ge=1, description="bytes of a code of ivf_pq; None: dimensions / 16")
        bits: int = Field(1, ge=1, le=9, description="a dimension in ivf_rq")
        hnsw_m: int = Field(20, ge=2, le=1000, description="links a node of ivf_hnsw_sq keeps")
        hnsw_ef_construct: int = Field(300, ge=4, description="candidates while building ivf_hnsw_sq")

        @field_validator("uri")
        @classmethod
        def _usable(cls, uri: str | None) -> str | None:
            return places.check_uri(uri)

        @model_validator(mode="after")
        def _one_place(self) -> Lancedb.Options:
            if (self.path is None) == (self.uri is None):
                raise ValueError("give one of 'path' (a folder) or 'uri' (an address)")
            return self

    class SearchOptions(base.Options):
        exact: bool = Field(False, description="compare with everything although there is an index")
        nprobe: int | None = Field(None, ge=1, description="lists that a search looks into; None: LanceDB's choice")
        ef: int | None = Field(None, ge=1, description="candidates that HNSW keeps; None: 1.5 times what is asked for")
        refine_factor: int | None = Field(
            None, ge=1, description="quantized candidates that the stored vectors rank, times k; None: 10"
        )

    options: Options

    # -- life

    def _connect(self) -> None:
        lancedb = need_version("lancedb", "lancedb", "lancedb", (0, 34))
        self._arrow: Any = need("pyarrow", "lancedb")
        self._keys = Keys()
        self._table: Any = None
        self._ours, self._has_terms = True, True
        self._index: str | None = None
        with self._errors("cannot be opened"):
            self._db: Any = places.connect(lancedb, self.options)

    def _stored(self) -> Shape | None:
        with self._errors("cannot be opened"):
            if self.options.table not in places.tables(self._db):
                return None
            self._table = self._db.open_table(self.options.table)
            schema = self._table.schema
            self._index = indexes.found(self._table, self.options.vector_column)
        chosen = self.options
        for option in ("id_column", "vector_column"):
            if getattr(chosen, option) not in schema.names:
                raise ConfigError(f"{self._place()} has no such column; it has {', '.join(schema.names)}", path=option)
        marked = json.loads((schema.metadata or {}).get(b"cbir", b"null"))
        self._ours, self._has_terms = marked is not None, self._terms_column in schema.names
        owner = (schema.field(chosen.id_column).metadata or {}).get(_OWNER, b"").decode() or None
        vector = schema.field(chosen.vector_column).type
        if not self._arrow.types.is_fixed_size_list(vector):
            raise ConfigError(f"{self._place()}: '{chosen.vector_column}' is a {vector}, not a fixed-size list")
        if vector.value_type == self._arrow.uint8():
            return Shape(vector.list_size * 8, "binary", "hamming", owner)
        metric = marked["metric"] if marked else self._indexed_metric() or chosen.metric or "cosine"
        return Shape(vector.list_size, "float", metric, owner)

    def _indexed_metric(self) -> Metric | None:
        """By which somebody else's index was built: no other can be searched through it."""
        with self._errors("cannot be opened"):
            theirs = indexes.distance(self._table, self.options.vector_column)
        return next((metric for metric, distance in _DISTANCES.items() if distance == theirs), None)

    def _check_shape(self, shape: Shape) -> None:
        indexes.check(self.options, shape.kind == "binary", shape.dim)

    def _make(self, shape: Shape, mode: str = "create") -> None:
        arrow, chosen = self._arrow, self.options
        width = shape.dim // 8 if shape.kind == "binary" else shape.dim
        item = arrow.uint8() if shape.kind == "binary" else getattr(arrow, chosen.datatype)()
        schema = arrow.schema(
            [
                # As a primary key it has LanceDB notice that two writers store one id, and do the second's work again.
                arrow.field(
                    chosen.id_column,
                    arrow.int64(),
                    nullable=False,
                    metadata={**_PRIMARY_KEY, **({_OWNER: shape.owner} if shape.owner else {})},
                ),
                (chosen.vector_column, arrow.list_(item, width)),
                (chosen.payload_column, arrow.string()),
                (self._terms_column, arrow.string()),
            ],
            metadata={"cbir": json.dumps({"metric": shape.metric})},
        )
        with self._errors("cannot be made"):
            self._table = self._db.create_table(chosen.table, schema=schema, mode=mode)
        self._ours, self._index, self._has_terms = True, None, True

    def _replace(self, shape: Shape) -> None:
        self._make(shape, mode="overwrite")

    def _adopt(self, owner: str) -> None:
        if not self._ours:
            raise self._foreign()
        with self._errors("cannot be taken over"):
            self._live.update_field_metadata({"path": self.options.id_column, "metadata": {_OWNER.decode(): owner}})

    def _drop(self) -> None:
        with self._errors("cannot be dropped"):
            self._db.drop_table(self.options.table)

    def _place(self) -> str:
        return f"lancedb {self.options.path or self.options.uri} table '{self.options.table}'"

    def close(self) -> None:
        self._table = self._db = None

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        if not self._ours:
            raise self._foreign()
        arrow, schema = self._arrow, self._schema()
        documents = payload_of(payload, slice(0, len(ids)))
        values = arrow.array(vectors.astype(self._dtype, copy=False).ravel())
        columns = [
            arrow.array(ids),
            arrow.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
            arrow.array([json.dumps(document) for document in documents]),
        ]
        if self._has_terms:
            columns.append(arrow.array([terms_of(document) for document in documents]))
        rows = arrow.Table.from_arrays(columns, schema=schema)
        merge = self._live.merge_insert(self.options.id_column)
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        self._change("nothing of this batch is stored", lambda: merge.execute(rows))

    def _flush(self) -> None:
        if self.dim is None:
            return
        remote = places.is_remote(self.options)
        if self._lacks_index():
            how = indexes.config(self.options, _DISTANCES[cast("Metric", self.metric)])
            built = partial(self._live.create_index, self.options.vector_column, config=how)
            self._change("indexing failed", partial(built, wait_timeout=_PATIENCE) if remote else built)
            self._index = self.options.index
        if not remote:  # LanceDB's servers do so by themselves
            # Merges the small files that upserts leave, and indexes what was added since.
            self._change("indexing failed", lambda: self._live.optimize(cleanup_older_than=timedelta(hours=1)))

    def _lacks_index(self) -> bool:
        wanted = self.options.index
        # Of somebody else's table, an index of another kind is not replaced.
        return wanted not in ("none", self._index) and (self._ours or self._index is None) and self._count() > 0

    def _delete(self, ids: Ids) -> None:
        if not self._ours:
            raise self._foreign()
        for some in batches(len(ids), _IDS_A_CALL):
            self._change("deleting failed", partial(self._live.delete, self._among(ids[some])))

    def _count(self) -> int:
        with self._errors("counting failed"):
            return int(self._live.count_rows(self._filled))

    def _fetch(self, ids: Ids) -> Codes:
        found = dict(self._read(ids, [self.options.vector_column], lambda rows: self._vectors(rows)))
        dim = cast("int", self.dim)
        empty = np.empty((0, dim // 8), np.uint8) if self.kind == "binary" else np.empty((0, dim), np.float32)
        return np.stack([found[i] for i in present(ids, found)]) if len(ids) else empty

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        found = dict(self._read(ids, self._payload_columns, self._payloads))
        return [dict(found[i]) for i in present(ids, found)]

    def _read(self, ids: Ids, columns: list[str], parse: Any) -> Iterator[tuple[int, Any]]:
        """Pairs of id and value, in no order."""
        wanted = np.unique(ids)
        for some in batches(len(wanted), _IDS_A_CALL):
            rows = self._select(columns, self._among(wanted[some]))
            yield from zip(self._ids(rows), parse(rows), strict=True)

    def _select(self, columns: list[str], where: str | None = None) -> Any:
        with self._errors("reading failed"):
            query = self._live.search().select([self.options.id_column, *columns])
            tests = [test for test in (where, self._filled) if test]
            return (query.where(" AND ".join(tests)) if tests else query).limit(None).to_arrow()

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        return self._scroll_after(-1, batch_size)

    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        # A handle of its own, fixed at one version, in which row ids do not change.
        with self._errors("reading failed"):
            table = self._db.open_table(self.options.table)
            table.checkout(table.version)
            # What has no vector is read, too: it is said to be left out.
            rows = table.search().select([self.options.id_column]).with_row_id(True).limit(None).to_arrow()
        ids, places = np.array(self._ids(rows), np.int64), rows.column("_rowid").to_numpy()
        order = np.argsort(ids, kind="stable")
        order = order[ids[order] > int(after)]
        columns = [self.options.id_column, self.options.vector_column, *self._payload_columns]
        for some in batches(len(order), batch_size):
            with self._errors("reading failed"):
                rows = table.take_row_ids(places[order[some]].tolist()).select(columns).to_arrow()
            yield self._batch(rows, int(ids[order[some][-1]]))

    def _batch(self, rows: Any, cursor: int) -> Batch:
        """``rows`` in the order of their ids."""
        vectors = rows.column(self.options.vector_column)
        bare = rows.filter(vectors.is_null()).column(self.options.id_column).to_pylist()
        rows = rows.filter(vectors.is_valid())
        ids = np.array(self._ids(rows), np.int64)
        turn = np.argsort(ids, kind="stable")
        keys, payload = rows.column(self.options.id_column).to_pylist(), self._payloads(rows)
        return Batch(
            ids[turn],
            self._vectors(rows)[turn],
            [self._keys.labelled(keys[i], payload[i]) for i in turn],
            [(str(key), "it has no vector") for key in bare],
            cursor,
        )

    def _ids(self, rows: Any) -> list[int]:
        return [self._keys.id(key) for key in rows.column(self.options.id_column).to_pylist()]

    def _vectors(self, rows: Any) -> Codes:
        values = rows.column(self.options.vector_column).combine_chunks()
        flat = values.flatten().to_numpy(zero_copy_only=False)
        width = values.type.list_size
        if self.kind == "binary":
            return cast("NDArray[np.uint8]", flat.reshape(-1, width))
        vectors = flat.astype(np.float32).reshape(-1, width)
        return directions(vectors) if self.metric == "cosine" and not self._ours else vectors

    @property
    def _terms_column(self) -> str:
        return f"{self.options.payload_column}_terms"

    @property
    def _payload_columns(self) -> list[str]:
        if self._ours:
            return [self.options.payload_column]
        known = {self.options.id_column, self.options.vector_column}
        return [name for name in self._schema().names if name not in known]

    def _payloads(self, rows: Any) -> list[dict[str, Any]]:
        if self._ours:
            return [dict(json.loads(text)) for text in rows.column(self.options.payload_column).to_pylist()]
        return [as_payload(row) for row in rows.select(self._payload_columns).to_pylist()]

    def _among(self, ids: Ids) -> str:
        # LanceDB has no bound parameters: integers are safe as they are, other keys are quoted.
        keys = [self._keys.key(i) for i in ids.tolist()]
        literals = [str(key) if isinstance(key, int) else "'" + str(key).replace("'", "''") + "'" for key in keys]
        return f"{_quoted(self.options.id_column)} IN ({', '.join(literals)})" if literals else "FALSE"

    @property
    def _filled(self) -> str | None:
        """A table of somebody else may have items without a vector."""
        return None if self._ours else f"{_quoted(self.options.vector_column)} IS NOT NULL"

    @property
    def _dtype(self) -> Any:
        return np.uint8 if self.kind == "binary" else np.dtype(self.options.datatype)

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        hits, among = missing_hits(len(vectors), k), None
        if where is not None:
            among, exact = compile_where(where, _quoted(self._terms_column)) if self._has_terms else (None, False)
            if not exact:
                allowed = self._matching(where, among)
                if not len(allowed):
                    return hits
                among = self._among(allowed)
        for row, vector in enumerate(vectors):
            found = self._nearest(vector, k, among, options)
            ids = self._ids(found)
            hits.ids[row, : len(ids)] = ids
            hits.distances[row, : len(ids)] = found.column("_distance").to_numpy()
        if self.metric == "ip":  # Lance's dot distance is 1 - dot
            hits.distances[:] -= 1
        return hits

    def _nearest(self, vector: Codes, k: int, among: str | None, options: Any) -> Any:
        with self._errors("searching failed"):
            query = self._live.search(vector, vector_column_name=self.options.vector_column)
            query = query.distance_type(_DISTANCES[cast("Metric", self.metric)]).limit(k)
            query = query.select([self.options.id_column, "_distance"])
            # Somebody else may have built the index since this table was opened.
            wanted = None if self.options.index == "none" else self.options.index
            query = indexes.told(query, k, self._index or wanted, options)
            return (query.where(among, prefilter=True) if among else query).to_arrow()

    def _matching(self, where: Where, among: str | None) -> Ids:
        """Ids that ``where`` matches, all of which pass the test ``among``."""
        rows = self._select(self._payload_columns, among and f"({among})")
        pairs = zip(self._ids(rows), self._payloads(rows), strict=True)
        return np.array([i for i, payload in pairs if where.matches(payload)], np.int64)

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        return within(
            self._search(vectors, max(1, self._count()), where, self._search_options({"exact": True})), radius
        )

    @classmethod
    def item_bytes(cls, options: Mapping[str, Any], dim: int, kind: Kind) -> ItemBytes:
        chosen = cls.Options.model_validate(dict(options))
        vector = dim / 8 if kind == "binary" else dim * (2 if chosen.datatype == "float16" else 4)
        index = indexes.item_bytes(chosen, vector, dim)
        return ItemBytes.of(index or vector, vector + index + ROW_BYTES)

    def _exact_by_default(self) -> bool:
        return self._index is None and self.options.index == "none"

    @property
    def quantizes(self) -> bool:
        return indexes.quantizes(self._index or self.options.index)

    @property
    def in_process(self) -> bool:
        return not places.is_remote(self.options)

    def disk_bytes(self) -> int | None:
        return None if self.options.path is None else folder_bytes(self.options.path / f"{self.options.table}.lance")

    @property
    def _live(self) -> Any:
        if self._table is None:
            raise BackendError(f"{self._place()} is closed")
        return self._table

    def _schema(self) -> Any:
        with self._errors("reading failed"):
            return self._live.schema

    def _foreign(self) -> Unsupported:
        return Unsupported(f"{self._place()} was made by another program: it can be read, not written")

    def _change(self, doing: str, call: Callable[[], Any]) -> None:
        """``call()``, again where another writer came first."""
        with self._errors(doing):
            retried(call, retries=_RETRIES, transient=lambda error: _PREEMPTED in str(error))

    def _errors(self, doing: str) -> Any:
        return engine_errors(f"{self._place()}: {doing}", secrets=[places.secret()], explain=places.explain)


def _quoted(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"
