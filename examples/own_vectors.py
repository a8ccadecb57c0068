"""What would codes cost on vectors that you have already?

    python examples/own_vectors.py embeddings.npy

The file holds float32 (n, dim). Every tenth vector is a query; the rest is searched.
"""

from __future__ import annotations

import sys

import numpy as np

import cbir_faiss as cf


def main(file: str) -> None:
    """Print a line for each way to store them."""
    vectors = np.load(file).astype(np.float32)
    is_query = np.arange(len(vectors)) % 10 == 0
    rows = cf.compare(
        vectors=vectors[~is_query],
        queries=vectors[is_query],
        codecs=["raw", {"name": "lsh", "bits": [64, 256, 1024]}],
        backends=[{"name": "faiss-flat", "metric": "cosine"}, "faiss-binary-flat"],
        rescore=[{"name": "none"}, {"name": "float", "candidates": 100, "center": False}],
    )
    for row in rows:
        found = row["metrics"]["knn_recall@10"]
        print(f"{row['codec']:>4} {row['bits'] or '':>5}  rescored by {row['rescore']:<6} recall@10 {found:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
