"""Losses of the hashing literature by the protocols of CIFAR-10: codes of a frozen network's features.

    python benchmarks/papers/protocol_losses.py ../shared/datasets/cifar10 \\
        --weights ../shared/weights/mobilenet_v2-imagenet-fp16.pth

Every picture is extracted once, by MobileNetV2 as it was trained on ImageNet (128 x 128, the mean over places); codec
`learned` then learns two layers from the pictures to train on, by each loss, and `itq` and `ksh` beside it. What
protocols.py says of the splits holds: they are drawn anew for each seed and never mixed. 1k-5k-59k is asked of the very
codes of 1k-5k-54k; 10k-50k-50k of a few methods, because it takes longest.

map is the mean AP of the whole ranking and map@1000 that of its first 1,000, both in expectation over ties; "as
returned" is the order of an index, equals by their number. Goes to benchmarks/results/protocols.json, in
place of what was stored of the same protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from _report import RESULTS, run, show, store
from _seeds import of_seeds
from protocols import PROTOCOLS, draw

from cbir_faiss.base import Codec, Item
from cbir_faiss.base.registry import make
from cbir_faiss.measures.histograms import Histograms, hamming_histograms
from cbir_faiss.measures.metrics import per_query
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.sources.folder import Folder
from cbir_faiss.types import Floats

BALANCED: dict[str, Any] = {"name": "likelihood", "balanced": True}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "itq": ("itq", {}),
    "greedy": ("learned", {"loss": "greedy"}),
    "bihalf": ("learned", {"loss": "bihalf"}),
    "ksh": ("ksh", {}),
    "pairwise": ("learned", {"loss": "pairwise"}),
    "pairs": ("learned", {"loss": "likelihood"}),
    "dpsh": ("learned", {"loss": {"name": "likelihood", "scale": 0.5}}),
    "hashnet": (
        "learned",
        {"loss": {"name": "likelihood", "balanced": True, "quantization": 0, "continuation": 0.005}},
    ),
    "pairs, balanced": ("learned", {"loss": {"name": "likelihood", "balanced": True}}),
    "greedy, supervised": ("learned", {"loss": "greedy-supervised"}),
    "csq": ("learned", {"loss": "csq"}),
    "orthohash": ("learned", {"loss": "orthohash"}),
}
LARGEST = "10k-50k-50k"
FEW = ("itq", "hashnet", "pairs, balanced", "csq", "orthohash")
NETWORK: dict[str, Any] = {
    "model": "mobilenet_v2",
    "layer": "features",
    "pool": "avg",
    "runtime": "onnx",
    "preprocess": {"resize": 128, "crop": 128},
}
FIRST = 1000
MEASURES = ("map", "map ±", "map as returned", "map@1000", "map@1000 ±")
_KEYS = {"map": "map@{all}", "map as returned": "map@{all}_observed", "map@1000": "map@{first}"}
Split = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of pictures, in sub-folders of the classes' names at any depth")
    parser.add_argument("--weights", required=True, help="of MobileNetV2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of protocols.json")
    chosen = parser.parse_args()
    if len(set(chosen.seeds)) < 2:
        print("one seed: there will be no deviations or intervals over seeds", file=sys.stderr)
    pictures = Pictures.extracted(chosen.root, chosen.weights)
    for protocol in chosen.protocols:
        methods = [name for name in chosen.only if protocol != LARGEST or name in FEW]
        splits = {seed: draw(pictures.items, seed, PROTOCOLS[protocol]) for seed in chosen.seeds}
        rows = [
            row(method, bits, {seed: pictures.measured(split, method, bits, seed) for seed, split in splits.items()})
            for method in methods
            for bits in chosen.bits
        ]
        show(protocol, rows, ("method", "bits", *MEASURES))
        rows = with_others(chosen.out / "protocols.json", protocol, rows)
        print(store("protocols", {protocol: {"rows": rows, "network": NETWORK}}, folder=chosen.out))


@dataclass
class Pictures:
    """All that protocols draw from: what an item is, its class, its features ``(n, dim)``, and codes that were made."""

    items: Sequence[Item]
    labels: NDArray[np.int64]
    x: Floats
    codes: dict[tuple[Any, ...], NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def extracted(cls, root: Path, weights: str) -> Pictures:
        source = Folder(root=str(root))
        extractor = make("extractors", "torchvision", weights=weights, **NETWORK)
        found = extract(source, extractor, cache=default_cache(), progress=_told)
        items = [source.items()[row] for row in found.rows.tolist()]
        names = [Path(item.path).parent.name for item in items]
        return cls(items, np.unique(names, return_inverse=True)[1], found.block(slice(None))["embedding"])

    def measured(self, split: Split, method: str, bits: int, seed: int) -> dict[str, float]:
        """The measures of one method, split and length."""
        queries, training, database = split
        codes = self._codes(method, bits, seed, training)
        relevance = Relevance.from_labels(self._of(database), self._of(queries))
        assert relevance is not None
        histograms = hamming_histograms(codes[queries], codes[database], relevance)
        signs = np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1  # whose products rank as Hamming distances do
        found: dict[str, list[NDArray[np.float64]]] = {}
        start = 0
        for relevant in full_rankings(signs[database], signs[queries], relevance, "ip"):
            block = slice(start, start := start + len(relevant))
            values = per_query(
                relevant,
                relevant.sum(axis=1),
                (FIRST, len(database)),
                histograms=Histograms(*(part[block] for part in histograms)),
            )
            for name, key in _KEYS.items():
                found.setdefault(name, []).append(values[key.format(first=FIRST, all=len(database))])
        return {name: float(np.concatenate(values).mean()) for name, values in found.items()}

    def _codes(self, method: str, bits: int, seed: int, training: NDArray[np.int64]) -> NDArray[np.uint8]:
        key = method, bits, seed, len(training)
        if key not in self.codes:
            name, options = METHODS[method]
            codec: Codec = make("codecs", name, bits=bits, seed=seed, **options)
            self.codes[key] = codec.fit(self.x[training], self.labels[training]).encode(self.x)
            print(f"{method} of {bits} bits from {len(training):,} pictures, seed {seed}", file=sys.stderr, flush=True)
        return self.codes[key]

    def _of(self, rows: NDArray[np.int64]) -> list[tuple[str, ...]]:
        return [(str(label),) for label in self.labels[rows].tolist()]


def with_others(file: Path, protocol: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` and what is stored of other methods and lengths, in the order of METHODS."""
    stored = json.loads(file.read_text()).get(protocol, {}).get("rows", []) if file.exists() else []
    lines = {(line["method"], line["bits"]): line for line in [*stored, *rows]}
    return sorted(lines.values(), key=lambda line: (list(METHODS).index(line["method"]), line["bits"]))


def row(method: str, bits: int, by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """One line: means over seeds, their deviation and Student's interval where there are several."""
    line: dict[str, Any] = {
        "method": method,
        "bits": bits,
        "by seed": {str(seed): one for seed, one in by_seed.items()},
    }
    for name in _KEYS:
        line |= of_seeds(name, [one[name] for one in by_seed.values()])
    return line


def _told(done: int, total: int) -> None:
    if done % 1024 < 32 or done == total:
        print(f"{done:,} of {total:,} pictures", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
