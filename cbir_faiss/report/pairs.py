"""Any two rows of a comparison: their difference over the same queries, its interval, and how likely it is by luck."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import Test, paired_test
from cbir_faiss.report.row import Row, main_measure, name_of

Stored = Mapping[str, Any]
"""``measure``, and ``pairs`` of the places of two rows, their difference, low, high and p."""


def differences(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The paired test of every two rows over the same queries, as ``results.json`` has them; None without any."""
    measure = main_measure(rows)
    pairs = [
        [i, j, *paired_test(a.values[measure], b.values[measure])]
        for (i, a), (j, b) in itertools.combinations(enumerate(rows), 2)
        if comparable(a, b, measure) and a.queries > 1
    ]
    return {"measure": measure, "pairs": pairs} if pairs else None


def difference_of(stored: Stored | None, first: int, second: int) -> Test:
    """Of two places among the rows, what ``differences`` found: the first less the second.

    Raises:
        InputError: the rows are not of the same queries, or there is no such row, or they are one.
    """
    for i, j, mean, low, high, p in (stored or {}).get("pairs", ()):
        if (i, j) == (first, second):
            return Test(mean, low, high, p)
        if (j, i) == (first, second):
            return Test(-mean, -high, -low, p)
    raise InputError(f"rows {first + 1} and {second + 1} are no two rows that were tested over the same queries")


def in_words(rows: Sequence[Row], stored: Stored | None, first: int, second: int) -> str:
    """The test of two rows as a sentence. Raises InputError as ``difference_of`` does."""
    found = difference_of(stored, first, second)
    assert stored is not None
    one, other = (f"{rows[i].title} {name_of(rows[i])}".strip() for i in (first, second))
    chance = f"p = {found.p:.2g}" if found.p >= 1e-6 else "p < 0.000001"
    return (
        f"{one} less {other}: {stored['measure']} {found.difference:+.4f} (95 % interval {found.low:+.4f} to "
        f"{found.high:+.4f}), {chance} by a paired t test over {rows[first].queries:,} queries"
    )


def comparable(row: Row, other: Row, measure: str) -> bool:
    """Whether the values of two rows are of the same queries, and say the same thing."""
    if not (measure in row.values and measure in other.values) or any(
        getattr(row, name) != getattr(other, name) for name in ("source", "items", "queries", "failed")
    ):
        return False
    # Neighbours are true or not by the floats of one extractor: those of another are other neighbours.
    of_labels = measure.startswith("map@")
    return of_labels or (row.title, row.options["extractor"]) == (other.title, other.options["extractor"])
