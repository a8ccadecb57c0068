"""The interval of a mean that lies between 0 and 1, right also where nearly every value is 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError

_HALF_CHI2 = 1.9207  # half the 95 % point of chi-square with one degree of freedom
_FAR, _HALVINGS = 30.0, 50  # of the logarithm of t, and how often its range is halved

_Floats = NDArray[np.float64]


def mean_interval(values: NDArray[Any], population: int | None = None) -> tuple[float, float]:
    """The 95 % interval, low and high, of the mean of ``population`` numbers in [0, 1] (None: of endlessly many), of
    which ``values`` ``(n,)`` were drawn without replacement.

    By empirical likelihood (Owen 1988): a mean is inside where the distribution on [0, 1] that has it, and under which
    the values are least unlikely, is not much worse than that of the values themselves. 0 and 1 may have mass although
    nobody drew them, so that a thousand values of 1 give an interval, where a bootstrap gives none. Few values that
    are not 1 (or not 0) say little: there the interval is wider than the theory of many would have it.

    Raises:
        InputError: no values, values outside [0, 1], or more of them than there are in the population.
    """
    x = np.asarray(values, np.float64)
    if not len(x) or not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError("an interval is of numbers from 0 to 1, at least one")
    if population is not None and population < len(x):
        raise InputError(f"{len(x)} values were drawn from {population}")
    unseen = 1.0 if population is None else (population - len(x)) / max(1, population - 1)
    telling = min(_effective(x), _effective(1 - x))
    worst = unseen * _HALF_CHI2 * (1 + 1 / (1 + telling))
    return _lower(x, worst), 1 - _lower(1 - x, worst)


def _effective(x: _Floats) -> float:
    """How many values the sum is made of."""
    total = float(x.sum())
    return total**2 / float(np.square(x).sum()) if total else 0.0


def _lower(x: _Floats, worst: float) -> float:
    """The smallest mean whose log likelihood ratio is at most ``worst``.

    The least unlikely weights of a smaller mean are 1 / (1 + t x) for some t: the larger it is, the smaller the mean.
    """
    values, counts = np.unique(x, return_counts=True)
    if not values.any():
        return 0.0

    def log_ratio(t: float) -> float:
        weights = 1 + t * values
        return float((counts * np.log(weights)).sum() + len(x) * np.log((counts / weights).sum() / len(x)))

    low, high = -_FAR, _FAR
    if log_ratio(np.exp(high)) < worst:  # then some mass is at 0, where no value is, and the rest as it was drawn
        return float(np.exp(((counts * np.log(values)).sum() - worst) / len(x)))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if log_ratio(np.exp(middle)) < worst else (low, middle)
    weights = counts / (1 + np.exp(high) * values)
    return float((weights * values).sum() / weights.sum())
