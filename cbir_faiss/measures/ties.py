"""Measures of a ranking with ties: their expectation over all orders of tied items, and the worst and best order.

A ranking is a sequence of groups of tied items, one for each distance: n items, r of them relevant, behind N items of
which R are relevant. Groups that lie whole among the first k contribute the same whatever happens elsewhere. The group
that crosses rank k fills m = k - N slots, and x, how many of these are relevant, is hypergeometric.

    G(m, x) = (x / m) [b m + (R + 1 - b (N + 1)) (H(N + m) - H(N))],   b = (x - 1) / (m - 1), 0 where m = 1

is the expected sum of the precision at the relevant ranks of m slots with x relevant in random order (H are harmonic
numbers): each slot is relevant with probability x / m and then has, in expectation, R + 1 + b (j - 1) relevant items
among the first N + j. With x given, the first k hold R + x relevant items for certain, hence

    E[AP@k] = sum over x of P(x) (A + G(m, x)) / (R + x),   A the sum of G(n, r) over the whole groups.

The least and greatest AP of an x come from the relevant items last or first in every group; then over x too, because
more relevant items also mean a larger divisor. What else is a sum over the ranks of relevant items, by trapezoids or
discounted, goes the same way.

The reciprocal rank needs the first group with relevant items alone, r of its n: rank N + p has the first of them with
probability r / (n - p + 1) times that of p - 1 irrelevant ones before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.measures.histograms import Histograms

Values = NDArray[np.float64]
_CELLS = 1 << 20  # (query, x) pairs worked on together


class Spread(NamedTuple):
    """A measure of every query ``(nq,)``: expected over the orders of tied items, and in the worst and best order."""

    expected: Values
    worst: Values
    best: Values


class _Cut(NamedTuple):
    """How rank k cuts the rankings, int64 ``(nq,)`` each: what lies before the crossing group, and that group."""

    before: NDArray[np.int64]
    relevant_before: NDArray[np.int64]
    slots: NDArray[np.int64]  # m; 0 where no group crosses
    size: NDArray[np.int64]
    relevant: NDArray[np.int64]


class _Tables(NamedTuple):
    """Sums over ranks 1, …, i, by i from 0: of 1 / i, and of the discounts 1 / log2(i + 1)."""

    harmonic: Values
    discounts: Values


_Sum = Callable[[_Tables, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], tuple[Values, Values, Values]]
"""Over the x relevant ones of m slots behind N items of which R are relevant, from (tables, N, R, m, x): a sum in
expectation, and with the relevant ones last and first."""


class TiedRankings:
    """The rankings of nq queries, known up to the order of tied items.

    Args:
        histograms: items and relevant items by distance.
        deepest: the largest k that will be asked for; groups beyond it are forgotten.
    """

    def __init__(self, histograms: Histograms, deepest: int) -> None:
        items, relevant = histograms
        before = np.cumsum(items, axis=1, dtype=np.int32) - items
        relevant_before = np.cumsum(relevant, axis=1, dtype=np.int32) - relevant
        at = np.nonzero((items > 0) & (before < deepest))
        self._nq, self._query = len(items), at[0]
        self._before, self._relevant_before = before[at].astype(np.int64), relevant_before[at].astype(np.int64)
        self._size, self._relevant = items[at].astype(np.int64), relevant[at].astype(np.int64)
        reach = min(deepest, int((self._before + self._size).max(initial=0)))
        self._tables = _tables(reach)
        whole = np.where(self._before + self._size <= reach, self._size, 0)
        relevant_of_whole = np.where(whole > 0, self._relevant, 0)
        terms: tuple[_Sum, ...] = (_precisions, _trapezoids, _gains)
        self._sums = {
            term: term(self._tables, self._before, self._relevant_before, whole, relevant_of_whole) for term in terms
        }

    def measures(self, k: int | NDArray[np.int64], totals: NDArray[np.int64]) -> dict[str, Spread]:
        """The measures at k of every query, by name, defined as in ``metrics``.

        ``totals`` int64 ``(nq,)`` are the relevant items in the database; k, one for all or one a query, is at most
        ``deepest``.
        """
        cut = self._cut(k)
        sums, precise, hit = self._summed(cut)
        least, most = _range_of(cut)
        share = cut.slots * cut.relevant / np.maximum(cut.size, 1)
        counts = [cut.relevant_before + values for values in (share, least, most)]
        findable = np.minimum(k, totals)
        return {
            "map": precise,
            "map_full": _over(sums[_precisions], findable),
            "map_trapezoid": _over(sums[_trapezoids], findable),
            "ndcg": _over(sums[_gains], self._tables.discounts[findable]),
            "mrr": self._reciprocal_rank(np.broadcast_to(k, self._nq)),
            "precision": _over(counts, np.broadcast_to(k, self._nq)),
            "hit": hit,
            "recall": _over(counts, totals),
        }

    def _summed(self, cut: _Cut) -> tuple[dict[_Sum, Spread], Spread, Spread]:
        """The sums over the ranks of relevant items up to the cut; that of precisions divided by the items found; and
        whether any was found."""
        sums = {term: Spread(*np.empty((3, self._nq))) for term in self._sums}
        precise, hit = (Spread(*np.empty((3, self._nq))) for _ in range(2))
        groups = self._whole(cut)
        whole = {term: [self._total(part, groups) for part in parts] for term, parts in self._sums.items()}
        least, most = _range_of(cut)
        width = 1 + int((most - least).max(initial=0))
        step = max(1, _CELLS // width)
        for start in range(0, self._nq, step):
            block = slice(start, start + step)
            # Beyond the most x the last one is repeated, with no probability: it changes neither a least nor a most.
            x = np.minimum(least[block, None] + np.arange(width), most[block, None])
            part = _Cut(*(values[block, None] for values in cut))
            chance = _hypergeometric(x, part)
            found = part.relevant_before + x
            for term, before in whole.items():
                group = term(self._tables, part.before, part.relevant_before, part.slots, x)
                total = [values[block, None] + crossing for values, crossing in zip(before, group, strict=True)]
                _fill(sums[term], block, chance, *total)
                if term is _precisions:
                    _fill(precise, block, chance, *(values / np.maximum(found, 1) for values in total))
            _fill(hit, block, chance, found > 0, found > 0, found > 0)
        return sums, precise, hit

    def _reciprocal_rank(self, k: NDArray[np.int64]) -> Spread:
        """1 over the rank of the first relevant item, 0 where that is beyond k ``(nq,)``."""
        holds = np.flatnonzero(self._relevant > 0)
        query, first = np.unique(self._query[holds], return_index=True)
        at = holds[first]
        n, r, before, reach = self._size[at], self._relevant[at], self._before[at], k[query]
        out = Spread(*np.zeros((3, self._nq)))
        for values, at_rank in ((out.worst, before + n - r + 1), (out.best, before + 1)):
            values[query] = np.where(at_rank <= reach, 1 / at_rank, 0.0)
        width = int(np.minimum(n - r + 1, reach - before).max(initial=0))
        place, step = np.arange(width), max(1, _CELLS // max(1, width))
        for start in range(0, len(at), step):
            block = slice(start, start + step)
            size, relevant, rank = n[block, None], r[block, None], before[block, None] + place + 1
            # Beyond its last irrelevant item a group has nothing left: the chance to come so far is 0.
            missed = np.maximum(size - relevant - place, 0) / np.maximum(size - place, 1)
            arrived = np.cumprod(np.concatenate([np.ones((len(size), 1)), missed[:, :-1]], axis=1), axis=1)
            chance = arrived * relevant / np.maximum(size - place, 1)
            out.expected[query[block]] = (chance / rank * (rank <= reach[block, None])).sum(axis=1)
        return out

    def _cut(self, k: int | NDArray[np.int64]) -> _Cut:
        """The cut at rank k."""
        whole = self._before + self._size <= self._of_group(k)
        crossing = ~whole & (self._before < self._of_group(k))
        counts = (
            self._total(self._size, whole),
            self._total(self._relevant, whole),
            self._total(self._of_group(k) - self._before, crossing),
            self._total(self._size, crossing),
            self._total(self._relevant, crossing),
        )
        # Sums of counts in float64 are exact.
        return _Cut(*(values.astype(np.int64) for values in counts))

    def _whole(self, cut: _Cut) -> NDArray[np.bool_]:
        """Which groups lie before the cut."""
        whole: NDArray[np.bool_] = self._before + self._size <= cut.before[self._query]
        return whole

    def _of_group(self, k: int | NDArray[np.int64]) -> NDArray[np.int64]:
        mine: NDArray[np.int64] = np.broadcast_to(k, self._nq)[self._query]
        return mine

    def _total(self, values: NDArray[Any], groups: NDArray[np.bool_]) -> Values:
        return np.bincount(self._query[groups], values[groups], self._nq).astype(np.float64, copy=False)


def whole_average_precision(histograms: Histograms) -> Spread:
    """AP over the ranking of all items: no rank cuts a group, and so it is A of the module's text over all of them.

    Memory does not depend on how many items there are, but for a table of one number each.
    """
    tables, parts = _tables(int(histograms.items.sum(axis=1).max(initial=0))), []
    step = max(1, _CELLS // histograms.items.shape[1])
    for start in range(0, len(histograms.items), step):
        items, relevant = (part[start : start + step].astype(np.int64) for part in histograms)
        before, relevant_before = (np.cumsum(part, axis=1) - part for part in (items, relevant))
        sums = [part.sum(axis=1) for part in _precisions(tables, before, relevant_before, items, relevant)]
        parts.append(_over(sums, relevant.sum(axis=1)))
    return Spread(*map(np.concatenate, zip(*parts, strict=True)))


def _tables(reach: int) -> _Tables:
    """Up to rank ``reach``."""
    return _Tables(*(np.concatenate([[0.0], np.cumsum(x)]) for x in (1 / np.arange(1, reach + 1), discounts(reach))))


def discounts(k: int) -> Values:
    """1 / log2(i + 1) of the ranks i = 1, …, k."""
    shares: Values = 1 / np.log2(np.arange(2, k + 2))
    return shares


def _precisions(
    tables: _Tables, n: NDArray[Any], r: NDArray[Any], m: NDArray[Any], x: NDArray[Any]
) -> tuple[Values, Values, Values]:
    """Of the precision at each rank: G of the module's text."""
    h = tables.harmonic
    b = (x - 1) / np.maximum(m - 1, 1)
    expected = x / np.maximum(m, 1) * (b * m + (r + 1 - b * (n + 1)) * (h[n + m] - h[n]))
    worst = x + (r - n - m + x) * (h[n + m] - h[n + m - x])
    best = x + (r - n) * (h[n + x] - h[n])
    return expected, worst, best


