"""What graph backends share: how the graph is built, and how wide a search walks in it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cbir_faiss import base
from cbir_faiss.backends.faiss._any import AnyIndex
from cbir_faiss.backends.faiss._backend import SEEN_EACH, FaissBackend


class GraphOptions(base.Options):
    """Options of an HNSW graph."""

    m: int = Field(32, ge=2, le=256, description="neighbours a node keeps; memory and recall grow with it")
    ef_construction: int = Field(80, ge=1, description="candidates while building: quality against build time")


class WalkOptions(base.Options):
    """Search options of an HNSW graph."""

    ef: int = Field(64, ge=1, description="candidates that a search keeps: recall against time")


class Walked(FaissBackend):
    """A graph, which a search walks towards the query."""

    def _scanned(self, queries: int, options: Any) -> float:
        # A walk compares the query with some neighbours of each candidate, and not with everything.
        seen: float = min(1.0, SEEN_EACH * options.ef / max(1, self._rows.n))
        return super()._scanned(queries, options) * seen


class Graph(Walked, AnyIndex):
    """Items are nodes of an HNSW graph (Malkov and Yashunin 2018)."""

    def _adjust(self, leaf: Any) -> None:
        leaf.hnsw.efConstruction = self.options.ef_construction
