"""RaBitQ: one bit (or a few) a dimension in inverted lists, with distances that are estimated without bias."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cbir_faiss.backends.faiss._lists import InvertedLists, ListOptions, ProbeOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Kind, Metric


class FaissRaBitQ(InvertedLists):
    """IndexIVFRaBitQ (Gao and Long 2024). Codes take ``dim`` x ``nb_bits`` bits and a few bytes of factors an item.

    Its error bound holds for randomly rotated vectors; features of a network need the rotation.
    """

    name: ClassVar[str] = "faiss-rabitq"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", range="emulated", vectors="emulated")
    needs_training: ClassVar[bool] = True

    class Options(ListOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
        nb_bits: int = Field(1, ge=1, le=9, description="bits a dimension")
        rotate: bool = Field(True, description="rotate at random first")

    class SearchOptions(ProbeOptions):
        qb: int = Field(8, ge=0, le=8, description="bits a dimension of the query; 0: as floats, slower")

    def _factory(self, n: int) -> str:
        rotation = f"RR{self.dim}," if self.options.rotate else ""
        return f"{rotation}IVF{self._nlist(n)},RaBitQ{self.options.nb_bits if self.options.nb_bits > 1 else ''}"
