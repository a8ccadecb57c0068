"""Make the network that ships with the package of one that `cbir train` made.

    python benchmarks/papers/pictures.py ../shared/datasets --out runs/compact.csv
    cbir train configs/train/compact.yaml --out runs/compact
    python benchmarks/ship.py runs/compact

Writes cbir_faiss/extractors/compact.onnx, its weights in half precision, and the log of the training beside its config.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cbir_faiss.extractors._torch import Network, export
from cbir_faiss.extractors.compact import FILE
from cbir_faiss.nets.model import load_model

LOG = Path(__file__).parents[1] / "configs" / "train" / "compact.history.json"
MOST_BYTES = 8_000_000
FEW = 1000  # values that take no room worth rounding them for


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
        halve(model)
        if model.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{model.stat().st_size:,} bytes are too many to ship; at most {MOST_BYTES:,}")
        shutil.copyfile(model, FILE)
    shutil.copyfile(chosen.folder / "history.json", LOG)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes\n{LOG}")


def halve(file: Path) -> None:
    """Store the weights of an ONNX file in half precision; what runs it makes them whole again once, as it opens."""
    model = onnx.load(file)
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < FEW:
            continue
        whole, half = weight.name, f"{weight.name}.half"
        weight.CopyFrom(numpy_helper.from_array(values.astype("float16"), half))
        casts.append(helper.make_node("Cast", [half], [whole], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save_model(model, file)


if __name__ == "__main__":
    main()
