"""A collection: items, codes and an index on disk, with the frozen extractor, so that a picture finds its like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import threads
from cbir_faiss.base import Backend, Codec, Extractor, Rescorer
from cbir_faiss.build import BuildReport, build, thaw
from cbir_faiss.cache import default_cache
from cbir_faiss.config import Config, load_config
from cbir_faiss.errors import InputError, UnknownId
from cbir_faiss.extraction import Progress
from cbir_faiss.filters import Where, parse_where
from cbir_faiss.images import open_image
from cbir_faiss.storage.manifest import Manifest, check_sizes, damaged_files, read_manifest
from cbir_faiss.storage.segment import Segment
from cbir_faiss.types import Columns, Hits, Ids, missing_hits

Filter = Where | Mapping[str, Any] | str


@dataclass(frozen=True)
class Match:
    """One found item: its id, path and label (None, a text, or a list of them), how far it is, and its payload."""

    id: int
    path: str
    label: Any
    distance: float
    payload: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "path": self.path, "label": self.label, "distance": self.distance}


class Collection:
    """Open with ``Collection.open(folder)``, or make one with ``Collection.build(config, out)``.

    A reader keeps the generation it opened; ``open`` again to see later changes.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.report: BuildReport | None = None

    @classmethod
    def build(
        cls,
        config: Config | str | Path,
        out: str | Path,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> Collection:
        """Build what ``config`` (a file, or a parsed config) describes at ``out``, and open it.

        ``cache`` is the folder of the embedding cache (default: the user's).
        """
        parsed = config if isinstance(config, Config) else load_config(config)
        report = build(parsed, Path(out), cache=cache or default_cache(), progress=progress)
        collection = cls.open(out)
        collection.report = report
        return collection

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """The current generation of the collection at ``folder``; checks the manifest and every file's size.

        Raises:
            CorruptCollection: not a collection, damaged, or of another format version.
        """
        manifest = read_manifest(Path(folder))
        check_sizes(Path(folder), manifest)
        return cls(Path(folder), manifest)

    def __len__(self) -> int:
        return self.manifest.items

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- search

    def search(
        self, queries: Sequence[Any] | NDArray[Any], k: int = 5, where: Filter | None = None
    ) -> list[list[Match]]:
        """The ``k`` nearest items of each query, nearest first.

        Args:
            queries: paths, ``PIL.Image`` objects, or float vectors ``(n, dim)`` as the extractor makes them.
            k: how many; fewer come back where the collection (or the filter) has fewer.
            where: a filter on label, path or payload, as a mapping or text; see ``cbir_faiss.filters``.

        Raises:
            BadImage: a query that cannot be read. InputError: k < 1, vectors of NaN or a filter that cannot be read.
            DimensionMismatch: vectors of another width than the collection's.
        """
        return self.search_columns(self._columns(queries), k, where)

    def search_ids(self, ids: Iterable[int], k: int = 5, where: Filter | None = None) -> list[list[Match]]:
        """The ``k`` nearest items of items that are in the collection, themselves left out.

        Raises:
            UnknownId: an id that is not there.
        """
        wanted = np.asarray(list(ids), np.int64)
        codes = self._fetch(wanted, "code")
        columns = {"code": codes}
        for name in self.rescorer.needs_queries:
            columns[name] = self._stored_query(wanted, name)
        found = self._matches(self._search(columns, k + 1, where))
        return [[m for m in hits if m.id != own][:k] for own, hits in zip(wanted.tolist(), found, strict=True)]

    def search_columns(self, columns: Columns, k: int = 5, where: Filter | None = None) -> list[list[Match]]:
        """As ``search``, for columns that were extracted already."""
        embedding = np.asarray(columns["embedding"])
        codes = self.codec.encode(embedding)
        extended = {**columns, "code": codes}
        if self.codec.kind == "binary" and "projection" in self.rescorer.needs_queries:
            extended["projection"] = self.codec.project(embedding)
        return self._matches(self._search(extended, k, where))

    # -- what it holds

    def documents(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Path, label and payload of items, in the order of ``ids``.

        Raises:
            UnknownId: an id that is not there.
        """
        wanted = [int(i) for i in ids]
        found: dict[int, dict[str, Any]] = {}
        for segment in self.segments:
            found |= segment.catalogue.documents(wanted)
        unknown = [i for i in wanted if i not in found]
        if unknown:
            raise UnknownId(f"no item with id {unknown[0]} in {self.folder}")
        return [found[i] for i in wanted]

    def info(self) -> dict[str, Any]:
        """What ``cbir info`` prints: counts, plugins, labels, bytes by file."""
        labels: dict[str, int] = {}
        for segment in self.segments:
            for label, count in segment.catalogue.labels().items():
                labels[label] = labels.get(label, 0) + count
        m = self.manifest
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
            "labels": labels,
            "bytes": {name: entry.size for name, entry in m.files.items()},
        }

    def verify(self) -> list[tuple[str, str]]:
        """Every file that is not as it was written, and how; empty when all is well. Reads every byte."""
        return damaged_files(self.folder, self.manifest)

    def close(self) -> None:
        """Give back files and connections."""
        for segment in self.segments:
            segment.close()
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()

    # -- its parts

    @cached_property
    def segments(self) -> list[Segment]:
        folder = self.folder / "segments"
        return [Segment(folder / entry.name, entry, self._make_backend) for entry in self.manifest.segments]

    @cached_property
    def extractor(self) -> Extractor:
        """The frozen extractor; it needs neither torch nor the original weights."""
        if self.manifest.extractor is None:
            raise InputError(f"{self.folder} holds vectors and has no extractor: search it by id or by vector")
        extractor: Extractor = thaw("extractors", self.manifest.extractor, self.folder / "extractor")
        return extractor

    @cached_property
    def codec(self) -> Codec:
        codec: Codec = thaw("codecs", self.manifest.codec, self.folder)
        return codec.restore(self.folder / "codec.npz")

    @cached_property
    def rescorer(self) -> Rescorer:
        rescorer: Rescorer = thaw("rescorers", self.manifest.rescore, self.folder)
        return rescorer.restore(self.folder / "rescore.npz")

    @cached_property
    def engine(self) -> Backend | None:
        """The engine that keeps its own storage, or None where the segments hold the index."""
        backend = self._make_backend()
        return backend if backend.own_storage else None

    def _make_backend(self) -> Backend:
        backend: Backend = thaw("backends", self.manifest.backend, self.folder)
        return backend

    # -- how

    def _columns(self, queries: Sequence[Any] | NDArray[Any]) -> Columns:
        if isinstance(queries, np.ndarray):
            return {"embedding": queries}
        if isinstance(queries, str | Path) or not len(queries):
            raise InputError("queries are a list of paths, images or vectors, with at least one")
        if isinstance(queries[0], np.ndarray):
            return {"embedding": np.stack(list(queries))}
        if self.extractor.reads != "image":
            raise InputError(f"{self.folder} holds vectors, not pictures: search it by id or by vector")
        images = [
            open_image(Path(query)) if isinstance(query, str | Path) else query.convert("RGB") for query in queries
        ]
        with threads.phase("extract"):
            columns = self.extractor(images)
        return {**columns, "embedding": columns[self.manifest.embedding]}

    def _search(self, columns: Columns, k: int, where: Filter | None) -> Hits:
        candidates = self.rescorer.candidates
        depth = max(k, len(self)) if candidates == "all" else max(k, candidates)
        with threads.phase("search"):
            hits = self._first_stage(columns["code"], depth, parse_where(where) if where is not None else None)
            return self.rescorer.rescore(columns, hits, self._fetch, k)

    def _first_stage(self, codes: NDArray[Any], k: int, where: Where | None) -> Hits:
        if self.engine is not None:
            return self.engine.search(codes, k, where)
        found = []
        for segment in self.segments:
            allowed = None if where is None else segment.catalogue.select(where)
            if allowed is not None and not len(allowed):
                continue
            found.append(segment.backend.search(codes, k, allowed))
        return merge(found, len(codes), k)

    def _fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        """Stored rows of ``ids``, wherever they lie."""
        if len(self.segments) == 1:
            segment = self.segments[0]
            return np.asarray(segment.column(column)[self._rows(segment, ids)])
        owner = np.searchsorted([int(s.ids[0]) for s in self.segments], ids, side="right") - 1
        first = self.segments[0].column(column)
        out = np.empty((len(ids), *first.shape[1:]), first.dtype)
        for number in np.unique(owner):
            mine = owner == number
            segment = self.segments[max(0, int(number))]
            out[mine] = segment.column(column)[self._rows(segment, ids[mine])]
        return out

    def _rows(self, segment: Segment, ids: Ids) -> NDArray[np.int64]:
        rows = np.searchsorted(segment.ids, ids)
        known = rows < len(segment.ids)
        known[known] = (segment.ids[rows[known]] == ids[known]) & segment.live[rows[known]]
        if not known.all():
            raise UnknownId(f"no item with id {int(ids[np.argmin(known)])} in {self.folder}")
        return rows

    def _stored_query(self, ids: Ids, name: str) -> NDArray[Any]:
        if name == "projection":
            bits = np.unpackbits(self._fetch(ids, "code"), axis=1)[:, : self.codec.bits]
            return bits.astype(np.float32) * 2 - 1
        return self._unpacked(self._fetch(ids, name))

    def _unpacked(self, stored: NDArray[Any]) -> NDArray[Any]:
        return stored.astype(np.float32)

    def _matches(self, hits: Hits) -> list[list[Match]]:
        wanted = np.unique(hits.ids[hits.ids >= 0])
        documents = dict(zip(wanted.tolist(), self.documents(wanted.tolist()), strict=True))
        return [[_match(hit.id, hit.distance, documents[hit.id]) for hit in some] for some in hits]


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


def _match(item: int, distance: float, document: dict[str, Any]) -> Match:
    payload = {key: value for key, value in document.items() if key not in ("path", "label")}
    return Match(item, str(document["path"]), document.get("label"), distance, payload)
