"""Codes in an HNSW graph."""

from __future__ import annotations

from typing import ClassVar

from cbir_faiss.backends.faiss._graph import Graph, GraphOptions, WalkOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric


class FaissBinaryHNSW(Graph):
    """IndexBinaryHNSW: with short codes the graph takes many times the memory of the codes."""

    name: ClassVar[str] = "faiss-binary-hnsw"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("hamming",)
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", filter="emulated", range="emulated")
    Options = GraphOptions
    SearchOptions = WalkOptions

    def _factory(self, n: int) -> str:
        return f"BHNSW{self.options.m}"
