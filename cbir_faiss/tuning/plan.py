"""What a build will take, before anything is built: by small trials of the same parts, and what grows of them.

Two collections of a few thousand random vectors of the same width are built from the config's codec, backend and
rescorer. What differs between them grows with the items; what does not is there once. What an index has once may be
larger at scale (more lists): ``sizes`` says so of the index alone, and a third trial is of its time.
"""

from __future__ import annotations

import math
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.base import Backend, Extractor, Source
from cbir_faiss.collection.build import BuildReport, build
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.config import Choice, Config, load_config
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.pipeline.fill import FILL_ROWS, fill
from cbir_faiss.pipeline.rules import check_combination
from cbir_faiss.storage.catalogue import as_json, document
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.manifest import Manifest, read_manifest
from cbir_faiss.tuning.sizes import FULL, folder_bytes, index_bytes, learnt_from
from cbir_faiss.types import Floats, Kind

SIZES = (4_000, 16_000, 48_000)
"""Items of the smaller trial: the first with which the parts can learn. The other is twice as large."""
_EXTRACTED = 48  # items of the source, to see how long one takes
_TELLING, _UNLIKE = 1 << 18, 1.5  # bytes, and times those of its file, from which on memory is not what the file is
_HELD = 3  # copies of a block, or of the training sample, while it is worked on
_NAME = "plan"  # of the collection, and so of its table in an engine
_STEEPEST = 1.25  # exponent of the time of an index in its items


