"""The one way from queries to hits: their columns, the index, the rescorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Places
from cbir_faiss.base.filters import Where, parse_where
from cbir_faiss.errors import InputError
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.types import Codes, Columns, Hits, Ids

Filter = Where | Mapping[str, Any] | str


class Index(Protocol):
    """What is searched: the segments of a collection, or the one index of a comparison."""

    def __len__(self) -> int: ...
    def search(self, codes: Codes, k: int, where: Where | None) -> Hits:
        """The ``k`` nearest of each of ``codes``."""

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        """Stored rows of a column (or ``code``), in the order of ``ids``."""

    def located(self, ids: Ids, column: str) -> Places:
        """Where they lie; see ``base.located``."""


class Searcher:
    """A fitted codec and rescorer over an index. Safe to use from several threads."""

    def __init__(self, fitted: Fitted, index: Index, threads: int | None = None) -> None:
        self.fitted, self._index, self._threads = fitted, index, threads
        self._fetch = _Fetch(index)

    def hits(self, columns: Columns, k: int, where: Filter | None = None) -> Hits:
        """The ``k`` nearest of queries whose ``columns`` the extractor made; fewer where there are fewer items.

        Raises:
            InputError: k < 1, vectors of NaN, a zero vector under cosine, a filter that cannot be read.
            DimensionMismatch: vectors of another width than the codec was fitted on.
        """
        with threads.phase("search", self._threads):
            return self.nearest(self.fitted.queries(columns), k, where)

    def hits_of(self, ids: Ids, k: int, where: Filter | None = None) -> Hits:
        """The ``k`` nearest of items that are stored, themselves left out.

        Raises:
            UnknownId: an id that is not there. InputError: k < 1.
        """
        _check(k)
        stored = {name: self._index.fetch(ids, name) for name in self.fitted.stored}
        with threads.phase("search", self._threads):
            queries = self.fitted.stored_queries(self._index.fetch(ids, "code"), stored)
            return without(self.nearest(queries, k + 1, where), ids, k)

    def nearest(self, queries: Columns, k: int, where: Filter | None = None) -> Hits:
        """As ``hits``, for queries as ``Fitted.queries`` or ``stored_queries`` makes them; no thread limits are set."""
        _check(k)
        tree, items = None if where is None else parse_where(where), max(1, len(self._index))

        def first(codes: Codes, depth: int) -> Hits:
            return self._index.search(codes, depth, tree)

        return self.fitted.rescorer.search(queries, min(k, items), items, first, self._fetch)


def _check(k: int) -> None:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")


class _Fetch:
    """What a rescorer is given: rows on demand, or where they lie."""

    def __init__(self, index: Index) -> None:
        self._fetch, self.located = index.fetch, index.located

    def __call__(self, ids: Ids, column: str) -> NDArray[Any]:
        return self._fetch(ids, column)


def without(hits: Hits, own: Ids, k: int) -> Hits:
    """The first ``k`` of each query's hits that are not the query itself."""
    order = np.argsort(hits.ids == own[:, None], axis=1, kind="stable")[:, :k]
    ids, distances = np.take_along_axis(hits.ids, order, 1), np.take_along_axis(hits.distances, order, 1)
    left = ids == own[:, None]  # there were no k others
    return Hits(np.where(left, -1, ids), np.where(left, np.float32(np.inf), distances))
