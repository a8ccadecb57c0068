"""A whole comparison: every split of a config, every combination; rows, neighbours, gallery and report on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base.options import parse_options
from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.gallery import make_gallery
from cbir_faiss.comparison.rows import Plan, Report, Row, Skipped, combinations, compare_split
from cbir_faiss.comparison.split import split_of_vectors, splits
from cbir_faiss.config import Config, Metrics, parse_choices
from cbir_faiss.errors import InputError
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.report.report import write_report

Section = str | Mapping[str, Any]


def run(
    config: Config,
    out: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run ``config`` into ``out``: ``results.json``, ``report.html``, ``raw/``. Returns what ``results.json`` holds.

    Embeddings come from the cache (default: the user's) where they were computed before.
    """
    plan = Plan(config.codecs, config.backends, config.rescore, config.metrics, config.threads, out / "raw")
    combinations(plan)  # a config that cannot work fails before hours of extraction
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"environment": environment(config.threads), "rows": [], "failed": [], "skipped": []}
    skipped: list[Skipped] = []
    galleries = []
    for split in splits(config, cache or default_cache(), progress):
        rows = list(compare_split(split, plan, report, skipped))
        results["rows"] += rows
        results["failed"] = [asdict(failure) for failure in split.failed]
        results["skipped"] = [asdict(some) for some in skipped]
        gallery = make_gallery(split, rows, out) if rows else None
        galleries += [gallery] if gallery else []
        _write(out / "results.json", results)
        _write(out / "gallery.json", galleries)
    if not results["rows"]:
        raise InputError(f"no combination could be measured; {skipped[0].combination}: {skipped[0].reason}")
    write_report(out)
    return results


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
) -> list[Row]:
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
    return list(compare_split(split_of_vectors(vectors, queries, labels, query_labels), plan))


def _sections(sections: Sequence[Section]) -> list[Mapping[str, Any]]:
    return [{"name": section} if isinstance(section, str) else section for section in sections]


def _write(path: Path, content: Any) -> None:
    write_durably(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
