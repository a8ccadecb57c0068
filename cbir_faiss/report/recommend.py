"""The row to use, and why: the smallest index that is proven to lose less than a margin against raw floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbir_faiss.measures.paired import ALPHA, MARGIN, Difference, noninferior, queries_needed
from cbir_faiss.report.pairs import comparable
from cbir_faiss.report.row import Row, bytes_per_item, is_reference, main_measure, name_of, rescoring_of
from cbir_faiss.report.table import MISSING, few_bytes

__all__ = [
    "Recommendation",
    "Row",
    "bytes_per_item",
    "is_reference",
    "main_measure",
    "name_of",
    "recommend",
    "rescoring_of",
]
Tested = Sequence[tuple[Row, Difference]]


@dataclass(frozen=True)
class Recommendation:
    """What is advised.

    row: the row to use; the raw one where nothing smaller is proven. index: its place among the rows judged.
    sentence: the advice in words. measure: what it is about. margin: what may be lost of that.
    difference: mean, low and high (95 %) of the row less the raw one; None where it is the raw one.
    tested: how many rows were tested against the margin.
    supervised: a sentence on the best of the rows that read labels of the database, which do not compete, or None.
    needed: where raw floats are kept, about how many queries would show that something smaller will do, or None.
    """

    row: Row
    index: int
    sentence: str
    measure: str
    margin: float
    difference: tuple[float, float, float] | None
    tested: int
    supervised: str | None
    needed: int | None

    def as_json(self) -> dict[str, Any]:
        """What ``results.json`` has as ``recommendation``: the row is its place among the rows, and its name."""
        return {
            "row": self.index,
            "title": self.row.title,
            "name": name_of(self.row),
            "sentence": self.sentence,
            "measure": self.measure,
            "margin": self.margin,
            "difference": None if self.difference is None else list(self.difference),
            "tested": self.tested,
            "supervised": self.supervised,
            "needed": self.needed,
        }


def recommend(rows: Sequence[Row], margin: float = MARGIN, *, max_ms: float | None = None) -> Recommendation | None:
    """The row with the least memory an item among those proven to lose less than ``margin`` against the best raw row.

    Tested, on the main measure and by ``measures.paired.noninferior``, are the rows over the same data that saw no
    labels of the database, whose memory is known and less than the raw row's, and that answer within ``max_ms``
    (median of one query) where that is given. Of equals, the least on disk, then the better measure to two digits,
    then the faster one. Where the raw row itself is slower than ``max_ms``, larger ones are tested too.

    None without a raw row that saw no labels, without its memory or its per-query values (stored rows have none):
    then there is nothing to compare with.

    Raises:
        InputError: a margin below 0, or values that are not one finite number a query.
    """
    measure = main_measure(rows) if rows else ""
    raw = _reference(rows, measure)
    if raw is None:
        return None
    rivals = [row for row in rows if row is not raw and comparable(row, raw, measure) and _in_time(row, max_ms)]
    largest = raw.bytes["memory_per_item"] if _in_time(raw, max_ms) else math.inf
    small = [row for row in rivals if not row.supervised and _known(row, "memory_per_item") < largest]
    found = noninferior([row.values[measure] for row in small], raw.values[measure], margin)
    tested = list(zip(small, found, strict=True))
    advice = _Advice(raw, measure, margin, max_ms, tested)
    proven = [pair for pair in tested if pair[1].shown]
    best, difference = min(proven, key=lambda pair: _order(pair[0], measure)) if proven else (raw, None)
    closest = None if proven else advice.closest()
    return Recommendation(
        row=best,
        index=next(i for i, row in enumerate(rows) if row is best),
        sentence=advice.keep(closest) if difference is None else advice.use(best, difference),
        measure=measure,
        margin=margin,
        difference=None if difference is None else difference[:3],
        tested=len(tested),
        supervised=advice.of_labels([row for row in rivals if row.supervised]),
        needed=closest[2] if closest else None,
    )


def _reference(rows: Sequence[Row], measure: str) -> Row | None:
    """The best raw row; of those that differ only by an engine's rounding, the smallest whose memory is known."""
    raw = [row for row in rows if is_reference(row) and not row.supervised and measure in row.values]
    best = min(
        raw,
        key=lambda row: (-round(row.metrics[measure], 3), _known(row, "memory_per_item"), -row.metrics[measure]),
        default=None,
    )
    return None if best is None or best.bytes.get("memory_per_item") is None else best


def _in_time(row: Row, max_ms: float | None) -> bool:
    return max_ms is None or row.latency_ms["p50"] <= max_ms


def _known(row: Row, name: str) -> float:
    """A number of bytes; without one, more than any."""
    value = row.bytes.get(name)
    return math.inf if value is None else float(value)


def _order(row: Row, measure: str) -> tuple[float, ...]:
    return (
        _known(row, "memory_per_item"),
        _known(row, "disk_per_item"),
        -round(row.metrics[measure], 2),
        row.latency_ms["p50"],
    )


