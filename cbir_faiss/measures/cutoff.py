"""The distance up to which a hit is meant, and how often that is wrong: from labels, or from the distances alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError

_ROUNDS = 200
_SETTLED = 1e-6
_GRID = 513
_NARROWEST = 1e-3  # of the whole spread: a component narrower than that has fallen onto one value

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


def by_distances(distances: NDArray[Any]) -> Cutoff:
    """The cut-off between two normal components of ``distances``, the neighbours' and the background's, where a
    distance is as likely to be of the one as of the other.

    Its error is what the components overlap. Where there is no spread to divide, nothing can be told: error 0.5.

    Raises:
        InputError: no distances.
    """
    x = np.sort(np.asarray(distances, np.float64).ravel())
    if not len(x):
        raise InputError("a cut-off takes distances, and there are none")
    spread = float(x.std())
    if spread == 0:
        return Cutoff(float(x[-1]), 0.5)
    weights, means, deviations = _components((x - x.mean()) / spread)
    grid = np.linspace(means[0], means[1], _GRID)
    missed = weights[0] * (1 - _below(grid, means[0], deviations[0]))
    wrong = weights[1] * _below(grid, means[1], deviations[1])
    least = int(np.argmin(missed + wrong))
    return Cutoff(float(grid[least] * spread + x.mean()), float((missed + wrong)[least]))


def _components(x: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Weights, means and deviations, the nearer first, of two normal components of standardised ``x``, by EM."""
    near = x <= _halves(x)
    weights, means = np.array([near.mean(), 1 - near.mean()]), np.array([x[near].mean(), x[~near].mean()])
    deviations = np.maximum([x[near].std(), x[~near].std()], _NARROWEST)
    before = -np.inf
    for _ in range(_ROUNDS):
        log = np.log(weights) - np.log(deviations) - 0.5 * ((x[:, None] - means) / deviations) ** 2
        top = log.max(axis=1, keepdims=True)
        share = np.exp(log - top)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        likelihood = float((np.log(total) + top).mean())
        of_each = np.maximum(share.sum(axis=0), 1e-9)
        weights, means = of_each / len(x), (share * x[:, None]).sum(axis=0) / of_each
        deviations = np.sqrt((share * (x[:, None] - means) ** 2).sum(axis=0) / of_each)
        deviations = np.maximum(deviations, _NARROWEST)
        if likelihood - before < _SETTLED:
            break
        before = likelihood
    order = np.argsort(means)
    return weights[order], means[order], deviations[order]


def _halves(x: _Floats) -> float:
    """The value of ascending ``x`` that divides it into two groups with the least variance within (Otsu 1979)."""
    n, sums = np.arange(1, len(x)), np.cumsum(x)[:-1]
    apart = (sums / n - (x.sum() - sums) / (len(x) - n)) ** 2 * n * (len(x) - n)
    apart[x[1:] == x[:-1]] = -1  # what is equal stays together
    return float(x[int(np.argmax(apart))])


def _below(x: _Floats, mean: float, deviation: float) -> _Floats:
    return np.array([0.5 * (1 + math.erf((value - mean) / (deviation * math.sqrt(2)))) for value in x.tolist()])
