"""The pipeline: what a search of a collection costs over the same steps by hand, and what a comparison says of it.

    python benchmarks/pipeline.py               100,000 vectors of 512 floats, itq 64 bits + 100 rescored; a minute
    python benchmarks/pipeline.py --quick       5,000 vectors, to see that it runs; stores nothing
    python benchmarks/pipeline.py --features ITEMS.npy --queries QUERIES.npy

By hand: numpy and the bare FAISS index, one thread: normalise, centre, project, pack; search; gather the candidates'
floats from the mapped file, subtract the mean, cosine, sort; look the documents up in a dict that holds them all.
One query at a time, in rounds in turn with the collection's; the best round's median of each. Two threads: queries a
second of both together over one alone; of two processes, too. Beside a busy process: 95th percentile over that of the
idle machine.
Raw figures go to benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, show, store
from search import write_clusters
from threadpoolctl import threadpool_limits

from cbir_faiss.base.options import need
from cbir_faiss.collection import Collection
from cbir_faiss.comparison.run import run
from cbir_faiss.comparison.timing import Others
from cbir_faiss.config import parse_config

K, BITS, CANDIDATES = 10, 64, 100
ROUNDS, SINGLES, BATCH = 7, 200, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="items, .npy float32 (n, dim)")
    parser.add_argument("--queries", type=Path, help="queries, .npy float32 (m, dim)")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of pipeline.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cbir-") as folder:
        scratch = Path(folder)
        items, queries = chosen.features, chosen.queries
        if items is None or queries is None:
            items, queries = make_data(scratch, 5_000 if chosen.quick else 100_000)
        config = written(scratch, items)
        with Collection.build(parse_config(config), scratch / "x.cbir", cache=scratch / "cache") as collection:
            found = measure(collection, scratch, items, np.load(queries), quick=chosen.quick)
        found |= by_processes(scratch / "x.cbir", queries)
        found |= compared(config, queries, scratch, found["search_hits_ms"])
    report(found)
    if not chosen.quick:
        print(f"\n{store('pipeline', {'search': found}, 1, chosen.out)}")


def make_data(folder: Path, n: int) -> tuple[Path, Path]:
    x = np.load(write_clusters(folder / "all.npy", n + BATCH), mmap_mode="r")
    np.save(folder / "items.npy", x[:n])
    np.save(folder / "queries.npy", x[n:])
    return folder / "items.npy", folder / "queries.npy"


def written(folder: Path, items: Path) -> dict[str, Any]:
    """The config of the collection; every item has a document with a path and a label."""
    with (folder / "documents.jsonl").open("w") as lines:
        for i in range(len(np.load(items, mmap_mode="r"))):
            lines.write(json.dumps({"path": f"photos/{i // 100:05}/{i:08}.jpg", "label": f"class {i % 100}"}) + "\n")
    return {
        "source": {"name": "vectors", "file": str(items), "documents": str(folder / "documents.jsonl")},
        "codecs": [{"name": "itq", "bits": BITS}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float", "candidates": CANDIDATES}],
    }


class ByHand:
    """The same steps, from what the collection learnt and stored."""

    def __init__(self, collection: Collection, folder: Path, items: Path) -> None:
        faiss = need("faiss", "cpu")
        fitted = collection._store.fitted
        self.mean, self.matrix = fitted.codec.state["mean"], fitted.codec.state["matrix"]
        self.unit = fitted.codec.options.normalise
        self.centre = fitted.rescorer.state["mean"]
        (segment,) = sorted((collection.folder / "segments").iterdir())
        self.index = faiss.IndexBinaryFlat(BITS)
        self.index.add(np.load(segment / "codes.npy"))
        self.floats = np.asarray(np.load(segment / "column-embedding.npy", mmap_mode="r"))
        self.documents = dict(enumerate(json.loads(line) for line in (folder / "documents.jsonl").open()))

    def search(self, queries: np.ndarray) -> list[list[tuple[int, float, dict[str, Any]]]]:
        scaled = queries / np.linalg.norm(queries, axis=1, keepdims=True) if self.unit else queries
        codes = np.packbits((scaled - self.mean) @ self.matrix > 0, axis=1)
        _, candidates = self.index.search(codes, CANDIDATES)
        centred = queries - self.centre
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        found = []
        for query, ids in zip(centred, candidates, strict=True):
            rows = self.floats[ids] - self.centre
            distances = 1 - rows @ query / np.sqrt(np.einsum("ij,ij->i", rows, rows))
            nearest = np.argsort(distances)[:K]
            pairs = zip(ids[nearest].tolist(), distances[nearest].tolist(), strict=True)
            found.append([(i, d, self.documents[i]) for i, d in pairs])
        return found


def measure(collection: Collection, scratch: Path, items: Path, queries: np.ndarray, *, quick: bool) -> dict[str, Any]:
    faiss = need("faiss", "cpu")
    hand = ByHand(collection, scratch, items)
    hand.floats.sum()  # warm
    ours = [[match.id for match in some] for some in collection.search(queries[:50], K)]
    same = [[i for i, _, _ in some] for some in hand.search(queries[:50])]
    assert ours == same, "by hand the same is found"

    searches: dict[str, Callable[[np.ndarray], Any]] = {
        "by_hand": hand.search,
        "search": lambda some: collection.search(some, K),
        "search_hits": lambda some: collection.search_hits(some, K),
    }
    singles: dict[str, list[float]] = {name: [] for name in searches}
    batches: dict[str, list[float]] = {"by_hand": [], "search": []}
    others = Others()
    with others.watching():
        for number in range(2 if quick else ROUNDS):
            for name, search in searches.items():
                with one_thread(faiss) if name == "by_hand" else nullcontext():
                    singles[name].append(median_single(search, queries, number))
            for name, times in batches.items():
                began = time.perf_counter()
                with one_thread(faiss) if name == "by_hand" else nullcontext():
                    searches[name](queries[:BATCH])
                times.append(time.perf_counter() - began)
    best = {name: min(values) * 1000 for name, values in singles.items()}
    batch = {name: min(values) for name, values in batches.items()}
    return {
        "items": len(collection),
        "k": K,
        **{f"{name}_ms": value for name, value in best.items()},
        "rounds": singles,
        "batch_seconds": batch,
        "search_over_by_hand": best["search"] / best["by_hand"],
        "batch_over_by_hand": batch["search"] / batch["by_hand"],
        "busy_cores": others.cores(),
        **together(collection, queries),
        **beside_others(collection, queries),
    }


@contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """One thread for numpy and FAISS, set once and not for each query."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        yield
    faiss.omp_set_num_threads(before)


