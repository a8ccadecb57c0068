"""Pictures of what was found: some queries, and the first hits of every row, so that a report can show any two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.errors import BadImage
from cbir_faiss.images.reading import data_uri
from cbir_faiss.report.row import Row

QUERIES = 8
SHOWN = 5
THUMBNAIL = 96


def make_gallery(split: Split, rows: Sequence[Row], folder: Path) -> dict[str, Any] | None:
    """The top hits of a few queries by each row of ``split``, as ``report.gallery`` reads them.

    ``folder`` is where the rows' neighbours are stored. None where no row has any, or the items are no pictures. An
    item that several rows or queries found is there once, under ``pictures``; ``found`` has its place there and whether
    it is right, by the file of the row's neighbours.
    """
    stored = [row.raw for row in rows if row.raw is not None]
    if not stored or not split.queries.places or split.queries.places[0][0].yields != "image":
        return None
    picked = np.unique(np.linspace(0, len(split.queries) - 1, QUERIES + 2).astype(int)[1:-1]).tolist()
    found = {raw: _found(split, picked, _ids(folder / raw)) for raw in stored}
    shown = sorted({item for of_query in found.values() for hits in of_query for item, _ in hits})
    places = {item: place for place, item in enumerate(shown)}
    return {
        "title": split.title,
        "pictures": [_picture(split.items, item) for item in shown],
        "queries": [
            {
                **_picture(split.queries, query),
                "found": {raw: [[places[item], hit] for item, hit in found[raw][number]] for raw in stored},
            }
            for number, query in enumerate(picked)
        ],
    }


def _ids(file: Path) -> NDArray[np.int64]:
    with np.load(file) as stored:
        ids: NDArray[np.int64] = stored["ids"]
    return ids


def _found(split: Split, queries: Sequence[int], ids: NDArray[np.int64]) -> list[list[tuple[int, bool]]]:
    """Of each of ``queries`` the first hits that count, and whether they are right."""
    items, out = split.items, []
    for query in queries:
        wanted = set(split.queries.labels[query])
        counted = [i for i in ids[query].tolist() if i >= 0 and not (items.ignored and wanted & set(items.ignored[i]))]
        out.append([(i, bool(wanted & set(items.labels[i]))) for i in counted[:SHOWN]])
    return out


def _picture(side: Side, row: int) -> dict[str, Any]:
    source, index = side.places[row]
    label = ", ".join(side.labels[row])
    try:
        image = source.read(index)
    except BadImage:  # it was there when it was indexed
        return {"image": "", "label": label, "path": side.paths[row]}
    return {"image": data_uri(image, THUMBNAIL), "label": label, "path": side.paths[row]}
