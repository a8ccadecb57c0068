"""``report.html``: one self-contained file from a stored comparison; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cbir_faiss.errors import CorruptCollection
from cbir_faiss.report import charts
from cbir_faiss.report.recommend import Row, bytes_per_item, main_measure, name_of, recommend

CHARTS = (
    ("against bits", charts.measure_against_bits),
    ("against bytes", charts.measure_against_bytes),
    ("against latency", charts.measure_against_latency),
    ("Precision–recall", charts.precision_recall),
    ("map against k", charts.map_against_k),
    ("Precision within a Hamming radius", charts.precision_in_radius),
)


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from ``results.json`` and ``gallery.json`` there; returns its path.

    Raises:
        CorruptCollection: there are no results, or they cannot be read.
    """
    results = read_results(folder)
    gallery_file = folder / "gallery.json"
    gallery = json.loads(gallery_file.read_text(encoding="utf-8")) if gallery_file.exists() else []
    page = _page(results, gallery)
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


def _page(results: dict[str, Any], gallery: Sequence[dict[str, Any]]) -> str:
    rows: list[Row] = results["rows"]
    measure = main_measure(rows)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cbir_faiss.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "size": _size}
    found = recommend(rows)
    titles = list(dict.fromkeys(row["title"] for row in rows))
    return environment.get_template("report.html.j2").render(
        environment=results["environment"],
        failed=results.get("failed", []),
        skipped=results.get("skipped", []),
        measure=measure,
        advice=found[1] if found else "",
        rows=[_cells(row, measure, found[0] if found else None) for row in rows],
        overview=rows[0],
        sections=[_section(title, [row for row in rows if row["title"] == title], measure) for title in titles],
        gallery=gallery,
        knn=next((name for name in rows[0]["metrics"] if name.startswith("knn_recall@")), ""),
    )


def _section(title: str, rows: Sequence[Row], measure: str) -> dict[str, Any]:
    drawn = [(f"{measure} {name}" if name.startswith("against") else name, draw(rows)) for name, draw in CHARTS]
    return {"title": title, "charts": [(name, svg) for name, svg in drawn if svg]}


def _cells(row: Row, measure: str, best: Row | None) -> dict[str, Any]:
    metrics = row["metrics"]
    return {
        "row": row,
        "name": name_of(row),
        "value": metrics[measure],
        "low": metrics.get(f"{measure}_min"),
        "high": metrics.get(f"{measure}_max"),
        "interval": metrics.get(f"{measure}_ci95"),
        "observed": metrics.get(f"{measure}_observed"),
        "knn": next((value for name, value in metrics.items() if name.startswith("knn_recall@")), None),
        "bytes": bytes_per_item(row),
        "per_million": bytes_per_item(row) * 1e6,
        "chosen": row is best,
        "health": _flat(row.get("codes") or {}),
    }


def _flat(health: dict[str, Any]) -> dict[str, Any]:
    """Figures of whole codes, and of their prefix under ``prefix …``."""
    inner = {
        f"{key} {name}": value for key, part in health.items() if isinstance(part, dict) for name, value in part.items()
    }
    return {key: value for key, value in health.items() if not isinstance(value, dict)} | inner


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _size(value: float | None) -> str:
    """Bytes for people."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.2f} GB"
