"""Float query against stored bits: finer than Hamming, and no floats are kept."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.errors import DimensionMismatch
from cbir_faiss.rescorers._rerank import Candidates, rerank
from cbir_faiss.types import Columns, Floats, Hits


class AsymmetricRescorer(base.Rescorer):
    """Distance -Σᵢ pᵢ·(2bᵢ - 1) of a query's projection p and an item's bits b.

    Up to a factor and a constant of the query it is the squared L2 distance of p to the code's corner of the cube
    {-1, 1}ⁿ: only the item is rounded, so less is lost than by Hamming, and hits hardly ever tie.
    """

    name: ClassVar[str] = "asymmetric"
    needs_items: ClassVar[tuple[str, ...]] = ("code",)
    needs_queries: ClassVar[tuple[str, ...]] = ("projection",)

    class Options(base.Options):
        candidates: Candidates = 100

    def _rescore(self, queries: Columns, hits: Hits, fetch: base.Fetch) -> Hits:
        return rerank(queries["projection"], hits, lambda ids: fetch(ids, "code"), _distances)


def _distances(projections: Floats, codes: NDArray[Any]) -> Floats:
    """float32 ``(n, m)`` of projections ``(n, bits)`` and packed codes ``(m, bits / 8)``, padding bits left out."""
    bits = projections.shape[1]
    if codes.shape[1] != -(-bits // 8):
        raise DimensionMismatch(f"rescorer 'asymmetric': projections of {bits} bits, codes of {codes.shape[1] * 8}")
    ones = np.unpackbits(codes, axis=1, count=bits).astype(np.float32)
    distances: Floats = projections.sum(axis=1, keepdims=True) - 2 * (projections @ ones.T)
    return distances
