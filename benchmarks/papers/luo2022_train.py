"""The networks of luo2022.py: with CBAM and without it, on the same splits and from the same weights.

python benchmarks/papers/luo2022_train.py --out runs/luo2022 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from _report import run
from _variants import train_variants
from split import write_split

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "papers" / "luo2022-train.yaml"
COREL = ROOT.parent / "shared" / "datasets" / "corel1k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; each network gets one in it")
    parser.add_argument("--data", type=Path, default=COREL, help="folder of Corel-1k, a sub-folder a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        split = chosen.out / str(seed)
        write_split(chosen.data, split, seed)
        source = {"name": "list", "file": str((split / "database.csv").resolve())}
        both = {"source": source, "fit": {"seed": seed}}
        train_variants(
            CONFIG,
            chosen.out,
            {f"cbam-{seed}": both, f"plain-{seed}": {**both, "network": {"attention": "none"}}},
        )


if __name__ == "__main__":
    run(main)
