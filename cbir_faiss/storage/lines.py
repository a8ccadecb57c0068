"""JSON texts to be read by number: lines in one file, and where each ends in another.

A segment's documents are kept so beside the catalogue: a query of a database for each search costs more than the
search, and what is looked up here needs no call to the system, so that other threads are not in the way.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import CorruptCollection
from cbir_faiss.storage.files import ArrayFile

_decode = json.JSONDecoder().raw_decode  # json.loads looks for white space around each


def lines_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


def _ends_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


class LineWriter:
    """Writes both files, line after line."""

    def __init__(self, folder: Path, name: str) -> None:
        self._lines, self._ends = lines_file(folder, name).open("wb"), ArrayFile(_ends_file(folder, name))
        self._end = 0

    def append(self, texts: list[str]) -> None:
        """The next JSON texts, without line breaks."""
        lines = [text.encode() + b"\n" for text in texts]
        self._lines.write(b"".join(lines))
        ends = self._end + np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._ends.append(ends[:, None])
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        self._lines.close()
        self._ends.close()


class Lines(Sequence[Any]):
    """Read access by number. Raises CorruptCollection where the files are missing, or do not go together."""

    def __init__(self, folder: Path, name: str) -> None:
        path = lines_file(folder, name)
        try:
            ends = np.load(_ends_file(folder, name), mmap_mode="r")
            with path.open("rb") as file:  # an empty file cannot be mapped
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except (OSError, ValueError, EOFError) as error:
            raise CorruptCollection(f"{path}: missing, cut short or altered ({error})") from error
        self._ends: NDArray[np.int64] = np.asarray(ends).reshape(-1)
        if len(self._text) != (int(self._ends[-1]) if len(self._ends) else 0):
            raise CorruptCollection(f"{path}: altered: it does not end where {_ends_file(folder, name).name} says")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return self.read(range(len(self))[number])
        return self.read((number,))[0]

    def read(self, numbers: Sequence[int]) -> list[Any]:
        """Some lines, in their order."""
        ends, text = self._ends, self._text
        spans = [(int(ends[number - 1]) if number else 0, int(ends[number])) for number in numbers]
        return [_decode(text[start:end].decode())[0] for start, end in spans]

    def close(self) -> None:
        if isinstance(self._text, mmap.mmap):
            self._text.close()
