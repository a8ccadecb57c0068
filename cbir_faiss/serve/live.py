"""A collection as it changes: each request is answered by the generation that was current when it began."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from cbir_faiss.base import Extractor
from cbir_faiss.collection.collection import Collection
from cbir_faiss.errors import CbirError, CorruptCollection
from cbir_faiss.serve.problems import Problem
from cbir_faiss.storage.manifest import CURRENT, PluginEntry, check_sizes, name_of

_log = logging.getLogger("cbir_faiss.serve")
_LOOK_SECONDS = 0.02
"""How old the last look at the files may be: to read a mapped file that was cut short ends the process."""
_LATENCIES = 2000
_KEPT = 16
Reading = Literal["pictures", "texts"]


class Generation:
    """One generation, open as long as somebody uses it; and what was worked out about it."""

    def __init__(self, collection: Collection, mark: tuple[int, ...]) -> None:
        self.collection, self.mark = collection, mark
        self._lock = threading.Lock()
        self._users, self._retired = 0, False
        self._known: defaultdict[str, dict[Hashable, Any]] = defaultdict(dict)
        files = collection.manifest.files.items()
        self._files = [(str(collection.folder / name), entry.size) for name, entry in files]

    @contextmanager
    def held(self) -> Iterator[Collection]:
        """The collection, which stays open within the block. Raises Problem where it is closed already."""
        with self._lock:
            if self._retired and not self._users:
                raise Problem(503, "the collection was exchanged: ask again")
            self._users += 1
        try:
            yield self.collection
        finally:
            self._leave(1)

    def retire(self) -> None:
        """Close it, when nobody uses it any more."""
        with self._lock:
            self._retired = True
        self._leave(0)

    def kept(self, kind: str, what: Hashable = None) -> Any:
        """What ``once`` gave; None where that is not known (any more)."""
        return self._known[kind].get(what)

    def once(self, kind: str, make: Callable[[], Any], what: Hashable = None) -> Any:
        """``make()``, or what it gave the first time for this ``what``; the last few of each kind are kept."""
        found = self.kept(kind, what)
        if found is None:
            found = make()
            with self._lock:
                known = self._known[kind]
                while len(known) >= _KEPT:
                    del known[next(iter(known))]
                known[what] = found
        return found

    def damage(self) -> CbirError | None:
        """What is wrong with its files: none may be missing or cut short."""
        try:
            # Looked at often: a Path for each would cost several times as much.
            if all(os.stat(path).st_size == size for path, size in self._files):  # noqa: PTH116
                return None
            check_sizes(self.collection.folder, self.collection.manifest)
        except CorruptCollection as error:
            return error
        except OSError as error:
            return CorruptCollection(f"{error.filename}: {error.strerror}")
        return None

    def _leave(self, users: int) -> None:
        with self._lock:
            self._users -= users
            done = self._retired and not self._users
        if done:
            self.collection.close()


class Live:
    """A collection by its folder. Used from one event loop; what it gives may be used in threads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, name_of(folder)
        self._places = {folder.absolute(), folder.resolve()}
        self.seconds: deque[float] = deque(maxlen=_LATENCIES)  # what the last searches took
        self._current: Generation | None = None
        self._trouble = ""
        self._looked = 0.0
        self._opening = asyncio.Lock()
        self._opening_soon: asyncio.Task[None] | None = None
        self._extractors: dict[Reading, tuple[tuple[PluginEntry | None, str], Extractor]] = {}
        self._extractor_lock = threading.Lock()

    def open(self) -> None:
        """Open the current generation, before anybody asks. Raises CbirError."""
        self._current = self._opened()

    @contextmanager
    def generation(self) -> Iterator[Generation]:
        """The current generation, held within the block. Raises Problem (503) where there is none that is whole."""
        self._look()
        if self._current is None or self._trouble:
            raise Problem(503, self._trouble or f"collection '{self.name}' is not open", {"Retry-After": "1"})
        generation = self._current
        with generation.held():
            yield generation

    @property
    def ready(self) -> bool:
        return self._current is not None and not self._trouble

    @property
    def items(self) -> int | None:
        """How many there are; None where it is not ready."""
        return len(self._current.collection) if self._current is not None and not self._trouble else None

    async def refresh(self) -> None:
        """Open what is current now beside what was, and let whoever comes next have that."""
        async with self._opening:
            mark = self._mark()
            if not mark or (not self._trouble and self._current is not None and mark == self._current.mark):
                return
            try:
                opened = await asyncio.to_thread(self._opened)
            except Exception as error:
                before, self._trouble = self._trouble, self._cannot(error)
                if not isinstance(error, CbirError) and self._trouble != before:  # it is tried again and again
                    _log.exception("collection '%s' cannot be opened", self.name)
                return
            old, self._current, self._trouble = self._current, opened, ""
            if old is not None:
                old.retire()

    def extractor(self, collection: Collection, reading: Reading) -> Extractor:
        """The frozen extractor, with what it needs to read those loaded once for all generations that have the same.
        Raises CbirError."""
        with self._extractor_lock:
            found = self.loaded(collection, reading)
            if found is None:
                found = collection.extractor if reading == "pictures" else collection.reader_of_texts
                self._extractors[reading] = _same(collection), found
            return found

    def loaded(self, collection: Collection, reading: Reading) -> Extractor | None:
        """The same, if it is loaded."""
        known = self._extractors.get(reading)
        return known[1] if known is not None and known[0] == _same(collection) else None

    @property
    def folders(self) -> dict[str, str]:
        """What errors may name of this machine: the collection's folder and the photos', and what to call them."""
        root = self._current.collection.manifest.root if self._current is not None else None
        named = {str(place): self.folder.name for place in self._places}
        return {**({root: name} if root is not None and (name := Path(root).name) else {}), **named}

    def look(self) -> None:
        """Notice what has changed, though nobody asks."""
        self._look()
        if self._trouble:
            self._hurry()

    async def close(self) -> None:
        if self._opening_soon is not None:
            await self._opening_soon
        self.give_back()

    def give_back(self) -> None:
        if self._current is not None:
            self._current.retire()
            self._current = None

    def _cannot(self, error: Exception) -> str:
        return f"collection '{self.name}' cannot be served: {error}"

    def _opened(self) -> Generation:
        mark = self._mark()  # before, so that what changes meanwhile is noticed
        return Generation(Collection.open(self.folder), mark)

    def _mark(self) -> tuple[int, ...]:
        """What tells one generation's CURRENT from another's; empty where there is none."""
        with suppress(OSError):
            status = (self.folder / CURRENT).stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
        return ()

    def _hurry(self) -> None:
        """Have what is new opened, while who asks meanwhile is answered by what was."""
        if self._opening_soon is None or self._opening_soon.done():
            self._opening_soon = asyncio.get_running_loop().create_task(self.refresh())

    def _look(self) -> None:
        """Whether the files of the open generation, where that is still the current one, are all there."""
        if self._current is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        mark = self._mark()
        if not mark:
            self._trouble = f"collection '{self.name}' was removed: {self.folder} is no collection any more"
        elif mark != self._current.mark:
            self._hurry()
        else:
            error = self._current.damage()
            self._trouble = self._cannot(error) if error is not None and self._mark() == mark else ""


def _same(collection: Collection) -> tuple[PluginEntry | None, str]:
    """What two generations with one extractor have in common."""
    return collection.manifest.extractor, collection.manifest.fingerprint
