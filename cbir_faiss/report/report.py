"""``report.html``: one self-contained file from a stored comparison; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cbir_faiss.errors import CorruptCollection
from cbir_faiss.report import charts
from cbir_faiss.report.gallery import Stored, galleries_of
from cbir_faiss.report.row import Row, is_reference, main_measure, name_of, rows_of
from cbir_faiss.report.table import COLUMNS, DETAILS, MISSING, Column

CHARTS = (
    ("against bits", charts.measure_against_bits),
    ("against bytes", charts.measure_against_bytes),
    ("against latency", charts.measure_against_latency),
    ("Precision–recall", charts.precision_recall),
    ("map against k", charts.map_against_k),
    ("Precision within a Hamming radius", charts.precision_in_radius),
)


def write_report(folder: Path, gallery: Sequence[str] | None = None) -> Path:
    """Write ``folder/report.html`` from ``results.json`` and ``gallery.json`` there; returns its path.

    ``gallery``: the two rows of which pictures are shown, each by its number or its name in the table.

    Raises:
        CorruptCollection: there are no results, or they cannot be read.
        InputError: rows of the gallery that are not there.
    """
    results = read_results(folder)
    gallery_file = folder / "gallery.json"
    stored = json.loads(gallery_file.read_text(encoding="utf-8")) if gallery_file.exists() else []
    page = _page(results, stored, gallery)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_results(folder: Path) -> dict[str, Any]:
    """The stored comparison of a folder.

    Raises:
        CorruptCollection: ``results.json`` is missing, not JSON, or without rows.
    """
    path = folder / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptCollection(f"{path}: not the results of a comparison ({error})") from error
    if not results.get("rows"):
        raise CorruptCollection(f"{path}: holds no rows")
    return results


def _page(results: dict[str, Any], galleries: Sequence[Stored], gallery: Sequence[str] | None) -> str:
    rows = rows_of(results["rows"])
    measure = main_measure(rows)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cbir_faiss.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    advice = results.get("recommendation") or {}  # what was decided when the rows had the values of every query
    recommended = rows[advice["row"]] if advice else None
    titles = list(dict.fromkeys(row.title for row in rows))
    return environment.get_template("report.html.j2").render(
        environment=results["environment"],
        failed=results.get("failed", []),
        skipped=results.get("skipped", []),
        measure=measure,
        advice=advice,
        asked=_asked(rows),
        tables=[_table(columns, rows, measure, recommended) for columns in (COLUMNS, DETAILS)],
        rows=len(rows),
        overview=rows[0],
        differences=results.get("differences"),
        names=[f"{number}. {row.title} {name_of(row)}" for number, row in enumerate(rows, 1)],
        details=_details(rows, measure, recommended),
        health=[(row.title, name_of(row), _flat(row.codes)) for row in rows if row.codes and row.rescore == "none"],
        sections=[_section(title, [row for row in rows if row.title == title], measure) for title in titles],
        gallery=galleries_of(galleries, rows, recommended, gallery),
    )


def _details(rows: Sequence[Row], measure: str, recommended: Row | None) -> dict[str, Any] | None:
    """Classes and worst queries of raw floats, where they were measured, and of the recommended row beside them, else
    of the best; None where no row has any."""
    known = [row for row in rows if row.classes]
    raw = next((row for row in known if is_reference(row)), None)
    others = [row for row in known if row is not raw and (raw is None or row.classes.keys() == raw.classes.keys())]
    best = max(others, key=lambda row: (row is recommended, row.metrics[measure]), default=None)
    shown = [row for row in (raw, best) if row is not None]
    if not shown:
        return None
    classes = [
        (label, count, [row.classes[label][1] for row in shown]) for label, (count, _) in shown[0].classes.items()
    ]
    return {
        "names": [f"{row.title} {name_of(row)}" for row in shown],
        "classes": sorted(classes, key=lambda line: line[2][-1]),
        "worst": [row.worst for row in shown],
    }


def _section(title: str, rows: Sequence[Row], measure: str) -> dict[str, Any]:
    drawn = [(f"{measure} {name}" if name.startswith("against") else name, draw(rows)) for name, draw in CHARTS]
    return {"title": title, "charts": [(name, svg) for name, svg in drawn if svg]}


def _table(columns: Sequence[Column], rows: Sequence[Row], measure: str, chosen: Row | None) -> dict[str, Any]:
    """Heads and cells for the page, and which line is the recommended one."""
    lines = [[(c.text(row, measure), c.key(row, measure), c.left) for c in columns] for row in rows]
    return {
        "heads": [(c.title(rows), c.left) for c in columns],
        "lines": lines,
        "chosen": next((i for i, row in enumerate(rows) if row is chosen), None),
    }


def _asked(rows: Sequence[Row]) -> str:
    """How many hits and threads the times are of; empty for stored rows that do not say."""
    told = []
    for place, one, several in (("k", "hit", "hits"), ("threads", "thread", "threads")):
        numbers = sorted({row.latency_ms[place] for row in rows if row.latency_ms[place] is not None})
        if numbers:
            told.append(f"{' or '.join(map(str, numbers))} {one if numbers == [1] else several}")
    return ", ".join(told)


def _flat(health: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of whole codes, and of their prefix under ``prefix …``."""
    inner = {
        f"{key} {name}": value for key, part in health.items() if isinstance(part, dict) for name, value in part.items()
    }
    return {key: value for key, value in health.items() if not isinstance(value, dict)} | inner


def _number(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"
