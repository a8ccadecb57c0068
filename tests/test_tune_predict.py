"""Predictions to another size: recall, bytes and time, from a sample whose whole is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.base import registry
from cbir_faiss.measures.neighbours import exact_neighbours
from cbir_faiss.tuning.predict import ABSENT, Bytes, Pace, Seen, off_by, places_of


def nearest(
    codes: NDArray[np.uint8], queries: NDArray[np.uint8], depth: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    apart = np.bitwise_count(codes[None] ^ queries[:, None]).sum(axis=2, dtype=np.int64)
    ids = np.argsort(apart, axis=1, kind="stable")[:, :depth]
    return ids, np.take_along_axis(apart, ids, axis=1)


@pytest.fixture(scope="module")
def cloud() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """12,000 items and 200 queries near a curved sheet of 8 dimensions in 32."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((12_200, 8))
    x = np.tanh(z @ rng.standard_normal((8, 32)) * 0.5) + 0.05 * rng.standard_normal((12_200, 32))
    return x[:12_000].astype(np.float32), x[12_000:].astype(np.float32)


@pytest.mark.parametrize("bits", [16, 32])
def test_recall_among_six_times_as_many(cloud: tuple[NDArray[np.float32], NDArray[np.float32]], bits: int) -> None:
    x, q = cloud
    small = 2_000
    codec = registry.make("codecs", "itq", bits=bits).fit(x[:small])
    codes, asked = codec.encode(x), codec.encode(q)
    hits, scores = nearest(codes, asked, 800)
    truth, _ = exact_neighbours(x, q, 10, "l2")
    seen = Seen.of(*nearest(codes[:small], asked, 400), *exact_neighbours(x[:small], q, 50, "l2"))
    for depth in (10, 50, 200, 800):
        whole = Seen.of(hits[:, :depth], scores[:, :depth], truth, truth).recall(depth, 10)
        assert seen.recall(depth, 10, 6.0) == pytest.approx(whole, abs=0.06), depth
        told = seen.predicted(depth, 10, 6.0, 0.06)
        assert told.low <= whole <= told.high
        assert told.low <= told.value <= told.high
    # As it is in the sample, it would be far too high.
    assert seen.recall(50, 10) > Seen.of(hits[:, :50], scores[:, :50], truth, truth).recall(50, 10) + 0.1


