"""A collection: items, codes and an index on disk, with the frozen extractor, so that a picture finds its like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Extractor
from cbir_faiss.base.checks import check_ids
from cbir_faiss.collection import recalled
from cbir_faiss.errors import CbirError, InputError, Unsupported
from cbir_faiss.pipeline.search import Filter, Searcher
from cbir_faiss.storage.files import bytes_of
from cbir_faiss.storage.manifest import Cutoff, Manifest, check_content, damaged_files, read_manifest
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Columns, Floats, Hits, Ids

if TYPE_CHECKING:  # imported where they are needed: a search by vector must not wait for YAML, Pillow or a build
    from cbir_faiss.collection.build import BuildReport
    from cbir_faiss.collection.stages import Rescore
    from cbir_faiss.collection.transfer import Difference
    from cbir_faiss.collection.writing import Added, Writer
    from cbir_faiss.config import Config
    from cbir_faiss.pipeline.extraction import Progress

NOT_OF_TEXTS = "the cut-off is of distances between pictures, and those of texts are larger: leave 'relevant' out"


@dataclass(slots=True)  # not frozen: that makes a match several times as dear
class Match:
    """One found item: its id, path and label (None, a text, or a list of them), how far it is, and its payload."""

    id: int
    path: str
    label: Any
    distance: float
    payload: dict[str, Any] = field(default_factory=dict)
    relevant: bool | None = None
    """Whether it is meant: nearer than the collection's cut-off; None where that has not been learnt."""

    def as_dict(self) -> dict[str, Any]:
        told = {"id": self.id, "path": self.path, "label": self.label, "distance": self.distance}
        return told if self.relevant is None else {**told, "relevant": self.relevant}


