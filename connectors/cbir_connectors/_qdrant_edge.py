"""Qdrant Edge: Qdrant's engine in this process, one collection in one folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cbir_connectors._qdrant_filter import Dialect, EdgeDialect
from cbir_connectors._qdrant_target import Point, Query, Scored, Upload, Vectors, named, pick
from cbir_faiss._lib.files import write_durably
from cbir_faiss.backends.database import engine_errors, folder_bytes, need_version
from cbir_faiss.errors import BackendError

_CONFIG = "edge_config.json"
_OWNER = "cbir.json"
_QUERY_ENCODINGS = {
    "default": "Default",
    "binary": "Binary",
    "scalar4bits": "Scalar4Bits",
    "scalar8bits": "Scalar8Bits",
}
_ENCODINGS = {"binary": "OneBit", "binary-1.5": "OneAndHalfBits", "binary-2": "TwoBits"}


class EdgeTarget:
    """A shard in the folder ``options.path``, which is opened when it exists. One process at a time."""

    def __init__(self, options: Any) -> None:
        self.edge: Any = need_version("qdrant_edge", "qdrant-edge-py", "qdrant", (0, 9))
        self.dialect: Dialect = EdgeDialect(self.edge)
        self.options, self.path = options, Path(options.path)
        self.place = f"qdrant {options.path}"
        self.shard: Any = None
        self.shared, self.reserved = False, frozenset[str]()
        if (self.path / _CONFIG).exists():
            with engine_errors(f"{self.place} cannot be opened (is it open elsewhere?)"):
                self.shard = self.edge.EdgeShard.load(str(self.path))

    def stored(self) -> Vectors | None:
        if self.shard is None:
            return None
        with engine_errors(f"{self.place}: unreadable {_CONFIG}"):
            config = json.loads((self.path / _CONFIG).read_text())
            vectors = config["vectors"]
            marked = json.loads((self.path / _OWNER).read_text()) if (self.path / _OWNER).exists() else {}
        self.shared = len(vectors) + len(config.get("sparse_vectors") or {}) > 1
        found = pick(vectors, self.options.vector, self.place)
        datatype = str(found.get("datatype") or "float32")
        quantized = bool(config.get("quantization_config") or found.get("quantization_config"))
        return Vectors(int(found["size"]), str(found["distance"]), datatype, marked.get("owner"), quantized)

    def make(self, vectors: Vectors, hnsw_m: int) -> None:
        if vectors.owner:
            self.adopt(vectors.owner)
        self.shard, self.shared = self._made(self.path, vectors, hnsw_m), False

    def rehearse(self, vectors: Vectors, hnsw_m: int) -> None:
        with tempfile.TemporaryDirectory(prefix="cbir-edge-") as folder:
            self._made(Path(folder), vectors, hnsw_m).close()

    def adopt(self, owner: str) -> None:
        with engine_errors(f"{self.place} cannot be taken over"):
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / _OWNER, json.dumps({"owner": owner}).encode())

    def _made(self, path: Path, vectors: Vectors, hnsw_m: int) -> Any:
        chosen, edge = self.options, self.edge
        params = edge.EdgeVectorParams(
            size=vectors.size,
            distance=getattr(edge.Distance, vectors.distance),
            datatype=getattr(edge.VectorStorageDatatype, vectors.datatype.capitalize()),
            memory=edge.Memory.Cold if chosen.on_disk else edge.Memory.Cached,
        )
        config = edge.EdgeConfig(
            vectors={chosen.vector: params} if chosen.vector else params,
            hnsw_config=edge.HnswIndexConfig(
                m=0 if chosen.tenant else hnsw_m,  # each tenant has a graph of its own
                payload_m=hnsw_m if chosen.tenant else None,
                ef_construct=chosen.hnsw_ef_construct,
                full_scan_threshold=chosen.full_scan_threshold,
            ),
            quantization_config=self._quantization(),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=chosen.indexing_threshold),
        )
        with engine_errors(f"{self.place} cannot be made"):
            path.mkdir(parents=True, exist_ok=True)
            shard = edge.EdgeShard.create(str(path), config)
            for key, kind in chosen.payload_indexes.items():
                schema = getattr(edge.PayloadSchemaType, kind.capitalize())
                shard.update(edge.UpdateOperation.create_field_index(key, schema))
            if chosen.tenant:
                schema = edge.KeywordIndexParams(is_tenant=True)
                shard.update(edge.UpdateOperation.create_field_index(chosen.tenant.key, schema))
            return shard

    def _quantization(self) -> Any:
        chosen, edge = self.options.quantization, self.edge
        if chosen == "none":
            return None
        if chosen == "scalar":
            return edge.ScalarQuantizationConfig(type=edge.ScalarType.Int8, memory=edge.Memory.Pinned)
        encoding = getattr(edge.BinaryQuantizationEncoding, _ENCODINGS[chosen])
        query = getattr(edge.BinaryQuantizationQueryEncoding, _QUERY_ENCODINGS[self.options.query_encoding])
        return edge.BinaryQuantizationConfig(encoding=encoding, query_encoding=query, memory=edge.Memory.Pinned)

    def drop(self) -> None:
        self.close()
        for part in ("segments", "wal"):
            shutil.rmtree(self.path / part, ignore_errors=True)
        for name in (_CONFIG, _OWNER):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self.path.rmdir()

    def upsert(self, items: int, uploads: Iterable[Upload]) -> None:
        edge, name, done = self.edge, self.options.vector, 0
        for keys, vectors, payload in uploads:
            with engine_errors(f"{self.place}: storing stopped after {done} of {items} items; upserting again is safe"):
                points = [
                    edge.Point(key, {name: vector} if name else vector, value)
                    for key, vector, value in zip(keys, vectors, payload, strict=True)
                ]
                if self.shared:
                    self._set_beside(points)
                else:
                    self._live.update(edge.UpdateOperation.upsert_points(points))
            done += len(keys)

    def _set_beside(self, points: list[Any]) -> None:
        """Points that are not there are stored whole; of the others, one vector and some payload keys are set."""
        edge, live = self.edge, self._live
        live.update(edge.UpdateOperation.upsert_points(points, update_mode=edge.UpdateMode.InsertOnly))
        live.update(edge.UpdateOperation.update_vectors([edge.PointVectors(p.id, p.vector) for p in points]))
        for point in points:
            if point.payload:
                live.update(edge.UpdateOperation.set_payload([point.id], point.payload))

    def delete(self, keys: list[Any]) -> None:
        with engine_errors(f"{self.place}: deleting failed"):
            self._live.update(self.edge.UpdateOperation.delete_points(keys))

    def mark(self, payload: dict[str, Any], where: Any) -> None:
        with engine_errors(f"{self.place} cannot be taken over"):
            self._live.update(self.edge.UpdateOperation.set_payload_by_filter(where, payload))

    def erase(self, where: Any) -> None:
        with engine_errors(f"{self.place}: deleting failed"):
            self._live.update(self.edge.UpdateOperation.delete_points_by_filter(where))

    def query(self, vectors: list[list[float]], query: Query, where: Any) -> list[list[Scored]]:
        edge, name = self.edge, self.options.vector
        params = edge.SearchParams(
            hnsw_ef=query.hnsw_ef,
            exact=query.exact,
            quantization=edge.QuantizationSearchParams(rescore=query.rescore, oversampling=query.oversampling),
        )
        with engine_errors(f"{self.place}: searching failed"):
            requests = [
                edge.QueryRequest(
                    limit=query.limit,
                    query=edge.Query.Nearest(vector, name or None),
                    filter=where,
                    params=params,
                    score_threshold=query.threshold,
                    with_vector=query.with_vectors,
                    with_payload=False,
                )
                for vector in vectors
            ]
            answers = self._live.query_batch(edge.QueryBatchRequest(requests))
            return [
                [(p.id, p.score, query.with_vectors and named(p.vector, name)) for p in points] for points in answers
            ]

    def retrieve(self, keys: list[Any], *, vectors: bool, payload: bool) -> list[Point]:
        with engine_errors(f"{self.place}: reading failed"):
            records = self._live.retrieve(keys, with_payload=payload, with_vector=vectors)
            return [(r.id, named(r.vector, self.options.vector), r.payload) for r in records]

    def scroll(self, batch_size: int, offset: Any = None, where: Any = None) -> Iterator[list[Point]]:
        while True:
            with engine_errors(f"{self.place}: reading failed"):
                request = self.edge.ScrollRequest(
                    offset=offset, limit=batch_size, filter=where, with_payload=True, with_vector=True
                )
                records, offset = self._live.scroll(request)
                points = [(r.id, named(r.vector, self.options.vector), r.payload) for r in records]
            if points:
                yield points
            if offset is None:
                return

    def count(self, where: Any = None) -> int:
        with engine_errors(f"{self.place}: counting failed"):
            return int(self._live.count(self.edge.CountRequest(exact=True, filter=where)))

    def settle(self) -> None:
        with engine_errors(f"{self.place}: indexing failed"):
            self._live.optimize()
            self._live.flush()

    def disk_bytes(self) -> int | None:
        return folder_bytes(self.path)

    def close(self) -> None:
        if self.shard is not None:
            shard, self.shard = self.shard, None
            with engine_errors(f"{self.place}: closing failed"):
                shard.close()

    @property
    def _live(self) -> Any:
        if self.shard is None:
            raise BackendError(f"{self.place} is closed")
        return self.shard
