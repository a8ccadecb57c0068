"""The pictures that the network which ships with the package learns from.

    python benchmarks/papers/pictures.py ../shared/datasets --out runs/compact.csv

All of caltech101 that are no queries of configs/caltech101.yaml, by class, and all of imagenet1k-samples as one more
class: of these there is one picture a kind, so that nothing can be learnt from their names. For source `list`, whose
root is the folder of the data sets.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from _report import run

from cbir_faiss.sources.folder import Folder

EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    print(f"{chosen.out}: {write_pictures(chosen.root, chosen.out):,} pictures")


def write_pictures(root: Path, out: Path) -> int:
    """Write the list; returns how many lines it has."""
    rows = []
    for part in ("caltech101", "imagenet1k-samples"):
        items = Folder(root=str(root / part)).items()
        known = [(f"{part}/{item.path}", (item.labels or (part,))[0]) for item in items]
        rows += [row for i, row in enumerate(known) if part != "caltech101" or i % EVERY]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    run(main)
