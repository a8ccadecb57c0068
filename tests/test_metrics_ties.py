"""Measures with ties against all orders of the tied items, and without ties against scikit-learn."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures import metrics, ties
from cbir_faiss.measures.histograms import Histograms
from cbir_faiss.measures.metrics import AT_TOTALS, MEASURES, WHOLE, average_precision, measure, of_whole, per_query
from cbir_faiss.measures.ties import TiedRankings


def plain(ranking: tuple[bool, ...], total: int, k: int) -> dict[str, float]:
    """The definitions, one rank at a time, in exact arithmetic but for logarithms."""
    found, total_precision, trapezoids, first = 0, Fraction(0), Fraction(0), 0
    gain, before = 0.0, Fraction(1)
    for rank, relevant in enumerate(ranking[:k], 1):
        found += relevant
        precision = Fraction(found, rank)
        if relevant:
            total_precision += precision
            trapezoids += (precision + before) / 2
            gain += 1 / math.log2(rank + 1)
            first = first or rank
        before = precision
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, total) + 1))
    return {
        "map": float(total_precision / found) if found else 0.0,
        "map_full": float(total_precision / min(k, total)) if min(k, total) else 0.0,
        "map_trapezoid": float(trapezoids / min(k, total)) if min(k, total) else 0.0,
        "ndcg": gain / ideal if ideal else 0.0,
        "mrr": 1 / first if first else 0.0,
        "precision": found / k if k else 0.0,
        "hit": float(found > 0),
        "recall": found / total if total else 0.0,
    }


def every_order(groups: list[tuple[int, int]]) -> list[tuple[bool, ...]]:
    """All distinct relevance sequences of groups (items, relevant); each is as likely as any other."""
    choices = [
        [tuple(i in chosen for i in range(n)) for chosen in itertools.combinations(range(n), r)] for n, r in groups
    ]
    return [tuple(itertools.chain.from_iterable(order)) for order in itertools.product(*choices)]


group = st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(queries=st.lists(st.lists(group, min_size=3, max_size=3), min_size=1, max_size=3), k=st.integers(1, 14))
def test_expectation_worst_and_best_are_those_of_all_orders(queries: list[list[tuple[int, int]]], k: int) -> None:
    counts = np.array(queries, np.int32)
    totals = counts[:, :, 1].sum(axis=1, dtype=np.int64)
    spreads = TiedRankings(Histograms(counts[:, :, 0], counts[:, :, 1]), 14).measures(k, totals)
    for i, groups in enumerate(queries):
        orders = [plain(order, int(totals[i]), k) for order in every_order(groups)]
        for name in MEASURES:
            values = [order[name] for order in orders]
            expected = [sum(values) / len(values), min(values), max(values)]
            np.testing.assert_allclose([part[i] for part in spreads[name]], expected, rtol=0, atol=1e-12, err_msg=name)


def measured(queries: list[list[tuple[int, int]]]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Every measure of queries whose groups of equals are known, and how many relevant items each has."""
    counts = np.array(queries, np.int32)
    histograms = Histograms(counts[:, :, 0], counts[:, :, 1])
    totals = counts[:, :, 1].sum(axis=1, dtype=np.int64)
    values = per_query(np.zeros((len(queries), 1), bool), totals, [1], histograms=histograms)
    return values, totals


@settings(max_examples=100, deadline=None, derandomize=True)
@given(queries=st.lists(st.lists(group, min_size=3, max_size=3), min_size=1, max_size=4))
def test_as_deep_as_there_are_relevant_items(queries: list[list[tuple[int, int]]]) -> None:
    """R-precision and MAP@R: each query at a k of its own."""
    values, totals = measured(queries)
    for i, groups in enumerate(queries):
        orders = [plain(order, int(totals[i]), int(totals[i])) for order in every_order(groups)]
        for key, name in AT_TOTALS.items():
            expected = [order[name] for order in orders]
            got = [values[key + suffix][i] for suffix in ("", "_min", "_max")]
            wanted = [sum(expected) / len(expected), min(expected), max(expected)]
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12, err_msg=key)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(queries=st.lists(st.lists(group, min_size=3, max_size=3), min_size=1, max_size=4))
def test_map_of_the_whole_ranking_is_that_of_all_orders(queries: list[list[tuple[int, int]]]) -> None:
    values, totals = measured(queries)
    assert "map_observed" not in values
    for i, groups in enumerate(queries):
        orders = [plain(order, int(totals[i]), len(order))["map"] for order in every_order(groups)]
        got = [values["map" + suffix][i] for suffix in ("", "_min", "_max")]
        np.testing.assert_allclose(got, [sum(orders) / len(orders), min(orders), max(orders)], rtol=0, atol=1e-12)


