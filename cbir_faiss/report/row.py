"""One result: a combination of extractor, codec, backend and rescorer, what it cost, and what people call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import CorruptCollection

BYTES = (
    "codes",
    "backend_file",
    "codec_state",
    "rescore",
    "resident",
    "memory",
    "disk",
    "memory_per_item",
    "disk_per_item",
    "memory_per_item_at_million",
    "disk_per_item_at_million",
)
"""What ``Row.bytes`` holds, each a number or None where it is not known; docs/measures.md says what they are."""
LATENCY: dict[str, Any] = {"p50": None, "p95": None, "p99": None, "k": None, "threads": None, "rounds": []}


@dataclass(eq=False, kw_only=True)
class Row:
    """One row of ``results.json``, and the values of each query, which are not stored there.

    bits: length of the codes, None for floats. exact: whether the search looks at every item.
    options: those of ``extractor``, ``codec``, ``backend``, ``rescore`` and ``search``. chosen: of ``rescore`` those
        that were set, without the defaults.
    failed: items that could not be read.
    supervised: the codec, or the extractor, learned from labels; None where a stored row does not say.
    truth: ``metric`` and ``k`` of the exact neighbours that ``knn_recall`` counts.
    bytes: the numbers that ``BYTES`` lists. seconds: ``extract``, ``fit``, ``encode``, ``build``.
    codes: the health of binary codes. metrics: means over queries. curves: lists of points.
    classes: of the main measure, for each label of a query, how many queries have it and their mean. worst: path,
        labels and value of the queries with the least of it that have something to find.
    latency_ms: of one query at a time: ``p50``, ``p95`` and ``p99`` of the best round, ``k`` hits asked for,
        ``threads``, and ``rounds``, the median of each. qps: of one batch of all queries with ``qps_threads``.
    raw: the file with neighbours and times, beside ``results.json``.
    values: per-query values of the measures, ``values["map@5"]`` float64 ``(queries,)``, never NaN: what the means
        are made of, in expectation over ties where the codes are known.
    apart: by their part, the options that tell it from rows that would have the same name; ``tell_apart`` says which.
    """

    source: str
    extractor: str
    codec: str
    bits: int | None
    backend: str
    metric: str | None
    rescore: str
    title: str
    options: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)
    exact: bool
    dim: int
    items: int
    queries: int
    failed: int = 0
    supervised: bool | None = False
    truth: dict[str, Any] = field(default_factory=dict)
    bytes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    codes: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    worst: Sequence[Sequence[Any]] = ()
    latency_ms: dict[str, Any] = field(default_factory=dict)
    qps: float | None = None
    qps_threads: int | None = None
    raw: str | None = None
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    apart: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The mapping that ``results.json`` has: every field but ``values`` and ``apart``."""
        return {name: getattr(self, name) for name in _STORED}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Row:
        """A stored row, also one of version 0.1: what that does not have is None or empty. Other keys are ignored.

        Raises:
            CorruptCollection: not a row, or one that lacks what every version stores.
        """
        if not isinstance(stored, Mapping):
            raise CorruptCollection(f"a row of results must be a mapping, got {type(stored).__name__}")
        known = {"supervised": None} | {name: stored[name] for name in _STORED if name in stored}
        missing = [name for name in _NEEDED if name not in known]
        if missing:
            raise CorruptCollection(f"a row of results lacks {', '.join(missing)}")
        known["bytes"] = dict.fromkeys(BYTES) | known["bytes"]
        known["latency_ms"] = LATENCY | known["latency_ms"]
        return cls(**known)


_STORED = tuple(f.name for f in fields(Row) if f.name not in ("values", "apart"))
_PARTS = ("extractor", "codec", "backend", "rescore")
_NEEDED = (
    "source",
    "extractor",
    "codec",
    "bits",
    "backend",
    "metric",
    "rescore",
    "title",
    "options",
    "exact",
    "dim",
    "items",
    "queries",
    "bytes",
    "metrics",
    "latency_ms",
)


