"""One setting of threads for the process, because thread pools that run together fight for the same cores.

extract   the extractor's own threads; BLAS 1
fit       BLAS; FAISS too (its k-means)
search    BLAS 1 (left at its default it stalls some searches); FAISS by the size of the work, see ``for_search``

Phases may overlap, in one thread or in several: the first one in limits BLAS, the last one out gives back what was
there before. That is once a call with all its queries, and a few microseconds.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
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


class phase:  # it is used like a function, and a search has no microseconds for a generator's frame
    """Within the block, BLAS and FAISS (where it is loaded) have the threads that ``name`` gives them.

    ``threads``: how many there are; None: ``available()``.
    """

    __slots__ = ("_before", "_faiss", "_threads", "name")

    def __init__(self, name: Phase, threads: int | None = None) -> None:
        self.name, self._threads = name, threads

    @property
    def threads(self) -> int:
        return self._threads or available()

    @property
    def blas(self) -> int:
        return self.threads if self.name == "fit" else 1

    def __enter__(self) -> None:
        _process.enter(self)
        self._faiss = sys.modules.get("faiss") if self.name != "search" else None
        if self._faiss:  # OpenMP's limit is the calling thread's own
            self._before = self._faiss.omp_get_max_threads()
            self._faiss.omp_set_num_threads(self.blas)

    def __exit__(self, *_: object) -> None:
        if self._faiss:
            self._faiss.omp_set_num_threads(self._before)
        _process.leave(self)


class openmp:
    """Within the block, FAISS has the threads of ``for_search``; then the caller's again, who may use FAISS too."""

    __slots__ = ("_before", "_functions", "_wanted")

    def __init__(self, faiss: Any, scanned: float) -> None:
        self._functions, self._wanted = _openmp_of(faiss), for_search(scanned)

    def __enter__(self) -> None:
        threads, limit = self._functions
        self._before = threads()
        if self._wanted != self._before:
            limit(self._wanted)

    def __exit__(self, *_: object) -> None:
        if self._wanted != self._before:
            self._functions[1](self._before)


@cache
def _openmp_of(faiss: Any) -> tuple[Callable[[], int], Callable[[int], Any]]:
    """What says and sets OpenMP's limit for FAISS in the calling thread.

    FAISS's own functions let other Python threads in at each call, which costs more than the call; so OpenMP's are
    called, where the library that FAISS runs on is found.
    """
    from threadpoolctl import ThreadpoolController

    own = faiss.omp_get_max_threads()
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        direct = ctypes.PyDLL(library.filepath)
        direct.omp_set_num_threads(own + 1)
        is_its = faiss.omp_get_max_threads() == own + 1
        direct.omp_set_num_threads(own)
        if is_its:
            return direct.omp_get_max_threads, direct.omp_set_num_threads
    return faiss.omp_get_max_threads, faiss.omp_set_num_threads


def for_search(scanned: float) -> int:
    """Threads for one call that scans so many bytes: one for little work, else its share of those there are."""
    if scanned <= ONE_THREAD_BYTES:
        return 1
    searches = [entered.threads for entered in _process.going_on if entered.name == "search"]
    threads = min(searches, default=0) or available()
    return max(1, min(threads // max(1, len(searches)), int(scanned // ONE_THREAD_BYTES)))


class _Process:
    """The phases that are going on in this process, and BLAS as it was before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.going_on: list[phase] = []
        self._modules = 0
        self._users: list[bool] = []
        self._libraries: list[_Blas] = []
        self._before: list[tuple[_Blas, int]] = []

    def enter(self, entered: phase) -> None:
        with self._lock:
            self.going_on.append(entered)
            # A search inside another, or beside one, changes nothing: this stands in the path of every query.
            if len(self.going_on) == 1 or entered.name == "fit" or len(sys.modules) != self._modules:
                self._apply(max([other.blas for other in self.going_on]))

    def leave(self, entered: phase) -> None:
        with self._lock:
            self.going_on.remove(entered)
            if not self.going_on:
                self._give_back()
            elif entered.name == "fit":
                self._apply(max([other.blas for other in self.going_on]))

    def _apply(self, limit: int) -> None:
        if len(sys.modules) != self._modules:
            self._find()
        if not self._before:
            self._before = [(library, library.threads()) for library in self._libraries]
        elif len(self._before) < len(self._libraries):
            met = {library.path for library, _ in self._before}
            self._before += [(lib, lib.threads()) for lib in self._libraries if lib.path not in met]
        for library, _ in self._before:
            library.limit(limit)

    def _give_back(self) -> None:
        for library, threads in self._before:
            library.limit(threads)
        self._before = []

    def _find(self) -> None:
        """The libraries that are loaded now. To look through all that is loaded takes most of a millisecond, so that is
        done only when one that brings a BLAS has come since."""
        self._modules = len(sys.modules)
        users = [name in sys.modules for name in _BLAS_USERS]
        if users != self._users:
            from threadpoolctl import ThreadpoolController

            found = ThreadpoolController().select(user_api="blas").lib_controllers
            # One that runs on OpenMP (FAISS brings such) follows OpenMP's limit, and would set it.
            pools = [library for library in found if getattr(library, "threading_layer", "") != "openmp"]
            self._libraries, self._users = [_Blas(library) for library in pools], users


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
