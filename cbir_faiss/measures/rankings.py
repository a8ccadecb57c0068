"""Full rankings of all items by float distance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.measures.scores import Scores
from cbir_faiss.types import Floats, Metric

_SCORED = 1 << 24  # pairs scored together: a large matrix product is a fast one
_SORTED = 1 << 19  # pairs a thread sorts together: few enough for its cache


def full_rankings(
    items: NDArray[Any], queries: NDArray[Any], relevance: Relevance, metric: Metric, threads: int | None = None
) -> Iterator[NDArray[np.bool_]]:
    """Whether the item at each rank is relevant, bool ``(some queries, n)``, block after block of queries in order.

    Distances are those of a float32 matrix product; equal ones are in the order of the items, and ignored items come
    last. Sorting takes ``threads`` (default: one a CPU).

    Raises:
        InputError: arrays that are not finite floats, a zero vector under cosine, no items, or not as many queries and
            items as ``relevance`` knows.
        DimensionMismatch: queries and items of different widths.
        Unsupported: a metric other than ``l2``, ``ip`` and ``cosine``.
    """
    scores = Scores(items, queries, metric)
    known = (relevance.queries.shape[1], relevance.items.shape[1])
    if (len(queries), len(items)) != known:
        raise InputError(f"{len(queries)} queries and {len(items)} items, but labels of {known}")
    step, part = (max(1, pairs // len(items)) for pairs in (_SCORED, _SORTED))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(queries), step):
            found = scores.block(slice(start, start + step))
            if relevance.junk is not None:
                found[relevance.junk.block(slice(start, start + step))] = np.inf
            parts = [slice(first, min(first + part, len(found))) for first in range(0, len(found), part)]
            relevant = (relevance.block(slice(start + rows.start, start + rows.stop)) for rows in parts)
            yield np.concatenate(list(pool.map(_by_score, (found[rows] for rows in parts), relevant)))


def _by_score(scores: Floats, relevant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``relevant`` in the order of ``scores``, which are spent.

    Sorting numbers in which the answer rides along is several times faster than sorting indices: the score above, then
    the row, the relevance in the lowest bit.
    """
    scores += 0.0  # makes negative zeros positive
    # As integers, the bits of floats order as the floats do, once those of negative ones are turned round.
    bits = scores.view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(scores.shape[1]) << 1
    keys |= relevant
    keys.sort(axis=1)
    return (keys & 1).astype(np.bool_)
