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
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.files import sync
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base import Backend, Extractor, Source
from cbir_faiss.collection.blocks import Clock, encoded_blocks
from cbir_faiss.collection.room import check_room
from cbir_faiss.collection.source_changes import Seen, changes_of, read_seen, write_seen
from cbir_faiss.config import Choice, Config
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.pipeline.extraction import Extraction, Failure, Progress, extract
from cbir_faiss.pipeline.fit import Fitted, Sample, Unread
from cbir_faiss.pipeline.rules import check_combination
from cbir_faiss.sources._paths import placed
from cbir_faiss.sources.folder import shown
from cbir_faiss.storage.changes import (
    TRAINED,
    add_segment,
    change,
    described_training,
    files_of,
    open_replayed,
    publish,
    shape_of,
)
from cbir_faiss.storage.files import sync_tree, writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import (
    CURRENT,
    Manifest,
    Pending,
    PluginEntry,
    SegmentEntry,
    Training,
    index_facts,
    name_of,
    owner_of,
    read_manifest,
)
from cbir_faiss.storage.segment import Block
from cbir_faiss.storage.store import Store

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


def build(
    config: Config, out: Path, *, cache: Path | None, progress: Progress | None = None, adopt: bool = False
) -> BuildReport:
    """Build the collection that ``config`` describes at ``out``; a finished one follows what its source has become.

    ``adopt`` takes over a table in the engine that belongs to no collection.

    Raises:
        ConfigError: the config has more than one of something.
        CbirError: ``out`` exists and is something else, another build is writing it, or it cannot be written.
    """
    config, clock = config.single(), Clock()
    job = Job(config, out, cache, progress, clock, adopt)
    exists = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    report = job.update() if exists else job.make()
    report.seconds = clock.total()
    report.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _log.info("built %s", out, extra={"data": {**report.as_dict(), "failed": len(report.failed)}})
    return report


