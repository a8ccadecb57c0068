"""Image embeddings, raw or as binary codes, in FAISS or a vector database.

    import cbir_faiss as cf
    collection = cf.Collection.build("photos.yaml", out="photos.cbir")
    hits = collection.search(["query.jpg"], k=5, where={"label": "cat"})
    remote = cf.connect("http://127.0.0.1:8321/photos")
    rows = cf.compare(vectors=x, queries=q, labels=y, query_labels=qy, codecs=["raw", "itq"], backends=["faiss-flat"])

Names are loaded when they are first used: importing the package loads neither torch nor faiss.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbir_faiss.backends import load_backend as load_backend
    from cbir_faiss.backends import wrap as wrap
    from cbir_faiss.collection import Collection as Collection
    from cbir_faiss.collection import Match as Match
    from cbir_faiss.comparison.run import compare as compare
    from cbir_faiss.errors import CbirError as CbirError
    from cbir_faiss.serve.client import connect as connect
    from cbir_faiss.tuning.doctor import doctor as doctor
    from cbir_faiss.tuning.plan import plan as plan
    from cbir_faiss.tuning.recall import recall as recall
    from cbir_faiss.tuning.tune import tune as tune
    from cbir_faiss.types import Hit as Hit
    from cbir_faiss.types import Hits as Hits

_HOMES = {
    "CbirError": "errors",
    "Collection": "collection",
    "Hit": "types",
    "Hits": "types",
    "Match": "collection",
    "compare": "comparison.run",
    "connect": "serve.client",
    "doctor": "tuning.doctor",
    "load_backend": "backends",
    "plan": "tuning.plan",
    "recall": "tuning.recall",
    "tune": "tuning.tune",
    "wrap": "backends",
}

__all__ = [
    "CbirError",
    "Collection",
    "Hit",
    "Hits",
    "Match",
    "compare",
    "connect",
    "doctor",
    "load_backend",
    "plan",
    "recall",
    "tune",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cbir_faiss' has no attribute '{name}'")
    return getattr(importlib.import_module(f"cbir_faiss.{_HOMES[name]}"), name)
