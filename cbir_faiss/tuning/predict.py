"""What an index will be among more items, from what grows: recall by the law of distances, bytes, time.

Recall. An item is found if what the index makes of its distance, which is that and an error, is below what it makes of
the last candidate's. So the normal quantile of the share of the neighbours of rank j that are among the first c is, in
a small range, linear in the distance at rank j and in the index's own distance at rank c; both shares and distances are
measured on a sample. Among s times as many items the neighbour of rank r is as far as one of rank r / s in the sample,
and the first c are as far as the first c / s: the same plane, read at fractional ranks. There the curves of distance
against log rank are carried on, as a - b sqrt(e - log rank): a straight line where e is large (the law of a manifold),
and bent as the tail of a Gaussian cloud is where it is small. Of an item of rank r the logarithm of what the rank
stands for is in the mean the digamma function of it. The sample is predicted from parts of it in the same way, and most
of what that is short of is made up for.

Bytes. A part grows with the items, the rest (rotations, codebooks, centroids) does not; both are measured.

Time. A scan takes a fixed part and one that grows with the items; a walk in a graph grows with their logarithm.

How wide an interval is comes from the queries drawn again, and from how far predictions of the sizes that were measured
were off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
"""``(queries, j)``: at which place of a search's hits the exact neighbour of rank j is, counted from 0; else ABSENT."""
Values = NDArray[np.float64]
Curve = Callable[[Values], Values]
_COPIES = 1 << 12  # more hits than are looked at
ABSENT = int(np.iinfo(np.int32).max)
RANKS = 12
"""Neighbours whose shares are looked at: few, for it is only nearby that the plane is one."""
_TAIL = 100  # ranks that a curve is carried on from
_NORMAL = NormalDist()
_RESAMPLES = 50
_PART, _PARTS = 5.0, 3  # what a sample is thinned by to see how well it is predicted itself, and how often
_MADE_UP = 0.8  # of what such a prediction is short of: the parts are smaller still
_SOME = 0.05
_ROUNDING = 1e-6
_SURELY = 0.8  # of as many as are kept on average, so many are of nearly every query
_AROUND, _BEGINNING = (0.7, 0.85, 1.0, 1.2, 1.4), (1, 2, 3, 4, 6, 8)
ERROR = 0.01
"""Of a predicted recall, before it is known how far predictions were off; twice that of a walk in a graph."""
TIME_ERROR = 0.15
"""The same of a time, as a share of it."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, object]:
        return {"value": self.value, "ci95": [self.low, self.high]}


@dataclass(frozen=True)
class Seen:
    """What a search of a sample found: ``places`` of the exact neighbours; how far these are, ``apart``
    ``(queries, j)``; and ``scores`` ``(queries, hits)``, how far the index, or who put them in order, makes its hits.
    """

    places: Places
    apart: NDArray[Any]
    scores: NDArray[Any]
    _shifts: dict[tuple[int, int, float], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, ids: NDArray[np.int64], scores: NDArray[Any], nearest: NDArray[np.int64], apart: NDArray[Any]) -> Seen:
        """Hits ``ids`` and ``scores`` ``(queries, hits)``; exact neighbours ``nearest`` and how far they are."""
        return cls(places_of(ids, nearest), apart, scores)

    def recall(self, depth: int, k: int, growth: float = 1.0) -> float:
        """The share of the ``k`` nearest among the first ``depth`` hits, of ``growth`` times as many items.

        Where hits are in the order of the exact distances, whatever is found at all counts.
        """
        if growth == 1 or self.places.shape[1] < 3:
            return float((self.places[:, :k] < depth).mean())
        return _moved(self._read(depth, k, growth), self._shift(depth, k, growth))

    def _shift(self, depth: int, k: int, growth: float) -> float:
        """By what a prediction of such a growth comes too low, in normal quantiles, as one of the sample from parts of
        it does. Ranks of one and two, where the first of many more items are, vary more than those do."""
        part, hits = min(growth, _PART), self.scores.shape[1]
        if depth > hits:
            return 0.0
        if (depth, k, part) not in self._shifts:
            is_so = _quantile(float((self.places[:, :k] < depth).mean()))
            if part < _AROUND[-1]:  # hardly more items, or fewer: here the planes are to say what is so
                short = is_so - _quantile(self._read(depth, k, 1.0))
            elif self.ordered or self.places.shape[1] * _SURELY / part < RANKS or hits < _AROUND[-1] * depth:
                short = 0.0
            else:
                rng = np.random.default_rng(0)
                told = [_quantile(self._thinned(part, rng)._read(depth, k, part)) for _ in range(_PARTS)]
                short = _MADE_UP * (is_so - float(np.mean(told)))
            self._shifts[depth, k, part] = short
        return self._shifts[depth, k, part]

    def _thinned(self, times: float, rng: np.random.Generator) -> Seen:
        """What the same search would have found of one in so many items, drawn at random."""
        n, hits = self.scores.shape
        kept = rng.random((n, hits)) < 1 / times
        before: NDArray[np.int64] = np.cumsum(kept, axis=1) - kept
        lost = self.places == ABSENT
        at = np.where(lost, 0, np.minimum(self.places, hits - 1))
        there = np.where(lost, rng.random(self.places.shape) < 1 / times, np.take_along_axis(kept, at, 1))
        wide = int((1 if self._partial else _SURELY) * hits / times)
        places = np.where(lost | (np.take_along_axis(before, at, 1) >= wide), ABSENT, np.take_along_axis(before, at, 1))
        some = int(_SURELY * self.places.shape[1] / times)
        return Seen(
            _packed(there, places, some, ABSENT),
            _packed(there, self.apart, some, np.inf),
            _packed(kept, self.scores, wide, np.inf),
        )

    def _read(self, depth: int, k: int, growth: float) -> float:
        """As the planes say that were fitted here."""
        ranks = min(RANKS, self.places.shape[1])
        places, apart = self.places[:, :ranks], self._apart(_digamma(np.arange(1, ranks + 1)))
        wanted = self._apart(_digamma(np.arange(1, k + 1)) - math.log(growth))
        found = (places < ABSENT).mean(axis=0)
        reached: Values = np.ones(k)
        if self.ordered or self._partial:
            plane = _plane(apart, np.zeros(1), found[:, None], len(places))
            reached = _shares(plane[0] + plane[1] * wanted)
        if self.ordered:
            return float(reached.mean())
        cuts = self._cuts(depth / growth)
        shares = np.stack([(places < cut).mean(axis=0) for cut in cuts], axis=1)
        if self._partial:  # of those that the search came by
            shares = shares / np.maximum(found, 1e-9)[:, None]
        plane = _plane(apart, self._scores(cuts), shares, len(places))
        ahead = _shares(plane[0] + plane[1] * wanted + plane[2] * self._scores(np.array([depth / growth]))[0])
        return float((reached * ahead).mean())

    def predicted(self, depth: int, k: int, growth: float, off: float = 2 * ERROR) -> Interval:
        """``recall`` with its interval; ``off``: how far predictions of such a growth may be off."""
        rng, n = np.random.default_rng(0), len(self.places)
        value, drawn = self.recall(depth, k, growth), []
        shift = self._shift(depth, k, growth) if self.places.shape[1] >= 3 else 0.0
        for _ in range(_RESAMPLES):
            rows = rng.integers(n, size=n)
            again = Seen(self.places[rows], self.apart[rows], self.scores[rows])
            drawn.append(_moved(again._read(depth, k, growth), shift))
        low, high = np.quantile(drawn, [0.025, 0.975])
        off = math.hypot(off, 0.5 * abs(value - _moved(value, -shift)))
        down, up = math.hypot(max(0.0, value - low), off), math.hypot(max(0.0, high - value), off)
        return Interval(value, max(0.0, value - down), min(1.0, value + up))

    @cached_property
    def ordered(self) -> bool:
        """Whether nothing that is farther stands before a neighbour: the index compares by the distances themselves.

        Of items that are as far, any may stand before the others: they are so by the index, and by the truth.
        """
        known = self.places < ABSENT
        before = np.cumsum(known, axis=1)
        by_index = _ties(self.scores, self.places, np.maximum(before - 1, 0))
        in_truth = _ties(self.apart, self.places, np.arange(self.apart.shape[1])[None])
        in_order = (self.places < before) | (by_index & in_truth)
        return bool(known.any()) and float(in_order[known].mean()) > 0.999

    @property
    def _partial(self) -> bool:
        """Whether all that was come by is among the hits, of some queries at least: what is not was in a list that was
        not looked into."""
        return bool(np.isinf(self.scores[:, -1]).mean() > _SOME)

    @cached_property
    def _apart(self) -> Curve:
        return _carried_on(self.apart)

    @cached_property
    def _beyond(self) -> Curve:
        return _carried_on(self.scores)

    def _scores(self, ranks: NDArray[Any]) -> Values:
        """The mean score at ranks, also fractional ones: as it is from the first on, carried on below."""
        there = _digamma(np.arange(1, self.scores.shape[1] + 1))
        wanted = np.log(np.asarray(ranks, np.float64))
        found = np.isfinite(self.scores)
        counts = found.sum(axis=0)
        some = counts > 0  # where a search finds fewer than it was asked for, the last are of nobody
        if not some.any():
            return np.zeros(len(wanted))
        mean = np.where(found, self.scores, 0).sum(axis=0)[some] / counts[some]
        return np.where(wanted >= there[0], np.interp(wanted, there[some], mean), self._beyond(wanted))

    def _cuts(self, depth: float) -> NDArray[np.int64]:
        """Depths at which to look: around the one that is asked for, and no deeper than is known."""
        cuts = depth * np.array(_AROUND) if depth >= 5 else np.unique([*_BEGINNING, max(1.0, depth), 1.4 * depth])
        return np.unique(np.clip(np.round(cuts), 1, self.scores.shape[1])).astype(np.int64)


def _ties(values: NDArray[Any], at: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether what ascending lines of ``values`` have ``at`` places is no more than at ``others``, up to rounding."""
    last = values.shape[1] - 1
    here, there = (np.take_along_axis(values, np.minimum(some, last) + 0 * at, 1) for some in (at, others))
    return np.asarray(here <= there + _ROUNDING * np.abs(there))


