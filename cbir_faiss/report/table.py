"""The columns of a comparison's table, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cbir_faiss.report.row import Row, bytes_per_item, knn_measure, main_measure, name_of

MISSING = "–"
SAW_LABELS = " (saw labels)"
"""Behind the name of a row that did."""


@dataclass(frozen=True)
class Column:
    """A column: its head, what a row has in it given the main measure, and how that is written.

    A head of ``{main}`` or ``{knn}`` is the name of the measure. left: texts; numbers stand to the right.
    """

    head: str
    value: Callable[[Row, str], Any]
    write: Callable[[Any], str] = str
    left: bool = False

    def title(self, rows: Sequence[Row]) -> str:
        """The head over ``rows``."""
        return self.head.format(main=main_measure(rows), knn=knn_measure(rows))

    def text(self, row: Row, measure: str) -> str:
        """The cell of a row; a figure that is missing is a dash."""
        value = self.value(row, measure)
        return MISSING if value is None else self.write(value)

    def key(self, row: Row, measure: str) -> float | None:
        """The number to sort by; None for a text and for a figure that is missing."""
        value = self.value(row, measure)
        first = value[0] if isinstance(value, (tuple, list)) else value
        return float(first) if isinstance(first, (int, float)) else None


def number(digits: int) -> Callable[[Any], str]:
    """Numbers with so many digits behind the point, in groups of three before it."""
    return lambda value: f"{value:,.{digits}f}"


def size(value: float) -> str:
    """Bytes for people: ``16.3 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} GB"


def few_bytes(value: float) -> str:
    """Bytes an item, of which a few have a digit behind the point: ``8.2``, ``5,120``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _range(value: Sequence[float]) -> str:
    return f"{value[0]:.3f}–{value[1]:.3f}"


def _combination(row: Row, _: str) -> str:
    return name_of(row) + (SAW_LABELS if row.supervised else "")


def _spread(row: Row, measure: str) -> tuple[float, float] | None:
    low, high = row.metrics.get(f"{measure}_min"), row.metrics.get(f"{measure}_max")
    return None if low is None or high is None else (low, high)


def _bytes(name: str) -> Callable[[Row, str], Any]:
    return lambda row, _: row.bytes.get(name)


def _latency(name: str) -> Callable[[Row, str], Any]:
    return lambda row, _: row.latency_ms.get(name)


def _seconds(name: str) -> Callable[[Row, str], Any]:
    return lambda row, _: row.seconds.get(name)


COLUMNS = (
    Column("extractor", lambda row, _: row.title or row.extractor, left=True),
    Column("combination", _combination, left=True),
    Column("{main}", lambda row, measure: row.metrics.get(measure), number(4)),
    Column("95 %", lambda row, measure: row.metrics.get(f"{measure}_ci95"), _range),
    Column("worst–best", _spread, _range),
    Column("{knn}", lambda row, _: row.metrics.get(knn_measure([row])), number(4)),
    Column("memory/item", _bytes("memory_per_item"), few_bytes),
    Column("disk/item", _bytes("disk_per_item"), few_bytes),
    Column("p50 ms", _latency("p50"), number(2)),
    Column("QPS", lambda row, _: row.qps, number(0)),
)
"""What a comparison shows first."""

DETAILS = (
    *COLUMNS[:2],
    Column("bits", lambda row, _: row.bits),
    Column("{main} as returned", lambda row, measure: row.metrics.get(f"{measure}_observed"), number(4)),
    Column("map", lambda row, _: row.metrics.get("map"), number(4)),
    Column("MAP@R", lambda row, _: row.metrics.get("map@r"), number(4)),
    Column("R-precision", lambda row, _: row.metrics.get("r_precision"), number(4)),
    Column("code/item", lambda row, _: bytes_per_item(row), few_bytes),
    Column("memory/item of 1 M", _bytes("memory_per_item_at_million"), few_bytes),
    Column("disk/item of 1 M", _bytes("disk_per_item_at_million"), few_bytes),
    Column("index file", _bytes("backend_file"), size),
    Column("codec state", _bytes("codec_state"), size),
    Column("rescoring store", _bytes("rescore"), size),
    Column("resident", _bytes("resident"), size),
    Column("p95 ms", _latency("p95"), number(2)),
    Column("p99 ms", _latency("p99"), number(2)),
    Column("fit s", _seconds("fit"), number(2)),
    Column("build s", _seconds("build"), number(2)),
)
"""What the page has beside that, folded."""


def text_table(rows: Sequence[Row]) -> str:
    """``COLUMNS`` of ``rows`` (at least one) for a terminal: heads, and a line a row."""
    measure = main_measure(rows)
    lines = [[column.title(rows) for column in COLUMNS]]
    lines += [[column.text(row, measure) for column in COLUMNS] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    parts = zip(COLUMNS, line, widths, strict=True)
    return "  ".join(cell.ljust(w) if column.left else cell.rjust(w) for column, cell, w in parts).rstrip()
