"""Changing a collection that has grown: what an add costs, what it writes, what memory it takes, and what filters cost.

    python benchmarks/growth.py                 1,000,000 vectors of 512 floats against 10,000; needs 12 GB in --scratch
    python benchmarks/growth.py --items 200000 --backends faiss-binary-ivf
    python benchmarks/growth.py --filters --backends rabitq faiss-rabitq        what filters cost, and nothing else
    python benchmarks/growth.py --quick         20,000 against 2,000; stores nothing

Codec lsh with 256 bits, and a rescorer that stores the floats; a backend of floats gets them as they are, and nothing
ranks again. Every figure comes from a process of its own, which
works through `Collection` on a copy of what was built.

    add        seconds of each of 12 adds of 1,000 vectors with path, label and year, to the small and the large one
    written    bytes that 100 such adds to the small one pass to the system to be written, for each byte of the vectors
               and their documents; merges, and learning anew, are among them
    memory     peak of RssAnon over what it was when the collection was open: over those adds, and over a delete of a
               quarter of the large one, which writes what is left anew; of a new graph, its file is taken off
    filter     milliseconds of a search for 10 among all items, and among those that a filter keeps, which are a
               thousandth to half of them: with another filter each time, and with the same one again

Raw figures go to benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _report import Anonymous, seconds, show, store

from cbir_faiss.base.registry import load
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config

DIM, BATCH, ADDS, TIMED = 512, 1000, 100, 12
BACKENDS = ("faiss-binary-ivf", "faiss-binary-hnsw")
SHARES = {"0.1 %": 1, "1 %": 10, "10 %": 100, "50 %": 500}  # of 1,000 values that documents have alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 against 2,000 vectors, nothing stored")
    parser.add_argument("--items", type=int, default=1_000_000, help="of the large one (1,000,000)")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, help=f"({' '.join(BACKENDS)})")
    parser.add_argument("--filters", action="store_true", help="only what filters cost")
    parser.add_argument("--scratch", type=Path, help="where to build them (the system's folder for such)")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(WORK[arguments.one[0]](Path(arguments.one[1]))))
        return
    sizes = {"small": 2_000, "large": 20_000} if arguments.quick else {"small": 10_000, "large": arguments.items}
    results: dict[str, Any] = {}
    for backend in arguments.backends:
        with tempfile.TemporaryDirectory(prefix="growth-", dir=arguments.scratch) as place:
            runs = (_filters if arguments.filters else _runs)(backend, sizes, Path(place))
        summary = _filter_summary(runs) if arguments.filters else {**_summary(runs), **_filter_summary(runs)}
        results[f"{backend} {sizes['large']}"] = {"dim": DIM, "items": sizes, "runs": runs, **summary}
        show(backend, [{"what": key, "": value} for key, value in summary.items()], ("what", ""))
    if not arguments.quick:
        print(store("growth", results))


def _runs(backend: str, sizes: dict[str, int], place: Path) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for size, n in sizes.items():
        _build(backend, n, place / f"{size}.cbir")
        runs[f"add to {size}"] = _in_a_process("add", place / f"{size}.cbir")
    runs["written"] = _in_a_process("many", place / "small.cbir")
    runs["merge of large"] = _in_a_process("merge", place / "large.cbir")
    runs["filter"] = _in_a_process("filter", place / "large.cbir")
    return runs


def _filters(backend: str, sizes: dict[str, int], place: Path) -> dict[str, Any]:
    _build(backend, sizes["large"], place / "large.cbir")
    return {"filter": _in_a_process("filter", place / "large.cbir")}


def _summary(runs: dict[str, Any]) -> dict[str, float]:
    middle = {size: statistics.median(runs[f"add to {size}"]["seconds"]) for size in ("small", "large")}
    memory = {
        name: (run["rss_anon_bytes"] - run["graph_bytes"]) / 1e6 for name, run in runs.items() if "graph_bytes" in run
    }
    return {
        "add to small s": middle["small"],
        "add to large s": middle["large"],
        "large over small": middle["large"] / middle["small"],
        "bytes written for a byte": runs["written"]["written_bytes"] / runs["written"]["added_bytes"],
        **{f"{name}: peak MB": value for name, value in memory.items()},
    }


def _filter_summary(runs: dict[str, Any]) -> dict[str, float]:
    plain = statistics.median(runs["filter"]["all"])
    return {
        "search ms": 1e3 * plain,
        **{
            f"{name}, {how}": statistics.median(runs["filter"][how][name]) / plain
            for name in SHARES
            for how in ("a new filter", "the same again")
        },
    }


# ------------------------------------------------------------------------------------------------- in its own process


def _add(folder: Path) -> dict[str, Any]:
    return _adding(folder, TIMED)


def _many(folder: Path) -> dict[str, Any]:
    return _adding(folder, ADDS)


def _adding(folder: Path, times: int) -> dict[str, Any]:
    with Collection.open(folder) as collection:
        collection.search(_vectors(1, 10**7))
        before, added, took, graph, there = _written(), 0, [], 0, _indexes(folder)
        with Anonymous() as memory:
            for batch in range(times):
                x, documents = _vectors(BATCH, 10**8 + batch), _documents(BATCH, f"new/{batch}")
                added += x.nbytes + sum(len(json.dumps(document)) for document in documents)
                began = time.perf_counter()
                collection.add_vectors(x, documents)
                took.append(time.perf_counter() - began)
                graph = max(graph, *(size for path, size in _indexes(folder).items() if path not in there))
        written = _written() - before
    return {
        "seconds": took,
        "rss_anon_bytes": memory.peak - memory.first,
        "graph_bytes": graph if _is_graph(folder) else 0,
        "written_bytes": written,
        "added_bytes": added,
    }


def _merge(folder: Path) -> dict[str, Any]:
    with Collection.open(folder) as collection:
        collection.search(_vectors(1, 10**7))
        with Anonymous() as memory:
            began = time.perf_counter()
            collection.delete(range(0, len(collection), 4))
            took = time.perf_counter() - began
    graph = max(_indexes(folder).values()) if _is_graph(folder) else 0
    return {"seconds": [took], "rss_anon_bytes": memory.peak - memory.first, "graph_bytes": graph}


def _filter(folder: Path) -> dict[str, Any]:
    with Collection.open(folder) as collection:
        queries, first = iter(_vectors(1000, 10**7)), itertools.count()

        def search(values: int | None, new: bool = False) -> Any:
            start = next(first) if new else 0
            where = None if values is None else {"draw": {"gte": start, "lt": start + values}}
            return collection.search_hits(next(queries)[None], 10, where)

        def each(new: bool) -> dict[str, list[float]]:
            return {name: seconds(partial(search, values, new), 30) for name, values in SHARES.items()}

        return {"all": seconds(partial(search, None), 30), "a new filter": each(True), "the same again": each(False)}


WORK = {"add": _add, "many": _many, "merge": _merge, "filter": _filter}


def _in_a_process(what: str, folder: Path) -> dict[str, Any]:
    work = folder.with_name("work.cbir")
    shutil.copytree(folder, work)
    done = subprocess.run([sys.executable, __file__, "--one", what, str(work)], stdout=subprocess.PIPE, check=True)
    shutil.rmtree(work)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _written() -> int:
    """Bytes that this process has passed to the system to be written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def _is_graph(folder: Path) -> bool:
    with Collection.open(folder) as collection:
        return "hnsw" in collection.manifest.backend.name


