"""Extraction: `cbir build` on a folder of JPEGs beside the loop most people write, and beside ONNX Runtime alone; int8
and bfloat16 beside float32.

    python benchmarks/extraction.py             Caltech-101 and MobileNetV2 from ../shared, 3 rounds
    python benchmarks/extraction.py --quick     128 pictures, one round, to see that it runs; stores nothing
    python benchmarks/extraction.py --store     the raw figures go to benchmarks/results/extraction.json
    python benchmarks/extraction.py --precisions --store    int8 and bfloat16 beside float32 alone
    python benchmarks/extraction.py --shipped --store       the network that ships with the package alone

Rounds are interleaved, and the medians compared. The plain loop: torchvision in eager mode, DataLoader with batches of
64 and the PIL transforms that belong to the weights, with 0, 1 and 2 workers; over_plain is beside the best of them and
is to be 6 at least. ONNX Runtime alone: the same exported model on pixels that are ready, with its default threads. The
build has the default options of its extractor, says which runtime that gave, and starts without embeddings; its rate is
what it reports: without loading the model, with reading, hashing, decoding and resizing. What loading takes is measured
apart, with the export and once that is kept (torch is imported already).

Precisions: int8, calibrated on 128 pictures, and bfloat16, where the CPU computes in it, beside float32 on 1,024 others
whose pixels are ready, in rounds that alternate. int8 is to be 1.5 times as fast at a mean cosine of .99, on a CPU with
instructions for it (VNNI), at a map@5 that is off by .005 at most: of each picture among the others, by their classes.
stay: the share of each picture's five nearest of the others that are among its five nearest in float32.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import show, store
from numpy.typing import NDArray

from cbir_faiss._lib.cpu import has_vnni
from cbir_faiss.base.registry import make
from cbir_faiss.collection.build import build
from cbir_faiss.config import parse_config
from cbir_faiss.extractors._onnx import Model
from cbir_faiss.images.reading import open_image
from cbir_faiss.measures.metrics import per_query
from cbir_faiss.nets.weights import has_bfloat16
from cbir_faiss.pipeline.extraction import extract

SHARED = Path(__file__).parents[1].parent / "shared"
CALTECH = SHARED / "datasets" / "caltech101"
WEIGHTS = SHARED / "weights" / "mobilenet_v2-imagenet-fp16.pth"
EXTRACTOR = {"name": "torchvision", "model": "mobilenet_v2", "weights": str(WEIGHTS)}  # all else as it comes
BATCH = 64
WORKERS = (0, 1, 2)
_COMPARED = ("over_float32", "mean_cosine", "least_cosine", "stay", "map@5", "map@5 float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few pictures, one round, nothing stored")
    parser.add_argument("--store", action="store_true", help="store the raw figures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, help="so many, from all classes; all take 20 minutes")
    parser.add_argument("--precisions", action="store_true", help="nothing but int8 and bfloat16 beside float32")
    parser.add_argument("--shipped", action="store_true", help="nothing but the network that ships with the package")
    chosen = parser.parse_args()
    quick = chosen.quick
    if chosen.shipped:
        section = _shipped(64 if quick else 2048, 1 if quick else chosen.rounds)
        _show(f"compact, {section['images']} pictures", section)
        if chosen.store and not quick:
            print(store("extraction", {"caltech101-compact": section}))
        return
    with tempfile.TemporaryDirectory() as place:
        os.environ["CBIR_CACHE"] = place  # so that nothing is exported yet
        rounds = 1 if quick else chosen.rounds
        if not chosen.precisions:
            some = 128 if quick else chosen.pictures
            root = _pictures(Path(place), some) if some else CALTECH
            result = _measure(root, Path(place), rounds)
        precisions = _precisions(Path(place), 8 if quick else 128, rounds)
    sections = {f"caltech101-mobilenet_v2-{name}": section for name, section in precisions.items()}
    for name, section in precisions.items():
        _show(f"{name} beside float32, {section['images']} pictures", section)
        print(*(f"{what}: {section[what]}" for what in ("VNNI", *_COMPARED)), sep="\n")
    if not chosen.precisions:
        sections["caltech101-mobilenet_v2"] = result
        _show(f"{result['images']} pictures", result)
        print(f"runtime: {result['runtime']}")
        for name in ("over_plain", "of_runtime", "least_cosine", "load with export s", "load s"):
            print(f"{name}: {result[name]:.4f}")
    if chosen.store and not quick:
        print(store("extraction", sections))


def _show(title: str, section: dict[str, Any]) -> None:
    rows = [
        {"what": name, "images/s": statistics.median(rates), "runs": " ".join(f"{rate:.0f}" for rate in rates)}
        for name, rates in section["images_per_second"].items()
    ]
    show(title, rows, ("what", "images/s", "runs"))


def _measure(root: Path, place: Path, rounds: int) -> dict[str, Any]:
    config = parse_config(
        {
            "source": {"name": "folder", "root": str(root)},
            "extractors": [EXTRACTOR],
            "codecs": [{"name": "lsh", "bits": 256}],
            "backends": [{"name": "faiss-binary-flat"}],
        }
    )
    plain = _Plain(root)
    loading = [_seconds_to_load() for _ in range(2)]
    runtime = _Runtime(place)
    rates: dict[str, list[float]] = {}
    reference = None
    for _ in range(rounds):
        for workers in WORKERS:
            began = time.perf_counter()
            reference = plain.run(workers)
            rates.setdefault(f"plain, {workers} workers", []).append(len(reference) / (time.perf_counter() - began))
        shutil.rmtree(place / "x.cbir", ignore_errors=True)
        shutil.rmtree(place / "cache", ignore_errors=True)
        report = build(config, place / "x.cbir", cache=place / "cache")
        rates.setdefault("cbir build", []).append(report.images_per_second)
        rates.setdefault("ONNX Runtime alone", []).append(runtime.run(min(report.items, 1024)))
    extractor = make_extractor()
    ours = extract(make("sources", "folder", root=str(root)), extractor, cache=place / "cache")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("plain"))
    assert reference is not None
    return {
        "images": len(ours),
        "runtime": extractor.options.runtime,
        "load with export s": loading[0],
        "load s": loading[1],
        "images_per_second": rates,
        "over_plain": medians["cbir build"] / best,
        "of_runtime": medians["cbir build"] / medians["ONNX Runtime alone"],
        "least_cosine": float(_cosines(reference, ours.columns["embedding"]).min()),
    }


def _precisions(place: Path, calibrating: int, rounds: int) -> dict[str, dict[str, Any]]:
    """int8 and, where there is any, bfloat16 beside float32: images a second, and how near their embeddings are."""
    paths = list(_first(CALTECH, 9 * calibrating))
    (place / "calibration").mkdir()
    for number, path in enumerate(paths[::9]):
        (place / "calibration" / f"{number}.jpg").symlink_to(path)
    extractors = {
        "float32": make_extractor(runtime="onnx"),
        "int8": make_extractor(precision="int8", calibration=str(place / "calibration")),
    }
    if has_bfloat16(torch.device("cpu")):
        extractors["bfloat16"] = make_extractor(precision="bfloat16")
    how = extractors["float32"]
    others = [path for number, path in enumerate(paths) if number % 9]
    pixels = np.stack([how.prepare(open_image(path, min_side=how.min_side)) for path in others])
    rates: dict[str, list[float]] = {}
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(rounds):
        for name, extractor in extractors.items():
            extractor.extract(pixels[:32])
            began = time.perf_counter()
            found[name] = extractor.extract(pixels)["embedding"]
            rates.setdefault(name, []).append(len(pixels) / (time.perf_counter() - began))
    labels = np.array([path.parent.name for path in others])
    exact = found.pop("float32")
    return {
        name: {
            "images": len(pixels),
            "VNNI": has_vnni(),
            "images_per_second": {of: rates[of] for of in ("float32", name)},
            "over_float32": statistics.median(rates[name]) / statistics.median(rates["float32"]),
            **_near(exact, x, labels),
        }
        for name, x in found.items()
    }


def _shipped(count: int, rounds: int) -> dict[str, Any]:
    """Images a second of ``compact``: from files, and of the network on pixels that are ready."""
    extractor = make("extractors", "compact")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        root = _pictures(Path(place), count)
        paths = sorted(root.rglob("*.jpg"))
        pixels = np.stack([extractor.prepare(open_image(path, min_side=extractor.min_side)) for path in paths])
        extractor.extract(pixels[:32])
        for _ in range(rounds):
            began = time.perf_counter()
            extract(make("sources", "folder", root=str(root)), extractor, cache=None)
            rates.setdefault("from files", []).append(len(paths) / (time.perf_counter() - began))
            began = time.perf_counter()
            extractor.extract(pixels)
            rates.setdefault("network alone", []).append(len(paths) / (time.perf_counter() - began))
    return {"images": len(paths), "images_per_second": rates}


def _near(exact: NDArray[np.float32], x: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, float]:
    """How near embeddings are to the exact ones of the same pictures."""
    cosines = _cosines(exact, x)
    return {
        "mean_cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "stay": _stay(exact, x, 5),
        "map@5": _map(x, labels),
        "map@5 float32": _map(exact, labels),
    }


def _stay(a: NDArray[np.float32], b: NDArray[np.float32], k: int) -> float:
    """The share of each row's k nearest others by cosine in ``a`` that are so in ``b``."""
    pairs = zip(_nearest(a, k), _nearest(b, k), strict=True)
    return statistics.fmean(len(set(ours) & set(theirs)) / k for ours, theirs in pairs)