def rows_of(stored: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Stored rows of one comparison, told apart. Raises CorruptCollection as ``Row.from_json`` does."""
    rows = [Row.from_json(row) for row in stored]
    tell_apart(rows)
    return rows


def tell_apart(rows: Sequence[Row]) -> None:
    """Fill in ``apart`` of the rows of one comparison: where several would have the same title and name, the options
    in which these differ, which are then part of the name."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        row.apart = {}
        alike.setdefault((row.title, name_of(row)), []).append(row)
    for group in alike.values():
        for part in _PARTS:
            options = [row.options.get(part, {}) for row in group]
            differing = [key for key in dict.fromkeys(chain(*options)) if _differ([some.get(key) for some in options])]
            for row, some in zip(group, options, strict=True):
                row.apart[part] = {key: some[key] for key in differing if key in some}


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def main_measure(rows: Sequence[Row]) -> str:
    """The measure that charts and the recommendation are about: map at 5 (or the k nearest to it), else knn_recall."""
    metrics = rows[0].metrics
    names = [str(name) for name in metrics if name.startswith("map@") and name[4:].isdigit()]
    if not names or metrics[names[0]] is None:
        return knn_measure(rows)
    return min(names, key=lambda name: abs(int(name[4:]) - 5))


def knn_measure(rows: Sequence[Row]) -> str:
    """The name of the share of exact neighbours that were found, ``knn_recall@10``; without the k where none is."""
    return next((str(name) for name in rows[0].metrics if name.startswith("knn_recall@")), "knn_recall")


def bytes_per_item(row: Row) -> float:
    """Bytes of code an item takes: without codebooks, ids, graphs and stores, which ``memory_per_item`` counts."""
    return float(row.bytes["codes"]) / row.items


def is_reference(row: Row) -> bool:
    """Whether a row is raw floats searched exactly: what the others are compared with."""
    return row.codec == "raw" and row.bits is None and row.exact and row.rescore == "none"


def name_of(row: Row) -> str:
    """Short name of a row for people: ``itq 64 bits, faiss-binary-flat, float rescoring of 100``; with the options that
    tell it from others, where it has been told ``apart``: ``learned loss=csq 64 bits, faiss-binary-flat``."""
    metric = "" if row.metric == "hamming" else f" {row.metric}"
    bits = f" {row.bits} bits" if row.bits else ""
    factory = row.options["backend"].get("factory")
    search = _words(row.options["search"])
    rescore = ""
    if row.rescore != "none":
        candidates = row.options["rescore"].get("candidates")
        rescore = f", {rescoring_of(row)} rescoring of {candidates}"
    of_codec, of_backend, of_rescore, of_extractor = (
        _words(row.apart.get(part, {})) for part in ("codec", "backend", "rescore", "extractor")
    )
    index = f"{factory or row.backend}{metric}{of_backend}{search}"
    return f"{row.codec}{of_codec}{bits}, {index}{rescore}{of_rescore}{',' if of_extractor else ''}{of_extractor}"


def _words(options: Mapping[str, Any]) -> str:
    return "".join(f" {key}={in_short(value)}" for key, value in options.items())


def in_short(value: Any) -> str:
    """An option for people: a section with options of its own is ``dpsh(weight=2.0)``, a list ``csq + bihalf``."""
    if isinstance(value, Mapping):
        options = ", ".join(f"{key}={in_short(some)}" for key, some in value.items() if key != "name")
        return str(value.get("name", "")) + (f"({options})" if options else "")
    if isinstance(value, (list, tuple)):
        return " + ".join(map(in_short, value))
    return str(value)


def rescoring_of(row: Row) -> str:
    """Name of a row's rescorer with the options that were chosen, but how many candidates: ``relevance t=0.2``."""
    chosen = row.chosen.get("rescore", {})  # rows of earlier versions have none
    return " ".join([row.rescore, *(f"{key}={value}" for key, value in chosen.items() if key != "candidates")])
