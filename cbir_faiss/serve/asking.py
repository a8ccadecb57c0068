"""From queries of many requests to hits: what runs in a thread, over one generation of a collection."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Extractor
from cbir_faiss.base.filters import And, Not, Or, Where, parse_where
from cbir_faiss.collection.collection import Collection, Match
from cbir_faiss.collection.stages import Rescore
from cbir_faiss.errors import InputError, UnknownId
from cbir_faiss.serve.live import Generation
from cbir_faiss.serve.problems import Problem
from cbir_faiss.storage.manifest import Manifest
from cbir_faiss.types import Columns, Floats, Ids

Prepared = Sequence[NDArray[Any]]
Hit = dict[str, Any]
_AWAY = 0.5
"""How far a query goes beyond the liked ones' mean, in steps from the unliked ones' to it (Rocchio)."""
_LARGEST_ID = (1 << 63) - 1


@dataclass(frozen=True)
class Asking:
    """What questions have in common that are answered in one search."""

    generation: Generation
    k: int
    where: Where | None
    rescore: Rescore | None

    def by_ids(self, questions: Sequence[Sequence[int]]) -> list[list[list[Hit]]]:
        """Hits of stored items, for each question a list for each of its ids."""
        return self._each(questions, lambda c, ids: c.search_ids(ids, self.k, self.where, rescore=self.rescore))

    def by_pictures(self, extractor: Extractor, questions: Sequence[Prepared]) -> list[list[list[Hit]]]:
        """Hits of prepared pictures, for each question a list for each of its pictures."""
        return self.by_columns(extracted(extractor, questions))

    def by_texts(self, extractor: Extractor, questions: Sequence[Sequence[str]]) -> list[list[list[Hit]]]:
        """Hits of what texts say, for each question a list for each of its texts."""
        return self.by_columns(embedded(extractor, questions), texts=True)

    def by_columns(self, questions: Sequence[Columns], *, texts: bool = False) -> list[list[list[Hit]]]:
        """Hits of what was extracted, for each question a list for each of its rows; of ``texts`` it is not known
        whether they are meant."""
        counts = [len(next(iter(columns.values()))) for columns in questions]
        whole = {name: np.concatenate([columns[name] for columns in questions]) for name in questions[0]}
        rows = [range(end - count, end) for count, end in zip(counts, np.cumsum(counts).tolist(), strict=True)]

        def search(collection: Collection, some: Sequence[int]) -> list[list[Match]]:
            columns = {name: column[list(some)] for name, column in whole.items()}
            search = collection.search_embedded if texts else collection.search_columns
            return search(columns, self.k, self.where, rescore=self.rescore)

        return self._each(rows, search)

    def _each(
        self, questions: Sequence[Sequence[int]], search: Callable[[Collection, Sequence[int]], list[list[Match]]]
    ) -> list[list[list[Hit]]]:
        """One search for all, whose hits are dealt out; the exact one looks at everything, query by query."""
        flat = [one for question in questions for one in question]
        step = 1 if self.rescore == "exact" else max(1, len(flat))
        with self.generation.held() as collection:
            blocks = [search(collection, flat[start : start + step]) for start in range(0, len(flat), step)]
            hits = iter([described(collection.manifest, matches) for block in blocks for matches in block])
        return [[next(hits) for _ in question] for question in questions]


def described(manifest: Manifest, matches: Iterable[Match]) -> list[Hit]:
    return [
        {"relevant": None, **match.as_dict(), "missing": original(manifest, match.path) is None} for match in matches
    ]


def original(manifest: Manifest, path: str) -> str | None:
    """The file that an item was made of, where it is still there: below the collection's root, or added by hand."""
    if manifest.extractor is None or not path:
        return None
    if not path.startswith("/"):
        if manifest.root is None or ".." in path.split("/"):
            return None
        path = f"{manifest.root}/{path}"
    try:
        return path if stat.S_ISREG(os.stat(path).st_mode) else None  # noqa: PTH116  for each hit: a Path costs more
    except (OSError, ValueError):  # not there, or no name that a file can have
        return None


def read_filter(where: str | dict[str, Any] | None, depth: int) -> Where | None:
    """The tree of a filter. Raises InputError, also where it has more levels than ``depth``."""
    if where is None or where == "":
        return None
    tree = parse_where(where)
    level: Sequence[Where] = (tree,)
    for _ in range(depth):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return tree
    raise InputError(f"a filter is nested at most {depth} deep here: join conditions on one key by 'in'")


def _parts(where: Where) -> Sequence[Where]:
    return where.parts if isinstance(where, And | Or) else (where.part,) if isinstance(where, Not) else ()


def extracted(extractor: Extractor, questions: Sequence[Prepared]) -> list[Columns]:
    """Columns of prepared pictures, for each question a row for each of its pictures."""
    flat = [picture for question in questions for picture in question]
    rows: list[dict[str, NDArray[Any]]] = [{}] * len(flat)
    for shape in dict.fromkeys(picture.shape for picture in flat):
        alike = [number for number, picture in enumerate(flat) if picture.shape == shape]
        with threads.phase("extract"):
            columns = extractor.extract(np.stack([flat[number] for number in alike]))
        for place, number in enumerate(alike):
            rows[number] = {name: column[place] for name, column in columns.items()}
    each = iter(rows)
    return [_stacked([next(each) for _ in question]) for question in questions]


def embedded(extractor: Extractor, questions: Sequence[Sequence[str]]) -> list[Columns]:
    """Columns of texts, for each question a row for each of its texts."""
    with threads.phase("extract"):
        return [extractor.embed_text(texts) for texts in questions]


def _stacked(rows: Sequence[dict[str, NDArray[Any]]]) -> Columns:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def combined(collection: Collection, given: Sequence[Floats], ids: Sequence[int], unlike: Sequence[int]) -> Columns:
    """One query of many: the mean of embeddings given ``(n, dim)`` and of items, led away from the ``unlike`` ones.

    Raises:
        Unsupported: items are among them, and their embeddings are not kept. UnknownId. DimensionMismatch, InputError.
    """
    liked = [rows for rows in given if len(rows)] + ([collection.embeddings(known(ids))] if ids else [])
    if len({rows.shape[1] for rows in liked}) > 1:
        raise InputError("vectors of different widths cannot be combined")
    mean = np.concatenate(liked).mean(axis=0, keepdims=True, dtype=np.float64)
    if unlike:
        away = collection.embeddings(known(unlike)).mean(axis=0, keepdims=True, dtype=np.float64)
        if away.shape != mean.shape:
            raise InputError(f"vectors of {mean.shape[1]} dimensions, the collection's have {away.shape[1]}")
        mean = mean + _AWAY * (mean - away)
    return {"embedding": mean.astype(np.float32)}


def known(ids: Sequence[int]) -> Ids:
    """int64 ``(n,)``. Raises UnknownId for one that no item can have."""
    for item in ids:
        if not 0 <= item <= _LARGEST_ID:
            raise UnknownId(f"no item with id {item}")
    return np.array(ids, np.int64)


def embeddings_given(vectors: Sequence[Sequence[float]]) -> Floats:
    """float32 ``(n, dim)``. Raises Problem (422) where they differ in width or do not fit in float32."""
    if len({len(vector) for vector in vectors}) > 1:
        raise Problem(422, "vectors: all must have the same width")
    with np.errstate(over="ignore"):
        rows = np.array(vectors, np.float32)
    if not np.isfinite(rows).all():
        raise Problem(422, "vectors: a number that does not fit in float32")
    return rows
