"""The embedding cache: shards of ``.npy`` files, written aside and renamed, so a killed run keeps the whole ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARD_ITEMS = 2048
KEY_BYTES = 32


def default_cache() -> Path:
    """``$CBIR_CACHE``, else ``cbir_faiss`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CBIR_CACHE") or Path(home, "cbir_faiss"))


class EmbeddingCache:
    """Columns by content key, for one extractor; ``folder`` None keeps them in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._where: dict[bytes, tuple[int, int]] = {}
        self._shards: list[dict[str, NDArray[Any]]] = []
        self._pending_keys: list[bytes] = []
        self._pending: list[dict[str, NDArray[Any]]] = []
        if folder is not None and folder.is_dir():
            for shard in sorted(folder.glob("shard-*")):
                self._open(shard)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def add(self, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> None:
        """Take columns ``(len(keys), …)``; every few thousand items they are written out as a shard."""
        if not keys:
            return
        self._pending_keys += keys
        self._pending.append(columns)
        if len(self._pending_keys) >= SHARD_ITEMS:
            self.flush()

    def flush(self) -> None:
        """Write out what is pending; after it every key that was added is in the cache."""
        if not self._pending:
            return
        columns = {name: np.concatenate([part[name] for part in self._pending]) for name in self._pending[0]}
        keys = self._pending_keys
        self._pending_keys, self._pending = [], []
        if self._folder is None:
            self._take(keys, columns)
        else:
            self._open(self._write(keys, columns))

    def gather(self, keys: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """Columns ``(len(keys), …)`` in the order of ``keys``, all of which must be there."""
        places = np.array([self._where[key] for key in keys], np.int64)
        first = self._shards[places[0, 0]]
        out = {name: np.empty((len(keys), *column.shape[1:]), column.dtype) for name, column in first.items()}
        for shard in np.unique(places[:, 0]):
            mine = np.flatnonzero(places[:, 0] == shard)
            for name, column in self._shards[shard].items():
                out[name][mine] = column[places[mine, 1]]
        return out

    def _take(self, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> None:
        self._shards.append(columns)
        for row, key in enumerate(keys):
            self._where[key] = (len(self._shards) - 1, row)

    def _open(self, shard: Path) -> None:
        try:
            keys = np.load(shard / "keys.npy")
            names = json.loads((shard / "columns.json").read_text())
            columns = {name: np.load(shard / f"{i}.npy", mmap_mode="r") for i, name in enumerate(names)}
        except (OSError, ValueError, EOFError):
            return  # a damaged shard is as good as none: its items are extracted again
        if columns and all(len(column) == len(keys) for column in columns.values()):
            self._take([bytes(key) for key in keys], columns)

    def _write(self, keys: Sequence[bytes], columns: dict[str, NDArray[Any]]) -> Path:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix="writing-", dir=self._folder))
        np.save(aside / "keys.npy", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
        for i, column in enumerate(columns.values()):
            np.save(aside / f"{i}.npy", column)
        (aside / "columns.json").write_text(json.dumps(list(columns)))
        return aside.rename(self._folder / aside.name.replace("writing-", "shard-"))
