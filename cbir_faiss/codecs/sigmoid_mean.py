"""Equation 3 of Varga and Szirányi, "Fast content-based image retrieval using CNN and hash function" (2016)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cbir_faiss.codecs._training import OneBitEach
from cbir_faiss.types import Floats, Kind


class SigmoidMean(OneBitEach):
    """Bit i is 1 where σ(xᵢ) - mean(σ(x)) > 0, σ the logistic function, the mean over the vector's own elements.

    As many bits as dimensions. ``center`` subtracts the database's mean from x before; the paper does not.
    """

    name: ClassVar[str] = "sigmoid-mean"
    kind: ClassVar[Kind] = "binary"

    def _project(self, x: Floats) -> Floats:
        # σ(x) = (1 + tanh(x / 2)) / 2, which does not overflow.
        sigmoid = 0.5 * np.tanh(0.5 * self._prepared(x)) + 0.5
        projected: Floats = sigmoid - sigmoid.mean(axis=1, keepdims=True)
        return projected
