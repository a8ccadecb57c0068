"""Tens of millions of items on one machine: build, open, search and add, with the memory that each takes.

    python ../shared/clustered.py x.npy 10000000 128
    python benchmarks/scale.py --vectors x.npy --queries x.queries.npy     needs twice their size of disk in --scratch
    python benchmarks/scale.py --vectors x.npy --queries q.npy --only faiss-binary-ivf --no-floats

Codec lsh with 256 bits; the floats are stored to rescore 500 candidates, or not at all. Every step is a process of its
own, which works through `Collection`. Memory is anonymous (RssAnon): mapped files are not in it, for the system
takes their pages back when it needs them.

    build    seconds, peak of memory, bytes on disk
    open     seconds from a collection that is closed to the first answer, libraries loaded
    search   milliseconds of one query (median of 200) and recall@10 of the exact neighbours: as it was built, and by
             the code alone
    add      seconds and peak of memory of adding 10,000 more

Raw figures go to benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from _report import Anonymous, seconds, show, store
from numpy.typing import NDArray

from cbir_faiss.collection import Collection
from cbir_faiss.collection.build import build
from cbir_faiss.config import parse_config

BITS, K, ASKED, ADDED, CANDIDATES = 256, 10, 200, 10_000, 500
BACKENDS: dict[str, dict[str, Any]] = {"faiss-binary-flat": {}, "faiss-binary-ivf": {"search": {"nprobe": 64}}}
BLOCK = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True, help="float32 (n, dim), .npy")
    parser.add_argument("--queries", type=Path, required=True, help="float32 (200 or more, dim), .npy")
    parser.add_argument("--only", nargs="*", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--no-floats", action="store_true", help="store the codes alone")
    parser.add_argument("--no-store", action="store_true", help="print, and store nothing")
    parser.add_argument("--scratch", type=Path, help="where to build them (the system's folder for such)")
    parser.add_argument("--one", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(STEPS[chosen.one[0]](chosen, Path(chosen.one[1]))))
        return
    n, dim = np.load(chosen.vectors, mmap_mode="r").shape
    for backend in chosen.only:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=chosen.scratch) as place:
            runs = {step: _in_a_process(step, backend, Path(place)) for step in STEPS}
        name = f"{backend} {n}" + (" codes alone" if chosen.no_floats else "")
        result = {"items": n, "dim": dim, "bits": BITS, "runs": runs, **_summary(runs, n)}
        show(name, [{"what": key, "": value} for key, value in _summary(runs, n).items()], ("what", ""))
        if not chosen.no_store:
            print(store("scale", {name: result}))


def _summary(runs: dict[str, dict[str, Any]], n: int) -> dict[str, float]:
    codes, search = n * BITS / 8, runs["search"]
    return {
        "build s": runs["build"]["seconds"],
        "build, vectors/s": n / runs["build"]["seconds"],
        "codes MB": codes / 1e6,
        "build: peak MB": runs["build"]["peak_bytes"] / 1e6,
        "build: peak over codes MB": (runs["build"]["peak_bytes"] - codes) / 1e6,
        "disk bytes/item": runs["build"]["disk_bytes"] / n,
        "open and query s": runs["open"]["seconds"],
        "open: MB": runs["open"]["peak_bytes"] / 1e6,
        **{f"{how}: {what}": search[how][what] for how in search for what in ("ms", "recall@10")},
        "add 10,000 s": runs["add"]["seconds"],
        "add: peak MB": runs["add"]["peak_bytes"] / 1e6,
    }


def _in_a_process(step: str, backend: str, place: Path) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--only", backend, "--one", step, str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# -- steps, each in its own process


def _build(chosen: Any, place: Path) -> dict[str, Any]:
    (backend,) = chosen.only
    config = parse_config(
        {
            "source": {"name": "vectors", "file": str(chosen.vectors.absolute())},
            "codecs": [{"name": "lsh", "bits": BITS}],
            "backends": [{"name": backend, **BACKENDS[backend]}],
            "rescore": [] if chosen.no_floats else [{"name": "float", "candidates": CANDIDATES, "center": False}],
        }
    )
    config.backends[0].make()  # imports FAISS
    took = _measured(lambda: build(config, place / "x.cbir", cache=None))
    files = [path for path in (place / "x.cbir").rglob("*") if path.is_file()]
    return {**took, "disk_bytes": sum(path.stat().st_size for path in files)}


def _open(chosen: Any, place: Path) -> dict[str, Any]:
    query = _queries(chosen)[:1]
    return _measured(lambda: Collection.open(place / "x.cbir").search(query, K))


def _search(chosen: Any, place: Path) -> dict[str, Any]:
    queries = _queries(chosen)
    truth = _truth(np.load(chosen.vectors, mmap_mode="r"), queries)
    found = {}
    with Collection.open(place / "x.cbir") as collection:
        ways: dict[str, Any] = {"code alone": "none"} if chosen.no_floats else {"rescored": None, "code alone": "none"}
        for name, rescore in ways.items():
            hits: list[Any] = []

            def search(at: int, rescore: Any = rescore, hits: list[Any] = hits) -> None:
                hits.append(collection.search(queries[at : at + 1], K, rescore=rescore)[0])

            took = [seconds(lambda at=at: search(at), 1, warm=at == 0)[0] for at in range(ASKED)]  # type: ignore[misc]
            right = [len({match.id for match in a} & set(b.tolist())) / K for a, b in zip(hits[1:], truth, strict=True)]
            found[name] = {"ms": 1000 * statistics.median(took), "recall@10": float(np.mean(right)), "seconds": took}
    return found


def _add(chosen: Any, place: Path) -> dict[str, Any]:
    x = np.array(np.load(chosen.vectors, mmap_mode="r")[:ADDED])
    x += 0.01 * np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)
    documents = [{"path": f"new/{i}"} for i in range(ADDED)]
    with Collection.open(place / "x.cbir") as collection:
        collection.search(x[:1])
        return _measured(lambda: collection.add_vectors(x, documents))


STEPS = {"build": _build, "open": _open, "search": _search, "add": _add}


def _measured(work: Callable[[], Any]) -> dict[str, float]:
    with Anonymous() as memory:
        took = seconds(work, 1, warm=False)[0]
    return {"seconds": took, "peak_bytes": memory.peak}


def _queries(chosen: Any) -> NDArray[np.float32]:
    return np.array(np.load(chosen.queries, mmap_mode="r")[:ASKED])


def _truth(x: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest by cosine, which is what the rescorer ranks by."""
    best = faiss.ResultHeap(len(queries), K, keep_max=True)
    faiss.normalize_L2(queries := queries.copy())
    for start in range(0, len(x), BLOCK):
        block = np.array(x[start : start + BLOCK])
        faiss.normalize_L2(block)
        distances, rows = faiss.knn(queries, block, K, metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(distances, rows + start)
    best.finalize()
    ids: NDArray[np.int64] = best.I
    return ids


if __name__ == "__main__":
    main()
