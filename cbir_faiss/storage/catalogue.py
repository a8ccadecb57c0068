"""The items of a segment in SQLite: id, path and a JSON document. Written once, opened immutable."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss.base import Item
from cbir_faiss.filters import And, In, Not, Or, Range, Scalar, Where
from cbir_faiss.types import Ids

_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def document(item: Item) -> dict[str, Any]:
    """What is stored, filtered and pushed for an item: payload, path, and label (a list where there are several)."""
    labels = {} if not item.labels else {"label": item.labels[0] if len(item.labels) == 1 else list(item.labels)}
    return {**item.payload, **labels, "path": item.path}


def write_catalogue(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
    """Write ``(id, document)`` rows to a new file at ``path``.

    ``VACUUM INTO`` makes the bytes depend on the rows only, not on how they were written.
    """
    aside = path.with_name(path.name + ".writing")
    aside.unlink(missing_ok=True)
    with sqlite3.connect(aside) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, path TEXT NOT NULL, document TEXT NOT NULL)")
        values = ((i, str(doc.get("path", "")), json.dumps(doc, ensure_ascii=False)) for i, doc in rows)
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", values)
        connection.execute("CREATE INDEX by_path ON items (path)")
        connection.commit()
        connection.execute("VACUUM INTO ?", (str(path),))
    connection.close()
    aside.unlink()


class Catalogue:
    """Read access to a catalogue file. One connection, usable from several threads."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, check_same_thread=False)

    def documents(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Documents of those of ``ids`` that are here."""
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(ids), 500):
            some = [int(i) for i in ids[start : start + 500]]
            marks = ",".join("?" * len(some))
            rows = self._connection.execute(f"SELECT id, document FROM items WHERE id IN ({marks})", some)
            found.update((i, json.loads(text)) for i, text in rows)
        return found

    def select(self, where: Where) -> Ids:
        """Ids of the items that ``where`` matches, ascending."""
        condition = _Condition()
        sql = condition.compile(where)
        rows = self._connection.execute(f"SELECT id FROM items WHERE {sql} ORDER BY id", condition.values)
        return np.array([i for (i,) in rows], np.int64)

    def ids_of(self, paths: Sequence[str]) -> dict[str, int]:
        """Ids by path, of those of ``paths`` that are here."""
        found: dict[str, int] = {}
        for start in range(0, len(paths), 500):
            some = paths[start : start + 500]
            marks = ",".join("?" * len(some))
            found.update(self._connection.execute(f"SELECT path, id FROM items WHERE path IN ({marks})", some))
        return found

    def rows(self, batch_size: int) -> Iterable[list[tuple[int, dict[str, Any]]]]:
        """Every ``(id, document)``, by id, in batches."""
        cursor = self._connection.execute("SELECT id, document FROM items ORDER BY id")
        while batch := cursor.fetchmany(batch_size):
            yield [(i, json.loads(text)) for i, text in batch]

    def labels(self) -> dict[str, int]:
        """How many items have each label, most frequent first."""
        rows = self._connection.execute(
            "SELECT value, count(*) FROM items, json_each(document, '$.label') GROUP BY value ORDER BY 2 DESC, 1"
        )
        return {str(label): count for label, count in rows}

    def close(self) -> None:
        self._connection.close()


class _Condition:
    """A filter as SQL with bound values; keys are bound too, so nothing of the user's is pasted into the text."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def compile(self, where: Where) -> str:
        if isinstance(where, And | Or):
            word = " AND " if isinstance(where, And) else " OR "
            return "(" + word.join([self.compile(part) for part in where.parts]) + ")"
        if isinstance(where, Not):
            return f"NOT {self.compile(where.part)}"
        if isinstance(where, In):
            # any(…) of no values is false, and so is an empty OR
            return self._any(where.key, lambda: " OR ".join([self._same(value) for value in where.values]) or "0")
        return self._any(where.key, lambda: self._compared(where))

    def _any(self, key: str, inner: Any) -> str:
        """Some value under ``key`` (the elements of a list, else the value) fulfils ``inner``."""
        self.values.append(key)
        return (
            "EXISTS (SELECT 1 FROM json_each(document) AS field, json_each("
            "CASE field.type WHEN 'array' THEN field.value ELSE json_array(CASE field.type "
            "WHEN 'true' THEN json('true') WHEN 'false' THEN json('false') WHEN 'object' THEN json(field.value) "
            "ELSE field.value END) END) AS v "
            f"WHERE field.key = ? AND ({inner()}))"
        )

    def _same(self, value: Scalar) -> str:
        if value is None or isinstance(value, bool):
            return f"v.type = '{json.dumps(value)}'"
        self.values.append(value)
        return f"(v.type {'= ' + repr('text') if isinstance(value, str) else _NUMBER} AND v.value = ?)"

    def _compared(self, where: Range) -> str:
        self.values.append(where.bound)
        kind = "= 'text'" if isinstance(where.bound, str) else _NUMBER
        return f"v.type {kind} AND v.value {_SIGNS[where.op]} ?"


_NUMBER = "IN ('integer', 'real')"
