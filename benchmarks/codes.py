"""Codecs: how fast they are fitted and encode, and how well their codes retrieve. Every ratio is within one run.

    python benchmarks/codes.py                      all on synthetic data; faiss.ITQTransform takes many minutes
    python benchmarks/codes.py --quick              seconds, small sizes, to see that it runs; stores nothing
    python benchmarks/codes.py encode --threads 1
    python benchmarks/codes.py quality --features FILE.npy --labels FILE.npy

Raw times and figures go to benchmarks/results/codes.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, ratio, seconds, show, store

import cbir_faiss as cf
from cbir_faiss._lib import threads
from cbir_faiss.base import registry
from cbir_faiss.base.options import need
from cbir_faiss.types import Floats

SECTIONS = ("fit", "encode", "quality")
QUALITY_BITS = (32, 64, 128, 256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--features", type=Path, help="embeddings, .npy (n, dim), instead of synthetic ones")
    parser.add_argument("--labels", type=Path, help="their classes, .npy (n,), for quality")
    parser.add_argument("--threads", type=int, default=threads.available())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of codes.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"unknown section {unknown.pop()!r}; there are: {', '.join(SECTIONS)}")
    features = None if chosen.features is None else np.load(chosen.features).astype(np.float32)
    labels = None if chosen.labels is None else np.load(chosen.labels)
    done: dict[str, Any] = {}
    with threads.phase("fit", chosen.threads):
        if _wanted("fit", chosen.sections):
            done["fit"] = fit(features, quick=chosen.quick, limit=chosen.threads)
        if _wanted("encode", chosen.sections):
            done["encode"] = encode(quick=chosen.quick)
    if _wanted("quality", chosen.sections):
        done["quality"] = quality(features, labels, quick=chosen.quick, limit=chosen.threads)
    if not chosen.quick:
        print(f"\n{store('codes', done, chosen.threads, chosen.out)}")


def _wanted(section: str, sections: list[str]) -> bool:
    return not sections or section in sections


def fit(features: Floats | None, *, quick: bool, limit: int) -> dict[str, Any]:
    """ITQ against faiss.ITQTransform: seconds to fit, and the quantization error on the vectors it was fitted on.

    FAISS's error stays far from what its 50 iterations could reach, so the textbook's 50 stand beside it.
    """
    n, dim, bits = (1000, 160, 128) if quick else (10_000, 1280, 1024)
    x = (synthetic(n, dim) if features is None else features)[:n]
    # FAISS scales to length 1 after centring; given vectors for which that changes nothing, both solve one problem.
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bits = min(bits, x.shape[1] // 8 * 8)
    ours = registry.make("codecs", "itq", bits=bits, normalise=False)
    faiss = need("faiss", "cpu")
    faiss.omp_set_num_threads(limit)
    theirs = faiss.ITQTransform(x.shape[1], bits, True)
    rows: list[dict[str, Any]] = [
        {"codec": "itq", "seconds": seconds(lambda: ours.fit(x), 3, warm=quick)},
        {"codec": "faiss.ITQTransform", "seconds": seconds(lambda: theirs.train(x), 1, warm=False)},
    ]
    began = time.perf_counter()
    textbook = textbook_itq(x, bits)
    rows.append({"codec": "50 iterations by SVD", "seconds": [time.perf_counter() - began]})
    for row, projected in zip(rows, (ours.project(x), theirs.apply(x), textbook), strict=True):
        row |= {"error": quantization_error(projected), "median": float(np.median(row["seconds"]))}
    content = {
        "vectors": list(x.shape),
        "bits": bits,
        "rows": rows,
        "speedup": ratio(rows[1]["seconds"], rows[0]["seconds"]),
        "error_ratio": rows[0]["error"] / rows[1]["error"],
        "textbook_error_ratio": rows[0]["error"] / rows[2]["error"],
    }
    show(f"fit {bits} bits from {x.shape[1]} dimensions, {len(x):,} vectors", rows, ["codec", "median", "error"])
    print(
        f"  itq is {content['speedup']:.1f} times faster than FAISS; its error is {content['error_ratio']:.4f} times "
        f"FAISS's and {content['textbook_error_ratio']:.4f} times the textbook's"
    )
    return content


def encode(*, quick: bool) -> dict[str, Any]:
    """LSH: vectors a second, structured against dense projection."""
    bits, n, repeats = (256, 500, 3) if quick else (2048, 10_000, 9)
    rows: list[dict[str, Any]] = []
    for dim in (160, 256) if quick else (1280, 2048):
        x = synthetic(n, dim)
        times = {}
        for projection in ("dense", "hadamard"):
            codec = registry.make("codecs", "lsh", bits=bits, projection=projection).fit(x)
            times[projection] = seconds(lambda codec=codec, x=x: codec.encode(x), repeats)
            rows.append(
                {
                    "dim": dim,
                    "projection": projection,
                    "seconds": times[projection],
                    "vectors_per_second": n / float(np.median(times[projection])),
                    "over_dense": ratio(times["dense"], times[projection]),
                }
            )
    show(f"encode {bits} bits, {n:,} vectors", rows, ["dim", "projection", "vectors_per_second", "over_dense"])
    return {"bits": bits, "vectors": n, "rows": rows}


def quality(features: Floats | None, labels: Any, *, quick: bool, limit: int) -> dict[str, Any]:
    """map@5 of codes by Hamming, scored asymmetrically and rescored by floats, and of raw L2.

    Every fifth item is a query, as in the comparisons.
    """
    if features is None or labels is None:
        features = synthetic(500 if quick else 4000, 160 if quick else 1280)
        labels = np.arange(len(features)) % clusters(len(features))
    query = np.arange(len(features)) % 5 == 0
    bits = [size for size in QUALITY_BITS[: 2 if quick else None] if size <= features.shape[1]]
    learned = [{"name": name, "bits": bits} for name in ("lsh", "itq", "pca-sign", "sh", "ksh")]
    rows = cf.compare(
        vectors=features[~query],
        queries=features[query],
        labels=labels[~query].tolist(),
        query_labels=labels[query].tolist(),
        codecs=[
            "raw",
            *learned,
            {"name": "lsh", "bits": [2048], "projection": ["dense", "orthogonal", "hadamard"]},
            "sign",
            {"name": "sign", "center": True},
            "sigmoid-mean",
            "threshold",
        ],
        backends=[{"name": "faiss-flat", "metric": "l2"}, "faiss-binary-flat"],
        rescore=["none", {"name": "float", "candidates": 100}, {"name": "asymmetric", "candidates": "all"}],
        k=[5],
        threads=limit,
    )
    table = [
        {
            "codec": _title(row["codec"], row["options"]["codec"]),
            "bits": row["bits"],
            "rescore": row["rescore"],
            "map@5": row["metrics"]["map@5"],
            "knn_recall@10": row["metrics"]["knn_recall@10"],
            "fit_seconds": row["seconds"]["fit"],
        }
        for row in rows
    ]
    show("retrieval", table, ["codec", "bits", "rescore", "map@5", "knn_recall@10", "fit_seconds"])
    return {"items": int((~query).sum()), "queries": int(query.sum()), "rows": table}


def _title(name: str, options: dict[str, Any]) -> str:
    """The codec with those of its options that are not the defaults."""
    defaults = registry.load("codecs", name).Options.model_fields
    return " ".join([name, *(f"{k}={v}" for k, v in options.items() if k != "bits" and v != defaults[k].get_default())])


def quantization_error(projected: Floats) -> float:
    """min over s of |sign(V) - s·V|² / |sign(V)|², which does not depend on the scale of V ``(n, bits)``."""
    v = projected.astype(np.float64)
    return float(1 - np.abs(v).sum() ** 2 / (v.size * (v * v).sum()))


def textbook_itq(x: Floats, bits: int, iterations: int = 50) -> Floats:
    """Projections ``(n, bits)`` of centred x as Gong and Lazebnik describe it: R from the SVD of sign(ZR)ᵀZ."""
    directions = np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, ::-1][:, :bits]
    z = x @ directions.astype(np.float32)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((bits, bits)))[0].astype(np.float32)
    for _ in range(iterations):
        u, _, vt = np.linalg.svd(z.T @ np.sign(z @ rotation))
        rotation = u @ vt
    return z @ rotation


def clusters(n: int) -> int:
    return max(2, n // 40)


def synthetic(n: int, dim: int, seed: int = 0) -> Floats:
    """Like pooled CNN features: clustered, a decaying spectrum, never negative; item i is of cluster i mod clusters."""
    rng = np.random.default_rng(seed)
    spectrum = (1 / np.sqrt(1 + np.arange(dim) / 16)).astype(np.float32)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    centres = rng.standard_normal((clusters(n), dim), dtype=np.float32) * spectrum
    noise = rng.standard_normal((n, dim), dtype=np.float32) * spectrum
    return np.maximum((centres[np.arange(n) % len(centres)] + noise) @ basis, 0)


if __name__ == "__main__":
    main()
