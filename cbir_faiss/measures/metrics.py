"""The measures of a search by relevance, for every query and as means.

With rel(i) 1 where the item at rank i is relevant, found(k) the relevant ones among the first k, and T of them in the
database:

    precision@k   found(k) / k, also where fewer than k items were returned
    recall@k      found(k) / T
    hit@k         1 where found(k) > 0
    map@k         mean of AP@k = sum over i <= k of rel(i) found(i) / i, divided by found(k)
    map_full@k    the same sum, divided by min(k, T)

A quotient without a divisor is 0: a query with nothing to find, or nothing found, counts as 0.

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
from cbir_faiss.measures.ties import TiedRankings, Values

MEASURES = ("map", "map_full", "precision", "hit", "recall")


def per_query(
    relevant: NDArray[np.bool_],
    totals: NDArray[np.int64],
    ks: Sequence[int],
    *,
    histograms: Histograms | None = None,
    exact: bool = False,
) -> dict[str, Values]:
    """Every measure of every query, float64 ``(nq,)``: ``map@5``, ``map@5_observed``, and so on.

    ``_min`` and ``_max`` are there with ``histograms`` or ``exact``, and not for approximate search.

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
    tied = None if histograms is None else TiedRankings(histograms, max(ks))
    sums, found = _cumulated(relevant[:, : max(ks)])
    out: dict[str, Values] = {}
    for k in ks:
        last = min(k, relevant.shape[1]) - 1
        observed = _observed(sums[:, last], found[:, last], totals, k)
        spreads = tied.measures(k, totals) if tied else {}
        for name in MEASURES:
            key, seen = f"{name}@{k}", observed[name]
            out[f"{key}_observed"] = seen
            out[key], least, most = spreads.get(name, (seen, seen, seen))
            if tied or exact:
                out[f"{key}_min"], out[f"{key}_max"] = least, most
    return out


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

    For each k and measure: the value, ``_min``, ``_max`` (None for approximate search) and ``_observed``; for map also
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
        if key.startswith("map@"):
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


def _cumulated(relevant: NDArray[np.bool_]) -> tuple[Values, NDArray[np.int64]]:
    """Sum of the precision at the relevant ranks up to each rank, and relevant items up to it, both ``(nq, K)``."""
    found = np.cumsum(relevant, axis=1, dtype=np.int64)
    sums = np.cumsum(relevant * found / np.arange(1, relevant.shape[1] + 1), axis=1)
    return sums, found


def _observed(sums: Values, found: NDArray[np.int64], totals: NDArray[np.int64], k: int) -> dict[str, Values]:
    return {
        "map": _ratio(sums, found),
        "map_full": _ratio(sums, np.minimum(k, totals)),
        "precision": found / k,
        "hit": (found > 0).astype(np.float64),
        "recall": _ratio(found, totals),
    }


def _ratio(values: NDArray[Any], divisor: NDArray[np.int64]) -> Values:
    return np.where(divisor > 0, values / np.maximum(divisor, 1), 0.0)


def _check(relevant: NDArray[Any], totals: NDArray[Any], ks: Sequence[int], histograms: Histograms | None) -> None:
    if relevant.ndim != 2 or relevant.dtype != np.bool_ or not relevant.size:
        raise InputError(f"relevant must be bool (queries, ranks) and not empty, got {relevant.dtype} {relevant.shape}")
    if not ks or min(ks) < 1:
        raise InputError(f"ks must be ranks from 1 on, got {list(ks)}")
    if totals.shape != relevant.shape[:1]:
        raise InputError(f"{len(relevant)} queries, but totals {totals.shape}")
    if histograms is not None and not np.array_equal(histograms.relevant.sum(axis=1), totals):
        raise InputError("the histograms do not hold each query's relevant items: they belong to other data")
