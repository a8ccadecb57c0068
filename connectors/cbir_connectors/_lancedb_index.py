"""Indexes of LanceDB: which one a table has, how one is made, and what a search tells it."""

from __future__ import annotations

from typing import Any

from cbir_faiss.base.item_bytes import graph_bytes
from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError

_CLASSES = {"ivf_flat": "IvfFlat", "ivf_pq": "IvfPq", "ivf_rq": "IvfRq", "ivf_hnsw_sq": "HnswSq"}
_WHOLE = {"ivf_flat", "ivf_hnsw_flat"}
_REFINE = 10


def check(options: Any, binary: bool, dim: int) -> None:
    """Raises ConfigError where no index of the kind in the options takes such vectors."""
    kind, parts = options.index, options.sub_vectors
    if binary and kind not in ("none", "ivf_flat"):
        raise ConfigError(f"index '{kind}' is of floats; codes take 'ivf_flat'", path="index")
    if kind == "ivf_rq" and dim % 8:
        raise ConfigError(f"index 'ivf_rq' takes a multiple of 8 dimensions, not {dim}", path="index")
    if kind == "ivf_pq" and parts is not None and dim % parts:
        raise ConfigError(f"{dim} dimensions are not divided by {parts}", path="sub_vectors")


def config(options: Any, distance: str) -> Any:
    """What ``create_index`` is given."""
    chosen: dict[str, Any] = {"distance_type": distance, "num_partitions": options.nlist}
    if options.index == "ivf_pq":
        chosen["num_sub_vectors"] = options.sub_vectors
    if options.index == "ivf_rq":
        chosen["num_bits"] = options.bits
    if options.index == "ivf_hnsw_sq":
        chosen |= {"m": options.hnsw_m, "ef_construction": options.hnsw_ef_construct}
    return getattr(need("lancedb.index", "lancedb"), _CLASSES[options.index])(**chosen)


def found(table: Any, column: str) -> str | None:
    """The kind of the index of ``column``, as the options call it."""
    kinds = {kind.replace("_", ""): kind for kind in (*_CLASSES, *_WHOLE, "ivf_sq", "ivf_hnsw_pq")}
    index = _of(table, column)
    if index is None:
        return None
    spelt = str(index.index_type).replace("_", "").lower()
    return kinds.get(spelt, spelt)


def distance(table: Any, column: str) -> str | None:
    """The distance that the index of ``column`` was built by, in LanceDB's word; None where there is no index."""
    index = _of(table, column)
    said = None if index is None else table.index_stats(index.name)
    return None if said is None else said.distance_type


def _of(table: Any, column: str) -> Any:
    return next((index for index in table.list_indices() if column in index.columns), None)


def item_bytes(options: Any, vector: float, dim: int) -> float:
    """What an index of the options' kind takes of an item of ``vector`` bytes: its codes, row numbers and links."""
    codes = {
        "none": 0.0,
        "ivf_flat": vector + 8,
        "ivf_pq": (options.sub_vectors or dim / 16) + 8,
        "ivf_rq": options.bits * dim / 8 + 16,
        "ivf_hnsw_sq": dim + 8 + graph_bytes(options.hnsw_m),
    }
    return float(codes[options.index])


def quantizes(kind: str | None) -> bool:
    """Whether an index of this kind (None, ``none``: there is none) ranks by codes."""
    return kind not in (None, "none", *_WHOLE)


def told(query: Any, k: int, kind: str | None, options: Any) -> Any:
    """A ``query`` for k with the SearchOptions of the connector, for an index of this kind (None: there is none)."""
    if options.exact:
        return query.bypass_vector_index()
    if options.nprobe is not None:
        query = query.nprobes(options.nprobe)
    quantized = quantizes(kind)
    refine = (options.refine_factor or _REFINE) if quantized else 1
    if options.ef is not None:
        query = query.ef(max(options.ef, k * refine))  # fewer than it is to give are refused
    return query.refine_factor(refine) if quantized else query
