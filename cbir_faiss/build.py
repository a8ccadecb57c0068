"""Build one collection: extract, fit on a sample, then encode, store and index block by block; or bring it up to date.

A first build works in ``OUT.building`` and is renamed to ``OUT`` once: one that fails or is killed leaves no ``OUT``.
Embeddings are cached by content as they are made: a build that was killed continues from there. Of a finished build,
what its source has changed since is one more transaction.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss import threads
from cbir_faiss.base import Codec, Extractor, Rescorer, Source
from cbir_faiss.config import Choice, Config
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.extraction import Extraction, Failure, Progress, extract
from cbir_faiss.labels import label_array
from cbir_faiss.storage.catalogue import Record, document
from cbir_faiss.storage.changes import add_segment, change, files_of, open_settled, publish, shape_of
from cbir_faiss.storage.files import sync, sync_tree, writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import CURRENT, Manifest, Pending, PluginEntry, read_manifest
from cbir_faiss.storage.seen import Seen, difference, read_seen, write_seen
from cbir_faiss.storage.segment import BLOCK_ROWS, Block, sample_rows
from cbir_faiss.storage.store import Store, thaw

_log = logging.getLogger(__name__)


@dataclass
class BuildReport:
    """What a build did. ``images_per_second`` counts what was extracted now, after the model was loaded."""

    items: int = 0
    failed: list[Failure] = field(default_factory=list)
    resumed_items: int = 0
    images_per_second: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir build --json`` prints it."""
        return {**vars(self), "failed": [failure.as_dict() for failure in self.failed]}


@dataclass(frozen=True)
class Encoder:
    """A fitted codec and rescorer: from the extractor's columns to what a segment stores."""

    codec: Codec
    rescorer: Rescorer
    embedding: str
    needs_direction: bool
    """Whether the index compares directions, so that a vector of zeros has no place in it."""

    @classmethod
    def of(cls, store: Store) -> Encoder:
        """That of a collection."""
        manifest, folder = store.manifest, store.folder
        codec: Codec = thaw("codecs", manifest.codec, folder)
        rescorer: Rescorer = thaw("rescorers", manifest.rescore, folder)
        return cls(
            codec.restore(folder / "codec.npz"),
            rescorer.restore(folder / "rescore.npz"),
            manifest.embedding,
            store.make_backend().metric_for(codec.kind) == "cosine",
        )

    def blocks(
        self, source: Source, found: Extraction, first_id: int, failed: list[Failure], clock: Clock, added: bool = False
    ) -> Iterator[Block]:
        """The extracted items, ids from ``first_id``. What cannot be indexed is appended to ``failed`` instead."""
        items = source.items()
        for start in range(0, len(found), BLOCK_ROWS):
            place = slice(start, start + BLOCK_ROWS)
            columns, origins = found.block(place), found.origin(place)
            columns = {**columns, "embedding": columns[self.embedding]}
            with clock.phase("encode"):
                codes = self.codec.encode(columns["embedding"])
                packed = self.rescorer.pack(columns)
            records = [
                Record(document(items[row]), origin.stamp, origin.digest, added)
                for row, origin in zip(found.rows[place].tolist(), origins, strict=True)
            ]
            block = Block(np.arange(first_id, first_id + len(codes)), codes, packed, records)
            if self.needs_direction and not codes.any(axis=1).all():
                block = _without_zeros(block, failed)
            first_id += len(block.ids)
            if len(block.ids):
                yield block


def _without_zeros(block: Block, failed: list[Failure]) -> Block:
    """The items of a block that have a direction, numbered on from its first id; the others have ``failed``."""
    usable = block.codes.any(axis=1)
    lost = [block.records[i] for i in np.flatnonzero(~usable)]
    failed += [Failure(record.path, "its vector is zero and has no direction", record.stamp) for record in lost]
    kept = np.flatnonzero(usable)
    return Block(
        block.ids[0] + np.arange(len(kept)),
        block.codes[kept],
        {name: values[kept] for name, values in block.columns.items()},
        [block.records[i] for i in kept],
    )


