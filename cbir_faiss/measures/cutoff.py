"""The distance up to which a hit is meant, and how often that is wrong: from labels, or from the distances alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError

_ROUNDS = 200
_SETTLED = 1e-6
_GRID = 513
_BINS = 1024
_NARROWEST = 1e-3  # of the whole spread: a component narrower than that has fallen onto one value
_FEWEST = 100  # pairs: of fewer two peaks may be chance
_VALLEY = 0.3  # clouds without any groups come to .4 and more
_ALIKE = 1.3  # times as many pairs: the same division in another part
_LEAST = 0.05  # of the pairs: fewer are no component, but outliers

_Floats = NDArray[np.float64]


class Cutoff(NamedTuple):
    """Hits at ``distance`` or nearer are meant; ``error`` is the share of hits of which that is wrong, near or far."""

    distance: float
    error: float


def by_labels(distances: NDArray[Any], relevant: NDArray[np.bool_]) -> Cutoff:
    """The cut-off with the least errors among hits whose relevance is known; arrays of the same shape.

    Raises:
        InputError: no hits, or arrays of different shapes.
    """
    x, meant = np.asarray(distances, np.float64).ravel(), np.asarray(relevant, bool).ravel()
    if not len(x) or len(x) != len(meant):
        raise InputError(f"a cut-off takes hits with their relevance, got {len(x)} and {len(meant)}")
    order = np.argsort(x, kind="stable")
    x, meant = x[order], meant[order]
    # errors[i]: the first i are taken for meant; what ties is taken together.
    errors = np.concatenate([[0], np.cumsum(~meant) - np.cumsum(meant)]) + int(meant.sum())
    between = np.concatenate([[True], x[1:] > x[:-1], [True]])
    taken = int(np.flatnonzero(between)[np.argmin(errors[between])])
    return Cutoff(_between(x, taken), float(errors[taken] / len(x)))


def _between(x: _Floats, taken: int) -> float:
    """A distance that the first ``taken`` of ascending ``x`` do not exceed, and the others do."""
    if taken == 0:
        return float(np.nextafter(x[0], -np.inf))
    return float(x[-1] if taken == len(x) else (x[taken - 1] + x[taken]) / 2)


def by_distances(nearest: NDArray[Any], others: NDArray[Any] | None = None, times: float = 1.0) -> Cutoff | None:
    """The cut-off between two normal components of distances, the neighbours' and the background's, where a distance is
    as likely to be of the one as of the other; None where one component would do, so that nothing can be told.

    A class may be a few of the nearest, or far more than were asked for. So the components are fitted to the nearest
    part of all pairs, then to twice as many, and so on to all of them, and what counts is the division with the
    deepest valley between its two peaks, as it is in the largest part that has it. (A test of the fit, such as BIC,
    would not do: no distances are normal, and of so many pairs it prefers two components always.) The error is what
    the components say of ``nearest``.

    Args:
        nearest: distances of hits, of any shape. others: of pairs drawn at random from those that are no hits.
        times: for how many pairs each of ``others`` stands.

    Raises:
        InputError: no distances.
    """
    hits: _Floats = np.asarray(nearest, np.float64).ravel()
    more: _Floats = np.asarray([] if others is None else others, np.float64).ravel()
    if not len(hits):
        raise InputError("a cut-off takes distances, and there are none")
    x: _Floats = np.concatenate([hits, more])
    weights = np.repeat([1.0, times], [len(hits), len(more)])
    if (x == np.round(x)).all():  # whole numbers, of bits: each is spread over what it stands for
        x = x + np.random.default_rng(0).uniform(-0.5, 0.5, len(x)) * (len(np.unique(x)) > 1)
    order = np.argsort(x, kind="stable")
    x, weights = x[order], weights[order]
    divisions = [_divided(x[:rows], weights[:rows]) for rows in _parts(weights, len(hits))]
    told = [one for one in divisions if one is not None]
    if not told:
        return None
    near = min(told, key=lambda one: one.valley).near
    found = [one for one in told if near / _ALIKE < one.near < near * _ALIKE][-1]
    return Cutoff(found.distance, found.error(hits))


def _parts(weights: _Floats, hits: int) -> list[int]:
    """How many of the nearest pairs are looked at: those of a sixteenth of the hits, and ever twice as many."""
    stand_for = np.cumsum(weights)
    sizes, size = [], max(hits / 16, float(_FEWEST))
    while size < stand_for[-1]:
        sizes.append(int(np.searchsorted(stand_for, size)) + 1)
        size *= 2
    return [*sizes, len(weights)]


class _Division(NamedTuple):
    """Two components, the nearer first, and the distance that divides them. valley: the least density between their
    peaks, over that of the lower peak; 1: there is one peak. near: how many pairs are of the nearer one."""

    distance: float
    valley: float
    near: float
    weights: _Floats
    means: _Floats
    deviations: _Floats

    def error(self, x: _Floats) -> float:
        """The share of ``x`` that is of the other component than the one on its side, as the components have it."""
        share = np.exp(_logs(x, self.weights, self.means, self.deviations))
        wrong = np.where(x <= self.distance, share[:, 1], share[:, 0])
        return float((wrong / np.maximum(share.sum(axis=1), np.finfo(float).tiny)).mean())


def _divided(x: _Floats, weights: _Floats) -> _Division | None:
    """Ascending ``x`` in two; None where nothing divides them."""
    spread = float(x[-1] - x[0])
    if spread == 0:
        return None
    bins = np.minimum((x - x[0]) * (_BINS / spread), _BINS - 1).astype(np.int64)
    counts = np.bincount(bins, weights)
    values = np.bincount(bins, weights * x)[counts > 0] / counts[counts > 0]
    counts = counts[counts > 0] / weights.sum()
    shares, means, deviations = _components((values - x[0]) / spread, counts)
    grid = np.linspace(means[0], means[1], _GRID)
    parts = np.exp(_logs(grid, shares, means, deviations))
    density, even = parts.sum(axis=1), int(np.argmax(parts[:, 0] <= parts[:, 1]))
    least = int(np.argmin(density))
    valley = float(density[least] / min(density[: least + 1].max(), density[least:].max()))
    if valley > _VALLEY or shares.min() < _LEAST:
        return None
    return _Division(
        float(grid[even] * spread + x[0]),
        valley,
        float(shares[0] * weights.sum()),
        shares,
        means * spread + x[0],
        np.asarray(deviations * spread),
    )


def _components(x: _Floats, counts: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Weights, means and deviations, the nearer first, of two normal components of ascending ``x`` from 0 to 1, each of
    which counts as ``counts`` say (together 1), by EM."""
    near = (x <= _halves(x, counts)).astype(np.float64)
    share = np.stack([near, 1 - near], axis=1)
    before = -np.inf
    for _ in range(_ROUNDS):
        share *= counts[:, None]
        weights = np.maximum(share.sum(axis=0), 1e-9)
        means = (share * x[:, None]).sum(axis=0) / weights
        deviations = np.sqrt((share * (x[:, None] - means) ** 2).sum(axis=0) / weights)
        deviations = np.maximum(deviations, _NARROWEST)
        log = _logs(x, weights, means, deviations)
        top = log.max(axis=1, keepdims=True)
        share = np.exp(log - top)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        likelihood = float(counts @ (np.log(total) + top)[:, 0])
        if likelihood - before < _SETTLED:
            break
        before = likelihood
    order = np.argsort(means)
    return weights[order], means[order], deviations[order]


def _logs(x: _Floats, weights: _Floats, means: _Floats, deviations: _Floats) -> _Floats:
    """Logarithms of the two components' densities ``(n, 2)``, less what they have in common."""
    return np.asarray(np.log(weights) - np.log(deviations) - 0.5 * ((x[:, None] - means) / deviations) ** 2)


def _halves(x: _Floats, counts: _Floats | None = None) -> float:
    """The value of ascending ``x`` that divides it into two groups with the least variance within (Otsu 1979)."""
    counts = np.ones(len(x)) if counts is None else counts
    n, sums, all_of_it = np.cumsum(counts)[:-1], np.cumsum(counts * x)[:-1], float(counts @ x)
    left = counts.sum() - n
    apart = (sums / n - (all_of_it - sums) / left) ** 2 * n * left
    apart[x[1:] == x[:-1]] = -1  # what is equal stays together
    return float(x[int(np.argmax(apart))])
