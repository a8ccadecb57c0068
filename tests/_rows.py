"""Rows of a comparison for tests: made up, or measured without an engine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.evaluator import Evaluator, Ranking
from cbir_faiss.comparison.gallery import make_gallery
from cbir_faiss.comparison.split import splits
from cbir_faiss.config import Config
from cbir_faiss.measures.code_statistics import code_health
from cbir_faiss.report.pairs import differences
from cbir_faiss.report.recommend import recommend
from cbir_faiss.report.row import Row
from cbir_faiss.types import Hits


def made_up(
    codec: str = "itq", bits: int | None = 64, values: Any = 0.8, memory: float | None = 10.0, **changed: Any
) -> Row:
    """A row with the per-query ``values`` of map@5 (or one for each of 50 queries), and bytes an item of memory."""
    per_query: NDArray[np.float64] = np.full(50, values) if isinstance(values, float) else np.asarray(values)
    disk = changed.pop("disk", memory)
    p50 = changed.pop("p50", 1.0)
    told = {
        "source": "folder", "extractor": "hog", "codec": codec, "bits": bits, "backend": "faiss-flat",
        "metric": "l2" if bits is None else "hamming", "rescore": "none", "title": "hog",
        "options": {"extractor": {}, "codec": {}, "backend": {}, "rescore": {"candidates": 100}, "search": {}},
        "exact": True, "dim": 320, "items": 10, "queries": len(per_query),
        "bytes": {"codes": 80, "rescore": 0, "memory_per_item": memory, "disk_per_item": disk},
        "metrics": {"map@5": float(per_query.mean()), "map@5_ci95": [0.1, 0.9], "knn_recall@10": 0.5},
        "latency_ms": {"p50": p50, "p95": 2.0, "p99": 3.0, "k": 10, "threads": 1, "rounds": [p50]},
        "qps": 100.0, "qps_threads": 2, "values": {"map@5": per_query},
    }  # fmt: skip
    return Row(**{**told, **changed})


def raw(values: Any = 0.8, memory: float | None = 5120.0, **changed: Any) -> Row:
    """A row of raw floats, searched exactly."""
    return made_up("raw", None, values, memory, **changed)


def comparison(config: Config, out: Path) -> list[Row]:
    """Every codec of ``config`` measured by brute force; hits in ``out/raw``, results and gallery in ``out``."""
    (out / "raw").mkdir(parents=True)
    rows = []
    (split,) = splits(config, None)
    evaluate = Evaluator(split, config.metrics)
    for i, choice in enumerate(config.codecs):
        codec = choice.make()
        codec.fit(split.items.embedding, None)
        items, queries = codec.encode(split.items.embedding), codec.encode(split.queries.embedding)
        distances = _distances(items, queries)
        order = np.argsort(distances, axis=1, kind="stable")[:, : evaluate.depth]
        hits = Hits(order, np.take_along_axis(distances, order, axis=1))
        known = {"codes": (items, queries)} if codec.bits else {"floats": (items, queries, "l2")}
        metrics, curves, _, values = evaluate(Ranking(hits, **known), "cosine")
        np.savez(out / "raw" / f"{i}.npz", ids=hits.ids)
        size = float(items[0].nbytes)
        row = raw(0.0, size) if codec.bits is None else made_up(choice.name, codec.bits, 0.0, size)
        row.items, row.queries, row.failed, row.title = len(items), len(queries), len(split.failed), split.title
        row.bytes["codes"] = items.nbytes
        row.codes = code_health(items, codec.bits) if codec.bits else None
        row.metrics, row.curves, row.values, row.raw = metrics, curves, values, f"raw/{i}.npz"
        row.classes, row.worst = evaluate.by_query(values["map@5"])
        row.seconds = {"extract": 0.1, "fit": 0.1, "encode": 0.1, "build": 0.1}
        rows.append(row)
    advice = recommend(rows)
    gallery = make_gallery(split, rows, out)
    results = {
        "environment": environment(),
        "rows": [row.as_json() for row in rows],
        "failed": [asdict(failure) for failure in split.failed],
        "skipped": [],
        "recommendation": advice.as_json() if advice else None,
        "differences": differences(rows),
    }
    (out / "results.json").write_text(json.dumps(results, allow_nan=False))
    (out / "gallery.json").write_text(json.dumps([gallery] if gallery else []))
    return rows


def _distances(items: Any, queries: Any) -> NDArray[Any]:
    if items.dtype == np.uint8:
        return np.bitwise_count(items[None] ^ queries[:, None]).sum(axis=2).astype(np.float32)
    return ((items[None] - queries[:, None]) ** 2).sum(axis=2)
