"""The README's connector, broken in eight ways that an engine or its connector is often broken in.

Run by pytest in a folder that has the README's ``my_sqlite.py``; see ``test_connectors_broken.py``.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import Any

from my_sqlite import Sqlite

from cbir_faiss.testing import BackendContract
from cbir_faiss.types import Hits, missing_hits


class CommitsAtClose(Sqlite):
    def _change(self, query: str, rows: Any) -> None:
        with self._lock:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(query, rows)

    def close(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed before
            self._db.commit()
        super().close()


class KeepsAThousandRows(Sqlite):
    def _upsert(self, ids: Any, vectors: Any, payload: Any) -> None:
        super()._upsert(ids[:1000], vectors[:1000], payload and payload[:1000])


class AnswersAHundred(Sqlite):
    def _search(self, vectors: Any, k: int, where: Any, options: Any) -> Hits:
        found, hits = super()._search(vectors, min(k, 100), where, options), missing_hits(len(vectors), k)
        hits.ids[:, :100], hits.distances[:, :100] = found.ids, found.distances
        return hits


class CutsText(Sqlite):
    def _payload(self, ids: Any) -> list[dict[str, Any]]:
        return [{k: v[:200] if isinstance(v, str) else v for k, v in p.items()} for p in super()._payload(ids)]


class ReadsDotsAsNesting(Sqlite):
    def _payload(self, ids: Any) -> list[dict[str, Any]]:
        return [_nested(payload) for payload in super()._payload(ids)]


class ReadsLargeIntegersAsFloats(Sqlite):
    def _payload(self, ids: Any) -> list[dict[str, Any]]:
        texts = map(json.dumps, super()._payload(ids))
        return [json.loads(text, parse_int=lambda digits: int(float(digits))) for text in texts]


class WipesAtCreate(Sqlite):
    def _create(self) -> None:
        self._make(self._shape())


class RaisesTheClientsErrors(Sqlite):
    def _run(self, query: str, values: Any = ()) -> Any:
        return self._db.execute(query, values).fetchall()


def _nested(payload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in payload.items():
        *outer, last = key.split(".")
        inside = found
        for step in outer:
            inside = inside.setdefault(step, {})
        inside[last] = value
    return found


class TestCommitsAtClose(BackendContract):
    plugin = CommitsAtClose


class TestKeepsAThousandRows(BackendContract):
    plugin = KeepsAThousandRows


class TestAnswersAHundred(BackendContract):
    plugin = AnswersAHundred


class TestCutsText(BackendContract):
    plugin = CutsText


class TestReadsDotsAsNesting(BackendContract):
    plugin = ReadsDotsAsNesting


class TestReadsLargeIntegersAsFloats(BackendContract):
    plugin = ReadsLargeIntegersAsFloats


class TestWipesAtCreate(BackendContract):
    plugin = WipesAtCreate


class TestRaisesTheClientsErrors(BackendContract):
    plugin = RaisesTheClientsErrors
