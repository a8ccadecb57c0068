"""How large an index of so many items will be, from a small one of the same structure."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss.base import Backend
from cbir_faiss.config import Choice
from cbir_faiss.pipeline.fill import fill
from cbir_faiss.storage.files import bytes_of
from cbir_faiss.tuning.predict import Bytes
from cbir_faiss.types import Codes, Kind, Payload

ROWS = 2_000
FULL = 40
"""Items a list, so that what a list is rounded up to does not count."""
TAUGHT = 1_100
"""Enough to learn from for the size to be right: as many as a code has bits."""
Documents = Callable[[int], Payload]


def learnt_from(choice: Choice, items: int, rows: int = ROWS) -> int:
    """How many codes ``index_bytes`` has to be given."""
    lists: int = choice.plugin().lists(choice.options, items)
    return 2 * max(rows, lists)


def index_bytes(
    choice: Choice,
    codes: Codes,
    kind: Kind,
    items: int,
    place: Path,
    *,
    rows: int = ROWS,
    documents: Documents | None = None,
) -> Bytes:
    """Bytes of the files of an index of ``items``: those of each, and those that are there once.

    An index of few lists is filled with ``rows`` and with twice as many: what it grows by is of the items, what is over
    is what lists are rounded up to. An empty one with the lists of so many items has what is there once.

    Args:
        codes: ``(n, width)`` of what will be stored, ``learnt_from`` of them. place: a folder for its files, removed.
        documents: of an item by its number, for an index that keeps them itself.
    """
    plugin, options = choice.plugin(), choice.options
    lists = plugin.lists(options, items)
    few = min(lists, max(1, rows // FULL))

    def sizes(chosen: Mapping[str, Any], *counts: int) -> list[int]:
        learnt = codes[: max(TAUGHT, 2 * plugin.lists(chosen, items))]
        return _sizes(choice.make(**chosen), codes, learnt, kind, counts, place, documents)

    if lists <= few:
        some, more = sizes(options, rows, 2 * rows)
        return Bytes((more - some) / rows, 2 * some - more)
    empty, some, more = sizes(plugin.with_lists(options, few), 0, rows, 2 * rows)
    (once,) = sizes(plugin.with_lists(options, lists), 0)
    over = some - empty - (more - some)
    return Bytes((more - some) / rows, once + over * lists / few)


def _sizes(
    backend: Backend,
    codes: Codes,
    learnt: Codes,
    kind: Kind,
    counts: tuple[int, ...],
    place: Path,
    documents: Documents | None,
) -> list[int]:
    """Bytes of what is saved of ever more items."""
    found, before = [], 0
    try:
        for count in counts:
            ids = np.arange(before, count)
            told = None if documents is None or backend.filters_ids else [documents(i) for i in ids.tolist()]
            part = [(ids, codes[before:count], told)]
            width = codes.shape[1] * (8 if kind == "binary" else 1)
            fill(backend, part, kind=kind, width=width, sample=lambda: learnt)
            backend.save(place)
            found.append(folder_bytes(place))
            before = count
    finally:
        backend.close()
        shutil.rmtree(place, ignore_errors=True)
    return found


def folder_bytes(folder: Path) -> int:
    """Of all files in ``folder`` and below."""
    return sum(bytes_of(path for path in folder.rglob("*") if path.is_file()).values())
