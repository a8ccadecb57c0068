"""How sure a network's class probabilities ought to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 20.0
_HALVINGS = 50


def best_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The number, 0.05 to 20, by which ``logits`` ``(n, classes)`` are divided for the least cross-entropy.

    Cross-entropy is convex in its reciprocal, so that the zero of the slope is found by halving. From: Guo, Pleiss, Sun
    and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    z = logits.astype(np.float64)
    z -= z[np.arange(len(z)), labels][:, None]
    low, high = 1 / _MOST, _MOST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        scaled = middle * z
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        slope = ((weights * z).sum(axis=1) / weights.sum(axis=1)).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float((low * high) ** -0.5)
