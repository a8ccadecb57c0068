"""The same search by its parts: as the collection was built, by the code alone, or exactly, by its floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Places, Rescorer
from cbir_faiss.base.filters import Where
from cbir_faiss.base.registry import make
from cbir_faiss.errors import Unsupported
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Codes, Columns, Floats, Hits, Ids, missing_hits

Rescore = Literal["none", "exact"]


def searcher_of(store: Store, rescore: Rescore | None) -> Searcher:
    """Searches as the collection was built (None), by the first stage alone, or by the floats of every item.

    Raises:
        Unsupported: ``exact``, where codes alone are kept.
    """
    if rescore is None:
        return Searcher(store.fitted, store)
    if rescore == "none":
        return Searcher(replace(store.fitted, rescorer=make("rescorers", "none")), store)
    column = float_column(store)
    if column == "embedding":
        return Searcher(store.fitted, _Everything(store, {}))
    metric = "cosine" if store.manifest.metric == "hamming" else store.manifest.metric  # it makes codes of them itself
    rescorer: Rescorer = make("rescorers", "float", metric=metric, center=False)
    rescorer.fit({"embedding": np.zeros((1, store.manifest.width), np.float32)})
    return Searcher(_Uncoded(store.fitted.codec, rescorer, "embedding"), _Everything(store, {"embedding": column}))


def float_column(store: Store) -> str:
    """The stored column that has the items' floats: ``embedding``, or ``code`` where these are the floats.

    Raises:
        Unsupported: codes alone are kept.
    """
    if "embedding" in store.fitted.stored:
        return "embedding"
    if store.fitted.codec.kind == "float":
        return "code"
    raise Unsupported(f"{store.folder} keeps codes and no floats: build it with rescore {{name: float}}")


def stored_embeddings(store: Store, ids: Ids) -> Floats:
    """float32 ``(n, dim)``: the embeddings of stored items, as nearly as they were kept.

    Raises:
        Unsupported: codes alone are kept, or floats that are not the embedding (rotated ones). UnknownId.
    """
    column, codec = float_column(store), store.fitted.codec
    rows = store.fetch(ids, column)
    if column == "embedding":
        return np.asarray(store.fitted.rescorer.unpack({column: rows})[column], np.float32)
    if rows.shape[1] != store.manifest.dim or not np.array_equal(codec.encode(rows), rows):
        raise Unsupported(f"{store.folder} keeps what codec '{codec.name}' made of the embeddings: search by one id")
    return np.asarray(rows, np.float32)


@dataclass(frozen=True)
class _Uncoded(Fitted):
    """Floats that are the code: a query's stand for its embedding."""

    def queries(self, columns: Columns) -> dict[str, NDArray[Any]]:
        queries = super().queries(columns)
        return {**queries, "embedding": queries["code"]}

    def stored_queries(self, codes: Codes, packed: Columns) -> dict[str, NDArray[Any]]:
        return {"code": codes, "embedding": codes}

    @property
    def stored(self) -> Sequence[str]:
        return ()


class _Everything:
    """An index that lets every item through, so that what ranks them is the rescorer alone.

    columns: what a column is called in the store, where that is another name.
    """

    def __init__(self, store: Store, columns: Mapping[str, str]) -> None:
        self._store, self._columns = store, columns

    def __len__(self) -> int:
        return len(self._store)

    def search(self, codes: Codes, k: int, where: Where | None) -> Hits:
        ids = self._store.live_ids if where is None else self._store.select(where)
        if not len(ids):
            return missing_hits(len(codes), 1)
        return Hits(np.tile(ids, (len(codes), 1)), np.zeros((len(codes), len(ids)), np.float32))

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        return self._store.fetch(ids, self._columns.get(column, column))

    def located(self, ids: Ids, column: str) -> Places:
        return self._store.located(ids, self._columns.get(column, column))