def test_map_of_whole_rankings_that_are_known_is_that_at_the_number_of_items() -> None:
    relevant = np.random.default_rng(13).random((20, 30)) < 0.3
    relevant[3] = False
    totals = relevant.sum(axis=1, dtype=np.int64)
    found = of_whole(relevant, totals)
    assert set(found) == set(WHOLE)
    np.testing.assert_allclose(found["map"], per_query(relevant, totals, [30])["map@30"], atol=1e-12)


def test_the_order_returned_against_the_definitions() -> None:
    random = np.random.default_rng(11)
    relevant = random.random((30, 12)) < 0.3
    totals = relevant.sum(axis=1, dtype=np.int64) + random.integers(0, 3, 30)
    values = per_query(relevant, totals, [1, 4, 12, 20])
    assert "map@r" not in values or totals.max() <= 12
    for i, row in enumerate(relevant):
        for k in (1, 4, 12, 20):
            for name, wanted in plain(tuple(row), int(totals[i]), k).items():
                assert values[f"{name}@{k}_observed"][i] == pytest.approx(wanted, abs=1e-12), name
    deep = per_query(relevant, relevant.sum(axis=1, dtype=np.int64), [1], exact=True)
    for i, row in enumerate(relevant):
        by_name = plain(tuple(row), int(row.sum()), int(row.sum()))
        for key, name in AT_TOTALS.items():
            assert deep[key][i] == deep[f"{key}_min"][i] == pytest.approx(by_name[name], abs=1e-12)


def test_gains_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(12)
    relevant = random.random((15, 40)) < 0.2
    relevant[:, 5] = True
    scores = -np.arange(40.0)[None].repeat(15, axis=0)
    values = per_query(relevant, relevant.sum(axis=1, dtype=np.int64), [10, 40])
    for k in (10, 40):
        expected = [sklearn.ndcg_score(r[None], s[None], k=k) for r, s in zip(relevant, scores, strict=True)]
        np.testing.assert_allclose(values[f"ndcg@{k}"], expected, atol=1e-12)


def test_queries_are_held_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    histograms, totals = some_ties(10)
    hits = np.zeros((len(totals), 1), bool)
    expected = per_query(hits, totals, [1, 7], histograms=histograms)
    monkeypatch.setattr(metrics, "_QUERIES", 4)
    for key, value in per_query(hits, totals, [1, 7], histograms=histograms).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12, atol=1e-15)


def test_relevant_first_is_not_always_the_best_order() -> None:
    # Rank 1 relevant, then one slot for a relevant or an irrelevant item behind two irrelevant ones: taking the
    # relevant one lowers the mean precision of what was found.
    histograms = Histograms(np.array([[1, 2, 2]], np.int32), np.array([[1, 0, 1]], np.int32))
    best = TiedRankings(histograms, 4).measures(4, np.array([2]))["map"].best
    assert best[0] == 1.0


def test_large_groups_match_sampled_orders() -> None:
    random = np.random.default_rng(3)
    items, relevant = np.array([[3, 40, 500, 2000]], np.int32), np.array([[2, 17, 60, 100]], np.int32)
    totals = relevant.sum(axis=1, dtype=np.int64)
    orders = []
    for _ in range(2000):
        groups = [random.permutation(np.arange(n) < r) for n, r in zip(items[0], relevant[0], strict=True)]
        orders.append(np.concatenate(groups))
    sampled = per_query(np.array(orders), np.repeat(totals, len(orders)), [30, 300, 2543])
    tied = TiedRankings(Histograms(items, relevant), 2543)
    for k in (30, 300, 2543):
        for name, spread in tied.measures(k, totals).items():
            values = sampled[f"{name}@{k}"]
            assert spread.worst[0] - 1e-12 <= values.min()
            assert values.max() <= spread.best[0] + 1e-12
            error = values.std() / np.sqrt(len(values))
            assert abs(values.mean() - spread.expected[0]) <= 4 * error + 1e-9


def test_a_ranking_without_ties_has_one_value() -> None:
    random = np.random.default_rng(5)
    relevant = random.random((7, 12)) < 0.3
    totals = relevant.sum(axis=1, dtype=np.int64)
    histograms = Histograms(np.ones((7, 12), np.int32), relevant.astype(np.int32))
    values = per_query(relevant, totals, [1, 5, 12], histograms=histograms)
    for key in (f"{name}@{k}" for name in MEASURES for k in (1, 5, 12)):
        for suffix in ("_min", "_max", "_observed"):
            np.testing.assert_allclose(values[key + suffix], values[key], rtol=0, atol=1e-12)