def _trapezoids(
    tables: _Tables, n: NDArray[Any], r: NDArray[Any], m: NDArray[Any], x: NDArray[Any]
) -> tuple[Values, Values, Values]:
    """Of the mean of the precision at each rank and at the rank before it; before the first rank it is 1."""
    h, b = tables.harmonic, (x - 1) / np.maximum(m - 1, 1)

    def between(i: NDArray[Any], j: NDArray[Any]) -> Any:  # ranks i, …, j - 1
        return h[np.maximum(j - 1, 0)] - h[np.maximum(i - 1, 0)]

    before = (
        x / np.maximum(m, 1) * (b * m + (r - b * n) * between(n, n + m) + (n == 0) * (1 - b)),
        x + (r - n - m + x) * between(n + m - x, n + m),
        x + (r - n) * between(n, n + x),
    )
    expected, worst, best = ((one + two) / 2 for one, two in zip(before, _precisions(tables, n, r, m, x), strict=True))
    return expected, worst, best


def _gains(
    tables: _Tables, n: NDArray[Any], r: NDArray[Any], m: NDArray[Any], x: NDArray[Any]
) -> tuple[Values, Values, Values]:
    """Of the discount of each rank."""
    d = tables.discounts
    return x / np.maximum(m, 1) * (d[n + m] - d[n]), d[n + m] - d[n + m - x], d[n + x] - d[n]


