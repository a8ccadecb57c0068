"""Rows compared over the same queries: a test of two, and which of many lose less than a margin against a reference.

For a row, d_q is its value minus the reference's at query q, and the hypothesis to be disproved is that their mean is
-margin or less. The one-sided lower bound of the mean at level a is

    mean(d) - t(1 - a, n - 1) s / sqrt(n),   s the deviation of d with n - 1 degrees of freedom

by Student's t. Many rows are tested, and each could pass by luck, so the levels are Holm's: the row that is farthest
above -margin in units of its own error is bounded at alpha / m, the next at alpha / (m - 1), and so on up to the first
that fails; those behind it are bounded at the level of that one, and fail too. The chance that any row passes which
should not is then at most alpha, however the rows depend on each other.

Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, 65-70.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError

Values = NDArray[np.float64]
_ROUNDING = 1e-12
MARGIN = 0.01
"""How much of a measure may be lost before a smaller index is not worth it."""
ALPHA = 0.025
"""One-sided: the lower end of a 95 % interval."""


class Difference(NamedTuple):
    """A row less the reference: mean, the interval of this row alone, and what holds among all the rows tested.

    low, high: the ends of the 1 - 2 alpha interval by Student's t, without any adjustment.
    adjusted: the lower bound at Holm's level. It answers whether the margin is kept; it is not a simultaneous bound.
    shown: ``adjusted`` is above -margin, so the row is non-inferior.
    """

    mean: float
    low: float
    high: float
    adjusted: float
    shown: bool


def noninferior(
    rows: Sequence[NDArray[Any]], reference: NDArray[Any], margin: float = MARGIN, alpha: float = ALPHA
) -> list[Difference]:
    """Each row's difference from the reference, in the order of ``rows``.

    Where all d of a row are equal, its bounds are their mean. With one query nothing can be shown: the bounds are
    infinite.

    Args:
        rows: per-query values, float ``(nq,)`` each. reference: float ``(nq,)``, of the same queries in the same order.
        margin: what may be lost, at least 0. alpha: the chance, over all rows, to pass one that should not.

    Raises:
        InputError: no queries, values that are not one finite number a query, a negative margin, or a level outside
            0 < alpha < 0.5.
    """
    _check_level(margin, alpha)
    _check(reference, "the reference", len(reference))
    moments = []
    for i, row in enumerate(rows):
        _check(row, f"row {i}", len(reference))
        moments.append(_mean_and_error(row.astype(np.float64) - reference))
    freedom = len(reference) - 1
    adjusted = _stepped_down(moments, freedom, margin, alpha)
    out = []
    for (mean, error), low in zip(moments, adjusted, strict=True):
        half = _half_width(error, freedom, alpha)
        out.append(Difference(mean, mean - half, mean + half, low, low > -margin))
    return out


class Test(NamedTuple):
    """The mean of a - b, its 95 % interval by Student's t, and the two-sided p of there being no difference."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(a: NDArray[Any], b: NDArray[Any]) -> Test:
    """Student's t test of a - b, float ``(n,)`` each: values of the same queries, or means of the same seeds.

    p is that of one pair chosen beforehand: of twenty pairs without a difference, one falls below .05 by luck. Where
    all differences are equal, their mean is certain.

    Raises:
        InputError: fewer than two values, not the same number of both, or one that is not finite.
    """
    if len(a) < 2:
        raise InputError(f"a paired test takes at least two queries (or seeds), got {len(a)}")
    _check(a, "a", len(a))
    _check(b, "b", len(a))
    differences = a.astype(np.float64) - b
    differences[np.abs(differences) < _ROUNDING] = 0.0  # of sums in another order: they are none
    mean, error = _mean_and_error(differences)
    freedom = len(a) - 1
    half = _half_width(error, freedom, ALPHA)
    p = t_probability(mean / error, freedom) if error > 0 else float(mean == 0)
    return Test(mean, mean - half, mean + half, p)


def queries_needed(differences: NDArray[Any], margin: float = MARGIN, level: float = ALPHA) -> int | None:
    """About how many queries would show that the margin is kept, if mean and deviation stay as they are.

    None where the mean itself is at or below -margin, so that more queries would not help, and with fewer than two
    queries, whose deviation is not known. Two are the fewest that show anything.

    Args:
        differences: row less reference, float ``(nq,)``. level: one-sided; of m rows tested, alpha / m is enough
            whatever the others show.

    Raises:
        InputError: no queries, values that are not one finite number a query, a negative margin, or a level outside
            0 < level < 0.5.
    """
    _check_level(margin, level)
    _check(differences, "the differences", len(differences))
    mean, error = _mean_and_error(differences.astype(np.float64))
    if mean <= -margin or len(differences) < 2:
        return None
    deviation = error * math.sqrt(len(differences))

    def enough(queries: int) -> bool:
        return mean - _half_width(deviation / math.sqrt(queries), queries - 1, level) > -margin

    most = 2
    while not enough(most):
        most *= 2
    least = most // 2  # not enough, or 1
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


