"""Tuning against an exhaustive sweep: 20 random targets, what the answer is worth on fresh queries, what it cost.

    python benchmarks/tune.py --name NAME --vectors ITEMS.npy --queries QUERIES.npy      all; stopped, it goes on
    python benchmarks/tune.py --name NAME … --structures 20 --every 3                    for a million: a coarser grid
    python benchmarks/tune.py --name NAME … --slice 30                                   stops after 30 minutes; goes on
                                                                                         when it is called again
    python benchmarks/tune.py --example                                                  the run of docs/tuning.md
    python benchmarks/tune.py --quick                                                    on clusters; stores nothing

The sweep builds every structure of the package's space (or so many, spread over it), and measures every so-manieth
value of every search option: its grid is stored with its figures. While an index is filled it is looked at with 20,000
items: what is predicted from there, and what is measured in the end, gives the error of the prediction.

Then 20 random targets are tuned for, each from nothing. A third of the queries took no part in sweep and tuning: on
these the answer is measured. What it costs is divided by what the cheapest of the sweep costs whose 95 % interval
reaches the target on the queries for tuning; of latencies both are timed in turn.

Raw figures go to benchmarks/results/tune.json; indexes and the lines of an unfinished run stand in --work.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, Anonymous, show, store

from cbir_faiss.comparison.combine import digest
from cbir_faiss.measures.bootstrap import bootstrap_ci
from cbir_faiss.tuning.data import Data, Queries, open_data, parse_naming
from cbir_faiss.tuning.grown import Encoded, Grown
from cbir_faiss.tuning.predict import ERROR
from cbir_faiss.tuning.race import LEARNT
from cbir_faiss.tuning.space import Facts, Space, Structure, space_of
from cbir_faiss.tuning.target import Target
from cbir_faiss.tuning.tune import name_of, tune
from cbir_faiss.tuning.ways import Judge, Setting, Stores

CONFIG = Path(__file__).parents[1] / "configs" / "tuning.yaml"
SAMPLE = 20_000
TARGETS = 20
MISS, DEARER, MEMORY = 0.01, 1.25, 3e9
INTERVALS = 4  # of so many predictions one is given an interval, which takes a second each
K = Target("knn_recall", 10, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="clusters", help="what the results are stored under")
    parser.add_argument("--vectors", type=Path, help="items, .npy float32 (n, dim)")
    parser.add_argument("--queries", type=Path, help="queries, .npy float32 (m, dim)")
    parser.add_argument("--metric", default="cosine", choices=["cosine", "l2", "ip"])
    parser.add_argument("--structures", type=int, help="so many of the space at most, spread over it")
    parser.add_argument("--every", type=int, default=2, help="which values of a search option are in the grid (2)")
    parser.add_argument("--minutes", type=float, default=10, help="for one tuning (10)")
    parser.add_argument("--targets", type=int, default=TARGETS)
    parser.add_argument("--slice", type=float, default=math.inf, help="minutes after which nothing new is begun")
    parser.add_argument("--work", type=Path, default=Path("runs/tune"), help="folder of indexes and unfinished runs")
    parser.add_argument("--example", action="store_true", help="the run of docs/tuning.md, on CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="small, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if chosen.quick:
        with tempfile.TemporaryDirectory() as scratch:
            chosen.work, chosen.structures, chosen.every, chosen.targets = Path(scratch), 4, 6, 2
            _clusters(chosen)
            print(json.dumps(_run(chosen), indent=1)[:2000])
        return
    if chosen.example:
        print(store("tuning", {"cifar10": _example(chosen.work)}, None, chosen.out))
        return
    if not chosen.vectors or not chosen.queries:
        parser.error("--vectors and --queries are needed")
    try:
        print(store("tune", {chosen.name: _run(chosen)}, None, chosen.out))
    except Later as later:
        sys.exit(f"{later}; the same command goes on")


class Later(Exception):
    """The time of this slice is over."""


class Slice:
    """What is begun while there is time for it."""

    def __init__(self, minutes: float) -> None:
        self._until = time.monotonic() + 60 * minutes

    def begin(self, number: int, of: int, what: str) -> None:
        """Says what comes next; raises Later where it has to wait."""
        if time.monotonic() > self._until:
            raise Later(f"{number} of {of} are done, {what} is next")
        print(f"{datetime.now():%H:%M} {number + 1} of {of}: {what}", flush=True)


def _example(work: Path) -> dict[str, Any]:
    """One run from start to end, its figures by the names that the page has for them."""
    work.mkdir(parents=True, exist_ok=True)
    asked = ["knn_recall@10 >= 0.95", "map@5 >= raw - 0.01"]
    out = work / "tuned.yaml"
    shutil.rmtree(work / "tuned.tuning", ignore_errors=True)  # its seconds are those of a run from nothing
    found = tune(CONFIG, asked, items=1_000_000, out=out)
    print(out.read_text() if found.met else found.why)
    told, predicted = found.measured, found.predicted or {}

    def interval(value: dict[str, Any]) -> str:
        return f"{value['value']:.3f} ({value['ci95'][0]:.3f} to {value['ci95'][1]:.3f})"

    figures = {name: interval(value) for name, value in told.items() if isinstance(value, dict)}
    figures |= {"bytes an item": told["bytes_per_item"], "on disk": told["disk_bytes_per_item"], "ms": told["p50_ms"]}
    figures |= {"looks": found.trials, "seconds": found.seconds, "index": name_of(found.chosen or {})}
    figures["beside other work"] = {True: "yes", False: "no"}.get(found.environment.get("busy"), "not known")
    figures |= {
        "recall among 1,000,000": interval(predicted["knn_recall@10"]),
        "bytes among 1,000,000": predicted["bytes_per_item"],
        "ms among 1,000,000": predicted["p50_ms"],
    }
    return {**figures, "run": found.as_json()}


def _run(chosen: argparse.Namespace) -> dict[str, Any]:
    work = chosen.work / chosen.name
    work.mkdir(parents=True, exist_ok=True)
    known, fresh = _thirds(chosen.queries, work)
    naming = {
        "source": {"name": "vectors", "file": str(chosen.vectors.resolve())},
        "queries": {"source": {"name": "vectors", "file": str(known.resolve())}},
    }
    data = open_data(parse_naming(naming), chosen.metric, work / "data", cache=None)
    space = space_of(Facts(len(data.items), data.dim, chosen.metric, True))
    if chosen.structures and chosen.structures < len(space.structures):
        places = np.unique(np.linspace(0, len(space.structures) - 1, chosen.structures).round().astype(int))
        space.structures = [space.structures[place] for place in places]
    sweep = Sweep(data, space, work, chosen.every, fresh, Slice(chosen.slice))
    rows = sweep.rows()
    targets = _targets(rows, chosen.targets)
    asked = [sweep.asked(naming, rows, target, chosen.minutes, len(targets)) for target in targets]
    _show(rows, asked)
    return {
        "items": len(data.items), "dim": data.dim, "every": chosen.every,
        "grid": [structure.title for structure in space.structures],
        "sweep_seconds": sum(row["seconds"] for row in rows), "sweep": rows, "asked": asked,
        "met": _met(asked), "prediction": [{"of": name, **errors} for name, errors in _errors(rows).items()],
    }  # fmt: skip


class Sweep:
    """Every structure, filled with all items, and every setting of the grid measured; a line of JSON a structure."""

    def __init__(self, data: Data, space: Space, work: Path, every: int, fresh: Path, part: Slice) -> None:
        self.data, self.space, self.work, self.every, self._slice = data, space, work, every, part
        self._run = digest([data.digest, every])
        self.stores = Stores(data, min(len(data.items), LEARNT))
        x = np.load(fresh)
        self.fresh = Queries(x, [()] * len(x), data.items, data.metric, work / "fresh")
        self._codecs: dict[str, Encoded] = {}

    def rows(self) -> list[dict[str, Any]]:
        """One a structure; what is in the file is not measured again."""
        folder = self.work / f"sweep-{self._run}"
        folder.mkdir(exist_ok=True)
        done = {}
        for number, structure in enumerate(self.space.structures):
            file = folder / f"{structure.key}.json"
            if not file.exists():
                self._slice.begin(number, len(self.space.structures), structure.title)
                _written(file, self._measured(structure))
            done[structure.key] = json.loads(file.read_text())
        return [done[structure.key] for structure in self.space.structures]

    def _measured(self, structure: Structure) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            grown = self._grown(structure)
            predicted: dict[str, Any] = {}
            sample = min(SAMPLE, len(self.data.items))
            if grown.n < sample < len(self.data.items):
                grown.grow(sample)
                judge = self._judge(structure, grown, self.data.tuning)
                for number, s in enumerate(self._grid(judge, structure)):
                    predicted[_key(s)] = judge.expected(s, K)[0], number % INTERVALS == 0 and self._interval(judge, s)
            if grown.n < len(self.data.items):
                grown.grow(len(self.data.items))
        except Exception as error:
            return {"key": structure.key, "title": structure.title, "settings": [], "seconds": 0, "error": str(error)}
        judge, fresh = (self._judge(structure, grown, q) for q in (self.data.tuning, self.fresh))
        settings: list[dict[str, Any]] = []
        for setting in self._grid(judge, structure):
            way = judge.judged(setting)
            settings.append({
                **asdict(setting), "recall": way.values[K.name][0],
                "low": way.values[K.name][0] - 1.96 * way.values[K.name][1], "p50_ms": way.p50_ms,
                "fresh": float(fresh.values(setting, K).mean()),
            })  # fmt: skip
            told, interval = predicted.get(_key(setting), (None, False))
            settings[-1] |= {"predicted": told} | ({"interval": interval} if interval else {})
        grown.rest()
        return {
            "key": structure.key, "title": structure.title, "settings": settings, "walks": judge.walks,
            "bytes": self._bytes(structure, grown), "seconds": time.perf_counter() - began,
        }  # fmt: skip

    def _interval(self, judge: Judge, setting: Setting) -> list[float]:
        told = judge.predicted(setting, K.k, judge.growth, 2 * ERROR)
        return [told.low, told.high]

    def _bytes(self, structure: Structure, grown: Grown) -> float:
        state = sum(array.nbytes for array in grown.encoded.codec.state.values())
        return ((grown.file_bytes or 0) + state) / grown.n

    def _grown(self, structure: Structure) -> Grown:
        key = repr((structure.codec.name, structure.codec.options))
        if key not in self._codecs:
            learnt = min(len(self.data.items), LEARNT)
            self._codecs = {key: Encoded(structure.codec, self.data.items, self.data.labels, learnt)}
        grown = Grown(structure.backend, self._codecs[key], self.work / structure.key, LEARNT)
        grown.resume(len(self.data.items), 0.0, 0)
        return grown

    def _judge(self, structure: Structure, grown: Grown, queries: Queries) -> Judge:
        return Judge(self.data, queries, structure, grown, self.stores, [K], self.space)

    def _grid(self, judge: Judge, structure: Structure) -> Iterator[Setting]:
        for number in range(len(structure.rescore)):
            yield from judge.grid(number, self.every)

    # -- a target

    def asked(
        self, naming: dict[str, Any], rows: list[dict[str, Any]], ask: dict[str, Any], minutes: float, of: int
    ) -> dict[str, Any]:
        """Tuned from nothing, measured on fresh queries, and divided by the best of the sweep; kept when done."""
        file = self.work / f"asked-{digest([self._run, ask, minutes, [row['key'] for row in rows]])}.json"
        if file.exists():
            return json.loads(file.read_text())
        text, minimise = f"{K.name} >= {ask['bound']}", ask["minimise"]
        self._slice.begin(ask["number"], of, f"{text}, minimise {minimise}")
        with Anonymous() as memory:
            found = tune(naming, text, minimise=minimise, metric=self.data.metric, minutes=minutes, space=self.space)
        told = {**ask, "met": found.met, "chosen": found.chosen, "seconds": found.seconds, "trials": found.trials,
                "why": found.why, "peak_bytes": memory.peak}  # fmt: skip
        if found.chosen is not None:
            told |= self._compared(found.chosen, rows, ask)
        _written(file, told)
        return told

    def _compared(self, chosen: Any, rows: list[dict[str, Any]], ask: dict[str, Any]) -> dict[str, Any]:
        mine, setting = self._found(chosen)
        enough = [(row, s) for row in rows for s in row["settings"] if s["low"] >= ask["bound"]]
        cost = (lambda pair: pair[0]["bytes"]) if ask["minimise"] == "bytes" else (lambda pair: pair[1]["p50_ms"])
        row, best = min(enough, key=cost)
        theirs = next(structure for structure in self.space.structures if structure.key == row["key"])
        other = Setting(best["rescore"], best["search"], best["candidates"])
        mine_grown = self._opened(mine)
        judge, fresh = (self._judge(mine, mine_grown, q) for q in (self.data.tuning, self.fresh))
        values = fresh.values(setting, K)
        told = {
            "fresh": float(values.mean()),
            "ci95": bootstrap_ci(values).tolist(),
            "bytes": self._bytes(mine, mine_grown),
        }
        their_grown = self._opened(theirs)
        against = self._judge(theirs, their_grown, self.data.tuning)
        times = [(judge.judged(setting).p50_ms or 0.0, against.judged(other).p50_ms or 0.0) for _ in range(3)]
        ms, their_ms = (min(pair[i] for pair in times) for i in (0, 1))
        mine_grown.rest()
        their_grown.rest()
        ratio = told["bytes"] / row["bytes"] if ask["minimise"] == "bytes" else ms / their_ms
        return {**told, "p50_ms": ms, "best": row["title"], "best_setting": asdict(other), "best_bytes": row["bytes"],
                "best_ms": their_ms, "times_the_best": ratio}  # fmt: skip

    def _opened(self, structure: Structure) -> Grown:
        grown = self._grown(structure)
        if grown.n < len(self.data.items):
            grown.grow(len(self.data.items))
        return grown

    def _found(self, chosen: Any) -> tuple[Structure, Setting]:
        """The structure of the space that was chosen, and the setting."""

        def plain(choice: Any) -> dict[str, Any]:
            return {"name": choice.name, **choice.options}

        rescore = {key: value for key, value in chosen["rescore"].items() if key != "candidates"}
        for structure in self.space.structures:
            if (plain(structure.codec), plain(structure.backend)) == (chosen["codec"], chosen["backend"]):
                number = [plain(choice) for choice in structure.rescore].index(rescore)
                return structure, Setting(number, chosen["search"], chosen["rescore"].get("candidates"))
        raise LookupError(chosen)


def _thirds(queries: Path, work: Path) -> tuple[Path, Path]:
    """Two thirds of the queries for sweep and tuning, one that takes no part, at most 1,000."""
    x = np.load(queries)
    x = x[np.random.default_rng(0).permutation(len(x))]
    known, fresh = work / "known.npy", work / "fresh.npy"
    if not fresh.exists():
        cut = len(x) * 2 // 3
        np.save(known, x[:cut])
        np.save(fresh, x[cut:][:1000])
    return known, fresh


def _targets(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Random targets, half of them for bytes and half for latency, that something in the sweep reaches."""
    rng = np.random.default_rng(0)
    most = max(setting["low"] for row in rows for setting in row["settings"])
    bounds = rng.uniform(0.6, min(0.99, most - 0.005), count)
    return [
        {"number": i, "bound": round(float(bound), 3), "minimise": ("bytes", "latency")[i % 2]}
        for i, bound in enumerate(bounds)
    ]


