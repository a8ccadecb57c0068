"""Files that survive a crash: written aside, synced, renamed; their digests; and what a disk refuses, in one line."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import flush_durably, sync
from cbir_faiss.errors import CbirError, CorruptCollection


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Within the block, a full disk, a missing right or a vanished folder is a CbirError that names ``place``."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename and str(error.filename) != str(place) else ""
        raise CbirError(f"{place}: cannot be written: {error.strerror or error}{file}") from error
    except sqlite3.Error as error:
        raise CbirError(f"{place}: cannot be written: {error}") from error


class ArrayFile:
    """An ``.npy`` file that grows block by block.

    Written, not mapped: on a full disk a write fails with an error, where a map would end the process.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._first: NDArray[Any] | None = None
        self.rows = 0

    def append(self, block: NDArray[Any]) -> None:
        """Add rows; dtype and width are those of the first block."""
        if self._first is None:
            self._first = block[:0].copy()
            self._head()
        self._file.write(np.ascontiguousarray(block, self._first.dtype).data)
        self.rows += len(block)

    def close(self) -> None:
        """Say in the head how many rows there are, for which numpy leaves room."""
        if self._first is not None and not self._file.closed:
            self._file.seek(0)
            self._head()
        self._file.close()

    def _head(self) -> None:
        assert self._first is not None
        shape = (self.rows, *self._first.shape[1:])
        head = {"descr": np.lib.format.dtype_to_descr(self._first.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, head)


def share(path: Path, twin: Path) -> None:
    """Let ``twin``, which is equal, be the file ``path`` by another name; where a file system has no such, it stays."""
    aside = twin.with_name(twin.name + ".shared")
    with suppress(OSError):
        os.link(path, aside)
        aside.replace(twin)


def bytes_of(files: Iterable[Path]) -> dict[Path, int]:
    """What each file takes on the disk: nothing where it is one of those before it by another name."""
    found, known = {}, set()
    for file in files:
        status = file.stat()
        found[file] = 0 if (status.st_dev, status.st_ino) in known else status.st_size
        known.add((status.st_dev, status.st_ino))
    return found


def load_mapped(path: Path) -> Any:
    """A mapped ``.npy`` file. Raises CorruptCollection where it is missing, or no such file."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise CorruptCollection(f"{path}: missing, cut short or altered ({error})") from error


def sync_tree(folder: Path) -> None:
    """``sync`` of everything below ``folder``, files before the folders that name them."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a new ``.npy`` file, and have the disk hold it."""
    with path.open("wb") as file:
        np.save(file, array)
        flush_durably(file)
    sync(path.parent)