def median_single(search: Callable[[np.ndarray], Any], queries: np.ndarray, number: int) -> float:
    times = []
    for i in range(SINGLES + 5):
        at = (number * SINGLES + i) % len(queries)
        began = time.perf_counter()
        search(queries[at : at + 1])
        times.append(time.perf_counter() - began)
    return statistics.median(times[5:])


def together(collection: Collection, queries: np.ndarray) -> dict[str, Any]:
    """Queries a second of one thread, and of two at once, one query at a time; the best of five rounds in turn."""
    alone, both = [], []
    for _ in range(5):
        alone.append(rate(collection, queries, 1))
        both.append(rate(collection, queries, 2))
    return {"qps_one": max(alone), "qps_two": max(both), "two_over_one": max(both) / max(alone)}


def rate(collection: Collection, queries: np.ndarray, threads: int, seconds: float = 1.0) -> float:
    counts = [0] * threads
    stop = time.perf_counter() + seconds

    def work(number: int) -> None:
        i = number
        while time.perf_counter() < stop:
            collection.search(queries[i % len(queries)][None], K)
            counts[number] += 1
            i += threads

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def by_processes(folder: Path, queries: Path) -> dict[str, Any]:
    """The same of processes, each of which opens the collection for itself; the best of three rounds in turn."""
    alone, both = [], []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for _ in range(3):
            for count, rates in ((1, alone), (2, both)):
                begin = time.time() + 3
                work = [pool.apply_async(process_rate, (folder, queries, begin)) for _ in range(count)]
                rates.append(sum(job.get() for job in work))
    return {"processes_two_over_one": max(both) / max(alone)}


def process_rate(folder: Path, queries: Path, begin: float) -> float:
    asked = np.load(queries)
    with Collection.open(folder) as collection:
        collection.search(asked[:200], K)
        time.sleep(max(0.0, begin - time.time()))
        return rate(collection, asked, 1)


def beside_others(collection: Collection, queries: np.ndarray) -> dict[str, Any]:
    """95th percentiles of single queries, the machine idle and with one process that never rests."""

    def p95() -> float:
        times = []
        for i in range(1500):
            began = time.perf_counter()
            collection.search(queries[i % len(queries)][None], K)
            times.append(time.perf_counter() - began)
        return float(np.percentile(times, 95)) * 1000

    idle = p95()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        busy = p95()
    finally:
        other.kill()
        other.wait()
    return {"p95_idle_ms": idle, "p95_busy_ms": busy, "busy_over_idle": busy / idle}


def compared(config: dict[str, Any], queries: Path, scratch: Path, hits_ms: float) -> dict[str, Any]:
    """What ``cbir compare`` says of the same row."""
    document = {**config, "queries": {"source": {"name": "vectors", "file": str(queries)}}}
    (row,) = run(parse_config(document), scratch / "compared", cache=scratch / "cache")["rows"]
    p50 = row["latency_ms"]["p50"]
    return {"compare_p50_ms": p50, "compare_over_search_hits": p50 / hits_ms, "compare_latency_ms": row["latency_ms"]}


def report(found: dict[str, Any]) -> None:
    ratios = {
        "Collection.search over the steps by hand, one query": (found["search_over_by_hand"], "<= 2.0"),
        "the same, a batch of 1,000": (found["batch_over_by_hand"], "<= 1.3"),
        "compare's p50 over Collection.search_hits": (found["compare_over_search_hits"], "<= 1.25"),
        "two threads over one": (found["two_over_one"], ">= 1.5"),
        "two processes over one": (found["processes_two_over_one"], ""),
        "p95 beside a busy process over idle": (found["busy_over_idle"], "<= 3"),
    }
    lines = [{"ratio": name, "measured": value, "wanted": wanted} for name, (value, wanted) in ratios.items()]
    times = ", ".join(f"{name} {found[f'{name}_ms']:.3f} ms" for name in ("by_hand", "search", "search_hits"))
    show(
        f"{found['items']:,} items, itq {BITS} + {CANDIDATES} rescored: {times}", lines, ["ratio", "measured", "wanted"]
    )


if __name__ == "__main__":
    main()