def _moved(share: float, shift: float) -> float:
    return _NORMAL.cdf(_quantile(share) + shift) if shift else share


def _quantile(share: float) -> float:
    return _NORMAL.inv_cdf(min(max(share, 1e-4), 1 - 1e-4))


def _packed(kept: NDArray[np.bool_], values: NDArray[Any], count: int, fill: float) -> NDArray[Any]:
    """The first ``count`` of each line that are ``kept``; where there are fewer, ``fill``."""
    first = np.argsort(~kept, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(kept, first, 1), np.take_along_axis(values, first, 1), fill)


def places_of(ids: NDArray[np.int64], neighbours: NDArray[np.int64]) -> Places:
    """Where among hits ``ids`` ``(q, depth)`` the exact ``neighbours`` ``(q, j)`` are.

    Of items that are equal, and so have one number, it does not matter which is found: the first of them among the hits
    is the first among the neighbours.
    """
    ids, neighbours = _one_by_one(ids), _one_by_one(neighbours)
    lines = np.arange(len(ids))[:, None] * (int(max(ids.max(initial=0), neighbours.max(initial=0))) + 2)
    keys = (ids + 1 + lines).reshape(-1)
    order = np.argsort(keys, kind="stable")
    wanted = (neighbours + 1 + lines).reshape(-1)
    hit = order[np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)]
    found = np.where(keys[hit] == wanted, hit % ids.shape[1], ABSENT)
    return found.reshape(neighbours.shape)


