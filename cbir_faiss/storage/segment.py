"""A segment: a batch of items written once. Ids, codes, columns and index files, and a catalogue of the items.

segments/<name>/ids.npy            int64 (rows,), ascending
                codes.npy          uint8 (rows, bits / 8) or float32 (rows, dim)
                column-<name>.npy  what the rescorer keeps of the extractor's columns; the file of the codes by another
                                   name, where it is equal
                backend/           the index, as its backend saves it (none where the engine keeps its own storage)
                items.sqlite       id, path, document, and what the item was made of, to know it again
                documents.jsonl    the documents again, by row, and documents.npy, where each ends; none in 0.1
                fields.jsonl, …    which rows have which value, for filters, see ``fields``; none in older ones
                live-<gen>.npy     bits of the rows that live; written by a delete, none while all do
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend
from cbir_faiss.base.filters import In, Range, Where
from cbir_faiss.base.registry import load
from cbir_faiss.errors import CbirError, Unsupported
from cbir_faiss.pipeline.fill import FILL_ROWS, Part, fill, training_codes
from cbir_faiss.pipeline.fit import repeats
from cbir_faiss.storage.catalogue import Catalogue, Record, as_json, write_catalogue
from cbir_faiss.storage.fields import FIELDS, PATH, Field, FieldCollector, Fields, Mask, matching
from cbir_faiss.storage.files import ArrayFile, load_mapped, save_array, share
from cbir_faiss.storage.lines import Lines, LineWriter, lines_file
from cbir_faiss.storage.manifest import SegmentEntry
from cbir_faiss.storage.prefetch import Prefetch
from cbir_faiss.types import Codes, Hits, Ids, Kind

BLOCK_ROWS = FILL_ROWS
DOCUMENTS = "documents"
_FILTERED_BYTES = 32 << 20  # of ids that filters have found: who asks with one often does so again


class Block(NamedTuple):
    """Items on their way into a segment: ids ``(n,)`` ascending, codes ``(n, width)``, packed columns, records."""

    ids: Ids
    codes: Codes
    columns: dict[str, NDArray[Any]]
    records: list[Record]


def write_segment(folder: Path, blocks: Iterable[Block]) -> int:
    """Write the items of ``blocks`` to a new folder, all but the index; returns how many there are."""
    folder.mkdir(parents=True)
    arrays: dict[str, ArrayFile] = {}
    documents, fields = LineWriter(folder, DOCUMENTS), FieldCollector()
    repeated: dict[str, bool] = {}

    def stored() -> Iterator[tuple[int, Record]]:
        for ids, codes, columns, records in blocks:
            for name, values in {"ids": ids, "codes": codes, **{f"column-{n}": c for n, c in columns.items()}}.items():
                if name not in arrays:
                    arrays[name] = ArrayFile(folder / f"{name}.npy")
                arrays[name].append(values)
            for name, values in columns.items():
                repeated[name] = repeated.get(name, True) and repeats(values, codes)
            documents.append([as_json(record.document) for record in records])
            fields.append(record.document for record in records)
            yield from zip(ids.tolist(), records, strict=True)

    try:
        write_catalogue(folder / "items.sqlite", stored())
        fields.write(folder)
    finally:
        documents.close()
        for array in arrays.values():
            array.close()
    for name in (name for name, always in repeated.items() if always):
        share(folder / "codes.npy", folder / f"column-{name}.npy")
    return arrays["ids"].rows if arrays else 0


class Segment:
    """Read access to one segment; everything is opened when it is first needed, or at once by ``open``."""

    def __init__(self, folder: Path, entry: SegmentEntry, make_backend: Callable[[], Backend]) -> None:
        self.folder, self.entry = folder, entry
        self._make_backend = make_backend
        self._columns: dict[str, NDArray[Any]] = {}
        self._prefetch: dict[str, Prefetch] = {}
        self._fields: dict[str, Field] = {}
        self._filtered: dict[str, Ids] = {}
        self._compared: tuple[Ids, Backend] | None = None

    def open(self) -> None:
        """Open every file now, so that a later generation may remove them."""
        _ = self.ids, self.live, self.catalogue, self.documents, self.fields
        for name in ("code", *self.column_names):
            self.column(name)
        if (self.folder / "backend").is_dir():
            _ = self.backend

    @cached_property
    def ids(self) -> Ids:
        """All ids, dead rows included, ascending."""
        ids: Ids = np.asarray(load_mapped(self.folder / "ids.npy"))
        return ids

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """bool ``(rows,)``."""
        if self.entry.live is None:
            return np.ones(self.entry.rows, bool)
        bits = load_mapped(self.folder / self.entry.live)
        return np.unpackbits(bits, count=self.entry.rows).astype(bool)

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder / "items.sqlite")

    @cached_property
    def documents(self) -> Lines | None:
        """The documents by row; None in a segment of 0.1, where the catalogue has to be asked."""
        return Lines(self.folder, DOCUMENTS) if lines_file(self.folder, DOCUMENTS).exists() else None

    @cached_property
    def fields(self) -> Fields | None:
        """The index of the documents; None in a segment of an earlier version."""
        return Fields(self.folder) if lines_file(self.folder, FIELDS).exists() else None

    @cached_property
    def column_names(self) -> list[str]:
        """The columns that are stored for the rescorer."""
        return sorted(path.stem.removeprefix("column-") for path in self.folder.glob("column-*.npy"))

    @cached_property
    def backend(self) -> Backend:
        """The index, mapped, with the dead rows taken out of its answers."""
        backend = self._make_backend()
        dead = self.dead_ids
        backend.restore(self.folder / "backend", mmap=True)
        try:
            backend.delete(dead)
        except Unsupported:  # an index that cannot forget while it is mapped has to be read
            backend.restore(self.folder / "backend")
            backend.delete(dead)
        return backend

    @property
    def live_ids(self) -> Ids:
        return self.ids if self.entry.live is None else self.ids[self.live]

    @property
    def dead_ids(self) -> Ids:
        return self.ids[:0] if self.entry.live is None else self.ids[~self.live]

    def compare(self, codes: Codes, k: int, allowed: Ids) -> Hits:
        """The ``k`` nearest of the live items ``allowed``, as ``live_ids_of`` gave them: each compared by its codes."""
        return self._copy_of(allowed).search(codes, k)

    def _copy_of(self, allowed: Ids) -> Backend:
        """An index of these items alone; the last one is kept, for filters come again."""
        known = self._compared
        if known is None or known[0] is not allowed:
            binary = self.backend.kind == "binary"
            plugin: Any = load("backends", "faiss-binary-flat" if binary else "faiss-flat")
            copy: Backend = plugin() if binary else plugin(metric=self.backend.metric)
            rows = self.rows_of(allowed)
            copy.upsert(allowed, self.candidates("code", rows)[rows])
            known = self._compared = allowed, copy
        return known[1]

    def column(self, name: str) -> NDArray[Any]:
        """A stored column by the name that rescorers use, or ``code``; mapped."""
        if name not in self._columns:
            column = load_mapped(self._file_of(name))
            # Candidates lie anywhere in it; reading ahead around each would read thirty times as much from the disk.
            if name != "code":
                column._mmap.madvise(mmap.MADV_RANDOM)
            self._prefetch[name] = Prefetch(column)
            self._columns[name] = np.asarray(column)  # to index numpy's memmap itself costs 15 us a query
        return self._columns[name]

    def candidates(self, name: str, rows: Ids) -> NDArray[Any]:
        """The column, of which ``rows``, wherever they lie, are going to be read; -1 is none."""
        column = self.column(name)
        self._prefetch[name](rows)
        return column

    def rows_of(self, ids: Ids) -> NDArray[np.int64]:
        """The live row of each id, -1 where there is none."""
        if self._first is not None:  # ids without a gap, as a build gives them: no need to look for each
            rows = ids - self._first
            if self.entry.live is None and rows.size and rows.min() >= 0 and rows.max() < self.entry.rows:
                return rows
            known = (rows >= 0) & (rows < self.entry.rows)
        else:
            rows = np.minimum(np.searchsorted(self.ids, ids), max(0, self.entry.rows - 1))
            known = self.ids[rows] == ids
        if self.entry.live is not None:
            known &= self.live[np.where(known, rows, 0)]
        return rows if known.all() else np.where(known, rows, -1)

    @cached_property
    def _first(self) -> int | None:
        """The first id, where the others follow it without a gap."""
        first = int(self.ids[0])
        return first if int(self.ids[-1]) - first + 1 == self.entry.rows else None

    def documents_of(self, ids: Ids, rows: Ids) -> list[dict[str, Any]]:
        """Documents of items that live in ``rows``, in their order."""
        if self.documents is not None:
            return self.documents.read(rows.tolist())
        found = self.catalogue.documents(ids.tolist())
        return [found[i] for i in ids.tolist()]

    def matching(self, where: Where) -> Mask:
        """bool ``(rows,)``: whose document the filter matches, dead rows included."""
        return matching(where, self.entry.rows, self._rows_with)

    def live_ids_of(self, where: Where) -> Ids:
        """Ids of the live items that ``where`` matches, ascending; not to be written to: the last ones are kept."""
        key = repr(where)  # where 1 and True are not the same
        found = self._filtered.get(key)
        if found is None:
            found = self._matching_ids(where)
            found.flags.writeable = False
            kept, room = {key: found}, _FILTERED_BYTES - found.nbytes
            for other, ids in self._filtered.items():
                room -= ids.nbytes
                if room >= 0:
                    kept[other] = ids
            self._filtered = kept
        return found

    def _matching_ids(self, where: Where) -> Ids:
        found = self.matching(where)
        if self.entry.live is not None:
            found &= self.live
        rows = np.flatnonzero(found)  # several times as fast as a mask of ids
        return self.ids[rows] if self._first is None else rows + self._first

    def _rows_with(self, conditions: Sequence[In | Range]) -> Mask:
        if conditions[0].key != PATH:
            return self.field(conditions[0].key).matching(conditions, self.entry.rows)
        found = np.ones(self.entry.rows, bool)
        for condition in conditions:
            among = np.zeros(self.entry.rows, bool)
            among[np.searchsorted(self.ids, self.catalogue.with_path(condition))] = True
            found &= among
        return found

    def field(self, key: str) -> Field:
        """The values of a key; where they are not indexed, by a look at each document, the first time."""
        if key not in self._fields:
            found = None if self.fields is None else self.fields.get(key)
            if found is None:
                collected = FieldCollector(most=float("inf"))
                for start in range(0, self.entry.rows, BLOCK_ROWS):
                    documents = self._documents(np.array(self.ids[start : start + BLOCK_ROWS]))
                    collected.append({key: document[key]} if key in document else {} for document in documents)
                found = collected.field(key)
            self._fields[key] = found
        return self._fields[key]

    def grouping(self, key: str) -> Field | None:
        """The values of a key, unless there are so many that they tell items apart."""
        return self.field(key) if self.fields is None else self.fields.get(key)

    def records(self, paths: Sequence[str] | None = None) -> Iterator[tuple[int, Record]]:
        """Live items with their ids: all, by id, or those of some paths."""
        if paths is not None:
            some = self.catalogue.records_of(paths)
            rows = self.rows_of(np.array([item for item, _ in some], np.int64))
            return (one for one, row in zip(some, rows.tolist(), strict=True) if row >= 0)
        if self.entry.live is None:
            return self.catalogue.records()
        dead = set(self.dead_ids.tolist())
        return ((item, record) for item, record in self.catalogue.records() if item not in dead)

    def blocks(
        self, live: NDArray[np.bool_] | None = None, first_id: int = 0, size: int = BLOCK_ROWS
    ) -> Iterator[Block]:
        """The live items (or those of another bitmap) from ``first_id`` on, to be written elsewhere."""
        kept = np.flatnonzero(self.live if live is None else live)
        kept = kept[self.ids[kept] >= first_id]
        codes, columns = self.column("code"), {name: load_mapped(self._file_of(name)) for name in self.column_names}
        for start in range(0, len(kept), size):
            rows = kept[start : start + size]
            ids = np.array(self.ids[rows])
            wanted = set(ids.tolist())
            found = self.catalogue.records(int(ids[0]), int(ids[-1]))
            yield Block(
                ids,
                codes[rows],
                {name: column[rows] for name, column in columns.items()},
                [record for item, record in found if item in wanted],
            )

    def write_index(self, kind: Kind, width: int, trained: Path | None = None) -> None:
        """Make the backend's index from what is stored, and save it beside it.

        trained: the folder of an empty index that has learnt. Where it is not there, this one learns from its items
        and is saved there before it takes them, if its type can be saved without an item.
        """
        backend, codes = self._make_backend(), self.column("code")

        def keep() -> None:
            if trained is not None and not trained.exists():
                try:
                    backend.save(trained)
                except CbirError:
                    shutil.rmtree(trained, ignore_errors=True)

        try:
            if trained is not None and trained.exists():
                backend.restore(trained)
            parts = self._parts(codes, documents=not backend.filters_ids)
            fill(backend, parts, kind=kind, width=width, sample=lambda: training_codes(codes), prepared=keep)
            backend.save(self.folder / "backend")
        finally:
            backend.close()

    def _parts(self, codes: Codes, documents: bool) -> Iterator[Part]:
        """All rows, with ``documents`` for an index that cannot be told which ids a filter allows."""
        for start in range(0, len(codes), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            ids = np.array(self.ids[rows])
            yield ids, np.array(codes[rows]), list(self._documents(ids)) if documents else None

    def close(self) -> None:
        """Give back what was opened."""
        self._compared = None
        for name in ("backend", "catalogue", "documents", "fields"):
            opened = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()

    def _file_of(self, column: str) -> Path:
        return self.folder / ("codes.npy" if column == "code" else f"column-{column}.npy")

    def _documents(self, ids: Ids) -> Iterator[dict[str, Any]]:
        return (record.document for _, record in self.catalogue.records(int(ids[0]), int(ids[-1])))


def write_live(folder: Path, generation: int, live: NDArray[np.bool_]) -> str:
    """Write the bitmap of a segment's live rows; returns its file name."""
    name = f"live-{generation}.npy"
    save_array(folder / name, np.packbits(live))
    return name
