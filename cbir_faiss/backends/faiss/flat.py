"""Exact search over floats: FAISS's flat index."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from cbir_faiss.backends.faiss._backend import DeviceOptions, FaissBackend
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Codes, Kind, Metric


class FaissFlat(FaissBackend):
    """IndexFlat: compares every query with every vector."""

    name: ClassVar[str] = "faiss-flat"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated")
    exact: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    ranges: ClassVar[bool] = True

    class Options(DeviceOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")

    def _new_index(self, sample: Codes | None) -> Any:
        return self._faiss.IndexFlat(self.dim, self._metric_type())