def _one_by_one(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers that tell the first from the second of one id in a line, the same in every line; -1 stays."""
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, axis=1)
    begins = np.concatenate([np.ones((len(ids), 1), bool), ranked[:, 1:] != ranked[:, :-1]], axis=1)
    column = np.arange(ids.shape[1])
    again = column - np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    counts = np.empty_like(ids)
    np.put_along_axis(counts, order, again, axis=1)
    return np.where(ids < 0, -1, ids * _COPIES + np.minimum(counts, _COPIES - 1))


@dataclass(frozen=True)
class Bytes:
    """Bytes of an index: so many an item, and the rest, which does not grow."""

    growing: float
    fixed: float

    def per_item(self, items: int) -> float:
        return self.growing + self.fixed / items


@dataclass(frozen=True)
class Pace:
    """How long a query takes, ``single`` milliseconds among so many items, and ``slope`` for each item more.

    walks: it grows as the logarithm of the items does.
    """

    items: int
    single: float
    slope: float
    walks: bool = False

    def at(self, items: int) -> float:
        if self.walks:
            return self.single * max(1.0, math.log(max(2, items)) / math.log(max(2, self.items)))
        return max(0.0, self.single + self.slope * (items - self.items))


def off_by(errors: Sequence[float], least: float, growths: Sequence[float] = (), growth: float = 1.0) -> float:
    """How far a prediction may be off, two deviations: of the ``errors`` at the sizes that were measured, carried on as
    the logarithm of the growth, and no less than ``least``."""
    if not errors:
        return 2 * least
    scaled = [
        error * max(1.0, math.log(max(growth, 1.0)) / math.log(max(own, 1.01)))
        for error, own in zip(errors, growths or [growth] * len(errors), strict=True)
    ]
    return max(2 * least, 2 * float(np.sqrt(np.mean(np.square(scaled)))))


# ------------------------------------------------------------------------------------------------------------- the law


def _carried_on(distances: NDArray[Any]) -> Curve:
    """The mean of ``distances`` ``(queries, ranks)``, ascending, against the logarithm of the rank, carried on to lower
    ones; as logarithms where all are positive."""
    first = np.asarray(distances[:, :_TAIL], np.float64)
    positive = bool((first[np.isfinite(first)] > 0).all())
    with np.errstate(all="ignore"):
        values = np.where(np.isfinite(first), np.log(first) if positive else first, np.nan)
    known = np.isfinite(values).any(axis=0)
    mean = np.nanmean(values[:, known], axis=0) if known.any() else np.zeros(0)
    ranks = np.arange(1, first.shape[1] + 1)[known]
    if len(ranks) < 3:
        level = float(mean.mean()) if len(mean) else 0.0
        return lambda u: np.full(np.shape(u), level)
    some = np.unique(np.round(np.geomspace(1, len(ranks), 40)).astype(int)) - 1
    u, mean = _digamma(ranks)[some], mean[some]
    # Of all ends at once, the line through the means against the root of what is left.
    ends = u.max() + np.geomspace(0.3, 300, 60)
    roots = np.sqrt(ends[:, None] - u)
    apart, level = roots - roots.mean(axis=1, keepdims=True), float(mean.mean())
    slopes = -(apart @ (mean - level)) / np.square(apart).sum(axis=1)
    best = int(np.square(level - slopes[:, None] * apart - mean).sum(axis=1).argmin())
    end, slope = float(ends[best]), float(slopes[best])
    level += slope * float(roots[best].mean())
    return lambda u: np.asarray(level - slope * np.sqrt(np.maximum(end - u, 0)))


def _plane(u: Values, v: Values, shares: NDArray[Any], queries: int) -> Values:
    """a, b, c of a + b u + c v for the normal quantiles of ``shares`` ``(u, v)``, weighed by how well each is known."""
    least = 0.5 / queries
    clipped = np.clip(shares, least, 1 - least)
    z = np.vectorize(_NORMAL.inv_cdf)(clipped)
    weights = np.exp(-0.5 * z**2) / np.sqrt(clipped * (1 - clipped))
    uu, vv = np.meshgrid(u, v, indexing="ij")
    columns = np.stack([np.ones(z.size), uu.reshape(-1), vv.reshape(-1)], axis=1)
    # Centred, so that a column that does not vary, and says nothing, gets no part of the level.
    centre = columns.mean(axis=0) * [0, 1, 1]
    sides = (columns - centre) * weights.reshape(-1, 1)
    solved = np.linalg.lstsq(sides, (z * weights).reshape(-1), rcond=1e-9)[0]
    solved[0] -= solved[1:] @ centre[1:]
    return np.asarray(solved)


def _shares(z: Values) -> Values:
    return np.array([_NORMAL.cdf(float(x)) for x in z])


def _digamma(x: NDArray[np.int64]) -> Values:
    """The digamma function of whole numbers from 1 on: harmonic numbers less Euler's constant."""
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(x.max()) + 1))])
    return np.asarray(harmonic[x - 1] - np.euler_gamma)
