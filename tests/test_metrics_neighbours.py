"""Exact float neighbours and full rankings, against all pairs in float64 and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbir_faiss.errors import DimensionMismatch, InputError, Unsupported
from cbir_faiss.measures import neighbours, rankings, scores
from cbir_faiss.measures.neighbours import exact_neighbours, exact_thresholds, knn_recall, true_distances
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance

METRICS = ("l2", "ip", "cosine")


def all_distances(x: np.ndarray, q: np.ndarray, metric: str) -> np.ndarray:
    x, q = x.astype(np.float64), q.astype(np.float64)
    if metric == "l2":
        return ((q[:, None] - x) ** 2).sum(axis=2)
    if metric == "ip":
        return -(q @ x.T)
    return 1 - (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Not centred, as the features of a network are not."""
    random = np.random.default_rng(0)
    return random.gamma(1, 1, (700, 24)).astype(np.float32), random.gamma(1, 1, (30, 24)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_thresholds_are_the_sorted_exact_distances(data, metric, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "_QUERIES", 13)  # several blocks either way, the last one short
    monkeypatch.setattr(neighbours, "_ITEMS", 150)
    items, queries = data
    expected = np.sort(all_distances(items, queries, metric), axis=1)[:, :9]
    got = exact_thresholds(items, queries, 9, metric)
    assert got.shape == (30, 9)
    assert (got >= expected).all()
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_true_distances_of_rows(data, metric, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "_GATHERED", 500)
    items, queries = data
    rows = np.random.default_rng(1).integers(0, 700, (30, 5))
    expected = np.take_along_axis(all_distances(items, queries, metric), rows, axis=1)
    rows[3, 4] = -1
    expected[3, 4] = np.inf
    np.testing.assert_allclose(true_distances(items, queries, rows, metric), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search_has_recall_one_and_each_miss_costs_its_share(data, metric) -> None:
    items, queries = data
    order = np.argsort(all_distances(items, queries, metric), axis=1)
    thresholds = exact_thresholds(items, queries, 10, metric)
    rows = order[:, :10].copy()
    assert (knn_recall(true_distances(items, queries, rows, metric), thresholds, 10) == 1).all()
    rows[:, 7:] = order[:, 300:303]
    rows[0] = -1
    recall = knn_recall(true_distances(items, queries, rows, metric), thresholds, 10)
    np.testing.assert_allclose(recall, [0.0] + [0.7] * 29)
    np.testing.assert_allclose(knn_recall(true_distances(items, queries, rows, metric), thresholds, 5)[1:], 1)


@pytest.mark.parametrize("metric", METRICS)
def test_any_of_the_tied_neighbours_counts(data, metric) -> None:
    items, queries = data
    items = np.repeat(items[:100], 4, axis=0)  # each vector four times; with k = 6 the second vector is tied at the cut
    order = np.argsort(all_distances(items[::4], queries, metric), axis=1)
    rows = np.concatenate([4 * order[:, [0]] + np.arange(4), 4 * order[:, [1]] + [3, 1]], axis=1)
    thresholds = exact_thresholds(items, queries, 6, metric)
    assert (knn_recall(true_distances(items, queries, rows, metric), thresholds, 6) == 1).all()


def test_the_mean_of_the_data_does_not_matter(data) -> None:
    items, queries = data[0] + np.float32(3000), data[1] + np.float32(3000)
    expected = np.sort(all_distances(items, queries, "l2"), axis=1)[:, :5]
    np.testing.assert_allclose(exact_thresholds(items, queries, 5, "l2"), expected, rtol=1e-5)


def test_k_beyond_the_collection_is_the_share_of_all_items(data) -> None:
    items, queries = data[0][:4], data[1]
    thresholds = exact_thresholds(items, queries, 10, "l2")
    assert thresholds.shape == (30, 4)
    rows = np.tile([0, 1, 3, -1, -1], (30, 1))
    recall = knn_recall(true_distances(items, queries, rows, "l2"), thresholds, 10)
    np.testing.assert_array_equal(recall, np.full(30, 0.75))


def test_memory_mapped_items(data, tmp_path: Path) -> None:
    items, queries = data
    np.save(tmp_path / "x.npy", items)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(exact_thresholds(mapped, queries, 3, "l2"), exact_thresholds(items, queries, 3, "l2"))


def test_bad_input_is_refused(data) -> None:
    items, queries = data
    with pytest.raises(InputError, match="k must be"):
        exact_thresholds(items, queries, 0, "l2")
    with pytest.raises(DimensionMismatch):
        exact_thresholds(items, queries[:, :5], 3, "l2")
    with pytest.raises(InputError, match="no items"):
        exact_thresholds(items[:0], queries, 3, "l2")
    with pytest.raises(InputError, match="vector 2 holds NaN"):
        exact_thresholds(items, np.where(np.arange(30)[:, None] == 2, np.float32(np.nan), queries), 3, "l2")
    with pytest.raises(Unsupported, match="hamming"):
        exact_thresholds(items, queries, 3, "hamming")
    holed = items.copy()
    holed[5] = 0
    with pytest.raises(InputError, match="database row 5"):
        exact_thresholds(holed, queries, 3, "cosine")
    with pytest.raises(InputError, match="one line a query"):
        true_distances(items, queries, np.zeros((2, 3), np.int64), "l2")
    with pytest.raises(InputError, match="must lie in"):
        true_distances(items, queries, np.full((30, 3), 700), "l2")
    with pytest.raises(InputError, match="k = 0"):
        knn_recall(np.zeros((2, 1)), np.zeros((2, 1)), 0)


@pytest.mark.parametrize("metric", METRICS)
def test_full_rankings_are_those_of_a_stable_sort(metric, monkeypatch) -> None:
    monkeypatch.setattr(rankings, "_SCORED", 1500)
    monkeypatch.setattr(rankings, "_SORTED", 700)
    random = np.random.default_rng(4)
    if metric == "ip":  # small whole numbers: exact products, which tie often, negative and zero among them
        items, queries = (random.integers(-2, 3, (n, 6)).astype(np.float32) for n in (300, 17))
    else:
        items, queries = (random.normal(size=(n, 6)).astype(np.float32) for n in (60, 17))
    sides = ([(str(i),) for i in random.integers(0, 3, len(side))] for side in (items, queries))
    relevance = Relevance.from_labels(*sides)
    assert relevance is not None
    got = np.concatenate(list(full_rankings(items, queries, relevance, metric)))
    order = np.argsort(all_distances(items, queries, metric), axis=1, kind="stable")
    np.testing.assert_array_equal(got, np.take_along_axis(relevance.block(slice(None)), order, axis=1))


def test_rankings_of_other_labels_are_refused(data) -> None:
    items, queries = data
    relevance = Relevance.from_labels([("a",)] * 5, [("a",)] * 30)
    assert relevance is not None
    with pytest.raises(InputError, match="but labels of"):
        next(full_rankings(items, queries, relevance, "l2"))


@pytest.mark.parametrize("metric", METRICS)
def test_many_items_are_those_of_few_at_a_time(data, metric, monkeypatch) -> None:
    items, queries = data
    expected = exact_thresholds(items, queries, 5, metric)
    relevance = Relevance.from_labels([(str(i % 3),) for i in range(700)], [("1",)] * 30)
    assert relevance is not None
    ranked = np.concatenate(list(full_rankings(items, queries, relevance, metric)))
    for rows in (1, 64, 699):
        monkeypatch.setattr(scores, "_ROWS", rows)
        np.testing.assert_allclose(exact_thresholds(items, queries, 5, metric), expected, rtol=1e-6, atol=1e-4)
        again = np.concatenate(list(full_rankings(items, queries, relevance, metric)))
        assert (again == ranked).mean() > 0.999  # distances are those of float32


def test_the_allowance_is_a_millionth_of_what_a_search_works_with(data) -> None:
    items, queries = data
    spread = ((queries - items.mean(axis=0)) ** 2).sum(axis=1)[:, None]
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(items, axis=1).max()
    for metric in METRICS:
        nearest = np.sort(all_distances(items, queries, metric), axis=1)[:, :3]
        expected = {"l2": nearest + spread, "ip": np.repeat(lengths, 3, axis=1), "cosine": np.ones((30, 3))}[metric]
        allowed = exact_thresholds(items, queries, 3, metric) - nearest
        np.testing.assert_allclose(allowed, 1e-6 * expected, rtol=1e-3)


def test_the_nearest_are_among_the_candidates_whatever_k_is(data) -> None:
    items, queries = data
    for k in (1, 2, 699, 700, 701):
        thresholds = exact_thresholds(items, queries, k, "l2")
        expected = np.sort(all_distances(items, queries, "l2"), axis=1)[:, :k]
        np.testing.assert_allclose(thresholds, expected, rtol=1e-5, atol=2e-4)
    nothing = np.empty((30, 0), np.int64)
    assert true_distances(items, queries, nothing, "l2").shape == (30, 0)
    with pytest.raises(InputError, match="2 queries with hits and 3"):
        knn_recall(np.zeros((2, 1)), np.zeros((3, 1)), 1)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("k", [1, 2, 7, 39, 40])
def test_no_spare_candidates_are_needed_where_nothing_is_rounded(metric, k, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "_SPARE", 0)
    random = np.random.default_rng(5)
    items, queries = (random.integers(-20, 21, (n, 8)).astype(np.float32) for n in (40, 60))
    items -= items.mean(axis=0).round()
    expected = np.sort(all_distances(items, queries, metric), axis=1)[:, :k]
    for block in (7, 40):
        monkeypatch.setattr(neighbours, "_ITEMS", block)
        np.testing.assert_allclose(exact_thresholds(items, queries, k, metric), expected, rtol=1e-5, atol=1e-2)


def test_rankings_tell_neighbouring_floats_apart() -> None:
    def after(start: float) -> list[np.float32]:
        return [np.float32(start) + i * np.spacing(np.float32(abs(start))) for i in range(4)]

    row = np.array([*after(3), *after(-3), *after(0.5), *after(-0.5), 0.0, -0.0, *after(1e-9), np.inf], np.float32)
    values = np.stack([np.random.default_rng(i).permutation(row) for i in range(40)])
    relevant = np.random.default_rng(0).random(values.shape) < 0.5
    order = np.argsort(values, axis=1, kind="stable")
    np.testing.assert_array_equal(rankings._by_score(values, relevant), np.take_along_axis(relevant, order, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_the_rows_of_the_neighbours_are_those_of_the_thresholds(metric) -> None:
    rng = np.random.default_rng(3)
    x, q = (rng.standard_normal((n, 6)).astype(np.float32) for n in (90, 7))
    rows, thresholds = exact_neighbours(x, q, 12, metric)
    assert np.array_equal(thresholds, exact_thresholds(x, q, 12, metric))
    distances = true_distances(x, q, rows, metric)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (distances <= thresholds).all()
    assert (knn_recall(distances, thresholds, 12) == 1).all()
    few, _ = exact_neighbours(x[:5], q, 12, metric)
    assert few.shape == (7, 5)
    assert all(set(row) == set(range(5)) for row in few.tolist())
