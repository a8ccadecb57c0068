"""Rows that are not in memory are asked for together, and only then."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.storage.files import load_mapped
from cbir_faiss.storage.prefetch import Prefetch

WIDTH = 4096


@pytest.fixture
def matrix(tmp_path: Path) -> Any:
    """512 rows of 16 kB in a mapped file, of which the machine has forgotten all but the head."""
    np.save(tmp_path / "x.npy", np.arange(512 * WIDTH, dtype=np.float32).reshape(512, WIDTH))
    forget(tmp_path / "x.npy")
    mapped = load_mapped(tmp_path / "x.npy")
    mapped._mmap.madvise(mmap.MADV_RANDOM)
    return mapped


def forget(path: Path) -> None:
    gc.collect()
    handle = os.open(path, os.O_RDONLY)
    os.fdatasync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def there(matrix: Any, row: int) -> bool:
    """Whether the first page of a row is in memory, as the system says."""
    state = ctypes.c_ubyte()
    page = (matrix.ctypes.data + row * WIDTH * 4) // mmap.PAGESIZE * mmap.PAGESIZE
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.byref(state)) == 0
    return bool(state.value & 1)


class Spied:
    """The map of a matrix, and what was asked of it."""

    def __init__(self, real: Any) -> None:
        self.real, self.asked = real, list[tuple[int, int]]()

    def madvise(self, advice: int, start: int, length: int) -> None:
        assert advice == mmap.MADV_WILLNEED
        self.real.madvise(advice, start, length)
        self.asked.append((start, length))


def spied(matrix: Any) -> tuple[Prefetch, Spied]:
    prefetch = Prefetch(matrix)
    spy = prefetch._map = Spied(matrix._mmap)  # type: ignore[assignment]
    return prefetch, spy


def test_rows_that_are_not_there_are_asked_for(matrix: Any) -> None:
    prefetch, spy = spied(matrix)
    rows = np.array([[500, 3, -1, 3], [77, 78, -1, 200]])
    if all(there(matrix, row) for row in (3, 77, 78, 200, 500)):
        pytest.skip("this file system keeps its files in memory")
    prefetch(rows)
    covered = [(start, start + length) for start, length in spy.asked]
    assert len(covered) == 5
    for row in (3, 77, 78, 200, 500):
        begin = matrix.offset + row * WIDTH * 4
        assert any(a <= begin and begin + WIDTH * 4 <= b for a, b in covered)
        assert all(a % mmap.PAGESIZE == 0 for a, _ in covered)
    np.testing.assert_array_equal(matrix[200], np.arange(200 * WIDTH, 201 * WIDTH, dtype=np.float32))


def test_rows_that_are_there_are_not(matrix: Any) -> None:
    assert float(matrix.sum(dtype=np.float64)) > 0
    prefetch, spy = spied(matrix)
    prefetch(np.arange(512))
    assert spy.asked == []


def test_nothing_is_asked_for_nothing(matrix: Any) -> None:
    prefetch, spy = spied(matrix)
    for rows in (np.empty(0, np.int64), np.full((2, 3), -1)):
        prefetch(rows)
    assert spy.asked == []


def test_the_last_row_of_a_file(matrix: Any) -> None:
    prefetch, _ = spied(matrix)
    prefetch(np.array([511]))
    assert matrix[511, -1] == 512 * WIDTH - 1


@pytest.mark.parametrize("store", ["float32", "float16", "int8"])
def test_a_cold_collection_finds_what_a_warm_one_finds(tmp_path: Path, store: str) -> None:
    x = np.random.default_rng(0).standard_normal((600, 64), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    config = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "itq", "bits": 32}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float", "candidates": 40, "store": store}],
    }
    with Collection.build(parse_config(config), tmp_path / "x.cbir") as collection:
        collection.add_vectors(x[:5] + 1, [{"path": f"new/{i}"} for i in range(5)])
        warm = collection.search_hits(x[:9], 5)
    for path in (tmp_path / "x.cbir").rglob("column-*.npy"):
        forget(path)
    with Collection.open(tmp_path / "x.cbir") as collection:
        cold = collection.search_hits(x[:9], 5)
    np.testing.assert_array_equal(cold.ids, warm.ids)
    np.testing.assert_allclose(cold.distances, warm.distances, atol=1e-6)
