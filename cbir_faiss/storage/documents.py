"""The documents of a segment's items, to be read by row: JSON lines in one file, and where each ends in another.

The catalogue has them too, for filters; but a query of a database for each search costs more than the search, and what
is looked up here needs no call to the system, so that other threads are not in the way.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import CorruptCollection
from cbir_faiss.storage.files import ArrayFile

LINES, ENDS = "documents.jsonl", "documents.npy"
_decode = json.JSONDecoder().raw_decode  # json.loads looks for white space around each


class DocumentWriter:
    """Writes both files, document after document."""

    def __init__(self, folder: Path) -> None:
        self._lines, self._ends = (folder / LINES).open("wb"), ArrayFile(folder / ENDS)
        self._end = 0

    def append(self, texts: list[str]) -> None:
        """JSON texts of the next items, without line breaks."""
        lines = [text.encode() + b"\n" for text in texts]
        self._lines.write(b"".join(lines))
        ends = self._end + np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._ends.append(ends[:, None])
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        self._lines.close()
        self._ends.close()


class Documents:
    """Read access by row. Raises CorruptCollection where the files are missing, or do not go together."""

    def __init__(self, folder: Path) -> None:
        try:
            ends = np.load(folder / ENDS, mmap_mode="r")
            with (folder / LINES).open("rb") as file:
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, EOFError) as error:
            raise CorruptCollection(f"{folder / LINES}: missing, cut short or altered ({error})") from error
        self._ends: NDArray[np.int64] = np.asarray(ends).reshape(-1)
        if len(self._ends) == 0 or int(self._ends[-1]) != len(self._text):
            raise CorruptCollection(f"{folder / LINES}: altered: it does not end where {ENDS} says")

    def read(self, rows: list[int]) -> list[dict[str, Any]]:
        """The documents of some rows."""
        ends, text = self._ends, self._text
        spans = [(int(ends[row - 1]) if row else 0, int(ends[row])) for row in rows]
        return [_decode(text[start:end].decode())[0] for start, end in spans]

    def close(self) -> None:
        self._text.close()
