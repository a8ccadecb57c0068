"""Items that a query ignores: every measure and curve is as if they were not in the database."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.comparison.combine import Plan
from cbir_faiss.comparison.rows import compare_split
from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.config import Metrics, parse_choices
from cbir_faiss.errors import InputError
from cbir_faiss.measures.histograms import hamming_histograms
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance

labels = st.lists(st.sampled_from("abcde"), max_size=2).map(tuple)
several = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(labels, min_size=n, max_size=n),
        st.lists(labels, min_size=n, max_size=n),
        st.lists(labels, min_size=1, max_size=5),
    )
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(several)
def test_ignored_is_neither_right_nor_wrong(sets: Any) -> None:
    items, ignored, queries = sets
    relevance = Relevance.from_labels(items, queries, ignored)
    if not any(items) or not any(queries):
        assert relevance is None
        return
    junk = np.array([[bool(set(x) & set(q)) for x in ignored] for q in queries])
    right = np.array([[bool(set(x) & set(q)) for x in items] for q in queries]) & ~junk
    np.testing.assert_array_equal(relevance.block(slice(None)), right)
    np.testing.assert_array_equal(relevance.totals, right.sum(axis=1))
    assert relevance.most_ignored == (junk.sum(axis=1).max() if any(ignored) else 0)
    rows = np.stack([np.random.default_rng(0).permutation(len(items)) for _ in queries])
    np.testing.assert_array_equal(relevance.of(rows), np.take_along_axis(right, rows, axis=1))
    for row, order, ranked in zip(range(len(queries)), rows, relevance.ranked(rows), strict=True):
        left = [right[row, i] for i in order if not junk[row, i]]
        np.testing.assert_array_equal(ranked, left + [False] * (len(items) - len(left)))


def test_as_many_sets_as_items() -> None:
    with pytest.raises(InputError, match="1 sets of ignored labels for 2 items"):
        Relevance.from_labels([("a",), ("b",)], [("a",)], [("a",)])
    with pytest.raises(InputError, match="must be a tuple of texts"):
        Relevance.from_labels([("a",)], [("a",)], ["a"])  # type: ignore[list-item]


@pytest.fixture
def split() -> Split:
    """Three queries of labels a, b, c over 60 items; each ignores its nearest, which would be right, and some more."""
    rng = np.random.default_rng(3)
    x, q = rng.standard_normal((60, 16), dtype=np.float32), rng.standard_normal((3, 16), dtype=np.float32)
    own = [("abcd"[i % 4],) for i in range(60)]
    ignored: list[tuple[str, ...]] = [()] * 60
    for query, name in enumerate("abc"):
        nearest = np.argsort(((x - q[query]) ** 2).sum(axis=1))
        for i in nearest[[0, 3, 4, 59]]:
            ignored[i] = (*ignored[i], name)
            own[i] = (name,)
    return Split(Side(x, own, ignored=ignored), Side(q, [("a",), ("b",), ("c",)]))


def without(split: Split, query: int) -> Split:
    """One query, and the items that it does not ignore."""
    (name,) = split.queries.labels[query]
    kept = [i for i in range(len(split.items)) if name not in split.items.ignored[i]]
    items = Side(split.items.embedding[kept], [split.items.labels[i] for i in kept])
    return Split(items, Side(split.queries.embedding[query : query + 1], [split.queries.labels[query]]))


def rows_of(split: Split, rescore: Any = ({"name": "none"},)) -> list[dict[str, Any]]:
    plan = Plan(
        parse_choices("codecs", [{"name": "raw"}, {"name": "sign", "center": False}], "codecs"),
        parse_choices("backends", [{"name": "faiss-flat"}, {"name": "faiss-binary-flat"}], "backends"),
        parse_choices("rescorers", rescore, "rescore"),
        Metrics(k=(1, 5, 20, 60)),
    )
    return [row.as_json() for row in compare_split(split, plan)[0]]


def test_every_measure_is_as_if_they_were_not_there(split: Split) -> None:
    """Float search, exact Hamming search with its ties, rescored search; also when fewer are left than asked for."""
    rescore = [{"name": "none"}, {"name": "float", "candidates": "all", "center": False, "metric": "l2"}]
    together = rows_of(split, rescore)
    alone = [rows_of(without(split, query), rescore) for query in range(3)]
    assert len(together) == 4
    for number, row in enumerate(together):
        for name, value in row["metrics"].items():
            if "knn_recall" in name or "ci95" in name or (name.endswith("_observed") and row["metric"] == "hamming"):
                continue  # neighbours are not about labels; the order of ties is the engine's
            expected = [some[number]["metrics"][name] for some in alone]
            assert (value is None) == (expected[0] is None)
            assert value is None or value == pytest.approx(np.mean(expected), abs=1e-9), name
        for curve, points in row["curves"].items():
            wanted = np.mean([np.array(some[number]["curves"][curve]) for some in alone], axis=0)
            # a shorter database ends its curve against k sooner
            np.testing.assert_allclose(np.array(points)[: len(wanted)], wanted, atol=2e-6)


def test_histograms_and_rankings_leave_them_out() -> None:
    relevance = Relevance.from_labels([("a",), ("a",), ("b",)], [("a",)], [("a",), (), ()])
    assert relevance is not None
    codes = np.array([[0], [1], [3]], np.uint8)
    histograms = hamming_histograms(codes[:1], codes, relevance)
    assert histograms.items[0, :3].tolist() == [0, 1, 1]
    assert histograms.relevant[0, :3].tolist() == [0, 1, 0]
    x = np.array([[0.0], [1.0], [2.0]], np.float32)
    (ranking,) = full_rankings(x, x[:1], relevance, "l2")
    assert ranking.tolist() == [[True, False, False]]
