"""Exact float neighbours, and the share of them that a search found.

The exact neighbours are a distance, not a list: whatever is no farther than the k-th nearest counts, so that ties do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_rows
from cbir_faiss.errors import InputError
from cbir_faiss.measures.scores import Scores
from cbir_faiss.types import MISSING_ID, Ids, Metric

Distances = NDArray[np.float64]
_QUERIES, _ITEMS = 1 << 10, 1 << 13  # a block of scores: 32 MiB
_GATHERED = 1 << 22  # numbers gathered at a time for distances of single pairs
_SPARE = 16  # candidates beyond k: rounding of the matrix product would have to misplace more than these
_ROUNDING = 1e-6  # about eight roundings of float32


def exact_thresholds(items: NDArray[Any], queries: NDArray[Any], k: int, metric: Metric) -> Distances:
    """Column j - 1 is the distance up to which an item is among the j nearest: float64 ``(nq, min(k, n))``.

    It is the exact distance of the j-th nearest (as ``true_distances`` has it) plus an allowance of 1e-6 of the
    magnitudes that a float32 search works with, so that items which it cannot tell apart count as tied: for ``l2`` of
    that distance plus the query's squared distance from the mean, for ``ip`` of the query's norm times the largest
    norm of an item, for ``cosine`` of 1.

    All pairs are compared, in blocks; ``items`` may be memory-mapped.

    Raises:
        InputError: k < 1, no items, arrays that are not finite floats, or a zero vector under cosine.
        DimensionMismatch: queries and items of different widths.
        Unsupported: another metric.
    """
    return exact_neighbours(items, queries, k, metric)[1]


def exact_neighbours(items: NDArray[Any], queries: NDArray[Any], k: int, metric: Metric) -> tuple[Ids, Distances]:
    """The rows of the nearest, int64 ``(nq, min(k, n))``, and ``exact_thresholds``, which has the arguments and errors.

    Of items that tie, which comes first is arbitrary.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
    scores = Scores(items, queries, metric)
    n, nq = len(scores.items), len(scores.queries)
    nearest, out = np.empty((nq, min(k, n)), np.int64), np.empty((nq, min(k, n)))
    for start in range(0, nq, _QUERIES):
        block = slice(start, min(start + _QUERIES, nq))
        rows = _candidates(scores, block, min(k + _SPARE, n))
        distances = true_distances(scores.items, scores.queries[block], rows, metric)
        order = np.argsort(distances, axis=1, kind="stable")[:, : min(k, n)]
        nearest[block] = np.take_along_axis(rows, order, axis=1)
        out[block] = np.take_along_axis(distances, order, axis=1)
    return nearest, out + _allowance(scores, out)


def of_others(thresholds: Distances, own: Distances) -> Distances:
    """``exact_thresholds`` ``(nq, k + 1)`` of queries that are items themselves, without themselves: ``(nq, k)``.

    own: the distance of each from itself, float64 ``(nq,)``; by inner product that need not be the least.
    """
    return np.where(own[:, None] <= thresholds[:, :-1], thresholds[:, 1:], thresholds[:, :-1])


def true_distances(items: NDArray[Any], queries: NDArray[Any], rows: Ids, metric: Metric) -> Distances:
    """The distance, float64 ``(nq, k)``, of each of ``rows`` ``(nq, k)`` from its query; infinite for a row of -1.

    Each pair is computed by itself, as ``types.Metric`` defines it, so rounding is far below that of any search.

    Raises:
        InputError: not one line of rows a query, or a row beyond the items.
    """
    check_rows(rows, len(queries), len(items))
    out = np.empty(rows.shape)
    step = max(1, _GATHERED // max(1, rows.shape[1] * items.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        out[block] = _pairs(items[rows[block]].astype(np.float64), queries[block, None].astype(np.float64), metric)
    out[rows == MISSING_ID] = np.inf
    return out


def knn_recall(distances: Distances, thresholds: Distances, k: int) -> Distances:
    """The share of the k exact nearest neighbours found among the first k hits, float64 ``(nq,)``.

    Args:
        distances: true distances of the hits ``(nq, K)``, in the order returned.
        thresholds: from ``exact_thresholds``. These, and the hits, may be less than k only because the database
            holds no more items; then the share is of all items.
        k: how many neighbours.

    Raises:
        InputError: k < 1, or hits and thresholds of different queries.
    """
    if k < 1 or len(distances) != len(thresholds):
        raise InputError(f"k = {k}, {len(distances)} queries with hits and {len(thresholds)} with exact neighbours")
    count = min(k, thresholds.shape[1])
    found: Distances = (distances[:, :count] <= thresholds[:, count - 1, None]).sum(axis=1) / count
    return found


def _candidates(scores: Scores, queries: slice, count: int) -> Ids:
    """Rows ``(queries, count)`` of the best scores, in no order."""
    count_queries = queries.stop - queries.start
    rows, best = np.empty((count_queries, 0), np.int64), np.empty((count_queries, 0), np.float32)
    for start in range(0, len(scores.items), _ITEMS):
        new = scores.block(queries, slice(start, start + _ITEMS))
        numbers = np.broadcast_to(np.arange(start, start + new.shape[1]), new.shape)
        if new.shape[1] > count:
            new, numbers = _smallest(new, numbers, count)
        best, rows = np.concatenate([best, new], axis=1), np.concatenate([rows, numbers], axis=1)
        if best.shape[1] > count:
            best, rows = _smallest(best, rows, count)
    return rows


def _smallest(scores: NDArray[Any], rows: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    keep = np.argpartition(scores, count - 1, axis=1)[:, :count]
    return np.take_along_axis(scores, keep, axis=1), np.take_along_axis(rows, keep, axis=1)


def _pairs(x: Distances, q: Distances, metric: Metric) -> Distances:
    """Distances of ``x`` ``(nq, k, dim)`` from ``q`` ``(nq, 1, dim)``."""
    if metric == "l2":
        x -= q
        squares: Distances = np.einsum("ijk,ijk->ij", x, x)
        return squares
    dots: Distances = np.einsum("ijk,ilk->ij", x, q)
    if metric == "ip":
        return -dots
    norms: Distances = np.sqrt(np.einsum("ijk,ijk->ij", x, x) * np.einsum("ilk,ilk->i", q, q)[:, None])
    return 1 - dots / norms


def _allowance(scores: Scores, distances: Distances) -> Distances:
    if scores.metric == "l2":
        spread = np.einsum("ij,ij->i", scores.centred, scores.centred, dtype=np.float64)
        allowed: Distances = _ROUNDING * (distances + spread[:, None])
        return allowed
    if scores.metric == "cosine":
        return np.full_like(distances, _ROUNDING)
    norms = np.einsum("ij,ij->i", scores.queries, scores.queries, dtype=np.float64) * scores.norms.max()
    return np.broadcast_to(_ROUNDING * np.sqrt(norms)[:, None], distances.shape)
