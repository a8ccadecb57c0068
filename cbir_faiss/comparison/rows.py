"""Measure every valid combination of codec, backend, search options and rescorer on one split: one row each.

Neighbours, tie histograms and times are stored raw; the measures are computed from them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Backend, Codec, Rescorer
from cbir_faiss.base.labels import label_array
from cbir_faiss.comparison.evaluator import Evaluator, Ranking
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.comparison.split import Split
from cbir_faiss.config import Choice, Metrics
from cbir_faiss.errors import ConfigError, InputError, MissingDependency, Unsupported
from cbir_faiss.measures.code_statistics import code_health
from cbir_faiss.types import Codes, Columns, Floats, Hits

Row = dict[str, Any]
Report = Callable[[str], None]
UPSERT_ROWS = 50_000
TRAIN_ROWS = 100_000
TIMED_QUERIES = 500
TIMED_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """What to run on a split."""

    codecs: Sequence[Choice]
    backends: Sequence[Choice]
    rescore: Sequence[Choice]
    metrics: Metrics
    threads: int | None = None
    raw: Path | None = None
    """Folder for neighbours, histograms and times; None stores none."""


@dataclass(frozen=True)
class Coded:
    """A split in the codes of one fitted codec."""

    choice: Choice
    codec: Codec
    items: Codes
    queries: Codes
    fit_seconds: float
    encode_seconds: float

    def search_columns(self, split: Split, rows: slice, needed: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The columns of some queries, made from their embeddings as a search makes them: ``code``, and ``needed``."""
        columns = {name: values[rows] for name, values in split.queries.columns.items()}
        embedding = columns["embedding"] = split.queries.embedding[rows]
        columns["code"] = self.codec.encode(embedding)
        if "projection" in needed:
            columns["projection"] = self.codec.project(embedding)
        return columns


