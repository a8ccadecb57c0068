"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from cbir_faiss.errors import InputError
from cbir_faiss.measures import bootstrap
from cbir_faiss.measures.bootstrap import bootstrap_ci, paired_difference


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3, 2, 4000)
    low, high = bootstrap_ci(values, resamples=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half)


def test_same_seed_same_draws_whatever_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random((50, 2))
    both = bootstrap_ci(values, seed=4)
    np.testing.assert_allclose(both[:, 1], bootstrap_ci(values[:, 1], seed=4), rtol=1e-12)
    assert not np.array_equal(both, bootstrap_ci(values, seed=5))
    monkeypatch.setattr(bootstrap, "_DRAWS", 120)  # two resamples at a time
    np.testing.assert_allclose(bootstrap_ci(values, seed=4), both, rtol=1e-12)


def test_paired_difference_is_narrower_than_the_values() -> None:
    random = np.random.default_rng(2)
    a = random.random(300)
    b = a - 0.01 + random.normal(0, 0.01, 300)
    mean, (low, high) = paired_difference(a, b)
    assert low < mean < high
    assert low > 0
    assert high - low < 0.01
    assert mean == pytest.approx((a - b).mean())


def test_one_query_has_an_interval_without_width() -> None:
    np.testing.assert_array_equal(bootstrap_ci(np.array([0.25])), [0.25, 0.25])


def test_values_that_cannot_be_resampled_are_refused() -> None:
    with pytest.raises(InputError, match="at least one query"):
        bootstrap_ci(np.zeros(0))
    with pytest.raises(InputError, match="at least one query"):
        bootstrap_ci(np.zeros(3), resamples=0)
    with pytest.raises(InputError, match="of the same queries"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_the_interval_is_that_of_a_thousand_seeded_draws_of_all_queries() -> None:
    """Published intervals are made again from the same values."""
    values = np.random.default_rng(3).random(37)
    random = np.random.default_rng(0)
    means = [values[random.integers(37, size=37)].mean() for _ in range(1000)]
    np.testing.assert_allclose(bootstrap_ci(values), np.quantile(means, [0.025, 0.975]), rtol=1e-12)
    mean, interval = paired_difference(values, np.zeros(37))
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose(interval, bootstrap_ci(values), rtol=1e-12)


def test_more_queries_than_draws_at_a_time_and_one_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(30)
    expected = bootstrap_ci(values, resamples=7)
    for draws in (1, 30, 31, 75):  # one resample at a time, and several with a rest
        monkeypatch.setattr(bootstrap, "_DRAWS", draws)
        np.testing.assert_allclose(bootstrap_ci(values, resamples=7), expected, rtol=1e-12)
    low, high = bootstrap_ci(values, resamples=1)
    assert low == high
