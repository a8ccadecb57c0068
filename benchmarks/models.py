"""Models by name: a ViT of timm's beside ONNX Runtime alone, and a search by text beside the same search by vector.

    python benchmarks/models.py             512 pictures of Caltech-101 from ../shared, random weights, 3 rounds
    python benchmarks/models.py --quick     32 pictures, one round, to see that it runs; stores nothing

Raw figures go to benchmarks/results/models.json.

Extraction: `cbir build` with `timm`, vit_small_patch16_224, by its default options; its rate is what it reports,
without loading the model. of_runtime is beside ONNX Runtime on pixels that are ready, with its default threads, in
rounds that alternate, and is to be .9 at least. Beside it the same network with int8 matrices (ONNX Runtime's dynamic
quantization) and in torch with bfloat16, each with its least cosine to float32.

Text: open_clip's ViT-B-32 with a text of 12 tokens over a collection of these pictures, open in this process; added_ms
is what a search by text takes more than one by the vector of that text, and is to be 20 at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import Anonymous, seconds, show, store
from numpy.typing import NDArray

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.extractors._onnx import Model
from cbir_faiss.extractors.timm import Timm

SHARED = Path(__file__).parents[1].parent / "shared"
VIT = {"name": "timm", "model": "vit_small_patch16_224", "weights": "none"}
CLIP = {"name": "open_clip", "model": "ViT-B-32", "weights": "none", "embed": "image+text"}
TEXT = "a red bus on a wet street in the evening"
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few pictures, one round, nothing stored")
    chosen = parser.parse_args()
    rounds, pictures, searches = (1, 32, 5) if chosen.quick else (3, 512, 200)
    with tempfile.TemporaryDirectory() as place:
        os.environ["CBIR_CACHE"] = place
        root = _pictures(Path(place), pictures)
        sections = {
            "timm-vit_small": _extraction(root, Path(place), rounds),
            "text": _text(root, Path(place), searches),
        }
    extraction = sections["timm-vit_small"]
    rates = [{"what": name, "images/s": extraction[name]} for name in extraction["images_per_second"]]
    show(f"vit_small_patch16_224, {pictures} pictures", rates, ("what", "images/s"))
    for section, names in {
        "timm-vit_small": ("of_runtime", "int8_cosine", "bf16_cosine", "peak_mb"),
        "text": _SAID,
    }.items():
        print(*(f"{name}: {sections[section][name]:.4g}" for name in names), sep="\n")
    if not chosen.quick:
        print(store("models", sections))


_SAID = ("tokens", "by_vector_ms", "by_text_ms", "added_ms")


def _extraction(root: Path, place: Path, rounds: int) -> dict[str, Any]:
    extractor = Timm(**{key: value for key, value in VIT.items() if key != "name"})
    _, options = extractor.freeze(place)
    runners = {
        "ONNX Runtime alone": _by_runtime(place / options["model"]),
        "ONNX Runtime, int8": _by_runtime(_int8(place / options["model"])),
        "torch, bfloat16": _by_torch(),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    outputs = {name: run(pixels) for name, run in runners.items()}
    rates: dict[str, list[float]] = {}
    with Anonymous() as memory:
        for number in range(rounds):
            with Collection.build(_config(root, VIT), place / f"{number}.cbir", cache=place / f"{number}") as made:
                assert made.report is not None
                rates.setdefault("cbir build", []).append(made.report.images_per_second)
            for name, run in runners.items():
                times = seconds(lambda run=run: run(pixels), 4)  # type: ignore[misc]
                rates.setdefault(name, []).append(BATCH / statistics.median(times))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    alone = outputs["ONNX Runtime alone"]
    return {
        "images_per_second": rates,
        **medians,
        "of_runtime": medians["cbir build"] / medians["ONNX Runtime alone"],
        "int8_cosine": _least_cosine(alone, outputs["ONNX Runtime, int8"]),
        "bf16_cosine": _least_cosine(alone, outputs["torch, bfloat16"]),
        "peak_mb": (memory.peak - memory.first) / 1e6,
    }


def _text(root: Path, place: Path, searches: int) -> dict[str, Any]:
    with Collection.build(_config(root, CLIP), place / "text.cbir", cache=place / "text") as collection:
        vector = collection.extractor.embed_text([TEXT])["embedding"]
        tokens = len(collection.extractor._text._tokenizer.encode(TEXT).ids)  # type: ignore[attr-defined]
        times: dict[str, list[float]] = {"vector": [], "text": []}
        collection.search_text([TEXT])
        for _ in range(searches):
            for name, search in (
                ("vector", lambda: collection.search(vector, 10)),
                ("text", lambda: collection.search_text([TEXT], 10)),
            ):
                began = time.perf_counter()
                search()
                times[name].append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "tokens": tokens,
        "by_vector_ms": medians["vector"],
        "by_text_ms": medians["text"],
        "added_ms": medians["text"] - medians["vector"],
        "milliseconds": times,
    }


def _config(root: Path, extractor: dict[str, Any]) -> Any:
    return parse_config(
        {
            "source": {"name": "folder", "root": str(root)},
            "extractors": [extractor],
            "codecs": [{"name": "raw"}],
            "backends": [{"name": "faiss-flat", "metric": "cosine"}],
        }
    )


def _by_runtime(file: Path) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = Model(file).feed
    return lambda pixels: np.asarray(session.run(None, {feed: pixels})[0])


def _int8(file: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    smaller = file.with_name("int8.onnx")
    quantize_dynamic(file, smaller)
    return smaller


def _by_torch() -> Callable[[NDArray[Any]], NDArray[Any]]:
    import torch

    network = Timm(**{key: value for key, value in VIT.items() if key != "name"})._network("cpu")

    def run(pixels: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            (found,) = network(torch.from_numpy(pixels))
        return np.asarray(found.float().numpy())

    return run


def _least_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("ij,ij->i", a, b) / lengths).min())


def _pictures(place: Path, count: int) -> Path:
    """So many pictures of all classes, linked."""
    paths = sorted((SHARED / "datasets" / "caltech101").rglob("*.jpg"))
    for number, path in enumerate(paths[:: max(1, len(paths) // count)][:count]):
        (place / "pictures").mkdir(exist_ok=True)
        (place / "pictures" / f"{number:04}.jpg").symlink_to(path)
    return place / "pictures"


if __name__ == "__main__":
    main()
