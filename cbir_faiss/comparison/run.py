"""A whole comparison: every split of a config, every combination; rows, neighbours, gallery and report on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base.options import parse_options
from cbir_faiss.comparison.combine import Plan, Skipped, pairs
from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.export import Exports
from cbir_faiss.comparison.gallery import make_gallery
from cbir_faiss.comparison.rows import Report, compare_split
from cbir_faiss.comparison.split import Split, split_of_vectors, splits
from cbir_faiss.comparison.timing import busier
from cbir_faiss.config import Config, Metrics, parse_choices
from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import MARGIN
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.report.pairs import differences
from cbir_faiss.report.recommend import recommend
from cbir_faiss.report.report import write_report
from cbir_faiss.report.row import Row, tell_apart

Section = str | Mapping[str, Any]


def run(
    config: Config,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    margin: float = MARGIN,
    max_ms: float | None = None,
    trec: bool = False,
    hdf5: bool = False,
) -> dict[str, Any]:
    """Run ``config`` into ``out``: ``results.json``, ``report.html``, ``raw/``. Returns what ``results.json`` holds.

    ``margin``: how much of the measure the recommended row may lose. ``max_ms``: how long it may take for a query.
    ``trec``, ``hdf5``: also write what ``export`` makes for trec_eval and for ann-benchmarks; what is returned then has
    sentences on it as ``exports``, and on what could not be written as ``unwritten``. Embeddings come from the cache
    (default: the user's) where they were computed before.

    Raises:
        InputError: nothing could be measured, or what is to be exported cannot be.
        Unsupported, MissingDependency: it cannot be exported.
    """
    plan = Plan(config.codecs, config.backends, config.rescore, config.metrics, config.threads, out / "raw")
    pairs(plan)  # a config that cannot work fails before hours of extraction
    exports = Exports(config, out, trec=trec, hdf5=hdf5)
    out.mkdir(parents=True, exist_ok=True)
    done = _Done(environment(config.threads), out, margin, max_ms)
    for split in splits(config, cache or default_cache(), progress):
        rows, others = compare_split(split, plan, report, done.skipped)
        done.add(split, rows, others)
        exports.write(split, rows)
    if not done.rows:
        first = done.skipped[0]
        raise InputError(f"no combination could be measured; {first.combination}: {first.reason}")
    write_report(out)
    return {**done.results, "exports": exports.said, "unwritten": exports.failed}


class _Done:
    """What is measured so far, on the disk after each split."""

    def __init__(self, where: dict[str, Any], out: Path, margin: float, max_ms: float | None) -> None:
        self._environment, self._out, self._margin, self._max_ms = where, out, margin, max_ms
        self.rows: list[Row] = []
        self.skipped: list[Skipped] = []
        self.results: dict[str, Any] = {}
        self._loads: list[float | None] = []
        self._galleries: list[dict[str, Any]] = []

    def add(self, split: Split, rows: list[Row], others: float | None) -> None:
        """The rows of one more split, and the cores that others kept busy while it was timed."""
        self.rows += rows
        tell_apart(self.rows)
        self._loads.append(others)
        advice = recommend(self.rows, self._margin, max_ms=self._max_ms) if self.rows else None
        self.results = {
            "environment": {**self._environment, **busier(self._loads)},
            "recommendation": advice.as_json() if advice else None,
            "differences": differences(self.rows) if self.rows else None,
            "rows": [row.as_json() for row in self.rows],
            "failed": [asdict(failure) for failure in split.failed],
            "skipped": [asdict(some) for some in self.skipped],
        }
        gallery = make_gallery(split, rows, self._out)
        self._galleries += [gallery] if gallery else []
        _write(self._out / "results.json", self.results)
        _write(self._out / "gallery.json", self._galleries)


def compare(
    *,
    vectors: Any,
    queries: Any,
    labels: Any = None,
    query_labels: Any = None,
    codecs: Sequence[Section] = ("raw",),
    backends: Sequence[Section] = ("faiss-flat",),
    rescore: Sequence[Section] = ("none",),
    k: Sequence[int] = (1, 5, 10, 50),
    truth: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of every valid combination over arrays that are there already, as ``results.json`` has them.

    Args:
        vectors: float ``(n, dim)``, the database. queries: float ``(m, dim)``.
        labels: one label a row (or a list of them), or None: then only ``knn_recall`` is measured.
        codecs, backends, rescore: names, or mappings as in a config: ``{"name": "lsh", "bits": [64, 256]}``.
        k: cut-offs. truth: ``{"metric": "cosine", "k": 10}``, the exact neighbours that ``knn_recall`` counts.

    Raises:
        InputError, DimensionMismatch: arrays that do not fit. ConfigError: a section that is wrong.
    """
    plan = Plan(
        parse_choices("codecs", _sections(codecs), "codecs"),
        parse_choices("backends", _sections(backends), "backends"),
        parse_choices("rescorers", _sections(rescore), "rescore"),
        parse_options(Metrics, {"k": list(k), **({"truth": dict(truth)} if truth else {})}),
        threads,
    )
    rows, _ = compare_split(split_of_vectors(vectors, queries, labels, query_labels), plan)
    return [row.as_json() for row in rows]


def _sections(sections: Sequence[Section]) -> list[Mapping[str, Any]]:
    return [{"name": section} if isinstance(section, str) else section for section in sections]


def _write(path: Path, content: Any) -> None:
    write_durably(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
