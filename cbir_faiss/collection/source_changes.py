"""What has become of a source since a collection was brought up to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base import Item, Source, Stamp
from cbir_faiss.errors import BadImage
from cbir_faiss.pipeline.extraction import Failure
from cbir_faiss.storage.catalogue import Record, document
from cbir_faiss.storage.manifest import Manifest
from cbir_faiss.storage.store import Store

_AT_ONCE = 500


@dataclass
class Seen:
    """What a build knows of files that no item's record tells.

    failed: those that could not be used. touched: new stamps of files that were written again with the same content.
    """

    failed: list[Failure] = field(default_factory=list)
    touched: dict[str, Stamp] = field(default_factory=dict)


@dataclass
class SourceChanges:
    """What a build has to do, and what is still true of the rest.

    rows: of the source, to extract. replaced: by row, the ids of those that are there with another content.
    gone: ids of what the source does not have any more.
    """

    rows: list[int] = field(default_factory=list)
    replaced: dict[int, int] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    @property
    def delete(self) -> list[int]:
        return [*self.replaced.values(), *self.gone]


def read_seen(folder: Path, manifest: Manifest) -> Seen:
    """What the generation knows."""
    if manifest.seen is None:
        return Seen()
    content = json.loads((folder / manifest.seen).read_bytes())
    failed = [Failure(path, reason, _stamp(stamp)) for path, reason, stamp in content["failed"]]
    return Seen(failed, {path: (size, changed) for path, (size, changed) in content["touched"].items()})


def write_seen(folder: Path, generation: int, seen: Seen) -> str | None:
    """Write it for a new generation; returns the file's name, None where there is nothing to say."""
    if not seen.failed and not seen.touched:
        return None
    name = f"seen-{generation}.json"
    failed = [(failure.path, failure.reason, failure.stamp) for failure in seen.failed]
    content = {"failed": sorted(failed, key=lambda row: row[0]), "touched": dict(sorted(seen.touched.items()))}
    write_durably(folder / name, json.dumps(content, ensure_ascii=False).encode())
    return name


def changes_of(store: Store, source: Source, seen: Seen, *, whole: bool = True) -> SourceChanges:
    """How ``source`` differs from what the collection has of it.

    An item is the same if its path, labels and payload are and its file has the same stamp, or else the same content.
    ``whole``: the source is all there should be, and items that it does not have (and nobody added) are to be deleted.
    If it is not, it only has something to add, and what it would call the labels of a known file does not count.
    """
    look = _Look(store, source, seen, whole)
    items = source.items()
    for start in range(0, len(items), _AT_ONCE):
        look.at(start, items[start : start + _AT_ONCE])
    if whole:
        look.for_what_is_gone()
    return look.found


class _Look:
    def __init__(self, store: Store, source: Source, seen: Seen, compare_documents: bool) -> None:
        self._store, self._source, self._seen = store, source, seen
        self._compare_documents = compare_documents
        self._failed = {failure.path: failure for failure in seen.failed}
        self._met = np.zeros(store.manifest.next_id, bool)
        self.found = SourceChanges()

    def at(self, start: int, items: Iterable[Item]) -> None:
        """Items of the source from row ``start`` on."""
        items = list(items)
        known = {record.path: (i, record) for i, record in self._store.records([item.path for item in items])}
        for row, item in enumerate(items, start):
            if item.path not in known:
                self._unknown(row, item)
                continue
            number, record = known[item.path]
            self._met[number] = True
            if not self._is_same(row, item, record):
                self.found.rows.append(row)
                self.found.replaced[row] = number

    def for_what_is_gone(self) -> None:
        if np.count_nonzero(self._met) < len(self._store):
            gone = (i for i, record in self._store.records() if not self._met[i] and not record.added)
            self.found.gone += gone

    def _unknown(self, row: int, item: Item) -> None:
        failure = self._failed.get(item.path)
        if failure is not None and failure.stamp == self._source.stamp(row):
            self.found.seen.failed.append(failure)
        else:
            self.found.rows.append(row)

    def _is_same(self, row: int, item: Item, record: Record) -> bool:
        if self._compare_documents and not _equal(document(item), record.document):
            return False
        stamp = self._source.stamp(row)
        if stamp == record.stamp:
            return True
        if stamp != self._seen.touched.get(item.path):
            try:
                if self._source.content_key(row) != record.digest:
                    return False
            except BadImage:
                return False
        if stamp is not None:
            self.found.seen.touched[item.path] = stamp
        return True


def _stamp(value: Any) -> Stamp | None:
    return None if value is None else (value[0], value[1])


def _equal(new: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether a document is what was stored, which JSON may have changed (a tuple became a list)."""
    return new == stored or json.loads(json.dumps(new)) == stored
