"""Rows of a mapped matrix that are not in memory, asked of the disk all at once.

Left to page faults, a gather of rows waits for one read after another, and a disk that could do them together idles.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import numpy as np

from cbir_faiss.types import Ids

_LOOKED_AT = 4  # rows that are looked at to see whether any have to be read: asking for rows that are there costs, too


class Prefetch:
    """The rows of ``mapped``, a memory-mapped matrix of contiguous rows."""

    def __init__(self, mapped: Any) -> None:
        self._map: mmap.mmap = mapped._mmap
        self._bytes = int(mapped.strides[0])
        self._address = int(mapped.__array_interface__["data"][0])
        self._first = int(mapped.offset) % mmap.ALLOCATIONGRANULARITY  # where the matrix begins in the map

    def __call__(self, rows: Ids) -> None:
        """Begin to read what is missing of ``rows``, of any shape; -1 is none. Returns before it is there."""
        wanted = rows.ravel()
        if not self._bytes or not hasattr(mmap, "MADV_WILLNEED") or self._in_memory(wanted):
            return
        page = mmap.PAGESIZE
        wanted = np.unique(wanted[wanted >= 0]) * self._bytes + self._first
        begins = wanted // page * page
        for begin, length in zip(begins.tolist(), (wanted + self._bytes - begins).tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, begin, length)

    def _in_memory(self, rows: Ids) -> bool:
        """Whether some of the rows, evenly chosen, are all there; a machine that cannot tell says yes."""
        mincore, page, state = _mincore(), mmap.PAGESIZE, bytearray(1)
        if mincore is None:
            return True
        place = ctypes.addressof(ctypes.c_ubyte.from_buffer(state))
        for row in rows[:: -(-len(rows) // _LOOKED_AT) or 1].tolist():
            begin = self._address + row * self._bytes  # its first page stands for the row
            if row >= 0 and mincore(begin // page * page, 1, place) == 0 and not state[0] & 1:
                return False
        return True


@cache
def _mincore() -> Any:
    """The system's ``mincore``; None where there is none."""
    if sys.platform == "win32":
        return None
    mincore = getattr(ctypes.PyDLL(None), "mincore", None)
    if mincore is not None:
        mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return mincore
