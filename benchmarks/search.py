"""Search: what our layer costs over bare FAISS, and what two stages gain over a flat scan. All ratios within one run.

    python benchmarks/search.py                         both, on synthetic clusters of 100,000 vectors
    python benchmarks/search.py --quick                 seconds, to see that it runs; stores nothing
    python benchmarks/search.py two-stage --name NAME --features ITEMS.npy --queries QUERIES.npy [--graphs]

Two stages: an index of codes gives candidates, which are ranked again by memory-mapped floats. One query at a time on
one thread, baseline included. Warm: the floats' pages are in memory; cold: they were dropped before. Resident is what a
fresh process grows by over opening the saved index and searching, without the mapped floats.
Raw times and figures go to benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, seconds, show, store

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base import registry
from cbir_faiss.base.options import need
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances
from cbir_faiss.pipeline.fill import FILL_ROWS, fill
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.storage.prefetch import Prefetch
from cbir_faiss.types import Codes, Floats, Hits

Mapped = tuple[Floats, Prefetch]
BLOCK = 50_000
TIMED = 200
COLD = 40
K = 10


@dataclass(frozen=True)
class Trial:
    """A first stage, the search options to sweep over it, and how many candidates go on."""

    codec: tuple[str, dict[str, Any]]
    backend: tuple[str, dict[str, Any]]
    searches: tuple[dict[str, Any], ...] = ({},)
    candidates: tuple[int, ...] = (200, 500)
    graph: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        bits = self.codec[1].get("bits")
        codec = f"{self.codec[0]} {bits}, " if bits else ""
        return codec + " ".join([self.backend[0], *(f"{k}={v}" for k, v in self.backend[1].items())])


def trials(nlist: int) -> list[Trial]:
    """Every first stage that was tried; those with ``graph`` take long to build."""
    lists = {"nlist": nlist}
    probes = tuple({"nprobe": n} for n in (8, 16, 32, 64))
    itq, raw = ("itq", {"bits": 512}), ("raw", {})
    return [
        Trial(itq, ("faiss-binary-flat", {})),
        Trial(("itq", {"bits": 256}), ("faiss-binary-flat", {})),
        Trial(itq, ("faiss-binary-ivf", lists), probes),
        Trial(raw, ("faiss-rabitq", lists), probes),
        Trial(raw, ("rabitq", {"bits": 1, **lists}), probes),
        Trial(raw, ("faiss-pq", {"bits": 256, **lists}), probes),
        Trial(raw, ("faiss-ivf", lists), probes[1:3], (K,)),
        Trial(itq, ("faiss-binary-hnsw", {}), ({"ef": 256}, {"ef": 512}), graph=True),
        Trial(raw, ("faiss-hnsw", {}), ({"ef": 64}, {"ef": 256}), (K,), graph=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="overhead, two-stage (both)")
    parser.add_argument("--features", type=Path, help="items, .npy float32 (n, dim), memory-mapped")
    parser.add_argument("--queries", type=Path, help="queries, .npy float32 (m, dim)")
    parser.add_argument("--name", default="clustered-100k", help="what the results are stored under")
    parser.add_argument("--nlist", type=int, default=1024, help="inverted lists (1024)")
    parser.add_argument("--graphs", action="store_true", help="also HNSW, which takes long to build")
    parser.add_argument("--only", default="", help="first stages whose name begins so (all)")
    parser.add_argument("--candidates", type=int, nargs="*", help="how many go on, in place of the stages' own")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of search.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - {"overhead", "two-stage"}:
        parser.error(f"unknown section {unknown.pop()!r}; there are: overhead, two-stage")
    done: dict[str, Any] = {}
    if not chosen.sections or "overhead" in chosen.sections:
        done["overhead"] = overhead(quick=chosen.quick)
    if not chosen.sections or "two-stage" in chosen.sections:
        with tempfile.TemporaryDirectory() as scratch:
            n = 5_000 if chosen.quick else 100_000
            items = chosen.features or write_clusters(Path(scratch, "items.npy"), n + 500)
            nlist = 32 if chosen.quick else chosen.nlist
            tried = [
                replace(trial, candidates=tuple(chosen.candidates or trial.candidates))
                for trial in trials(nlist)
                if trial.name.startswith(chosen.only) and (chosen.graphs or not trial.graph)
            ]
            done[f"two-stage {chosen.name}"] = two_stage(items, chosen.queries, tried, nlist, Path(scratch))
    if not chosen.quick:
        print(f"\n{store('search', done, 1, chosen.out)}")


# ------------------------------------------------------------------------------------------------------------ overhead


def overhead(*, quick: bool) -> dict[str, Any]:
    """One query of 256 bits over 100,000 codes: our backend against the bare index, call by call in turn."""
    faiss = need("faiss", "cpu")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (10_000 if quick else 100_000, 32), np.uint8)
    queries = rng.integers(0, 256, (500, 32), np.uint8)
    backend = registry.make("backends", "faiss-binary-flat")
    backend.upsert(np.arange(len(codes)), codes)
    backend.flush()
    bare = faiss.IndexBinaryFlat(256)
    bare.add(codes)
    rounds = 2 if quick else 20
    with threads.phase("search", 1):
        ours, theirs = _in_turn(
            lambda q: backend.search(q, K),
            lambda q: bare.search(q, K),
            [queries[i : i + 1] for i in range(500)],
            rounds,
        )
    figures = {
        "bare_us": statistics.median(theirs) * 1e6,
        "ours_us": statistics.median(ours) * 1e6,
        "times": statistics.median(ours) / statistics.median(theirs),
    }
    show("one query, 256 bits, our backend over bare FAISS", [figures], list(figures))
    return {"rows": [figures], "items": len(codes), "k": K, "calls": len(ours)}


def _in_turn(
    a: Callable[[Any], Any], b: Callable[[Any], Any], queries: list[Any], rounds: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for query in queries:
            for call, spent in ((a, times[0]), (b, times[1])):
                began = time.perf_counter()
                call(query)
                if turn:  # the first round warms up
                    spent.append(time.perf_counter() - began)
    return times


# ----------------------------------------------------------------------------------------------------------- two-stage


def two_stage(
    features: Path, query_file: Path | None, tried: Sequence[Trial], nlist: int, scratch: Path
) -> dict[str, Any]:
    """What is tried against IndexFlatL2 on the same vectors: recall, speed, bytes."""
    items = np.load(features, mmap_mode="r")
    if query_file is None:
        items, queries = items[:-500], np.array(items[-500:])
    else:
        queries = np.load(query_file).astype(np.float32)[:1000]
    with threads.phase("fit"):
        thresholds = exact_thresholds(items, queries, K, "l2")
    flat = _flat_times(items, queries)
    rows: list[dict[str, Any]] = [
        {"stage": "IndexFlatL2", "recall": 1.0, "ms": _median_ms(flat), "times": 1.0, "bytes": 4.0 * items.shape[1]}
    ]
    columns = ["stage", "search", "candidates", "recall", "ms", "times", "cold_ms", "bytes", "build_s"]
    with ResidentMeter() as meter:
        for trial in tried:
            for row in _try(trial, features, items, queries, thresholds, meter, scratch):
                row["times"] = _median_ms(flat) / row["ms"]
                rows.append(row)
                print(
                    f"{row['recall']:.4f} at {row['times']:.1f} times: {row['stage']}, {row['search']}", file=sys.stderr
                )
    show(f"{len(items):,} x {items.shape[1]}, knn_recall@{K} by L2, one query on one thread", rows, columns)
    return {"items": len(items), "dim": items.shape[1], "queries": len(queries), "nlist": nlist, "rows": rows}


def _try(
    trial: Trial,
    features: Path,
    items: Floats,
    queries: Floats,
    thresholds: Any,
    meter: ResidentMeter,
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    codec = registry.make("codecs", trial.codec[0], **trial.codec[1])
    backend = registry.make("backends", trial.backend[0], **trial.backend[1])
    began = time.perf_counter()
    with threads.phase("fit"):
        sample = np.array(items[sample_rows(len(items))])
        codec.fit(sample)
        starts = range(0, len(items), FILL_ROWS)
        parts = (
            (np.arange(start, start + len(block)), codec.encode(block), None)
            for start, block in ((start, np.array(items[start : start + FILL_ROWS])) for start in starts)
        )
        fill(backend, parts, kind=codec.kind, width=codec.width, sample=lambda: codec.encode(sample))
    built = time.perf_counter() - began
    resident = _resident(backend, trial, codec, queries, meter, scratch)
    for search in trial.searches:
        options = backend.SearchOptions(**search)
        for candidates in trial.candidates:
            run = _stages(codec, backend, options, candidates)
            with threads.phase("search", 1):
                warm = _mapped(features)
                hits = [run(queries[i : i + 1], warm) for i in range(len(queries))]
                times = [_timed(run, queries[i : i + 1], warm) for i in range(min(TIMED, len(queries)))]
                del warm
                cold = _cold_times(features, items, run, queries)
            found = np.concatenate([hit.ids[:, :K] for hit in hits])
            recall = knn_recall(true_distances(items, queries, found, "l2"), thresholds, K).mean()
            yield {
                "stage": trial.name,
                "search": " ".join(f"{k}={v}" for k, v in search.items()),
                "candidates": candidates,
                "recall": float(recall),
                "ms": _median_ms(times),
                "cold_ms": _median_ms(cold),
                "bytes": resident / len(items),
                "build_s": built,
                "seconds": times,
            }


def _stages(codec: Any, backend: Any, options: Any, candidates: int) -> Callable[[Floats, Mapped], Hits]:
    rescorer = registry.make("rescorers", "float", candidates=candidates, metric="l2", center=False)
    rescorer.fit({"embedding": np.zeros((1, codec.dim), np.float32)})  # L2 needs nothing of the database but its width
    fitted = Fitted(codec, rescorer, "embedding")

    def run(query: Floats, stored: Mapped) -> Hits:
        return Searcher(fitted, _Stored(backend, options, *stored), 1).hits({"embedding": query}, K)

    return run


@dataclass(frozen=True)
class _Stored:
    """A first stage and the mapped floats behind it, as ``Searcher`` searches them and a collection reads them."""

    backend: Any
    options: Any
    floats: Floats
    prefetch: Prefetch

    def __len__(self) -> int:
        return len(self.floats)

    def search(self, codes: Codes, k: int, where: Any) -> Hits:
        hits: Hits = self.backend.search(codes, k, where, self.options)
        return hits

    def fetch(self, ids: Any, column: str) -> Any:
        self.prefetch(ids)
        return self.floats[ids]

    def located(self, ids: Any, column: str) -> Any:
        self.prefetch(ids)
        return [(self.floats, ids)]


def _resident(backend: Any, trial: Trial, codec: Any, queries: Floats, meter: ResidentMeter, scratch: Path) -> float:
    folder = scratch / "saved"
    backend.save(folder)
    query: Codes = codec.encode(queries[:1])
    found = meter.measure(trial.backend[0], trial.backend[1], folder, query)
    for file in folder.iterdir():
        file.unlink()
    state = sum(array.nbytes for array in codec.state.values())
    return float("nan") if found is None else float(found + state)


def _flat_times(items: Floats, queries: Floats) -> list[float]:
    faiss = need("faiss", "cpu")
    index = faiss.IndexFlatL2(items.shape[1])
    for start in range(0, len(items), BLOCK):
        index.add(np.array(items[start : start + BLOCK]))
    with threads.phase("search", 1):
        return [seconds(lambda i=i: index.search(queries[i : i + 1], K), 1, warm=i == 0)[0] for i in range(30)]  # type: ignore[misc]


def _mapped(path: Path) -> Mapped:
    """The floats of a file, without read-ahead: rows are wanted here and there."""
    stored: Any = np.load(path, mmap_mode="r")
    stored._mmap.madvise(mmap.MADV_RANDOM)
    return np.asarray(stored), Prefetch(stored)


def _cold_times(path: Path, items: Any, run: Callable[[Floats, Mapped], Hits], queries: Floats) -> list[float]:
    """The first ``COLD`` queries after the file's pages were dropped, which are only those that nobody has mapped."""
    gc.collect()
    items._mmap.madvise(mmap.MADV_DONTNEED)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    stored = _mapped(path)
    return [_timed(run, queries[i : i + 1], stored) for i in range(min(COLD, len(queries)))]


def _timed(run: Callable[[Floats, Mapped], Hits], query: Floats, stored: Mapped) -> float:
    began = time.perf_counter()
    run(query, stored)
    return time.perf_counter() - began


def _median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1000


def write_clusters(path: Path, n: int, dim: int = 512, per_cluster: int = 4000) -> Path:
    """Overlapping Gaussian clusters of a decaying spectrum, larger than any list of candidates; float32."""
    rng = np.random.default_rng(0)
    scale = (1 + np.arange(dim) / 16) ** -0.5
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    centres = rng.standard_normal((max(1, n // per_cluster), dim)) * scale
    items = np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
    for start in range(0, n, BLOCK):
        rows = min(BLOCK, n - start)
        around = centres[rng.integers(0, len(centres), rows)]
        items[start : start + rows] = (around + 0.7 * scale * rng.standard_normal((rows, dim))) @ turn
    items.flush()
    return path


if __name__ == "__main__":
    main()
