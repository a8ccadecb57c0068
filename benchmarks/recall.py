"""Do the intervals of `cbir recall` hold, and do bytes come out as `cbir plan` says?

    python benchmarks/recall.py                     both, at 20,000 and 200,000 vectors of 512 floats
    python benchmarks/recall.py --items 1000000     the plan at another size; needs 8 GB in --scratch
    python benchmarks/recall.py --quick             small, nothing stored

    coverage   the share of 1,000 draws of 1,000 queries whose interval covers the recall of all items as queries: of
               collections that find little, most and nearly all
    plan       index, resident and disk bytes as planned over those of what is then built, and the seconds of both;
               resident is measured in a process of its own, as `cbir compare` does it

The vectors are clustered, of a decaying spectrum; nothing of this package was made with them. Raw figures go to
benchmarks/results/recall.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import show, store

from cbir_faiss.collection import Collection
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.config import Config, parse_config
from cbir_faiss.measures.intervals import mean_interval
from cbir_faiss.storage.manifest import read_manifest
from cbir_faiss.tuning.plan import plan
from cbir_faiss.tuning.recall import Yardstick
from cbir_faiss.tuning.subject import opened

DIM, DRAWS, QUERIES = 512, 1000, 1000
FLOAT = {"name": "float", "candidates": 100, "center": False}
COLLECTIONS: dict[str, tuple[Any, Any, Any]] = {
    "lsh-64": ({"name": "lsh", "bits": 64}, {"name": "faiss-binary-flat"}, {"name": "none"}),
    "itq-256 rescored": ({"name": "itq", "bits": 256}, {"name": "faiss-binary-flat"}, FLOAT),
    "hnsw ef 64": ({"name": "raw"}, {"name": "faiss-hnsw", "search": {"ef": 64}}, {"name": "none"}),
    "ivf nprobe 64": ({"name": "raw"}, {"name": "faiss-ivf", "search": {"nprobe": 64}}, {"name": "none"}),
}
PLANNED: dict[str, tuple[Any, Any, Any]] = {
    "flat": ({"name": "raw"}, {"name": "faiss-flat"}, {"name": "none"}),
    "hnsw": ({"name": "raw"}, {"name": "faiss-hnsw"}, {"name": "none"}),
    "rabitq": ({"name": "raw"}, {"name": "faiss-rabitq"}, {**FLOAT, "store": "float16"}),
    "pq": ({"name": "raw"}, {"name": "faiss-pq", "bits": 256}, {"name": "none"}),
    "binary flat": ({"name": "itq", "bits": 256}, {"name": "faiss-binary-flat"}, FLOAT),
    "binary ivf": ({"name": "lsh", "bits": 256}, {"name": "faiss-binary-ivf"}, {**FLOAT, "store": "int8"}),
    "binary hnsw": ({"name": "lsh", "bits": 256}, {"name": "faiss-binary-hnsw"}, {"name": "none"}),
    "multi-hash": ({"name": "lsh", "bits": 256}, {"name": "faiss-binary-multihash"}, {"name": "none"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, nothing stored")
    parser.add_argument("--items", type=int, default=200_000, help="of the plan (200,000)")
    parser.add_argument("--only", choices=("coverage", "plan"), help="one of the two")
    parser.add_argument("--names", nargs="*", default=list(PLANNED), help=f"of the plan ({' '.join(PLANNED)})")
    parser.add_argument("--scratch", type=Path, help="where to build (the system's folder for such)")
    arguments = parser.parse_args()
    items, covered, draws = (6_000, 3_000, 100) if arguments.quick else (arguments.items, 20_000, DRAWS)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="recall-", dir=arguments.scratch) as place:
        if arguments.only != "plan":
            results["coverage"] = {"items": covered, "draws": draws, "rows": _coverage(covered, draws, Path(place))}
            show("coverage", results["coverage"]["rows"], ("name", "recall", "covered", "width"))
        if arguments.only != "coverage":
            rows = [_planned(name, items, Path(place)) for name in arguments.names]
            results[f"plan-{items}"] = {"items": items, "rows": rows}
            show("planned over built", rows, ("name", "index", "resident", "disk", "seconds", "plan seconds"))
    if not arguments.quick:
        print(store("recall", results))


def _coverage(items: int, draws: int, place: Path) -> list[dict[str, Any]]:
    rows = []
    for name, parts in COLLECTIONS.items():
        folder = place / "covered.cbir"
        Collection.build(_config(parts, items, place), folder).close()
        with opened(folder) as subject:
            every = subject.asked(np.arange(items))
            shares = Yardstick.of(subject, every, 10).shares(subject.hits(every, 10, {}))
        shutil.rmtree(folder)
        rng, truth, n = np.random.default_rng(1), float(shares.mean()), min(QUERIES, items // 2)
        found = [mean_interval(rng.choice(shares, n, replace=False), items) for _ in range(draws)]
        covered = sum(low <= truth <= high for low, high in found)
        width = float(np.mean([high - low for low, high in found]))
        rows.append({"name": name, "recall": truth, "covered": covered, "width": width, "queries": n})
    return rows


def _planned(name: str, items: int, place: Path) -> dict[str, Any]:
    config, folder = _config(PLANNED[name], items, place), place / "planned.cbir"
    began = time.perf_counter()
    told = plan(config, items)
    planned = time.perf_counter()
    with Collection.build(config, folder, cache=place / "cache") as collection:
        report = collection.report
        query = np.zeros((1, read_manifest(folder).width // 8), np.uint8)
        if read_manifest(folder).kind == "float":
            query = np.ones((1, DIM), np.float32)
    assert report is not None
    built = _built(folder, query)
    shutil.rmtree(folder)
    return {
        "name": name,
        "planned": told.as_dict(),
        "built": {**built, "seconds": report.seconds["total"], "peak_rss_bytes": report.peak_rss_bytes},
        "index": told.index_bytes / built["index"],
        "resident": told.resident_bytes / built["resident"],
        "disk": told.disk_bytes / built["disk"],
        "seconds": (told.build_seconds or 0) / report.seconds["total"],
        "plan seconds": planned - began,
    }


def _built(folder: Path, query: Any) -> dict[str, int]:
    manifest = read_manifest(folder)
    index = sum(entry.size for name, entry in manifest.files.items() if "/backend/" in name)
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    saved = next(folder.glob("segments/*/backend"))
    with ResidentMeter() as meter:
        resident = meter.measure(manifest.backend.name, manifest.backend.options, saved, query) or 0
    for name in ("codec.npz", "rescore.npz"):
        with np.load(folder / name) as arrays:
            resident += sum(arrays[key].nbytes for key in arrays.files)
    return {"index": index, "resident": resident, "disk": disk}


def _config(parts: tuple[Any, Any, Any], items: int, place: Path) -> Config:
    codec, backend, rescore = parts
    file = place / f"{items}.npy"
    if not file.exists():
        _write(file, items)
    source = {"name": "vectors", "file": str(file)}
    return parse_config({"source": source, "codecs": [codec], "backends": [backend], "rescore": [rescore]})


def _write(file: Path, items: int) -> None:
    """Clusters of a few hundred, whose spread decays from axis to axis."""
    rng, step = np.random.default_rng(7), 20_000
    spread = (1 / np.sqrt(1 + np.arange(DIM) / 16)).astype(np.float32)
    centres = rng.standard_normal((max(1, items // 400), DIM), np.float32) * spread
    x = np.lib.format.open_memmap(file, "w+", np.float32, (items, DIM))
    for start in range(0, items, step):
        rows = min(step, items - start)
        noise = 0.7 * spread * rng.standard_normal((rows, DIM), np.float32)
        x[start : start + rows] = centres[rng.integers(0, len(centres), rows)] + noise
    x.flush()


if __name__ == "__main__":
    main()
