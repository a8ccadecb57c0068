"""Build one collection: extract, fit on a sample, then encode, index and store block by block.

The work happens in ``OUT.building`` and is renamed to ``OUT`` once: a build that fails or is killed leaves no
``OUT``.
Embeddings are cached by content as they are made: a build that was killed continues from there.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import threads
from cbir_faiss.base import Backend, Codec, Extractor, Plugin, Rescorer, Source
from cbir_faiss.config import Choice, Config
from cbir_faiss.errors import CbirError, CorruptCollection
from cbir_faiss.extraction import Extraction, Failure, Progress, extract
from cbir_faiss.labels import label_array
from cbir_faiss.options import parse_options
from cbir_faiss.registry import load
from cbir_faiss.storage.catalogue import document
from cbir_faiss.storage.files import sync, sync_tree
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import (
    CURRENT,
    Manifest,
    PluginEntry,
    SegmentEntry,
    commit,
    describe_files,
    read_manifest,
)
from cbir_faiss.storage.segment import Block, write_segment

FIT_ROWS = 100_000
BLOCK_ROWS = 20_000


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
        return asdict(self)


@dataclass(frozen=True)
class Pipeline:
    """The fitted plugins of a collection."""

    extractor: Extractor | None
    codec: Codec
    rescorer: Rescorer
    make_backend: Callable[[], Backend]
    embedding: str


def build(config: Config, out: Path, *, cache: Path | None, progress: Progress | None = None) -> BuildReport:
    """Build the collection that ``config`` describes at ``out``; a finished one of the same config is left alone.

    Raises:
        ConfigError: the config has more than one of something.
        CbirError: ``out`` exists and is something else, or another build is writing it.
    """
    config = config.single()
    began = time.perf_counter()
    report = _finished(config, out) if out.exists() else _build_aside(config, out, cache, progress)
    report.seconds["total"] = time.perf_counter() - began
    report.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


def blocks(source: Source, found: Extraction, pipeline: Pipeline, first_id: int, clock: _Clock) -> Iterator[Block]:
    """The extracted items as blocks of a segment: ids from ``first_id``, codes, packed columns, documents."""
    items = source.items()
    for start in range(0, len(found), BLOCK_ROWS):
        rows = found.rows[start : start + BLOCK_ROWS]
        columns = found.block(slice(start, start + len(rows)))
        with clock.phase("encode"):
            codes = pipeline.codec.encode(columns[pipeline.embedding])
            packed = pipeline.rescorer.pack(_renamed(columns, pipeline.embedding))
        yield np.arange(first_id + start, first_id + start + len(rows)), codes, packed, [
            document(items[int(row)]) for row in rows
        ]  # fmt: skip


def thaw(group: Any, entry: PluginEntry, folder: Path) -> Any:
    """The plugin of a manifest's entry; its path options are relative to ``folder``."""
    plugin: type[Plugin] = load(group, entry.name)
    options = parse_options(plugin.Options, entry.options, folder=str(folder))
    given = options.model_dump(mode="json")
    return plugin(**{key: given[key] for key in entry.options})


def backend_of(manifest: Manifest, folder: Path) -> Backend:
    """A new, empty backend of a collection, as wide as its codes."""
    backend: Backend = thaw("backends", manifest.backend, folder)
    return backend


def _finished(config: Config, out: Path) -> BuildReport:
    if not (out / CURRENT).exists():
        raise CbirError(f"{out}: exists and is not a collection; choose another place or remove it")
    manifest = read_manifest(out)
    if manifest.config != _plain(config):
        raise CbirError(f"{out}: was built from another config; choose another --out or remove it")
    return BuildReport(items=manifest.items, resumed_items=manifest.items)


def _build_aside(config: Config, out: Path, cache: Path | None, progress: Progress | None) -> BuildReport:
    aside = out.with_name(out.name + ".building")
    aside.mkdir(parents=True, exist_ok=True)
    with writer_lock(aside):
        try:
            for left in aside.iterdir():  # of a build that was killed; what it extracted is in the cache
                if left.name != "LOCK":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            report = _build_into(config, aside, cache, progress)
            aside.rename(out)
            sync(out.absolute().parent)
        except BaseException as error:
            if isinstance(error, Exception):
                shutil.rmtree(aside, ignore_errors=True)
            raise
    return report


