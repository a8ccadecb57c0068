"""rabitqlib, by the authors of RaBitQ: an HNSW graph over codes of 1 to 9 bits a dimension, in memory."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.backends._rabitqlib import CodeOptions, OnRaBitQLib, Stored
from cbir_faiss.backends.faiss._backend import widened
from cbir_faiss.backends.faiss._graph import GraphOptions, Walked, WalkOptions
from cbir_faiss.types import Floats

_CENTROIDS, _PER_CENTROID = 16, 39
_ROOM = 1.25  # times the items that it holds: what is made room for when there is none


class _Graph(Stored):
    def add(self, vectors: Floats) -> None:
        # The library's graph takes so many items as it was made for. One was removed before the first.
        needed = self.stored.num_stored_points + len(vectors)
        if needed > self.stored.max_elements:
            first = self.stored.num_stored_points <= 1
            self.stored.resize(needed if first else int(_ROOM * needed))
        super().add(vectors)

    def _wide(self, k: int, options: Any) -> int:
        return max(k, int(options.ef))


class RaBitQHNSW(Walked, OnRaBitQLib):
    """HnswIndex of rabitqlib: a walk compares codes, in the order in which it comes to them."""

    name: ClassVar[str] = "rabitq-hnsw"
    takes: ClassVar[type[Stored]] = _Graph
    SearchOptions = WalkOptions

    class Options(GraphOptions, CodeOptions):
        bits: int = Field(8, ge=1, le=9, description="bits a dimension")
        m: int = Field(16, ge=2, le=256, description="neighbours a node keeps; memory and recall grow with it")

    def _centroids(self, n: int) -> int:
        return max(1, min(_CENTROIDS, n // _PER_CENTROID))

    def _empty(self, dim: int, centroids: int, metric: str) -> Any:
        chosen = self.options
        return self._library.HnswIndex(dim, 1, chosen.m, chosen.ef_construction, chosen.bits, metric)

    def _loaded(self, path: str) -> Any:
        return self._library.HnswIndex.load(path)

    def _wider(self, options: Any, share: float) -> Any:
        return options.model_copy(update={"ef": widened(options.ef, share, max(1, self._rows.n))})
