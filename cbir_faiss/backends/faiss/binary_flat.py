"""Exact Hamming search over packed codes: FAISS's flat binary index."""

from __future__ import annotations

from typing import Any, ClassVar

from cbir_faiss.backends.faiss._backend import DeviceOptions, FaissBackend
from cbir_faiss.base import Capabilities
from cbir_faiss.types import Codes, Kind, Metric


class FaissBinaryFlat(FaissBackend):
    """IndexBinaryFlat: compares every query with every code."""

    name: ClassVar[str] = "faiss-binary-flat"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("hamming",)
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated")
    exact: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    ranges: ClassVar[bool] = True
    Options = DeviceOptions

    def _new_index(self, sample: Codes | None) -> Any:
        return self._faiss.IndexBinaryFlat(self.dim)
