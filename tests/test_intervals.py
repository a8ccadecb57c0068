"""The interval of a mean share: its coverage also near 1, of few, and of all there are."""

from __future__ import annotations

import numpy as np
import pytest

from cbir_faiss.errors import InputError
from cbir_faiss.measures.intervals import mean_interval


def shares(mean_lost: float, n: int, k: int = 10, seed: int = 0) -> np.ndarray:
    """Recalls of n queries: most lose nothing, some lose one neighbour, some all of them."""
    rng = np.random.default_rng(seed)
    lost = rng.binomial(k, np.minimum(1, rng.gamma(0.2, mean_lost / 0.2, n)))
    return 1 - lost / k


@pytest.mark.parametrize("lost", [0.3, 0.03, 0.003, 0.0006])
def test_it_covers_the_mean_of_a_finite_population(lost: float) -> None:
    population, rng = shares(lost, 5000), np.random.default_rng(1)
    truth, draws = population.mean(), 300
    covered = 0
    for _ in range(draws):
        low, high = mean_interval(rng.choice(population, 1000, replace=False), len(population))
        covered += low <= truth <= high
    assert covered >= 0.9 * draws


def test_a_few_that_lose_all_are_covered_too() -> None:
    population, rng = np.ones(5000), np.random.default_rng(2)
    population[:10] = 0
    found = [mean_interval(rng.choice(population, 1000, replace=False), 5000) for _ in range(150)]
    assert sum(low <= population.mean() <= high for low, high in found) >= 135


def test_values_that_are_all_equal_have_an_interval() -> None:
    low, high = mean_interval(np.ones(1000))
    assert 0.99 < low < 0.999
    assert high == 1
    assert mean_interval(np.zeros(1000)) == pytest.approx((0, 1 - low))


def test_all_there_are_leave_nothing_open() -> None:
    values = shares(0.1, 400)
    assert mean_interval(values, 400) == pytest.approx((values.mean(), values.mean()), abs=1e-6)


def test_it_is_as_wide_as_theory_has_it_where_there_are_many() -> None:
    values = shares(0.2, 4000)
    low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(4000), rel=0.05)


def test_one_value_says_little() -> None:
    low, high = mean_interval(np.array([1.0]))
    assert low < 0.1
    assert high == 1


@pytest.mark.parametrize(("values", "population"), [([], None), ([1.2], None), ([np.nan], None), ([1, 1, 1], 2)])
def test_bad_values_are_refused(values: list[float], population: int | None) -> None:
    with pytest.raises(InputError):
        mean_interval(np.array(values, float), population)
