"""The splits of CIFAR-10 that the hashing literature compares on, which must never be mixed.

    python benchmarks/papers/protocols.py ../shared/datasets/cifar10 --out runs/cifar10 --seeds 0 1 2

Of all pictures below the folder, whatever part they came in, PROTOCOL is
    1k-5k-54k     100 queries and 500 pictures to train on of each class; the rest, without these, is the database
    1k-5k-59k     the same, but the database has those that were trained on, too
    10k-50k-50k   1,000 queries of each class; all others are trained on, and are the database
Writes OUT/PROTOCOL/SEED/{queries,training,database}.csv for source `list`: path and label, paths relative to the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from _report import run
from split import write_list

from cbir_faiss.base import Item
from cbir_faiss.errors import InputError
from cbir_faiss.sources.folder import Folder

PROTOCOLS: dict[str, tuple[int, int | None, bool]] = {
    "1k-5k-54k": (100, 500, False),
    "1k-5k-59k": (100, 500, True),
    "10k-50k-50k": (1000, None, True),
}
"""Queries and pictures to train on of each class (None: all others), and whether these are in the database."""
PARTS = ("queries", "training", "database")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of pictures, in sub-folders of the classes' names at any depth")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    items = Folder(root=str(chosen.root)).items()
    for protocol in chosen.only:
        for seed in chosen.seeds:
            counts = write_protocol(items, chosen.root, chosen.out / protocol / str(seed), seed, PROTOCOLS[protocol])
            print(f"{chosen.out / protocol / str(seed)}: {', '.join(f'{n:,} {part}' for part, n in counts.items())}")


def write_protocol(
    items: Sequence[Item], root: Path, out: Path, seed: int, sizes: tuple[int, int | None, bool]
) -> dict[str, int]:
    """Write the lists of one protocol and seed; returns how many lines each has."""
    parts = dict(zip(PARTS, draw(items, seed, sizes), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        write_list(out / f"{name}.csv", root, [items[row] for row in rows.tolist()])
    return {name: len(rows) for name, rows in parts.items()}


def draw(
    items: Sequence[Item], seed: int, sizes: tuple[int, int | None, bool]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of queries, training and database, ascending, drawn class by class in the order of their names.

    Raises:
        InputError: a class has too few pictures for the protocol, or nothing has a class.
    """
    asked, taught, within = sizes
    rng = np.random.default_rng(seed)
    labels = np.array([Path(item.path).parent.name if item.labels else "" for item in items])
    classes = sorted(set(labels.tolist()) - {"", "."})
    if not classes:
        raise InputError("the pictures have no classes: they must lie in sub-folders")
    queries, training = [], []
    for label in classes:
        rows = np.flatnonzero(labels == label)
        if len(rows) <= asked + (taught or 0):
            raise InputError(
                f"class '{label}' has {len(rows)} pictures: the protocol takes {asked} queries"
                + (f", {taught} to train on" if taught else "")
                + " and a database of each class"
            )
        mixed = rng.permutation(rows)
        queries.append(mixed[:asked])
        training.append(mixed[asked:] if taught is None else mixed[asked : asked + taught])
    out = tuple(np.sort(np.concatenate(part)) for part in (queries, training))
    left = np.setdiff1d(np.flatnonzero(np.isin(labels, classes)), out[0] if within else np.concatenate(out))
    return out[0], out[1], left


if __name__ == "__main__":
    run(main)
