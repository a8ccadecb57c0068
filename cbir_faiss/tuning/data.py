"""What an index is tuned on: items in random order in a mapped file, queries in two halves, exact neighbours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base import Extractor, Source
from cbir_faiss.base.labels import Labels
from cbir_faiss.collection.room import check_disk
from cbir_faiss.comparison.combine import digest
from cbir_faiss.config import Choice, Config, parse_config, read_config
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.measures.metrics import per_query
from cbir_faiss.measures.neighbours import exact_neighbours
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.extraction import Extraction, Progress, extract
from cbir_faiss.pipeline.fill import FILL_ROWS
from cbir_faiss.pipeline.fit import with_direction
from cbir_faiss.storage.files import ArrayFile, load_mapped, writing_to
from cbir_faiss.types import Floats, Ids, Metric

QUERIES = 1_000
"""Of each half at most."""
_FEWEST = 200
NEIGHBOURS = 100
"""Exact neighbours that are known of each query at least: a prediction needs more than a target counts."""
_OPTIONAL = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}]}
_SEED = 0


@dataclass(frozen=True)
class Naming:
    """What a config names: the data, and in ``sections`` which of codecs, backends and rescorers it narrows."""

    config: Config
    sections: tuple[str, ...] = ()
    queries: bool = False
    """Whether it says which items are queries; else they are drawn."""


def read_naming(file: Path) -> Naming:
    """A config of which only the source has to be there; its paths become absolute, so that it can be written anywhere.

    Raises:
        ConfigError: ``file:line: path: what is wrong``; several extractors.
    """
    return read_config(file, partial(parse_naming, file=str(file)))


def parse_naming(document: Any, *, folder: str = "", file: str = "") -> Naming:
    """The same of a plain mapping."""
    given = document if isinstance(document, Mapping) else {}
    place = str(Path(folder).resolve())
    config = parse_config({**_OPTIONAL, **document} if given else document, folder=place, file=file)
    if len(config.extractors) != 1:
        raise ConfigError(f"tuning needs exactly one, this gives {len(config.extractors)}", path="extractors")
    sections = tuple(name for name in ("codecs", "backends", "rescore") if name in given)
    return Naming(config, sections, "queries" in given)


def naming_of_source(source: Mapping[str, Any]) -> Naming:
    """Ready vectors: of a file, or of a collection."""
    return parse_naming({"source": dict(source), "extractors": [{"name": "vectors"}]})


@dataclass(frozen=True)
class Queries:
    """Queries float32 ``(m, dim)`` with labels, and their exact neighbours among the first items, as these grow."""

    embedding: Floats
    labels: Labels
    items: Floats
    metric: Metric
    store: Path
    depth: int = NEIGHBOURS
    _known: dict[int, tuple[Ids, NDArray[np.float64]]] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.embedding)

    def neighbours(self, n: int) -> tuple[Ids, NDArray[np.float64]]:
        """Of the nearest ``depth`` of the first ``n`` items: rows, and ``exact_thresholds``, nearest first.

        Each item is compared with the queries once: what is known of fewer items is gone on from.
        """
        if n not in self._known:
            self._known[n] = self._stored(n)
        return self._known[n]

    def _stored(self, n: int) -> tuple[Ids, NDArray[np.float64]]:
        depth, file = self.depth, self.store.with_name(f"{self.store.name}-{n}-{self.depth}.npz")
        if not file.exists():
            before = max((m for m in self._known if m < n), default=0)
            rows, limits = exact_neighbours(self.items[before:n], self.embedding, depth, self.metric)
            rows += before
            if before:
                rows = np.concatenate([self._known[before][0], rows], axis=1)
                limits = np.concatenate([self._known[before][1], limits], axis=1)
                order = np.argsort(limits, axis=1, kind="stable")[:, :depth]
                rows, limits = np.take_along_axis(rows, order, 1), np.take_along_axis(limits, order, 1)
            part = file.with_suffix(".part.npz")
            np.savez(part, rows=rows, limits=limits)
            part.replace(file)
            return rows, limits
        with np.load(file) as stored:
            return stored["rows"], stored["limits"]


@dataclass(frozen=True)
class Data:
    """Items float32 ``(n, dim)``, mapped, in random order: the first of them are a sample of all.

    tuning, confirming: queries that are in neither. digest: of what the data are. sections: how a build config names
    them.
    """

    items: Floats
    labels: Labels
    tuning: Queries
    confirming: Queries
    metric: Metric
    digest: str
    sections: Mapping[str, Any]
    source: Source
    order: NDArray[np.int64]
    _exact: dict[tuple[str, str, int], NDArray[np.float64]] = field(default_factory=dict, compare=False)

    @property
    def dim(self) -> int:
        return int(self.items.shape[1])

    @cached_property
    def same(self) -> Ids | None:
        """Of each item the row of the first that is equal to it; None where no two are."""
        first: dict[bytes, int] = {}
        found = np.empty(len(self.items), np.int64)
        for row in range(len(self.items)):
            digest = blake2b(self.items[row].tobytes(), digest_size=16).digest()
            found[row] = first.setdefault(digest, row)
        return None if len(first) == len(found) else found

    @cached_property
    def has_labels(self) -> bool:
        """Whether items and both halves of the queries have some."""
        return all(map(any, (self.labels, self.tuning.labels, self.confirming.labels)))

    def exact(self, queries: Queries, measure: str, k: int) -> NDArray[np.float64]:
        """What an exact search of all items is worth by labels, at each query."""
        key = (queries.store.name, measure, k)
        if key not in self._exact:
            relevance = Relevance.from_labels(self.labels, queries.labels)
            ids = queries.neighbours(len(self.items))[0][:, :k]
            self._exact[key] = worth(relevance, ids, measure, k)
        return self._exact[key]


def worth(relevance: Relevance | None, ids: Ids, measure: str, k: int) -> NDArray[np.float64]:
    """A measure by labels of hits ``ids`` ``(queries, k)``, at each query; None: no label is there to be found."""
    if relevance is None:
        return np.zeros(len(ids))
    found: NDArray[np.float64] = per_query(relevance.ranked(ids), relevance.totals, [k])[f"{measure}@{k}"]
    return found


def open_data(
    naming: Naming,
    metric: Metric,
    folder: Path,
    *,
    cache: Path | None,
    progress: Progress | None = None,
    depth: int = NEIGHBOURS,
) -> Data:
    """The data of ``naming``, laid out in ``folder``; what lies there of the same data is taken as it is.

    depth: exact neighbours that are known of each query.

    Raises:
        InputError: fewer than two queries or no item are left.
    """
    config = naming.config
    source: Source = config.source.make()
    extractor: Extractor = config.extractors[0].make()
    found = extract(source, extractor, cache=cache, progress=progress)
    asked, query_source = found, source
    if config.query_source is not None:
        query_source = config.query_source.make()
        asked = extract(query_source, extractor, cache=cache, progress=progress)
    column = found.names[0]
    own = config.query_source is None
    read = (source.source_digest(), query_source.source_digest(), extractor.fingerprint(), len(found), column)
    what = digest([*read, metric, config.every, own, naming.queries])
    queries, items = _drawn(config, naming.queries, found.rows, len(asked), own)
    if len(queries) < 2 or not len(items):
        raise InputError(f"{len(items)} items and {len(queries)} queries: tuning needs an item and two queries")
    if not _laid_out(folder, what):
        _lay_out(folder, what, found, asked, items, queries, column, metric)
    order, chosen = np.load(folder / "order.npy"), np.load(folder / "chosen.npy")
    vectors, embedding = load_mapped(folder / "items.npy"), np.load(folder / "queries.npy")
    if len(embedding) < 2:
        raise InputError("fewer than two queries have a direction: nothing can be compared by cosine")
    all_items, all_queries = source.items(), query_source.items()
    half = len(embedding) // 2

    def part(rows: slice, name: str) -> Queries:
        labels = [all_queries[int(row)].labels for row in asked.rows[chosen[rows]]]
        return Queries(embedding[rows], labels, vectors, metric, folder / name, depth)

    labelled = any(all_items[row].labels for row in found.rows[order].tolist())
    labels: Labels = [all_items[row].labels for row in found.rows[order].tolist()] if labelled else [()] * len(order)
    tuning, confirming = part(slice(0, half), "tuning"), part(slice(half, None), "confirming")
    return Data(vectors, labels, tuning, confirming, metric, what, _sections(config, metric), source, found.rows[order])


def _drawn(
    config: Config, said: bool, found: NDArray[np.int64], m: int, own: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the queries, and of the items in random order. What a config calls queries are no items; of those that
    are drawn here the others are the items."""
    rng, n = np.random.default_rng(_SEED), len(found)
    if own and said and config.every:
        every = found % config.every == 0
        return rng.permutation(np.flatnonzero(every))[: 2 * QUERIES], rng.permutation(np.flatnonzero(~every))
    if not own:
        return rng.permutation(m)[: 2 * QUERIES], rng.permutation(n)
    shuffled = rng.permutation(n)
    # Too few queries show nothing, however much they find; among few items they may as well be half of them.
    held = min(2 * QUERIES, max(n // 5, min(n // 2, _FEWEST)))
    return shuffled[:held], shuffled[held:]


def _laid_out(folder: Path, what: str) -> bool:
    try:
        return bool(json.loads((folder / "data.json").read_text("utf-8"))["digest"] == what)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _lay_out(
    folder: Path,
    what: str,
    found: Extraction,
    asked: Extraction,
    items: NDArray[np.int64],
    queries: NDArray[np.int64],
    column: str,
    metric: Metric,
) -> None:
    """Write items and queries; a vector without a direction is left out under cosine, as a build leaves it out."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        asked_rows, asked_there = _block(asked, queries, column, metric)
        others = list(folder.glob("*.np[yz]"))
        least = 4 * len(items) * asked_rows.shape[1] - sum(other.stat().st_size for other in others)
        check_disk(folder, least, f"{len(items):,} vectors to tune on take", "make room, or choose another --out")
        (folder / "data.json").unlink(missing_ok=True)  # first: nothing may say that what comes are the others
        for other in others:
            other.unlink()
        kept = []
        file = ArrayFile(folder / "items.npy")
        for start in range(0, len(items), FILL_ROWS):
            rows = items[start : start + FILL_ROWS]
            block, there = _block(found, rows, column, metric)
            file.append(block)
            kept.append(rows[there])
        file.close()
        np.save(folder / "queries.npy", asked_rows)
        np.save(folder / "chosen.npy", queries[asked_there])
        np.save(folder / "order.npy", np.concatenate(kept) if kept else np.empty(0, np.int64))
        write_durably(folder / "data.json", json.dumps({"digest": what}).encode())


def _block(found: Extraction, rows: NDArray[np.int64], column: str, metric: Metric) -> tuple[Floats, NDArray[np.bool_]]:
    """float32 ``(n, dim)`` of the usable of ``rows``, and which those are."""
    block = np.ascontiguousarray(found.block(rows, [column])[column], np.float32)
    there: NDArray[np.bool_] = np.ones(len(block), np.bool_)
    if metric == "cosine":
        there = with_direction(block)
    return block[there], there


def _sections(config: Config, metric: Metric) -> dict[str, Any]:
    """What a build config has beside what is chosen, as it was given; with the metric that was tuned by."""

    def section(choice: Choice) -> dict[str, Any]:
        return {"name": choice.name, **choice.options}

    sections: dict[str, Any] = {"source": section(config.source)}
    if config.query_source is not None:
        sections["queries"] = {"source": section(config.query_source)}
    sections["extractors"] = [section(choice) for choice in config.extractors]
    measures = dict(config.document.get("metrics", {}))
    sections["metrics"] = {**measures, "truth": {**measures.get("truth", {}), "metric": metric}}
    if config.threads is not None:
        sections["threads"] = config.threads
    if config.engine is not None:
        sections["engine"] = config.document["engine"]
    return sections


def rungs_of(n: int, rungs: Sequence[int]) -> list[int]:
    """The sizes at which an index of ``n`` items is looked at while it grows; the last is ``n``."""
    return [*(size for size in rungs if 1.5 * size <= n), n]
