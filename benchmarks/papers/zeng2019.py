"""Zeng, Hu and Xiao 2019 on CIFAR-10 and MNIST: the networks that its tables compare, trained one after the other.

    python benchmarks/papers/zeng2019.py --out runs/zeng2019                train what is not trained yet
    python benchmarks/papers/zeng2019.py --out runs/zeng2019 --only dsh greedy
    cbir compare configs/papers/zeng2019.yaml --out runs/zeng2019/compared    then measure all of them

Killed, it goes on where it was. Two cores took the times that docs/papers.md says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _variants import train_variants

CONFIG = Path(__file__).parents[2] / "configs" / "papers" / "zeng2019-train.yaml"
SHARED = "../../../shared"
WIDE = {"network": {"width": 12, "joint": 192}, "fit": {"epochs": 7}}
PAIRWISE = {"losses": [{"name": "pairwise", "alpha": 0.01}]}
PLAIN = {"network": {"name": "plain"}}
TEACHER = {
    "name": "torchvision",
    "model": "squeezenet1_1",
    "weights": f"{SHARED}/weights/squeezenet1_1-imagenet-fp16.pth",
    "layer": "features",
    "pool": "avg",
    "runtime": "onnx",
    "preprocess": {"resize": 128, "crop": 128},
}
MNIST = {
    "source": {"name": "torchvision", "dataset": "MNIST", "root": f"{SHARED}/datasets/mnist", "args": {"train": True}},
    "augment": {"flip": False},
    "fit": {"epochs": 1},
}
VARIANTS: dict[str, dict[str, Any]] = {
    # The headline, and the five poolings at one small width (its figure 5).
    "wide": WIDE,
    "avg-max": {},
    "max-max": {"network": {"pooling": ["max", "max"]}},
    "avg-avg": {"network": {"pooling": ["avg", "avg"]}},
    "max": {"network": {"pooling": ["max"]}},
    "avg": {"network": {"pooling": ["avg"]}},
    # The paper's own loss on this network and on a plain one, and one that needs no labels.
    "pairwise": PAIRWISE,
    "dsh": {**PLAIN, **PAIRWISE},
    "greedy": {"losses": [{"name": "greedy"}], "teacher": TEACHER, "fit": {"epochs": 2}},
    # Its figure 8: map by bits.
    "avg-max-12": {"bits": 12},
    "mnist-avg-max": MNIST,
    "mnist-dsh": {**MNIST, **PLAIN, **PAIRWISE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; each network gets one in it")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="some of them")
    chosen = parser.parse_args()
    train_variants(CONFIG, chosen.out, {name: VARIANTS[name] for name in chosen.only or VARIANTS})


if __name__ == "__main__":
    main()
