"""What a Qdrant server does with a request, done by Qdrant's own engine in this process (Edge).

Requests and answers are REST's JSON. Configuration, payload indexes and search parameters are handed on to the engine.
Of what belongs to a cluster (shards, replicas) only the numbers are kept.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from pydantic import ValidationError
from qdrant_client import models

Json = dict[str, Any]
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
_ENCODINGS = {"one_bit": "OneBit", "one_and_half_bits": "OneAndHalfBits", "two_bits": "TwoBits"}


class Refused(Exception):
    """A request that is answered with ``status`` and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Engine:
    """Collections by name, and aliases of them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cbir-qdrant-")
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}

    def close(self) -> None:
        self.collections = {}  # let go, not closed: that would flush what is removed now
        self._folder.cleanup()

    def find(self, name: str) -> Collection | None:
        return self.collections.get(self.aliases.get(name, name))

    def existing(self, name: str) -> Collection:
        found = self.find(name)
        if found is None:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: bytes) -> bool:
        if self.find(name):
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        try:
            asked = models.CreateCollection.model_validate_json(body).model_dump(mode="json", exclude_none=True)
        except ValidationError as error:
            raise Refused(400, f"Format error in JSON body: {error}") from error
        self.collections[name] = Collection(asked, Path(tempfile.mkdtemp(dir=self._folder.name)))
        return True

    def delete(self, name: str) -> bool:
        found = self.collections.pop(name, None)
        if found is not None:
            found.shard.close()
            self.aliases = {alias: to for alias, to in self.aliases.items() if to != name}
        return found is not None

    def change_aliases(self, actions: list[Json]) -> bool:
        """All of ``actions``, or none."""
        after = dict(self.aliases)
        for action in actions:
            ((kind, told),) = action.items()
            if kind == "create_alias":
                if told["alias_name"] in self.collections:
                    raise Refused(409, f"Wrong input: Collection `{told['alias_name']}` already exists!")
                if told["collection_name"] not in self.collections:
                    raise Refused(404, f"Not found: Collection `{told['collection_name']}` doesn't exist!")
                after[told["alias_name"]] = told["collection_name"]
            elif kind == "delete_alias":
                after.pop(told["alias_name"], None)
            else:
                after[told["new_alias_name"]] = after.pop(told["old_alias_name"])
        self.aliases = after
        return True


class Collection:
    """One collection: an Edge shard, and what REST tells of it besides."""

    def __init__(self, asked: Json, folder: Path) -> None:
        self.asked = asked
        self.metadata: Json = asked.get("metadata") or {}
        self.woken = 0
        """Changes of the configuration, which start the optimizers of a grey collection."""
        self.indexes: Json = {}
        """What was asked of each index of the payload."""
        self._queue: list[Any] = []
        self.shard = edge.EdgeShard.create(str(folder), _config(asked))

    # -- configuration

    def info(self) -> Json:
        self.settle()
        # The optimizers of a server run by themselves; here they do when they are asked about.
        worked = self.shard.optimize()
        found, asked = self.shard.info(), self.asked
        schema = {
            name: {"data_type": str(index.data_type).rsplit(".", 1)[-1].lower(), "points": index.points}
            for name, index in found.payload_schema.items()
        }
        return {
            "status": "yellow" if worked else "green",
            "optimizer_status": "ok",
            "segments_count": found.segments_count,
            "points_count": found.points_count,
            "indexed_vectors_count": found.indexed_vectors_count,
            "payload_schema": schema,
            "config": {
                "params": {"vectors": {}, "shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1}
                | {key: asked[key] for key in _PARAMS if key in asked},
                "hnsw_config": _HNSW | asked.get("hnsw_config", {}),
                "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 5}
                | asked.get("optimizers_config", {}),
                "quantization_config": asked.get("quantization_config"),
                "metadata": self.metadata or None,
            },
        }

    def change(self, asked: Json) -> bool:
        self.woken += 1
        self.metadata |= asked.get("metadata") or {}
        return True

    def index(self, field: str, schema: Any) -> Any:
        self.indexes[field] = schema
        kind = schema["type"] if isinstance(schema, dict) else schema
        return edge.UpdateOperation.create_field_index(field, getattr(edge.PayloadSchemaType, kind.capitalize()))

    # -- content

    def update(self, operation: Any, *, wait: bool) -> Json:
        """Apply ``operation`` after those that wait already; without ``wait`` it is only acknowledged."""
        self._queue.append(operation)
        if wait:
            self.settle()
        return {"operation_id": 0, "status": "completed" if wait else "acknowledged"}

    def settle(self) -> None:
        """Apply what was acknowledged; of a refused operation nothing is known to whoever did not wait for it."""
        queue, self._queue = self._queue, []
        for operation in queue:
            self.shard.update(operation)

    def upsert(self, body: Json) -> Any:
        if "batch" in body:
            batch = body["batch"]
            ids, vectors = batch["ids"], batch["vectors"]
            payloads = batch.get("payloads") or [None] * len(ids)
            if isinstance(vectors, dict):
                vectors = [dict(zip(vectors, row, strict=True)) for row in zip(*vectors.values(), strict=True)]
        else:
            ids = [point["id"] for point in body["points"]]
            vectors = [point["vector"] for point in body["points"]]
            payloads = [point.get("payload") for point in body["points"]]
        points = [edge.Point(i, v, p or {}) for i, v, p in zip(ids, vectors, payloads, strict=True)]
        return edge.UpdateOperation.upsert_points(points)

    def set_vectors(self, body: Json) -> Any:
        points = [edge.PointVectors(point["id"], point["vector"]) for point in body["points"]]
        return edge.UpdateOperation.update_vectors(points)

    def chosen(self, name: str, body: Json, *arguments: Any) -> Any:
        """The operation called ``name`` on the points, or on those of the filter, that ``body`` names."""
        if body.get("filter"):
            return getattr(edge.UpdateOperation, f"{name}_by_filter")(self.filter(body["filter"]), *arguments)
        return getattr(edge.UpdateOperation, name)(body["points"], *arguments)

    # -- reading

    def retrieve(self, body: Json) -> list[Json]:
        found = self.shard.retrieve(
            body["ids"], with_payload=body.get("with_payload", True), with_vector=body.get("with_vector") or False
        )
        return [_record(record) for record in found]

    def scroll(self, body: Json) -> Json:
        request = edge.ScrollRequest(
            offset=body.get("offset"),
            limit=body.get("limit") or 10,
            filter=self.filter(body.get("filter")),
            with_payload=body.get("with_payload", True),
            with_vector=body.get("with_vector") or False,
        )
        records, after = self.shard.scroll(request)
        return {"points": [_record(record) for record in records], "next_page_offset": after and _key(after)}

    def count(self, body: Json) -> Json:
        request = edge.CountRequest(exact=body.get("exact", True), filter=self.filter(body.get("filter")))
        return {"count": self.shard.count(request)}

    def query(self, searches: list[Json]) -> list[Json]:
        answers = self.shard.query_batch(edge.QueryBatchRequest([self._query(search) for search in searches]))
        return [{"points": [_record(point) for point in points]} for points in answers]

    def _query(self, search: Json) -> Any:
        query = search["query"]
        params = search.get("params") or {}
        quantization = params.get("quantization")
        return edge.QueryRequest(
            limit=search.get("limit") or 10,
            query=edge.Query.Nearest(query["nearest"] if isinstance(query, dict) else query, search.get("using")),
            filter=self.filter(search.get("filter")),
            score_threshold=search.get("score_threshold"),
            with_vector=search.get("with_vector") or False,
            with_payload=search.get("with_payload") or False,
            params=edge.SearchParams(
                hnsw_ef=params.get("hnsw_ef"),
                exact=params.get("exact") or False,
                indexed_only=params.get("indexed_only") or False,
                quantization=quantization and edge.QuantizationSearchParams(**_given(quantization)),
            ),
        )

    # -- filters

    def filter(self, asked: Json | None) -> Any:
        if not asked:
            return None
        least = asked.get("min_should")
        return edge.Filter(
            must=self._conditions(asked.get("must")),
            should=self._conditions(asked.get("should")),
            must_not=self._conditions(asked.get("must_not")),
            min_should=least and edge.MinShould(self._conditions(least["conditions"]), least["min_count"]),
        )

    def _conditions(self, asked: Any) -> Any:
        if asked is None:
            return None
        return [self._condition(one) for one in (asked if isinstance(asked, list) else [asked])]

    def _condition(self, asked: Json) -> Any:
        if "key" in asked:
            return self._field(asked)
        for name, make in _CONDITIONS.items():
            if name in asked:
                return make(asked[name])
        return self.filter(asked)

    def _field(self, asked: Json) -> Any:
        match, bounds = asked.get("match"), asked.get("range")
        if match and isinstance(match.get("value"), bool):
            return self._boolean(asked["key"], match["value"])
        return edge.FieldCondition(
            key=asked["key"],
            match=match and next(make(match[name]) for name, make in _MATCHES.items() if name in match),
            range=bounds and _range(bounds),
            is_empty=asked.get("is_empty"),
            is_null=asked.get("is_null"),
        )

    def _boolean(self, key: str, wanted: bool) -> Any:
        """Edge 0.9 reads true as the integer 1; a server does not. So the points are looked up."""
        found, offset, first = [], None, True
        while first or offset is not None:
            records, offset = self.shard.scroll(edge.ScrollRequest(offset=offset, limit=1000, with_payload=True))
            found += [record.id for record in records if any(v is wanted for v in _values(record.payload, key))]
            first = False
        return edge.HasIdCondition(set(found))


_PARAMS = ("vectors", "shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "is_null": lambda told: edge.IsNullCondition(told["key"]),
    "is_empty": lambda told: edge.IsEmptyCondition(told["key"]),
    "has_id": lambda told: edge.HasIdCondition(set(told)),
    "has_vector": edge.HasVectorCondition,
}
_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": edge.MatchValue,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
    "text": edge.MatchText,
}


def _config(asked: Json) -> Any:
    vectors = asked.get("vectors") or {}
    named = vectors if "size" not in vectors else {"": vectors}
    params = {name: _vectors(told) for name, told in named.items()}
    return edge.EdgeConfig(
        wal_enabled=False,  # whoever stops the server does not stop this process
        vectors=params[""] if set(params) == {""} else params,
        hnsw_config=edge.HnswIndexConfig(**_HNSW | _known(asked.get("hnsw_config"), *_HNSW, "payload_m")),
        quantization_config=_quantization(asked.get("quantization_config")),
        optimizers=edge.EdgeOptimizersConfig(
            **_known(
                asked.get("optimizers_config"), "indexing_threshold", "deleted_threshold", "default_segment_number"
            )
        ),
    )


def _vectors(told: Json) -> Any:
    graph = told.get("hnsw_config")
    return edge.EdgeVectorParams(
        size=told["size"],
        distance=getattr(edge.Distance, told["distance"]),
        datatype=getattr(edge.VectorStorageDatatype, told.get("datatype", "float32").capitalize()),
        memory=edge.Memory.Cold if told.get("on_disk") else edge.Memory.Cached,
        hnsw_config=graph and edge.HnswIndexConfig(**_HNSW | _known(graph, *_HNSW)),
        quantization_config=_quantization(told.get("quantization_config")),
    )


def _quantization(told: Json | None) -> Any:
    if not told:
        return None
    ((kind, chosen),) = told.items()
    memory = edge.Memory.Pinned if chosen.get("always_ram") else edge.Memory.Cached
    if kind == "scalar":
        return edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, quantile=chosen.get("quantile"), memory=memory)
    if kind == "product":
        compression = getattr(edge.CompressionRatio, chosen["compression"].capitalize())
        return edge.ProductQuantizationConfig(compression=compression, memory=memory)
    query = chosen.get("query_encoding", "default")
    return edge.BinaryQuantizationConfig(
        encoding=getattr(edge.BinaryQuantizationEncoding, _ENCODINGS[chosen.get("encoding", "one_bit")]),
        query_encoding=getattr(edge.BinaryQuantizationQueryEncoding, query.capitalize().replace("bits", "Bits")),
        memory=memory,
    )


def _record(record: Any) -> Json:
    found = {"id": _key(record.id), "vector": record.vector, "payload": record.payload}
    return found | {"version": record.version, "score": record.score} if hasattr(record, "score") else found


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, uuid.UUID) else key


def _range(bounds: Json) -> Any:
    given = _given(bounds)
    dates = any(isinstance(value, str) for value in given.values())
    return (edge.RangeDateTime if dates else edge.RangeFloat)(**given)


def _given(told: Json) -> Json:
    return {name: value for name, value in told.items() if value is not None}


def _known(told: Json | None, *names: str) -> Json:
    return {name: value for name, value in _given(told or {}).items() if name in names}


def _values(payload: Json | None, path: str) -> Iterator[Any]:
    """The values at one of Qdrant's paths, whose steps are bare or quoted."""
    found: list[Any] = [payload or {}]
    for quoted, bare in re.findall(r'"([^"]*)"|([^".]+)', path):
        inside = [value.get(quoted or bare) for value in found if isinstance(value, dict)]
        found = [one for value in inside for one in (value if isinstance(value, list) else [value])]
    yield from found
