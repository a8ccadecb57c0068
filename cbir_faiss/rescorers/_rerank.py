"""The second stage's loop: fetch the candidates of a few queries, score them by one matrix product, sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.types import MISSING_ID, Floats, Hits, Ids

Candidates = Annotated[int, Field(ge=1)] | Literal["all"]
"""How many hits of the first stage are looked at (where more results than that are wanted: as many as those)."""
Score = Callable[[NDArray[Any], NDArray[Any]], Floats]
"""``score(queries (n, d), stored rows (m, …))``: distances float32 ``(n, m)``, smaller is nearer."""

# A product of all queries of a block with all their candidates does the work of a block of unrelated queries several
# times over, but reads every row once, in order; up to about 16 queries the reading still costs more.
_QUERIES = 16
_ROWS_BYTES = 1 << 23


def rerank(queries: NDArray[Any], hits: Hits, fetch: Callable[[Ids], NDArray[Any]], score: Score) -> Hits:
    """``hits`` sorted by ``score``; equals keep their order, missing hits stay last."""
    ids = hits.ids
    distances = np.empty(ids.shape, np.float32)
    for start in range(0, len(ids), _QUERIES):
        rows = slice(start, start + _QUERIES)
        distances[rows] = _distances(queries[rows], ids[rows], fetch, score)
    order = np.argsort(distances, axis=1, kind="stable")
    return Hits(np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1))


def _distances(queries: NDArray[Any], ids: Ids, fetch: Callable[[Ids], NDArray[Any]], score: Score) -> Floats:
    """float32 ``(n, c)`` of queries ``(n, d)`` and candidates ``(n, c)``; inf where an id is missing."""
    wanted, place = np.unique(ids, return_inverse=True)
    found = int(np.searchsorted(wanted, MISSING_ID, side="right"))
    scores = np.full((len(queries), len(wanted)), np.inf, np.float32)
    step = max(1, _ROWS_BYTES // (4 * queries.shape[1]))
    for start in range(found, len(wanted), step):
        part = slice(start, start + step)
        scores[:, part] = score(queries, fetch(wanted[part]))
    return np.take_along_axis(scores, place.reshape(ids.shape), axis=1)
