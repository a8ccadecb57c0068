"""The embedding cache: shards of columns by content key, so that a killed run keeps what it had made.

Several processes may use one cache. Each reads the shards that it finds, adds its own, and merges small ones into
larger ones while no other does; whoever misses a shard that was merged looks again. Nothing stays open.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.locks import try_lock
from cbir_faiss.errors import CbirError
from cbir_faiss.pipeline.shards import KEY_BYTES, Damaged, Gone, Shard, discard, write_shard

SHARD_ITEMS = 2048
SHARD_SECONDS = 5.0
"""A shard is written out when it has so many items, or when so much time has passed: what a killed run can lose."""
MERGED = 8
FULL_ITEMS = 1 << 13
"""So many shards of a like size become one, until they have so many items: few files, and each item written again at
most five times."""
_ROW_BITS = 32
_ODD, _WORD = (3, 5, 7, 11), (1 << 64) - 1
_log = logging.getLogger(__name__)

Keys = Sequence[bytes] | NDArray[np.uint8]
"""Content keys of 32 bytes: one by one, or uint8 ``(n, 32)``."""


def default_cache() -> Path:
    """``$CBIR_CACHE``, else ``cbir_faiss`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CBIR_CACHE") or Path(home, "cbir_faiss"))


class EmbeddingCache:
    """Columns by content key, for one extractor; ``folder`` None keeps them in memory only.

    Written by one thread; others may ask meanwhile whether a key is there. A shard is read whole and checked before
    its first row is used; one that is damaged is as good as none.

    Raises:
        CbirError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._changing = threading.RLock()
        self._index = _Index()
        self._pending_keys: dict[bytes, None] = {}
        self._pending: list[dict[str, NDArray[Any]]] = []
        self._written = time.monotonic()
        self._look_again()

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, bytes)
        if key in self._pending_keys:
            return True
        index = self._index
        place = index.place(key)
        return place >= 0 and (index.shards[place >> _ROW_BITS].sound or bool(self.holds([key])[0]))

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """bool ``(n,)``: which of ``keys`` are there and flushed."""
        return self._find(keys)[1] >= 0

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
        keys = _matrix(list(self._pending_keys))
        if self._folder is None:
            self._change([], _Held(columns), keys)
        else:
            with _writing(self._folder):
                shard = write_shard(self._folder, keys, {name: [column] for name, column in columns.items()})
            self._change([], shard, keys)
            self._merge(self._folder)
        self._pending_keys, self._pending = {}, []

    def gather(self, keys: Keys, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Columns ``(len(keys), …)``, all or some, in the order of ``keys``, which must be there and flushed.

        Raises:
            CbirError: some are not there any more.
        """
        while True:
            index, places = self._find(keys)
            if (places < 0).any():
                lost = f"{np.count_nonzero(places < 0)} of {len(places)}"
                raise CbirError(
                    f"{self._folder}: the embedding cache has lost {lost} items; was it emptied? Start again"
                )
            try:
                return index.rows(places, names)
            except Gone:  # merged by another process since
                self._look_again()

    def _find(self, keys: Keys) -> tuple[_Index, NDArray[np.int64]]:
        """The place of each key, -1 where it has none, in shards that have been checked."""
        wanted = _matrix(keys)
        while True:
            index = self._index
            places = index.find(wanted)
            unsure = [shard for shard in index.shards_of(places) if not shard.sound]
            if not unsure:
                return index, places
            for shard in unsure:
                self._check(shard)

    def _check(self, shard: Shard) -> None:
        """Read a shard for the first time; what cannot be used of it is not in the index afterwards."""
        with self._changing:
            if shard.sound or shard not in self._index.shards:
                return  # another thread has been here
            try:
                shard.check()
            except Gone:
                self._look_again()
            except Damaged as damage:
                _drop(shard.folder, damage)
                self._change([shard])

    def _change(self, out: Sequence[Shard], new: Shard | _Held | None = None, keys: Any = None) -> None:
        with self._changing:
            index = self._index.without(out) if out else self._index
            self._index = index if new is None else index.having([(new, keys)])

    def _look_again(self) -> None:
        """Take the shards that are on the disk now."""
        if self._folder is None:
            return
        with self._changing:
            known = {shard.folder: shard for shard in self._index.shards if isinstance(shard, Shard)}
            found: dict[Path, tuple[Shard, NDArray[np.uint8]] | None] = {}
            # Until nothing has come or gone meanwhile: of what is being merged neither the old nor the new may be seen.
            while (there := sorted(self._folder.glob("shard-*"))) != list(found):
                found = {folder: found.get(folder) or _opened(folder, known.get(folder)) for folder in there}
            self._index = _Index().having([pair for pair in found.values() if pair])

    def _merge(self, folder: Path) -> None:
        """Make one shard of several of a like size, as long as there are such, if no other process is at it."""
        with suppress(OSError):  # the shards are good as they are: a disk without room for both is no reason to stop
            self._merge_all(folder)

    def _merge_all(self, folder: Path) -> None:
        while small := _alike(self._index.shards):
            for shard in small:
                self._check(shard)
            if not all(shard in self._index.shards for shard in small):
                continue
            with _alone(folder) as alone:
                if not alone:
                    return
                try:
                    keys = np.concatenate([shard.keys() for shard in small])
                    merged = write_shard(folder, *_together(small, keys))
                except (Gone, Damaged):
                    for shard in small:
                        shard.sound = False
                    self._look_again()
                    continue
                self._change(small, merged, merged.keys())
                for shard in small:
                    discard(shard.folder)
                for left in folder.glob("gone-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)


def _opened(folder: Path, known: Shard | None) -> tuple[Shard, NDArray[np.uint8]] | None:
    try:
        shard = known or Shard.open(folder)
        return shard, shard.keys()
    except Gone:
        return None
    except Damaged as damage:
        _drop(folder, damage)
        return None


def _drop(folder: Path, damage: Damaged) -> None:
    _log.warning("%s; what was in it is extracted again", damage)
    discard(folder)


@dataclass(eq=False)
class _Held:
    """A shard in memory."""

    held: dict[str, NDArray[Any]]
    sound = True

    def columns(self, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        return {name: column for name, column in self.held.items() if names is None or name in names}


@dataclass(frozen=True)
class _Index:
    """Where the row of each key is; never changed, so that threads may look while another makes the next one.

    first, second: uint64 ``(n,)``, see ``_short``, ascending by the first. places: int64 ``(n,)``, shard << 32 | row.
    """

    shards: tuple[Any, ...] = ()
    first: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    second: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def find(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = np.full(len(keys), -1)
        first, second = _short(keys)
        at, left = np.searchsorted(self.first, first), np.arange(len(keys))
        while len(left := left[at[left] < len(self.first)]):  # once, but for keys with the same first half
            left = left[self.first[at[left]] == first[left]]
            same = self.second[at[left]] == second[left]
            found[left[same]] = self.places[at[left[same]]]
            left = left[~same]
            at[left] += 1
        return found

    def place(self, key: bytes) -> int:
        """``find`` of one key, which is asked for every item, without arrays."""
        words = struct.unpack("=4Q", key)
        first, second = sum(words) & _WORD, sum(map(mul, words, _ODD)) & _WORD
        at = int(self.first.searchsorted(np.uint64(first)))
        while at < len(self.first) and int(self.first[at]) == first:
            if int(self.second[at]) == second:
                return int(self.places[at])
            at += 1
        return -1

    def shards_of(self, places: NDArray[np.int64]) -> list[Any]:
        return [self.shards[number] for number in np.unique(places[places >= 0] >> _ROW_BITS).tolist()]

    def rows(self, places: NDArray[np.int64], names: Collection[str] | None) -> dict[str, NDArray[Any]]:
        numbers, rows = places >> _ROW_BITS, places & ((1 << _ROW_BITS) - 1)
        out: dict[str, NDArray[Any]] = {}
        for number in np.unique(numbers).tolist():
            mine, shard = np.flatnonzero(numbers == number), self.shards[number]
            assert shard is not None
            for name, column in shard.columns(names).items():
                if name not in out:
                    out[name] = np.empty((len(places), *column.shape[1:]), column.dtype)
                out[name][mine] = column[rows[mine]]
        return out

    def having(self, new: Sequence[tuple[Shard | _Held, NDArray[np.uint8]]]) -> _Index:
        """This and more shards, each with its keys."""
        if not new:
            return self
        numbered = enumerate(new, len(self.shards))
        places = [(number << _ROW_BITS) + np.arange(len(keys)) for number, (_, keys) in numbered]
        halves = [(self.first, self.second), *(_short(keys) for _, keys in new)]
        first, second = np.concatenate([one for one, _ in halves]), np.concatenate([two for _, two in halves])
        all_places = np.concatenate([self.places, *places])
        order = np.argsort(first, kind="stable")
        shards = (*self.shards, *(shard for shard, _ in new))
        return _Index(shards, first[order], second[order], all_places[order])

    def without(self, out: Sequence[Shard]) -> _Index:
        kept = np.array([shard not in out for shard in self.shards], bool)[self.places >> _ROW_BITS]
        shards = tuple(None if shard in out else shard for shard in self.shards)
        return _Index(shards, self.first[kept], self.second[kept], self.places[kept])


def _matrix(keys: Keys) -> NDArray[np.uint8]:
    return keys if isinstance(keys, np.ndarray) else np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def _short(keys: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two halves of a key of 16 bytes, mixed from all 32: enough to tell contents apart, and half the memory."""
    words = np.ascontiguousarray(keys).view(np.uint64)
    return words.sum(axis=1), (words * np.array(_ODD, np.uint64)).sum(axis=1)


def _alike(shards: Sequence[Shard | _Held | None]) -> list[Shard]:
    """Some shards of a like size, where there are enough of them."""
    by_size: dict[int, list[Shard]] = {}
    for shard in shards:
        if isinstance(shard, Shard) and shard.rows < FULL_ITEMS:
            by_size.setdefault(shard.rows.bit_length() // 3, []).append(shard)
    return next((some[:MERGED] for some in by_size.values() if len(some) >= MERGED), [])


def _together(
    shards: Sequence[Shard], keys: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], dict[str, Iterator[NDArray[Any]]]]:
    """Keys and columns of several shards, each key once; the columns come part by part."""
    kept = np.zeros(len(keys), bool)
    kept[np.unique(keys, axis=0, return_index=True)[1]] = True
    masks = np.split(kept, np.cumsum([shard.rows for shard in shards])[:-1])

    def parts(name: str) -> Iterator[NDArray[Any]]:
        for shard, mask in zip(shards, masks, strict=True):
            column = shard.columns([name])[name]
            yield column if mask.all() else column[mask]

    return keys[kept], {name: parts(name) for name in shards[0].names}


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this process alone has the block; one that is killed gives it back."""
    handle = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            try_lock(handle)
        except OSError:  # held, or a file system without locks
            yield False
            return
        yield True
    finally:
        os.close(handle)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CbirError(f"{folder}: the embedding cache cannot be written: {error.strerror or error}") from error
