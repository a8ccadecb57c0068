"""Hash tables of codes: a search looks into the buckets that the query falls into, and nowhere else."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.backends.faiss._any import AnyIndex
from cbir_faiss.backends.faiss._backend import Raw
from cbir_faiss.base import Capabilities
from cbir_faiss.errors import ConfigError
from cbir_faiss.types import Codes, Ids, Kind, Metric

_WHOLE_BUCKETS = 1024  # neighbours from which on FAISS's heap costs more than taking the buckets whole


class FaissBinaryMultiHash(AnyIndex):
    """IndexBinaryMultiHash: table i has the code's i-th run of ``key_bits`` bits as key.

    A search may find fewer than k items: only those that share a bucket with the query. With k as large as the
    collection it returns the buckets' whole content, for a rescorer to rank (Luo et al. 2022).
    """

    name: ClassVar[str] = "faiss-binary-multihash"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("hamming",)
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", filter="emulated", range="emulated")

    class Options(base.Options):
        tables: int = Field(4, ge=1, le=64, description="hash tables")
        key_bits: int | None = Field(None, ge=1, le=32, description="bits of a table's key; None: at most 16")

    class SearchOptions(base.Options):
        nflip: int = Field(0, ge=0, le=8, description="also the buckets whose key differs in up to so many bits")

    def _setup(self) -> None:
        super()._setup()
        self._probing = threading.Lock()

    def _factory(self, n: int) -> str:
        bits, tables = self.dim or 0, self.options.tables
        key_bits = self.options.key_bits or max(1, min(16, bits // tables))
        if tables * key_bits > bits:
            raise ConfigError(f"{tables} tables with keys of {key_bits} bits need more than {bits} bits", path="tables")
        return f"BHash{tables}x{key_bits}"

    def _parameters(self, options: Any, selector: Any) -> Any:
        return None

    def _nearest(self, vectors: Codes, k: int, options: Any, selector: Any = None) -> Raw:
        # FAISS keeps this one search parameter in the index, so searches (each of them parallel) go one after another.
        with self._probing:
            self._index.nflip = options.nflip
            if k < _WHOLE_BUCKETS:
                return super()._nearest(vectors, k, options)
            limits, distances, rows = self._index.range_search(vectors, self._index.d + 1)
        return _first(limits, distances, rows, k)


def _first(limits: NDArray[Any], distances: NDArray[Any], rows: Ids, k: int) -> Raw:
    """The ``k`` nearest of each query's range, padded with row -1."""
    query = np.searchsorted(limits, np.arange(len(rows)), side="right") - 1
    order = np.lexsort((distances, query))
    rank = np.arange(len(rows)) - limits[query].astype(np.int64)
    keep = rank < k
    near = np.zeros((len(limits) - 1, k), np.float32)
    found = np.full((len(limits) - 1, k), -1, np.int64)
    near[query[keep], rank[keep]] = distances[order][keep]
    found[query[keep], rank[keep]] = rows[order][keep]
    return near, found
