"""What a comparison runs over: one embedding of a database and of queries, with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss.base import Extractor, Item, Source
from cbir_faiss.base.checks import check_floats
from cbir_faiss.base.labels import Labels
from cbir_faiss.config import Choice, Config
from cbir_faiss.errors import InputError
from cbir_faiss.pipeline.extraction import Extraction, Failure, Progress, extract
from cbir_faiss.storage.catalogue import document
from cbir_faiss.types import Columns, Floats


@dataclass(frozen=True)
class Side:
    """The database, or the queries: aligned rows of embeddings, side columns, labels and paths.

    places: for each row its source and the index in it, so that the report can show the picture.
    ignored: labels to whose queries an item is neither right nor wrong; empty where there are none at all.
    """

    embedding: Floats
    labels: Labels
    columns: Columns = field(default_factory=dict)
    paths: Sequence[str] = ()
    places: Sequence[tuple[Source, int]] = ()
    ignored: Labels = ()

    def __len__(self) -> int:
        return len(self.embedding)

    def document(self, row: int) -> dict[str, Any]:
        """What a collection of these items keeps of one: path, labels and payload."""
        if self.places:
            source, index = self.places[row]
            return document(source.items()[index])
        return document(Item(str(row), self.labels[row]))


@dataclass(frozen=True)
class Split:
    """One embedding of one source: what every combination of codec, backend and rescorer is measured on.

    supervised: whether the extractor learned from labels.
    """

    items: Side
    queries: Side
    source: str = "vectors"
    extractor: str = "vectors"
    extractor_options: dict[str, Any] = field(default_factory=dict)
    extract_seconds: float = 0.0
    failed: tuple[Failure, ...] = ()
    title: str = ""
    supervised: bool = False


def splits(config: Config, cache: Path | None, progress: Progress | None = None) -> Iterator[Split]:
    """One split for each extractor of the config and each of its embeddings.

    Raises:
        InputError: no item is left for the database or for the queries.
    """
    source: Source = config.source.make()
    query_source: Source | None = config.query_source.make() if config.query_source else None
    for choice in config.extractors:
        extractor: Extractor = choice.make()
        found = extract(source, extractor, cache=cache, progress=progress)
        asked = extract(query_source, extractor, cache=cache, progress=progress) if query_source else None
        is_query = found.rows % config.every == 0 if config.every else np.zeros(len(found.rows), bool)
        for column in _embeddings(found, extractor):
            items = _side(source, found, ~is_query, column)
            queries = _side(query_source, asked, slice(None), column) if query_source and asked else None
            queries = queries or _side(source, found, is_query, column)
            if not len(items) or not len(queries):
                raise InputError(f"{len(items)} items and {len(queries)} queries: a comparison needs both")
            yield Split(
                items,
                queries,
                source=config.source.name,
                extractor=choice.name,
                extractor_options=_options_of(choice, extractor, column),
                extract_seconds=found.seconds + (asked.seconds if asked else 0.0),
                failed=tuple(found.failed + (asked.failed if asked else [])),
                title=_title(choice, column, several=len(extractor.embeddings) > 1),
                supervised=extractor.supervised,
            )


def labels_of(config: Config) -> tuple[Labels, Labels, Labels]:
    """Labels of the database, labels of the queries, and what the items of the database ignore, before anything is
    read: of what cannot be, too."""
    items: Sequence[Item] = config.source.make().items()
    if config.query_source:
        kept, asked = items, config.query_source.make().items()
    else:
        kept, asked = [item for row, item in enumerate(items) if row % config.every], items[:: config.every]
    return [item.labels for item in kept], [item.labels for item in asked], [item.ignored for item in kept]


def split_of_vectors(vectors: Any, queries: Any, labels: Any = None, query_labels: Any = None) -> Split:
    """A split of arrays ``(n, dim)`` and ``(m, dim)``; labels are one value a row, or a list of them, or None."""
    x = check_floats(vectors, "vectors")
    q = check_floats(queries, "queries", x.shape[1])
    return Split(Side(x, _labels(labels, len(x), "labels")), Side(q, _labels(query_labels, len(q), "query_labels")))


def _embeddings(found: Extraction, extractor: Extractor) -> tuple[str, ...]:
    return tuple(found.columns) if len(found.columns) == 1 else extractor.embeddings


def _side(source: Source, found: Extraction, rows: Any, column: str) -> Side:
    items: Sequence[Item] = source.items()
    kept = [int(i) for i in found.rows[rows]]
    columns = {name: values[rows] for name, values in found.columns.items() if name != column}
    columns["embedding"] = found.columns[column][rows]  # also where another embedding is called that
    return Side(
        np.ascontiguousarray(columns["embedding"], np.float32),
        [items[i].labels for i in kept],
        columns,
        [items[i].path for i in kept],
        [(source, i) for i in kept],
        [items[i].ignored for i in kept],
    )


def _options_of(choice: Choice, extractor: Extractor, column: str) -> dict[str, Any]:
    options: dict[str, Any] = extractor.options.model_dump(mode="json")
    if isinstance(options.get("layer"), list):
        options["layer"] = column
    # As they were written, but the layer that this embedding is of, and the runtime that was taken.
    return options | {key: value for key, value in choice.options.items() if key not in ("layer", "runtime")}


def _title(choice: Choice, column: str, several: bool) -> str:
    name = _model(choice.name, choice.options)
    return f"{name} {column}" if several else name


def _model(name: str, options: Mapping[str, Any]) -> str:
    """The network or the folder of one that was trained, else the plugin; whether it is mirrored; of several, each."""
    parts = options.get("of")
    if isinstance(parts, list):
        return " + ".join(_model(part["name"], part) for part in parts)
    called = Path(str(options.get("model") or options.get("path") or name)).name
    return f"{called} mirrored" if options.get("mirrored") else called


def _labels(labels: Any, n: int, name: str) -> Labels:
    if labels is None:
        return [()] * n
    if len(labels) != n:
        raise InputError(f"{len(labels)} {name} for {n} vectors")
    return [tuple(str(v) for v in x) if isinstance(x, (list, tuple, set, np.ndarray)) else (str(x),) for x in labels]
