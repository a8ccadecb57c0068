"""What the mean over queries hides: which classes, and which queries, are found badly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.labels import Labels
from cbir_faiss.errors import InputError


def by_class(values: NDArray[Any], labels: Labels) -> dict[str, tuple[int, float]]:
    """Of each label, in order of their names, how many queries have it and the mean of their ``values`` ``(nq,)``.

    A query of several labels counts for each of them.

    Raises:
        InputError: not one value a query.
    """
    _check(values, len(labels))
    found: dict[str, list[float]] = {}
    for value, mine in zip(values.tolist(), labels, strict=True):
        for label in dict.fromkeys(mine):
            found.setdefault(label, []).append(value)
    return {label: (len(some), float(np.mean(some))) for label, some in sorted(found.items())}


def worst_queries(values: NDArray[Any], totals: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The rows int64 of the ``count`` queries with the least ``values`` ``(nq,)``, the worst first, equals in order.

    Queries with nothing to find (``totals`` 0) are left out: their 0 says nothing of the search.

    Raises:
        InputError: not one value a query.
    """
    _check(values, len(totals))
    order = np.argsort(values, kind="stable")
    worst: NDArray[np.int64] = order[totals[order] > 0][:count]
    return worst


def _check(values: NDArray[Any], queries: int) -> None:
    if values.shape != (queries,):
        raise InputError(f"one value a query is needed, ({queries},), got {values.shape}")
