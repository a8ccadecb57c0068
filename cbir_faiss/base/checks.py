"""Checks of arrays from outside: dtype, shape, finite values, ids, payload. Each says what was wrong and where."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import DimensionMismatch, InputError
from cbir_faiss.types import MISSING_ID, Floats, Hits, Ids, Payload, RangeHits


def check_floats(x: Any, who: str, dim: int | None = None) -> Floats:
    """``x`` as contiguous float32 ``(n, dim)``; float16 and float64 are converted.

    Raises:
        InputError: not a 2-d float array, or it holds NaN or infinity (the message names the first such row).
        DimensionMismatch: not ``dim`` wide.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype.kind != "f":
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"{who} takes float vectors of shape (n, dim), got {got}")
    if dim is not None and x.shape[1] != dim:
        raise DimensionMismatch(f"{who} takes vectors of {dim} dimensions, got {x.shape[1]}")
    if x.dtype != np.float32:
        with np.errstate(over="ignore"):  # what becomes infinite is found below
            x = x.astype(np.float32)
    x = np.ascontiguousarray(x)
    # One pass over the data; only a suspicious sum (which large finite values can cause too) pays for the exact check.
    if not math.isfinite(np.vdot(x, x)) and not (finite := np.isfinite(x).all(axis=1)).all():
        raise InputError(f"{who}: vector {int(np.argmin(finite))} holds NaN or infinity")
    return cast("Floats", x)


def check_codes(x: Any, who: str, bits: int) -> NDArray[np.uint8]:
    """``x`` as contiguous packed uint8 ``(n, bits / 8)``.

    Raises:
        InputError: not a 2-d uint8 array.
        DimensionMismatch: not of ``bits`` bits.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype != np.uint8:
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"{who} takes packed codes, uint8 of shape (n, bits / 8), got {got}")
    if x.shape[1] * 8 != bits:
        raise DimensionMismatch(f"{who} takes codes of {bits} bits, got {x.shape[1] * 8}")
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


_PLAIN = frozenset({str, int, bool, type(None)})


def check_payload(payload: Sequence[Payload] | None) -> None:
    """Raises InputError where a payload is not a JSON object; the message names the row."""
    for row, value in enumerate(payload or ()):
        # Writing JSON only to see that it can be written would take a third of a bulk load.
        if type(value) is dict and all(type(k) is str and type(v) in _PLAIN for k, v in value.items()):
            continue
        try:
            if not isinstance(value, Mapping):
                raise TypeError(f"a payload is a mapping, not {type(value).__name__}")
            json.dumps(dict(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"payload of row {row} is not JSON: {error}") from error


def normalise(x: Floats, ids: Ids | None = None) -> Floats:
    """Rows of ``x`` scaled to length 1.

    Raises:
        InputError: a zero vector has no direction; the message names its id, or its row where ids are not known.
    """
    norms = _norms(x)
    if not norms.all():
        row = int(np.argmin(norms != 0))
        which = f"row {row}" if ids is None else f"id {int(ids[row])}"
        raise InputError(f"cosine of a zero vector is undefined ({which})")
    return cast("Floats", (x / norms[:, None]).astype(np.float32))


def directions(x: Floats) -> Floats:
    """As ``normalise``, but zero vectors stay zero: for what somebody else has stored and is only read."""
    norms = _norms(x)
    return cast("Floats", (x / np.where(norms, norms, 1)[:, None]).astype(np.float32))


def _norms(x: Floats) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)))


def within(hits: Hits, radius: float) -> RangeHits:
    """The part of ``hits`` at a distance of at most ``radius``."""
    keep = (hits.distances <= radius) & (hits.ids >= 0)
    limits = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    return RangeHits(limits, hits.ids[keep], hits.distances[keep])


def check_rows(rows: Ids, queries: int, items: int) -> None:
    """Raises InputError where ``rows`` are not item numbers ``(queries, k)`` below ``items``, or -1 for none."""
    if rows.ndim != 2 or len(rows) != queries:
        raise InputError(f"rows must be ({queries}, k), one line a query, got {rows.shape}")
    if rows.size and (int(rows.max()) >= items or int(rows.min()) < MISSING_ID):
        raise InputError(f"rows must lie in -1..{items - 1}, got {rows.min()}..{rows.max()}")


def check_ids(ids: Any, *, unique: bool = False) -> Ids:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InputError(f"ids are a 1-d array of integers, got {array.dtype} {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    if array.size and int(array.min()) < 0:
        raise InputError(f"ids are not negative, got {int(array.min())}")
    if unique and len(array) > 1 and not bool((np.diff(array) > 0).all()):
        values, counts = np.unique(array, return_counts=True)
        if len(values) != len(array):
            raise InputError(f"id {int(values[np.argmax(counts > 1)])} occurs twice in one batch")
    return array
