"""One setting of threads, applied by phase, because thread pools that run together fight for the same cores.

extract   the extractor's own threads; BLAS 1
fit       BLAS; FAISS too (its k-means)
search    FAISS; BLAS 1 (left at its default it stalls some searches)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from threadpoolctl import threadpool_limits

Phase = Literal["extract", "fit", "search"]


def available() -> int:
    """Threads to use: ``OMP_NUM_THREADS`` where it is set, else the cores this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


@contextmanager
def phase(name: Phase, threads: int | None = None) -> Iterator[int]:
    """Within the block, BLAS and FAISS (where it is loaded) have the threads that ``name`` gives them."""
    threads = threads or available()
    faiss = sys.modules.get("faiss")
    before = faiss.omp_get_max_threads() if faiss else 0
    with threadpool_limits(limits=threads if name == "fit" else 1, user_api="blas"):
        if faiss:
            faiss.omp_set_num_threads(1 if name == "extract" else threads)
        try:
            yield threads
        finally:
            if faiss:
                faiss.omp_set_num_threads(before)
