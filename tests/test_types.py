"""Results: small values with a fixed shape."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cbir_faiss.errors import BackendError, CbirError, ConfigError, DimensionMismatch, InputError, UnknownId
from cbir_faiss.types import Hit, Hits, RangeHits, missing_hits


def test_hits_of_a_query_leave_out_what_is_missing() -> None:
    hits = Hits(np.array([[5, 2, -1], [-1, -1, -1]]), np.array([[0.5, 1, np.inf], [np.inf] * 3], np.float32))
    assert len(hits) == 2
    assert hits[0] == [Hit(5, 0.5), Hit(2, 1.0)]
    assert list(hits) == [[Hit(5, 0.5), Hit(2, 1.0)], []]


def test_hits_do_not_change() -> None:
    hits = missing_hits(1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        hits.ids = np.zeros((1, 2), np.int64)  # type: ignore[misc]


def test_missing_hits() -> None:
    hits = missing_hits(2, 3)
    assert (hits.ids.dtype, hits.distances.dtype) == (np.int64, np.float32)
    assert hits.ids.tolist() == [[-1] * 3] * 2
    assert np.isposinf(hits.distances).all()
    assert missing_hits(0, 3).ids.shape == (0, 3)


def test_range_hits() -> None:
    hits = RangeHits(np.array([0, 0, 2]), np.array([7, 8]), np.array([0, 1], np.float32))
    assert len(hits) == 2
    assert hits[0] == []
    assert hits[1] == [Hit(7, 0.0), Hit(8, 1.0)]
    assert list(hits) == [[], [Hit(7, 0.0), Hit(8, 1.0)]]  # type: ignore[call-overload]


def test_errors_are_one_tree_and_also_what_python_expects() -> None:
    assert issubclass(DimensionMismatch, InputError)
    assert issubclass(InputError, ValueError)
    assert issubclass(UnknownId, KeyError)
    assert all(issubclass(e, CbirError) for e in (ConfigError, InputError, UnknownId, BackendError))
    assert str(UnknownId("id 3 is not stored")) == "id 3 is not stored"


def test_a_config_error_tells_file_line_and_path_where_they_are_known() -> None:
    assert str(ConfigError("is required", path="codecs.1.bits", file="a.yaml", line=9)) == (
        "a.yaml:9: codecs.1.bits: is required"
    )
    assert str(ConfigError("cannot be read", file="a.yaml")) == "a.yaml: cannot be read"
    assert str(ConfigError("is required", path="bits")) == "bits: is required"
    assert str(ConfigError("wrong")) == "wrong"
