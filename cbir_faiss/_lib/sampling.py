"""The one rule by which something is learnt from a part of the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAINING_ROWS = 100_000
"""What codecs, rescorers and indexes are shown at most: as much as is held in memory at once."""


def sample_rows(n: int, most: int = TRAINING_ROWS, seed: int = 0) -> NDArray[np.int64] | slice:
    """All of ``n`` rows, or ``most`` of them drawn without replacement, ascending; the same for the same seed."""
    if n <= most:
        return slice(0, n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
