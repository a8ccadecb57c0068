"""One setting of threads for the process, because thread pools that run together fight for the same cores.

extract   the extractor's own threads; BLAS 1
fit       BLAS; FAISS too (its k-means)
search    BLAS 1 (left at its default it stalls some searches); FAISS by the size of the work, see ``for_search``

Phases may overlap, in one thread or in several: the first one in limits BLAS, the last one out gives back what was
there before. That is once a call with all its queries, and a few microseconds.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Phase = Literal["extract", "fit", "search"]

ONE_THREAD_BYTES = 1 << 25
"""A scan of so many bytes takes one thread a few milliseconds. To wake others for less costs more than it gains, and
beside other work a pool whose threads are not all running is waited for: 100 ms for a scan of 0.04 ms was measured."""
_BLAS_USERS = ("numpy", "scipy.linalg", "torch", "faiss", "sklearn", "cv2")


def available() -> int:
    """Threads to use: ``OMP_NUM_THREADS`` where it is set, else the cores this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


@contextmanager
def phase(name: Phase, threads: int | None = None) -> Iterator[int]:
    """Within the block, BLAS and FAISS (where it is loaded) have the threads that ``name`` gives them."""
    entered = _Entered(name, threads or available())
    _process.enter(entered)
    faiss = sys.modules.get("faiss") if name != "search" else None
    before = faiss.omp_get_max_threads() if faiss else 0
    if faiss:  # OpenMP's limit is the calling thread's own
        faiss.omp_set_num_threads(entered.threads if name == "fit" else 1)
    try:
        yield entered.threads
    finally:
        if faiss:
            faiss.omp_set_num_threads(before)
        _process.leave(entered)


def for_search(scanned: float) -> int:
    """Threads for one call that scans so many bytes: one for little work, else its share of those there are."""
    if scanned <= ONE_THREAD_BYTES:
        return 1
    searches = [entered.threads for entered in _process.going_on if entered.name == "search"]
    threads = min(searches, default=0) or available()
    return max(1, min(threads // max(1, len(searches)), int(scanned // ONE_THREAD_BYTES)))


class _Entered:
    """One phase that is going on."""

    __slots__ = ("name", "threads")

    def __init__(self, name: Phase, threads: int) -> None:
        self.name, self.threads = name, threads

    @property
    def blas(self) -> int:
        return self.threads if self.name == "fit" else 1


class _Process:
    """The phases that are going on in this process, and BLAS as it was before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.going_on: tuple[_Entered, ...] = ()
        self._users: tuple[bool, ...] = ()
        self._libraries: list[_Blas] = []
        self._before: list[tuple[_Blas, int]] = []
        self._limit = 0

    def enter(self, entered: _Entered) -> None:
        with self._lock:
            self.going_on = (*self.going_on, entered)
            self._apply()

    def leave(self, entered: _Entered) -> None:
        with self._lock:
            self.going_on = tuple(other for other in self.going_on if other is not entered)
            self._apply()

    def _apply(self) -> None:
        limit = max((entered.blas for entered in self.going_on), default=0)
        if not limit:
            for library, threads in self._before:
                library.limit(threads)
            self._before = []
        else:
            unlimited = self._unlimited()
            self._before += [(library, library.threads()) for library in unlimited]
            for library in unlimited if limit == self._limit else self._libraries:
                library.limit(limit)
        self._limit = limit

    def _unlimited(self) -> list[_Blas]:
        """The libraries that no phase going on has met: all of them at first, later those loaded since."""
        users = tuple(name in sys.modules for name in _BLAS_USERS)
        if users != self._users:  # to look through everything that is loaded takes most of a millisecond
            from threadpoolctl import ThreadpoolController

            found = ThreadpoolController().select(user_api="blas").lib_controllers
            # One that runs on OpenMP (FAISS brings such) follows OpenMP's limit, and would set it.
            pools = [library for library in found if getattr(library, "threading_layer", "") != "openmp"]
            self._libraries, self._users = [_Blas(library) for library in pools], users
        elif self._before:
            return []
        met = {library.path for library, _ in self._before}
        return [library for library in self._libraries if library.path not in met]


class _Blas:
    """One BLAS library that is loaded.

    Of OpenBLAS the functions themselves are called: threadpoolctl lets only the thread that set a limit first set
    another, and looks the functions up at each call.
    """

    def __init__(self, library: Any) -> None:
        self.path: str = library.filepath
        self.threads: Callable[[], int] = library.get_num_threads
        self.limit: Callable[[int], Any] = library.set_num_threads
        for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
            name = f"{prefix}openblas_%s_num_threads{suffix}"
            if hasattr(library.dynlib, name % "set"):
                self.threads, self.limit = (getattr(library.dynlib, name % verb) for verb in ("get", "set"))


_process = _Process()
