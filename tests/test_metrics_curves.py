"""Curves against scikit-learn where nothing ties, and against all orders where something does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cbir_faiss.errors import InputError
from cbir_faiss.measures import curves
from cbir_faiss.measures.curves import (
    map_curve,
    map_curve_tied,
    precision_recall,
    precision_recall_tied,
    precision_within_radius,
)
from cbir_faiss.measures.histograms import Histograms, hamming_histograms
from cbir_faiss.measures.metrics import measure, per_query
from cbir_faiss.measures.neighbours import exact_thresholds
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance


def untied(relevant: np.ndarray) -> Histograms:
    return Histograms(np.ones(relevant.shape, np.int32), relevant.astype(np.int32))


@pytest.mark.parametrize("points", [2, 11, 101])
def test_precision_recall_is_that_of_scikit_learn(points: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, relevant = random.random((12, 80)), random.random((12, 80)) < 0.25
    ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)
    expected = np.zeros(points)
    for truth, score in zip(relevant, scores, strict=True):
        precision, recall, _ = sklearn.precision_recall_curve(truth, score)
        # Falling recall: the last threshold that still reaches a level is the first rank at which it is reached.
        levels = np.maximum(np.arange(points) / (points - 1), 1 / truth.sum())
        expected += [precision[np.flatnonzero(recall >= level - 1e-12)[-1]] for level in levels]
    np.testing.assert_allclose(precision_recall([ranked[:5], ranked[5:]], points), expected / 12, atol=1e-12)
    np.testing.assert_allclose(precision_recall_tied(untied(ranked), points), expected / 12, atol=1e-12)


@pytest.mark.parametrize(
    "groups",
    [
        [(3, 1), (0, 0), (5, 3), (2, 0), (3, 2)],
        [(7, 1)],
        [(6, 6), (1, 0)],
        [(1, 0), (9, 4)],
    ],
)
def test_tied_precision_is_the_mean_over_all_orders(groups: list[tuple[int, int]]) -> None:
    choices = [list(itertools.combinations(range(n), r)) for n, r in groups]
    starts = np.cumsum([0] + [n for n, _ in groups])
    ranks = np.array(
        [
            [start + i + 1 for start, chosen in zip(starts, order, strict=False) for i in chosen]
            for order in itertools.product(*choices)
        ]
    )
    total = ranks.shape[1]
    items, relevant = (np.array([column], np.int32) for column in zip(*groups, strict=True))
    wanted = np.maximum(1, np.ceil(np.arange(11) * total / 10 - 1e-9)).astype(int)
    expected = [(t / ranks[:, t - 1]).mean() for t in wanted]
    got = precision_recall_tied(Histograms(items, relevant), 11)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_tied_precision_of_large_groups_is_the_sum_over_all_places() -> None:
    """Whole groups of thousands, few relevant or many, against the distribution of the place written out."""
    for before, n, r in ((0, 4000, 3), (0, 900, 450), (57, 3000, 2999), (2000, 5000, 40), (0, 2, 1)):
        for j in {1, r // 2 or 1, r}:
            places = np.arange(j, n - r + j + 1)
            logs = [
                math.lgamma(p) - math.lgamma(j) - math.lgamma(p - j + 1)
                + math.lgamma(n - p + 1) - math.lgamma(r - j + 1) - math.lgamma(n - p - r + j + 1)
                for p in places.tolist()
            ]  # fmt: skip
            weights = np.exp(np.array(logs) - max(logs))
            expected = (weights / (before + places)).sum() / weights.sum()
            (got,) = curves._mean_inverse(*(np.array([x]) for x in (before + j, j, r, n - r)))
            assert got == pytest.approx(expected, rel=1e-9), (before, n, r, j)


def test_a_query_with_nothing_to_find_counts_as_zero() -> None:
    relevant = np.array([[False, False, False], [True, False, False]])
    np.testing.assert_array_equal(precision_recall([relevant], 2), [0.5, 0.5])
    np.testing.assert_array_equal(precision_recall_tied(untied(relevant), 2), [0.5, 0.5])
    np.testing.assert_array_equal(precision_recall([relevant[:1]], 3), np.zeros(3))
    np.testing.assert_array_equal(precision_recall_tied(untied(relevant[:1]), 3), np.zeros(3))


def test_map_curve_is_map_at_every_k() -> None:
    random = np.random.default_rng(2)
    relevant = random.random((9, 15)) < 0.4
    totals = relevant.sum(axis=1, dtype=np.int64)
    expected = [measure(relevant, totals, [k])[f"map@{k}"] for k in range(1, 16)]
    np.testing.assert_allclose(map_curve(relevant), expected)
    np.testing.assert_allclose(map_curve_tied(untied(relevant), range(1, 16)), expected)
    items = random.integers(0, 5, (9, 8)).astype(np.int32)
    tied = Histograms(items, random.integers(0, items + 1).astype(np.int32))
    hits, all_relevant = np.zeros((9, 1), bool), tied.relevant.sum(axis=1, dtype=np.int64)
    expected = [measure(hits, all_relevant, [k], histograms=tied)[f"map@{k}"] for k in (1, 4, 30)]
    np.testing.assert_allclose(map_curve_tied(tied, [1, 4, 30]), expected)


def test_precision_within_a_radius_counts_empty_balls_as_zero() -> None:
    items = np.array([[0, 2, 2], [1, 0, 3]], np.int32)
    relevant = np.array([[0, 1, 0], [1, 0, 0]], np.int32)
    np.testing.assert_allclose(precision_within_radius(Histograms(items, relevant)), [0.5, 0.75, 0.25])


def test_curves_of_nothing_are_refused() -> None:
    nothing = Histograms(np.zeros((0, 9), np.int32), np.zeros((0, 9), np.int32))
    for curve in (
        lambda: precision_recall([]),
        lambda: precision_recall_tied(nothing),
        lambda: map_curve(np.zeros((0, 3), bool)),
        lambda: map_curve_tied(nothing, [1]),
        lambda: precision_within_radius(nothing),
    ):
        with pytest.raises(InputError, match="at least one query"):
            curve()
    some = untied(np.ones((1, 2), bool))
    with pytest.raises(InputError, match="at least 2 points"):
        precision_recall_tied(some, 1)
    with pytest.raises(InputError, match="at least 2 points"):
        precision_recall([np.ones((1, 2), bool)], 1)
    for ks in ([], [0], [3, 0]):
        with pytest.raises(InputError, match="ranks from 1"):
            map_curve_tied(some, ks)


def test_curves_do_not_depend_on_how_many_queries_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    items = random.integers(0, 9, (25, 12)).astype(np.int32)
    tied = Histograms(items, random.integers(0, items + 1).astype(np.int32))
    expected = precision_recall_tied(tied, 7), precision_within_radius(tied)
    assert len(precision_recall_tied(tied)) == len(precision_recall([untied(items > 4).relevant > 0])) == 11
    for cells in (1, 30, 24):
        monkeypatch.setattr(curves, "_CELLS", cells)
        np.testing.assert_allclose(precision_recall_tied(tied, 7), expected[0], rtol=1e-12)
        np.testing.assert_allclose(precision_within_radius(tied), expected[1], rtol=1e-12)


@pytest.mark.slow
def test_a_thousand_queries_over_ten_thousand_items() -> None:
    """Everything that one comparison asks, over many blocks: floats ranked in full, 256-bit codes with ties."""
    random = np.random.default_rng(0)
    n, nq, dim = 10_000, 1_000, 256
    classes, query_classes = random.integers(0, 10, n), random.integers(0, 10, nq)
    centres = random.normal(size=(10, dim))
    items = (centres[classes] + 3 * random.normal(size=(n, dim))).astype(np.float32)
    queries = (centres[query_classes] + 3 * random.normal(size=(nq, dim))).astype(np.float32)
    relevance = Relevance.from_labels([(str(c),) for c in classes], [(str(c),) for c in query_classes])
    assert relevance is not None

    floats = precision_recall(full_rankings(items, queries, relevance, "l2"))
    codes, query_codes = np.packbits(items > 0, axis=1), np.packbits(queries > 0, axis=1)
    histograms = hamming_histograms(query_codes, codes, relevance)
    tied = precision_recall_tied(histograms)
    for curve in (floats, tied):
        assert (np.diff(curve) < 0).all()
        assert curve[0] > 0.5
        assert 0.09 < curve[-1] < 0.2
    assert (floats > tied)[:-1].all()

    hits = random.integers(0, n, (nq, 50))
    values = per_query(relevance.of(hits), relevance.totals, [1, 5, 10, 50], histograms=histograms)
    for k in (1, 5, 10, 50):
        assert (values[f"map@{k}_min"] <= values[f"map@{k}"] + 1e-12).all()
        assert (values[f"map@{k}"] <= values[f"map@{k}_max"] + 1e-12).all()
        assert values[f"map@{k}_observed"].mean() < values[f"map@{k}"].mean()
    np.testing.assert_allclose(map_curve_tied(histograms, [5])[0], values["map@5"].mean())
    assert exact_thresholds(items, queries[:200], 50, "l2").shape == (200, 50)