class Collection:
    """Open with ``Collection.open(folder)``, or make one with ``Collection.build(config, out)``.

    A reader keeps the generation it opened; ``open`` again to see later changes. One that adds or deletes goes on with
    the generation it made.
    """

    def __init__(self, store: Store) -> None:
        self.folder, self._store = store.folder, store
        self.report: BuildReport | None = None

    @classmethod
    def build(
        cls,
        config: Config | str | Path,
        out: str | Path,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
        adopt: bool = False,
    ) -> Collection:
        """Build what ``config`` (a file, or a parsed config) describes at ``out``, and open it.

        Started again after being killed, it goes on where it was; on a finished collection it takes over what has
        changed in the source since, by path, size and time of change of the files.

        ``cache`` is the folder of the embedding cache (default: the user's). ``adopt`` takes over a table in the engine
        that belongs to no collection.
        """
        from cbir_faiss.collection.build import build
        from cbir_faiss.config import load_config
        from cbir_faiss.pipeline.cache import default_cache

        parsed = load_config(config) if isinstance(config, str | Path) else config
        report = build(parsed, Path(out), cache=cache or default_cache(), progress=progress, adopt=adopt)
        collection = cls.open(out)
        collection.report = report
        return collection

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """The current generation of the collection at ``folder``; checks the manifest and every file's size.

        Raises:
            CorruptCollection: not a collection, damaged, or of another format version.
        """
        store = Store.open(Path(folder))
        if store.manifest.pending is not None:
            from cbir_faiss.storage.changes import open_replayed
            from cbir_faiss.storage.lock import writer_lock

            with suppress(CbirError), writer_lock(store.folder):  # else whoever has the lock is doing it
                store.close()
                store = open_replayed(store.folder)
        return cls(store)

    @property
    def manifest(self) -> Manifest:
        """The generation that is open."""
        return self._store.manifest

    @property
    def store(self) -> Store:
        """The open generation's files, for who works on all items."""
        return self._store

    def __len__(self) -> int:
        return len(self._store)

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- search

    def search(
        self,
        queries: Sequence[Any] | NDArray[Any],
        k: int = 5,
        where: Filter | None = None,
        *,
        relevant: bool = False,
        rescore: Rescore | None = None,
    ) -> list[list[Match]]:
        """The ``k`` nearest items of each query, nearest first.

        Args:
            queries: paths, ``PIL.Image`` objects, or float vectors ``(n, dim)`` as the extractor makes them.
            k: how many; fewer come back where the collection (or the filter) has fewer.
            where: a filter on label, path or payload, as a mapping or text; see ``cbir_faiss.base.filters``.
            relevant: only those that are meant, see ``cutoff``.
            rescore: None: as the collection was built. ``none``: by the code alone. ``exact``: by every item's floats.

        Raises:
            BadImage: a query that cannot be read. InputError: k < 1, vectors of NaN or a filter that cannot be read.
            DimensionMismatch: vectors of another width than the collection's. Unsupported: ``exact`` without floats.
        """
        return self.search_columns(self._columns(queries), k, where, relevant=relevant, rescore=rescore)

    def search_text(
        self, texts: Sequence[str], k: int = 5, where: Filter | None = None, *, relevant: bool = False
    ) -> list[list[Match]]:
        """The ``k`` items nearest to what each text says, where the collection was built with ``embed: image+text``.

        Only the text's tower is loaded, which needs neither torch nor the library that the model came from.

        Raises:
            Unsupported: the extractor has no text tower; ``relevant``. InputError: no texts, or one that says nothing.
        """
        if relevant:
            raise Unsupported(NOT_OF_TEXTS)
        with threads.phase("extract"):
            columns = self.reader_of_texts.embed_text(texts)
        return self.search_embedded(columns, k, where)

    def search_ids(
        self,
        ids: Iterable[int],
        k: int = 5,
        where: Filter | None = None,
        *,
        relevant: bool = False,
        rescore: Rescore | None = None,
    ) -> list[list[Match]]:
        """The ``k`` nearest items of items that are in the collection, themselves left out.

        Raises:
            UnknownId: an id that is not there.
        """
        return self._matches(self._searcher(rescore).hits_of(_as_ids(ids), k, where), relevant, rescore)

    def search_columns(
        self,
        columns: Columns,
        k: int = 5,
        where: Filter | None = None,
        *,
        relevant: bool = False,
        rescore: Rescore | None = None,
    ) -> list[list[Match]]:
        """As ``search``, for columns that were extracted already; vectors alone are the column ``embedding``."""
        return self._matches(self._searcher(rescore).hits(columns, k, where), relevant, rescore)

    def search_embedded(
        self, columns: Columns, k: int = 5, where: Filter | None = None, *, rescore: Rescore | None = None
    ) -> list[list[Match]]:
        """As ``search_columns``, for texts: whether a hit is meant is not known."""
        return self._described(self._searcher(rescore).hits(columns, k, where), None)

    def search_hits(self, queries: Sequence[Any] | NDArray[Any], k: int = 5, where: Filter | None = None) -> Hits:
        """As ``search``, but ids and distances alone, as arrays ``(n, k)``: no document is looked up."""
        return self._searcher().hits(self._columns(queries), k, where)

    @property
    def cutoff(self) -> Cutoff:
        """The distance up to which a hit is meant, with its error rate. The first time it is learnt from hits of the
        collection's own items, by their labels or, without, by the distances alone, and stored where that is possible.

        Raises:
            InputError: there are no two items, or nothing divides the distances. Unsupported: the items are not as far
                from each other as their vectors, for a rescorer takes more of a query than is kept of an item.
        """
        from cbir_faiss.collection.relevance import cutoff_of, kept

        found = cutoff_of(self._store)
        if found != self.manifest.cutoff:
            self._store.manifest = kept(self._store, found)
        return found

    # -- change

    def add(
        self,
        paths: Iterable[str | Path],
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
        adopt: bool = False,
    ) -> Added:
        """Add files, and all images below folders, in one transaction; a file that is there with another content is
        replaced, under a new id.

        A file below the folder that the collection was built from is named and labelled as a build would; any other
        by its absolute path, with the first folder below a given folder as label. ``adopt``: as in ``build``.

        Raises:
            InputError: a path that does not exist, or not one file that can be used. CbirError: another writer.
        """
        from cbir_faiss.pipeline.cache import default_cache

        with self._writer(adopt) as writer:
            return writer.add_files(self.extractor, paths, cache or default_cache(), progress)

    def add_vectors(
        self, vectors: NDArray[Any], documents: Sequence[Mapping[str, Any]] | None = None, *, adopt: bool = False
    ) -> Ids:
        """Add embeddings float ``(n, dim)`` as they are, with a document each (path, label, anything else of JSON).

        Returns:
            Their ids, int64 ``(n,)``; less those of zero vectors where the index compares directions.

        Raises:
            InputError, DimensionMismatch: NaN, another width, or documents that do not fit. CbirError: another writer.
        """
        with self._writer(adopt) as writer:
            return writer.add_vectors(vectors, documents)

    def delete(self, ids: Iterable[int] = (), *, where: Filter | None = None, adopt: bool = False) -> int:
        """Delete items by id, or all that a filter matches, in one transaction; returns how many.

        A later build leaves them out while their files are the same; ``add`` brings one back.

        Raises:
            UnknownId: an id that is not there; nothing is deleted then. CbirError: another writer.
        """
        with self._writer(adopt) as writer:
            return writer.delete(_as_ids(ids), where)

    # -- what it holds

    def embeddings(self, ids: Iterable[int]) -> Floats:
        """float32 ``(n, dim)``: the embeddings of items, as nearly as they were kept.

        Raises:
            UnknownId: an id that is not there. Unsupported: the collection keeps codes alone.
        """
        from cbir_faiss.collection.stages import stored_embeddings

        return stored_embeddings(self._store, _as_ids(ids))

    def documents(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Path, label and payload of items, in the order of ``ids``.

        Raises:
            UnknownId: an id that is not there.
        """
        return self._store.documents(_as_ids(ids))

    def info(self) -> dict[str, Any]:
        """What ``cbir info`` prints: counts, plugins, labels, bytes by file, and what ``cbir recall`` said last."""
        m = self.manifest
        files = [self.folder / name for name in sorted(m.files)]
        return {
            "items": m.items,
            "deleted": sum(s.rows for s in m.segments) - m.items,
            "failed": m.failed,
            "generation": m.generation,
            "format": m.format,
            "segments": len(m.segments),
            "extractor": m.extractor.model_dump() if m.extractor else None,
            "codec": m.codec.model_dump(),
            "backend": m.backend.model_dump(),
            "rescore": m.rescore.model_dump(),
            "dim": m.dim,
            "bits": m.bits,
            "labels": self._store.labels(),
            "bytes": {str(path.relative_to(self.folder)): size for path, size in bytes_of(files).items()},
            "recall": recalled.last(self.folder, m.generation),
        }

    def verify(self) -> list[tuple[str, str]]:
        """Every file of the current generation that is not as it was written, and how; empty when all is well. Reads
        every byte.

        If an engine keeps the index, what it does not hold as the files do is listed under its name.

        Raises:
            CorruptCollection: the manifest itself is damaged. CbirError: as ``engine_difference``.
        """
        damaged = damaged_files(self.folder, read_manifest(self.folder))
        found = None if damaged else self.engine_difference()
        differs = [] if found is None else [(what, len(ids)) for what, ids in found.ids.items() if len(ids)]
        return [*damaged, *((self.manifest.backend.name, f"{count:,} items: {what}") for what, count in differs)]

    def engine_difference(self, *, progress: Progress | None = None) -> Difference | None:
        """Where the engine that keeps the index differs from the files; None where they have the index.

        Raises:
            CbirError: another process is writing to the collection, or has changed it since it was opened.
            BackendError: the engine failed.
        """
        from cbir_faiss.collection.sync import engine_difference

        return engine_difference(self._store, progress=progress)

    def close(self) -> None:
        """Give back files and connections."""
        self._store.close()

    # -- its parts

    @cached_property
    def extractor(self) -> Extractor:
        """The frozen extractor; it needs neither torch nor the original weights.

        Raises:
            InputError: the collection holds vectors, not pictures. CorruptCollection: its files are not those of the
                collection that was opened.
        """
        extractor = self._frozen
        extractor.load()
        check_content(self.folder, self.manifest, "extractor")  # after loading: it is these that were loaded
        return extractor

    @property
    def reads_text(self) -> bool:
        """Whether it can be searched by text; nothing is loaded to say so."""
        try:
            return self._frozen.reads_text
        except CbirError:
            return False

    @cached_property
    def reader_of_texts(self) -> Extractor:
        """The frozen extractor with its text tower loaded, but not that of pictures.

        Raises:
            Unsupported: it has no text tower. InputError, CorruptCollection: as ``extractor``.
        """
        self._frozen.embed_text(["a picture"])
        check_content(self.folder, self.manifest, "extractor")  # after loading, as above
        return self._frozen

    @cached_property
    def _frozen(self) -> Extractor:
        """The frozen extractor, nothing of it loaded yet."""
        entry = self.manifest.extractor
        extractor: Extractor | None = None if entry is None else entry.load("extractors", self.folder / "extractor")
        if extractor is None or extractor.reads != "image":
            raise InputError(
                f"{self.folder} holds vectors and has no extractor: give it ids or vectors, not pictures or texts"
            )
        return extractor

    def _searcher(self, rescore: Rescore | None = None) -> Searcher:
        if rescore is None:
            return Searcher(self._store.fitted, self._store)
        from cbir_faiss.collection.stages import searcher_of

        return searcher_of(self._store, rescore)

    # -- how

    @contextmanager
    def _writer(self, adopt: bool) -> Iterator[Writer]:
        """What makes changes; afterwards this collection is the generation that they made."""
        from cbir_faiss.collection.writing import Writer

        writer = Writer(self._store, adopt)
        try:
            yield writer
        finally:
            self._store = writer.store

    def _columns(self, queries: Sequence[Any] | NDArray[Any]) -> Columns:
        if isinstance(queries, np.ndarray):
            return {"embedding": queries}
        if isinstance(queries, str | Path) or not len(queries):
            raise InputError("queries are a list of paths, images or vectors, with at least one")
        if isinstance(queries[0], np.ndarray):
            return {"embedding": np.stack(list(queries))}
        from cbir_faiss.images.reading import open_image, to_rgb

        extractor = self.extractor
        images = [
            open_image(Path(query), min_side=extractor.min_side) if isinstance(query, str | Path) else to_rgb(query)
            for query in queries
        ]
        with threads.phase("extract"):
            return extractor(images)

    def _matches(self, hits: Hits, relevant: bool, rescore: Rescore | None = None) -> list[list[Match]]:
        if relevant and rescore is not None:
            raise InputError("the cut-off is of distances as the collection was built to give: leave out 'rescore'")
        cutoff = self.cutoff if relevant else None if rescore else self._known_cutoff
        if relevant and cutoff is not None:
            meant = hits.distances <= cutoff.distance
            hits = Hits(np.where(meant, hits.ids, -1), hits.distances)
        return self._described(hits, None if cutoff is None else cutoff.distance)

    @property
    def _known_cutoff(self) -> Cutoff | None:
        if self.manifest.cutoff is None:  # in the path of every query
            return None
        from cbir_faiss.collection.relevance import known

        return known(self._store)

    def _described(self, hits: Hits, furthest: float | None) -> list[list[Match]]:
        """With their documents; those up to ``furthest`` are meant, None: not known."""
        wanted = list({i for row in hits.ids.tolist() for i in row if i >= 0})
        found = map(_parted, self._store.documents(np.array(wanted, np.int64)))
        told = dict(zip(wanted, found, strict=True))
        return [
            [_match(i, distance, furthest, *told[i]) for i, distance in zip(ids, distances, strict=True) if i >= 0]
            for ids, distances in zip(hits.ids.tolist(), hits.distances.tolist(), strict=True)
        ]


def _as_ids(ids: Iterable[int]) -> Ids:
    """int64 ``(n,)``. InputError where they are not whole numbers: a text would be taken for its digits."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InputError(f"ids are a list of whole numbers, not {ids!r}")
    return check_ids(ids if isinstance(ids, np.ndarray) else list(ids))


def _parted(document: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Path, label, and the rest, which is the payload."""
    return str(document.pop("path", "")), document.pop("label", None), document


def _match(item: int, distance: float, furthest: float | None, path: str, label: Any, payload: dict[str, Any]) -> Match:
    meant = None if furthest is None else distance <= furthest
    # Each its own payload: one item may be found by many queries.
    return Match(item, path, label, distance, payload.copy(), meant)