def _map(x: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """map@5 of every row among the others."""
    totals = (labels[:, None] == labels).sum(axis=1) - 1
    relevant = labels[_nearest(x, 5)] == labels[:, None]
    return float(per_query(relevant, totals, (5,))["map@5"][totals > 0].mean())


def _nearest(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k nearest others of each row by cosine."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    likeness = x @ x.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1)[:, :k]


def make_extractor(**more: Any) -> Any:
    """The network, by its default options and ``more``."""
    options = {key: value for key, value in EXTRACTOR.items() if key != "name"}
    return make("extractors", EXTRACTOR["name"], **options, **more)


def _seconds_to_load() -> float:
    began = time.perf_counter()
    make_extractor().load()
    return time.perf_counter() - began


class _Plain:
    """The loop of a tutorial."""

    def __init__(self, root: Path) -> None:
        import torchvision
        from torchvision import transforms

        self._model = torchvision.models.mobilenet_v2()
        self._model.load_state_dict({k: v.float() for k, v in torch.load(WEIGHTS, weights_only=True).items()})
        self._model.eval()
        self._data = torchvision.datasets.ImageFolder(
            root,
            transforms.Compose(
                [
                    transforms.Resize(256),
                    transforms.CenterCrop(224),
                    transforms.ToTensor(),
                    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                ]
            ),
        )
        # The same order as ours, which sorts by path.
        self._data.samples.sort(key=lambda sample: Path(sample[0]).relative_to(root).as_posix())

    def run(self, workers: int) -> NDArray[np.float32]:
        loader = torch.utils.data.DataLoader(self._data, batch_size=BATCH, num_workers=workers)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores
            parts = [self._model.features(images).mean((2, 3)).numpy() for images, _ in loader]
        return np.concatenate(parts)


class _Runtime:
    """ONNX Runtime as it comes, fed with pixels that are ready."""

    def __init__(self, place: Path) -> None:
        import onnxruntime

        _, options = make_extractor().freeze(place)
        self._session = onnxruntime.InferenceSession(place / options["model"], providers=["CPUExecutionProvider"])
        self._feed = Model(place / options["model"]).feed
        self._pixels = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)

    def run(self, images: int) -> float:
        batches = max(1, images // len(self._pixels))
        self._session.run(None, {self._feed: self._pixels})
        began = time.perf_counter()
        for _ in range(batches):
            self._session.run(None, {self._feed: self._pixels})
        return batches * len(self._pixels) / (time.perf_counter() - began)


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("ij,ij->i", a, b) / lengths)


def _pictures(place: Path, count: int) -> Path:
    """So many pictures of all classes, linked."""
    for number, path in enumerate(_first(CALTECH, count)):
        folder = place / "pictures" / f"{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.jpg").symlink_to(path)
    return place / "pictures"


def _first(root: Path, count: int) -> Iterator[Path]:
    paths = sorted(root.rglob("*.jpg"))
    yield from paths[:: max(1, len(paths) // count)][:count]


if __name__ == "__main__":
    main()