def combinations(plan: Plan) -> list[tuple[Choice, Choice]]:
    """The pairs of codec and backend that go together, in the order of the config.

    Raises:
        ConfigError: a codec or a backend has no partner.
    """
    pairs = [
        (codec, backend)
        for codec, backend in itertools.product(plan.codecs, plan.backends)
        if codec.plugin().kind in backend.plugin().kinds(backend.options)
    ]
    for section, place, choices in (("codecs", 0, plan.codecs), ("backends", 1, plan.backends)):
        for choice in choices:
            if choice not in [pair[place] for pair in pairs]:
                other = "backend" if place == 0 else "codec"
                raise ConfigError(
                    f"'{choice.name}' has no {other} to go with: one takes floats, the other codes", path=section
                )
    return pairs


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot be measured on this data (more bits than dimensions, say), and why."""

    title: str
    combination: str
    reason: str


def compare_split(
    split: Split, plan: Plan, report: Report | None = None, skipped: list[Skipped] | None = None
) -> Iterator[Row]:
    """Rows of every combination of the plan on ``split``, as they are measured.

    Combinations that cannot be are added to ``skipped``; where that is None, the first of them raises its error.
    """
    pairs = combinations(plan)
    with threads.phase("search", plan.threads):
        evaluate = Evaluator(split, plan.metrics)
    with ResidentMeter() as meter:
        for codec_choice, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            with _skipping(skipped, split, describe(codec_choice)):
                coded = _encode(split, codec_choice, plan.threads)
                for _, backend_choice in group:
                    name = f"{describe(codec_choice)} in {describe(backend_choice)}"
                    if report:
                        report(f"{split.title} {name}")
                    with _skipping(skipped, split, name):
                        yield from _compare_backend(split, coded, backend_choice, plan, evaluate, meter, skipped)


@contextmanager
def _skipping(skipped: list[Skipped] | None, split: Split, combination: str) -> Iterator[None]:
    try:
        yield
    except (InputError, ConfigError, Unsupported, MissingDependency) as error:
        if skipped is None:
            raise
        skipped.append(Skipped(split.title, combination, str(error)))


def describe(choice: Choice) -> str:
    """Name and chosen options, short: ``lsh bits=64``."""
    return " ".join([choice.name, *(f"{key}={value}" for key, value in choice.options.items())])


def _encode(split: Split, choice: Choice, limit: int | None) -> Coded:
    codec: Codec = choice.make()
    with threads.phase("fit", limit):
        began = time.perf_counter()
        codec.fit(split.items.embedding, label_array(split.items.labels))
        fitted = time.perf_counter()
        items = _blockwise(codec.encode, split.items.embedding)
        encoded = time.perf_counter()
        queries = _blockwise(codec.encode, split.queries.embedding)
    return Coded(choice, codec, items, queries, fitted - began, encoded - fitted)


def _blockwise(encode: Callable[[Floats], Codes], x: Floats) -> Codes:
    return np.concatenate([encode(x[start : start + UPSERT_ROWS]) for start in range(0, len(x), UPSERT_ROWS)])


def _compare_backend(
    split: Split,
    coded: Coded,
    choice: Choice,
    plan: Plan,
    evaluate: Evaluator,
    meter: ResidentMeter,
    skipped: list[Skipped] | None,
) -> Iterator[Row]:
    slug = _slug(split, coded.choice, choice)
    options = choice.plugin().scoped(choice.options, slug)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cbir-") as scratch:
        backend: Backend = choice.make(**options)
        try:
            seconds = {"extract": split.extract_seconds, "fit": coded.fit_seconds, "encode": coded.encode_seconds}
            seconds["build"] = _build(backend, coded, split, plan.threads)
            sizes = _sizes(backend, choice, coded, Path(scratch), meter)
            health = code_health(coded.items, coded.codec.bits) if coded.codec.bits else None
            for rescore, search in itertools.product(plan.rescore, choice.searches):
                rescorer: Rescorer = rescore.make()
                if "code" in rescorer.needs_items and coded.codec.kind != "binary":
                    continue
                name = f"{describe(coded.choice)} in {describe(choice)} with {describe(rescore)}"
                with _skipping(skipped, split, name):
                    columns = {**split.items.columns, "embedding": split.items.embedding}
                    stored = rescorer.fit(columns, label_array(split.items.labels)).pack(columns)
                    stage = _Stage(split, coded, backend, search, rescorer, stored)
                    row = _row(split, coded, choice, backend, rescore, rescorer, search)
                    row["bytes"] = sizes | {"rescore": _rescore_bytes(rescorer, stored, len(split.items))}
                    row["seconds"] = seconds
                    row["codes"] = health
                    _measure(row, stage, evaluate, plan, f"{slug}-{_digest([rescore.name, rescore.options, search])}")
                    rows.append(row)
        finally:
            backend.close()
    if backend.in_process:  # an engine lets nobody else in while it is open here
        resident = meter.measure(choice.name, options, None, coded.queries[:1])
        for row in rows:
            row["bytes"]["resident"] = resident
    yield from rows


def _build(backend: Backend, coded: Coded, split: Split, limit: int | None) -> float:
    began = time.perf_counter()
    backend.create(coded.codec.width, coded.codec.kind)
    with threads.phase("fit", limit):
        backend.train(_sample(coded.items, TRAIN_ROWS))
        for start in range(0, len(coded.items), UPSERT_ROWS):
            codes = coded.items[start : start + UPSERT_ROWS]
            backend.upsert(np.arange(start, start + len(codes)), codes, _documents(backend, split, start, len(codes)))
        backend.flush()
    return time.perf_counter() - began


def _documents(backend: Backend, split: Split, start: int, n: int) -> list[dict[str, Any]] | None:
    """A database holds the labels too, as a user's would; a file index of a comparison needs no payload."""
    if not backend.own_storage:
        return None
    return [{"label": label[0] if len(label) == 1 else list(label)} for label in split.items.labels[start : start + n]]


def _sample(codes: Codes, most: int) -> Codes:
    if len(codes) <= most:
        return codes
    return codes[np.sort(np.random.default_rng(0).choice(len(codes), most, replace=False))]


