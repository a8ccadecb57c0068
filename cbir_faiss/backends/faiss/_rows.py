"""What an append-only index has to know about its rows: the id of each, which are alive, and their payload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.backends.faiss._payloads import Payloads
from cbir_faiss.base.filters import Where
from cbir_faiss.errors import InputError, UnknownId
from cbir_faiss.types import MISSING_ID, Ids, Payload

Mask = NDArray[np.bool_]
_TAIL = 4096


class Rows:
    """Rows 0…n-1 of an index. An id that is stored again gets a new row and its old one dies.

    In the common case (ids 0…n-1 in order, nothing deleted) neither array is kept. Ids are looked up by bisection: in
    the rows themselves while ids increase, else in a sorted copy with a short unsorted tail.
    """

    def __init__(self, ids: Ids | None = None, live: Mask | None = None, payloads: Payloads | None = None) -> None:
        self.n = 0
        self.dead = 0
        self.payloads = Payloads() if payloads is None else payloads
        self._ids: Ids | None = None  # row r holds id r
        self._live: Mask | None = None  # every row is alive
        self._sorted: tuple[Ids, Ids] | None = None  # ids, their rows; None while the rows themselves are in order
        self._tail: dict[int, int] = {}
        self._asked: tuple[Ids, Mask] | None = None
        if ids is not None and len(ids):
            self._append_ids(ids)
        if live is not None:
            self._live = live.copy()
            self.dead = int(len(live) - np.count_nonzero(live))

    # -- changes

    def append(self, ids: Ids, payload: Sequence[Payload] | None) -> None:
        """New rows for ``ids`` (unique in themselves); rows that held them before die."""
        first, self._asked = self.n, None
        if not self._in_order(ids):
            self._kill(self.find(ids))
        self._append_ids(ids)
        if self._live is not None:
            self._live = _grown(self._live, first, np.ones(len(ids), np.bool_))
        self.payloads.append(first, payload)

    def delete(self, ids: Ids) -> None:
        self._asked = None
        self._kill(self.find(ids))

    # -- look-ups

    def find(self, ids: Ids) -> Ids:
        """The live row of each id, -1 where there is none; not to be written to."""
        if self._ids is None:
            if self._live is None and (not len(ids) or int(ids.max()) < self.n):
                return ids
            rows = np.where(ids < self.n, ids, -1)
        else:
            keys, order = self._sorted or (self._ids[: self.n], None)
            at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            rows = np.where(keys[at] == ids, at if order is None else order[at], -1)
            for i, key in enumerate(ids.tolist() if self._tail else ()):
                rows[i] = self._tail.get(key, rows[i])
        if self._live is not None:
            rows[~self._live[rows]] = -1
        return rows

    def require(self, ids: Ids) -> Ids:
        """The live row of each id. Raises UnknownId for the first that is not stored."""
        rows = self.find(ids)
        if len(rows) and rows.min() < 0:
            raise UnknownId(f"id {int(ids[int(np.argmin(rows))])} is not stored")
        return rows

    def ids_of(self, rows: Ids) -> Ids:
        """The ids that rows of any shape hold; -1 stays -1."""
        if self._ids is None:
            return rows
        ids = self._ids[rows]
        ids[rows < 0] = MISSING_ID
        return ids

    def in_order_of_ids(self) -> Ids:
        """Every live row."""
        rows = np.arange(self.n) if self._live is None else np.flatnonzero(self._live[: self.n])
        return rows if self._ids is None else rows[np.argsort(self._ids[rows], kind="stable")]

    def select(self, where: Where | Ids | None) -> Mask:
        """bool ``(n,)``: live rows whose payload ``where`` matches, or whose id is among ``where``."""
        if isinstance(where, np.ndarray):
            return self._among(where)
        live = np.ones(self.n, np.bool_) if self._live is None else self._live[: self.n]
        return live if where is None else live & self.payloads.matching(where, self.n)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What ``from_arrays`` needs: nothing in the common case."""
        stored: dict[str, NDArray[Any]] = {}
        if self._ids is not None:
            stored["ids"] = self._ids[: self.n]
        if self._live is not None:
            stored["live"] = np.packbits(self._live[: self.n])
        return stored

    @classmethod
    def from_arrays(cls, n: int, arrays: dict[str, NDArray[Any]], payloads: Payloads) -> Rows:
        live = np.unpackbits(arrays["live"], count=n).astype(np.bool_) if "live" in arrays else None
        return cls(arrays.get("ids", np.arange(n)), live, payloads)

    @classmethod
    def adopted(cls, ids: Ids) -> Rows:
        """Rows of an index that somebody else filled; of an id that occurs twice the later row lives.

        Raises:
            InputError: an id is negative.
        """
        if len(ids) and ids.min() < 0:
            raise InputError(f"ids are not negative, and this index holds {int(ids.min())}")
        last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
        live = np.zeros(len(ids), np.bool_)
        live[last] = True
        return cls(ids, None if live.all() else live)

    # -- inside

    def _among(self, ids: Ids) -> Mask:
        """bool ``(n,)``: the live rows of ``ids``. Those of ids that nobody can write to are kept for the next time."""
        known = self._asked
        if known is not None and known[0] is ids:
            return known[1]
        rows = self.find(ids)
        among = np.zeros(self.n, np.bool_)
        among[rows if not len(rows) or int(rows.min()) >= 0 else rows[rows >= 0]] = True
        if not ids.flags.writeable and ids.base is None:
            self._asked = ids, among
        return among

    def _in_order(self, ids: Ids) -> bool:
        """Whether the ids go on where the rows end, so that none of them can be stored already."""
        if self._sorted is not None or (len(ids) > 1 and not bool((np.diff(ids) > 0).all())):
            return False
        last = self.n - 1 if self._ids is None else int(self._ids[self.n - 1])
        return self.n == 0 or int(ids[0]) > last

    def _append_ids(self, ids: Ids) -> None:
        n, in_order = self.n, self._in_order(ids)
        if self._ids is None and not (in_order and ids[0] == n and ids[-1] == n + len(ids) - 1):
            self._ids = np.arange(n)
        if self._ids is not None:
            self._ids = _grown(self._ids, n, ids)
        self.n = n + len(ids)
        if not in_order and self._ids is not None:
            if self._sorted is None:
                self._sorted = self._ids[:n].copy(), np.arange(n)
            self._tail.update(zip(ids.tolist(), range(n, self.n), strict=True))
            if len(self._tail) > max(_TAIL, len(self._sorted[0]) // 4) or n == 0:
                self._sort()

    def _sort(self) -> None:
        assert self._ids is not None
        ids = self._ids[: self.n]
        # The last row of each id; a dead last row means that the id is gone, which find() sees.
        keys, from_end = np.unique(ids[::-1], return_index=True)
        self._sorted = keys, self.n - 1 - from_end
        self._tail = {}

    def _kill(self, rows: Ids) -> None:
        rows = np.unique(rows[rows >= 0])
        if len(rows):
            if self._live is None:
                self._live = np.ones(self.n, np.bool_)
            self._live[rows] = False
            self.dead += len(rows)


def _grown(array: NDArray[Any], n: int, more: NDArray[Any]) -> NDArray[Any]:
    """``array[:n]`` followed by ``more``, in an array whose spare room doubles, so that appending stays linear."""
    if n + len(more) > len(array):
        longer = np.empty(max(n + len(more), 2 * n), array.dtype)
        longer[:n] = array[:n]
        array = longer
    array[n : n + len(more)] = more
    return array
