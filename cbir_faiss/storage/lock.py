"""One writer at a time: an advisory lock on a file in the collection, given back by the system if the writer dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbir_faiss._lib.locks import try_lock
from cbir_faiss.errors import CbirError
from cbir_faiss.storage.files import writing_to

LOCK = "LOCK"


_LOOKS = 0.02  # seconds between two looks whether the other is done


@contextmanager
def writer_lock(folder: Path, patience: float = 0) -> Iterator[None]:
    """Hold the right to write to ``folder`` within the block; wait for it ``patience`` seconds.

    Raises:
        CbirError: another process (or thread) is writing to it, or it cannot be written.
    """
    path, until = folder / LOCK, time.monotonic() + patience
    with writing_to(folder):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _locked(handle):
            if time.monotonic() > until:
                raise _taken(folder)
            time.sleep(_LOOKS)
        # The folder may have been renamed or removed between opening and locking.
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            raise _taken(folder)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        try_lock(handle)
    except BlockingIOError:
        return False
    return True


def _taken(folder: Path) -> CbirError:
    return CbirError(f"{folder}: another process is writing to it; try again when it is done")