@dataclass(frozen=True)
class Plan:
    """What a build of so many ``items`` takes.

    index_bytes: the index's files, or what its engine stores. resident_bytes: memory of an opened collection that
    searches: the index and what codec and rescorer have learnt; vectors that are rescored are mapped, and not in it.
    disk_bytes: all files. build_peak_bytes: memory of the building process, the libraries included. build_seconds: on
    this machine, extraction included where the source is there; None: not known, for an engine elsewhere builds it.
    """

    items: int
    index_bytes: int
    resident_bytes: int
    disk_bytes: int
    build_peak_bytes: int
    build_seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir plan --json`` prints it."""
        return asdict(self)


def plan(config: Config | str | Path, items: int, dim: int | None = None) -> Plan:
    """What a build of what ``config`` describes takes, for so many ``items``.

    dim: the width of the embeddings; None: as the extractor makes them of the source's items.

    Raises:
        ConfigError: more than one of something, or parts that do not go together. InputError: fewer than one item, or a
        source that cannot be read although ``dim`` is not given.
    """
    parsed = (config if isinstance(config, Config) else load_config(config)).single()
    if items < 1 or (dim is not None and dim < 1):
        raise InputError(f"a plan is for at least one item of at least one dimension, got {items} and {dim}")
    codec, backend, rescore = parsed.codecs[0], parsed.backends[0], parsed.rescore[0]
    check_combination(codec, backend, rescore)
    with (
        tempfile.TemporaryDirectory(prefix="cbir-plan-") as place,
        writing_to(Path(place)),
        threads.phase("fit", parsed.threads),
    ):
        given = _Given.of(parsed, dim, Path(place))
        if backend.plugin().own_storage and backend.options.get("path") is None:
            return _Server(parsed, given, Path(place)).plan(items)
        return _Trials(parsed, given, Path(place)).planned(items)[0]


# --------------------------------------------------------------------------------------------------- what is given


@dataclass(frozen=True)
class _Given:
    """What is known of the items: the width of an embedding, some documents, the bytes of other columns that are kept,
    seconds to extract one, and bytes of the frozen extractor."""

    dim: int
    documents: list[dict[str, Any]]
    side_bytes: int = 0
    seconds: float = 0.0
    frozen_bytes: int = 0

    @classmethod
    def of(cls, config: Config, dim: int | None, place: Path) -> _Given:
        try:
            source: Source = config.source.make()
            extractor: Extractor = config.extractors[0].make()
            return cls._seen(config, source, extractor, dim, place)
        except CbirError:
            if dim is None:
                raise
        return cls(dim, [{"path": f"{i:09d}.jpg", "label": f"class {i % 10}"} for i in range(SIZES[0])])

    @classmethod
    def _seen(cls, config: Config, source: Source, extractor: Extractor, dim: int | None, place: Path) -> _Given:
        listed = source.items()
        documents = [document(item) for item in listed[: 2 * SIZES[0]]]
        extractor.load()
        began = time.perf_counter()
        some = np.arange(min(len(listed), _EXTRACTED))
        found = extract(source, extractor, cache=None, rows=some)
        took = time.perf_counter() - began
        if not len(found):
            raise InputError(f"{found.failed[0].path}: {found.failed[0].reason}; give the width (--dim)")
        columns = found.columns
        (place / "extractor").mkdir()
        extractor.freeze(place / "extractor")
        kept = [name for name in _side_columns(config.rescore[0]) if name in columns]
        return cls(
            dim or columns[found.names[0]].shape[1],
            documents,
            sum(columns[name].nbytes // len(found) for name in kept),
            0.0 if source.yields == "vector" else took / len(some),
            folder_bytes(place / "extractor"),
        )


def _side_columns(rescore: Choice) -> list[str]:
    """Columns that the rescorer keeps, and random vectors cannot stand for."""
    return [name for name in rescore.plugin().needs_items if name not in ("code", "embedding")]


# ------------------------------------------------------------------------------------------------------------ trials


@dataclass(frozen=True)
class _Built:
    """A small collection: bytes by part, and seconds by phase."""

    items: int
    folder: Path
    manifest: Manifest
    report: BuildReport
    index: int
    disk: int

    @classmethod
    def of(cls, folder: Path, report: BuildReport, engine: int | None) -> _Built:
        manifest = read_manifest(folder)
        own = sum(entry.size for name, entry in manifest.files.items() if "/backend/" in name)
        disk = folder_bytes(folder) + (engine or 0)
        return cls(manifest.items, folder, manifest, report, own if engine is None else engine, disk)

    def state(self, name: str) -> int:
        """Bytes in memory of what codec or rescorer has learnt."""
        with np.load(self.folder / name) as arrays:
            return sum(arrays[key].nbytes for key in arrays.files)


@dataclass(frozen=True)
class _Scale:
    """What the structure of so many items takes: seconds of ``training`` it, and of ``filling`` in one item."""

    training: float = 0.0
    filling: float = 0.0


class _Trials:
    """Small builds, and what follows from them."""

    def __init__(self, config: Config, given: _Given, place: Path) -> None:
        self._config, self._given, self._place = config, given, place
        self._choice = config.backends[0]

    def planned(self, items: int) -> tuple[Plan, int]:
        """The plan, and how many floats or bits an item has in the index."""
        small, large = self._pair()
        try:
            return self._plan(items, small, large), large.manifest.width
        finally:
            self._remove_engine()

    def _plan(self, items: int, small: _Built, large: _Built) -> Plan:
        scale, index = self._at_scale(items, small.items), self._index(items, small, large)
        beyond = index - _straight(items, small.items, small.index, large.items, large.index)
        disk = _straight(items, small.items, small.disk, large.items, large.disk)
        disk += beyond * (1 + (large.manifest.training is not None))
        disk += items * self._given.side_bytes + self._given.frozen_bytes
        learnt = large.state("codec.npz") + large.state("rescore.npz")
        return Plan(
            items,
            round(index),
            round(self._resident(index, small, large) + learnt),
            round(disk),
            round(self.peak(items, index)),
            self._seconds(items, small, large, scale),
        )

    def _pair(self) -> tuple[_Built, _Built]:
        for n in SIZES:
            try:
                return self._build(n), self._build(2 * n)
            except InputError:  # too few to learn from
                self._remove_engine()
                if n == SIZES[-1]:
                    raise
        raise AssertionError

    def _build(self, n: int) -> _Built:
        folder = self._place / str(n) / f"{_NAME}.cbir"
        vectors, documents = self._place / "x.npy", self._place / "x.jsonl"
        np.save(vectors, self._vectors(n))
        with documents.open("w") as file:
            file.writelines(as_json(self._document(i)) + "\n" for i in range(n))
        plugin, keep = self._choice.plugin(), _side_columns(self._config.rescore[0])
        options = self._few_lists
        config = replace(
            self._config,
            source=Choice("sources", "vectors", {"file": str(vectors), "documents": str(documents)}),
            extractors=(Choice("extractors", "vectors"),),
            backends=(replace(self._choice, options=options),),
            rescore=(Choice("rescorers", "none"),) if keep else self._config.rescore,
            engine=None,
            document={},
        )
        self._remove_engine()
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        report = build(config, folder, cache=None)
        return _Built.of(folder, report, self._engine_bytes(options) if plugin.own_storage else None)

    def _vectors(self, n: int) -> Floats:
        """Around as many centres as an index has lists at most, so that its lists are about as long as they will be."""
        rng, dim = np.random.default_rng(0), self._given.dim
        centres = rng.standard_normal((max(1, n // FULL), dim), np.float32)
        return centres[rng.integers(0, len(centres), n)] + np.float32(0.3) * rng.standard_normal((n, dim), np.float32)

    def _document(self, i: int) -> dict[str, Any]:
        """Documents as they are, again and again, under paths of their own."""
        known = self._given.documents
        told = known[i % len(known)]
        return told if i < len(known) else {**told, "path": f"{str(told.get('path', ''))[:-6]}{i:06d}"}

    # -- an engine of this process

    @cached_property
    def _options(self) -> dict[str, Any]:
        options = dict(self._choice.options)
        return options | {"path": str(self._place / "engine")} if self._choice.plugin().own_storage else options

    @cached_property
    def _few_lists(self) -> dict[str, Any]:
        """Options of an index whose lists the smallest trial fills."""
        plugin = self._choice.plugin()
        lists = plugin.lists(self._options, SIZES[0])
        return dict(plugin.with_lists(self._options, min(lists, SIZES[0] // FULL)) if lists else self._options)

    def _engine_bytes(self, options: Mapping[str, Any]) -> int:
        backend: Backend = self._choice.make(**self._choice.plugin().named(options, _NAME))
        try:
            return backend.disk_bytes() or 0
        finally:
            backend.close()

    def _remove_engine(self) -> None:
        shutil.rmtree(self._place / "engine", ignore_errors=True)

    # -- at scale

    def _at_scale(self, items: int, n: int) -> _Scale:
        plugin = self._choice.plugin()
        if plugin.own_storage:
            return _Scale()
        lists = plugin.lists(self._options, items)
        options = plugin.with_lists(self._options, lists)
        learning, rows = max(n, 2 * lists), max(n, FULL * lists)
        codes, kind = self._codes(rows), self._config.codecs[0].plugin().kind
        width = codes.shape[1] * (8 if kind == "binary" else 1)

        def made(sample: int) -> tuple[Backend, float]:
            backend: Backend = self._choice.make(**options)
            began = time.perf_counter()
            backend.create(width, kind)
            if backend.needs_training:
                backend.train(codes[:sample])
            return backend, time.perf_counter() - began

        fewer = learning * 3 // 4
        first, first_seconds = made(fewer)
        first.close()
        backend, seconds = made(learning)
        try:
            began = time.perf_counter()
            fill(backend, _parts(codes, documents=not backend.filters_ids), kind=kind, width=width)
            filling = time.perf_counter() - began
        finally:
            backend.close()
        more = max(0.0, seconds - first_seconds) / (learning - fewer)
        training = seconds + more * max(0, min(items, TRAINING_ROWS) - learning)
        return _Scale(training if backend.needs_training else 0.0, filling / rows)

    def _index(self, items: int, small: _Built, large: _Built) -> float:
        """Bytes of the index: on the line through those that were built, unless it is to have more lists than they."""
        plugin, n = self._choice.plugin(), small.items
        lists = plugin.lists(self._options, items)
        if plugin.own_storage or plugin.with_lists(self._options, lists) == self._few_lists:
            return _straight(items, n, small.index, large.items, large.index)
        codes = self._codes(learnt_from(self._choice, items, n))
        kind, place = self._config.codecs[0].plugin().kind, self._place / "sizes"
        sizes = index_bytes(self._choice, codes, kind, items, place, rows=n, documents=self._document)
        return sizes.per_item(items) * items

    def _codes(self, n: int) -> Any:
        x = self._vectors(n)
        labels = np.arange(n) % 10
        codec = self._config.codecs[0].make().fit(x, labels)
        return codec.encode(x)

    def _resident(self, index: float, small: _Built, large: _Built) -> float:
        """What an index of so many bytes takes in memory: as much as its file, but for hash tables, which take several
        times as much, and what a small one takes beyond its file."""
        if self._choice.plugin().own_storage:
            return index
        query, name = self._codes(large.items)[:1], self._choice.name
        options = self._few_lists
        with ResidentMeter() as meter:
            taken = [
                meter.measure(name, options, folder, query)
                for built in (small, large)
                for folder in built.folder.glob("segments/*/backend")
            ]
        if len(taken) != 2 or taken[0] is None or taken[1] is None:
            return index
        grown, file = taken[1] - taken[0], large.index - small.index
        times = grown / file if grown > max(_TELLING, _UNLIKE * file) else 1.0
        return index * times + max(0.0, taken[1] - large.index * times)

    def peak(self, items: int, index: float) -> float:
        """Memory now, and what is held at once: the training sample, or a block on its way and the index."""
        row = 4 * self._given.dim
        learning = min(items, TRAINING_ROWS) * row * _HELD
        filling = min(items, FILL_ROWS) * row * _HELD
        return _resident() + max(learning, filling + index)

    def _seconds(self, items: int, small: _Built, large: _Built, scale: _Scale) -> float:
        took = large.report.seconds
        before = small.report.seconds
        steep = math.log2(max(took["store"], 1e-6) / max(before["store"], 1e-6))
        growth = items / large.items
        storing = took["store"] * growth * max(1.0, growth) ** (min(max(steep, 1.0), _STEEPEST) - 1)
        total: float = (
            items * self._given.seconds
            + took["fit"] * min(items, TRAINING_ROWS) / large.items
            + took["encode"] * growth
            + max(storing, items * scale.filling)
            + scale.training
        )
        return total


class _Server:
    """An engine elsewhere: nothing is tried there, so that this is arithmetic on what it says to keep of an item."""

    def __init__(self, config: Config, given: _Given, place: Path) -> None:
        self._given, self._choice = given, config.backends[0]
        self._kind: Kind = config.codecs[0].plugin().kind
        local = replace(config, backends=(Choice("backends", _FLAT[self._kind]),))
        self._trials = _Trials(local, given, place)

    def plan(self, items: int) -> Plan:
        """As of a flat index here, which is not there then, and what the engine keeps."""
        here, width = self._trials.planned(items)
        plugin: type[Backend] = self._choice.plugin()
        of_each = plugin.item_bytes(self._choice.options, width, self._kind)
        documents = sum(len(as_json(told)) for told in self._given.documents) / len(self._given.documents)
        there = items * (of_each.disk + of_each.copies * documents)
        return Plan(
            items,
            round(there),
            round(items * of_each.memory),
            round(here.disk_bytes - here.index_bytes + there),
            round(self._trials.peak(items, 0)),
            None,
        )


_FLAT = {"float": "faiss-flat", "binary": "faiss-binary-flat"}


def _parts(codes: Any, documents: bool) -> Iterator[Any]:
    for start in range(0, len(codes), FILL_ROWS):
        part = codes[start : start + FILL_ROWS]
        ids = np.arange(start, start + len(part))
        yield ids, part, [{"path": str(i)} for i in ids.tolist()] if documents else None


def _straight(n: int, at: int, low: float, further: int, high: float) -> float:
    """On the line through two sizes, at a third; of less than nothing the smaller one's share."""
    found = low + (n - at) * (high - low) / (further - at)
    return max(found, low * min(1.0, n / at) * 0.5)


def _resident() -> int:
    """Bytes of memory that this process has now, its libraries included."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
