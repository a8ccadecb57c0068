"""Non-inferiority: Student's bounds, Holm's levels, and how many queries would be enough."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import ALPHA, noninferior, paired_test, queries_needed, t_probability, t_quantile

LEVELS = (0.4, 0.1, 0.025, 0.025 / 3, 0.025 / 50, 0.025 / 2000)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 20, 50, 793, 9999, 10**9])
def test_quantiles_are_those_of_scipy(freedom: int) -> None:
    for level in LEVELS:
        assert t_quantile(level, freedom) == pytest.approx(stats.t.isf(level, freedom), rel=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 50, 793, 9999])
def test_probabilities_are_those_of_scipy(freedom: int) -> None:
    for t in (0.0, 1e-9, 0.01, 0.5, 1.0, 1.96, 3.0, 8.0, 40.0, 1e4):
        expected = 2 * stats.t.sf(t, freedom)
        assert t_probability(t, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert t_probability(-t, freedom) == t_probability(t, freedom)


@pytest.mark.parametrize("n", [2, 3, 40, 800])
def test_two_rows_have_students_test(n: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.random(n), random.random(n)
    found = paired_test(a, b)
    expected = stats.ttest_rel(a, b)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-4)
    turned = paired_test(b, a)
    assert (turned.difference, turned.low, turned.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_a_rounding_is_no_difference() -> None:
    """An expectation over ties sums what is equal in another order."""
    near = np.where(np.arange(100) % 3 == 0, np.nextafter(1, 2), 1.0)
    assert paired_test(np.ones(100), near) == (0.0, 0.0, 0.0, 1.0)
    assert paired_test(near, np.full(100, np.nextafter(1, 2))).p == 1


def test_equal_differences_are_certain() -> None:
    assert paired_test(np.full(5, 0.5), np.full(5, 0.25)) == (0.25, 0.25, 0.25, 0.0)
    assert paired_test(np.full(5, 0.5), np.full(5, 0.5)) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0.5], [0.5], "at least two queries"),
        ([], [], "at least two queries"),
        ([0.5, 0.5], [0.5], "one value a query is needed"),
        ([0.5, 0.5], [0.5, math.nan], "query 1 is not a finite number"),
    ],
)
def test_rows_that_cannot_be_tested(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired_test(np.array(a), np.array(b))
    with pytest.raises(InputError, match="a degree of freedom"):
        t_probability(1.0, 0)


def test_one_row_has_students_interval() -> None:
    random = np.random.default_rng(0)
    reference = random.random(40)
    row = reference + random.normal(0.002, 0.02, 40)
    (found,) = noninferior([row], reference)
    d = row - reference
    low, high = stats.t.interval(0.95, 39, d.mean(), stats.sem(d))
    assert found.mean == pytest.approx(d.mean())
    assert (found.low, found.high, found.adjusted) == pytest.approx((low, high, low), rel=1e-4)
    p = stats.ttest_1samp(d, -0.01, alternative="greater").pvalue
    assert found.shown == (p < ALPHA)


def rows_at(tops: list[float], queries: int = 50) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Rows whose means are exactly so many standard errors above -0.01, and a reference of zeros."""
    noise = np.random.default_rng(1).normal(0, 0.05, queries)
    noise -= noise.mean()
    error = noise.std(ddof=1) / math.sqrt(queries)
    return [noise - 0.01 + top * error for top in tops], np.zeros(queries)


def test_holm_steps_down_until_the_first_failure() -> None:
    levels = [stats.t.isf(ALPHA / m, 49) for m in (3, 2, 1)]
    rows, reference = rows_at([value + 1e-3 for value in levels])
    assert [d.shown for d in noninferior(rows, reference)] == [True, True, True]
    rows, reference = rows_at([levels[0] + 1e-3, levels[1] - 1e-3, levels[1] - 2e-3])
    found = noninferior(rows, reference)
    assert [d.shown for d in found] == [True, False, False]  # the third alone would pass
    assert noninferior([rows[2]], reference)[0].shown
    rows, reference = rows_at([levels[0] - 1e-3] * 3)
    assert not any(d.shown for d in noninferior(rows, reference))


def test_equal_rows_share_a_bound() -> None:
    rows, reference = rows_at([2.6, 2.6, 4.0])
    found = noninferior(rows, reference)
    assert found[0] == found[1]


def test_differences_that_do_not_vary_are_bounded_by_their_mean() -> None:
    reference = np.zeros(5)
    found = noninferior([np.full(5, value) for value in (0.0, -0.01, -0.5)], reference)
    assert [(d.adjusted, d.shown) for d in found] == [(0.0, True), (-0.01, False), (-0.5, False)]
    at_the_margin, good = noninferior([np.full(5, -0.01), np.zeros(5)], reference)
    assert (at_the_margin.shown, good.shown) == (False, True)


def test_one_query_shows_nothing() -> None:
    (found,) = noninferior([np.ones(1)], np.zeros(1))
    assert not found.shown
    assert (found.mean, found.low, found.high, found.adjusted) == (1.0, -math.inf, math.inf, -math.inf)
    assert queries_needed(np.ones(1)) is None


def test_no_rows_are_no_differences() -> None:
    assert noninferior([], np.zeros(3)) == []


