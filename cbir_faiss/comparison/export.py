"""A comparison for the programs of others: runs and judgements for trec_eval, neighbours for ann-benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.labels import Labels
from cbir_faiss.base.options import need
from cbir_faiss.comparison.combine import digest
from cbir_faiss.comparison.evaluator import EMBEDDING_METRIC
from cbir_faiss.comparison.split import Side, Split, labels_of
from cbir_faiss.config import Config
from cbir_faiss.errors import CbirError, InputError, Unsupported, one_line
from cbir_faiss.measures.neighbours import exact_neighbours, true_distances
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.report.row import Row
from cbir_faiss.types import MISSING_ID, Metric

JUDGEMENTS = 20_000_000
"""More pairs of a query and a relevant item make no file that a program would read."""
NEIGHBOURS = 100
DISTANCES: dict[Metric, str] = {"l2": "euclidean", "cosine": "angular"}
"""What ann-benchmarks calls a metric."""
_QUERIES = 64  # whose relevant items are looked up together


class Exports:
    """What a comparison writes beside its results: for trec_eval, for ann-benchmarks, or neither.

    said: a sentence for each thing that a reader of the files should know. failed: one for each that was not written.

    Raises:
        InputError: judgements are wanted of items without labels, or too many of them.
        Unsupported, MissingDependency: ann-benchmarks has no name for the metric of the config, or h5py is missing.
    """

    def __init__(self, config: Config, out: Path, *, trec: bool, hdf5: bool) -> None:
        self._out, self._trec, self._hdf5 = out, trec, hdf5
        self._metric: Metric = config.metrics.truth.metric or EMBEDDING_METRIC
        self.said: list[str] = []
        self.failed: list[str] = []
        if trec:
            _judgements(*labels_of(config))
        if hdf5:
            _check_ann(self._metric)

    def write(self, split: Split, rows: Sequence[Row]) -> None:
        """The files of one split. What cannot be written is no reason to lose what was measured."""
        if self._trec:
            with self._noting(split, "--trec"):
                write_trec(split, rows, self._out)
                self.said += _without_judgement(split)
        if self._hdf5:
            with self._noting(split, "--hdf5"):
                write_ann(split, self._out, self._metric)

    @contextmanager
    def _noting(self, split: Split, what: str) -> Iterator[None]:
        try:
            yield
        except (CbirError, OSError, MemoryError) as error:
            self.failed.append(f"{what} of {split.title or 'vectors'} was not written: {one_line(error)}")


def _without_judgement(split: Split) -> list[str]:
    lost = int((_judgements(split.items.labels, split.queries.labels, split.items.ignored).totals == 0).sum())
    if not lost:
        return []
    return [
        f"{name_of(split)}.qrels is without {lost:,} of {len(split.queries):,} queries, which have nothing to find: "
        "trec_eval leaves them out of its means, and here they count as 0"
    ]


def _judgements(items: Labels, queries: Labels, ignored: Labels) -> Relevance:
    relevance = Relevance.from_labels(items, queries, ignored)
    if relevance is None:
        raise InputError("judgements are of labels, and these items or queries have none")
    count = int(relevance.totals.sum())
    if count > JUDGEMENTS:
        raise InputError(f"{count:,} judgements are more than the {JUDGEMENTS:,} of a readable file")
    return relevance


def _check_ann(metric: Metric) -> Any:
    """The library that writes the file."""
    if metric not in DISTANCES:
        raise Unsupported(f"ann-benchmarks knows {' and '.join(DISTANCES)}, not '{metric}'")
    return need("h5py", "hdf5")


def write_trec(split: Split, rows: Sequence[Row], out: Path) -> list[Path]:
    """``out/trec/NAME.qrels`` of the split, and ``.run`` of each row whose neighbours are stored below ``out``.

    Names are the paths of items and queries (numbers, where they have none), spaces and other signs that would part
    them as %20 and so on. Scores fall with the rank, so that a program which sorts by them sees the order that was
    returned. Items that a query ignores are in neither file. A query with nothing to find has no judgement.

    Raises:
        InputError: there are no labels, or more than 20 million judgements.
    """
    relevance = _judgements(split.items.labels, split.queries.labels, split.items.ignored)
    (out / "trec").mkdir(parents=True, exist_ok=True)
    items, queries = _names(split.items), _names(split.queries)
    written = [out / "trec" / f"{name_of(split)}.qrels"]
    with written[0].open("w", encoding="utf-8") as file:
        for start in range(0, len(queries), _QUERIES):
            block = relevance.block(slice(start, start + _QUERIES))
            file.writelines(f"{queries[start + q]} 0 {items[i]} 1\n" for q, i in np.argwhere(block).tolist())
    for row in rows:
        if row.raw is not None:
            with np.load(out / row.raw) as raw:
                ids = raw["ids"]
            stem = Path(row.raw).stem
            written.append(out / "trec" / f"{stem}.run")
            with written[-1].open("w", encoding="utf-8") as file:
                file.writelines(_run(ids, relevance, items, queries, stem))
    return written


def write_ann(split: Split, out: Path, metric: Metric) -> Path:
    """``out/hdf5/NAME.hdf5``: train, test, and the exact 100 nearest of each query with their distances.

    Raises:
        Unsupported: a metric that ann-benchmarks has no name for.
        MissingDependency: h5py is not installed.
    """
    h5py = _check_ann(metric)
    items, queries = split.items.embedding, split.queries.embedding
    ids = exact_neighbours(items, queries, NEIGHBOURS, metric)[0]
    distances = true_distances(items, queries, ids, metric)
    file = out / "hdf5" / f"{name_of(split)}-{DISTANCES[metric]}.hdf5"
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content.attrs.update(type="dense", distance=DISTANCES[metric], dimension=items.shape[1], point_type="float")
        content["train"], content["test"] = items, queries
        content["neighbors"] = ids.astype(np.int32)
        content["distances"] = (np.sqrt(distances) if metric == "l2" else distances).astype(np.float32)
    return file


def name_of(split: Split) -> str:
    """Of the files of a split; its own for each extractor and its options."""
    title = re.sub(r"[^\w]+", "-", split.title or "vectors")
    return f"{title}-{digest([split.source, split.extractor, split.extractor_options])}"


def _names(side: Side) -> list[str]:
    return [quote(path) for path in side.paths] if side.paths else [str(row) for row in range(len(side))]


def _run(
    ids: NDArray[np.int64], relevance: Relevance, items: Sequence[str], queries: Sequence[str], tag: str
) -> Iterator[str]:
    ignored = None if relevance.junk is None else relevance.junk.of(ids)
    for query, row in enumerate(ids):
        kept = row[(row != MISSING_ID) & (True if ignored is None else ~ignored[query])].tolist()
        for rank, item in enumerate(kept, 1):
            yield f"{queries[query]} Q0 {items[item]} {rank} {len(row) - rank + 1} {tag}\n"
