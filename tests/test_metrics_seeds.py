"""What several seeds say together, and what a mean over queries hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cbir_faiss.errors import InputError
from cbir_faiss.measures.by_query import by_class, worst_queries
from cbir_faiss.measures.seeds import over_seeds


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.61, 0.64, 0.60], [0.1, 0.2, 0.3, 0.4, 0.9]])
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1), low, high), rel=1e-4)


def test_three_seeds_are_not_three_hundred_draws() -> None:
    """Networks that differ by luck: what pools their queries is sure of what the seeds do not show."""
    rng = np.random.default_rng(0)
    by_seed = [rng.normal(mean, 0.1, 100) for mean in (0.80, 0.86, 0.92)]
    pooled = 1.96 * np.concatenate(by_seed).std() / math.sqrt(300)
    found = over_seeds([float(values.mean()) for values in by_seed])
    assert found.high - found.mean > 5 * pooled


def test_seeds_that_say_nothing() -> None:
    for values in ([], [0.5]):
        with pytest.raises(InputError, match=f"takes at least two of them, got {len(values)}: give more seeds"):
            over_seeds(values)
    with pytest.raises(InputError, match="seed 1 is not a finite number"):
        over_seeds([0.5, math.nan, 0.5])


def test_means_by_class() -> None:
    labels = [("cat",), ("dog", "cat"), (), ("ant",), ("cat", "cat")]
    found = by_class(np.array([0.0, 1.0, 0.3, 0.5, 0.8]), labels)
    assert list(found) == ["ant", "cat", "dog"]
    assert found == {"ant": (1, 0.5), "cat": (3, pytest.approx(0.6)), "dog": (1, 1.0)}
    assert by_class(np.zeros(0), []) == {}
    with pytest.raises(InputError, match="one value a query"):
        by_class(np.zeros(2), labels)


def test_the_worst_queries_have_something_to_find() -> None:
    values, totals = np.array([0.5, 0.0, 0.0, 0.9, 0.5]), np.array([3, 0, 2, 1, 1])
    assert worst_queries(values, totals, 3).tolist() == [2, 0, 4]
    assert worst_queries(values, totals, 99).tolist() == [2, 0, 4, 3]
    with pytest.raises(InputError, match="one value a query"):
        worst_queries(values, totals[1:], 3)
