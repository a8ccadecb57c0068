"""Floats in an HNSW graph."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cbir_faiss.backends.faiss._graph import Graph, GraphOptions, WalkOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric


class FaissHNSW(Graph):
    """IndexHNSWFlat: the floats and the graph are in memory."""

    name: ClassVar[str] = "faiss-hnsw"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", filter="emulated", range="emulated")
    SearchOptions = WalkOptions

    class Options(GraphOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")

    def _factory(self, n: int) -> str:
        return f"HNSW{self.options.m},Flat"
