"""Limits of threads: first in, last out, whoever overlaps; and FAISS's threads by the size of the work."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from cbir_faiss._lib import threads


def blas() -> set[int]:
    """Threads that the BLAS libraries of this process have now."""
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    return {library.get_num_threads() for library in controllers if library.threading_layer != "openmp"}


@pytest.fixture(autouse=True)
def three() -> None:
    assert np.ones(2).sum() == 2
    ThreadpoolController().limit(limits=3, user_api="blas")


def test_a_search_has_one_and_gives_back_what_was_there() -> None:
    before = blas()
    with threads.phase("search"):
        assert blas() == {1}
    assert blas() == before


def test_overlapping_phases_of_several_threads_leave_nothing_behind() -> None:
    before, inside, go = blas(), threading.Event(), threading.Event()

    def search() -> None:
        with threads.phase("search"):
            inside.set()
            go.wait(10)

    other = threading.Thread(target=search)
    with threads.phase("search"):
        other.start()
        inside.wait(10)
    assert blas() == {1}, "the other search goes on"
    go.set()
    other.join()
    assert blas() == before


def test_fitting_keeps_its_threads_while_somebody_searches() -> None:
    before = blas()
    with threads.phase("fit", 2):
        with threads.phase("search"):
            assert blas() == {2}
        assert blas() == {2}
    assert blas() == before


def test_a_phase_that_fails_gives_back_what_was_there() -> None:
    before = blas()
    with pytest.raises(KeyError), threads.phase("search"):
        raise KeyError
    assert blas() == before


def test_little_work_takes_one_thread_and_much_takes_a_share() -> None:
    much = 8 * threads.ONE_THREAD_BYTES
    with threads.phase("search", 4):
        assert threads.for_search(1000) == 1
        assert threads.for_search(much) == 4
        with threads.phase("search", 4):
            assert threads.for_search(much) == 2, "two searches at once share them"
    with threads.phase("search", 1):
        assert threads.for_search(much) == 1


def test_a_search_leaves_faiss_as_the_caller_had_it() -> None:
    faiss = pytest.importorskip("faiss")
    from cbir_faiss.backends import load_backend

    backend = load_backend("faiss-flat")
    backend.upsert(np.arange(50), np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
    own = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        backend.search(np.ones((1, 8), np.float32), 3)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(own)
