"""The values that every room shares: arrays with fixed meanings, and search results with one fixed shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["float", "binary"]
Metric = Literal["l2", "ip", "cosine", "hamming"]
"""Every distance is smaller-is-nearer: ``l2`` is the *squared* Euclidean distance (FAISS's convention),
``ip`` the negated inner product, ``cosine`` is 1 - cosine, ``hamming`` counts differing bits."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Codes = NDArray[Any]
"""float32 ``(n, dim)``, or packed uint8 ``(n, bits / 8)`` in ``numpy.packbits`` order (MSB first)."""
Columns = Mapping[str, NDArray[Any]]
"""Row-aligned arrays by name (``embedding``, ``probs``, ``phash``, …); the first is the default."""
Payload = Mapping[str, Any]
"""A JSON object stored beside a vector."""

MISSING_ID = -1


@dataclass(frozen=True, slots=True)
class Hit:
    """One neighbour."""

    id: int
    distance: float


@dataclass(frozen=True, slots=True)
class Hits:
    """The k nearest items of each of n queries, nearest first.

    ids: int64 ``(n, k)``; -1 where there are fewer than k items, always behind the real ones.
    distances: float32 ``(n, k)``; smaller is nearer for every metric, ``inf`` where missing.
    """

    ids: Ids
    distances: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> list[Hit]:
        """The hits of one query, the missing ones left out."""
        found = self.ids[query] != MISSING_ID
        return [
            Hit(int(i), float(d)) for i, d in zip(self.ids[query][found], self.distances[query][found], strict=True)
        ]

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[query] for query in range(len(self)))


@dataclass(frozen=True, slots=True)
class RangeHits:
    """Every item within a radius of each of n queries; query i owns ``limits[i]:limits[i + 1]``, nearest first.

    limits: int64 ``(n + 1,)``. ids: int64 ``(total,)``. distances: float32 ``(total,)``.
    """

    limits: NDArray[np.int64]
    ids: Ids
    distances: Floats

    def __len__(self) -> int:
        return len(self.limits) - 1

    def __getitem__(self, query: int) -> list[Hit]:
        rows = slice(self.limits[query], self.limits[query + 1])
        return [Hit(int(i), float(d)) for i, d in zip(self.ids[rows], self.distances[rows], strict=True)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Stored items as a backend gives them back: ids ``(n,)``, their vectors or codes, and their payloads.

    left_out: what was met among them and cannot be given back, as (key, reason); there may be nothing else. cursor:
    what ``scroll`` goes on from behind this batch; None: its last id.
    """

    ids: Ids
    vectors: Codes
    payload: list[dict[str, Any]]
    left_out: Sequence[tuple[str, str]] = ()
    cursor: int | str | None = None


def missing_hits(n: int, k: int) -> Hits:
    """Hits ``(n, k)`` with nothing found: the answer of an empty index."""
    return Hits(np.full((n, k), MISSING_ID, np.int64), np.full((n, k), np.inf, np.float32))
