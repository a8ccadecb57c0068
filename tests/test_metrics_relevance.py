"""Relevance from labels, and histograms of Hamming distances, against one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.errors import DimensionMismatch, InputError
from cbir_faiss.measures import relevance as relevance_module
from cbir_faiss.measures.histograms import hamming_histograms
from cbir_faiss.measures.relevance import Relevance

one_label = st.lists(st.sampled_from("abcd"), max_size=1).map(tuple)
few_labels = st.lists(st.sampled_from("abcdefg"), max_size=3).map(tuple)
sides = st.one_of(*(st.tuples(st.lists(s, max_size=12), st.lists(s, max_size=6)) for s in (one_label, few_labels)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sides)
def test_relevant_means_a_label_in_common(labels) -> None:
    items, queries = labels
    relevance = Relevance.from_labels(items, queries)
    if not any(items) or not any(queries):
        assert relevance is None
        return
    expected = np.array([[bool(set(x) & set(q)) for x in items] for q in queries])
    np.testing.assert_array_equal(relevance.block(slice(None)), expected)
    np.testing.assert_array_equal(relevance.totals, expected.sum(axis=1))
    rows = np.tile(np.append(np.arange(len(items))[::-1], -1), (len(queries), 1))
    np.testing.assert_array_equal(relevance.of(rows)[:, :-1], expected[:, ::-1])
    assert not relevance.of(rows)[:, -1].any()
    np.testing.assert_array_equal(relevance.of(rows[1:], slice(1, None)), relevance.of(rows)[1:])
    np.testing.assert_array_equal(relevance.block(slice(1, 3), slice(0, 2)), expected[1:3, :2])


def test_more_labels_than_bits_in_a_word() -> None:
    random = np.random.default_rng(0)
    items = [tuple(f"tag {i}" for i in random.integers(0, 200, 3)) for _ in range(300)]
    queries = [tuple(f"tag {i}" for i in random.integers(0, 200, 4)) for _ in range(40)]
    relevance = Relevance.from_labels(items, queries)
    assert relevance is not None
    expected = np.array([[bool(set(x) & set(q)) for x in items] for q in queries])
    np.testing.assert_array_equal(relevance.block(slice(None)), expected)
    np.testing.assert_array_equal(relevance.totals, expected.sum(axis=1))


@pytest.mark.parametrize("labels", [63, 64, 65, 128])
def test_as_many_labels_as_bits_in_a_word(labels: int) -> None:
    items = [(f"tag {i}", "all") for i in range(labels - 1)]
    relevance = Relevance.from_labels(items, items)
    assert relevance is not None
    assert relevance.totals.tolist() == [labels - 1] * (labels - 1)
    apart = Relevance.from_labels(items, [(f"tag {i}",) for i in range(labels - 1)])
    assert apart is not None
    np.testing.assert_array_equal(apart.block(slice(None)), np.eye(labels - 1, dtype=bool))


def test_labels_that_are_not_tuples_of_text_are_refused() -> None:
    with pytest.raises(InputError, match="labels of item 1 must be a tuple"):
        Relevance.from_labels([("cat",), "dog"], [("cat",)])
    with pytest.raises(InputError, match="labels of query 0 must be a tuple"):
        Relevance.from_labels([("3",)], [(3,)])


def test_rows_that_do_not_fit_are_refused() -> None:
    relevance = Relevance.from_labels([("a",), ("b",)], [("a",)])
    assert relevance is not None
    with pytest.raises(InputError, match="one line a query"):
        relevance.of(np.zeros((2, 1), np.int64))
    for row in (2, -2):
        with pytest.raises(InputError, match="must lie in"):
            relevance.of(np.full((1, 1), row, np.int64))


@pytest.mark.parametrize("bits", [8, 24, 64, 136])
@pytest.mark.parametrize("labels", [[("a",), ("b",), ()], [("a", "b"), ("b",), ("c",), ()]])
def test_histograms_count_every_pair(bits: int, labels: list[tuple[str, ...]]) -> None:
    random = np.random.default_rng(bits)
    item_codes = random.integers(0, 256, (9000, bits // 8), dtype=np.uint8)  # more than one block of items
    query_codes = random.integers(0, 256, (19, bits // 8), dtype=np.uint8)
    query_codes[0], query_codes[1] = item_codes[0], ~item_codes[1]  # distance 0, and all bits
    items, queries = [labels[i % len(labels)] for i in range(9000)], [labels[i % len(labels)] for i in range(19)]
    relevance = Relevance.from_labels(items, queries)
    assert relevance is not None
    got = hamming_histograms(query_codes, item_codes, relevance, threads=2)
    relevant = relevance.block(slice(None))
    for i, code in enumerate(query_codes):
        distance = np.unpackbits(code ^ item_codes, axis=1).sum(axis=1)
        np.testing.assert_array_equal(got.items[i], np.bincount(distance, minlength=bits + 1))
        np.testing.assert_array_equal(got.relevant[i], np.bincount(distance[relevant[i]], minlength=bits + 1))


def test_codes_that_do_not_fit_are_refused() -> None:
    relevance = Relevance.from_labels([("a",)] * 3, [("a",)] * 2)
    assert relevance is not None
    codes = np.zeros((3, 4), np.uint8)
    with pytest.raises(DimensionMismatch):
        hamming_histograms(np.zeros((2, 2), np.uint8), codes, relevance)
    with pytest.raises(InputError, match="packed codes"):
        hamming_histograms(np.zeros((2, 4), np.float32), codes, relevance)
    with pytest.raises(InputError, match="but labels of"):
        hamming_histograms(codes, codes, relevance)


@pytest.mark.parametrize("labels", [[("a",), ("b",), ()], [("a", "b"), ("b",), ("c",), ()]])
def test_pairs_are_looked_at_in_blocks(labels: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    items, queries = ([labels[i % len(labels)] for i in range(n)] for n in (50, 17))
    random = np.random.default_rng(0)
    rows = random.integers(-1, 50, (17, 9))
    expected = Relevance.from_labels(items, queries)
    assert expected is not None
    totals, found = expected.totals, expected.of(rows)
    for pairs in (1, 60, 500):
        monkeypatch.setattr(relevance_module, "_PAIRS", pairs)
        again = Relevance.from_labels(items, queries)
        assert again is not None
        np.testing.assert_array_equal(again.totals, totals)
        np.testing.assert_array_equal(again.of(rows), found)
    assert expected.of(np.empty((17, 0), np.int64)).shape == (17, 0)
