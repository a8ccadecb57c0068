"""A segment: a batch of items written once. Ids, codes, columns and index files, and a catalogue of the items.

segments/<name>/ids.npy            int64 (rows,), ascending
                codes.npy          uint8 (rows, bits / 8) or float32 (rows, dim)
                column-<name>.npy  what the rescorer keeps of the extractor's columns
                backend/           the index, as its backend saves it (none where the engine keeps its own storage)
                items.sqlite       id, path, document
                live-<gen>.npy     bits of the rows that live; written by a delete, none while all do
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.storage.catalogue import Catalogue, write_catalogue
from cbir_faiss.storage.files import sync_tree
from cbir_faiss.storage.manifest import SegmentEntry
from cbir_faiss.types import Codes, Ids

Block = tuple[Ids, Codes, dict[str, NDArray[Any]], list[dict[str, Any]]]
"""ids ``(n,)``, codes ``(n, width)``, packed columns, documents."""


def write_segment(folder: Path, rows: int, blocks: Iterable[Block], backend: Backend | None) -> None:
    """Write a segment of ``rows`` items from ``blocks``, and have the disk hold it.

    ``backend`` is created and trained already, and gets every block; None where the engine keeps its own storage.
    """
    folder.mkdir(parents=True)

    def stored() -> Iterator[tuple[int, dict[str, Any]]]:
        arrays: dict[str, NDArray[Any]] = {}
        start = 0
        for ids, codes, columns, documents in blocks:
            for name, values in {"ids": ids, "codes": codes, **{f"column-{n}": c for n, c in columns.items()}}.items():
                if name not in arrays:
                    shape = (rows, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
                arrays[name][start : start + len(ids)] = values
            if backend is not None:
                backend.upsert(ids, codes)
            start += len(ids)
            yield from zip(ids.tolist(), documents, strict=True)

    write_catalogue(folder / "items.sqlite", stored())
    if backend is not None:
        backend.flush()
        backend.save(folder / "backend")
    sync_tree(folder)


class Segment:
    """Read access to one segment; everything is opened when it is first needed."""

    def __init__(self, folder: Path, entry: SegmentEntry, make_backend: Callable[[], Backend]) -> None:
        self.folder, self.entry = folder, entry
        self._make_backend = make_backend

    @cached_property
    def ids(self) -> Ids:
        """All ids, dead rows included, ascending."""
        ids: Ids = _map(self.folder / "ids.npy")
        return ids

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """bool ``(rows,)``."""
        if self.entry.live is None:
            return np.ones(self.entry.rows, bool)
        bits = np.load(self.folder / self.entry.live)
        return np.unpackbits(bits, count=self.entry.rows).astype(bool)

    @property
    def live_ids(self) -> Ids:
        ids: Ids = self.ids
        return ids if self.entry.live is None else ids[self.live]

    @cached_property
    def codes(self) -> Codes:
        codes: Codes = _map(self.folder / "codes.npy")
        return codes

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder / "items.sqlite")

    @cached_property
    def backend(self) -> Backend:
        """The index, mapped, with the dead rows taken out of its answers."""
        backend = self._make_backend()
        backend.restore(self.folder / "backend", mmap=True)
        if self.entry.live is not None:
            backend.delete(self.ids[~self.live])
        return backend

    def column(self, name: str) -> NDArray[Any]:
        """A stored column by the name that rescorers use, or ``code``."""
        return self.codes if name == "code" else _map(self.folder / f"column-{name}.npy")

    def close(self) -> None:
        """Give back what was opened."""
        for name in ("backend", "catalogue"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()


def write_live(folder: Path, generation: int, live: NDArray[np.bool_]) -> str:
    """Write the bitmap of a segment's live rows; returns its file name."""
    name = f"live-{generation}.npy"
    np.save(folder / name, np.packbits(live))
    sync_tree(folder)
    return name


def _map(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise CorruptCollection(f"{path}: missing, cut short or altered ({error})") from error
