"""Qdrant: a server, cluster or cloud (``url``), the engine in this process (``path``), or the client's ``:memory:``.

Qdrant has no Hamming distance. Codes are stored as bytes, 255 for a set bit and 0 for another, under Manhattan
distance, which is then 255 times the Hamming distance, exactly. (With 0 and 1 instead, Qdrant's binary quantization,
which cuts at 127, would make all codes equal.) No other collections look like that, so a collection of codes is known
by its own configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, StringConstraints, field_validator, model_validator

from cbir_connectors._keys import Keys
from cbir_connectors._qdrant_client import MEMORY, ClientTarget
from cbir_connectors._qdrant_edge import EdgeTarget
from cbir_connectors._qdrant_filter import Untranslatable
from cbir_connectors._qdrant_target import Query, Scored, Target, Vectors
from cbir_connectors._qdrant_tenant import TenantKeys, TenantTarget
from cbir_faiss import base
from cbir_faiss.backends.database import (
    Database,
    Shape,
    batches,
    payload_of,
    present,
    search_filtered,
    to_hits,
    to_range,
)
from cbir_faiss.base import Capabilities
from cbir_faiss.base.filters import Where
from cbir_faiss.base.item_bytes import ROW_BYTES, ItemBytes, graph_bytes
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import ConfigError, InputError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits

SET_BIT = 255
_LONGEST = 65_536
_REQUEST_BYTES = 16_000_000
"""Target size of one upload request; a server refuses more than 32 MB unless it is told otherwise."""
_JSON_BYTES = {"float": 20, "binary": 6}
"""Bytes of one number in such a request, at most."""
_SLACK = 1e-4
_DISTANCES: dict[Metric, str] = {"l2": "Euclid", "ip": "Dot", "cosine": "Cosine", "hamming": "Manhattan"}
_TO_DISTANCE: dict[Metric, Callable[[float], float]] = {
    "l2": lambda score: score * score,
    "ip": lambda score: -score,
    "cosine": lambda score: 1 - score,
    "hamming": lambda score: round(score / SET_BIT),
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r'^[^<>:"/\\|?*\x00-\x1f]+$')]
IndexType = Literal["keyword", "integer", "float", "bool", "geo", "text", "datetime", "uuid"]


_QUANTIZED = {"none": 0, "binary": 1, "binary-1.5": 1.5, "binary-2": 2, "scalar": 8}  # bits a dimension


class Tenant(base.Options):
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")] = Field(description="of the payload")
    value: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$")] = Field(description="the tenant's name")


class Qdrant(Database):
    """Floats under l2, ip or cosine with HNSW and optional quantization; codes by exact Hamming distance.

    A search over codes is exact unless the search option ``exact`` is false; over floats it uses HNSW unless ``exact``
    is true. An API key is read from CBIR_QDRANT_API_KEY.
    """

    name = "qdrant"
    capabilities = Capabilities()
    name_option = "collection"
    longest_name = 255

    class Options(base.Options):
        url: str | None = Field(None, description="a server, any node of a cluster, or ':memory:'")
        path: RelativePath | None = Field(None, description="a folder: the engine runs in this process")
        collection: Name = Field("cbir", description="name of the collection on a server; a path holds one")
        vector: str = Field("", description="which of the named vectors of an existing collection")
        tenant: Tenant | None = Field(
            None, description="key and value: the items of one of many users of a collection, who share its options"
        )
        metric: Literal["l2", "ip", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        overwrite: bool = Field(False, description="what is there is dropped when the collection is made")
        datatype: Literal["float32", "float16"] = Field("float32", description="how floats are stored")
        quantization: Literal["none", "binary", "binary-1.5", "binary-2", "scalar"] = Field(
            "none", description="Qdrant's own, kept in memory: 1, 1.5 or 2 bits a dimension, or int8"
        )
        query_encoding: Literal["default", "binary", "scalar4bits", "scalar8bits"] = Field(
            "default", description="how binary quantization keeps the query: finer finds more, and takes longer"
        )
        hnsw_m: int | None = Field(
            None, ge=0, description="links a node keeps, 0: no graph; None: 16 for floats, else 0"
        )
        hnsw_ef_construct: int = Field(100, ge=4, description="candidates while building: quality against build time")
        full_scan_threshold: int = Field(10_000, ge=10, description="KB below which a segment is scanned")
        indexing_threshold: int = Field(10_000, ge=0, description="KB above which a segment gets its graph")
        on_disk: bool = Field(False, description="stored vectors stay on disk")
        payload_indexes: Mapping[str, IndexType] = Field(default_factory=dict, description="payload key: type")
        shard_number: int | None = Field(None, ge=1, description="parts over which a cluster divides the items")
        replication_factor: int | None = Field(None, ge=1, description="copies of each shard")
        write_consistency_factor: int | None = Field(None, ge=1, description="copies that confirm a write")
        prefer_grpc: bool = Field(False, description="gRPC instead of REST")
        grpc_port: int = Field(6334, ge=1, le=65_535, description="port of gRPC; that of REST is in the url")
        batch_size: int = Field(1000, ge=1, description="items a request, fewer where they are long")
        parallel: int = Field(2, ge=1, le=64, description="requests under way at once while storing")
        timeout: float = Field(60, gt=0, description="seconds a request may take")
        retries: int = Field(4, ge=0, description="times a failed request is tried again, with growing pauses")

        @field_validator("url")
        @classmethod
        def _no_secret(cls, url: str | None) -> str | None:
            if url is not None and ("@" in url or "api_key" in url or "api-key" in url):
                raise ValueError("no secrets in addresses: put the API key in CBIR_QDRANT_API_KEY")
            return url

        @model_validator(mode="after")
        def _one_place(self) -> Qdrant.Options:
            if (self.url is None) == (self.path is None):
                raise ValueError("give one of 'path' (in this process), 'url' (a server) or 'url: :memory:'")
            if self.path is not None and "collection" in self.model_fields_set:
                raise ValueError("a path holds one collection: leave 'collection' out, or give a 'url'")
            return self

    class SearchOptions(base.Options):
        exact: bool | None = Field(None, description="compare with everything; None: codes yes, floats no")
        hnsw_ef: int | None = Field(None, ge=1, description="candidates that a search keeps: recall against time")
        oversampling: float | None = Field(None, ge=1, description="quantized candidates rescored, times k")
        rescore: bool = Field(True, description="rank quantized candidates by the stored vectors")

    options: Options

    @classmethod
    def scoped(cls, options: Mapping[str, Any], scope: str) -> dict[str, Any]:
        options = {name: value for name, value in options.items() if name != "tenant"}  # none shares such a place
        if options.get("path") is None:
            return super().scoped(options, scope)
        return {**options, "path": str(Path(options["path"], scope)), "overwrite": True}

    @classmethod
    def named(cls, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        shared = options.get("path") is not None or options.get("tenant") is not None
        return dict(options) if shared else super().named(options, name)

    # -- life

    def _connect(self) -> None:
        self._keys = Keys()
        chosen = self.options
        self._target: Target = EdgeTarget(chosen) if chosen.path is not None else ClientTarget(chosen)
        if chosen.tenant is not None:
            self._keys = TenantKeys(chosen.tenant.value)
            self._target = TenantTarget(self._target, chosen.tenant.key, chosen.tenant.value)
        if chosen.url == MEMORY:
            self._declare(capabilities=Capabilities(persist="refused"))
        if chosen.path is not None:
            self._declare(capabilities=Capabilities(shared="refused"))

    @classmethod
    def item_bytes(cls, options: Mapping[str, Any], dim: int, kind: Kind) -> ItemBytes:
        chosen = cls.Options.model_validate(dict(options))
        stored = dim * (1 if kind == "binary" else 2 if chosen.datatype == "float16" else 4)  # a uint8 a bit
        m = chosen.hnsw_m if chosen.hnsw_m is not None else _links(kind)
        pinned = dim * _QUANTIZED[chosen.quantization] / 8 + graph_bytes(m) + ROW_BYTES
        in_memory = pinned if chosen.on_disk else pinned + stored
        return ItemBytes.of(in_memory, pinned + stored, chosen.replication_factor or 1)

    def _exact_by_default(self) -> bool:
        return self.kind == "binary" or self.options.url == MEMORY

    def _stored(self) -> Shape | None:
        found = self._target.stored()
        if found is None:
            return None
        if found.distance == "Manhattan" and found.datatype == "uint8" and found.size % 8 == 0:
            return Shape(found.size, "binary", "hamming", found.owner)
        metric = next((m for m, d in _DISTANCES.items() if d == found.distance and m != "hamming"), None)
        if metric is None:
            raise Unsupported(f"{self._place()}: vectors under {found.distance} distance cannot be used")
        return Shape(found.size, "float", metric, found.owner)

    def _check_shape(self, shape: Shape) -> None:
        if shape.dim > _LONGEST:
            raise ConfigError(f"Qdrant stores vectors of at most {_LONGEST} values, not {shape.dim}")

    def _make(self, shape: Shape) -> None:
        self._target.make(*self._plan(shape))

    def _replace(self, shape: Shape) -> None:
        self._target.rehearse(*self._plan(shape))
        super()._replace(shape)

    def _adopt(self, owner: str) -> None:
        self._target.adopt(owner)

    def _plan(self, shape: Shape) -> tuple[Vectors, int]:
        """The vectors of such a collection, and how many links a node of its graph keeps."""
        datatype = "uint8" if shape.kind == "binary" else self.options.datatype
        graph = self.options.hnsw_m if self.options.hnsw_m is not None else _links(shape.kind)
        return Vectors(shape.dim, _DISTANCES[shape.metric], datatype, shape.owner), graph

    def _drop(self) -> None:
        self._target.drop()

    def standby(self) -> dict[str, Any]:
        if not isinstance(self._target, ClientTarget) or self._target.local:
            return super().standby()  # refuses: only a server has aliases
        given = self.options.model_dump(mode="json", exclude_unset=True)
        return {**given, "collection": self._target.standby(), "overwrite": True}

    def swap(self) -> None:
        if isinstance(self._target, ClientTarget) and not self._target.local:
            self._target.swap()
        else:
            super().swap()

    def _place(self) -> str:
        return self._target.place

    def close(self) -> None:
        self._target.close()

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        for i, value in zip(ids.tolist(), payload or (), strict=False):
            if taken := self._target.reserved & value.keys():
                raise InputError(f"{self._place()}: the payload of id {i} has '{min(taken)}', which marks its tenant")
            if _beyond_64_bits(value):
                raise Unsupported(
                    f"{self._place()}: the payload of id {i} holds an integer beyond 64 bits; give it as text"
                )
        size = min(self.options.batch_size, self._rows_a_request())
        self._target.upsert(
            len(ids),
            (
                ([self._keys.key(i) for i in ids[s].tolist()], self._to_engine(vectors[s]), payload_of(payload, s))
                for s in batches(len(ids), size)
            ),
        )

    def _flush(self) -> None:
        if self.dim is not None:
            self._target.settle()

    def _delete(self, ids: Ids) -> None:
        self._target.delete([self._keys.key(i) for i in ids.tolist()])

    def _count(self) -> int:
        return self._target.count()

    def _fetch(self, ids: Ids) -> Codes:
        found = {i: vector for i, vector, _ in self._retrieve(ids, vectors=True) if vector is not None}
        return self._from_engine([found[i] for i in present(ids, found)])

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        found = {i: payload for i, _, payload in self._retrieve(ids, payload=True)}
        return [found[i] for i in present(ids, found)]

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        return self._pages(batch_size, None)

    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        return self._pages(batch_size, after)

    def _pages(self, batch_size: int, last: Any) -> Iterator[Batch]:
        for page in self._target.scroll(batch_size, last):
            page = [point for point in page if str(point[0]) != str(last)]  # an offset is a key, and its point is read
            points = [point for point in page if point[1] is not None]  # not every point has every named vector
            if page:
                yield Batch(
                    np.array([self._keys.id(key) for key, _, _ in points], np.int64),
                    self._from_engine([vector for _, vector, _ in points]),
                    [self._keys.labelled(key, value) for key, _, value in points],
                    [(str(k), f"it has no vector '{self.options.vector}'") for k, vector, _ in page if vector is None],
                    page[-1][0] if isinstance(page[-1][0], int) else str(page[-1][0]),
                )

    def _retrieve(self, ids: Ids, *, vectors: bool = False, payload: bool = False) -> list[tuple[int, Any, Any]]:
        # np.unique: a point that is asked for twice comes back once
        keys = [self._keys.key(i) for i in np.unique(ids).tolist()]
        points = self._target.retrieve(keys, vectors=vectors, payload=payload)
        return [(self._keys.id(key), vector, value or {}) for key, vector, value in points]

    def _to_engine(self, vectors: Codes) -> list[list[float]]:
        if self.kind == "binary":
            return cast("list[list[float]]", (np.unpackbits(vectors, axis=1) * np.uint8(SET_BIT)).tolist())
        return cast("list[list[float]]", vectors.tolist())

    def _from_engine(self, vectors: Sequence[Any]) -> Codes:
        stored = np.asarray(vectors, np.float32).reshape(len(vectors), cast("int", self.dim))
        return np.packbits(stored > SET_BIT / 2, axis=1) if self.kind == "binary" else stored

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        translated = None
        if where is not None:
            try:
                translated = self._target.dialect.compile(where)
            except Untranslatable:
                return search_filtered(
                    lambda v, n: self._search(v, n, None, options), self._payload, where, vectors, k, self._count()
                )
        exact = self.kind == "binary" if options.exact is None else options.exact
        # Without rescoring, Qdrant's scores are of the quantized vectors, on a scale of their own.
        query = Query(
            k, exact, options.hnsw_ef, options.oversampling, options.rescore, with_vectors=not options.rescore
        )
        return to_hits(self._ask(vectors, query, translated), k)

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        translated, emulated = None, False
        if where is not None:
            try:
                translated = self._target.dialect.compile(where)
            except Untranslatable:
                emulated = True
        query = Query(max(1, self._count()), exact=True, threshold=self._threshold(radius))
        rows = [[hit for hit in row if hit[1] <= radius] for row in self._ask(vectors, query, translated)]
        if where is not None and emulated:
            found = np.unique([i for row in rows for i, _ in row]).astype(np.int64)
            passed = {int(i) for i, p in zip(found, self._payload(found), strict=True) if where.matches(p)}
            rows = [[hit for hit in row if hit[0] in passed] for row in rows]
        return to_range(rows)

    def _ask(self, vectors: Codes, query: Query, where: Any) -> list[list[tuple[int, float]]]:
        """Per query, (id, distance), nearest first."""
        rows, to_id, to_distance = [], self._keys.id, _TO_DISTANCE[cast("Metric", self.metric)]
        for some in batches(len(vectors), self._rows_a_request()):
            answers = self._target.query(self._to_engine(vectors[some]), query, where)
            if query.with_vectors:
                rows += [self._measured(vector, found) for vector, found in zip(vectors[some], answers, strict=True)]
            else:
                rows += [[(to_id(key), to_distance(score)) for key, score, _ in found] for found in answers]
        return rows

    def _measured(self, query: Codes, found: Sequence[Scored]) -> list[tuple[int, float]]:
        """(id, distance) by the stored vectors instead of the scores, nearest first."""
        distances = self._distances(query, self._from_engine([vector for _, _, vector in found]))
        row = [(self._keys.id(key), distance) for (key, _, _), distance in zip(found, distances, strict=True)]
        return sorted(row, key=lambda hit: hit[1])

    def _rows_a_request(self) -> int:
        return max(1, _REQUEST_BYTES // (_JSON_BYTES[str(self.kind)] * cast("int", self.dim)))

    def _threshold(self, radius: float) -> float:
        """A score that everything within ``radius`` passes; what else passes is dropped afterwards."""
        if self.metric == "hamming":
            return (radius + 0.5) * SET_BIT
        if self.metric == "l2":
            return math.sqrt(max(radius, 0)) * (1 + _SLACK) + _SLACK
        score = -radius if self.metric == "ip" else 1 - radius
        return score - _SLACK * (1 + abs(score))

    def _distances(self, query: Codes, vectors: Codes) -> list[float]:
        """Distances of stored ``vectors`` ``(n, width)`` to one query."""
        if self.metric == "hamming":
            return cast("list[float]", np.bitwise_count(query ^ vectors).sum(axis=1).tolist())
        if self.metric == "l2":
            return cast("list[float]", ((query - vectors) ** 2).sum(axis=1).tolist())
        products = vectors @ query
        return cast("list[float]", (-products if self.metric == "ip" else 1 - products).tolist())

    @property
    def quantizes(self) -> bool:
        found = self._target.stored()
        return found is not None and found.quantized

    def is_exact(self, options: base.Options | None = None) -> bool:
        chosen = getattr(options, "exact", None)
        return super().is_exact(options) if chosen is None else bool(chosen)

    @property
    def in_process(self) -> bool:
        return self.options.path is not None

    def disk_bytes(self) -> int | None:
        return self._target.disk_bytes()


def _beyond_64_bits(value: Any) -> bool:
    """Whether a payload holds an integer of which Qdrant would make a float."""
    if isinstance(value, Mapping):
        return any(map(_beyond_64_bits, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_beyond_64_bits, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _links(kind: Kind) -> int:
    """Of a node, where the options do not say how many: codes are searched exactly unless the search asks otherwise,
    and building a graph takes most of a push."""
    return 0 if kind == "binary" else 16
