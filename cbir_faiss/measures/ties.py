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
more relevant items also mean a larger divisor.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self._harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, reach + 1))])
        whole = np.where(self._before + self._size <= reach, self._size, 0)
        self._sums = self._precision_sums(
            self._before, self._relevant_before, whole, np.where(whole > 0, self._relevant, 0)
        )

    def measures(self, k: int, totals: NDArray[np.int64]) -> dict[str, Spread]:
        """``map``, ``map_full``, ``precision``, ``hit`` and ``recall`` at k of every query, defined as in ``metrics``.

        ``totals`` int64 ``(nq,)`` are the relevant items in the database; k is at most ``deepest``.
        """
        cut, sums = self._cut(k)
        least = np.maximum(0, cut.slots - (cut.size - cut.relevant))
        most = np.minimum(cut.relevant, cut.slots)
        width = 1 + int((most - least).max(initial=0))
        precise, full, hit = (Spread(*np.empty((3, self._nq))) for _ in range(3))
        step = max(1, _CELLS // width)
        for start in range(0, self._nq, step):
            block = slice(start, start + step)
            # Beyond the most x the last one is repeated, with no probability: it changes neither a least nor a most.
            x = np.minimum(least[block, None] + np.arange(width), most[block, None])
            part = _Cut(*(values[block, None] for values in cut))
            chance = _hypergeometric(x, part)
            found = part.relevant_before + x
            group = self._precision_sums(part.before, part.relevant_before, part.slots, x)
            total = [whole[block, None] + crossing for whole, crossing in zip(sums, group, strict=True)]
            _fill(full, block, chance, *total)
            _fill(precise, block, chance, *(values / np.maximum(found, 1) for values in total))
            _fill(hit, block, chance, found > 0, found > 0, found > 0)
        share = cut.slots * cut.relevant / np.maximum(cut.size, 1)
        counts = [cut.relevant_before + values for values in (share, least, most)]
        return {
            "map": precise,
            "map_full": _over(full, np.minimum(k, totals)),
            "precision": _over(counts, np.full(self._nq, k)),
            "hit": hit,
            "recall": _over(counts, totals),
        }

    def _cut(self, k: int) -> tuple[_Cut, list[Values]]:
        """The cut at rank k, and the precision sums ``(nq,)`` of the groups before it: expected, worst, best."""
        whole = self._before + self._size <= k
        crossing = ~whole & (self._before < k)

        def total(values: NDArray[Any], groups: NDArray[np.bool_]) -> NDArray[Any]:
            return np.bincount(self._query[groups], values[groups], self._nq)

        before = total(self._size, whole)
        slots = total(k - self._before, crossing)
        counts = (
            before,
            total(self._relevant, whole),
            slots,
            total(self._size, crossing),
            total(self._relevant, crossing),
        )
        # Sums of counts in float64 are exact.
        return _Cut(*(values.astype(np.int64) for values in counts)), [total(values, whole) for values in self._sums]

    def _precision_sums(
        self, before: NDArray[Any], relevant_before: NDArray[Any], m: NDArray[Any], x: NDArray[Any]
    ) -> tuple[Values, Values, Values]:
        """Sum of the precision at the x relevant ones of m slots: expected (G of the module's text), worst, best."""
        h, n, r = self._harmonic, before, relevant_before
        b = (x - 1) / np.maximum(m - 1, 1)
        expected = x / np.maximum(m, 1) * (b * m + (r + 1 - b * (n + 1)) * (h[n + m] - h[n]))
        worst = x + (r - n - m + x) * (h[n + m] - h[n + m - x])
        best = x + (r - n) * (h[n + x] - h[n])
        return expected, worst, best


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


def _over(sums: Sequence[NDArray[Any]], divisor: NDArray[np.int64]) -> Spread:
    """The spread of ``sums`` divided; 0 where there is nothing to divide by."""
    return Spread(*(np.where(divisor > 0, values / np.maximum(divisor, 1), 0.0) for values in sums))
