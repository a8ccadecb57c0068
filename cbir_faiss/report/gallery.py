"""Which two rows the pictures of a report are of, and what these found, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cbir_faiss.errors import InputError
from cbir_faiss.report.row import Row, is_reference, main_measure, name_of
from cbir_faiss.report.table import SAW_LABELS

Stored = Mapping[str, Any]
"""A gallery of ``gallery.json``: ``title``, ``pictures``, and ``queries`` with what each row found."""


def galleries_of(
    stored: Sequence[Stored], rows: Sequence[Row], recommended: Row | None = None, chosen: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """What a page shows: of the two ``chosen`` rows, else two rows of each embedding, else the best two of all.

    Raises:
        InputError: a chosen row that is not there, that several are called, or of which no pictures were stored.
    """
    if chosen is not None:
        return [_chosen(stored, rows, chosen)]
    current = [gallery for gallery in stored if "pictures" in gallery]
    if not current:
        return [dict(gallery) for gallery in stored]  # of earlier versions: the two sides themselves
    pictured = [[row for row in rows if row.raw in gallery["queries"][0]["found"]] for gallery in current]
    pairs = [two_rows(some, recommended) for some in pictured]
    if not any(pairs):
        pairs = [two_rows([row for some in pictured for row in some], recommended)]
    return [side_by_side(current, *pair) for pair in pairs if pair]


def two_rows(rows: Sequence[Row], recommended: Row | None = None) -> tuple[Row, Row] | None:
    """Raw floats and the recommended row, else the best binary one; without raw floats the best row and the next best
    of another codec or rescorer. The best is one that saw no labels, where there is one. None of fewer than two."""
    if len(rows) < 2:
        return None
    measure = main_measure(rows)

    def worth(row: Row) -> tuple[Any, ...]:
        return not row.supervised, row.metrics[measure], -(row.bits or 0)

    raw = next((row for row in rows if is_reference(row)), None)
    first = raw or max(rows, key=worth)
    others = [row for row in rows if row is not first]
    if any(row is recommended for row in others):
        assert recommended is not None
        return first, recommended
    if raw is not None:
        others = [row for row in others if row.codec != "raw" and row.bits] or others
    return first, max(others, key=lambda row: (_coding(row) != _coding(first), *worth(row)))


def _coding(row: Row) -> tuple[Any, ...]:
    """What decides the hits, but for what an index loses."""
    return row.title, row.codec, row.options["codec"], row.rescore, row.options["rescore"]


def side_by_side(stored: Sequence[Stored], one: Row, other: Row) -> dict[str, Any]:
    """The hits of two rows for the queries that both were asked: ``title``, ``names``, and ``queries`` with ``found``
    of each.

    Raises:
        InputError: no pictures of a row were stored.
    """
    (mine, queries), (theirs, asked) = (_of(stored, row) for row in (one, other))
    titles = list(dict.fromkeys((one.title, other.title)))
    return {
        "title": " and ".join(titles),
        "names": [name_of(row) if len(titles) == 1 else f"{row.title} {name_of(row)}" for row in (one, other)],
        "queries": [
            {**query, "found": [_hits(mine, query, one), _hits(theirs, asked[path], other)]}
            for path, query in queries.items()
            if path in asked
        ],
    }


def _of(stored: Sequence[Stored], row: Row) -> tuple[Stored, dict[str, Any]]:
    """The gallery that has the row, and its queries by their paths."""
    for gallery in stored:
        if "pictures" in gallery and row.raw in gallery["queries"][0]["found"]:
            return gallery, {query["path"]: query for query in gallery["queries"]}
    raise InputError(f"no pictures of what {name_of(row)} found are stored: compare again, if it was of pictures")


def _hits(gallery: Stored, query: Mapping[str, Any], row: Row) -> list[dict[str, Any]]:
    return [{**gallery["pictures"][place], "hit": hit} for place, hit in query["found"][row.raw]]


def _chosen(stored: Sequence[Stored], rows: Sequence[Row], chosen: Sequence[str]) -> dict[str, Any]:
    one, other = (find_row(rows, text) for text in chosen)
    if one is other:
        raise InputError(f"two different rows are needed, and both are {name_of(one)}")
    return side_by_side(stored, one, other)


def find_row(rows: Sequence[Row], text: str) -> Row:
    """The row of that number, from 1 on, or of that name, as the table has it, with what it is of before it or without.

    Raises:
        InputError: none is, or several are.
    """
    if text.isdecimal() and 1 <= int(text) <= len(rows):
        return rows[int(text) - 1]
    name = text.removesuffix(SAW_LABELS)
    found = [number for number, row in enumerate(rows, 1) if name in (name_of(row), f"{row.title} {name_of(row)}")]
    if not found:
        raise InputError(f"there is no row '{text}': give a number from 1 to {len(rows)}, or a name of the table")
    if len(found) > 1:
        raise InputError(f"rows {', '.join(map(str, found))} are all called '{text}': give a number")
    return rows[found[0] - 1]