def _errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of recall predicted from the sample: mean, root of the mean square, and largest, of graphs by themselves."""
    out = {}
    for name, walks in (("indexes", False), ("graphs", True)):
        off = np.array([
            s["predicted"] - s["recall"]
            for row in rows if row.get("walks", False) == walks
            for s in row["settings"] if s["predicted"] is not None
        ])  # fmt: skip
        if len(off):
            out[name] = {"settings": len(off), "mean": float(off.mean()), "rms": float(np.sqrt((off**2).mean())),
                         "largest": float(np.abs(off).max()), "within_0.02": float((np.abs(off) <= 0.02).mean()),
                         "within_0.03": float((np.abs(off) <= 0.03).mean())}  # fmt: skip
        covered = [
            s["interval"][0] <= s["recall"] <= s["interval"][1]
            for row in rows if row.get("walks", False) == walks for s in row["settings"] if "interval" in s
        ]  # fmt: skip
        if covered:
            out[name]["covered"] = float(np.mean(covered))
    return out


def _written(file: Path, value: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(file)


def _key(setting: Setting) -> str:
    return json.dumps(asdict(setting), sort_keys=True)


def _met(asked: list[dict[str, Any]]) -> int:
    return sum(one.get("fresh", 0.0) >= one["bound"] - MISS for one in asked)


def _misses(one: dict[str, Any], sweep: float) -> Iterator[str]:
    """What an answer falls short of."""
    if not one["met"]:
        yield one["why"]
    if one.get("fresh", 0.0) < one["bound"] - MISS:
        yield f"fresh queries find {one.get('fresh', 0.0):.3f}"
    if one.get("times_the_best", 0.0) > DEARER:
        yield f"{one['times_the_best']:.2f} times the best, {one['best']}"
    if one["seconds"] > sweep / 10:
        yield f"{one['seconds']:.0f} s, more than a tenth of the sweep's {sweep:.0f}"
    if one["peak_bytes"] > MEMORY:
        yield f"{one['peak_bytes'] / 1e9:.1f} GB of memory"


def _show(rows: list[dict[str, Any]], asked: list[dict[str, Any]]) -> None:
    show("the answers", asked, ["bound", "minimise", "met", "fresh", "bytes", "p50_ms", "times_the_best", "seconds"])
    sweep = sum(row["seconds"] for row in rows)
    print(f"met on fresh queries: {_met(asked)} of {len(asked)}; sweep {sweep:,.0f} s")
    for one in asked:
        for miss in _misses(one, sweep):
            print(f"MISS: {K.name} >= {one['bound']}, minimise {one['minimise']}: {miss}")
    for row in rows:
        if "error" in row:
            print(f"NOT BUILT: {row['title']}: {row['error']}")
    for name, errors in _errors(rows).items():
        print(f"predicted from {SAMPLE:,}, {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in errors.items()))


def _clusters(chosen: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 64))
    x = (centres[rng.integers(0, 40, 6_600)] + 0.8 * rng.standard_normal((6_600, 64))).astype(np.float32)
    chosen.vectors, chosen.queries = chosen.work / "items.npy", chosen.work / "queries.npy"
    np.save(chosen.vectors, x[:6_000])
    np.save(chosen.queries, x[6_000:])


if __name__ == "__main__":
    main()
