"""The embedding cache: shards of ``.npy`` files, written aside and renamed, so a killed run keeps the whole ones."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARD_ITEMS = 2048
SHARD_SECONDS = 5.0
"""A shard is written out when it has so many items, or when so much time has passed: what a killed run can lose."""
KEY_BYTES = 32
_ROW_BITS = 32


def default_cache() -> Path:
    """``$CBIR_CACHE``, else ``cbir_faiss`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CBIR_CACHE") or Path(home, "cbir_faiss"))


class EmbeddingCache:
    """Columns by content key, for one extractor; ``folder`` None keeps them in memory only.

    Written by one thread; others may ask meanwhile whether a key is there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._where: dict[bytes, int] = {}  # shard << 32 | row
        self._shards: list[dict[str, NDArray[Any]]] = []
        self._pending_keys: dict[bytes, None] = {}
        self._pending: list[dict[str, NDArray[Any]]] = []
        self._written = time.monotonic()
        if folder is not None and folder.is_dir():
            for shard in sorted(folder.glob("shard-*")):
                self._open(shard)

    def __contains__(self, key: object) -> bool:
        return key in self._where or key in self._pending_keys

    def add(self, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> None:
        """Take columns ``(len(keys), …)`` of new keys; now and then what is pending is written out as a shard."""
        if not keys:
            return
        self._pending_keys |= dict.fromkeys(keys)
        self._pending.append(columns)
        if len(self._pending_keys) >= SHARD_ITEMS or time.monotonic() - self._written >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending; after it every key that was added is on the disk."""
        self._written = time.monotonic()
        if not self._pending:
            return
        columns = {name: np.concatenate([part[name] for part in self._pending]) for name in self._pending[0]}
        keys = list(self._pending_keys)
        if self._folder is None:
            self._take(keys, columns)
        else:
            self._open(self._write(self._folder, keys, columns))
        self._pending_keys, self._pending = {}, []

    def gather(self, keys: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """Columns ``(len(keys), …)`` in the order of ``keys``, all of which must be there and flushed."""
        places = np.array([self._where[key] for key in keys], np.int64)
        shards, rows = places >> _ROW_BITS, places & ((1 << _ROW_BITS) - 1)
        first = self._shards[int(shards[0])]
        out = {name: np.empty((len(keys), *column.shape[1:]), column.dtype) for name, column in first.items()}
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            for name, column in self._shards[shard].items():
                out[name][mine] = column[rows[mine]]
        return out

    def _take(self, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> None:
        first = len(self._shards) << _ROW_BITS
        self._shards.append(columns)
        self._where.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _open(self, shard: Path) -> None:
        try:
            keys = np.load(shard / "keys.npy")
            names = json.loads((shard / "columns.json").read_text())
            columns = {name: np.load(shard / f"{i}.npy", mmap_mode="r") for i, name in enumerate(names)}
        except (OSError, ValueError, EOFError):
            return  # a damaged shard is as good as none: its items are extracted again
        if columns and all(len(column) == len(keys) for column in columns.values()):
            self._take([bytes(key) for key in keys], columns)

    def _write(self, folder: Path, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="writing-", dir=folder))
        try:
            _save(aside / "keys.npy", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
            for i, column in enumerate(columns.values()):
                _save(aside / f"{i}.npy", column)
            (aside / "columns.json").write_text(json.dumps(list(columns)))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return aside.rename(folder / aside.name.replace("writing-", "shard-"))


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave a whole-looking file of zeros
