"""Health of codes whose faults are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cbir_faiss.errors import DimensionMismatch, InputError
from cbir_faiss.measures import code_statistics
from cbir_faiss.measures.code_statistics import code_health


def packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(np.uint8), axis=1)


def test_random_codes_are_healthy() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (6000, 64))
    health = code_health(packed(bits), 64)
    json.dumps(health, allow_nan=False)
    assert health["items"] == health["sample"] == health["distinct"] == 6000
    assert health["constant_bits"] == 0
    assert health["ones_mean"] == pytest.approx(bits.mean())
    assert health["ones_min"] == pytest.approx(bits.mean(axis=0).min())
    assert health["ones_max"] == pytest.approx(bits.mean(axis=0).max())
    correlation = np.asarray(np.corrcoef(bits.T))
    np.testing.assert_allclose(health["correlation_mean"], np.abs(correlation[~np.eye(64, dtype=bool)]).mean())
    squares = np.square(correlation[~np.eye(64, dtype=bool)])
    unbiased = 1 - (1 - squares) * 5999 / 5998
    np.testing.assert_allclose(health["effective_bits"], 64**2 / (64 + max(0, unbiased.sum())))
    assert health["entropy_bits"] == pytest.approx(np.log2(6000))
    assert health["gini"] == pytest.approx(0, abs=1e-12)
    assert health["prefix"]["bits"] == 16
    assert health["prefix"]["distinct"] == len(np.unique(bits[:, :16], axis=0))


@pytest.mark.parametrize(("bits", "sample"), [(512, 200), (64, 5000)])
def test_as_many_effective_bits_as_ideal_ones(bits: int, sample: int) -> None:
    """Also of a sample smaller than the code, where chance alone correlates bits."""
    codes = packed(np.random.default_rng(7).integers(0, 2, (sample, bits)))
    assert code_health(codes, bits)["effective_bits"] == pytest.approx(bits, rel=0.03)


def test_bits_that_are_equal_are_one_whatever_the_sample() -> None:
    for n in (2, 3, 10):
        bits = np.tile(np.arange(n)[:, None] % 2, (1, 16))
        assert code_health(packed(bits), 16)["effective_bits"] == pytest.approx(1)


def test_repeated_and_constant_bits_are_counted() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (5000, 4))
    health = code_health(packed(np.hstack([np.tile(bits, 5), np.ones((5000, 4), int)])), 24)
    assert health["constant_bits"] == 4
    assert health["ones_max"] == 1
    assert health["distinct"] == 16
    assert health["effective_bits"] == pytest.approx(4, abs=0.05)
    assert health["correlation_mean"] == pytest.approx(4 / 19, abs=0.03)
    assert health["entropy_bits"] == pytest.approx(4, abs=0.05)


def test_skewed_buckets() -> None:
    values = np.repeat(np.arange(4), [70, 10, 10, 10]).astype(np.uint8)[:, None]
    health = code_health(values, 8)
    assert health["distinct_share"] == 0.04
    assert health["largest_share"] == health["top1_share"] == 0.7
    # Mean absolute difference of all pairs over twice the mean: 6 pairs of 16 differ, by 60, and the mean is 25.
    assert health["gini"] == pytest.approx(6 * 60 / 16 / (2 * 25))
    assert health["entropy_bits"] == pytest.approx(-(0.7 * np.log2(0.7) + 0.3 * np.log2(0.1)))
    assert health["prefix"] == {"bits": 8, **{key: health[key] for key in health["prefix"] if key != "bits"}}


def test_the_prefix_is_the_first_bits() -> None:
    bits = np.zeros((8, 16), int)
    bits[:, 3:6] = np.unpackbits(np.arange(8, dtype=np.uint8)[:, None], axis=1)[:, -3:]
    assert [code_health(packed(bits), 16, prefix=p)["prefix"]["distinct"] for p in (3, 4, 5, 6)] == [1, 2, 4, 8]


def test_padding_is_no_bit() -> None:
    bits = np.random.default_rng(2).integers(0, 2, (1000, 12))
    health = code_health(packed(bits), 12)
    assert health["constant_bits"] == 0
    assert health["ones_min"] > 0.4


def test_a_sample_is_bounded_and_the_same_every_time() -> None:
    codes = np.random.default_rng(3).integers(0, 256, (5000, 2), dtype=np.uint8)
    health = code_health(codes, 16, sample=1000)
    assert (health["items"], health["sample"]) == (5000, 1000)
    assert health == code_health(codes, 16, sample=1000)


def test_one_code_and_equal_codes_have_no_correlation() -> None:
    for n in (1, 50):
        health = code_health(np.full((n, 1), 0b10100000, np.uint8), 8)
        assert health["constant_bits"] == 8
        assert health["correlation_mean"] == health["effective_bits"] == health["entropy_bits"] == 0
        assert str(health["entropy_bits"]) == "0.0"  # and not -0.0
        assert health["largest_share"] == 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="packed codes"):
        code_health(np.zeros((3, 2), np.float32), 16)
    with pytest.raises(InputError, match="packed codes"):
        code_health(np.zeros(3, np.uint8), 24)
    with pytest.raises(DimensionMismatch, match="cannot be of 24 bits"):
        code_health(np.zeros((3, 2), np.uint8), 24)
    with pytest.raises(InputError, match="no codes"):
        code_health(np.zeros((0, 2), np.uint8), 16)
    with pytest.raises(InputError, match="at least 1"):
        code_health(np.zeros((3, 2), np.uint8), 16, sample=0)


def test_the_fullest_hundredth_of_many_buckets() -> None:
    values = np.concatenate([np.arange(300), np.repeat([7, 30, 100], [50, 30, 20])])
    codes = np.stack([values // 256, values % 256], axis=1).astype(np.uint8)
    health = code_health(codes, 16)
    assert health["distinct"] == 300
    assert health["largest_share"] == 51 / 400
    assert health["top1_share"] == pytest.approx((51 + 31 + 21) / 400)


def test_defaults_are_those_that_are_documented() -> None:
    codes = np.random.default_rng(4).integers(0, 256, (20_003, 3), dtype=np.uint8)
    health = code_health(codes, 24)
    assert (health["items"], health["sample"], health["prefix"]["bits"]) == (20_003, 20_000, 16)
    assert health == code_health(codes, 24, seed=0)
    assert health != code_health(codes, 24, seed=1)


def test_a_code_and_a_prefix_of_one_bit() -> None:
    health = code_health(np.array([[0], [128], [128]], np.uint8), 1, prefix=1)
    assert health["ones_mean"] == pytest.approx(2 / 3)
    assert (health["effective_bits"], health["correlation_mean"]) == (1, 0)
    assert health["prefix"]["distinct"] == 2
    assert code_health(np.array([[0], [128]], np.uint8), 8, sample=1)["sample"] == 1


def test_codes_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(5).integers(0, 256, (100, 2), dtype=np.uint8)
    expected = code_health(codes, 16)
    for rows in (1, 33, 100):
        monkeypatch.setattr(code_statistics, "_ROWS", rows)
        assert code_health(codes, 16) == expected