def test_full_rankings_agree_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(7)
    scores, relevant = random.random((20, 60)), random.random((20, 60)) < 0.2
    ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1), axis=1)
    totals = relevant.sum(axis=1, dtype=np.int64)
    values = per_query(ranked, totals, [60], exact=True)
    expected = [sklearn.average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(values["map@60"], expected, atol=1e-12)
    np.testing.assert_allclose(values["map_full@60"], expected, atol=1e-12)
    np.testing.assert_allclose(average_precision(ranked)[:, -1], expected, atol=1e-12)


def test_measure_gives_the_keys_of_results() -> None:
    relevant = np.array([[True, False], [False, False]])
    totals = np.array([4, 0])
    got = measure(relevant, totals, [1, 2], exact=True)
    families = {f"{name}@{k}" for name in MEASURES for k in (1, 2)}
    suffixes = ("", "_min", "_max", "_observed")
    assert set(got) == {f + s for f in families for s in suffixes} | {"map@1_ci95", "map@2_ci95"}
    assert got["map@2"] == got["map@2_min"] == got["map@2_max"] == got["map@2_observed"] == 0.5
    assert got["map_full@2"] == 0.25
    assert got["precision@2"] == 0.25
    assert got["hit@2"] == 0.5
    assert got["recall@2"] == 0.125
    low, high = got["map@2_ci95"]
    assert 0 <= low <= 0.5 <= high <= 1


def test_approximate_search_has_no_worst_and_best() -> None:
    got = measure(np.array([[True, False]]), np.array([1]), [2])
    assert got["map@2_min"] is None
    assert got["recall@2_max"] is None
    assert got["map@2"] == got["map@2_observed"] == 1.0


def test_k_beyond_the_collection() -> None:
    """Three items: what is missing at ranks 4 and 5 is not relevant, and precision still divides by k."""
    relevant = np.array([[True, False, True, False, False]])
    histograms = Histograms(np.array([[1, 1, 1]], np.int32), np.array([[1, 0, 1]], np.int32))
    got = measure(relevant, np.array([2]), [5], histograms=histograms)
    assert got["precision@5"] == got["precision@5_observed"] == 0.4
    assert got["map@5"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["recall@5"] == 1.0


def test_hits_as_deep_as_a_small_collection() -> None:
    relevant, totals = np.array([[True, False, True]]), np.array([2])
    padded = np.array([[True, False, True, False, False]])
    assert measure(relevant, totals, [2, 5]) == measure(padded, totals, [2, 5])


def test_one_class_is_always_right() -> None:
    histograms = Histograms(np.array([[5, 2, 3]], np.int32), np.array([[5, 2, 3]], np.int32))
    got = measure(np.ones((1, 4), bool), np.array([10]), [4], histograms=histograms)
    assert got["map@4"] == pytest.approx(1)
    assert got["map@4_min"] == pytest.approx(1)
    assert got["hit@4"] == 1


@pytest.mark.parametrize(
    ("relevant", "totals", "ks", "message"),
    [
        (np.zeros((0, 3), bool), np.zeros(0, np.int64), [1], "bool"),
        (np.zeros((2, 3), np.int8), np.zeros(2, np.int64), [1], "bool"),
        (np.zeros((2, 0), bool), np.zeros(2, np.int64), [1], "bool"),
        (np.zeros((2, 3), bool), np.zeros(2, np.int64), [0], "ranks from 1"),
        (np.zeros((2, 3), bool), np.zeros(2, np.int64), [], "ranks from 1"),
        (np.zeros((2, 3), bool), np.zeros(3, np.int64), [1], "totals"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(relevant, totals, ks, message) -> None:
    with pytest.raises(InputError, match=message):
        measure(relevant, totals, ks)


def test_histograms_of_other_data_are_refused() -> None:
    histograms = Histograms(np.array([[1, 1]], np.int32), np.array([[1, 0]], np.int32))
    with pytest.raises(InputError, match="other data"):
        measure(np.array([[True]]), np.array([2]), [1], histograms=histograms)


def some_ties(seed: int) -> tuple[Histograms, np.ndarray]:
    random = np.random.default_rng(seed)
    items = random.integers(0, 9, (23, 11)).astype(np.int32)
    relevant = random.integers(0, items + 1).astype(np.int32)
    return Histograms(items, relevant), relevant.sum(axis=1, dtype=np.int64)


@pytest.mark.parametrize("deepest", [1, 2, 7, 20])
def test_what_lies_deeper_than_asked_for_changes_nothing(deepest: int) -> None:
    histograms, totals = some_ties(8)
    whole, head = TiedRankings(histograms, 99), TiedRankings(histograms, deepest)
    for k in range(1, deepest + 1):
        expected = whole.measures(k, totals)
        for name, spread in head.measures(k, totals).items():
            np.testing.assert_allclose(spread, expected[name], rtol=1e-12, atol=1e-15)


def test_queries_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    histograms, totals = some_ties(9)
    expected = TiedRankings(histograms, 40).measures(17, totals)
    for cells in (1, 30):
        monkeypatch.setattr(ties, "_CELLS", cells)
        for name, spread in TiedRankings(histograms, 40).measures(17, totals).items():
            np.testing.assert_array_equal(spread, expected[name])
