"""Checks of arrays from outside: what passes, what is converted, and what is refused and where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cbir_faiss.base.checks import (
    check_codes,
    check_floats,
    check_ids,
    check_payload,
    check_rows,
    directions,
    normalise,
    within,
)
from cbir_faiss.errors import DimensionMismatch, InputError
from cbir_faiss.types import Hits


def test_rows_are_a_line_a_query_of_items_that_are_there() -> None:
    for rows in ([[0, 4], [-1, 2]], np.empty((2, 0), np.int64)):
        check_rows(np.asarray(rows), queries=2, items=5)
    for rows in ([[0, 1]], [0, 1], [[0], [1], [2]]):
        with pytest.raises(InputError, match="one line a query"):
            check_rows(np.array(rows), queries=2, items=5)
    for rows in ([[0], [5]], [[-2], [0]]):
        with pytest.raises(InputError, match=r"must lie in -1\.\.4"):
            check_rows(np.array(rows), queries=2, items=5)


def test_ids_are_integers_that_may_come_in_any_order() -> None:
    assert check_ids([]).shape == (0,)
    assert check_ids([3, 3, 1]).tolist() == [3, 3, 1]
    assert check_ids(np.array([7, 0, 2], np.uint8), unique=True).dtype == np.int64
    assert check_ids([5], unique=True).tolist() == [5]
    with pytest.raises(InputError, match="id 3 occurs twice"):
        check_ids([3, 1, 3, 0], unique=True)
    for wrong in ([1.5], [[1]], ["a"]):
        with pytest.raises(InputError, match="1-d array of integers"):
            check_ids(wrong)
    with pytest.raises(InputError, match="not negative, got -1"):
        check_ids([0, -1])


def test_directions_are_of_length_one_but_zero_has_none() -> None:
    x = np.array([[3, 4], [0, 0], [0, 1e-3]], np.float32)
    np.testing.assert_allclose(directions(x), [[0.6, 0.8], [0, 0], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_size_are_float32(dtype: Any) -> None:
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    for given in (x, np.asfortranarray(x), x[:0]):
        checked = check_floats(given, "it", 3)
        assert (checked.dtype, checked.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(checked, given)


def test_floats_that_are_none() -> None:
    for wrong in (np.ones((2, 2), int), np.ones(3), [[1.0]], np.ones((1, 1), complex)):
        with pytest.raises(InputError, match=r"it takes float vectors of shape \(n, dim\)"):
            check_floats(wrong, "it")
    with pytest.raises(DimensionMismatch, match="of 4 dimensions, got 3"):
        check_floats(np.ones((2, 3)), "it", 4)
    for value in (np.nan, np.inf, 1e300):
        x = np.zeros((5, 2))
        x[3, 1] = value
        with pytest.raises(InputError, match="vector 3 holds NaN or infinity"):
            check_floats(x, "it")
    large = np.full((2, 2), 3e38, np.float32)  # finite, though its square is not
    assert check_floats(large, "it") is large


def test_codes_are_packed_bytes() -> None:
    codes = np.zeros((4, 6), np.uint8)
    assert check_codes(codes, "it", 48) is codes
    assert check_codes(codes[:, ::2], "it", 24).flags.c_contiguous
    with pytest.raises(DimensionMismatch, match="of 40 bits, got 48"):
        check_codes(codes, "it", 40)
    for wrong in (codes.astype(np.int8), codes[0], [[1]]):
        with pytest.raises(InputError, match="it takes packed codes"):
            check_codes(wrong, "it", 8)


def test_payloads_are_json() -> None:
    check_payload(None)
    check_payload([{"a": 1, "b": [1, None, {"c": "x"}]}, {}, {"d": 0.5}])
    for wrong in ({"a": np.int64(1)}, {"a": float("nan")}, {"a": object()}, [1], None):
        with pytest.raises(InputError, match="payload of row 1 is not JSON"):
            check_payload([{"fine": True}, wrong])  # type: ignore[list-item]


def test_vectors_of_length_one() -> None:
    x = np.array([[3, 4], [1e-30, 0]], np.float32)
    np.testing.assert_allclose(normalise(x), [[0.6, 0.8], [1, 0]], rtol=1e-6)
    with pytest.raises(InputError, match=r"undefined \(row 1\)"):
        normalise(np.eye(2, dtype=np.float32) * [1, 0])
    with pytest.raises(InputError, match=r"undefined \(id 9\)"):
        normalise(np.zeros((1, 2), np.float32), np.array([9]))


def test_what_is_within_a_radius() -> None:
    hits = Hits(np.array([[4, 0, -1], [7, 8, 9]]), np.array([[1, 2, np.inf], [2.5, 3, 4]], np.float32))
    found = within(hits, 2.5)
    assert (found.limits.tolist(), found.ids.tolist()) == ([0, 2, 3], [4, 0, 7])
    assert found.distances.tolist() == [1, 2, 2.5]
    assert within(hits, np.inf).ids.tolist() == [4, 0, 7, 8, 9]
