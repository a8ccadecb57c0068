"""Luo et al. 2022 on Corel-1k: its table of methods, its robustness, and what hash tables save, over several splits.

    python benchmarks/papers/luo2022_train.py --out runs/luo2022      the networks, on the same splits
    python benchmarks/papers/luo2022.py --with runs/luo2022/cbam-{seed} --without runs/luo2022/plain-{seed}
    python benchmarks/papers/luo2022.py table --seeds 0 1 2 3 4
    python benchmarks/papers/luo2022.py robustness --methods CNN …    some methods; rows of the others stay as they are
    python benchmarks/papers/luo2022.py time            hash tables against exhaustive search, on synthetic vectors

Each seed is one draw of 10 queries a class; what needs learning learns from the other pictures. The paper does not say
over how many results its MAP, the mean precision, is taken; its recall says that it is about 80 of 90, so that
precision@80 is to be compared with it. Recall is over the first 100. A search of hash tables that returns fewer counts
as having missed the rest. Differences between networks are tested over seeds, of which each is one network: queries of
one network are not draws of another. Raw figures go to benchmarks/results/luo2022.json.

The SVM is told of ROUNDS x SHOWN items of each query whether they are relevant, which no other method is: one row
counts them among its results, as a user would see them, and one leaves them out of results and database (the residual
collection, by which feedback is measured without crediting what was told).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from _report import RESULTS, run, show, store
from _seeds import of_seeds
from search import write_clusters
from split import PER_CLASS, write_split
from svm_active import active_svm

import cbir_faiss as cf
from cbir_faiss.comparison.combine import Plan
from cbir_faiss.comparison.rows import compare_split
from cbir_faiss.comparison.split import Split, splits
from cbir_faiss.config import Config, Metrics, parse_config
from cbir_faiss.measures.metrics import per_query
from cbir_faiss.measures.paired import paired_test
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.types import MISSING_ID, Floats, Ids

SECTIONS = ("table", "robustness", "time")
ALTERED: dict[str, dict[str, float]] = {
    "as they are": {},
    "rotated 15°": {"rotate": 15},
    "rotated 30°": {"rotate": 30},
    "rotated 90°": {"rotate": 90},
    "cropped to 0.7": {"crop": 0.7},
    "cropped to 0.5": {"crop": 0.5},
    "brightness x 1.5": {"brightness": 1.5},
    "brightness x 0.5": {"brightness": 0.5},
}
PRECISIONS = (5, 10, 20, 30, 80)
RECALL = 100
RETURNED = 20
MEASURES = ("precision@20", "ap", f"recall@{RECALL}", *(f"precision@{k}" for k in PRECISIONS if k != RETURNED))
ROUNDS, SHOWN = 3, 20
WITH, WITHOUT = "CNN + CBAM, hash tables", "CNN, hash tables"
Outcome = dict[str, NDArray[np.float64]]
Outcomes = Mapping[tuple[str, str, int], Outcome]
"""Values of every query, by measure; of each method, kind of queries and seed."""
EXHAUSTIVE = {
    "codecs": [{"name": "raw"}],
    "backends": [{"name": "faiss-flat", "metric": "cosine"}],
    "rescore": [{"name": "none"}],
}


def hash_tables(key_bits: int = 6) -> dict[str, Any]:
    """Cosine LSH by random hyperplanes: the query's buckets of 8 tables, and their neighbours, re-ranked by cosine."""
    return {
        "codecs": [{"name": "lsh", "bits": -(-8 * key_bits // 8) * 8}],
        "backends": [
            {"name": "faiss-binary-multihash", "tables": 8, "key_bits": key_bits, "search": {"nflip": 1}},
        ],
        "rescore": [{"name": "float", "candidates": "all", "metric": "cosine", "center": False}],
    }


@dataclass(frozen=True)
class Method:
    """``extractor(seed, folder of the split)`` is the section of its features; ``search`` is sections, or an SVM's."""

    name: str
    extractor: Callable[[int, Path], dict[str, Any]]
    search: Mapping[str, Any] | Literal["svm", "svm-unseen"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--root", type=Path, default=Path("../shared/datasets/corel1k"))
    parser.add_argument("--splits", type=Path, default=Path("runs/luo2022"), help="split.py's folder; made if missing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="queries of each class")
    parser.add_argument("--methods", nargs="+", default=[""], help="those whose names have one of these in them (all)")
    parser.add_argument("--with", dest="attention", help="folder of the network with CBAM, {seed} in its name")
    parser.add_argument("--without", dest="plain", help="folder of the same network without it")
    parser.add_argument("--weights", type=Path, help="state dict of squeezenet1_1: the features off the shelf")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of luo2022.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"unknown section {unknown.pop()!r}; there are: {', '.join(SECTIONS)}")
    wanted = chosen.sections or SECTIONS
    chosen.seeds = list(dict.fromkeys(chosen.seeds))  # the same network twice is no second draw
    if chosen.attention and chosen.plain and len(chosen.seeds) < 2:
        parser.error("an interval over seeds takes at least two of them: --seeds 0 1 2 3 4")
    done: dict[str, Any] = {}
    if {"table", "robustness"} & set(wanted):
        done = quality(chosen, robustness="robustness" in wanted)
    if "time" in wanted:
        done["time"] = times(quick=chosen.quick)
    if not chosen.quick:
        for name, section in done.items():
            _keep_others(chosen.out / "luo2022.json", name, section)
        print(f"\n{store('luo2022', done, folder=chosen.out)}")


# -------------------------------------------------------------------------------------------------------------- quality


def quality(chosen: argparse.Namespace, *, robustness: bool) -> dict[str, Any]:
    """The table of methods and, where it is wanted, the same for altered queries."""
    folders = {seed: chosen.splits / str(seed) for seed in chosen.seeds}
    for seed, folder in folders.items():
        if not (folder / "queries.csv").is_file():
            write_split(chosen.root, folder, seed, chosen.per_class)
    asked = ALTERED if robustness else {"as they are": {}}
    outcomes = {
        (method.name, name, seed): measured(method, seed, folder, alteration)
        for method in methods(chosen)
        for name, alteration in asked.items()
        for seed, folder in folders.items()
    }
    settings = {
        "data": chosen.root.name,
        "seeds": chosen.seeds,
        "queries a class": chosen.per_class,
        "svm": {"rounds": ROUNDS, "shown": SHOWN},
        "hash tables": hash_tables(),
        "networks": {
            name: path and Path(path).name for name, path in ((WITH, chosen.attention), (WITHOUT, chosen.plain))
        },
    }
    done = {"table": _section(outcomes, ["as they are"], chosen.seeds, settings)}
    first = chosen.seeds[0]
    spent = {method.name: timed(method, first, folders[first]) for method in methods(chosen)}
    for row in done["table"]["rows"]:
        row |= spent[row["method"]]
    show(
        "methods, mean over seeds and queries", done["table"]["rows"], ("method", *MEASURES, "extract_ms", "search_ms")
    )
    if robustness:
        done["robustness"] = _section(outcomes, list(ALTERED), chosen.seeds, settings)
        rows = done["robustness"]["rows"]
        show("altered queries", rows, ("method", "queries", "precision@20", "ap", f"recall@{RECALL}"))
    for section in done.values():
        if section["differences"]:
            show(f"{WITH} less {WITHOUT}, 95 % over seeds", section["differences"], DIFFERENCE)
    return done


def methods(chosen: argparse.Namespace) -> list[Method]:
    """Those of the paper's table for which the networks were given."""
    found = [
        Method("SIFT + k-means", _sift, EXHAUSTIVE),
        Method("SVM active learning", _colour_and_texture, "svm"),
        Method("SVM active learning, unseen items", _colour_and_texture, "svm-unseen"),
    ]
    if chosen.weights:
        off_the_shelf = _torchvision(chosen.weights)
        found.append(Method("squeezenet1_1 off the shelf, exhaustive", off_the_shelf, EXHAUSTIVE))
        found.append(Method("squeezenet1_1 off the shelf, hash tables", off_the_shelf, hash_tables()))
    for name, path in ((WITHOUT, chosen.plain), (WITH, chosen.attention)):
        if path:
            found.append(Method(name.replace("hash tables", "exhaustive"), _trained(path), EXHAUSTIVE))
            found.append(Method(name, _trained(path), hash_tables()))
    return [method for method in found if any(part in method.name for part in chosen.methods)]


def _sift(seed: int, folder: Path) -> dict[str, Any]:
    return {"name": "sift", "learn_from": {"name": "list", "file": str(folder / "database.csv")}, "seed": seed}


def _colour_and_texture(seed: int, folder: Path) -> dict[str, Any]:
    return {"name": "joined", "of": [{"name": "histogram"}, {"name": "hog"}]}


def _torchvision(weights: Path) -> Callable[[int, Path], dict[str, Any]]:
    options = {"model": "squeezenet1_1", "weights": str(weights), "layer": "features", "runtime": "onnx"}
    return lambda seed, folder: {"name": "torchvision", **options}


def _trained(path: str) -> Callable[[int, Path], dict[str, Any]]:
    options = {"output": "features", "runtime": "onnx"}
    return lambda seed, folder: {"name": "trained", "path": path.format(seed=seed), **options}


def measured(method: Method, seed: int, folder: Path, alteration: Mapping[str, float]) -> Outcome:
    """Every measure of every query, by name, of one method on one split; its queries altered, or not."""
    config = _config(method, seed, folder, alteration)
    split = next(splits(config, default_cache()))
    relevance = Relevance.from_labels(split.items.labels, split.queries.labels)
    assert relevance is not None  # split.py writes labels
    totals = relevance.totals
    if isinstance(method.search, str):
        ids, asked, _ = _by_svm(split, relevance, seed)
        if method.search == "svm-unseen":
            totals = totals - relevance.of(asked).sum(axis=1)
            ids = _without(ids, asked)
    else:
        ids = _by_search(split, config)
    values = per_query(relevance.of(ids), totals, (*PRECISIONS, RECALL, len(split.items)))
    print(f"{method.name}, seed {seed}, {dict(alteration) or 'as they are'}", file=sys.stderr)
    return {"ap": values[f"map_full@{len(split.items)}"], **{name: values[name] for name in MEASURES if name != "ap"}}


def timed(method: Method, seed: int, folder: Path) -> dict[str, float]:
    """Median milliseconds of one query: to read it and extract its features, and from them to 20 results."""
    config = _config(method, seed, folder, {})
    split = next(splits(config, default_cache()))
    if isinstance(method.search, str):
        relevance = Relevance.from_labels(split.items.labels, split.queries.labels)
        assert relevance is not None
        search_ms = _by_svm(split, relevance, seed)[2]
    else:
        search_ms = _row(split, config, min(RETURNED, len(split.items)), None)["latency_ms"]["p50"]
    return {"extract_ms": _extract_ms(split, config), "search_ms": search_ms}


def _config(method: Method, seed: int, folder: Path, alteration: Mapping[str, float]) -> Config:
    queries: dict[str, Any] = {"name": "list", "file": str(folder / "queries.csv")}
    return parse_config(
        {
            "source": {"name": "list", "file": str(folder / "database.csv")},
            "queries": {"source": {"name": "altered", "of": queries, **alteration} if alteration else queries},
            "extractors": [method.extractor(seed, folder)],
            **(EXHAUSTIVE if isinstance(method.search, str) else method.search),
        }
    )


def _by_search(split: Split, config: Config) -> Ids:
    """The whole ranking ``(queries, items)``, -1 where nothing more is found."""
    with tempfile.TemporaryDirectory() as scratch:
        row = _row(split, config, len(split.items), Path(scratch, "raw"))
        ids: Ids = np.load(Path(scratch, row["raw"]))["ids"]
    return ids


def _row(split: Split, config: Config, k: int, raw: Path | None) -> dict[str, Any]:
    plan = Plan(config.codecs, config.backends, config.rescore, Metrics(k=(k,)), config.threads, raw)
    (row,), _ = compare_split(split, plan)
    return row.as_json()


def _by_svm(split: Split, relevance: Relevance, seed: int) -> tuple[Ids, Ids, float]:
    """The whole ranking by the SVM of each query, what was asked about, and milliseconds a query for all rounds."""
    items, queries = (_features(side.columns) for side in (split.items, split.queries))
    ids = np.empty((len(queries), len(items)), np.int64)
    told, spent = [], []
    for number, query in enumerate(queries):
        relevant = relevance.block(slice(number, number + 1))[0]
        began = time.perf_counter()
        margins, asked = active_svm(items, query, relevant, rounds=ROUNDS, shown=SHOWN, seed=seed)
        ids[number] = np.argsort(-margins, kind="stable")
        told.append(asked)
        spent.append(time.perf_counter() - began)
    most = max(len(asked) for asked in told)
    padded = np.stack([np.pad(asked, (0, most - len(asked)), constant_values=MISSING_ID) for asked in told])
    return ids, padded, statistics.median(spent) * 1000


def _without(ids: Ids, asked: Ids) -> Ids:
    """The rankings ``(queries, items)`` without what was asked about, -1 at the end."""
    seen = np.stack([np.isin(row, mine) for row, mine in zip(ids, asked, strict=True)])
    order = np.argsort(seen, axis=1, kind="stable")
    return np.take_along_axis(np.where(seen, MISSING_ID, ids), order, axis=1)


def _features(columns: Mapping[str, NDArray[Any]]) -> Floats:
    """All columns side by side, each scaled to length 1, so that none counts more than another."""
    scaled = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in columns.values()]
    together: Floats = np.hstack(scaled).astype(np.float32)
    return together


def _extract_ms(split: Split, config: Config, most: int = 20) -> float:
    """Median milliseconds to read and extract one query, of the first ``most``."""
    extractor = config.extractors[0].make()
    extractor.load()
    spent = []
    for source, row in split.queries.places[:most]:
        began = time.perf_counter()
        extractor([source.read(row, extractor.min_side)])
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1000


# --------------------------------------------------------------------------------------------------------------- tables

DIFFERENCE = ("queries", "measure", "difference", "low", "high", "p", "by seed")


def _section(
    outcomes: Outcomes, asked: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Rows of means, what they are means of, and the paired differences between with and without attention."""
    names = list(dict.fromkeys(name for name, _, _ in outcomes))
    rows = [
        _means(name, queries, [outcomes[name, queries, seed] for seed in seeds]) for name in names for queries in asked
    ]
    paired = {WITH, WITHOUT} <= set(names)
    differences = [
        _difference(outcomes, queries, seeds, measure)
        for queries in (asked if paired else ())
        for measure in ("precision@20", "precision@80", "ap", f"recall@{RECALL}")
    ]
    return {"settings": settings, "rows": rows, "differences": differences}


def _keep_others(file: Path, name: str, section: dict[str, Any]) -> None:
    """Put rows that are stored, of methods that were not measured now, before those that were; and keep stored
    differences, unless a network was measured again that they are of."""
    measured_now = {row.get("method") for row in section["rows"]}
    stored = json.loads(file.read_text()).get(name, {}) if file.exists() else {}
    kept = [row for row in stored.get("rows", []) if row.get("method") not in measured_now]
    section["rows"] = kept + section["rows"]
    if not {WITH, WITHOUT} & measured_now:
        section["differences"] = stored.get("differences", [])


def _means(method: str, queries: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    by_seed = {m: [round(float(outcome[m].mean()), 6) for outcome in outcomes] for m in MEASURES}
    line: dict[str, Any] = {"method": method, "queries": queries, "seeds": len(outcomes), "by seed": by_seed}
    for measure, values in by_seed.items():
        line |= of_seeds(measure, values)
    return line


def _difference(outcomes: Outcomes, queries: str, seeds: Sequence[int], measure: str) -> dict[str, Any]:
    """With less without attention: each seed is a network, and the test is over them."""
    mine, other = (
        np.array([outcomes[name, queries, seed][measure].mean() for seed in seeds]) for name in (WITH, WITHOUT)
    )
    by_seed = [round(float(value), 6) for value in mine - other]
    return {"queries": queries, "measure": measure, **paired_test(mine, other)._asdict(), "by seed": by_seed}


# ----------------------------------------------------------------------------------------------------------------- time


def times(*, quick: bool) -> dict[str, Any]:
    """Hash tables with re-ranking against exhaustive cosine, as the database grows: milliseconds of one query."""
    rows = []
    for items, key_bits in ((1000, 6), *(() if quick else ((10_000, 9), (100_000, 13)))):
        x, queries = _clusters(items)
        for name, search in (("exhaustive", EXHAUSTIVE), ("hash tables", hash_tables(key_bits))):
            (row,) = cf.compare(vectors=x, queries=queries, k=[RETURNED], truth={"metric": "cosine"}, **search)
            found = {"knn_recall@10": row["metrics"]["knn_recall@10"], "ms": row["latency_ms"]["p50"]}
            rows.append({"items": items, "search": name, **found})
    show("one query, vectors of 512 dimensions", rows, ("items", "search", "knn_recall@10", "ms"))
    return {"settings": {"exhaustive": EXHAUSTIVE, "hash tables": hash_tables()}, "rows": rows}


def _clusters(n: int, queries: int = 200) -> tuple[Floats, Floats]:
    """Items ``(n, 512)`` and held-out queries in clusters of about 100, as many as Corel has pictures of a class."""
    with tempfile.TemporaryDirectory() as scratch:
        x = np.array(np.load(write_clusters(Path(scratch, "x.npy"), n + queries, per_cluster=100)))
    return x[queries:], x[:queries]


if __name__ == "__main__":
    run(main)
