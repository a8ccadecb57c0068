"""Exact distances to chosen rows of a matrix, read where they lie: by FAISS's loops, with nothing gathered before."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.types import Floats, Ids


def can_scan(matrix: NDArray[Any]) -> bool:
    """Whether FAISS is in this process (it is not imported for this), and the matrix is as it reads one."""
    return "faiss" in sys.modules and matrix.dtype == np.float32 and matrix.flags.c_contiguous


def squared_distances(queries: Floats, matrix: Floats, rows: Ids) -> Floats:
    """float32 ``(n, c)``: |q - x|² of each query ``(n, d)`` and its ``rows`` ``(n, c)``; inf where a row is -1."""
    return _by_rows("fvec_L2sqr_by_idx", queries, matrix, rows)


def products(queries: Floats, matrix: Floats, rows: Ids) -> Floats:
    """float32 ``(n, c)``: inner products; -inf where a row is -1."""
    return _by_rows("fvec_inner_products_by_idx", queries, matrix, rows)


def _by_rows(function: str, queries: Floats, matrix: Floats, rows: Ids) -> Floats:
    faiss = sys.modules["faiss"]
    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    out = np.empty(rows.shape, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (out, queries, matrix, rows)]
    with threads.openmp(faiss, 4.0 * rows.size * matrix.shape[1]):
        getattr(faiss, function)(*pointers, matrix.shape[1], *rows.shape)
    return out
