"""What has become of a source since a collection was brought up to it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cbir_faiss._lib.files import flush_durably, sync
from cbir_faiss.base import Item, Source, Stamp
from cbir_faiss.errors import BadImage, NoAccess
from cbir_faiss.pipeline.extraction import Failure, Origin
from cbir_faiss.storage.catalogue import Record, document
from cbir_faiss.storage.manifest import Manifest
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Ids

_AT_ONCE = 500


@dataclass
class Seen:
    """What a build knows of files that no item's record tells.

    failed: those that could not be used. touched: new stamps of files that were written again with the same content.
    deleted: what was deleted by hand and is not to come back as long as its file is the same.
    """

    failed: list[Failure] = field(default_factory=list)
    touched: dict[str, Stamp] = field(default_factory=dict)
    deleted: dict[str, Origin] = field(default_factory=dict)

    def as_text(self, deleted: Iterable[tuple[str, Origin]] = ()) -> Iterator[str]:
        """The parts of the JSON as it is written; more that was ``deleted`` comes last, and need not fit in memory."""
        failed = sorted(([f.path, f.reason, f.stamp] for f in self.failed), key=lambda row: str(row[0]))
        yield json.dumps({"failed": failed, "touched": dict(sorted(self.touched.items()))}, ensure_ascii=False)[:-1]
        opening = ', "deleted": {'
        for path, origin in itertools.chain(sorted(self.deleted.items()), deleted):
            entry = json.dumps({path: [origin.stamp, origin.digest.hex()]}, ensure_ascii=False)
            yield opening + entry[1:-1]
            opening = ", "
        yield "}}" if opening == ", " else "}"


@dataclass
class SourceChanges:
    """What a build has to do, and what is still true of the rest.

    rows: of the source, to extract. replaced: by row, the ids of those that are there with another content.
    followed: those rows of ``replaced`` that a build made and not somebody by hand.
    gone: ids of what the source does not have any more.
    """

    rows: list[int] = field(default_factory=list)
    replaced: dict[int, int] = field(default_factory=dict)
    followed: set[int] = field(default_factory=set)
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
    return Seen(
        [Failure(path, reason, _stamp(stamp)) for path, reason, stamp in content["failed"]],
        {path: (size, changed) for path, (size, changed) in content["touched"].items()},
        {path: Origin(_stamp(s), bytes.fromhex(digest)) for path, (s, digest) in content.get("deleted", {}).items()},
    )


def write_seen(folder: Path, generation: int, seen: Seen, deleted: Iterable[tuple[str, Origin]] = ()) -> str | None:
    """Write it, and more that was ``deleted``, for a new generation; returns the file's name, None where there is
    nothing to say."""
    more = iter(deleted)
    first = list(itertools.islice(more, 1))
    if not (seen.failed or seen.touched or seen.deleted or first):
        return None
    name = f"seen-{generation}.json"
    with (folder / name).open("w", encoding="utf-8") as file:
        file.writelines(seen.as_text(itertools.chain(first, more)))
        flush_durably(file)
    sync(folder)
    return name


def not_to_come_back(store: Store, ids: Ids) -> Callable[[int], dict[str, Any]]:
    """How ``storage.changes.change`` concludes a deletion by hand of live items ``ids``: a build that finds their files
    as they are leaves them out; one that changed comes back, and so does what is added."""

    def conclude(generation: int) -> dict[str, Any]:
        seen = read_seen(store.folder, store.manifest)
        return {"seen": write_seen(store.folder, generation, seen, _origins(store, np.sort(ids)))}

    return conclude


def _origins(store: Store, ids: Ids) -> Iterator[tuple[str, Origin]]:
    """Path and origin of live items that have one."""
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        wanted = set(some.tolist())
        paths = {str(document.get("path", "")) for document in store.documents(some)}
        for item, record in store.records(sorted(paths - {""})):
            if item in wanted:
                yield record.path, Origin(record.stamp, record.digest)


def changes_of(store: Store, source: Source, seen: Seen, *, whole: bool = True) -> SourceChanges:
    """How ``source`` differs from what the collection has of it.

    An item is the same if its path, labels and payload are and its file has the same stamp, or else the same content.
    ``whole``: the source is all there should be, and items that it does not have (and nobody added) are to be deleted.
    If it is not, it only has something to add, and what it would call the labels of a known file does not count.
    """
    look = _Look(store, source, seen, whole)
    if whole:
        source.name_like(next((record.path for _, record in store.records() if not record.added), ""))
    items = source.items()
    for start in range(0, len(items), _AT_ONCE):
        look.at(start, items[start : start + _AT_ONCE])
    if whole:
        look.for_what_is_gone(items)
    return look.found


class _Look:
    def __init__(self, store: Store, source: Source, seen: Seen, whole: bool) -> None:
        self._store, self._source, self._seen, self._whole = store, source, seen, whole
        self._failed = {failure.path: failure for failure in seen.failed}
        self._met = np.zeros(store.manifest.next_id, bool)
        self.found = SourceChanges(seen=Seen(deleted=dict(seen.deleted)))

    def at(self, start: int, items: Iterable[Item]) -> None:
        """Items of the source from row ``start`` on."""
        items = list(items)
        known = {record.path: (i, record) for i, record in self._store.records([item.path for item in items])}
        for row, item in enumerate(items, start):
            number, record = known.get(item.path, (-1, None))
            if record is not None:
                self._met[number] = True
            try:
                same = self._is_unwanted(row, item) if record is None else self._is_same(row, item, record)
            except NoAccess as error:
                same = self._whole  # nobody can say that it is another: what is known of it stays
                if same:
                    self.found.seen.failed.append(Failure(item.path, str(error)))
            if not same:
                self._take(row, number, record)

    def _take(self, row: int, number: int, record: Record | None) -> None:
        self.found.rows.append(row)
        if record is not None:
            self.found.replaced[row] = number
            if not record.added:
                self.found.followed.add(row)

    def for_what_is_gone(self, items: Iterable[Item]) -> None:
        if np.count_nonzero(self._met) == len(self._store):
            return
        gone = {i: record.path for i, record in self._store.records() if not self._met[i] and not record.added}
        above = {str(folder) for path in gone.values() for folder in PurePosixPath(path).parents}
        # A folder is an item where nobody could look into it, and what was in it may still be there.
        closed = above.intersection(item.path for item in items)
        self.found.gone += [
            i for i, path in gone.items() if not closed.intersection(map(str, PurePosixPath(path).parents))
        ]

    def _is_unwanted(self, row: int, item: Item) -> bool:
        """Of what is not there: whether it failed or was deleted by hand, and its file is still the same."""
        failure, origin = self._failed.get(item.path), self._seen.deleted.get(item.path)
        stamp = self._source.stamp(row)
        if failure is not None and failure.stamp is not None and failure.stamp == stamp:
            self.found.seen.failed.append(failure)
            return True
        if origin is None:
            return False
        if stamp is None or stamp != origin.stamp:
            if not self._has_content(row, origin.digest):
                del self.found.seen.deleted[item.path]
                return False
            self.found.seen.deleted[item.path] = Origin(stamp, origin.digest)
        return True

    def _is_same(self, row: int, item: Item, record: Record) -> bool:
        self.found.seen.deleted.pop(item.path, None)  # somebody has added it again
        if self._whole and not _equal(document(item), record.document):
            return False
        stamp = self._source.stamp(row)
        if stamp == record.stamp:
            return True
        if stamp != self._seen.touched.get(item.path) and not self._has_content(row, record.digest):
            return False
        if stamp is not None:
            self.found.seen.touched[item.path] = stamp
        return True

    def _has_content(self, row: int, digest: bytes) -> bool:
        """Raises NoAccess where nobody can tell."""
        try:
            return self._source.content_key(row) == digest
        except NoAccess:
            raise
        except BadImage:
            return False


def _stamp(value: Any) -> Stamp | None:
    return None if value is None else (value[0], value[1])


def _equal(new: dict[str, Any], stored: dict[str, Any]) -> bool:
    """Whether a document is what was stored, which JSON may have changed (a tuple became a list)."""
    return new == stored or json.loads(json.dumps(new)) == stored
