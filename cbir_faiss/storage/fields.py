"""Which rows of a segment have which value under a key: an inverted index over its documents, for filters.

fields.jsonl      [key, value] for each value that a document has, in the order of key, kind of value and value; of a
                  key with too many values [key] alone: they tell items apart and do not group them
fields.npy        where each line ends
field-ends.npy    int64 (lines, 1), where the rows of each line end in
field-rows.npy    int32 (n, 1), ascending for each line

Filters are exact as ``base.filters`` has them: values of one kind are compared by Python, each once.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.filters import And, In, Not, Or, Range, Where
from cbir_faiss.storage.catalogue import as_json
from cbir_faiss.storage.files import ArrayFile, load_mapped
from cbir_faiss.storage.lines import Lines, LineWriter

Mask = NDArray[np.bool_]
Ranked = tuple[int, Any]
"""A value after the number of its kind: so ordered, and so equal, as filters compare."""

FIELDS = "fields"
PATH = "path"
MOST_VALUES = 1 << 15  # of one key, and four times as many of all: what is held in memory while a segment is written
_NUMBER, _TEXT = 2, 3


def _ranked(value: Any) -> Ranked | None:
    """None for what no filter matches: NaN, a mapping, a list in a list."""
    if value is None:
        return 0, None
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, int | float):
        return None if isinstance(value, float) and math.isnan(value) else (_NUMBER, value)
    return (_TEXT, value) if isinstance(value, str) else None


@dataclass(frozen=True)
class Field:
    """One key: its values in order, and their rows: those of value ``i`` are ``rows[ends[i]:ends[i + 1]]``."""

    values: list[Ranked]
    ends: NDArray[np.int64]
    rows: NDArray[np.int32]

    @classmethod
    def of(cls, rows_of: Mapping[Ranked, array[int]]) -> Field:
        values = sorted(rows_of)
        parts = [np.frombuffer(rows_of[value], np.int32) for value in values]
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        return cls(values, ends, np.concatenate(parts) if parts else np.empty(0, np.int32))

    def matching(self, conditions: Sequence[In | Range], rows: int) -> Mask:
        """bool ``(rows,)``: which have a value for each of ``conditions`` that it matches."""
        if len(conditions) > 1 and self._one_each and all(isinstance(condition, Range) for condition in conditions):
            # From one value to another: nobody has to look at all that are above the one and all below the other.
            spans = [span for condition in conditions for span in self._spans(condition)]
            if len(spans) < len(conditions):
                return np.zeros(rows, bool)
            first, last = max(first for first, _ in spans), min(last for _, last in spans)
            return self._between([(first, max(first, last))], rows)
        masks = [self._between(self._spans(condition), rows) for condition in conditions]
        return masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)

    def _between(self, spans: Iterable[tuple[int, int]], rows: int) -> Mask:
        found = np.zeros(rows, bool)
        for first, last in spans:
            found[self.rows[self.ends[first] : self.ends[last]]] = True
        return found

    @cached_property
    def _one_each(self) -> bool:
        """Whether no row has two values."""
        rows = self.rows[self.ends[0] : self.ends[-1]]
        return not len(rows) or int(np.bincount(rows).max()) == 1

    def counts(self, live: Mask | None) -> Iterator[tuple[Any, int]]:
        """Every value, and how many rows have it: all, or those that live."""
        for number, (_, value) in enumerate(self.values):
            rows = self.rows[self.ends[number] : self.ends[number + 1]]
            yield value, len(rows) if live is None else int(np.count_nonzero(live[rows]))

    def _spans(self, where: In | Range) -> Iterator[tuple[int, int]]:
        """From which value to which, excluded, the values match."""
        if isinstance(where, In):
            for wanted in map(_ranked, where.values):
                if wanted is not None and (first := bisect_left(self.values, wanted)) < len(self.values):
                    yield first, first + (self.values[first] == wanted)
            return
        bound = _ranked(where.bound)
        if bound is not None and bound[0] >= _NUMBER:
            place = (bisect_left if where.op in ("lt", "gte") else bisect_right)(self.values, bound)
            if where.op in ("lt", "lte"):
                yield bisect_left(self.values, bound[0], key=itemgetter(0)), place
            else:
                yield place, bisect_right(self.values, bound[0], key=itemgetter(0))


class FieldCollector:
    """Takes the documents of a segment, row after row. ``most``: values of a key above which it is given up."""

    def __init__(self, most: float = MOST_VALUES) -> None:
        self._fields: dict[str, dict[Ranked, array[int]] | None] = {}
        self._most, self._values, self._row = most, 0, 0

    def append(self, documents: Iterable[Mapping[str, Any]]) -> None:
        for document in documents:
            for key, value in document.items():
                if key != PATH:  # which the catalogue has an index for
                    self._take(key, value if isinstance(value, list | tuple) else (value,))
            self._row += 1

    def field(self, key: str) -> Field:
        return Field.of(self._fields.get(key) or {})

    def write(self, folder: Path) -> None:
        lines = LineWriter(folder, FIELDS)
        ends, rows = ArrayFile(folder / "field-ends.npy"), ArrayFile(folder / "field-rows.npy")
        try:
            ends.append(np.empty((0, 1), np.int64))
            lines.append([])
            rows.append(np.empty((0, 1), np.int32))
            for key in sorted(self._fields):
                field = self.field(key)
                lines.append([as_json([key, value]) for _, value in field.values] or [as_json([key])])
                ends.append(rows.rows + (field.ends[1:, None] if field.values else field.ends[:, None]))
                rows.append(field.rows[:, None])
        finally:
            for file in (lines, ends, rows):
                file.close()

    def _take(self, key: str, values: Iterable[Any]) -> None:
        known = self._fields.setdefault(key, {})
        if known is None:
            return
        for value in filter(None, map(_ranked, values)):
            rows = known.get(value)
            if rows is None:
                known[value] = array("i", [self._row])
                self._values += 1
            elif rows[-1] != self._row:
                rows.append(self._row)
        if len(known) > self._most or self._values > 4 * self._most:
            self._values -= len(known)
            self._fields[key] = None


class Fields:
    """Read access. Raises CorruptCollection where a file is missing, or they do not go together."""

    def __init__(self, folder: Path) -> None:
        self._lines = Lines(folder, FIELDS)
        self._ends: NDArray[np.int64] = np.asarray(load_mapped(folder / "field-ends.npy")).reshape(-1)
        self._rows: NDArray[np.int32] = np.asarray(load_mapped(folder / "field-rows.npy")).reshape(-1)

    def get(self, key: str) -> Field | None:
        """The field of ``key``, without values where no document has it; None where it has too many."""
        first = bisect_left(self._lines, key, key=itemgetter(0))
        last = bisect_right(self._lines, key, first, key=itemgetter(0))
        if first < last and len(self._lines[first]) == 1:
            return None
        values = [ranked for _, value in self._lines[first:last] if (ranked := _ranked(value)) is not None]
        before = int(self._ends[first - 1]) if first else 0
        return Field(values, np.concatenate([[before], self._ends[first:last]]), self._rows)

    def names(self) -> list[str]:
        """Every key that a document has, in order."""
        found: list[str] = []
        place = 0
        while place < len(self._lines):
            found.append(self._lines[place][0])
            place = bisect_right(self._lines, found[-1], place, key=itemgetter(0))
        return found

    def close(self) -> None:
        self._lines.close()


def matching(where: Where, rows: int, leaf: Callable[[Sequence[In | Range]], Mask]) -> Mask:
    """bool ``(rows,)``: which rows a filter matches; ``leaf`` answers for conditions on one key that hold together."""
    if isinstance(where, Not):
        return ~matching(where.part, rows, leaf)
    if isinstance(where, Or):
        either: Mask = np.logical_or.reduce(
            [np.zeros(rows, bool), *(matching(part, rows, leaf) for part in where.parts)]
        )
        return either
    if isinstance(where, And):
        ranges: dict[str, list[In | Range]] = {}
        for part in where.parts:
            if isinstance(part, Range):
                ranges.setdefault(part.key, []).append(part)
        masks = [leaf(conditions) for conditions in ranges.values()]
        masks += [matching(part, rows, leaf) for part in where.parts if not isinstance(part, Range)]
        return np.logical_and.reduce(masks) if masks else np.ones(rows, bool)
    return leaf([where])
