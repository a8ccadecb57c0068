"""What orders the hits of a search once more."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.plugin import Plugin
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import CorruptCollection, InputError
from cbir_faiss.types import Codes, Columns, Hits, Ids, missing_hits

Fetch = Callable[[Ids, str], NDArray[Any]]
"""``fetch(ids, column)``: stored rows ``(len(ids), width)`` of a column, in the order of ``ids``."""


Places = Sequence[tuple[NDArray[Any], Ids]]
"""Matrices, mapped or not, in which rows of a column lie; for each the row of every id, -1 where it is in another."""


def located(fetch: Fetch, ids: Ids, column: str) -> Places | None:
    """Where a column of stored items ``ids`` (of any shape; -1 is nowhere) lies, if whoever fetches has it in matrices;
    None where rows must be fetched."""
    find = getattr(fetch, "located", None)
    return None if find is None else find(ids, column)


FirstStage = Callable[[Codes, int], Hits]
"""``first(codes, depth)``: the ``depth`` nearest in the index of each of ``codes``."""
_HITS_AT_ONCE = 1 << 24


class Rescorer(Plugin):
    """Re-ranks the first ``candidates`` of a search with more than the index had.

    Columns it may ask for: the extractor's (``embedding``, …), ``code`` (packed codes of the index, queries and items)
    and, of queries only, ``projection`` (the codec's float projection).
    """

    needs_items: ClassVar[tuple[str, ...]] = ()
    needs_queries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.state: dict[str, NDArray[Any]] = {}
        super().__init__(**options)

    @property
    def candidates(self) -> int | Literal["all"]:
        """How many hits of the first stage it looks at."""
        return cast("int", getattr(self.options, "candidates", 0))

    @property
    def reach(self) -> float | None:
        """How far beyond the last candidate's distance every hit is a candidate too: 0 takes all that tie with it.

        None: as many candidates as were asked for, whichever of those that tie the engine names first.
        """
        return None

    def search(self, queries: Columns, k: int, items: int, first: FirstStage, fetch: Fetch) -> Hits:
        """The best ``k`` of a database of ``items`` for each query, by both stages.

        ``queries`` have a column ``code``, which ``first`` searches with. Raises what ``rescore`` does.
        """
        depth = max(k, items if self.candidates == "all" else min(items, self.candidates))
        if self.reach is None:
            return self.rescore(queries, first(queries["code"], depth), fetch, k)
        self._require_of_queries(queries, len(queries["code"]))
        step = max(1, _HITS_AT_ONCE // max(1, items))  # in the worst case every item is a candidate of every query
        parts = []
        for start in range(0, len(queries["code"]), step):
            some = {name: column[start : start + step] for name, column in queries.items()}
            parts.append(self._search_reaching(some, k, depth, items, self.reach, first, fetch))
        return Hits(np.concatenate([part.ids for part in parts]), np.concatenate([part.distances for part in parts]))

    def fit(self, columns: Columns, labels: NDArray[Any] | None = None) -> Rescorer:
        """Learn from the database's columns (a mean, say).

        Raises:
            InputError: a column of ``needs_items`` is not there.
        """
        self._require(columns)
        self._fit(columns, labels)
        return self

    def rescore(self, queries: Columns, hits: Hits, fetch: Fetch, k: int) -> Hits:
        """The best ``k`` of ``hits`` ``(n, candidates)``, re-ranked (it may drop some), with its own distances.

        Raises:
            InputError: a column of ``needs_queries`` is not there, or has not one row a query.
        """
        self._require_of_queries(queries, len(hits))
        again = self._rescore(queries, hits, fetch)
        return Hits(np.ascontiguousarray(again.ids[:, :k]), np.ascontiguousarray(again.distances[:, :k]))

    def pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """What is to be stored of the extractor's columns: one row an item, which ``fetch`` gives back unchanged.

        Rows of a 2-d array of any dtype, so that a store can append, map and gather them. ``code`` is not among them:
        the index has it.

        Raises:
            InputError: a column of ``needs_items`` is not there.
        """
        self._require(columns)
        return self._pack(columns)

    def unpack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """Stored columns as the extractor gave them, as nearly as they were kept: a stored item becomes a query."""
        return self._unpack(columns)

    def resident_bytes(self, items: int, widths: Mapping[str, int]) -> int:
        """Bytes of packed columns that rescoring ``items`` items reads; ``widths`` are their bytes an item."""
        return items * sum(widths[column] for column in self.needs_items)

    def save(self, path: Path) -> None:
        """Write name, options and state to one file; no pickle."""
        write_state(path, {"plugin": self.name, "options": self.options.model_dump(mode="json")}, self.state)

    def restore(self, path: Path) -> Rescorer:
        """Take the state that ``save`` wrote for a rescorer of the same name and options, ``candidates`` aside.

        Raises:
            CorruptCollection: the file is missing, cut short, altered, or of another rescorer.
        """
        meta, state = read_state(path)
        mine, theirs = self._identity(self.options.model_dump(mode="json")), self._identity(meta.get("options", {}))
        if meta.get("plugin") != self.name or theirs != mine:
            raise CorruptCollection(
                f"{path}: state of '{meta.get('plugin')}' {theirs}, but here is '{self.name}' {mine}"
            )
        self.state = state
        return self

    @staticmethod
    def _identity(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key != "candidates"}

    def _search_reaching(
        self, queries: Columns, k: int, depth: int, items: int, reach: float, first: FirstStage, fetch: Fetch
    ) -> Hits:
        """As ``search``, deeper and deeper for the queries whose candidates do not yet end where ``reach`` says."""
        best = missing_hits(len(queries["code"]), k)
        waiting, ends = np.arange(len(best)), None
        while len(waiting):
            hits = first(queries["code"][waiting], depth)
            last = hits.distances[:, -1]
            if ends is None:
                ends = last + reach
            done = (last > ends) | np.isinf(last) | (depth >= items)
            rows = waiting[done]
            some = {name: column[rows] for name, column in queries.items()}
            found = self.rescore(some, Hits(hits.ids[done], hits.distances[done]), fetch, k)
            best.ids[rows], best.distances[rows] = found.ids, found.distances
            waiting, ends, depth = waiting[~done], ends[~done], min(items, 4 * depth)
        return best

    def _fit(self, columns: Columns, labels: NDArray[Any] | None) -> None: ...
    def _pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return {column: columns[column] for column in self.needs_items if column != "code"}

    def _unpack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return dict(columns)

    def _require_of_queries(self, queries: Columns, n: int) -> None:
        for column in self.needs_queries:
            if column not in queries or len(queries[column]) != n:
                got = f"{len(queries[column])} rows" if column in queries else "none"
                raise InputError(f"rescorer '{self.name}' needs '{column}' of {n} queries, got {got}")

    def _require(self, columns: Columns) -> None:
        for column in self.needs_items:
            if column != "code" and column not in columns:
                given = ", ".join(sorted(columns)) or "nothing"
                raise InputError(f"rescorer '{self.name}' needs '{column}' of the items, the extractor gives {given}")

    @abstractmethod
    def _rescore(self, queries: Columns, hits: Hits, fetch: Fetch) -> Hits: ...
