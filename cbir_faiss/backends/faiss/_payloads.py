"""Payloads by row, for an engine that has none: kept as JSON text, parsed when asked for."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.filters import Where
from cbir_faiss.types import Payload

_REMEMBERED = 16


class Payloads:
    """Append-only JSON objects by row; a row without one costs nothing.

    Rows never change, so what a filter matched stays true and only new rows are looked at again.
    """

    def __init__(self, text: bytes | mmap.mmap = b"", limits: NDArray[np.int64] | None = None) -> None:
        self._text = text
        self._limits = np.zeros(1, np.int64) if limits is None else limits
        self._recent: dict[int, bytes] = {}
        self._matched: dict[str, NDArray[np.bool_]] = {}

    @classmethod
    def opened(cls, path: Path, limits: NDArray[np.int64]) -> Payloads:
        """Of a file that ``write`` wrote, which is mapped, not read."""
        if not limits[-1]:
            return cls()
        with path.open("rb") as file:
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), limits)

    def append(self, first_row: int, payload: Sequence[Payload] | None) -> None:
        """Payload of the rows that begin at ``first_row``; an empty one is as good as none."""
        for row, value in enumerate(payload or (), first_row):
            if value:
                text = json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"))
                self._recent[row] = text.encode("utf-8", "surrogatepass")  # as json.loads decodes

    def __getitem__(self, row: int) -> dict[str, Any]:
        text = self._of(row)
        return dict(json.loads(text)) if text else {}

    def matching(self, where: Where, rows: int) -> NDArray[np.bool_]:
        """bool ``(rows,)``: whose payload the filter matches."""
        filter_key = repr(where)  # not the filter itself, for in Python it equals one with 1 in place of true
        known = self._matched.get(filter_key, np.empty(0, np.bool_))
        if len(known) < rows:
            known = np.concatenate([known, self._match(where, len(known), rows)])
            kept = list(self._matched.items())[1 - _REMEMBERED :]
            self._matched = {key: value for key, value in kept if key != filter_key} | {filter_key: known}
        return known[:rows]

    def write(self, file: BinaryIO, rows: int) -> NDArray[np.int64]:
        """Every row's text, one a line, to ``file``; returns where each begins and the last ends, ``(rows + 1,)``."""
        limits = np.zeros(rows + 1, np.int64)
        if self._recent or self._limits[-1]:
            lengths = [file.write(text + b"\n") if (text := self._of(row)) else 0 for row in range(rows)]
            np.cumsum(lengths, out=limits[1:])
        return limits

    def _of(self, row: int) -> bytes:
        if row < len(self._limits) - 1:
            return bytes(self._text[self._limits[row] : self._limits[row + 1]])
        return self._recent.get(row, b"")

    def _match(self, where: Where, start: int, stop: int) -> NDArray[np.bool_]:
        verdicts = {b"": where.matches({})}
        found = np.full(stop - start, verdicts[b""])
        if self._recent or self._limits[-1]:
            for row in range(start, stop):
                text = self._of(row)
                if text not in verdicts:  # payloads repeat ({"label": "cat"}), and parsing is what takes the time
                    verdicts[text] = where.matches(_parsed(text))
                found[row - start] = verdicts[text]
        return found


def _parsed(text: bytes) -> Mapping[str, Any]:
    return dict(json.loads(text))
