"""Blocks of float distances between queries and items by one matrix product, exact enough to rank by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_floats, normalise
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.types import Floats, Metric

_ROWS = 1 << 13  # items whose norms are taken together


class Scores:
    """What orders the items for each query, smaller is nearer: the distance without what is constant for a query.

    Items are never copied, so that they may be a memory-mapped file; besides them one number an item is held.

    Args:
        items: float ``(n, dim)``. queries: float ``(nq, dim)``. metric: ``l2``, ``ip`` or ``cosine``.

    Raises:
        InputError: no items, arrays that are not finite floats, or a zero vector under cosine.
        DimensionMismatch: queries and items of different widths.
        Unsupported: another metric.
    """

    def __init__(self, items: NDArray[Any], queries: NDArray[Any], metric: Metric) -> None:
        if metric not in ("l2", "ip", "cosine"):
            raise Unsupported(f"float distances are l2, ip or cosine, not '{metric}'")
        self.items = check_floats(items, "database")
        self.queries = check_floats(queries, "queries", self.items.shape[1])
        if not len(self.items):
            raise InputError("database: there are no items to compare with")
        self.metric = metric
        # For l2: |x - c|^2 - 2 (q - c) x orders as |q - x|^2 does; taking the mean off keeps small differences of
        # distance from drowning in large norms.
        centre = self.items[:: max(1, len(self.items) // _ROWS)].mean(axis=0, dtype=np.float64).astype(np.float32)
        self.centred = self.queries - centre
        self.norms = _squared_norms(self.items, centre if metric == "l2" else np.zeros_like(centre))
        if metric == "cosine" and not self.norms.all():
            raise InputError(f"cosine of a zero vector is undefined (database row {int(np.argmin(self.norms))})")
        if metric == "l2":
            self._left = -2 * self.centred
        else:
            self._left = -normalise(self.queries) if metric == "cosine" else -self.queries

    def block(self, queries: slice, items: slice | None = None) -> Floats:
        """Scores float32 ``(queries, items)`` of a range of queries and items: the caller bounds its size."""
        items = items or slice(None)
        scores: Floats = self._left[queries] @ self.items[items].T
        if self.metric == "l2":
            scores += self.norms[items].astype(np.float32)
        elif self.metric == "cosine":
            scores /= np.sqrt(self.norms[items]).astype(np.float32)
        return scores


def _squared_norms(x: Floats, centre: Floats) -> NDArray[np.float64]:
    norms = np.empty(len(x))
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS] - centre
        norms[start : start + _ROWS] = np.einsum("ij,ij->i", part, part, dtype=np.float64)
    return norms
