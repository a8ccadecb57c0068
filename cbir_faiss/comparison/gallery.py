"""Pictures of what was found: some queries, the raw index beside a binary one, hits and misses marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.errors import BadImage
from cbir_faiss.images.reading import data_uri
from cbir_faiss.report.row import Row, is_reference, main_measure, name_of

QUERIES = 8
SHOWN = 5
THUMBNAIL = 96


def make_gallery(
    split: Split, rows: Sequence[Row], folder: Path, recommended: Row | None = None
) -> dict[str, Any] | None:
    """The top hits of a few queries by the raw row and by the recommended (else the best) binary row of ``split``.

    The best is one that saw no labels of the database, where there is one. ``folder`` is where the rows' neighbours are
    stored. None where there are no pictures, or not both kinds of row with neighbours.
    """
    stored = [row for row in rows if row.raw is not None]
    raw = next((row for row in stored if is_reference(row)), None)
    binary = [row for row in stored if row.codec != "raw" and row.bits]
    if raw is None or not binary or not split.queries.places or split.queries.places[0][0].yields != "image":
        return None
    sides = [(name_of(row), _ids(folder / str(row.raw))) for row in (raw, _binary(binary, recommended))]
    picked = np.unique(np.linspace(0, len(split.queries) - 1, QUERIES + 2).astype(int)[1:-1])
    return {
        "title": split.title,
        "names": [name for name, _ in sides],
        "queries": [
            {**_picture(split.queries, int(q)), "found": [_found(split, int(q), ids[q]) for _, ids in sides]}
            for q in picked
        ],
    }


def _ids(file: Path) -> NDArray[np.int64]:
    with np.load(file) as stored:
        ids: NDArray[np.int64] = stored["ids"]
    return ids


def _binary(rows: Sequence[Row], recommended: Row | None) -> Row:
    if recommended is not None and any(row is recommended for row in rows):
        return recommended
    measure = main_measure(rows)
    return max(rows, key=lambda row: (not row.supervised, row.metrics[measure], -(row.bits or 0)))


def _found(split: Split, query: int, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
    wanted = set(split.queries.labels[query])
    items = split.items
    counted = [i for i in ids.tolist() if i >= 0 and not (items.ignored and wanted & set(items.ignored[i]))]
    return [{**_picture(items, i), "hit": bool(wanted & set(items.labels[i]))} for i in counted[:SHOWN]]


def _picture(side: Side, row: int) -> dict[str, Any]:
    source, index = side.places[row]
    label = ", ".join(side.labels[row])
    try:
        image = source.read(index)
    except BadImage:  # it was there when it was indexed
        return {"image": "", "label": label, "path": side.paths[row]}
    return {"image": data_uri(image, THUMBNAIL), "label": label, "path": side.paths[row]}
