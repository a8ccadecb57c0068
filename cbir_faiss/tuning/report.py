"""The page that shows what was tried, what won and why, and how well smaller sizes foretold larger ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cbir_faiss._lib.files import write_durably
from cbir_faiss.report.charts import points_of
from cbir_faiss.report.table import MISSING, few_bytes
from cbir_faiss.storage.files import writing_to
from cbir_faiss.tuning.tune import Tuned, name_of


def write_report(tuned: Tuned, path: Path) -> Path:
    """Write the page at ``path``; returns it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cbir_faiss.tuning"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "bytes": _bytes, "name": name_of}
    page = environment.get_template("tune.html.j2").render(
        tuned=tuned,
        measure=tuned.measure,
        charts=[
            ("against bytes", _chart(tuned, "bytes_per_item", "bytes an item in memory")),
            ("against time", _chart(tuned, "p50_ms", "milliseconds a query (median, one thread)")),
        ]
        if tuned.points
        else [],
        checks=[vars(check) for check in tuned.checks],
    )
    with writing_to(path):
        write_durably(path, page.encode())
    return path


def _chart(tuned: Tuned, axis: str, label: str) -> str:
    """What was measured among all items, and what was predicted from fewer, over bytes or time; and the front."""
    whole = max(point["items"] for point in tuned.points)

    def series(name: str, points: Sequence[Mapping[str, Any]]) -> tuple[str, list[float], list[float]]:
        return name, [point[axis] for point in points], [point[tuned.measure] for point in points]

    kinds = [
        ("measured, meets the targets", [p for p in tuned.points if p["items"] == whole and p["meets"]]),
        ("measured, does not", [p for p in tuned.points if p["items"] == whole and not p["meets"]]),
        ("predicted from fewer items", [p for p in tuned.points if p["items"] < whole]),
    ]
    front = sorted(tuned.front, key=lambda point: float(point[axis]))
    return points_of(
        [series(name, points) for name, points in kinds if points], label, tuned.measure, series("Pareto front", front)
    )


def _number(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def _bytes(value: float | None) -> str:
    return MISSING if value is None else few_bytes(value)
