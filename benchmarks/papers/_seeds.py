"""A measure over seeds as the tables of the papers store it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cbir_faiss.measures.seeds import over_seeds


def of_seeds(measure: str, values: Sequence[float]) -> dict[str, float | str]:
    """The mean and, of several seeds, their deviation and Student's interval of the mean, cut to [0, 1]."""
    line: dict[str, float | str] = {measure: statistics.fmean(values)}
    if len(values) > 1:
        told = over_seeds(values)
        interval = f"{max(0, told.low):.3f}–{min(1, told.high):.3f}"
        line |= {f"{measure} ±": told.deviation, f"{measure} 95 %": interval}
    return line
