"""Building from a file that is larger than what it may take of memory: rate, memory, and how fast it opens.

    python benchmarks/build.py                  1,000,000 vectors of 512 floats, 3 rounds; needs 8 GB of disk
    python benchmarks/build.py --quick          20,000 vectors, one round; stores nothing

Codec itq with 256 bits, backend faiss-binary-flat, and a rescorer that stores the floats. Every run is a process of its
own; rounds are interleaved, and the medians compared.

    mapped    `cbir build` from a memory-mapped file; RssAnon is looked at every 20 ms
    memory    the same build from an array that is in memory already
    bare      the same codec, rescorer and index called on that array, and their results written with numpy.save: no
              items, no digests, no manifest, nothing made durable
    open      opening that collection and answering the first query, after the libraries are imported
    again     `cbir build` of the finished collection

Raw figures go to benchmarks/results/build.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import Anonymous, show, store

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.collection import Collection
from cbir_faiss.collection.build import build
from cbir_faiss.config import Choice, Config, parse_config
from cbir_faiss.sources.vectors import Vectors
from cbir_faiss.storage.segment import BLOCK_ROWS

DIM = 512
WAYS = ("memory", "bare", "mapped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors, one round, nothing stored")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_one(arguments.one[0], Path(arguments.one[1]))))
        return
    n, rounds = (20_000, 1) if arguments.quick else (1_000_000, arguments.rounds)
    with tempfile.TemporaryDirectory(dir=Path.cwd() if not arguments.quick else None) as place:
        _write_vectors(Path(place) / "x.npy", n)
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for way in (*WAYS, "open", "again"):
                runs.setdefault(way, []).append(_in_a_process(way, Path(place)))
    result = {"items": n, "dim": DIM, "runs": runs, **_summary(runs, n)}
    show(f"{n:,} x {DIM}", [{"what": key, "": value} for key, value in _summary(runs, n).items()], ("what", ""))
    if not arguments.quick:
        print(store("build", {"million-itq-256": result}))


def _summary(runs: dict[str, list[dict[str, float]]], n: int) -> dict[str, float]:
    middle = {way: statistics.median(run["seconds"] for run in some) for way, some in runs.items()}
    return {
        **{f"{way} vectors/s": n / middle[way] for way in WAYS},
        "of the rate in memory": middle["memory"] / middle["mapped"],
        "of the bare rate": middle["bare"] / middle["mapped"],
        "peak RssAnon MB": max(run["rss_anon_bytes"] for run in runs["mapped"]) / 1e6,
        "open and query s": middle["open"],
        "build again s": middle["again"],
    }


def _in_a_process(way: str, folder: Path) -> dict[str, float]:
    if way in WAYS:
        shutil.rmtree(folder / ("bare" if way == "bare" else "x.cbir"), ignore_errors=True)
    command = [sys.executable, __file__, "--one", way, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _one(way: str, folder: Path) -> dict[str, float]:
    config = parse_config(
        {
            "source": {"name": "vectors", "file": str(folder / "x.npy")},
            "codecs": [{"name": "itq", "bits": 256}],
            "backends": [{"name": "faiss-binary-flat"}],
            "rescore": [{"name": "float"}],
        }
    )
    out = folder / "x.cbir"
    config.backends[0].make()  # imports FAISS
    if way in ("memory", "bare"):
        x = np.load(folder / "x.npy")
        work: Callable[[], Any] = lambda: _bare(config, x, folder / "bare")  # noqa: E731
        if way == "memory":
            held = replace(config, source=_Held("sources", "vectors", config.source.options, x=x))
            work = lambda: build(held, out, cache=None)  # noqa: E731
    elif way == "open":
        query = np.array(np.load(folder / "x.npy", mmap_mode="r")[:1])
        work = lambda: Collection.open(out).search(query)  # noqa: E731
    else:
        work = lambda: build(config, out, cache=None)  # noqa: E731
    with Anonymous() as memory:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "rss_anon_bytes": memory.peak}


@dataclass(frozen=True)
class _Held(Choice):
    """A source whose file has been read."""

    x: Any = None

    def make(self, **changed: Any) -> Any:
        source = Vectors(**self.options)
        source.__dict__["_stored"] = self.x  # what it would map on first use
        return source


def _bare(config: Config, x: Any, folder: Path) -> None:
    folder.mkdir()
    sample = x[sample_rows(len(x))]
    with threads.phase("fit"):
        codec, rescorer = config.codecs[0].make().fit(sample), config.rescore[0].make().fit({"embedding": sample})
        backend = config.backends[0].make()
        backend.create(codec.width, codec.kind)
        codes, stored = [], []
        for start in range(0, len(x), BLOCK_ROWS):
            block = x[start : start + BLOCK_ROWS]
            codes.append(codec.encode(block))
            stored.append(rescorer.pack({"embedding": block})["embedding"])
            backend.upsert(np.arange(start, start + len(block)), codes[-1])
        np.save(folder / "codes.npy", np.concatenate(codes))
        np.save(folder / "embedding.npy", np.concatenate(stored))
        backend.save(folder / "backend")


def _write_vectors(path: Path, n: int) -> None:
    """Clusters with a decaying spectrum, so that a learnt projection has something to learn."""
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(np.arange(1, DIM + 1))).astype(np.float32)
    centres = rng.standard_normal((1000, DIM), dtype=np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, DIM))
    for start in range(0, n, 50_000):
        count = min(50_000, n - start)
        noise = rng.standard_normal((count, DIM), dtype=np.float32)
        out[start : start + count] = (centres[rng.integers(0, 1000, count)] + 0.5 * noise) * scale
    out.flush()


if __name__ == "__main__":
    main()
