"""Make the network that ships with the package of one that `cbir train` made.

    cbir train configs/train/compact.yaml --out runs/compact
    python benchmarks/ship.py runs/compact

Writes cbir_faiss/extractors/compact.onnx, and the log of the training beside its config.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from cbir_faiss.extractors._torch import Network, export
from cbir_faiss.extractors.compact import FILE
from cbir_faiss.nets.model import load_model

LOG = Path(__file__).parents[1] / "configs" / "train" / "compact.history.json"
MOST_BYTES = 8_000_000


class Unit(torch.nn.Module):  # type: ignore[misc]
    """Features of length 1, because it was trained for their directions. The classes it also learned from are left."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = model.network

    def forward(self, x: Any) -> dict[str, Any]:
        return {"embedding": torch.nn.functional.normalize(self.network(x))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what was trained")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        model = Path(aside, "model.onnx")
        card, trained = load_model(chosen.folder)
        export(Network(Unit(trained), ("embedding",), card.preprocess), model)
        if model.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{model.stat().st_size:,} bytes are too many to ship; at most {MOST_BYTES:,}")
        shutil.copyfile(model, FILE)
    shutil.copyfile(chosen.folder / "history.json", LOG)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes\n{LOG}")


if __name__ == "__main__":
    main()
