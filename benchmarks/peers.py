"""Other libraries on the same work: same vectors, same machine, each at a small sweep of its own settings.

    python benchmarks/peers.py --data cifar10=configs/cifar10.yaml --data caltech101=configs/caltech101.yaml
    python benchmarks/peers.py --data clustered-1m=ITEMS.npy,QUERIES.npy
    python benchmarks/peers.py --data … --only usearch,cbir         some peers
    python benchmarks/peers.py --data … --python diskannpy=OTHER/bin/python    one that wants a Python of its own
    python benchmarks/peers.py --data … --items 2000 --out FOLDER   the first items only, to see that it runs
    python benchmarks/tables.py                                     write docs/peers.md from the stored run

Vectors are float32 ``(n, dim)``, or what the first extractor of a config gives, compared by L2. Recall: the share of
the ten exact nearest among the ten found, by distance, so that ties count. Latency: one query at a time in a process
that is held to one core, opened on the saved index. QPS: all queries, with all cores; what answers one query after
another is asked by as many threads.

Bytes are counted by the same rule for all. Growing bytes: what an item of the last three quarters adds to what is saved
and needed for a search (codes, ids, links, and vectors where the library keeps them), so that what there is once does
not count; logs of changes and copies of the input do not, either. Total bytes: what the resident memory of the
processes that answer (of the timed one, and of a server that it asks) grows by over opening and searching, an item,
after a smaller index of the same kind has paid for the libraries. Touched pages of mapped files are in it; what the
system itself caches of files that are read (LanceDB, SQLite, PostgreSQL beyond its buffers) is not.

An index is not measured again where its rows are stored of the version that is installed and of all its search
settings, so a run that was stopped goes on; ``--again`` measures it, as is wanted after a change of our own code. Each
row has under "run" when and where it was measured, and the load of the minute before (building makes some of it). An
index that takes longer to build than ``--limit`` minutes is tried with 200,000 items. What cannot run is stored with
the reason under "absent", and tried again by the next run. Results go to benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from _peers import PEERS
from _report import RESULTS

from cbir_faiss._lib import threads
from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.split import splits
from cbir_faiss.config import load_config
from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances
from cbir_faiss.pipeline.cache import default_cache

K = 10
FEWER = 200_000
_MORE = "takes more than"
WORKER = Path(__file__).with_name("_peers.py")
Settings = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=CONFIG.yaml|ITEMS.npy,QUERIES.npy")
    parser.add_argument("--only", default=",".join(PEERS), help="peers, comma-separated (all)")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON", help="who runs a peer")
    parser.add_argument("--items", type=int, help="at most so many of each data set")
    parser.add_argument("--limit", type=float, default=30, help="minutes that an index may take to build (30)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="core of the timed process")
    parser.add_argument("--again", action="store_true", help="measure what is stored already, too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of peers.json")
    chosen = parser.parse_args()
    names = chosen.only.split(",")
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown peer {unknown.pop()!r}; there are: {', '.join(PEERS)}")
    results = Results(chosen.out / "peers.json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no worker is left behind
    pythons = dict(pair.split("=", 1) for pair in chosen.python)
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        for given in chosen.data:
            data = Data.read(given, chosen.items, Path(scratch))
            for name in names:
                runner = Runner(name, data, Path(scratch), pythons.get(name, sys.executable), chosen.core, chosen.limit)
                builds = PEERS[name].builds(data.n, data.dim)
                results.keep_only(name, data, builds)
                for build in builds:
                    measure(runner, build, results, again=chosen.again)
    print(results.path)


def measure(runner: Runner, build: Settings, results: Results, *, again: bool) -> None:
    """Rows of one index, with fewer items where it takes too long; or why there are none."""
    for data in (runner.data, runner.data.fewer):
        if data is None or (not again and results.held(runner.peer, data, build, runner.version)):
            return
        if not again and results.too_long(runner.peer, data, build):
            continue
        try:
            results.store(runner.peer, data, build, runner.rows(build, data))
        except TooLong as late:
            results.store_absent(runner.peer, data, build, str(late))
            continue
        except Failed as reason:
            results.store_absent(runner.peer, data, build, str(reason))
        return


class Failed(Exception):
    """A peer that cannot do this; the message is its reason."""


class TooLong(Failed):
    """It can, but not in the time that it is given."""


@dataclass
class Data:
    """Vectors of items and queries, and up to which distance an item is among the nearest of a query."""

    name: str
    items: Path
    queries: Path
    n: int
    dim: int

    @classmethod
    def read(cls, given: str, most: int | None, scratch: Path) -> Data:
        name, files = given.split("=", 1)
        kept = scratch / f"{name}-queries.npy"
        if files.endswith((".yaml", ".yml")):
            split = next(splits(load_config(files), default_cache()))
            items, queries = scratch / f"{name}.npy", split.queries.embedding
            np.save(items, split.items.embedding)
        else:
            items, queries = Path(files.split(",")[0]), np.load(files.split(",")[1], mmap_mode="r")
        n, dim = np.load(items, mmap_mode="r").shape
        some = np.unique(np.linspace(0, len(queries) - 1, 1000).astype(int))  # of all classes, where they are sorted
        np.save(kept, np.array(queries[some], np.float32))
        return cls(name, items, kept, min(n, most or n), dim)

    @cached_property
    def fewer(self) -> Data | None:
        """The first of them; None where there are no more anyway."""
        return Data(self.name, self.items, self.queries, FEWER, self.dim) if self.n > FEWER else None

    def recall(self, found: Any) -> float:
        items, queries = np.load(self.items, mmap_mode="r")[: self.n], np.load(self.queries)
        beyond = (found >= self.n) | (found < 0)  # some fill up with what is no row
        distances = true_distances(items, queries, np.where(beyond, -1, found), "l2")
        return float(knn_recall(np.sort(distances, axis=1), self._thresholds, K).mean())

    @cached_property
    def _thresholds(self) -> Any:
        with threads.phase("fit"):
            return exact_thresholds(np.load(self.items, mmap_mode="r")[: self.n], np.load(self.queries), K, "l2")


@dataclass
class Runner:
    """One peer over one data set, in processes of its own."""

    peer: str
    data: Data
    scratch: Path
    python: str
    core: int
    limit: float

    @cached_property
    def version(self) -> str | None:
        """Of the library, as it would run now; None where it cannot."""
        try:
            return str(self._run(self.data, "version", {}, self.scratch))
        except Failed:
            return None

    def rows(self, build: Settings, data: Data) -> list[dict[str, Any]]:
        """What is stored of an index with these settings: one row for each of the search settings."""
        run = partial(self._run, data)
        small, folder = self._folder("small"), self._folder("index")
        part = max(1, data.n // 4)
        kept = run("build", build, small, n=part, threads=threads.available(), limit=60 * self.limit)["bytes"]
        built = run("build", build, folder, n=data.n, threads=threads.available(), limit=60 * self.limit)
        searches = list(PEERS[self.peer].searches(build))
        out, measured = str(self.scratch / "found"), circumstances()
        timed = run("search", build, folder, searches=searches, out=out, core=self.core, small=str(small))
        rates = run("throughput", build, folder, searches=searches, threads=threads.available())["qps"]
        kind = {"cbir": f"cbir {build.get('backend', {}).get('name', '')}"}.get(self.peer, self.peer)
        print(f"{kind} {build}: {timed['searches'][-1]}", file=sys.stderr)
        return [
            {
                "peer": kind,
                "version": self.version,
                "data": data.name,
                "items": data.n,
                "settings": {**build, **search},
                "recall@10": data.recall(np.load(f"{out}-{number}.npy")),
                **times,
                "qps": rate,
                "growing_bytes": (built["bytes"] - kept) / (data.n - part),
                "total_bytes": timed["resident"] / data.n,
                "build_s": built["build_s"],
                "run": measured,
            }
            for number, (search, times, rate) in enumerate(zip(searches, timed["searches"], rates, strict=True))
        ]

    def _folder(self, name: str) -> Path:
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _run(self, data: Data, do: str, build: Settings, folder: Path, **job: Any) -> Any:
        """What the worker answers.

        Raises:
            TooLong: it took longer than its limit. Failed: it ended with an error.
        """
        limit, limited = job.pop("limit", 3600.0), job.get("threads", 1)
        asked: dict[str, Any] = {
            "do": do, "peer": self.peer, "build": build, "folder": str(folder), "k": K, "core": None, "threads": 1,
            "items": str(data.items), "queries": str(data.queries), "searches": [], **job,
        }  # fmt: skip
        file = self.scratch / "job.json"
        file.write_text(json.dumps(asked))
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS")
        environ = {**os.environ, **dict.fromkeys(pools, str(limited))}
        try:
            done = subprocess.run(
                [self.python, str(WORKER), str(file)], capture_output=True, text=True, env=environ, timeout=limit
            )
        except subprocess.TimeoutExpired:
            PEERS[self.peer].abandon(folder)
            raise TooLong(f"{do}: {_MORE} {limit / 60:g} minutes for {data.n:,} items") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise Failed(f"{do}: ended with {done.returncode}: {lines[-1][:300]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


def circumstances() -> dict[str, Any]:
    """When and where something is measured, and how many processes wanted to run in the minute before."""
    where = environment(None)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
        **{key: where[key] for key in ("cpu", "cores", "python", "system")},
    }


class Results:
    """``peers.json``, written whole after each index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.rows: list[dict[str, Any]] = stored.get("rows", [])
        self.absent: list[dict[str, Any]] = stored.get("absent", [])

    def held(self, peer: str, data: Data, build: Settings, version: str | None) -> bool:
        """Whether an index is stored as it would be measured now; where the peer cannot run, of any version."""
        rows = [row for row in self.rows if row["items"] == data.n and _of(row, peer, data, build)]
        tried = [{**build, **search} for search in PEERS[peer].searches(build)]
        alike = all("run" in row and version in (None, row["version"]) for row in rows)
        return alike and [row["settings"] for row in rows] == tried

    def too_long(self, peer: str, data: Data, build: Settings) -> bool:
        """Whether it is stored that an index takes too long."""
        entries = (entry for entry in self.absent if entry["items"] == data.n and _of(entry, peer, data, build))
        return any(_MORE in entry["reason"] for entry in entries)

    def keep_only(self, peer: str, data: Data, builds: Sequence[Settings]) -> None:
        """Forget what the peer is not made with any more."""
        before = len(self.rows) + len(self.absent)
        self._keep(
            lambda entry: (
                (entry["peer"].split()[0], entry["data"]) != (peer, data.name)
                or entry["items"] > data.n
                or any(_of(entry, peer, data, build) for build in builds)
            )
        )
        if len(self.rows) + len(self.absent) < before:
            self._write()

    def store(self, peer: str, data: Data, build: Settings, rows: Sequence[Mapping[str, Any]]) -> None:
        self._drop(peer, data, build)
        self.rows += [dict(row) for row in rows]
        self._write()

    def store_absent(self, peer: str, data: Data, build: Settings, reason: str) -> None:
        self._drop(peer, data, build)
        entry = {"peer": peer, "data": data.name, "items": data.n, "settings": build, "reason": reason}
        self.absent.append(entry)
        print(f"{peer} {build}: {reason}", file=sys.stderr)
        self._write()

    def _drop(self, peer: str, data: Data, build: Settings) -> None:
        """Forget an index of these items, or of fewer, which was made because these took too long."""
        self._keep(lambda entry: entry["items"] > data.n or not _of(entry, peer, data, build))

    def _keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        self.rows, self.absent = list(filter(wanted, self.rows)), list(filter(wanted, self.absent))

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": environment(None), "rows": self.rows, "absent": self.absent}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, sort_keys=True).replace('{"build_s"', '\n{"build_s"') + "\n")
        part.replace(self.path)


def _of(entry: Mapping[str, Any], peer: str, data: Data, build: Settings) -> bool:
    """Whether a stored entry is of an index with these settings, of however many items."""
    searched = {key for settings in PEERS[peer].searches(build) for key in settings}
    made = {key: value for key, value in entry["settings"].items() if key not in searched}
    return (entry["peer"].split()[0], entry["data"], made) == (peer, data.name, build)


if __name__ == "__main__":
    main()
