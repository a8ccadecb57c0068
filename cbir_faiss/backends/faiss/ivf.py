"""Floats in inverted lists: a search compares the query with those of the nearest lists only."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cbir_faiss.backends.faiss._lists import InvertedLists, ListOptions, ProbeOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric


class FaissIVF(InvertedLists):
    """IndexIVFFlat: distances are exact, neighbours in lists that are not looked into are missed."""

    name: ClassVar[str] = "faiss-ivf"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated")
    needs_training: ClassVar[bool] = True
    SearchOptions = ProbeOptions

    class Options(ListOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")

    def _factory(self, n: int) -> str:
        return f"{self._lists(n)},Flat"
