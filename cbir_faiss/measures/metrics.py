"""The measures of a search by relevance, for every query and as means.

With rel(i) 1 where the item at rank i is relevant, found(k) the relevant ones among the first k, and T of them in the
database:

    precision@k   found(k) / k, also where fewer than k items were returned
    recall@k      found(k) / T
    hit@k         1 where found(k) > 0
    map@k         mean of AP@k = sum over i <= k of rel(i) found(i) / i, divided by found(k)
    map_full@k    the same sum, divided by min(k, T)
    map_trapezoid@k   sum over i <= k of rel(i) (found(i) / i + found(i - 1) / (i - 1)) / 2, divided by min(k, T); the
                  second quotient is 1 at i = 1. With k the number of items it is the area under the precision-recall
                  curve that the program of Oxford5k computes
    ndcg@k        sum over i <= k of rel(i) / log2(i + 1), divided by its value where the first min(k, T) are relevant
    mrr@k         1 / i of the first i <= k with rel(i); 0 where there is none
    r_precision   found(T) / T
    map@r         the sum of map over i <= T, divided by T (Musgrave, Belongie and Lim, ECCV 2020)
    map           map@k with k the number of items: AP over the whole ranking

``r_precision`` and ``map@r`` look as deep as there are relevant items: they are known where whole rankings are, or
enough hits. ``map`` is known where whole rankings are. A quotient without a divisor is 0: a query with nothing to find,
or nothing found, counts as 0.

Ties: where the exact Hamming histograms are given, the value is the expectation over the orders of tied items, and
``_min`` and ``_max`` those of the worst and best order; ``_observed`` is always the order that was returned. Exact
float search has, in effect, no ties: all four are equal. Approximate search has no known worst and best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures.bootstrap import bootstrap_ci
from cbir_faiss.measures.histograms import Histograms
from cbir_faiss.measures.ties import Spread, TiedRankings, Values, discounts, whole_average_precision

MEASURES = ("map", "map_full", "map_trapezoid", "ndcg", "mrr", "precision", "hit", "recall")
AT_TOTALS = {"r_precision": "precision", "map@r": "map_full"}
"""Measures at a k of each query's own, the relevant items that it has, and what they are at a k."""
WHOLE = (*AT_TOTALS, "map")
"""Measures without a k, of which ``of_whole`` has the definitions."""
_QUERIES = 2_000  # whose groups of ties are held at a time


def per_query(
    relevant: NDArray[np.bool_],
    totals: NDArray[np.int64],
    ks: Sequence[int],
    *,
    histograms: Histograms | None = None,
    exact: bool = False,
) -> dict[str, Values]:
    """Every measure of every query, float64 ``(nq,)``: ``map@5``, ``map@5_observed``, and so on.

    ``_min`` and ``_max`` are there with ``histograms`` or ``exact``, and not for approximate search. ``r_precision``
    and ``map@r`` are there with ``histograms``, and where K reaches every query's total, without which they have no
    ``_observed``. ``map`` is there with ``histograms``, and never observed.

    Args:
        relevant: ``(nq, K)`` in the order returned; False where nothing was. K may be less than a k only because the
            database holds no more than K items.
        totals: int64 ``(nq,)``, relevant items in the database.
        ks: the ranks to measure at.
        histograms: of exact Hamming search, from the codes that were searched.
        exact: whether the search was exact over floats; of no effect beside ``histograms``.

    Raises:
        InputError: arrays that do not fit together, or a k below 1.
    """
    _check(relevant, totals, ks, histograms)
    seen = {f"{name}@{k}": values for k in ks for name, values in _observed(relevant, k, totals).items()}
    if relevant.shape[1] >= totals.max(initial=0):
        seen |= at_totals(relevant, totals)
    if histograms is None:
        spreads = {key: Spread(values, values, values) for key, values in seen.items()}
    else:
        spreads = _tied(histograms, ks, totals)
    out: dict[str, Values] = {}
    for key, spread in spreads.items():
        if key in seen:
            out[f"{key}_observed"] = seen[key]
        out[key] = spread.expected
        if histograms is not None or exact:
            out[f"{key}_min"], out[f"{key}_max"] = spread.worst, spread.best
    return out


def at_totals(relevant: NDArray[np.bool_], totals: NDArray[np.int64]) -> dict[str, Values]:
    """``r_precision`` and ``map@r`` of every query ``(nq,)``, from rankings ``(nq, K)`` with K at least ``totals``."""
    values = _observed(relevant, totals, totals)
    return {key: values[name] for key, name in AT_TOTALS.items()}


def of_whole(relevant: NDArray[np.bool_], totals: NDArray[np.int64]) -> dict[str, Values]:
    """``r_precision``, ``map@r`` and ``map`` of every query ``(nq,)``, from rankings of all items ``(nq, n)``."""
    query, place = np.nonzero(relevant)
    found = np.arange(1, len(query) + 1) - (np.cumsum(totals) - totals)[query]
    sums = np.bincount(query, found / (place + 1), len(totals))
    return {**at_totals(relevant, totals), "map": _ratio(sums, totals)}


