"""Zeng, Hu and Xiao 2019 on CIFAR-10 and MNIST: the networks that its tables compare, trained one after the other.

    python benchmarks/papers/zeng2019.py --out runs/zeng2019                train what is not trained yet
    python benchmarks/papers/zeng2019.py --out runs/zeng2019 --only dsh greedy --seeds 0 1
    cbir compare configs/papers/zeng2019.yaml --out runs/zeng2019-compared    then measure all of them
    python benchmarks/papers/over_seeds.py runs/zeng2019-compared --keep zeng2019-seeds --reference wide-48

The main rows have three seeds, the others one; each network lies in OUT/NAME-SEED. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from _report import run
from _variants import changed, train_variants

CONFIG = Path(__file__).parents[2] / "configs" / "papers" / "zeng2019-train.yaml"
SHARED = "../../../shared"
WIDE = {"network": {"width": 12, "joint": 192}, "fit": {"epochs": 20, "small": {"scale": 0.75, "share": 0.6}}}
# At its start all codes are alike, a saddle from which batch normalisation leads away.
PAIRWISE = {
    "losses": [{"name": "pairwise", "alpha": 0.01}],
    "head": {"norm": True},
    "fit": {"lr": 0.01},
}
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
    "augment": {"flip": False, "pad": 2},
    "fit": {"epochs": 2},
}
BITS = (12, 24, 32, 48)
MAIN: dict[str, dict[str, Any]] = {
    # Its figure 8: map by bits, on both data sets.
    **{f"wide-{bits}": {**WIDE, "bits": bits} for bits in BITS},
    **{f"mnist-{bits}": {**MNIST, "bits": bits} for bits in BITS},
}
OTHERS: dict[str, dict[str, Any]] = {
    # The five poolings at one small width (its figure 5).
    "avg-max": {},
    "max-max": {"network": {"pooling": ["max", "max"]}},
    "avg-avg": {"network": {"pooling": ["avg", "avg"]}},
    "max": {"network": {"pooling": ["max"]}},
    "avg": {"network": {"pooling": ["avg"]}},
    # The paper's own loss on this network and on a plain one, others, and one that needs no labels.
    "pairwise": PAIRWISE,
    "csq": {"losses": [{"name": "csq"}]},
    "dsh": {**PLAIN, **PAIRWISE},
    "greedy": {"losses": [{"name": "greedy"}], "teacher": TEACHER, "fit": {"epochs": 2}},
    "mnist-dsh": changed(changed(MNIST, PLAIN), PAIRWISE),
}
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; each network gets one in it")
    parser.add_argument("--only", nargs="+", choices=[*MAIN, *OTHERS], help="some of them")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help=f"of all that are chosen ({SEEDS} of the main rows, else 0)"
    )
    chosen = parser.parse_args()
    variants = {
        f"{name}-{seed}": changed(how, {"fit": {"seed": seed}})
        for name, how in {**MAIN, **OTHERS}.items()
        if not chosen.only or name in chosen.only
        for seed in chosen.seeds or (SEEDS if name in MAIN else SEEDS[:1])
    }
    train_variants(CONFIG, chosen.out, variants)


if __name__ == "__main__":
    run(main)
