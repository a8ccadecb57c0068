"""One line that names the row to use, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
TOLERANCE = 0.01
"""How much of the measure may be lost before a smaller index is not worth it."""


def main_measure(rows: Sequence[Row]) -> str:
    """The measure that charts and the recommendation are about: map at 5 (or the k nearest to it), else knn_recall."""
    names = [str(name) for name in rows[0]["metrics"] if name.startswith("map@") and name[4:].isdigit()]
    if not names or rows[0]["metrics"][names[0]] is None:
        return next(str(name) for name in rows[0]["metrics"] if name.startswith("knn_recall@"))
    return min(names, key=lambda name: abs(int(name[4:]) - 5))


def bytes_per_item(row: Row) -> float:
    """Bytes of code an item takes in the index."""
    return float(row["bytes"]["codes"]) / int(row["items"])


def is_reference(row: Row) -> bool:
    """Whether a row is raw floats searched exactly: what the others are compared with."""
    return row["codec"] == "raw" and row["bits"] is None and row["exact"] and row["rescore"] == "none"


def recommend(rows: Sequence[Row]) -> tuple[Row, str] | None:
    """The row with the smallest codes among those within ``TOLERANCE`` of the best raw row; None without a raw row.

    Of equals, the one that does without stored floats, then the better one, then the faster one.
    """
    references = [row for row in rows if is_reference(row)]
    if not references:
        return None
    measure = main_measure(rows)
    raw = max(references, key=lambda row: row["metrics"][measure])
    good = [row for row in rows if row["metrics"][measure] >= raw["metrics"][measure] - TOLERANCE]
    # Finer than 0.01 the order that an engine gave its ties decides, so there the faster one is the better one.
    best = min(
        good,
        key=lambda row: (
            bytes_per_item(row),
            row["bytes"]["rescore"],
            -round(row["metrics"][measure], 2),
            row["latency_ms"]["p50"],
        ),
    )
    return best, _sentence(best, raw, measure)


def name_of(row: Row) -> str:
    """Short name of a row for people: ``itq 64 bits, faiss-binary-flat, float rescoring of 100``."""
    metric = "" if row["metric"] == "hamming" else f" {row['metric']}"
    bits = f" {row['bits']} bits" if row["bits"] else ""
    factory = row["options"]["backend"].get("factory")
    search = "".join(f" {key}={value}" for key, value in row["options"]["search"].items())
    rescore = ""
    if row["rescore"] != "none":
        candidates = row["options"]["rescore"].get("candidates")
        rescore = f", {rescoring_of(row)} rescoring of {candidates}"
    return f"{row['codec']}{bits}, {factory or row['backend']}{metric}{search}{rescore}"


def rescoring_of(row: Row) -> str:
    """Name of a row's rescorer with the options that were chosen, but how many candidates: ``relevance t=0.2``."""
    chosen = row.get("chosen", {}).get("rescore", {})  # rows of earlier versions have none
    return " ".join([row["rescore"], *(f"{key}={value}" for key, value in chosen.items() if key != "candidates")])


def _sentence(best: Row, raw: Row, measure: str) -> str:
    value, base = best["metrics"][measure], raw["metrics"][measure]
    if best is raw:
        return (
            f"Keep raw floats ({raw['title']}, {name_of(raw)}): {measure} {base:.3f}, and no smaller index comes "
            f"within {TOLERANCE} of it."
        )
    floats = ""
    if best["bytes"]["rescore"]:
        floats = f" ({best['bytes']['rescore'] / best['items']:,.0f} more an item wait on disk for rescoring)"
    return (
        f"Use {best['title']} with {name_of(best)}: {measure} {value:.3f} against {base:.3f} for raw floats "
        f"({raw['title']}, {raw['backend']}), with {bytes_per_item(best):,.0f} instead of {bytes_per_item(raw):,.0f} "
        f"bytes an item in the index{floats} and {best['latency_ms']['p50']:.2f} instead of "
        f"{raw['latency_ms']['p50']:.2f} ms a query."
    )