def _sizes(
    backend: Backend, choice: Choice, coded: Coded, scratch: Path, meter: ResidentMeter
) -> dict[str, int | None]:
    n, codec = len(coded.items), coded.codec
    bits = backend.code_bits or (codec.bits and codec.width) or 32 * codec.width
    coded.codec.save(scratch / "codec.npz")
    sizes: dict[str, int | None] = {
        "codes": n * -(-bits // 8),
        "codec_state": (scratch / "codec.npz").stat().st_size if codec.state else 0,
    }
    if backend.own_storage:
        return sizes | {"backend_file": backend.disk_bytes(), "resident": None}
    folder = scratch / "backend"
    backend.save(folder)
    sizes["backend_file"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    resident = meter.measure(choice.name, choice.options, folder, coded.queries[:1])
    state = sum(array.nbytes for array in codec.state.values())
    return sizes | {"resident": None if resident is None else resident + state}


def _rescore_bytes(rescorer: Rescorer, stored: Columns, items: int) -> int:
    widths = {name: values.nbytes // max(1, items) for name, values in stored.items()}
    return rescorer.resident_bytes(items, widths | {"code": 0})  # the index holds the codes already


@dataclass(frozen=True)
class _Stage:
    """The search of one row: from embeddings to final hits, as a user would run it."""

    split: Split
    coded: Coded
    backend: Backend
    search: Mapping[str, Any]
    rescorer: Rescorer
    stored: Columns

    def run(self, rows: slice, k: int) -> Hits:
        options = self.options
        if self.rescorer.name == "none":
            return self.backend.search(self.coded.codec.encode(self.split.queries.embedding[rows]), k, options=options)
        columns = self.coded.search_columns(self.split, rows, self.rescorer.needs_queries)

        def first(codes: Codes, depth: int) -> Hits:
            return self.backend.search(codes, depth, options=options)

        return self.rescorer.search(columns, k, len(self.coded.items), first, self._fetch)

    @cached_property
    def options(self) -> Any:
        return self.backend.SearchOptions(**self.search) if self.search else None

    def _fetch(self, ids: NDArray[np.int64], column: str) -> NDArray[Any]:
        return self.coded.items[ids] if column == "code" else self.stored[column][ids]


def _measure(row: Row, stage: _Stage, evaluate: Evaluator, plan: Plan, name: str) -> None:
    """Fill in metrics, latency and curves; store what they come from."""
    depth = evaluate.depth
    with threads.phase("search", plan.threads):
        times = _single_query_times(stage, depth)
        began = time.perf_counter()
        hits = stage.run(slice(None), depth)
        row["qps"] = len(hits) / (time.perf_counter() - began)
    ranking = Ranking(hits)
    if stage.rescorer.name == "none" and stage.backend.is_exact(stage.options):
        ranking = Ranking.of(hits, stage.backend, stage.coded.items, stage.coded.queries)
    row["metrics"], row["curves"], raw = evaluate(ranking)
    row["latency_ms"] = {f"p{p}": float(np.percentile(times, p)) * 1000 for p in (50, 95, 99)}
    row["raw"] = None
    if plan.raw is not None:
        plan.raw.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"ids": hits.ids, "distances": hits.distances, "seconds": times, **raw}
        np.savez(plan.raw / f"{name}.npz", **arrays)
        row["raw"] = f"{plan.raw.name}/{name}.npz"


def _single_query_times(stage: _Stage, k: int) -> NDArray[np.float64]:
    """Seconds of one query at a time, from embedding to hits, bounded in number and in total."""
    n, times = len(stage.split.queries), []
    for i in range(min(10, n)):
        stage.run(slice(i, i + 1), k)
    for i in range(min(TIMED_QUERIES, n)):
        began = time.perf_counter()
        stage.run(slice(i, i + 1), k)
        times.append(time.perf_counter() - began)
        if sum(times) > TIMED_SECONDS and i >= 20:
            break
    return np.array(times)


def _row(
    split: Split,
    coded: Coded,
    choice: Choice,
    backend: Backend,
    rescore: Choice,
    rescorer: Rescorer,
    search: Mapping[str, Any],
) -> Row:
    return {
        "source": split.source,
        "extractor": split.extractor,
        "codec": coded.choice.name,
        "bits": coded.codec.bits or backend.code_bits,
        "backend": choice.name,
        "metric": backend.metric,
        "rescore": rescore.name,
        "title": split.title,
        "options": {
            "extractor": split.extractor_options,
            "codec": coded.codec.options.model_dump(mode="json"),
            "backend": choice.options,
            "rescore": rescorer.options.model_dump(mode="json"),
            "search": dict(search),
        },
        "chosen": {"rescore": rescore.options},  # without the defaults: what tells the rows of a sweep apart
        "exact": backend.is_exact(backend.SearchOptions(**search)),
        "dim": int(split.items.embedding.shape[1]),
        "items": len(split.items),
        "queries": len(split.queries),
        "failed": len(split.failed),
    }


def _slug(split: Split, codec: Choice, backend: Choice) -> str:
    bits = str(codec.options.get("bits", ""))
    words = "-".join([split.title, codec.name + bits, backend.name])
    digest = _digest([split.extractor, split.extractor_options, codec.options, backend.options])
    return re.sub(r"[^\w]+", "-", words) + "-" + digest


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
