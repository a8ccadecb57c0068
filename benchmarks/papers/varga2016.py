"""Varga and Szirányi 2016 on Caltech-101: codes fused with class probabilities, the cut t chosen off the queries.

    cbir train configs/papers/finetune-caltech101.yaml --out runs/finetune-caltech101
    python benchmarks/papers/varga2016.py --networks runs/finetune-caltech101 --seeds 0 1 2

The paper chose t on the data that it is reported on. Here, for each seed's network, the pictures that its training held
out ask for those that it was trained on, and the t with the best map_full@100 is what the queries are then searched
with, beside t = 0 and the code alone. Means and intervals over seeds, and the median time of a query, go to
benchmarks/results/varga2016.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from _report import RESULTS, run, show, store
from _seeds import of_seeds
from split import write_list

from cbir_faiss.comparison.combine import Plan
from cbir_faiss.comparison.rows import compare_split
from cbir_faiss.comparison.split import splits
from cbir_faiss.config import parse_config
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.report.row import Row
from cbir_faiss.training.config import TrainingConfig, load_training
from cbir_faiss.training.data import training_and_held_out
from cbir_faiss.training.seeds import folder_of

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "papers" / "finetune-caltech101.yaml"
CUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEASURE = "map_full@100"
MEASURES = (MEASURE, "map_full@5", "map@5", "precision@5", "recall@100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True, help="folder of the networks, one of each seed")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what they were trained by")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lists", type=Path, default=Path("runs/varga2016"), help="folder of the lists of pictures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of varga2016.json")
    chosen = parser.parse_args()
    if len(set(chosen.seeds)) < 2:
        parser.error("an interval over seeds takes at least two of them: --seeds 0 1 2")
    training = load_training(chosen.config)
    write_lists(training, chosen.lists)
    by_seed = {seed: of_seed(training, folder_of(chosen.networks, seed), chosen.lists) for seed in chosen.seeds}
    rows = [summed(how, [found[how] for found in by_seed.values()]) for how in next(iter(by_seed.values()))]
    show("fusion, over seeds", rows, ("search", "t", *MEASURES, f"{MEASURE} ±", "ms"))
    print(store("varga2016", {"fusion": {"seeds": chosen.seeds, "rows": rows}}, folder=chosen.out))


def write_lists(training: TrainingConfig, out: Path) -> None:
    """The pictures that were trained on and those held out, as lists."""
    source = training.source.make()
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("training", "held-out"), training_and_held_out(training), strict=True):
        write_list(out / f"{name}.csv", source.root, [source.items()[row] for row in rows.tolist()])


def of_seed(training: TrainingConfig, network: Path, lists: Path) -> dict[str, Row]:
    """The rows of the queries: the code alone, fused without a cut, and with the cut that the held-out ones chose."""
    database, held_out = ({"name": "list", "file": str(lists / f"{name}.csv")} for name in ("training", "held-out"))
    tried = measured(database, {"source": held_out}, network, CUTS)[1:]
    best = max(zip(tried, CUTS, strict=True), key=lambda pair: pair[0].metrics[MEASURE])[1]
    source = dict(training.document["source"])
    source["root"] = str(training.source.options["root"])
    alone, whole, cut = measured(source, {"every": training.every}, network, (0.0, best))
    print(f"{network.name}: t = {best}", file=sys.stderr)
    return {"code alone": alone, "fused, t = 0": whole, "fused, t chosen": cut}


def measured(source: Mapping[str, Any], queries: Mapping[str, Any], network: Path, cuts: Sequence[float]) -> list[Row]:
    """The row of the code alone, and one of each cut."""
    config = parse_config(
        {
            "source": source,
            "queries": queries,
            "extractors": [{"name": "trained", "path": str(network)}],
            "codecs": [{"name": "sigmoid-mean"}],
            "backends": [{"name": "faiss-binary-flat"}],
            "rescore": [{"name": "none"}, *({"name": "relevance", "candidates": "all", "t": t} for t in cuts)],
            "metrics": {"k": [5, 100]},
        }
    )
    plan = Plan(config.codecs, config.backends, config.rescore, config.metrics, config.threads, None)
    return compare_split(next(splits(config, default_cache())), plan)[0]


def summed(how: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One line over the seeds."""
    cuts = [row.chosen["rescore"].get("t") for row in rows]
    line: dict[str, Any] = {"search": how, "t": ", ".join("–" if t is None else f"{t:g}" for t in cuts)}
    for measure in MEASURES:
        values = [float(row.metrics[measure]) for row in rows]
        line |= {**of_seeds(measure, values), f"{measure} by seed": values}
    line["ms"] = statistics.median(row.latency_ms["p50"] for row in rows)
    return line


if __name__ == "__main__":
    run(main)