@dataclass
class Job:
    """One call of ``build``."""

    config: Config
    out: Path
    cache: Path | None
    progress: Progress | None
    clock: Clock
    adopt: bool = False

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
            # What fails from here on goes on from here when it is started again.
            open_replayed(aside, adopt=self.adopt).close()
            aside.rename(self.out)
            sync(self.out.absolute().parent)
        return self.update() if done else report

    def _is_done(self, aside: Path) -> bool:
        """Whether a build that was killed had only to be renamed. What else it left is removed."""
        if (aside / CURRENT).exists() and read_manifest(aside).config == _plain(self.config):
            return True
        self._clear(aside)
        return False

    def _clear(self, aside: Path) -> None:
        for left in aside.iterdir():
            if left.name != "LOCK":
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _make_into(self, folder: Path) -> BuildReport:
        self._check()  # fails now where the parts do not go together, not hours later
        source, extractor = self._open()
        check_room(self.out, self.config, source, extractor)
        source_digest = source.source_digest()
        with self.clock.phase("extract"):
            found = self._extract(source, extractor)
        failed = list(found.failed)
        with self.clock.phase("fit"), threads.phase("fit", self.config.threads):
            fitted = self._fit(source, found)
        with self.clock.phase("store"), threads.phase("fit", self.config.threads):
            (folder / "extractor").mkdir()
            name, options = extractor.freeze(folder / "extractor")
            frozen = PluginEntry(name=name, options=options)
            fitted.codec.save(folder / "codec.npz")
            fitted.rescorer.save(folder / "rescore.npz")
            manifest = self._manifest(source, extractor, frozen, fitted, source_digest)
            segments = self._segments(folder, manifest, source, found, fitted, failed)
            manifest = self._first_generation(folder, manifest, segments, failed)
        return self._report(manifest, found, failed)

    def _check(self) -> None:
        codec, backend, rescore = self.config.codecs[0], self._backend(), self.config.rescore[0]
        try:
            check_combination(codec, backend, rescore)
        except ConfigError as error:
            raise ConfigError(error.message, path=f"{error.path}.0.name", file=self.config.file) from error
        made: Backend = backend.make()
        try:
            made.metric_for(codec.plugin().kind)
            made.claim(owner_of(self.out), adopt=self.adopt)
            held = made.count() if made.own_storage and not self.adopt else 0
            if held and not getattr(made.options, "overwrite", False):
                raise ConfigError(
                    f"{made!r} holds {held:,} items of a collection that was made at {self.out} before: name another "
                    "place, or say 'overwrite: true'",
                    path="backends.0",
                    file=self.config.file,
                )
        finally:
            made.close()

    def _backend(self) -> Choice:
        """The backend; a table that the config calls nothing is called as the collection is."""
        choice = self.config.backends[0]
        return replace(choice, options=choice.plugin().named(choice.options, name_of(self.out)))

    def _extract(self, source: Source, extractor: Extractor) -> Extraction:
        engine = self.config.engine
        if engine is None or source.yields == "vector":
            return extract(source, extractor, cache=self.cache, progress=self.progress)
        from cbir_faiss.collection.ray import extract_by_ray

        return extract_by_ray(engine, self.config, source, extractor, self.cache, self.progress)

    def _segments(
        self,
        folder: Path,
        manifest: Manifest,
        source: Source,
        found: Extraction,
        fitted: Fitted,
        failed: list[Failure],
    ) -> list[SegmentEntry]:
        """Every segment of the first generation, written here or by a cluster."""
        store = Store(folder, manifest)
        if self.config.engine is not None and not manifest.trained:
            from cbir_faiss.collection.ray import write_segments

            return write_segments(self.config.engine, self.config, store, found, failed)
        blocks = self._blocks(manifest, source, found, fitted, failed)
        make_backend = None if store.has_engine else store.make_backend
        trained = folder / TRAINED / "1" if manifest.trained else None
        segment = add_segment(folder, "1", blocks, make_backend, shape_of(manifest), trained)
        return [segment] if segment is not None else []

    def _blocks(
        self, manifest: Manifest, source: Source, found: Extraction, fitted: Fitted, failed: list[Failure]
    ) -> Iterator[Block]:
        """What the first segment is written from."""
        return encoded_blocks(
            fitted, source, found, metric=manifest.metric, first_id=0, failed=failed, clock=self.clock
        )

    def _fit(self, source: Source, found: Extraction) -> Fitted:
        """Codec and rescorer, learnt from a sample of the items."""
        rows, items = sample_rows(len(found)), source.items()
        embedding = found.names[0]

        def column(name: str) -> NDArray[Any]:
            name = embedding if name == "embedding" else name
            return found.block(rows, [name])[name]

        columns = Unread(tuple(dict.fromkeys(("embedding", *found.names))), column)
        sample = Sample(columns, [items[row].labels for row in found.rows[rows].tolist()])
        codec = sample.fit_codec(self.config.codecs[0].make())
        return Fitted(codec, sample.fit_rescorer(self.config.rescore[0].make()), embedding)

    def _manifest(
        self, source: Source, extractor: Extractor, frozen: PluginEntry, fitted: Fitted, source_digest: str
    ) -> Manifest:
        config, codec, backend = self.config, fitted.codec, self._backend()
        return Manifest(
            config=_plain(config),
            extractor=frozen,
            fingerprint=extractor.fingerprint(),
            codec=_entry(config.codecs[0]),
            backend=_entry(backend),
            rescore=_entry(config.rescore[0]),
            embedding=fitted.embedding,
            dim=int(codec.dim or 0),
            bits=codec.bits,
            width=codec.width,
            **index_facts(backend.make(), codec.kind, codec.width),
            search=backend.searches[0],
            name=name_of(self.out),
            owner=owner_of(self.out),
            next_id=0,
            root=_root(source),
            source_digest=source_digest,
            segments=(),
            files={},
        )

    def _first_generation(
        self, folder: Path, manifest: Manifest, segments: list[SegmentEntry], failed: list[Failure]
    ) -> Manifest:
        if not segments:
            raise CbirError(f"not one item could be indexed; {failed[0].path}: {failed[0].reason}")
        has_engine = Store(folder, manifest).has_engine
        seen = write_seen(folder, 1, Seen(failed))
        sync_tree(folder)
        learnt = Training(folder=f"{TRAINED}/1", items=sum(segment.rows for segment in segments))
        training, _ = described_training(folder, learnt)
        last = np.load(folder / "segments" / segments[-1].name / "ids.npy", mmap_mode="r")[-1]
        manifest = manifest.model_copy(
            update={
                "next_id": int(last) + 1,
                "failed": len(failed),
                "seen": seen,
                "segments": tuple(segments),
                "pending": Pending(first_id=0) if has_engine else None,
                "training": training,
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
        source_digest = source.source_digest()
        seen = read_seen(self.out, manifest)
        unread = any(failure.stamp is None for failure in seen.failed)
        known = (manifest.source_digest, manifest.root, manifest.pending)
        if not unread and known == (source_digest, _root(source), None):
            return self._report(manifest, None, seen.failed)
        with writer_lock(self.out), writing_to(self.out), open_replayed(self.out, adopt=self.adopt) as store:
            return self._follow(store, source, extractor, source_digest)

    def _follow(self, store: Store, source: Source, extractor: Extractor, source_digest: str) -> BuildReport:
        known = read_seen(self.out, store.manifest)
        with self.clock.phase("extract"):
            differs = changes_of(store, source, known)
        if differs.rows:
            with self.clock.phase("load"):
                extractor.load()
        with self.clock.phase("extract"):
            found = extract(
                source, extractor, cache=self.cache, progress=self.progress, rows=np.array(differs.rows, np.int64)
            )
        seen = differs.seen
        failed = seen.failed = [*seen.failed, *found.failed]
        facts = {"source_digest": source_digest, "root": _root(source)}
        told = {name: getattr(store.manifest, name) for name in facts}
        as_known = [*seen.as_text()] == [*known.as_text()] and facts == told
        if as_known and not len(found) and not differs.delete:
            return self._report(store.manifest, found, failed)

        def conclude(generation: int) -> dict[str, Any]:
            return {"seen": write_seen(self.out, generation, seen), "failed": len(failed), **facts}

        with self.clock.phase("store"), threads.phase("fit", self.config.threads):
            blocks = encoded_blocks(
                store.fitted,
                source,
                found,
                metric=store.manifest.metric,
                first_id=store.manifest.next_id,
                failed=failed,
                clock=self.clock,
            )
            delete = np.array(differs.delete, np.int64)
            change(store, delete=delete, blocks=blocks, expected=len(found), conclude=conclude)
            with open_replayed(self.out, adopt=self.adopt) as after:
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
    return None if source.root is None else shown(placed(source.root))


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
