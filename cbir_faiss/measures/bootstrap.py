"""Confidence intervals of means over queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError

_DRAWS = 1 << 21  # draws held at a time


def bootstrap_ci(values: NDArray[Any], resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The 95 % percentile interval ``(2,)``, low and high, of the mean of ``values`` ``(nq,)``.

    Queries are drawn with replacement. The draws depend on ``seed`` and nq alone, so measures of the same queries are
    resampled in pairs. Values ``(nq, c)`` share their draws and give ``(2, c)``.

    Raises:
        InputError: no values, or ``resamples`` < 1.
    """
    n = len(values)
    if n == 0 or resamples < 1:
        raise InputError(f"a bootstrap takes at least one query and one resample, got {n} and {resamples}")
    random = np.random.default_rng(seed)
    means = np.empty((resamples, *values.shape[1:]))
    step = max(1, _DRAWS // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = random.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        times = np.bincount(draws.reshape(-1), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = times @ values.astype(np.float64) / n
    return np.quantile(means, [0.025, 0.975], axis=0)


def paired_difference(
    a: NDArray[Any], b: NDArray[Any], resamples: int = 1000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of a - b, values ``(nq,)`` of the same queries, and its 95 % bootstrap interval.

    Raises:
        InputError: not one value of each for every query.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"paired values must be of the same queries, got {a.shape} and {b.shape}")
    difference = a.astype(np.float64) - b
    low, high = bootstrap_ci(difference, resamples, seed)
    return float(difference.mean()), (float(low), float(high))
