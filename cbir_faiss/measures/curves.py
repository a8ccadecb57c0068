"""Curves of quality: precision against recall, map against k, precision within a Hamming radius. Means over queries.

Where a query has nothing to find, its precision counts as 0, as in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures.histograms import Histograms
from cbir_faiss.measures.metrics import average_precision
from cbir_faiss.measures.ties import TiedRankings

Curve = NDArray[np.float64]
_CELLS = 1 << 22


def precision_recall(rankings: Iterable[NDArray[np.bool_]], points: int = 11) -> Curve:
    """Mean precision ``(points,)`` at recall 0, …, 1 in equal steps, from blocks of full rankings ``(queries, n)``.

    Precision at a recall is that at the rank of the first item that reaches it: with T relevant items in all, of the
    t-th relevant one, t = max(1, ⌈recall · T⌉). Nothing is interpolated.

    Raises:
        InputError: fewer than 2 points, or no rankings.
    """
    total, queries = np.zeros(points), 0
    for relevant in rankings:
        totals = np.count_nonzero(relevant, axis=1)
        wanted = _wanted(totals, points)
        some = totals > 0
        ranks = np.nonzero(relevant)[1] + 1
        first = np.cumsum(totals) - totals
        total += (wanted[some] / ranks[first[some, None] + wanted[some] - 1]).sum(axis=0)
        queries += len(relevant)
    return _mean(total, queries)


def precision_recall_tied(histograms: Histograms, points: int = 11) -> Curve:
    """``precision_recall`` of exact Hamming search: t over the *expected* rank of the t-th relevant item.

    In a group of n tied items, r of them relevant, the expected position of the j-th relevant is j (n + 1) / (r + 1).

    Raises:
        InputError: fewer than 2 points, or no queries.
    """
    total = np.zeros(points)
    step = max(1, _CELLS // histograms.items.shape[1])
    for start in range(0, len(histograms.items), step):
        items, relevant = histograms.items[start : start + step], histograms.relevant[start : start + step]
        total += _tied_block(items.astype(np.int64), relevant.astype(np.int64), points)
    return _mean(total, len(histograms.items))


def map_curve(relevant: NDArray[np.bool_]) -> Curve:
    """map@k for k = 1, …, K ``(K,)``, from the hits ``(nq, K)`` in the order returned.

    Raises:
        InputError: no queries.
    """
    return _mean(average_precision(relevant).sum(axis=0), len(relevant))


def map_curve_tied(histograms: Histograms, ks: Sequence[int]) -> Curve:
    """map@k ``(len(ks),)`` of exact Hamming search, in expectation over the order of tied items.

    Raises:
        InputError: no queries, no k, or one below 1.
    """
    if not ks or min(ks) < 1:
        raise InputError(f"ks must be ranks from 1 on, got {list(ks)}")
    tied = TiedRankings(histograms, max(ks))
    totals = histograms.relevant.sum(axis=1, dtype=np.int64)
    sums = np.array([tied.measures(k, totals)["map"].expected.sum() for k in ks])
    return _mean(sums, len(totals))


def precision_within_radius(histograms: Histograms) -> Curve:
    """Mean precision ``(bits + 1,)`` among the items within Hamming distance 0, …, bits of the query.

    A query with no item that near counts as 0, as the literature on hashing counts it.

    Raises:
        InputError: no queries.
    """
    total = np.zeros(histograms.items.shape[1])
    step = max(1, _CELLS // histograms.items.shape[1])
    for start in range(0, len(histograms.items), step):
        items, relevant = (np.cumsum(part[start : start + step], axis=1, dtype=np.int64) for part in histograms)
        total += (relevant / np.maximum(items, 1)).sum(axis=0)
    return _mean(total, len(histograms.items))


def _wanted(totals: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    """Relevant items that each recall asks for, ``(queries, points)``; whole numbers, so that 0.7 of 10 is 7."""
    if points < 2:
        raise InputError(f"a curve takes at least 2 points, got {points}")
    wanted: NDArray[np.int64] = np.maximum(1, -(-np.arange(points) * totals[:, None] // (points - 1)))
    return wanted


def _tied_block(items: NDArray[np.int64], relevant: NDArray[np.int64], points: int) -> Curve:
    found, seen = np.cumsum(relevant, axis=1), np.cumsum(items, axis=1)
    some = found[:, -1] > 0
    wanted = _wanted(found[some, -1], points)
    # One search for all queries: each one's counts are lifted above those of the one before.
    lift = np.arange(len(wanted))[:, None] * (int(found.max(initial=0)) + 1)
    at = np.searchsorted((found[some] + lift).reshape(-1), wanted + lift)
    n, r = items[some].reshape(-1)[at], relevant[some].reshape(-1)[at]
    before, relevant_before = seen[some].reshape(-1)[at] - n, found[some].reshape(-1)[at] - r
    ranks = before + (wanted - relevant_before) * (n + 1) / (r + 1)
    curve: Curve = (wanted / ranks).sum(axis=0)
    return curve


def _mean(total: Curve, queries: int) -> Curve:
    if queries == 0:
        raise InputError("a curve takes at least one query")
    return total / queries
