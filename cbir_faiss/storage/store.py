"""One generation of a collection, opened: its segments as one table of items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend, Codec, Options, Places, Rescorer
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import parse_options
from cbir_faiss.base.registry import load
from cbir_faiss.errors import CorruptCollection, UnknownId
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.storage.catalogue import Record
from cbir_faiss.storage.manifest import Manifest, check_sizes, check_still_there, read_manifest
from cbir_faiss.storage.segment import Segment
from cbir_faiss.types import MISSING_ID, Hits, Ids, missing_hits

_ATTEMPTS = 5
_COMPARED = {"binary": (1 / 4, 16 << 20), "float": (1 / 32, 64 << 20)}
"""Items that a filter leaves are compared one by one: at most this share of the rows, in so many bytes."""
_AS_THEY_ARE = ("raw", "rotate")  # codecs whose codes are as far from each other as the embeddings


class Store:
    """Items by id, path or filter, wherever they lie. ``open`` holds every file, so its generation stays readable."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The current generation, its sizes checked and its files opened.

        Raises:
            CorruptCollection: not a collection, damaged, or of another format version.
        """
        for attempt in range(_ATTEMPTS):
            store = cls(folder, read_manifest(folder))
            try:
                check_sizes(folder, store.manifest)
                for segment in store.segments:
                    segment.open()
                _ = store.fitted
                check_still_there(folder, store.manifest)
            except CorruptCollection:
                store.close()
                # What went while it was being opened is of a generation, or a collection, that was replaced.
                if attempt == _ATTEMPTS - 1 or read_manifest(folder) == store.manifest:
                    raise
            else:
                return store
        raise AssertionError  # the last attempt returns or raises

    def __len__(self) -> int:
        return self.manifest.items

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def fitted(self) -> Fitted:
        """The codec and rescorer that the codes were made with."""
        manifest, folder = self.manifest, self.folder
        codec: Codec = manifest.codec.load("codecs", folder)
        rescorer: Rescorer = manifest.rescore.load("rescorers", folder)
        return Fitted(codec.restore(folder / "codec.npz"), rescorer.restore(folder / "rescore.npz"), manifest.embedding)

    @cached_property
    def segments(self) -> list[Segment]:
        folder = self.folder / "segments"
        return [Segment(folder / entry.name, entry, self.make_backend) for entry in self.manifest.segments]

    @cached_property
    def engine(self) -> Backend | None:
        """The engine that keeps its own storage, or None where the segments hold the index."""
        return self.make_backend() if self.has_engine else None

    @cached_property
    def has_engine(self) -> bool:
        plugin: Any = load("backends", self.manifest.backend.name)
        return bool(plugin.own_storage)

    def make_backend(self) -> Backend:
        """A new backend of the collection's options, empty unless its engine keeps its own storage."""
        backend: Backend = self.manifest.backend.load("backends", self.folder)
        return backend

    # -- items

    def documents(self, ids: Ids) -> list[dict[str, Any]]:
        """Documents of live items, in the order of ``ids`` ``(n,)``. Raises UnknownId."""
        if len(self.segments) == 1:
            segment, rows = self.segments[0], self.segments[0].rows_of(ids)
            if len(ids) and rows.min() < 0:
                raise self._unknown(ids, rows)
            return segment.documents_of(ids, rows)
        owners = self._owners(ids)
        found: dict[int, dict[str, Any]] = {}
        for number in np.flatnonzero(np.bincount(owners)).tolist():
            segment, mine = self.segments[number], ids[owners == number]
            found |= zip(mine.tolist(), segment.documents_of(mine, segment.rows_of(mine)), strict=True)
        return [found[i] for i in ids.tolist()]

    def require(self, ids: Ids) -> None:
        """Raises UnknownId for the first of ``ids`` that is not a live item."""
        self._owners(ids)

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        """Stored rows ``(len(ids), …)`` of a column (or ``code``) of live items. Raises UnknownId."""
        if len(self.segments) == 1 and len(ids):  # in the path of every query that is rescored
            segment = self.segments[0]
            rows = segment.rows_of(ids)
            if rows.min() < 0:
                raise self._unknown(ids, rows)
            return np.asarray(segment.candidates(column, rows)[rows])
        owners = self._owners(ids)
        parts = []
        for number in np.flatnonzero(np.bincount(owners)).tolist():
            segment, mine = self.segments[number], owners == number
            rows = segment.rows_of(ids[mine])
            parts.append((mine, segment.candidates(column, rows), rows))
        if not parts:
            raise UnknownId(f"no ids given to {self.folder}")
        _, first, _ = parts[0]
        out = np.empty((len(ids), *first.shape[1:]), first.dtype)
        for mine, part, rows in parts:
            out[mine] = part[rows]
        return out

    @property
    def ids(self) -> Ids:
        """Of all live items, ascending."""
        return np.concatenate([np.empty(0, np.int64), *(segment.live_ids for segment in self.segments)])

    @property
    def floats(self) -> str | None:
        """The column (or ``code``) that holds the vectors themselves, to compare by; None where only codes are kept."""
        return "code" if self.manifest.codec.name in _AS_THEY_ARE else self.embeddings

    @property
    def embeddings(self) -> str | None:
        """The column (or ``code``) that holds the embeddings, not what a codec made of them; None where none does."""
        kept = [segment.column("embedding") for segment in self.segments[:1] if "embedding" in segment.column_names]
        if kept and kept[0].dtype.kind == "f":
            return "embedding"
        return "code" if self.manifest.codec.name == "raw" else None

    def whole(self, column: str) -> NDArray[Any]:
        """A column of all live items, in the order of their ids; memory-mapped where one segment holds them all."""
        parts = [segment.column(column) for segment in self.segments]
        if len(parts) == 1 and self.segments[0].entry.live is None:
            return parts[0]
        return np.concatenate([part[s.live] for part, s in zip(parts, self.segments, strict=True)])

    def located(self, ids: Ids, column: str) -> Places:
        """Where a column of live items lies, segment by segment; ``ids`` of any shape, -1 is nowhere.

        Raises UnknownId.
        """
        found_in = [(segment, segment.rows_of(ids)) for segment in self.segments]
        places = [(segment.candidates(column, rows), rows) for segment, rows in found_in]
        found = np.maximum.reduce([rows for _, rows in places]) if places else np.full(ids.shape, -1)
        if found.size and found.min() < 0 and (unknown := (found < 0) & (ids >= 0)).any():
            raise self._unknown(ids[unknown], found[unknown])
        return places

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of ``ids`` (of any shape) are live items."""
        held = np.zeros(ids.shape, bool)
        for segment in self.segments:
            held |= segment.rows_of(ids) >= 0
        return held

    def select(self, where: Where) -> Ids:
        """Ids of the live items that ``where`` matches, ascending."""
        parts = [segment.live_ids_of(where) for segment in self.segments]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @property
    def live_ids(self) -> Ids:
        """Ids of all live items, ascending."""
        parts = [segment.live_ids for segment in self.segments]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def records(self, paths: Sequence[str] | None = None) -> Iterator[tuple[int, Record]]:
        """Live items: all, by id, or those of some paths."""
        for segment in self.segments:
            yield from segment.records(paths)

    def same_content(self) -> list[list[int]]:
        """Ids of live items whose content is equal byte by byte, where there are several; in the order of ids."""
        found: dict[bytes, list[int]] = {}
        for segment in self.segments:
            dead = set(segment.dead_ids.tolist())
            for item, digest in segment.catalogue.digests():
                if item not in dead and digest:
                    found.setdefault(digest, []).append(item)
        return sorted(ids for ids in found.values() if len(ids) > 1)

    def labels(self) -> dict[str, int]:
        """How many live items have each label, most frequent first."""
        counts: dict[str, int] = {}
        for segment in self.segments:
            live = None if segment.entry.live is None else segment.live
            for label, count in segment.field("label").counts(live):
                counts[str(label)] = counts.get(str(label), 0) + count
        return dict(sorted(((k, v) for k, v in counts.items() if v), key=lambda kv: (-kv[1], kv[0])))

    # -- search

    def search(self, codes: NDArray[Any], k: int, where: Where | None, options: Options | None = None) -> Hits:
        """The ``k`` nearest live items of each of ``codes`` in the index; ``options`` in place of the manifest's."""
        options = options or self._search_options
        if self.engine is not None:
            return self._search_engine(self.engine, codes, k, where, options)
        if where is None and len(self.segments) == 1:
            return self.segments[0].backend.search(codes, k, None, options)
        return merge(list(self._search_segments(codes, k, where, options)), len(codes), k)

    @cached_property
    def _search_options(self) -> Options | None:
        """What the manifest says, parsed once; None: the backend's own defaults."""
        plugin: Any = load("backends", self.manifest.backend.name)
        return parse_options(plugin.SearchOptions, self.manifest.search) if self.manifest.search else None

    def _search_segments(
        self, codes: NDArray[Any], k: int, where: Where | None, options: Options | None
    ) -> Iterable[Hits]:
        if where is None or not self.segments[0].backend.filters_ids:
            yield from (segment.backend.search(codes, k, where, options) for segment in self.segments)
            return
        found = [(segment, allowed) for segment in self.segments if len(allowed := segment.live_ids_of(where))]
        # In one way for all segments: distances of codes and of what they were made of do not go into one order.
        compared = self._has_to_search_for(sum(len(allowed) for _, allowed in found))
        for segment, allowed in found:
            if compared:
                yield segment.compare(codes, k, allowed)
            else:
                yield segment.backend.search(codes, k, allowed, options)

    def _has_to_search_for(self, few: int) -> bool:
        """Whether the index has to look at many times as many to find so few.

        What it was made of is in the segments: to compare with the few is sooner done, and exact. What it keeps in
        memory as it is it compares itself, if a filter is no trouble to it.
        """
        backend = self.segments[0].backend
        can, binary, dim = backend.capabilities, backend.kind == "binary", backend.dim or 0
        if (can.filter if binary else can.vectors) == "native" or (not binary and backend.metric == "hamming"):
            return False
        share, most = _COMPARED["binary" if binary else "float"]
        rows = sum(segment.entry.rows for segment in self.segments)
        return few <= share * rows and few * (dim // 8 if binary else 4 * dim) <= most

    def _search_engine(
        self, engine: Backend, codes: NDArray[Any], k: int, where: Where | None, options: Options | None
    ) -> Hits:
        """An engine may be ahead of this generation: what this one does not hold is left out, and the next taken."""
        wanted = k
        while True:
            hits = engine.search(codes, wanted, where, options)
            gone = (hits.ids >= 0) & ~self.holds(hits.ids)
            if wanted == k and not gone.any():
                return hits
            order = np.argsort(gone, axis=1, kind="stable")[:, :k]
            ids, distances = np.where(gone, MISSING_ID, hits.ids), np.where(gone, np.float32(np.inf), hits.distances)
            found = np.take_along_axis(ids, order, 1)
            full = found[:, -1] != MISSING_ID
            if wanted >= engine.count() or bool((full | (hits.ids[:, -1] == MISSING_ID)).all()):
                return Hits(found, np.take_along_axis(distances, order, 1))
            wanted = min(engine.count(), 2 * wanted)

    def close(self) -> None:
        """Give back files and connections."""
        for segment in self.__dict__.get("segments", ()):
            segment.close()
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()

    def _owners(self, ids: Ids) -> NDArray[np.int64]:
        """The number of the segment in which each id lives; they come in the order of their ids."""
        owners = np.full(len(ids), -1, np.int64)
        for number, segment in enumerate(self.segments):
            owners[segment.rows_of(ids) >= 0] = number
        if len(ids) and owners.min() < 0:
            raise self._unknown(ids, owners)
        return owners

    def _unknown(self, ids: Ids, places: Ids) -> UnknownId:
        return UnknownId(f"no item with id {int(ids[int(np.argmin(places))])} in {self.folder}")


def merge(found: Sequence[Hits], n: int, k: int) -> Hits:
    """The ``k`` nearest of several answers to the same ``n`` queries; equals in the order of ``found``."""
    if not found:
        return missing_hits(n, k)
    if len(found) == 1:
        return found[0]
    ids = np.concatenate([hits.ids for hits in found], axis=1)
    distances = np.concatenate([hits.distances for hits in found], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Hits(np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1))
