"""FAISS's own hashing: it takes floats and makes the codes inside, with random hyperplanes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.backends.faiss._backend import FaissBackend
from cbir_faiss.base import Capabilities
from cbir_faiss.base.options import Bits
from cbir_faiss.errors import ConfigError
from cbir_faiss.types import Codes, Kind, Metric


class FaissLSH(FaissBackend):
    """IndexLSH. Distances are Hamming's, between codes of ``bits`` bits.

    Its own range search compares decoded vectors by L2, so radius queries are made of ordinary searches.
    """

    name: ClassVar[str] = "faiss-lsh"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("hamming",)
    capabilities: ClassVar[Capabilities] = Capabilities(
        delete="emulated", filter="emulated", range="emulated", vectors="refused"
    )
    exact: ClassVar[bool] = True
    needs_training: ClassVar[bool] = True

    class Options(base.Options):
        bits: Bits = Field(description="length of the code")
        rotate: bool = Field(True, description="rotate at random first; without it, bits is at most the dimension")
        thresholds: bool = Field(False, description="split each bit at its median over the training sample, not at 0")

    def _setup(self) -> None:
        super()._setup()
        self._declare(needs_training=self.options.thresholds)

    def _metric_for(self, kind: Kind) -> Metric:
        return "hamming"

    def _new_index(self, sample: Codes | None) -> Any:
        bits, rotate, thresholds = self.options.bits, self.options.rotate, self.options.thresholds
        if not rotate and bits > (self.dim or 0):
            raise ConfigError(f"without rotation at most {self.dim} bits come of {self.dim} dimensions", path="bits")
        index = self._faiss.IndexLSH(self.dim, bits, rotate, thresholds)
        if sample is not None:
            index.train(sample)
        return index

    @property
    def code_bits(self) -> int | None:
        return int(self.options.bits)

    def hamming_codes(self, vectors: Codes) -> NDArray[np.uint8] | None:
        """The codes that the index makes of float vectors ``(n, dim)``; None before it is created (and trained)."""
        if self._index is None:
            return None
        codes: NDArray[np.uint8] = self._index.sa_encode(self._check_vectors(vectors))
        return codes
