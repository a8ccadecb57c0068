"""How many items, and how many relevant ones, lie at each Hamming distance from each query."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_codes
from cbir_faiss.errors import InputError
from cbir_faiss.measures.relevance import Relevance

# A block's arrays stay in the second-level cache, which is worth a factor of two.
_QUERIES, _ITEMS = 8, 8192


class Histograms(NamedTuple):
    """Counts by distance: ``items`` and ``relevant``, both int32 ``(nq, bits + 1)``; column d is distance d."""

    items: NDArray[np.int32]
    relevant: NDArray[np.int32]


def hamming_histograms(
    query_codes: NDArray[np.uint8], item_codes: NDArray[np.uint8], relevance: Relevance, threads: int | None = None
) -> Histograms:
    """The histograms of every query over all items, from packed codes ``(nq, bits / 8)`` and ``(n, bits / 8)``.

    Every pair is looked at, in blocks; memory beside the result is a few megabytes a thread (default: one a CPU). Items
    that a query ignores are not counted.

    Raises:
        InputError: not packed codes, or not as many of them as ``relevance`` knows queries and items.
        DimensionMismatch: queries and items of different lengths.
    """
    bits = 8 * item_codes.shape[1] if item_codes.ndim == 2 else 0
    x, q = _words(check_codes(item_codes, "histogram", bits)), _words(check_codes(query_codes, "histogram", bits))
    known = (relevance.queries.shape[1], relevance.items.shape[1])
    if (len(query_codes), len(item_codes)) != known:
        raise InputError(f"{len(query_codes)} query and {len(item_codes)} item codes, but labels of {known}")
    out = np.zeros((len(query_codes), 2, bits + 1), np.int32)

    def count(start: int) -> None:
        rows = slice(start, start + _QUERIES)
        for first in range(0, len(item_codes), _ITEMS):
            columns = slice(first, first + _ITEMS)
            ignored = None if relevance.junk is None else relevance.junk.block(rows, columns)
            _count(q[:, rows, None], x[:, None, columns], relevance.block(rows, columns), ignored, out[rows])

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        list(pool.map(count, range(0, len(query_codes), _QUERIES)))
    return Histograms(out.sum(axis=1, dtype=np.int32), np.ascontiguousarray(out[:, 1]))


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Codes ``(n, bytes)`` as 64-bit words ``(words, n)``; zeros fill the last word and never differ."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _count(
    q: NDArray[Any],
    x: NDArray[Any],
    relevant: NDArray[np.bool_],
    ignored: NDArray[np.bool_] | None,
    out: NDArray[np.int32],
) -> None:
    """Add a block of pairs, less the ignored, to ``out`` ``(queries, 2, bits + 1)``; its middle axis is "relevant"."""
    queries, _, distances = out.shape
    differing = np.empty(relevant.shape, np.uint64)
    ones = np.empty(relevant.shape, np.uint8)
    key = relevant * np.int64(distances) + np.arange(queries)[:, None] * (2 * distances)
    distance = np.zeros(relevant.shape, np.uint32)
    for a, b in zip(q, x, strict=True):
        np.bitwise_xor(a, b, out=differing)
        np.bitwise_count(differing, out=ones)
        distance += ones
    key += distance
    if ignored is not None:
        key = key[~ignored]
    out += np.bincount(key.reshape(-1), minlength=out.size).reshape(out.shape).astype(np.int32)
