"""Codes in inverted lists: a search compares the query with those of the nearest lists only."""

from __future__ import annotations

from typing import ClassVar

from cbir_faiss.backends.faiss._lists import InvertedLists, ListOptions, ProbeOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric


class FaissBinaryIVF(InvertedLists):
    """IndexBinaryIVF: distances are exact, neighbours in lists that are not looked into are missed."""

    name: ClassVar[str] = "faiss-binary-ivf"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("hamming",)
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", filter="emulated")
    needs_training: ClassVar[bool] = True
    Options = ListOptions
    SearchOptions = ProbeOptions

    def _factory(self, n: int) -> str:
        return f"BIVF{self._nlist(n)}"