@pytest.mark.parametrize(
    ("rows", "reference", "margin", "alpha", "message"),
    [
        ([np.zeros(3)], np.zeros(4), 0.01, 0.025, r"row 0: one value a query .*\(4,\), got \(3,\)"),
        ([np.zeros(4), np.zeros((4, 1))], np.zeros(4), 0.01, 0.025, "row 1: one value"),
        ([np.array([0.0, np.nan])], np.zeros(2), 0.01, 0.025, "row 0: the value of query 1 is not"),
        ([np.zeros(2)], np.array([np.inf, 0.0]), 0.01, 0.025, "the reference: the value of query 0"),
        ([np.zeros(0)], np.zeros(0), 0.01, 0.025, "no queries"),
        ([np.zeros(2)], np.zeros(2), -0.01, 0.025, "margin"),
        ([np.zeros(2)], np.zeros(2), math.nan, 0.025, "margin"),
        ([np.zeros(2)], np.zeros(2), 0.01, 0.5, "level"),
    ],
)
def test_bad_values_are_refused(
    rows: list[NDArray[Any]], reference: NDArray[Any], margin: float, alpha: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        noninferior(rows, reference, margin, alpha)


def test_bad_differences_and_quantiles_are_refused() -> None:
    with pytest.raises(InputError, match="no queries"):
        queries_needed(np.zeros(0))
    with pytest.raises(InputError, match="query 1 is not"):
        queries_needed(np.array([0.0, np.nan]))
    for level, freedom in ((0.0, 3), (0.5, 3), (0.1, 0)):
        with pytest.raises(InputError, match="degree of freedom"):
            t_quantile(level, freedom)


@pytest.mark.parametrize("level", [ALPHA, ALPHA / 40])
@pytest.mark.parametrize("mean", [0.02, 0.0, -0.005, -0.0099])
def test_the_queries_needed_are_just_enough(mean: float, level: float) -> None:
    d = np.random.default_rng(3).normal(0, 0.1, 200)
    d += mean - d.mean()
    needed = queries_needed(d, 0.01, level)
    assert needed is not None
    for queries, enough in ((needed, True), (needed - 1, False)):
        low = mean - stats.t.isf(level, queries - 1) * d.std(ddof=1) / math.sqrt(queries)
        assert (low > -0.01) == enough


def test_queries_that_would_not_help() -> None:
    assert queries_needed(np.array([-0.01, -0.03, 0.01])) is None
    assert queries_needed(np.zeros(10)) == 2
    assert queries_needed(np.full(10, -0.01)) is None


values = st.lists(st.integers(0, 60), min_size=12, max_size=12).map(lambda xs: np.array(xs) / 60)
several = st.lists(values, min_size=1, max_size=5)
near = st.floats(-0.02, 0.1)


def cases(rows: list[NDArray[Any]], reference: NDArray[Any], up: float) -> list[NDArray[Any]]:
    """Rows that are near enough to the reference for some to pass and some to fail."""
    return [reference + 0.05 * (row - 0.5) + up for row in rows]


@settings(deadline=None, max_examples=150)
@given(several, values, near, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(
    rows: list[NDArray[Any]], reference: NDArray[Any], up: float, random: Any
) -> None:
    rows = cases(rows, reference, up)
    order = list(range(len(rows)))
    random.shuffle(order)
    found = noninferior(rows, reference)
    assert noninferior([rows[i] for i in order], reference) == [found[i] for i in order]


@settings(deadline=None, max_examples=150)
@given(several, several, values, near)
def test_more_rows_never_show_one_that_was_not(
    rows: list[NDArray[Any]], more: list[NDArray[Any]], reference: NDArray[Any], up: float
) -> None:
    rows, more = cases(rows, reference, up), cases(more, reference, up)
    alone = noninferior(rows, reference)
    together = noninferior([*rows, *more], reference)
    for before, after in zip(alone, together, strict=False):
        assert before.shown or not after.shown


@settings(deadline=None, max_examples=150)
@given(several, values, near, st.floats(1e-6, 0.2), st.data())
def test_a_row_that_gets_better_is_not_lost(
    rows: list[NDArray[Any]], reference: NDArray[Any], up: float, better: float, data: st.DataObject
) -> None:
    rows = cases(rows, reference, up)
    i = data.draw(st.integers(0, len(rows) - 1))
    assume(noninferior(rows, reference)[i].shown)
    rows[i] = rows[i] + better
    assert noninferior(rows, reference)[i].shown


def test_few_comparisons_pass_a_row_that_loses_the_margin() -> None:
    random = np.random.default_rng(5)
    runs, wrong = 1500, 0
    for _ in range(runs):
        shared = random.normal(0, 0.1, 60)  # queries are hard or easy for all rows alike
        bad = [shared + random.normal(0, 0.1, 60) for _ in range(8)]
        good = [shared + 0.3 + random.normal(0, 0.1, 60) for _ in range(2)]
        found = noninferior([row - 0.01 for row in [*bad, *good]], np.zeros(60))
        wrong += any(d.shown for d in found[:8])
    noise = 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert wrong / runs <= ALPHA + noise
    assert wrong > 0  # the test is not so careful that it shows nothing