def _indexes(folder: Path) -> dict[Path, int]:
    """Index files and their sizes: a graph is held while it is made."""
    return {path: path.stat().st_size for path in folder.glob("segments/*/backend/index.faiss")}


# ---------------------------------------------------------------------------------------------------- what is put in


def _build(backend: str, n: int, out: Path) -> None:
    vectors, documents = out.with_suffix(".npy"), out.with_suffix(".jsonl")
    x = np.lib.format.open_memmap(vectors, "w+", np.float32, (n, DIM))
    with documents.open("w") as file:
        for start in range(0, n, BATCH):
            x[start : start + BATCH] = _vectors(BATCH, start)
            file.writelines(json.dumps(document) + "\n" for document in _documents(BATCH, str(start)))
    plugin: Any = load("backends", backend)
    codes = "binary" in plugin.accepts
    config = {
        "source": {"name": "vectors", "file": str(vectors), "documents": str(documents)},
        "codecs": [{"name": "lsh", "bits": 256} if codes else {"name": "raw"}],
        "backends": [{"name": backend}],
        "rescore": [{"name": "float" if codes else "none"}],
    }
    Collection.build(parse_config(config), out).close()
    vectors.unlink()


def _vectors(n: int, seed: int) -> Any:
    """Some of a thousand clusters."""
    centres = np.random.default_rng(0).standard_normal((1000, DIM), dtype=np.float32)
    rng = np.random.default_rng(1 + seed)
    return centres[rng.integers(0, 1000, n)] + rng.standard_normal((n, DIM), dtype=np.float32)


def _documents(n: int, name: str) -> list[dict[str, Any]]:
    """``draw`` has values that other keys say nothing about."""
    draws = np.random.default_rng(sum(name.encode())).integers(0, 1000, n).tolist()
    return [
        {"path": f"{name}/{i}.jpg", "label": f"c{i % 10}", "year": 1950 + i % 100, "draw": draw}
        for i, draw in enumerate(draws)
    ]


if __name__ == "__main__":
    main()
