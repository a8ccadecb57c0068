"""From the hits of one row to its measures and curves; what all rows of a split share is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend, Codec, Rescorer
from cbir_faiss.comparison.split import Split
from cbir_faiss.config import Metrics
from cbir_faiss.measures import curves
from cbir_faiss.measures.by_query import by_class, worst_queries
from cbir_faiss.measures.histograms import Histograms, hamming_histograms
from cbir_faiss.measures.metrics import of_whole, per_query, shown, summary
from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.types import Codes, Hits, Metric

PR_POINTS = 21
WORST = 20
"""Queries named of each row."""
RADIUS_POINTS = 65
EMBEDDING_METRIC: Metric = "cosine"
"""By what embeddings are compared where nothing says otherwise."""
CURVE_KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Ranking:
    """The hits of a row, and what is known of the whole ranking they are the head of.

    codes: packed item and query codes where the ranking is by exact Hamming distance. floats: item and query vectors
    and the metric where it is by exact float distance. Neither where search was approximate or rescored.
    """

    hits: Hits
    codes: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
    floats: tuple[Codes, Codes, Metric] | None = None

    @classmethod
    def of(cls, hits: Hits, backend: Backend, items: Codes, queries: Codes) -> Ranking:
        """The ranking of an exact search of ``backend`` over vectors or codes as it was given them."""
        codes = backend.hamming_codes(items)
        if codes is not None:
            asked = backend.hamming_codes(queries)
            assert asked is not None
            return cls(hits, codes=(codes, asked))
        assert backend.metric is not None
        return cls(hits, floats=(items, queries, backend.metric))


class Measured(NamedTuple):
    """What a ranking is worth.

    metrics, curves: as ``results.json`` has them. raw: arrays to store beside the hits. values: behind the mean of each
    measure, its value at each query, float64 ``(nq,)``, in expectation over ties where the codes are known.
    """

    metrics: dict[str, Any]
    curves: dict[str, Any]
    raw: dict[str, NDArray[Any]]
    values: dict[str, NDArray[np.float64]]


class Evaluator:
    """Measures rankings of one split by its labels and its exact float neighbours."""

    def __init__(self, split: Split, metrics: Metrics) -> None:
        self._split, self._metrics = split, metrics
        self._relevance = Relevance.from_labels(split.items.labels, split.queries.labels, split.items.ignored)
        self._deepest = max(*metrics.k, metrics.truth.k)
        self._thresholds: dict[Metric, NDArray[np.float64]] = {}
        self._histograms: tuple[str, Histograms] | None = None

    @property
    def depth(self) -> int:
        """How many hits of each query to judge: as many as are measured, and as may have to be taken out of them."""
        return self._deepest + (0 if self._relevance is None else self._relevance.most_ignored)

    def truth_of(self, codec: Codec, backend: Backend, rescorer: Rescorer) -> dict[str, Any]:
        """What the exact neighbours of ``knn_recall`` are: ``metric`` and ``k``.

        The metric that the config gives; else, where floats are searched and that is all, the one they are searched
        by; else, of codes and of what is ranked again, the one that embeddings are compared by.
        """
        metric: Metric = self._metrics.truth.metric or EMBEDDING_METRIC
        own = backend.metric
        if self._metrics.truth.metric is None and rescorer.name == "none" and own not in (None, "hamming"):
            metric = codec.metric_of(own)
        return {"metric": metric, "k": self._metrics.truth.k}

    def __call__(self, ranking: Ranking, truth_metric: Metric) -> Measured:
        """Metrics, curves, raw arrays and per-query values of a ranking of the split's queries.

        ``truth_metric``: that of the exact neighbours, from ``truth_of``.
        """
        found = Measured({}, {}, {}, {})
        if self._relevance is not None:
            found = self._by_labels(ranking, self._relevance)
        k, embeddings = self._metrics.truth.k, (self._split.items.embedding, self._split.queries.embedding)
        if truth_metric not in self._thresholds:
            self._thresholds[truth_metric] = exact_thresholds(*embeddings, k, truth_metric)
        distances = true_distances(*embeddings, ranking.hits.ids[:, :k], truth_metric)
        name, recall = f"knn_recall@{k}", knn_recall(distances, self._thresholds[truth_metric], k)
        found.metrics[name], found.values[name] = float(recall.mean()), recall
        return found

    def by_query(
        self, values: NDArray[np.float64]
    ) -> tuple[dict[str, tuple[int, float]], list[tuple[str, list[str], float]]]:
        """What the mean of a measure's ``values`` ``(nq,)`` hides, as ``Row.classes`` and ``Row.worst``; empty without
        labels."""
        queries = self._split.queries
        if self._relevance is None:
            return {}, []
        rows = worst_queries(values, self._relevance.totals, WORST).tolist()
        paths = queries.paths or [str(row) for row in range(len(queries))]
        worst = [(paths[row], list(queries.labels[row]), float(values[row])) for row in rows]
        return by_class(values, queries.labels), worst

    def _by_labels(self, ranking: Ranking, relevance: Relevance) -> Measured:
        relevant = relevance.ranked(ranking.hits.ids)[:, : self._deepest]
        ks = [k for k in CURVE_KS if k <= relevant.shape[1]]
        histograms = None if ranking.codes is None else self._histograms_of(*ranking.codes, relevance)
        exact = ranking.floats is not None
        values = per_query(relevant, relevance.totals, self._metrics.k, histograms=histograms, exact=exact)
        if histograms is None:
            drawn, raw = {"map_k": _pairs(ks, curves.map_curve(relevant)[np.array(ks) - 1])}, {}
            if ranking.floats is not None:
                drawn["pr"] = self._whole(ranking.floats, relevance, values)
        else:
            drawn = _tied_curves(histograms, ks)
            raw = {"histogram": histograms.items, "histogram_relevant": histograms.relevant}
        return Measured(summary(values), drawn, raw, shown(values))

    @staticmethod
    def _whole(
        floats: tuple[Codes, Codes, Metric], relevance: Relevance, values: dict[str, NDArray[np.float64]]
    ) -> list[list[float]]:
        """Precision against recall over whole rankings; ``values`` are given the measures that need them too."""
        totals, parts, done = relevance.totals, [], 0

        def noted() -> Iterator[NDArray[np.bool_]]:
            nonlocal done
            for block in full_rankings(*floats[:2], relevance, floats[2]):
                parts.append(of_whole(block, totals[done : done + len(block)]))
                done += len(block)
                yield block

        curve = _recall_curve(curves.precision_recall(noted(), PR_POINTS))
        for key in parts[0]:
            whole = np.concatenate([part[key] for part in parts])
            values |= {key + suffix: whole for suffix in ("_observed", "", "_min", "_max")}
        return curve

    def _histograms_of(self, items: NDArray[np.uint8], queries: NDArray[np.uint8], relevance: Relevance) -> Histograms:
        """Of the codes at hand; backends that hold the same codes share them."""
        key = hashlib.sha256(np.ascontiguousarray(items).data).hexdigest()
        if self._histograms is None or self._histograms[0] != key:
            self._histograms = key, hamming_histograms(queries, items, relevance)
        return self._histograms[1]


def _tied_curves(histograms: Histograms, ks: list[int]) -> dict[str, Any]:
    radius = curves.precision_within_radius(histograms)
    drawn_at = np.unique(np.linspace(0, len(radius) - 1, RADIUS_POINTS).astype(int))
    return {
        "map_k": _pairs(ks, curves.map_curve_tied(histograms, ks)),
        "pr": _recall_curve(curves.precision_recall_tied(histograms, PR_POINTS)),
        "radius": _pairs(drawn_at / (len(radius) - 1), radius[drawn_at]),
    }


def _pairs(x: Any, y: NDArray[Any]) -> list[list[float]]:
    return [[round(float(a), 6), round(float(b), 6)] for a, b in zip(x, y, strict=True)]


def _recall_curve(precision: NDArray[Any]) -> list[list[float]]:
    return _pairs(np.linspace(0, 1, len(precision)), precision)