@dataclass(frozen=True)
class _Advice:
    """The sentences, from what was found."""

    raw: Row
    measure: str
    margin: float
    max_ms: float | None
    tested: Tested

    def closest(self) -> tuple[Row, Difference, int] | None:
        """The row for which the fewest queries would do, and how many; None where no number would."""
        # At the strictest of Holm's levels, so that it holds whatever the other rows show.
        level = ALPHA / max(1, len(self.tested))
        base = self.raw.values[self.measure]
        needed = [
            (row, difference, queries)
            for row, difference in self.tested
            if (queries := queries_needed(row.values[self.measure] - base, self.margin, level)) is not None
        ]
        return min(needed, key=lambda found: found[2], default=None)

    def use(self, row: Row, difference: Difference) -> str:
        raw = self.raw
        return (
            f"Use {_full_name(row)}: {self._value(row)} against {self._number(raw)} for raw floats "
            f"({_full_name(raw)}), a difference of {_interval(difference)}, so less than {self.margin:g} is lost"
            f"{self._among()}; {_instead(row, raw)}."
        )

    def keep(self, closest: tuple[Row, Difference, int] | None) -> str:
        raw = self.raw
        return (
            f"Keep raw floats ({_full_name(raw)}): {self._value(raw)}, {_costs(raw)}{self._too_slow()}. "
            f"{self._why(closest)}"
        )

    def of_labels(self, rows: Sequence[Row]) -> str | None:
        """On the best of the rows that read labels of the database."""
        if not rows:
            return None
        best = min(rows, key=lambda row: (-round(row.metrics[self.measure], 2), _known(row, "memory_per_item")))
        (difference,) = noninferior([best.values[self.measure]], self.raw.values[self.measure], self.margin)
        return (
            f"Of those that learned from labels of this database, and so do not compete, the best is "
            f"{_full_name(best)}: {self._value(best)}, a difference of {_interval(difference)} from raw floats; "
            f"{_instead(best, self.raw)}. On classes it has not seen it may do worse."
        )

    def _why(self, closest: tuple[Row, Difference, int] | None) -> str:
        target = "" if self.max_ms is None else f" that answers within {self.max_ms:g} ms"
        smaller = "smaller index" if _in_time(self.raw, self.max_ms) else "index"
        if not self.tested:
            return f"No {smaller}{target} whose memory is known was measured."
        if closest is None:
            return f"No {smaller}{target} comes within {self.margin:g} of it."
        row, difference, queries = closest
        return (
            f"No {smaller}{target} is proven to lose less than {self.margin:g}{self._among()}. The nearest to it is "
            f"{_full_name(row)}, a difference of {_interval(difference)}: with about {_about(queries)} queries instead "
            f"of {row.queries:,} it could be told."
        )

    def _too_slow(self) -> str:
        return "" if _in_time(self.raw, self.max_ms) else f", which is over the {self.max_ms:g} ms asked for"

    def _among(self) -> str:
        return f" (proven among {len(self.tested)} tested)" if len(self.tested) > 1 else ""

    def _value(self, row: Row) -> str:
        return f"{self.measure} {self._number(row)}"

    def _number(self, row: Row) -> str:
        return f"{row.metrics[self.measure]:.3f}"


def _full_name(row: Row) -> str:
    return f"{row.title} with {name_of(row)}" if row.title else name_of(row)


def _interval(difference: Difference) -> str:
    mean, low, high = (_signed(value) for value in difference[:3])
    return f"{mean} (95 % interval {low} to {high})"


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}" if math.isfinite(value) else "unknown"  # + 0.0: no -0.0000


def _instead(row: Row, raw: Row) -> str:
    """Memory, disk and time of a row and of the raw one."""
    memory, disk = (f"{_bytes(row, name)} instead of {_bytes(raw, name)}" for name in ("memory", "disk"))
    time = f"p50 {row.latency_ms['p50']:.2f} instead of {raw.latency_ms['p50']:.2f} ms a query"
    return f"{memory} bytes an item in memory, {disk} on disk, {time}{_asked(row)}"


def _costs(row: Row) -> str:
    memory, disk = _bytes(row, "memory"), _bytes(row, "disk")
    return f"{memory} bytes an item in memory, {disk} on disk, p50 {row.latency_ms['p50']:.2f} ms a query{_asked(row)}"


def _bytes(row: Row, where: str) -> str:
    value = row.bytes.get(f"{where}_per_item")
    return MISSING if value is None else few_bytes(value)


def _asked(row: Row) -> str:
    """How many hits were asked for, by how many threads."""
    k, threads = row.latency_ms.get("k"), row.latency_ms.get("threads")
    if k is None or threads is None:
        return ""
    return f" ({k} hits, {threads} thread{'' if threads == 1 else 's'})"


def _about(queries: int) -> str:
    """A number rounded up to two digits: it is an estimate."""
    step = 10 ** max(0, len(str(queries)) - 2)
    return f"{-(-queries // step) * step:,}"