def _range_of(cut: _Cut) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least and the most relevant items among the slots of the crossing group."""
    return np.maximum(0, cut.slots - (cut.size - cut.relevant)), np.minimum(cut.relevant, cut.slots)


def _hypergeometric(x: NDArray[np.int64], cut: _Cut) -> Values:
    """Probability of each x ``(nq, width)``: that many relevant when m slots are filled from n items with r relevant.

    From the ratios of neighbours, P(x + 1) / P(x) = (r - x)(m - x) / ((x + 1)(n - r - m + x + 1)), and their sum, which
    is more accurate than differences of large log-factorials.
    """
    r, m = cut.relevant, cut.slots
    now, new = x[:, :-1], x[:, 1:] > x[:, :-1]
    up = np.where(new, (r - now) * (m - now), 1)
    down = np.where(new, (now + 1) * (cut.size - r - m + now + 1), 1)
    logs = np.zeros(x.shape)
    np.cumsum(np.log(up) - np.log(down), axis=1, out=logs[:, 1:])
    weights: Values = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights[:, 1:][~new] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _fill(
    spread: Spread, block: slice, chance: Values, expected: NDArray[Any], worst: NDArray[Any], best: NDArray[Any]
) -> None:
    spread.expected[block] = (chance * expected).sum(axis=1)
    spread.worst[block] = worst.min(axis=1)
    spread.best[block] = best.max(axis=1)


def _over(sums: Sequence[NDArray[Any]], divisor: NDArray[Any]) -> Spread:
    """The spread of ``sums`` divided; 0 where there is nothing to divide by."""
    return Spread(*(np.where(divisor > 0, values / np.where(divisor > 0, divisor, 1), 0.0) for values in sums))
