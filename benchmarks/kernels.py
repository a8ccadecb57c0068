"""Which BLAS kernels FAISS multiplies matrices with: when it is imported, and when our backends import it.

    python benchmarks/kernels.py             100,000 vectors of 512 floats, 5 rounds, in turn
    python benchmarks/kernels.py --quick     5,000 vectors, one round; stores nothing

Every run is a process of its own, with all cores: `faiss` imports FAISS and calls it, `ours` calls the backend of the
same index. Lists are learnt from all vectors and filled with them, and 1,000 queries are compared with all of them at
once. Where both take the same kernels, which the table names, FAISS knows the processor, and there is nothing to gain.
Raw figures go to benchmarks/results/kernels.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _report import ratio, show, store

DIM, LISTS, QUERIES = 512, 512, 1_000
WAYS, STEPS = ("faiss", "ours"), ("learn", "fill", "search")
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 vectors, one round, nothing stored")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "ITEMS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(_one(chosen.one[0], int(chosen.one[1]))))
        return
    items, rounds = (5_000, 1) if chosen.quick else (100_000, chosen.rounds)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):  # the first does not count
        for way in WAYS:
            told = subprocess.run(
                [sys.executable, __file__, "--one", way, str(items)], capture_output=True, check=True, text=True
            )
            if number > 0:
                runs[way].append(json.loads(told.stdout.splitlines()[-1]))
    rows = [_row(step, runs) for step in STEPS]
    kernels = {way: runs[way][0]["kernels"] for way in WAYS}
    show(f"{items:,} x {DIM}, seconds; kernels: {kernels}", rows, ["step", *WAYS, "times_faster"])
    if not chosen.quick:
        print(store("kernels", {"kernels": {"items": items, "kernels": kernels, "rows": rows}}))


def _row(step: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    seconds = {way: [run[step] for run in runs[way]] for way in WAYS}
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {"step": step, **medians, "times_faster": ratio(seconds["faiss"], seconds["ours"]), "seconds": seconds}


def _one(way: str, items: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((LISTS, DIM), dtype=np.float32)
    x = centres[rng.integers(0, LISTS, items)] + rng.standard_normal((items, DIM), dtype=np.float32)
    queries = x[:QUERIES] + np.float32(0.1)
    steps = _theirs(x, queries) if way == "faiss" else _ours(x, queries)
    taken: dict[str, Any] = {}
    for name, step in zip(STEPS, steps, strict=True):
        began = time.perf_counter()
        step()
        taken[name] = time.perf_counter() - began
    return taken | {"kernels": _kernels()}


def _theirs(x: Any, queries: Any) -> tuple[Step, Step, Step]:
    import faiss

    lists, flat = faiss.index_factory(DIM, f"IVF{LISTS},Flat"), faiss.IndexFlatL2(DIM)
    flat.add(x)
    return lambda: lists.train(x), lambda: lists.add(x), lambda: flat.search(queries, 10)


def _ours(x: Any, queries: Any) -> tuple[Step, Step, Step]:
    from cbir_faiss.base.registry import make

    lists, flat, ids = make("backends", "faiss-ivf", nlist=LISTS), make("backends", "faiss-flat"), np.arange(len(x))
    for backend in (lists, flat):
        backend.create(DIM, "float")
    flat.upsert(ids, x)
    return lambda: lists.train(x), lambda: lists.upsert(ids, x), lambda: flat.search(queries, 10)


def _kernels() -> str:
    """What OpenBLAS calls the cores that FAISS's copy of it has kernels for; "" of another BLAS."""
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if "faiss" in library["filepath"]]
    return next((library["architecture"] for library in found if "architecture" in library), "")


if __name__ == "__main__":
    main()
