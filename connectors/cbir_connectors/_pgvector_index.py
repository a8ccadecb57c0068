"""Indexes of pgvector: which one a table has, how one is made, and what a search tells it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from cbir_faiss.base.item_bytes import ROW_BYTES, graph_bytes
from cbir_faiss.errors import ConfigError

LONGEST = {"vector": 2000, "halfvec": 4000, "bit": 64_000}
"""Dimensions, or bits, that an index takes."""
EF_SEARCH, WIDEST = 40, 1000  # pgvector's default and limit of hnsw.ef_search
_PER_LIST, _MANY = 1000, 1_000_000  # pgvector advises n / 1000 lists, and √n from a million on
_OVERSAMPLE = 10
# PostgreSQL writes the column of an expression as quote_ident does.
INDEXES = """SELECT a.amname, array_to_string(c.reloptions, ','),
    position('binary_quantize(' || quote_ident(%s) || ')' IN pg_get_expr(i.indexprs, i.indrelid)) > 0, t.attname
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    LEFT JOIN pg_attribute t ON t.attrelid = i.indrelid AND t.attnum = i.indkey[0] AND t.attnum > 0
    WHERE i.indrelid = to_regclass(%s) AND i.indisvalid AND a.amname IN ('hnsw', 'ivfflat')"""


class Index(NamedTuple):
    """``hnsw``, ``ivfflat``, or ``binary``: HNSW over the signs of floats, whose candidates the floats rank."""

    kind: str
    lists: int = 0


def check(kind: str, column: str, dim: int) -> None:
    """Raises ConfigError where no index of this kind takes such a column."""
    if kind == "binary" and column == "bit":
        raise ConfigError("index 'binary' is of the signs of floats; codes take 'hnsw'", path="index")
    indexed = "bit" if kind == "binary" else column
    if kind != "none" and dim > LONGEST[indexed]:
        other = "; index 'binary' takes more" if indexed != "bit" else ""
        raise ConfigError(f"pgvector indexes a {indexed} of at most {LONGEST[indexed]}, not {dim}{other}")


def found(rows: Iterable[tuple[str, str | None, bool | None, str | None]], column: str, wanted: str) -> Index | None:
    """The index of ``column`` among the rows of ``INDEXES``: one of the kind that is ``wanted``, else any."""
    known: dict[str, Index] = {}
    for method, options, signs, of in rows:
        if of == column:
            set_to = dict(part.split("=", 1) for part in (options or "").split(",") if part)
            known[method] = Index(method, int(set_to.get("lists", 100 if method == "ivfflat" else 0)))
        elif method == "hnsw" and signs:
            known["binary"] = Index("binary")
    return next((known[kind] for kind in (wanted, "hnsw", "ivfflat", "binary") if kind in known), None)


def lists_for(n: int, wanted: int | None) -> int:
    """Lists of an index of n items."""
    return wanted or max(1, n // _PER_LIST if n <= _MANY else math.isqrt(n))


def item_bytes(options: Any, vector: float, dim: int) -> float:
    """What an index of the options' kind takes of an item: it has a copy of the vector (``vector`` bytes), or its
    signs, and links of six bytes, the place of a row."""
    if options.index == "none":
        return 0.0
    links = 0.0 if options.index == "ivfflat" else graph_bytes(options.hnsw_m) * 6 / 4
    return (dim / 8 if options.index == "binary" else vector) + links + ROW_BYTES


def candidates(k: int, oversample: float | None) -> int:
    """How many a search by signs takes for the floats to rank."""
    return math.ceil(k * (oversample or _OVERSAMPLE))


def settings(index: Index | None, options: Any, k: int, filtered: bool) -> list[tuple[str, str]]:
    """What is set for a search of ``k`` through the index, with the SearchOptions of the connector."""
    if index is None:
        return []
    if index.kind == "ivfflat":
        probes = min(options.probes or math.isqrt(index.lists - 1) + 1, index.lists)
        # Where these lists do not hold k that are allowed, more are looked into.
        return [("ivfflat.probes", str(probes)), ("ivfflat.iterative_scan", "relaxed_order")]
    wanted = candidates(k, options.oversample) if index.kind == "binary" else k
    # An index scan ends after ef_search candidates, filtered ones among them, unless it may go on.
    width = min(max(wanted, options.ef_search or EF_SEARCH), WIDEST)
    found_by = [("hnsw.ef_search", str(width))]
    return [*found_by, ("hnsw.iterative_scan", "strict_order")] if filtered or wanted > width else found_by
