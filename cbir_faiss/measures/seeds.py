"""A figure that depends on a seed: its mean over several, and what is known of it.

Queries of one network share its luck, so that 3 seeds of 100 queries are 3 draws of a network and not 300: what is
uncertain is estimated from the figures of the seeds alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import t_quantile


class OverSeeds(NamedTuple):
    """Mean over seeds, their standard deviation (n - 1), and the 95 % interval of the mean by Student's t."""

    mean: float
    deviation: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """What ``values``, one of each seed, say of the mean over all seeds.

    Two rows of the same seeds are compared by ``paired.paired_test`` of their values.

    Raises:
        InputError: fewer than two seeds, which have no deviation, or a value that is not finite.
    """
    if len(values) < 2:
        raise InputError(f"an interval over seeds takes at least two of them, got {len(values)}: give more seeds")
    if not np.isfinite(values).all():
        raise InputError(f"the value of seed {int(np.argmin(np.isfinite(values)))} is not a finite number")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile(0.025, len(values) - 1) * deviation / math.sqrt(len(values))
    return OverSeeds(mean, deviation, mean - half, mean + half)
