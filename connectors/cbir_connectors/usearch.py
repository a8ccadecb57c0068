"""usearch: one HNSW graph of floats, half floats or bits, in memory, saved to files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from cbir_faiss import base
from cbir_faiss._lib.files import sha256_of, sync
from cbir_faiss.backends.database import batches, engine_errors, need_version, one_line, present, search_filtered
from cbir_faiss.base import Backend, Capabilities
from cbir_faiss.base.checks import within
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import RelativePath
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import ConfigError, CorruptCollection, InputError, UnknownId, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

_METRICS: dict[Metric, str] = {"l2": "L2sq", "ip": "IP", "cosine": "Cos", "hamming": "Hamming"}
_INDEX, _PAYLOAD, _STATE = "index.usearch", "payload.jsonl", "state"


class Usearch(Backend):
    """Approximate by default; the search option ``exact`` compares with every item. Filters are applied here."""

    name = "usearch"
    accepts = frozenset({"float", "binary"})
    metrics = ("cosine", "l2", "ip", "hamming")
    capabilities = Capabilities(filter="emulated", range="emulated")

    class Options(base.Options):
        metric: Literal["l2", "ip", "cosine", "hamming"] | None = Field(None, description="None: hamming or cosine")
        datatype: Literal["float32", "float16"] = Field("float32", description="how floats are stored")
        connectivity: int = Field(16, ge=2, description="links a node keeps")
        expansion_add: int = Field(128, ge=1, description="candidates while building: quality against build time")
        threads: int = Field(0, ge=0, description="0: every core")
        file: RelativePath | None = Field(None, description="an index that usearch wrote; read-only")

    class SearchOptions(base.Options):
        exact: bool = Field(False, description="compare with everything")
        expansion: int = Field(64, ge=1, description="candidates that a search keeps: recall against time")

    options: Options

    def _setup(self) -> None:
        self._usearch: Any = need_version("usearch.index", "usearch", "usearch", (2, 25))
        self._index: Any = None
        self._read_only = False
        self._payloads: dict[int, str] = {}
        # The graph has a fixed number of thread contexts, and its search width is a property of the index.
        self._lock = threading.RLock()
        if self.options.file is not None:
            self._take_file(self.options.file)

    # -- life

    def _take_file(self, file: Path) -> None:
        """Take an index that is there, its vectors left in the file."""
        try:
            index = self._usearch.Index.restore(str(file), view=True)
        except Exception as error:
            raise InputError(f"{file}: usearch cannot read an index from it: {one_line(error)}") from error
        metric = None if index is None else getattr(index.metric_kind, "name", "")
        known = {theirs: ours for ours, theirs in _METRICS.items()}
        if metric not in known or index.dtype.name not in ("F32", "F16", "B1"):
            what = "no index" if index is None else f"{index.dtype.name} vectors by {metric}"
            raise Unsupported(f"{file}: holds {what}; F32, F16 or B1 by {', '.join(known)} can be read")
        if self.options.metric not in (None, known[metric]):
            raise ConfigError(f"{file} is by '{known[metric]}': leave 'metric' out", path="metric")
        self._index, self._read_only, self.metric = index, True, known[metric]
        self.dim, self.kind = int(index.ndim), "binary" if index.dtype.name == "B1" else "float"

    def _create(self) -> None:
        if self.options.file is not None:
            raise InputError(f"backend 'usearch' was opened from {self.options.file}: it has its width already")
        kinds = self._usearch.ScalarKind
        dtype = kinds.B1 if self.kind == "binary" else {"float32": kinds.F32, "float16": kinds.F16}[self._float]
        with engine_errors("usearch: the index cannot be made"):
            self._index = self._usearch.Index(
                ndim=self.dim,
                metric=getattr(self._usearch.MetricKind, _METRICS[cast("Metric", self.metric)]),
                dtype=dtype,
                connectivity=self.options.connectivity,
                expansion_add=self.options.expansion_add,
            )
        self._payloads = {}

    @property
    def _float(self) -> str:
        return self.options.datatype

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            with engine_errors(f"usearch: {folder} cannot be written"):
                self._index.save(str(folder / _INDEX))
            with (folder / _PAYLOAD).open("w", encoding="utf-8") as file:
                file.writelines(f"{i} {text}\n" for i, text in sorted(self._payloads.items()))
            meta = {
                "dim": self.dim,
                "kind": self.kind,
                "metric": self.metric,
                "files": {name: _digest(folder / name) for name in (_INDEX, _PAYLOAD)},
            }
        write_state(folder / _STATE, meta, {})
        for name in (_INDEX, _PAYLOAD, _STATE):
            sync(folder / name)
        sync(folder)

    def _restore(self, folder: Path, mmap: bool) -> None:
        meta, _ = read_state(folder / _STATE)
        for name, digest in meta["files"].items():
            if _digest(folder / name) != digest:
                raise CorruptCollection(f"{folder / name}: altered: its content does not have the digest noted for it")
        with self._lock, engine_errors(f"usearch: {folder} cannot be read"):
            self._index = self._usearch.Index.restore(str(folder / _INDEX), view=mmap)
            with (folder / _PAYLOAD).open(encoding="utf-8") as file:
                lines = (line.rstrip("\n").split(" ", 1) for line in file)
                self._payloads = {int(i): text for i, text in lines}
        self.dim, self.kind, self.metric = meta["dim"], cast("Kind", meta["kind"]), cast("Metric", meta["metric"])
        self._read_only = mmap

    def close(self) -> None:
        with self._lock:
            self._index = None
            self._payloads = {}
            self.dim = None

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        self._changeable()
        texts = [json.dumps(dict(value)) for value in payload] if payload is not None else [""] * len(ids)
        with self._lock, engine_errors("usearch: storing failed"):
            stored = ids[self._index.contains(ids.view(np.uint64))]
            if len(stored):
                self._index.remove(stored.view(np.uint64))
            self._index.add(ids.view(np.uint64), vectors, threads=self.options.threads)
            for i, text in zip(ids.tolist(), texts, strict=True):
                if text and text != "{}":
                    self._payloads[i] = text
                else:
                    self._payloads.pop(i, None)

    def _delete(self, ids: Ids) -> None:
        self._changeable()
        with self._lock, engine_errors("usearch: deleting failed"):
            self._index.remove(ids.view(np.uint64))
            for i in ids.tolist():
                self._payloads.pop(i, None)

    def _count(self) -> int:
        return len(self._index)

    def _fetch(self, ids: Ids) -> Codes:
        with self._lock, engine_errors("usearch: reading failed"):
            values = self._index.get(ids.view(np.uint64))
        found = {i: value for i, value in zip(ids.tolist(), values, strict=True) if value is not None}
        rows = [found[i] for i in present(ids, found)]
        dtype, width = (np.uint8, self._width // 8) if self.kind == "binary" else (np.float32, self._width)
        return np.asarray(rows, dtype).reshape(len(ids), width)

    @property
    def _width(self) -> int:
        return cast("int", self.dim)

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        with self._lock:
            there = self._index.contains(ids.view(np.uint64)) if len(ids) else np.array([], np.bool_)
            if not np.all(there):
                raise UnknownId(f"id {int(ids[int(np.argmin(there))])} is not stored")
            return [dict(json.loads(self._payloads.get(i, "{}"))) for i in ids.tolist()]

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        with self._lock:
            ids = np.sort(np.asarray(self._index.keys, np.uint64)).view(np.int64)
        for some in batches(len(ids), batch_size):
            yield Batch(ids[some], self._fetch(ids[some]), self._payload(ids[some]))

    def _changeable(self) -> None:
        if self._read_only:
            raise Unsupported("backend 'usearch': a mapped index is read-only: restore it without mmap to change it")

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits:
        if where is None:
            return self._nearest(vectors, k, options, exact=options.exact)
        items = self._count()
        with self._lock:
            return search_filtered(
                # The last look is at everything, which a graph does not promise.
                lambda v, n: self._nearest(v, n, options, exact=options.exact or n >= items),
                self._payload,
                where,
                vectors,
                k,
                items,
            )

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        return within(
            self._search(vectors, max(1, self._count()), where, self._search_options({"exact": True})), radius
        )

    def _nearest(self, vectors: Codes, k: int, options: Any, *, exact: bool) -> Hits:
        hits = missing_hits(len(vectors), k)
        with self._lock:
            if len(vectors) == 0 or len(self._index) == 0:
                return hits
            with engine_errors("usearch: searching failed"):
                self._index.expansion_search = options.expansion
                found = self._index.search(vectors, k, exact=exact, threads=self.options.threads)
        # One query gives a flat answer; slots beyond the count hold rubbish.
        keys, distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        counts = np.asarray(found.counts if len(vectors) > 1 else [len(found)])
        filled = np.arange(keys.shape[1]) < counts[:, None]
        hits.ids[:, : keys.shape[1]][filled] = keys[filled].astype(np.int64)
        hits.distances[:, : keys.shape[1]][filled] = distances[filled] - (self.metric == "ip")  # usearch: 1 - product
        return hits


def _digest(path: Path) -> str:
    """SHA-256 of a file. Raises CorruptCollection where it is missing."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise CorruptCollection(f"{path}: cannot be read ({error.strerror})") from error