def measure(
    relevant: NDArray[np.bool_],
    totals: NDArray[np.int64],
    ks: Sequence[int],
    *,
    histograms: Histograms | None = None,
    exact: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The means of ``per_query`` over queries, as ``results.json`` has them; the arguments and errors are the same.

    For each measure: the value, ``_min``, ``_max`` and ``_observed`` (None where they are not known); for map also
    ``_ci95``, low and high of the bootstrap over queries, paired among all results of the same queries and ``seed``.
    """
    return summary(per_query(relevant, totals, ks, histograms=histograms, exact=exact), seed=seed)


def summary(values: dict[str, Values], *, seed: int = 0) -> dict[str, Any]:
    """``measure`` from what ``per_query`` returned."""
    out: dict[str, Any] = {}
    for key in shown(values):
        out[key] = float(values[key].mean())
        for suffix in ("_min", "_max", "_observed"):
            out[key + suffix] = float(values[key + suffix].mean()) if key + suffix in values else None
        if key.partition("@")[0] == "map":
            out[f"{key}_ci95"] = bootstrap_ci(values[key], seed=seed).tolist()
    return out


def shown(values: dict[str, Values]) -> dict[str, Values]:
    """Of what ``per_query`` returned, the values behind the figures themselves: in expectation over ties where they are
    known, without ``_observed``, ``_min`` and ``_max``. Float64 ``(nq,)`` each and never NaN, so that two rows over the
    same queries can be compared query by query (``paired``).
    """
    return {key: values[key] for key in values if not key.endswith(("_observed", "_min", "_max"))}


def average_precision(relevant: NDArray[np.bool_]) -> Values:
    """AP@k of every query for every k of 1..K, float64 ``(nq, K)``, of rankings ``(nq, K)`` as they were returned."""
    sums, found = _cumulated(relevant)
    return _ratio(sums, found)


def _tied(histograms: Histograms, ks: Sequence[int], totals: NDArray[np.int64]) -> dict[str, Spread]:
    """Every measure in expectation over ties, and in the worst and best order, by its key."""
    parts: dict[str, list[Spread]] = {}
    for start in range(0, len(totals), _QUERIES):
        block = slice(start, start + _QUERIES)
        mine = totals[block]
        counts = Histograms(*(part[block] for part in histograms))
        rankings = TiedRankings(counts, max(*ks, int(mine.max())))
        found = {f"{name}@{k}": spread for k in ks for name, spread in rankings.measures(k, mine).items()}
        deep = rankings.measures(mine, mine)
        found |= {key: deep[name] for key, name in AT_TOTALS.items()} | {"map": whole_average_precision(counts)}
        for key, spread in found.items():
            parts.setdefault(key, []).append(spread)
    return {key: Spread(*map(np.concatenate, zip(*some, strict=True))) for key, some in parts.items()}


def _cumulated(relevant: NDArray[np.bool_]) -> tuple[Values, NDArray[np.int64]]:
    """Sum of the precision at the relevant ranks up to each rank, and relevant items up to it, both ``(nq, K)``."""
    found = np.cumsum(relevant, axis=1, dtype=np.int64)
    sums = np.cumsum(relevant * found / np.arange(1, relevant.shape[1] + 1), axis=1)
    return sums, found


def _observed(relevant: NDArray[np.bool_], k: int | NDArray[np.int64], totals: NDArray[np.int64]) -> dict[str, Values]:
    """Every measure at k, one for all or one a query, of rankings ``(nq, K)``; what lies beyond K is not relevant."""
    k = np.broadcast_to(k, totals.shape)
    relevant = relevant[:, : int(k.max())] & (np.arange(min(relevant.shape[1], int(k.max()))) < k[:, None])
    ranks = np.arange(1, relevant.shape[1] + 1)
    found = np.cumsum(relevant, axis=1, dtype=np.int64)
    precisions = found / ranks
    before = np.concatenate([np.ones((len(found), 1)), precisions[:, :-1]], axis=1)
    total, findable = relevant.sum(axis=1), np.minimum(k, totals)
    sums = (relevant * precisions).sum(axis=1)
    ideal = np.concatenate([[0.0], np.cumsum(discounts(int(findable.max())))])
    return {
        "map": _ratio(sums, total),
        "map_full": _ratio(sums, findable),
        "map_trapezoid": _ratio((relevant * (precisions + before)).sum(axis=1) / 2, findable),
        # Sums in another order differ by a rounding, and nothing is better than the ideal.
        "ndcg": np.minimum(_ratio((relevant * discounts(len(ranks))).sum(axis=1), ideal[findable]), 1.0),
        "mrr": (relevant / ranks * (found == 1)).max(axis=1, initial=0.0),
        "precision": _ratio(total, k),
        "hit": (total > 0).astype(np.float64),
        "recall": _ratio(total, totals),
    }


def _ratio(values: NDArray[Any], divisor: NDArray[Any]) -> Values:
    return np.where(divisor > 0, values / np.where(divisor > 0, divisor, 1), 0.0)


def _check(relevant: NDArray[Any], totals: NDArray[Any], ks: Sequence[int], histograms: Histograms | None) -> None:
    if relevant.ndim != 2 or relevant.dtype != np.bool_ or not relevant.size:
        raise InputError(f"relevant must be bool (queries, ranks) and not empty, got {relevant.dtype} {relevant.shape}")
    if not ks or min(ks) < 1:
        raise InputError(f"ks must be ranks from 1 on, got {list(ks)}")
    if totals.shape != relevant.shape[:1]:
        raise InputError(f"{len(relevant)} queries, but totals {totals.shape}")
    if histograms is not None and not np.array_equal(histograms.relevant.sum(axis=1), totals):
        raise InputError("the histograms do not hold each query's relevant items: they belong to other data")
