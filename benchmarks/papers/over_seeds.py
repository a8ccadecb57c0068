"""Rows of a comparison over seeds: what each seed's network came to, mean, deviation and interval, and differences.

    cbir compare configs/papers/zeng2019.yaml --out runs/zeng2019-compared
    python benchmarks/papers/over_seeds.py runs/zeng2019-compared --keep zeng2019-seeds --reference csq-48

Networks whose folders are called NAME-0, NAME-1, … are one network of several seeds, mirrored ones and each of several
outputs another; a row of one that has no seeds is kept with its one figure. Intervals are Student's over seeds: queries
are the same for all of them, so that they say what another training would come to, and the row's own interval what
other queries would. With --reference, every network that has the same seeds is tested against that one. Goes to
benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from _report import RESULTS, run, show, store
from _seeds import of_seeds

from cbir_faiss.errors import InputError
from cbir_faiss.measures.paired import paired_test
from cbir_faiss.report.report import read_results
from cbir_faiss.report.row import Row, main_measure, name_of

SEED = re.compile(r"^(?P<folder>.+)-(?P<seed>\d+)(?P<which>| .+)$")
Grouped = dict[tuple[str, str], dict[int | None, Row]]
"""Rows by network and combination, and by seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="folders of comparisons of the same data")
    parser.add_argument("--keep", required=True, metavar="NAME", help="of the results")
    parser.add_argument("--measures", nargs="+", help="those of the rows (the main one)")
    parser.add_argument("--reference", help="a network that the others are tested against")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of NAME.json")
    chosen = parser.parse_args()
    rows = [Row.from_json(row) for run in chosen.run for row in read_results(run)["rows"]]
    measures = chosen.measures or [main_measure(rows)]
    check_measures(rows, measures)
    groups = grouped(rows)
    found = [of_group(*key, some, measures) for key, some in groups.items()]
    tested = differences(groups, chosen.reference, measures) if chosen.reference else []
    show("over seeds", found, ("network", "combination", *measures, *(f"{m} ±" for m in measures), "seeds"))
    if tested:
        show(
            f"less {chosen.reference}", tested, ("network", "combination", "measure", "difference", "low", "high", "p")
        )
    print(store(chosen.keep, {"seeds": {"rows": found, "differences": tested}}, folder=chosen.out))


def check_measures(rows: Sequence[Row], measures: Sequence[str]) -> None:
    """Raises InputError for a measure that a row has not."""
    shared = set.intersection(*(set(row.metrics) for row in rows))
    if unknown := [measure for measure in measures if measure not in shared]:
        told = sorted(name for name in shared if "_" not in name.partition("@")[2])
        raise InputError(f"not every row has '{unknown[0]}'; all have: {', '.join(told)}")


def grouped(rows: Sequence[Row]) -> Grouped:
    """Raises InputError where a network and seed has the same combination twice."""
    groups: Grouped = {}
    for row in rows:
        told = SEED.match(row.title)
        network, seed = (told["folder"] + told["which"], int(told["seed"])) if told else (row.title, None)
        mine = groups.setdefault((network, name_of(row)), {})
        if seed in mine:
            raise InputError(f"{row.title} {name_of(row)} is there twice: give runs of different networks")
        mine[seed] = row
    return groups


def of_group(network: str, combination: str, rows: Mapping[int | None, Row], measures: Sequence[str]) -> dict[str, Any]:
    """One line: mean, deviation and interval of each measure; without several seeds the one figure and no interval."""
    line: dict[str, Any] = {"network": network, "combination": combination, "seeds": len(rows)}
    first = next(iter(rows.values()))
    line |= {"bits": first.bits, "by seed": {}}
    for measure in measures:
        values = [float(row.metrics[measure]) for row in rows.values()]
        line["by seed"][measure] = {str(seed): value for seed, value in zip(rows, values, strict=True)}
        line |= of_seeds(measure, values)
        if len(values) == 1 and f"{measure}_ci95" in first.metrics:
            line[f"{measure} of queries"] = first.metrics[f"{measure}_ci95"]
    return line


def differences(groups: Grouped, reference: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    """Every network less the reference, in the same combination, over the seeds that both have.

    Raises:
        InputError: no such network, or it has fewer than two seeds in common with the others.
    """
    found = []
    for (network, combination), rows in groups.items():
        base = groups.get((reference, combination), {})
        seeds = sorted(seed for seed in rows if seed is not None and seed in base)
        if network == reference or len(seeds) < 2:
            continue
        for measure in measures:
            mine, other = (np.array([some[seed].metrics[measure] for seed in seeds]) for some in (rows, base))
            line = {"network": network, "combination": combination, "measure": measure, "seeds": len(seeds)}
            found.append({**line, **paired_test(mine, other)._asdict()})
    if not found:
        raise InputError(f"no network has two seeds in common with '{reference}': an interval takes at least two")
    return found


if __name__ == "__main__":
    run(main)
