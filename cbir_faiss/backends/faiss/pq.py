"""Product quantization in inverted lists, in the layout that is scanned in registers (fast scan)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cbir_faiss.backends.faiss._lists import InvertedLists, ListOptions, ProbeOptions
from cbir_faiss.base import Capabilities
from cbir_faiss.base.options import Bits
from cbir_faiss.errors import ConfigError
from cbir_faiss.types import Kind, Metric


class FaissPQ(InvertedLists):
    """IndexIVFPQFastScan: every 4 bits of a code name one of 16 centroids of one slice of the vector."""

    name: ClassVar[str] = "faiss-pq"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", range="emulated", vectors="emulated")
    needs_training: ClassVar[bool] = True
    SearchOptions = ProbeOptions

    class Options(ListOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
        bits: Bits = Field(description="length of the code; a quarter of it must divide the dimension")

    def _factory(self, n: int) -> str:
        slices = self.options.bits // 4
        if (self.dim or 0) % slices:
            raise ConfigError(f"{slices} slices of 4 bits do not divide {self.dim} dimensions", path="bits")
        return f"{self._lists(n)},PQ{slices}x4fs"
