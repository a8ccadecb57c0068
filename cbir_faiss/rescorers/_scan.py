"""Exact distances to chosen rows of a matrix, read where they lie: by FAISS's loops, with nothing gathered before."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Places
from cbir_faiss.types import Floats, Ids


def can_scan(places: Places) -> bool:
    """Whether FAISS is in this process (it is not imported for this), and there are matrices, as it reads them."""
    return (
        "faiss" in sys.modules
        and bool(places)
        and all(x.dtype == np.float32 and x.flags.c_contiguous for x, _ in places)
    )


def squared_distances(queries: Floats, places: Places) -> Floats:
    """float32 ``(n, c)``: |q - x|² of each query ``(n, d)`` and its c rows; inf where a row is nowhere."""
    apart = [_by_rows("fvec_L2sqr_by_idx", queries, matrix, rows) for matrix, rows in places]
    return apart[0] if len(apart) == 1 else np.minimum.reduce(apart)


def products(queries: Floats, places: Places) -> Floats:
    """float32 ``(n, c)``: inner products; -inf where a row is nowhere."""
    found = [_by_rows("fvec_inner_products_by_idx", queries, matrix, rows) for matrix, rows in places]
    return found[0] if len(found) == 1 else np.maximum.reduce(found)


def _by_rows(function: str, queries: Floats, matrix: NDArray[Any], rows: Ids) -> Floats:
    faiss = sys.modules["faiss"]
    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    out = np.empty(rows.shape, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (out, queries, matrix, rows)]
    with threads.openmp(faiss, 4.0 * rows.size * matrix.shape[1]):
        getattr(faiss, function)(*pointers, matrix.shape[1], *rows.shape)
    return out
