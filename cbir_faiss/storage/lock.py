"""One writer at a time: an advisory lock on a file in the collection, given back by the system if the writer dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbir_faiss.errors import CbirError


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the right to write to ``folder`` within the block.

    Raises:
        CbirError: another process (or thread) is writing to it.
    """
    handle = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CbirError(f"{folder}: another process is writing to it; try again when it is done") from error
        yield
    finally:
        os.close(handle)
