"""The second stage's loop: fetch the candidates, score them by a matrix product, sort."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss._lib import threads
from cbir_faiss.types import MISSING_ID, Floats, Hits, Ids

Candidates = Annotated[int, Field(ge=1)] | Literal["all"]
"""How many hits of the first stage are looked at (where more results than that are wanted: as many as those)."""
Score = Callable[[NDArray[Any], NDArray[Any]], Floats]
"""``score(queries (n, d), stored rows (m, …))``: distances float32 ``(n, m)``, smaller is nearer."""

_QUERIES = 16
_ROWS_BYTES = 1 << 23


def rerank(queries: NDArray[Any], hits: Hits, fetch: Callable[[Ids], NDArray[Any]], score: Score) -> Hits:
    """``hits`` sorted by ``score``; equals keep their order, missing hits stay last.

    Many queries share the cores, so ``fetch`` and ``score`` are called from several threads.
    """
    ids = hits.ids
    distances = np.empty(ids.shape, np.float32)

    def some(start: int) -> None:
        rows = slice(start, min(start + _QUERIES, len(ids)))
        if _alike(ids[rows]):
            distances[rows] = _together(queries[rows], ids[rows], fetch, score)
            return
        for row in range(rows.start, rows.stop):
            distances[row] = _alone(queries[row : row + 1], ids[row], fetch, score)

    starts = range(0, len(ids), _QUERIES)
    workers = min(len(starts), threads.for_search(4.0 * ids.size * queries.shape[1]))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(some, starts))
    else:
        for start in starts:
            some(start)
    return in_order(ids, distances)


def in_order(ids: Ids, distances: Floats) -> Hits:
    """Hits ``(n, c)`` by their distances; equals keep their order."""
    if len(ids) == 1:  # one query: no need to say which line
        order = distances[0].argsort(kind="stable")
        return Hits(ids[:, order], distances[:, order])
    order = np.argsort(distances, axis=1, kind="stable")
    line = np.arange(len(ids))[:, None]
    return Hits(ids[line, order], distances[line, order])


def _alike(ids: Ids) -> bool:
    """Whether several queries must have many candidates in common, so that each row is better read once for all."""
    return len(ids) > 1 and ids.size > 2 * (int(ids.max(initial=0)) - int(ids.min(initial=0)) + 1)


def _alone(query: NDArray[Any], ids: Ids, fetch: Callable[[Ids], NDArray[Any]], score: Score) -> Floats:
    """float32 ``(c,)`` of a query ``(1, d)`` and its candidates ``(c,)``: what it reads fits into a core's cache."""
    distances = np.full(len(ids), np.inf, np.float32)
    found = np.flatnonzero(ids != MISSING_ID)
    step = max(1, _ROWS_BYTES // (4 * query.shape[1]))
    for start in range(0, len(found), step):
        part = found[start : start + step]
        distances[part] = score(query, fetch(ids[part]))[0]
    return distances


def _together(queries: NDArray[Any], ids: Ids, fetch: Callable[[Ids], NDArray[Any]], score: Score) -> Floats:
    """float32 ``(n, c)`` of queries ``(n, d)`` and candidates ``(n, c)``; inf where an id is missing."""
    wanted, place = np.unique(ids, return_inverse=True)
    found = int(np.searchsorted(wanted, MISSING_ID, side="right"))
    scores = np.full((len(queries), len(wanted)), np.inf, np.float32)
    step = max(1, _ROWS_BYTES // (4 * queries.shape[1]))
    for start in range(found, len(wanted), step):
        part = slice(start, start + step)
        scores[:, part] = score(queries, fetch(wanted[part]))
    return np.take_along_axis(scores, place.reshape(ids.shape), axis=1)