@pytest.mark.parametrize("error", [0.01, 0.1])
def test_codes_that_hardly_err(cloud: tuple[NDArray[np.float32], NDArray[np.float32]], error: float) -> None:
    """The first of many more items are at ranks of one and two here, which vary for other reasons than the codes."""
    x, q = cloud
    rng, small = np.random.default_rng(1), 2_000
    exact = ((q[:, None] - x[None]) ** 2).sum(axis=2)
    scores = exact + error * np.median(np.sort(exact, axis=1)[:, 9]) * rng.standard_normal(exact.shape)
    truth = np.argsort(exact, axis=1)[:, :10]

    def found(n: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ids = np.argsort(scores[:, :n], axis=1)[:, :depth]
        return ids, np.take_along_axis(scores, ids, axis=1)

    seen = Seen.of(*found(small, 300), *exact_neighbours(x[:small], q, 100, "l2"))
    whole = Seen.of(*found(len(x), 10), truth, truth).recall(10, 10)
    told = seen.predicted(10, 10, 6.0, 0.02)
    assert told.value == pytest.approx(whole, abs=0.035)
    assert told.low <= whole <= told.high


@pytest.mark.parametrize("growth", [0.999, 1.001])
def test_hardly_more_items_find_hardly_less(
    cloud: tuple[NDArray[np.float32], NDArray[np.float32]], growth: float
) -> None:
    x, q = cloud[0][:1_000], cloud[1]
    codec = registry.make("codecs", "itq", bits=32).fit(x)
    seen = Seen.of(*nearest(codec.encode(x), codec.encode(q), 200), *exact_neighbours(x, q, 100, "l2"))
    for depth in (10, 40, 150):
        assert seen.recall(depth, 10, growth) == pytest.approx(seen.recall(depth, 10), abs=0.003)


def test_equals_are_found_whichever_it_is(cloud: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    ids = np.array([[4, 2, 4, -1]])
    assert places_of(ids, np.array([[2, 4, 4, 4]])).tolist() == [[1, 0, 2, ABSENT]]
    x, q = np.repeat(cloud[0][:3_000], 4, axis=0), cloud[1]
    order = np.random.default_rng(2).permutation(len(x))
    x, same, small = x[order], order // 4, 2_400
    first = {int(number): row for row, number in reversed(list(enumerate(same.tolist())))}
    same = np.array([first[int(number)] for number in same])
    codec = registry.make("codecs", "itq", bits=32).fit(x)
    codes, asked = codec.encode(x), codec.encode(q)

    def seen(n: int, depth: int) -> Seen:
        ids, scores = nearest(codes[:n], asked, depth)
        rows, apart = exact_neighbours(x[:n], q, 100, "l2")
        return Seen.of(same[ids], scores, same[rows], apart)

    for depth in (50, 200):
        whole = seen(len(x), depth).recall(depth, 10)
        assert seen(small, 400).recall(depth, 10, 5.0) == pytest.approx(whole, abs=0.05), depth


def test_without_growth_it_is_what_was_found() -> None:
    places = np.array([[0, 5, ABSENT], [1, 2, 3]])
    seen = Seen(places, np.ones((2, 3)), np.ones((2, 6)))
    assert seen.recall(3, 2) == 0.75
    assert seen.recall(6, 3) == pytest.approx(5 / 6)


def test_an_index_that_compares_by_the_distances_loses_only_what_it_does_not_find() -> None:
    rng = np.random.default_rng(0)
    there = rng.random((400, 20)) < 0.9
    places = np.where(there, np.cumsum(there, axis=1) - 1, ABSENT)
    apart = np.tile(np.arange(1, 21) ** 0.2, (400, 1))
    seen = Seen(places, apart, np.tile(apart[:1], (400, 1)))
    assert seen.ordered
    assert seen.recall(10, 10, 20.0) == pytest.approx(0.9, abs=0.02)


def test_items_that_are_as_far_are_in_order_whichever_comes_first() -> None:
    """Whole numbers have many equal distances, of which an exact scan finds any: what errs is still seen to err."""
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((3_000, 6)) * 3).astype(np.float32)
    items, queries = x[100:], x[:100]
    exact = ((queries[:, None] - items[None]) ** 2).sum(axis=2)
    nearest = np.argsort(exact, axis=1, kind="stable")[:, :50]
    shuffled = rng.permutation(len(items))
    scan = shuffled[np.argsort(exact[:, shuffled], axis=1, kind="stable")][:, :300]
    apart = np.take_along_axis(exact, nearest, 1)
    assert (np.diff(apart, axis=1) == 0).mean() > 0.5
    seen = Seen.of(scan, np.take_along_axis(exact, scan, 1), nearest, apart)
    assert seen.ordered
    assert seen.recall(10, 10, 50.0) > 0.99
    coarse = np.floor(exact / 40)
    codes = np.argsort(coarse, axis=1, kind="stable")[:, :300]
    assert not Seen.of(codes, np.take_along_axis(coarse, codes, 1), nearest, apart).ordered


def test_places_are_those_of_the_neighbours_among_the_hits() -> None:
    ids = np.array([[4, 2, -1], [0, 7, 9]])
    assert places_of(ids, np.array([[2, 5], [9, 0]])).tolist() == [[1, ABSENT], [2, 0]]


def test_equal_items_and_queries_without_a_hit_make_no_noise() -> None:
    places = np.full((5, 12), ABSENT)
    seen = Seen(places, np.zeros((5, 12)), np.full((5, 10), np.inf))
    assert seen.recall(10, 10, 5.0) < 0.2
    everything = Seen(np.tile(np.arange(12), (5, 1)), np.zeros((5, 12)), np.zeros((5, 12)))
    assert everything.recall(10, 10, 5.0) > 0.8


def test_bytes_and_times_go_by_what_grows() -> None:
    assert Bytes(8, 1000).per_item(100) == 18
    scan = Pace(1_000, single=3.0, slope=0.0015)
    assert scan.at(1_000) == 3
    assert scan.at(3_000) == 6
    assert Pace(1_000, 3.0, 0.0, walks=True).at(1_000_000) == pytest.approx(6)


def test_an_interval_is_as_wide_as_predictions_were_off() -> None:
    assert off_by([], 0.01) == 0.02
    assert off_by([0.001, -0.001], 0.01) == 0.02
    assert off_by([0.05, -0.05], 0.01, [10.0, 10.0], 10.0) == pytest.approx(0.1)
    assert off_by([0.05], 0.01, [10.0], 100.0) == pytest.approx(0.2)


def test_what_stands_in_lists_that_are_not_looked_into_is_lost_whatever_the_codes_are() -> None:
    """Hits that end before as many as were asked for were all that the search came by."""
    rng = np.random.default_rng(0)
    there = rng.random((500, 20)) < 0.7
    noisy = np.argsort(np.argsort(np.arange(20) + rng.normal(0, 3, (500, 20)), axis=1), axis=1)
    apart = np.tile(np.arange(1, 21) ** 0.2, (500, 1))
    scores = np.where(np.arange(60) < 40, np.arange(60) ** 0.2, np.inf)
    seen = Seen(np.where(there, noisy, ABSENT), apart, np.tile(scores, (500, 1)))
    assert seen.recall(200, 10, 10.0) == pytest.approx(0.7, abs=0.04)
    assert 0.2 < seen.recall(10, 10, 10.0) < 0.7