def t_quantile(level: float, freedom: int) -> float:
    """The value that Student's t with ``freedom`` degrees of freedom exceeds with probability ``level``.

    By Hill's expansion around the normal quantile; one and two degrees of freedom have closed forms.

    Hill, G. W. (1970). Algorithm 396: Student's t-quantiles. Communications of the ACM 13(10), 619-620.

    Raises:
        InputError: a level outside 0 < level < 0.5, or less than one degree of freedom.
    """
    if not 0 < level < 0.5 or freedom < 1:
        raise InputError(f"a level between 0 and 0.5 and a degree of freedom are needed, got {level} and {freedom}")
    if freedom == 1:
        return 1 / math.tan(math.pi * level)
    if freedom == 2:
        return math.sqrt(1 / (2 * level * (1 - level)) - 2)
    n = freedom
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * 2 * level) ** (2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(level)
        y = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:  # far out in the tail
        tail = 1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)
        y = (tail * y - 1) * (n + 1) / (n + 2) + 1 / y
    return math.sqrt(n * y)


def t_probability(t: float, freedom: int) -> float:
    """The probability that the magnitude of Student's t with ``freedom`` degrees of freedom is at least that of ``t``.

    It is the incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t²), by its continued
    fraction, of the complement where that converges faster.

    Raises:
        InputError: less than one degree of freedom.
    """
    if freedom < 1:
        raise InputError(f"a degree of freedom is needed, got {freedom}")
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x in (0.0, 1.0):
        return x
    if x < (a + 1) / (a + b + 2):
        return _beta_tail(x, a, b)
    return 1 - _beta_tail(1 - x, b, a)


def _beta_tail(x: float, a: float, b: float) -> float:
    """I_x(a, b) for an x below its middle: x^a (1 - x)^b / (a B(a, b)) / (1 + d₁ / (1 + d₂ / …))."""
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value = step = inverse = 1.0
    for k in range(1, 500):
        half, odd = divmod(k, 2)
        if odd:
            d = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            d = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        inverse = 1 / (1 + d * inverse)
        step *= inverse - 1
        value += step
        if abs(step) < 1e-15 * abs(value):
            break
    return front * value


def _stepped_down(moments: Sequence[tuple[float, float]], freedom: int, margin: float, alpha: float) -> list[float]:
    """The lower bound of each row at its level of Holm's; equals share the level of the first of them."""
    distance = [_distance(mean + margin, error) for mean, error in moments]
    bounds = [0.0] * len(moments)
    left, failed = len(moments), False
    order = sorted(range(len(moments)), key=lambda i: -distance[i])
    for place, i in enumerate(order):
        if not failed and (place == 0 or distance[i] < distance[order[place - 1]]):
            left = len(moments) - place
        mean, error = moments[i]
        bounds[i] = mean - _half_width(error, freedom, alpha / left)
        if failed:  # a bound below the margin already, but for rounding
            bounds[i] = min(bounds[i], -margin)
        failed = failed or bounds[i] <= -margin
    return bounds


def _distance(room: float, error: float) -> float:
    """How far a mean is above -margin, in its own errors."""
    if error > 0:
        return room / error
    return math.inf if room > 0 else -math.inf


def _half_width(error: float, freedom: int, level: float) -> float:
    if freedom < 1:
        return math.inf
    return t_quantile(level, freedom) * error if error > 0 else 0.0


def _mean_and_error(d: Values) -> tuple[float, float]:
    """Mean of ``d`` and its standard error, 0 where all are equal: without the rounding of sums."""
    if d.min() == d.max():
        return float(d[0]), 0.0
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))


def _check(values: NDArray[Any], what: str, queries: int) -> None:
    if queries == 0:
        raise InputError(f"{what}: there are no queries")
    if values.shape != (queries,):
        raise InputError(f"{what}: one value a query is needed, ({queries},), got {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{what}: the value of query {int(np.argmin(np.isfinite(values)))} is not a finite number")


def _check_level(margin: float, level: float) -> None:
    if not (math.isfinite(margin) and margin >= 0 and 0 < level < 0.5):
        raise InputError(f"a margin of at least 0 and a level between 0 and 0.5 are needed, got {margin} and {level}")