def _build_into(config: Config, folder: Path, cache: Path | None, progress: Progress | None) -> BuildReport:
    clock = _Clock()
    with clock.phase("load"):
        source: Source = config.source.make()
        extractor: Extractor = config.extractors[0].make()
        source.items()
        extractor.load()
    with clock.phase("extract"):
        found = extract(source, extractor, cache=cache, progress=progress)
    with clock.phase("fit"), threads.phase("fit", config.threads):
        pipeline = _fit(config, source, extractor, found)
    backend = pipeline.make_backend()
    backend.create(pipeline.codec.width, pipeline.codec.kind)
    with clock.phase("store"), threads.phase("fit", config.threads):
        backend.train(pipeline.codec.encode(_sample(found)[1][pipeline.embedding]))
        _write(folder, source, found, pipeline, backend, clock)
        _commit(config, folder, extractor, found, pipeline, backend)
    backend.close()
    clock.seconds["store"] -= clock.seconds.get("encode", 0.0)
    return BuildReport(
        items=len(found),
        failed=found.failed,
        resumed_items=len(found) - found.computed if source.yields == "image" else 0,
        images_per_second=found.computed / found.seconds if found.computed else 0.0,
        seconds=clock.seconds,
    )


def _fit(config: Config, source: Source, extractor: Extractor, found: Extraction) -> Pipeline:
    rows, columns = _sample(found)
    embedding = next(iter(columns))
    items = source.items()
    labels = label_array([items[int(row)].labels for row in rows])
    codec: Codec = config.codecs[0].make()
    codec.fit(columns[embedding], labels)
    rescorer: Rescorer = config.rescore[0].make()
    rescorer.fit(_renamed(columns, embedding), labels)
    return Pipeline(extractor, codec, rescorer, config.backends[0].make, embedding)


def _sample(found: Extraction) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Source rows and columns of at most ``FIT_ROWS`` items, the same ones every time."""
    if len(found) <= FIT_ROWS:
        return found.rows, found.columns
    some = np.sort(np.random.default_rng(0).choice(len(found), FIT_ROWS, replace=False))
    return found.rows[some], found.block(some)


def _write(
    folder: Path, source: Source, found: Extraction, pipeline: Pipeline, backend: Backend, clock: _Clock
) -> None:
    content = blocks(source, found, pipeline, 0, clock)
    (folder / "segments").mkdir()
    write_segment(
        folder / "segments" / "1", len(found), _also_to(backend, content), None if backend.own_storage else backend
    )


def _also_to(backend: Backend, content: Iterator[Block]) -> Iterator[Block]:
    """Blocks on their way to the segment; an engine with its own storage takes them too, documents as payload."""
    for block in content:
        if backend.own_storage:
            backend.upsert(block[0], block[1], block[3])
        yield block
    if backend.own_storage:
        backend.flush()


def _commit(
    config: Config, folder: Path, extractor: Extractor, found: Extraction, pipeline: Pipeline, backend: Backend
) -> None:
    (folder / "extractor").mkdir()
    name, options = extractor.freeze(folder / "extractor")
    pipeline.codec.save(folder / "codec.npz")
    pipeline.rescorer.save(folder / "rescore.npz")
    sync_tree(folder)
    files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "LOCK"]
    manifest = Manifest(
        config=_plain(config),
        extractor=PluginEntry(name=name, options=options),
        fingerprint=extractor.fingerprint(),
        codec=_entry(config.codecs[0]),
        backend=_entry(config.backends[0]),
        rescore=_entry(config.rescore[0]),
        embedding=pipeline.embedding,
        dim=int(pipeline.codec.dim or 0),
        bits=pipeline.codec.bits,
        next_id=len(found),
        failed=len(found.failed),
        segments=(SegmentEntry(name="1", rows=len(found), live_rows=len(found)),),
        files=describe_files(folder, files),
    )
    commit(folder, manifest)


def _entry(choice: Choice) -> PluginEntry:
    options = dict(choice.options)
    if options.get("path"):  # an engine's own place: found again from wherever the collection is opened
        options["path"] = str(Path(options["path"]).absolute())
    return PluginEntry(name=choice.name, options=options)


def _plain(config: Config) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(config.document))
    except TypeError as error:
        raise CorruptCollection(f"{config.file}: not plain YAML: {error}") from error
    return plain


def _renamed(columns: dict[str, NDArray[Any]], embedding: str) -> dict[str, NDArray[Any]]:
    return {**columns, "embedding": columns[embedding]}


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)


class _Phase:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._began
        self._clock.seconds[self._name] = self._clock.seconds.get(self._name, 0.0) + spent
