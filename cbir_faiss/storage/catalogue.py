"""The items of a segment in SQLite: id, path and a JSON document. Written once, opened immutable."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbir_faiss.base import Item, Stamp
from cbir_faiss.base.filters import In, Range
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.types import Ids

_MAPPED = 1 << 38
_AT_ONCE = 500  # values bound in one statement
_read_json = json.JSONDecoder().raw_decode  # json.loads looks for white space around each
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def document(item: Item) -> dict[str, Any]:
    """What is stored, filtered and pushed for an item: payload, path, and label (a list where there are several)."""
    labels = {} if not item.labels else {"label": item.labels[0] if len(item.labels) == 1 else list(item.labels)}
    return {**item.payload, **labels, "path": item.path}


class Record(NamedTuple):
    """An item as it is kept: its document, and by what a later build knows its file again.

    added: it was added by hand, so that a build does not take it away because its source does not have it.
    """

    document: dict[str, Any]
    stamp: Stamp | None = None
    digest: bytes = b""
    added: bool = False

    @property
    def path(self) -> str:
        return str(self.document.get("path", ""))


_COLUMNS = "id, document, size, changed, digest, added"
_PATH = "CAST(? AS TEXT)"


def write_catalogue(path: Path, rows: Iterable[tuple[int, Record]]) -> None:
    """Write ``(id, record)`` rows to a new file at ``path``.

    One transaction in one order, so that equal rows give equal bytes.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, path TEXT NOT NULL, document TEXT NOT NULL, "
            "size INTEGER, changed INTEGER, digest BLOB NOT NULL, added INTEGER NOT NULL)"
        )
        connection.executemany(f"INSERT INTO items VALUES (?, {_PATH}, ?, ?, ?, ?, ?)", (_row(i, r) for i, r in rows))
        connection.execute("CREATE INDEX by_path ON items (path)")
        connection.execute("COMMIT")


_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for every row


def as_json(value: Any) -> str:
    """``value`` as a line of JSON that is UTF-8 whatever is in it: half a surrogate pair is written as an escape."""
    text = _encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _row(item: int, record: Record) -> tuple[Any, ...]:
    size, changed = record.stamp or (None, None)
    return item, _as_bytes(record.path), as_json(record.document), size, changed, record.digest, record.added


def _record(row: tuple[Any, ...]) -> tuple[int, Record]:
    item, text, size, changed, digest, added = row
    return item, Record(json.loads(text), None if size is None else (size, changed), digest, bool(added))


class Catalogue:
    """Read access to a catalogue file. One connection, usable from several threads.

    Raises:
        CorruptCollection: it is missing, or not such a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?immutable=1", uri=True, check_same_thread=False
            )
            self._connection.execute(f"PRAGMA mmap_size = {_MAPPED}")  # a page is then a look, not a call to the system
            self._connection.execute("SELECT 1 FROM items LIMIT 1")  # opens it now, before another generation
        except sqlite3.Error as error:
            raise CorruptCollection(f"{path}: missing or altered ({error})") from error

    def documents(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Documents of those of ``ids`` that are here."""
        rows = self._chosen("SELECT id, document FROM items WHERE id IN", ids)
        return {i: _read_json(text)[0] for i, text in rows}

    def with_path(self, where: In | Range) -> Ids:
        """Ids of the items whose path ``where`` matches."""
        if isinstance(where, In):
            rows = self._chosen("SELECT id FROM items WHERE path IN", _paths(where.values), _PATH)
        elif isinstance(where.bound, str):
            sign, bound = _SIGNS[where.op], _as_bytes(where.bound)
            rows = self._connection.execute(f"SELECT id FROM items WHERE path {sign} {_PATH}", (bound,))
        else:
            return np.empty(0, np.int64)
        return np.array([i for (i,) in rows], np.int64)

    def records_of(self, paths: Sequence[str]) -> list[tuple[int, Record]]:
        """Ids and records, of those of ``paths`` that are here."""
        return [
            _record(row) for row in self._chosen(f"SELECT {_COLUMNS} FROM items WHERE path IN", _paths(paths), _PATH)
        ]

    def records(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Record]]:
        """Every id and record from id ``first`` to id ``last``, by id."""
        last = np.iinfo(np.int64).max if last is None else last
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM items WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
        )
        return map(_record, rows)

    def digests(self) -> Iterator[tuple[int, bytes]]:
        """Every id, with the digest of the item's content."""
        yield from self._connection.execute("SELECT id, digest FROM items ORDER BY id")

    def close(self) -> None:
        self._connection.close()

    def _chosen(self, select: str, values: Sequence[Any], place: str = "?") -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(values), _AT_ONCE):
            some = values[start : start + _AT_ONCE]
            yield from self._connection.execute(f"{select} ({','.join([place] * len(some))})", some).fetchall()


def _as_bytes(path: str) -> bytes:
    """A path as it is stored: also one of a file whose name is not UTF-8, which SQLite would not take as a text."""
    return path.encode("utf-8", "surrogatepass")


def _paths(values: Sequence[Any]) -> list[bytes]:
    return list(dict.fromkeys(_as_bytes(value) for value in values if isinstance(value, str)))