class Clock:
    """Seconds by phase, also where one phase runs inside another: each second counts once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("load", "extract", "fit", "encode", "store"), 0.0)
        self._began = time.perf_counter()

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)

    def total(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self._began}


class _Phase:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._began, self._before = time.perf_counter(), sum(self._clock.seconds.values())

    def __exit__(self, *_: object) -> None:
        seconds = self._clock.seconds
        inside = sum(seconds.values()) - self._before
        seconds[self._name] += time.perf_counter() - self._began - inside


def build(config: Config, out: Path, *, cache: Path | None, progress: Progress | None = None) -> BuildReport:
    """Build the collection that ``config`` describes at ``out``; a finished one follows what its source has become.

    Raises:
        ConfigError: the config has more than one of something.
        CbirError: ``out`` exists and is something else, another build is writing it, or it cannot be written.
    """
    config, clock = config.single(), Clock()
    job = _Job(config, out, cache, progress, clock)
    exists = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    report = job.update() if exists else job.make()
    report.seconds = clock.total()
    report.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _log.info("built %s", out, extra={"data": {**report.as_dict(), "failed": len(report.failed)}})
    return report


@dataclass
class _Job:
    """One call of ``build``."""

    config: Config
    out: Path
    cache: Path | None
    progress: Progress | None
    clock: Clock

    # -- from nothing

    def make(self) -> BuildReport:
        aside = self.out.with_name(self.out.name + ".building")
        with writing_to(self.out):
            aside.mkdir(parents=True, exist_ok=True)
        with writer_lock(aside), writing_to(self.out):
            done = self._is_done(aside)
            try:
                report = BuildReport() if done else self._make_into(aside)
            except Exception:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            open_settled(aside).close()  # what fails from here on goes on from here when it is started again
            aside.rename(self.out)
            sync(self.out.absolute().parent)
        return self.update() if done else report

    def _is_done(self, aside: Path) -> bool:
        """Whether a build that was killed had only to be renamed. What else it left is removed."""
        if (aside / CURRENT).exists() and read_manifest(aside).config == _plain(self.config):
            return True
        for left in aside.iterdir():
            if left.name != "LOCK":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        return False

    def _make_into(self, folder: Path) -> BuildReport:
        self.config.backends[0].make().metric_for(self.config.codecs[0].plugin().kind)  # fails now, not hours later
        source, extractor = self._open()
        survey = source.survey()
        with self.clock.phase("extract"):
            found = extract(source, extractor, cache=self.cache, progress=self.progress)
        failed = list(found.failed)
        with self.clock.phase("fit"), threads.phase("fit", self.config.threads):
            encoder = self._fit(source, found)
        with self.clock.phase("store"), threads.phase("fit", self.config.threads):
            (folder / "extractor").mkdir()
            name, options = extractor.freeze(folder / "extractor")
            frozen = PluginEntry(name=name, options=options)
            encoder.codec.save(folder / "codec.npz")
            encoder.rescorer.save(folder / "rescore.npz")
            manifest = self._manifest(source, extractor, frozen, encoder, survey)
            blocks = encoder.blocks(source, found, 0, failed, self.clock)
            manifest = self._first_generation(folder, manifest, blocks, failed)
        return self._report(manifest, found, failed)

    def _fit(self, source: Source, found: Extraction) -> Encoder:
        """Codec and rescorer, learnt from a sample of the items."""
        rows = sample_rows(len(found))
        columns, items = found.block(rows), source.items()
        embedding = next(iter(columns))
        columns = {**columns, "embedding": columns[embedding]}
        labels = label_array([items[row].labels for row in found.rows[rows].tolist()])
        codec: Codec = self.config.codecs[0].make()
        codec.fit(columns["embedding"], labels)
        rescorer: Rescorer = self.config.rescore[0].make()
        rescorer.fit(columns, labels)
        cosine = self.config.backends[0].make().metric_for(codec.kind) == "cosine"
        return Encoder(codec, rescorer, embedding, cosine)

    def _manifest(
        self, source: Source, extractor: Extractor, frozen: PluginEntry, encoder: Encoder, survey: str
    ) -> Manifest:
        config, codec = self.config, encoder.codec
        return Manifest(
            config=_plain(config),
            extractor=frozen,
            fingerprint=extractor.fingerprint(),
            codec=_entry(config.codecs[0]),
            backend=_entry(config.backends[0]),
            rescore=_entry(config.rescore[0]),
            embedding=encoder.embedding,
            dim=int(codec.dim or 0),
            bits=codec.bits,
            width=codec.width,
            search=config.backends[0].searches[0],
            next_id=0,
            root=_root(source),
            survey=survey,
            segments=(),
            files={},
        )

    def _first_generation(
        self, folder: Path, manifest: Manifest, blocks: Iterator[Block], failed: list[Failure]
    ) -> Manifest:
        store = Store(folder, manifest)
        segment = add_segment(folder, "1", blocks, None if store.has_engine else store.make_backend, shape_of(manifest))
        if segment is None:
            raise CbirError(f"not one item could be indexed; {failed[0].path}: {failed[0].reason}")
        seen = write_seen(folder, 1, Seen(failed))
        sync_tree(folder)
        manifest = manifest.model_copy(
            update={
                "next_id": segment.rows,
                "failed": len(failed),
                "seen": seen,
                "segments": (segment,),
                "pending": Pending(first_id=0) if store.has_engine else None,
                "files": files_of(folder, "."),
            }
        )
        return publish(folder, manifest)

    # -- up to date

    def update(self) -> BuildReport:
        manifest = self._mine()
        source, extractor = self._open(load=False)
        if extractor.fingerprint() != manifest.fingerprint:
            raise CbirError(
                f"{self.out}: made by an extractor {manifest.fingerprint[:12]}, the config now gives "
                f"{extractor.fingerprint()[:12]} (other weights, or another version); choose another --out"
            )
        survey = source.survey()
        if (manifest.survey, manifest.root, manifest.pending) == (survey, _root(source), None):
            return self._report(manifest, None, read_seen(self.out, manifest).failed)
        with writer_lock(self.out), writing_to(self.out), open_settled(self.out) as store:
            return self._follow(store, source, extractor, survey)

    def _follow(self, store: Store, source: Source, extractor: Extractor, survey: str) -> BuildReport:
        with self.clock.phase("extract"):
            differs = difference(store, source, read_seen(self.out, store.manifest))
        if differs.rows:
            with self.clock.phase("load"):
                extractor.load()
        with self.clock.phase("extract"):
            found = extract(
                source, extractor, cache=self.cache, progress=self.progress, rows=np.array(differs.rows, np.int64)
            )
        failed = [*differs.seen.failed, *found.failed]

        def conclude(generation: int) -> dict[str, Any]:
            seen = Seen(sorted(failed, key=lambda failure: failure.path), differs.seen.touched)
            name = write_seen(self.out, generation, seen)
            return {"seen": name, "failed": len(failed), "survey": survey, "root": _root(source)}

        with self.clock.phase("store"), threads.phase("fit", self.config.threads):
            blocks = Encoder.of(store).blocks(source, found, store.manifest.next_id, failed, self.clock)
            change(store, delete=np.array(differs.delete, np.int64), blocks=blocks, conclude=conclude)
            with open_settled(self.out) as after:
                return self._report(after.manifest, found, failed)

    # -- for both

    def _open(self, load: bool = True) -> tuple[Source, Extractor]:
        with self.clock.phase("load"):
            source: Source = self.config.source.make()
            extractor: Extractor = self.config.extractors[0].make()
            source.items()
            if load:
                extractor.load()
        return source, extractor

    def _mine(self) -> Manifest:
        if not (self.out / CURRENT).exists():
            raise CbirError(f"{self.out}: exists and is not a collection; choose another place or remove it")
        manifest = read_manifest(self.out)
        if manifest.config != _plain(self.config):
            raise CbirError(f"{self.out}: was built from another config; choose another --out or remove it")
        return manifest

    def _report(self, manifest: Manifest, found: Extraction | None, failed: list[Failure]) -> BuildReport:
        computed = found.computed if found is not None else 0
        is_new = found is not None and self.config.source.plugin().yields == "vector"
        return BuildReport(
            items=manifest.items,
            failed=sorted(failed, key=lambda failure: failure.path),
            resumed_items=max(0, manifest.items - (len(found) if found is not None and is_new else computed)),
            images_per_second=found.computed / found.seconds if found is not None and computed else 0.0,
        )


def _root(source: Source) -> str | None:
    return None if source.root is None else str(source.root.absolute())


def _entry(choice: Choice) -> PluginEntry:
    options = dict(choice.options)
    if options.get("path"):  # an engine's own place: found again from wherever the collection is opened
        options["path"] = str(Path(options["path"]).absolute())
    return PluginEntry(name=choice.name, options=options)


def _plain(config: Config) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config.document))
    except TypeError as error:
        raise ConfigError(f"not plain YAML: {error}", file=config.file) from error
    return plain
