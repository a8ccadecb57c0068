"""Curves of quality: precision against recall, map against k, precision within a Hamming radius. Means over queries.

Where a query has nothing to find, its precision counts as 0, as in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures.histograms import Histograms
from cbir_faiss.measures.metrics import average_precision
from cbir_faiss.measures.ties import TiedRankings

Curve = NDArray[np.float64]
_CELLS = 1 << 22
_PRECISION = 1e-13  # of a fraction's value: it changes less in its next steps


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
    """``precision_recall`` of exact Hamming search, in expectation over the order of tied items.

    Where the t-th relevant item is the j-th of the r relevant ones in a group of n that tie, behind N items, its rank
    is N + j + x, and x, how many irrelevant ones of the group lie before it, is negative hypergeometric. The precision
    is t E[1 / (N + j + x)], exactly (``_mean_inverse``).

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
    j = wanted - relevant_before
    inverse = _mean_inverse(*(values.reshape(-1) for values in (before + j, j, r, n - r)))
    curve: Curve = (wanted * inverse.reshape(wanted.shape)).sum(axis=0)
    return curve


def _mean_inverse(z: NDArray[Any], j: NDArray[Any], r: NDArray[Any], m: NDArray[Any]) -> Curve:
    """E[1 / (z + x)], float64 ``(n,)``: x irrelevant items before the j-th of r relevant ones, m irrelevant in all.

    A sum over x would be long where many items tie. Its Stieltjes fraction is short,

        1 / (z + A₀ / (1 + C₁ / (z + A₁ / (1 + C₂ / (z + …)))))

    with A and C from the recurrence of the Hahn polynomials, which are orthogonal under this distribution (Koekoek,
    Lesky and Swarttouw 2010, 9.5). All its terms are positive, so that nothing cancels; it ends after m of them.
    """
    z, j, r, m = (values.astype(np.float64) for values in (z, j, r, m))
    out = 1 / z
    inverse, step, left = out.copy(), out.copy(), np.arange(len(z))
    k = 0
    while len(left):
        inverse = 1 / (1 + _rising(k, j, r, m) * inverse)
        step = step * (inverse - 1)
        out[left] += step
        k += 1
        inverse = 1 / (z + _falling(k, j, r, m) * inverse)
        step = step * (z * inverse - 1)
        out[left] += step
        going = np.abs(step) > _PRECISION * out[left]
        left = left[going]
        z, j, r, m, inverse, step = (values[going] for values in (z, j, r, m, inverse, step))
    return out


def _rising(k: int, j: Curve, r: Curve, m: Curve) -> Curve:
    """A of degree k, of the parameters j - 1, r - j and m; 0 from the last degree on."""
    return (k + r) * (k + j) * np.maximum(m - k, 0) / ((2 * k + r) * (2 * k + r + 1))


def _falling(k: int, j: Curve, r: Curve, m: Curve) -> Curve:
    """C of degree k ≥ 1."""
    return k * (k + r + m) * (k + r - j) / ((2 * k + r - 1) * (2 * k + r))


def _mean(total: Curve, queries: int) -> Curve:
    if queries == 0:
        raise InputError("a curve takes at least one query")
    return total / queries
