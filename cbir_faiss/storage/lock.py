"""One writer at a time: an advisory lock on a file in the collection, given back by the system if the writer dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbir_faiss.errors import CbirError
from cbir_faiss.storage.files import writing_to

LOCK = "LOCK"


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the right to write to ``folder`` within the block.

    Raises:
        CbirError: another process (or thread) is writing to it, or it cannot be written.
    """
    path = folder / LOCK
    with writing_to(folder):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been renamed or removed between opening and locking.
            moved = not path.exists() or not os.path.samestat(os.fstat(handle), path.stat())
        except BlockingIOError:
            moved = True
        if moved:
            raise CbirError(f"{folder}: another process is writing to it; try again when it is done")
        yield
    finally:
        os.close(handle)
