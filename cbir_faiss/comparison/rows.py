"""Measure every valid combination of codec, backend, search options and rescorer on one split: one row each.

What is measured is what a build would make and a collection would search: the same sample, the same filling, the same
``Searcher``. Quality first, index by index; then the times, in rounds over all rows, on indexes opened from files.
Neighbours, tie histograms and times are stored raw; the measures are computed from them.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss._lib import threads
from cbir_faiss.base import Rescorer
from cbir_faiss.comparison.combine import Plan, Skipped, describe, digest, pairs, skipping, slug
from cbir_faiss.comparison.evaluator import Evaluator, Ranking
from cbir_faiss.comparison.index import Coded, Filled, RowIndex, document_bytes, sample_of, sizes
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.comparison.split import Split
from cbir_faiss.comparison.timing import ROUNDS, Others, Timed
from cbir_faiss.config import Choice
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.pipeline.rules import check_combination
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.report.row import Row, main_measure
from cbir_faiss.types import Columns

_log = logging.getLogger(__name__)
Report = Callable[[str], None]


@dataclass
class _Measured:
    """A row on its way: what it is of, and how it is searched."""

    row: Row
    filled: Filled
    rescorer: Rescorer
    stored: Columns
    timed: Timed
    raw: dict[str, Any]
    name: str


def compare_split(
    split: Split, plan: Plan, report: Report | None = None, skipped: list[Skipped] | None = None
) -> tuple[list[Row], float | None]:
    """Rows of every combination of the plan on ``split``, and how many cores others kept busy while they were timed.

    Combinations that cannot be are added to ``skipped``; where that is None, the first of them raises its error.
    """
    with tempfile.TemporaryDirectory(prefix="cbir-") as scratch:
        return _Comparison(split, plan, report, skipped, Path(scratch)).run()


class _Comparison:
    def __init__(
        self, split: Split, plan: Plan, report: Report | None, skipped: list[Skipped] | None, scratch: Path
    ) -> None:
        self._split, self._plan, self._skipped, self._scratch = split, plan, skipped, scratch
        self._report = report or (lambda text: None)
        self._pairs = pairs(plan)
        self._evaluate = Evaluator(split, plan.metrics)
        self._sample = sample_of(split)
        self._places: list[tuple[Choice, dict[str, Any]]] = []
        """Of engines that keep what they are given."""

    def run(self) -> tuple[list[Row], float | None]:
        try:
            return self._run()
        finally:
            for choice, options in self._places:
                with suppress(CbirError), closing(choice.make(**options)) as backend:
                    backend.remove()

    def _run(self) -> tuple[list[Row], float | None]:
        measured: list[_Measured] = []
        try:
            for codec, group in itertools.groupby(self._pairs, key=lambda pair: pair[0]):
                with skipping(self._skipped, self._split, describe(codec)):
                    coded = Coded.of(self._split, codec, self._sample, self._plan.threads)
                    for _, backend in group:
                        self._report(f"{self._split.title} {describe(codec, backend)}")
                        with skipping(self._skipped, self._split, describe(codec, backend)):
                            measured += self._rows_of(coded, backend)
            others = self._time(measured)
        finally:
            for filled in _distinct(measured):
                filled.close()
        self._weigh(measured)
        return [one.row for one in measured], others

    # -- quality

    def _rows_of(self, coded: Coded, choice: Choice) -> list[_Measured]:
        name = slug(self._split, coded.choice, choice)
        options = choice.plugin().scoped(choice.options, name)
        if choice.plugin().own_storage:
            self._places.append((choice, options))
        filled = Filled(self._split, coded, choice, options, self._scratch / name, self._plan.threads)
        found: list[_Measured] = []
        try:
            rescorers = [rescore for rescore in self._plan.rescore if self._goes(coded.choice, choice, rescore)]
            for rescore, search in itertools.product(rescorers, choice.searches):
                with skipping(self._skipped, self._split, describe(coded.choice, choice, rescore)):
                    found.append(self._measured(filled, rescore, search, name))
        finally:
            if filled.reopens or not found:
                filled.close()
        return found

    def _goes(self, codec: Choice, backend: Choice, rescore: Choice) -> bool:
        """Whether the three go together. Of a product of lists some never do: that is said, and no error."""
        try:
            check_combination(codec, backend, rescore)
        except ConfigError as error:
            combination = describe(codec, backend, rescore)
            if self._skipped is None:
                _log.warning("%s is left out: %s", combination, error)
            else:
                self._skipped.append(Skipped(self._split.title, combination, str(error)))
            return False
        return True

    def _measured(self, filled: Filled, rescore: Choice, search: Mapping[str, Any], name: str) -> _Measured:
        split, coded = self._split, filled.coded
        rescorer = self._sample.fit_rescorer(rescore.make())
        stored = rescorer.pack({**split.items.columns, "embedding": split.items.embedding})
        index = RowIndex(filled, search, stored)
        fitted = Fitted(coded.codec, rescorer, "embedding")
        queries = {**split.queries.columns, "embedding": split.queries.embedding}
        one, batch = Searcher(fitted, index, 1), Searcher(fitted, index, self._plan.threads)
        row = _row(
            split, filled, rescore, rescorer, search, self._evaluate.truth_of(coded.codec, filled.backend, rescorer)
        )
        raw = self._judge(row, filled, batch, queries)
        name = f"{name}-{digest([rescore.name, rescore.options, search])}"
        return _Measured(row, filled, rescorer, stored, Timed(one.hits, batch.hits, queries), raw, name)

    def _judge(self, row: Row, filled: Filled, searcher: Searcher, queries: Columns) -> dict[str, Any]:
        """Fill in measures, curves and the health of the codes; returns the arrays that they come from."""
        hits = searcher.hits(queries, self._evaluate.depth)
        ranking = Ranking(hits)
        if row.rescore == "none" and row.exact:
            ranking = Ranking.of(hits, filled.backend, filled.coded.items, filled.coded.queries)
        row.metrics, row.curves, raw, row.values = self._evaluate(ranking, row.truth["metric"])
        row.classes, row.worst = self._evaluate.by_query(row.values[main_measure([row])])
        row.codes = filled.coded.health
        values = {f"value {name}": values for name, values in row.values.items()}
        return {"ids": hits.ids, "distances": hits.distances, **values, **raw}

    def _store(self, one: _Measured) -> None:
        """What the row was made of, as a file: neighbours, histograms, values and seconds of each single query."""
        if self._plan.raw is not None:
            self._plan.raw.mkdir(parents=True, exist_ok=True)
            np.savez(self._plan.raw / f"{one.name}.npz", **one.raw, seconds=np.concatenate(one.timed.singles))
            one.row.raw = f"{self._plan.raw.name}/{one.name}.npz"

    # -- times

    def _time(self, measured: list[_Measured]) -> float | None:
        """Rounds over all rows; returns the cores that others kept busy meanwhile."""
        others = Others()
        for number in range(ROUNDS):
            for filled, group in itertools.groupby(measured, key=lambda one: one.filled):
                self._report(f"{self._split.title} timing, round {number + 1} of {ROUNDS}: {filled.choice.name}")
                if filled.reopens:
                    filled.reopen()
                # An engine in a process of its own is no other work.
                outside = filled.own_storage and not filled.in_process
                try:
                    with nullcontext() if outside else others.watching():
                        for one in group:
                            one.timed.round()
                finally:
                    if filled.reopens:
                        filled.close()
        for one in measured:
            one.row.latency_ms, one.row.qps = one.timed.latency_ms, one.timed.qps
            one.row.qps_threads = self._plan.threads or threads.available()
            self._store(one)
        return others.cores()

    # -- bytes

    def _weigh(self, measured: list[_Measured]) -> None:
        documents = document_bytes(self._split) if measured else 0
        with ResidentMeter() as meter:
            for filled, group in itertools.groupby(measured, key=lambda one: one.filled):
                resident = filled.resident(meter)
                for one in group:
                    one.row.bytes = sizes(filled, one.rescorer, one.stored, documents, resident, self._scratch)


def _distinct(measured: list[_Measured]) -> Iterator[Filled]:
    for filled, _ in itertools.groupby(measured, key=lambda one: one.filled):
        yield filled


def _row(
    split: Split, filled: Filled, rescore: Choice, rescorer: Rescorer, search: Mapping[str, Any], truth: dict[str, Any]
) -> Row:
    """The row without what is measured."""
    coded, backend = filled.coded, filled.backend
    return Row(
        source=split.source,
        extractor=split.extractor,
        codec=coded.choice.name,
        bits=coded.codec.bits or backend.code_bits,
        backend=filled.choice.name,
        metric=backend.metric,
        rescore=rescore.name,
        title=split.title,
        options={
            "extractor": split.extractor_options,
            "codec": coded.codec.options.model_dump(mode="json"),
            "backend": filled.choice.options,
            "rescore": rescorer.options.model_dump(mode="json"),
            "search": dict(search),
        },
        chosen={"rescore": rescore.options},  # without the defaults: what tells the rows of a sweep apart
        exact=backend.is_exact(backend.SearchOptions(**search)),
        dim=int(split.items.embedding.shape[1]),
        items=len(split.items),
        queries=len(split.queries),
        failed=len(split.failed),
        supervised=coded.codec.needs_labels or split.supervised,
        truth=truth,
        seconds={
            "extract": split.extract_seconds,
            "fit": coded.fit_seconds,
            "encode": coded.encode_seconds,
            "build": filled.seconds,
        },
    )
