"""What FAISS indexes of different types have stored: codes and vectors by row, bits an item."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.types import Codes, Ids

_ROWS_A_LIST = 4
_mapping = threading.Lock()


def stored(faiss: Any, index: Any, rows: Ids) -> Codes:
    """The vectors or codes of ``rows``, decoded where the index keeps less than the vectors.

    Raises:
        RuntimeError: this type of index cannot give back what it stores.
    """
    if isinstance(index, faiss.IndexBinary):
        return _stored_codes(faiss, index, rows)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        _map_rows(ivf)
    vectors: Codes = index.reconstruct_batch(np.ascontiguousarray(rows))
    return vectors


def _stored_codes(faiss: Any, index: Any, rows: Ids) -> NDArray[np.uint8]:
    storage = faiss.downcast_IndexBinary(getattr(index, "storage", index))
    if isinstance(storage, faiss.IndexBinaryFlat):
        # A view, mapped file or not; this type has no batched reconstruct.
        flat: NDArray[np.uint8] = faiss.rev_swig_ptr(storage.xb.data(), storage.ntotal * storage.code_size)
        return flat.reshape(-1, storage.code_size)[rows]
    if isinstance(storage, faiss.IndexBinaryIVF):
        _map_rows(storage)
        many = len(rows) > _ROWS_A_LIST * storage.nlist
        if many and storage.direct_map.type == faiss.DirectMap.Array:
            return _codes_in_lists(faiss, storage, rows)
    codes = np.empty((len(rows), index.code_size), np.uint8)
    for place, row in zip(codes, rows.tolist(), strict=True):
        place[:] = storage.reconstruct(row)
    return codes


def _codes_in_lists(faiss: Any, ivf: Any, rows: Ids) -> NDArray[np.uint8]:
    """List by list: where rows are many, that is sooner done than row by row, as FAISS gives them."""
    map_of_rows, held = ivf.direct_map.array, ivf.invlists
    places = faiss.rev_swig_ptr(map_of_rows.data(), map_of_rows.size())[rows]
    lists, offsets = places >> 32, places & 0xFFFFFFFF
    order = np.argsort(lists, kind="stable")
    ends = [*(np.flatnonzero(np.diff(lists[order])) + 1).tolist(), len(rows)]
    codes, start = np.empty((len(rows), ivf.code_size), np.uint8), 0
    for end in ends if len(rows) else ():
        some, start = order[start:end], end
        number = int(lists[some[0]])
        pointer = held.get_codes(number)
        block = faiss.rev_swig_ptr(pointer, held.list_size(number) * ivf.code_size).reshape(-1, ivf.code_size)
        codes[some] = block[offsets[some]]
        held.release_codes(number, pointer)
    return codes


def _map_rows(ivf: Any) -> None:
    """Let an IVF index find rows in its lists; from then on it keeps the map up to date itself."""
    with _mapping:  # readers may come here together
        if ivf.direct_map.no():
            ivf.make_direct_map()


def code_bits(faiss: Any, index: Any) -> int | None:
    """Bits of the code by which an item is searched; None where floats are searched (or codes that are ours)."""
    if isinstance(index, faiss.IndexBinary):
        return None
    if isinstance(index, faiss.IndexPreTransform):
        return code_bits(faiss, faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return code_bits(faiss, faiss.downcast_index(index.base_index))
    if isinstance(index, faiss.IndexHNSW):
        return code_bits(faiss, faiss.downcast_index(index.storage))
    size = getattr(index, "code_size", None)
    return None if size is None or size >= 4 * index.d else 8 * int(size)
