"""Which item is relevant to which query: one with the same label or, where items have several, one sharing a label.

An item may be ignored for some queries (junk in a ground truth, the query's own picture): it is then neither right nor
wrong, and counts as if it were not in the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_rows
from cbir_faiss.base.labels import Labels
from cbir_faiss.errors import InputError
from cbir_faiss.types import MISSING_ID, Ids

_PAIRS = 1 << 22  # pairs of a query and an item looked at together


@dataclass(frozen=True)
class Relevance:
    """Relevance as a function of labels; make it with ``from_labels``.

    The labels are kept in one of two forms. ``shared`` False: one label each, as a number; relevant where equal.
    ``shared`` True: sets of labels, a bit each in 64-bit words; relevant where any word has a bit in common.

    items: ``(words, n)``. queries: ``(words, nq)``. junk: which item is ignored for which query, in the same form.
    """

    items: NDArray[Any]
    queries: NDArray[Any]
    shared: bool
    junk: Relevance | None = None

    @classmethod
    def from_labels(cls, items: Labels, queries: Labels, ignored: Labels = ()) -> Relevance | None:
        """The relevance between labelled items and queries; None where either side has no label at all.

        An item or query without a label among labelled ones is relevant to nothing. ``ignored`` are labels too, a row
        an item where there are any: queries that share one ignore the item, whatever its own labels are.

        Raises:
            InputError: a label set that is not a tuple (or list) of texts, or not as many of ``ignored`` as items.
        """
        if ignored and len(ignored) != len(items):
            raise InputError(f"{len(ignored)} sets of ignored labels for {len(items)} items")
        _check(items, "item")
        _check(queries, "query")
        if not any(items) or not any(queries):
            return None
        # Only labels that occur on both sides can make a pair relevant.
        common = sorted(set(chain.from_iterable(items)) & set(chain.from_iterable(queries)))
        numbers = {label: number for number, label in enumerate(common)}
        x: NDArray[Any]
        q: NDArray[Any]
        shared = any(len(set(labels)) > 1 for labels in chain(items, queries))
        if shared:
            words = max(1, -(-len(numbers) // 64))
            x, q = _label_bits(items, numbers, words), _label_bits(queries, numbers, words)
        else:
            # Two different numbers for "no such label", so that they never meet.
            x, q = _label_numbers(items, numbers, -1), _label_numbers(queries, numbers, -2)
        return cls(x, q, shared, cls.from_labels(ignored, queries))

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """int64 ``(nq,)``: relevant items in the database, by query."""
        # Many queries have the same labels: each set is counted once, a block of sets at a time.
        sides = [self.queries] if self.junk is None else [self.queries, self.junk.queries]
        sets = np.concatenate([side.astype(np.int64) for side in sides])
        _, first, which = np.unique(sets, axis=1, return_index=True, return_inverse=True)
        counts = np.empty(len(first), np.int64)
        step = max(1, _PAIRS // max(1, self.items.shape[1]))
        for start in range(0, len(counts), step):
            rows = slice(start, start + step)
            counts[rows] = self.block(first[rows]).sum(axis=1)
        return counts[which.reshape(-1)]

    @property
    def most_ignored(self) -> int:
        """The largest number of items that one query ignores."""
        return 0 if self.junk is None else int(self.junk.totals.max(initial=0))

    def ranked(self, rows: Ids) -> NDArray[np.bool_]:
        """As ``of``, with the ignored of ``rows`` taken out: those behind them move up, and the end is False."""
        relevant = self.of(rows)
        if self.junk is None:
            return relevant
        order = np.argsort(self.junk.of(rows), axis=1, kind="stable")
        return np.take_along_axis(relevant, order, axis=1)

    def of(self, rows: Ids, queries: slice | None = None) -> NDArray[np.bool_]:
        """Whether each of ``rows``, item numbers ``(nq, k)``, is relevant to its query; an ignored one or -1 is not.

        ``queries`` says which queries the rows belong to, where they are not all of them.

        Raises:
            InputError: not as many rows as queries, or a row beyond the items.
        """
        mine = self.queries[:, queries or slice(None)]
        check_rows(rows, mine.shape[1], self.items.shape[1])
        out = np.empty(rows.shape, np.bool_)
        step = max(1, _PAIRS // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            out[block] = _match(self.items[:, rows[block]], mine[:, block, None], self.shared)
        out &= rows != MISSING_ID
        if self.junk is not None:
            out &= ~self.junk.of(rows, queries)
        return out

    def block(self, queries: slice | Ids, items: slice | None = None) -> NDArray[np.bool_]:
        """The full matrix ``(queries, items)`` of some queries and a range of items: the caller bounds its size."""
        out = _match(self.items[:, None, items or slice(None)], self.queries[:, queries, None], self.shared)
        return out if self.junk is None else out & ~self.junk.block(queries, items)


def _check(labels: Labels, side: str) -> None:
    for row, value in enumerate(labels):
        if not isinstance(value, (tuple, list)) or not all(isinstance(label, str) for label in value):
            raise InputError(f"labels of {side} {row} must be a tuple of texts, got {value!r}")


def _label_numbers(labels: Labels, numbers: dict[str, int], none: int) -> NDArray[np.int32]:
    return np.array([[numbers.get(value[0], none) if value else none for value in labels]], np.int32)


def _label_bits(labels: Labels, numbers: dict[str, int], words: int) -> NDArray[np.uint64]:
    bits = np.zeros((len(labels), words * 64), np.bool_)
    pairs = [(row, numbers[label]) for row, value in enumerate(labels) for label in value if label in numbers]
    bits[tuple(np.array(pairs, np.int64).reshape(-1, 2).T)] = True
    return np.ascontiguousarray(np.packbits(bits, axis=1).view(np.uint64).T)


def _match(items: Iterable[Any], queries: Iterable[Any], shared: bool) -> NDArray[np.bool_]:
    """Word by word, so that no array has more than one entry a pair."""
    relevant: Any = False
    for x, q in zip(items, queries, strict=True):
        relevant = relevant | ((x & q) != 0 if shared else x == q)
    return np.asarray(relevant, np.bool_)
