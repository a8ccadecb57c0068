"""The split of Luo et al. 2022: so many random pictures of each class are queries, the rest is database and training.

    python benchmarks/papers/split.py ../shared/datasets/corel1k --out runs/luo2022 --seeds 0 1 2

Writes OUT/<seed>/database.csv and OUT/<seed>/queries.csv for source `list`: path and label. Paths in them are relative
to the file, so the pictures stay where they are.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from _report import run

from cbir_faiss.base import Item
from cbir_faiss.errors import InputError
from cbir_faiss.sources.folder import Folder

PER_CLASS = 10
FILES = ("database.csv", "queries.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of pictures, a sub-folder a class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="queries of each class")
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        database, queries = write_split(chosen.root, chosen.out / str(seed), seed, chosen.per_class)
        print(f"{chosen.out / str(seed)}: {database} in the database, {queries} queries")


def write_split(root: Path, out: Path, seed: int, per_class: int = PER_CLASS) -> tuple[int, int]:
    """Write the two files of one seed into ``out``; returns how many lines of items each has.

    Raises:
        InputError: a class would be left without an item in the database, or nothing is labelled.
    """
    items = Folder(root=str(root)).items()
    drawn = draw_queries(items, seed, per_class)
    out.mkdir(parents=True, exist_ok=True)
    parts = [item for item in items if item.path not in drawn], [item for item in items if item.path in drawn]
    for name, part in zip(FILES, parts, strict=True):
        write_list(out / name, root, part)
    return len(parts[0]), len(parts[1])


def draw_queries(items: Sequence[Item], seed: int, per_class: int) -> set[str]:
    """The paths of ``per_class`` items of each class, drawn class by class in the order of their names."""
    rng = np.random.default_rng(seed)
    classes = sorted({item.labels[0] for item in items if item.labels})
    if not classes:
        raise InputError("the pictures have no classes: they must lie in sub-folders")
    drawn: set[str] = set()
    for label in classes:
        mine = [item.path for item in items if item.labels == (label,)]
        if len(mine) <= per_class:
            raise InputError(f"class '{label}' has {len(mine)} pictures, and {per_class} of them would be queries")
        drawn |= {mine[i] for i in rng.choice(len(mine), per_class, replace=False)}
    return drawn


def write_list(file: Path, root: Path, items: Sequence[Item]) -> None:
    """Write ``items`` of a folder ``root`` as a list: path, relative to the file, and label, its last sub-folder."""
    below = Path(os.path.relpath(root, file.parent))
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "label"])
        writer.writerows([(below / item.path).as_posix(), Path(item.path).parent.name] for item in items if item.labels)


if __name__ == "__main__":
    run(main)
