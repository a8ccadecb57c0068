"""From extracted columns to the blocks that a segment is written from."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Source
from cbir_faiss.pipeline.extraction import Extraction, Failure
from cbir_faiss.pipeline.fit import Fitted, with_direction
from cbir_faiss.sources._given import is_text
from cbir_faiss.storage.catalogue import Record, document
from cbir_faiss.storage.segment import BLOCK_ROWS, Block
from cbir_faiss.types import Metric


def encoded_blocks(
    fitted: Fitted,
    source: Source,
    found: Extraction,
    *,
    metric: Metric | None,
    first_id: int,
    failed: list[Failure],
    clock: Clock,
    added: Container[int] = (),
) -> Iterator[Block]:
    """The extracted items, ids from ``first_id``. What cannot be indexed is appended to ``failed`` instead.

    metric: of the index; one that compares directions has no place for a vector of zeros. added: rows of the source
    that stay when a build's source does not have them.
    """
    items = source.items()
    for start in range(0, len(found), BLOCK_ROWS):
        place = slice(start, start + BLOCK_ROWS)
        columns, origins, rows = found.block(place), found.origin(place), found.rows[place].tolist()
        with clock.phase("encode"):
            codes, packed = fitted.items(columns)
        records = [
            Record(document(items[row]), origin.stamp, origin.digest, row in added)
            for row, origin in zip(rows, origins, strict=True)
        ]
        block = Block(np.arange(first_id, first_id + len(codes)), codes, packed, records)
        texts = np.array([is_text(items[row]) for row in rows], bool)
        block = _only(block, texts, "its label or payload is not Unicode text: a lone surrogate", failed)
        if metric == "cosine":
            block = _only(block, with_direction(block.codes), "its vector is zero and has no direction", failed)
        first_id += len(block.ids)
        if len(block.ids):
            yield block


def _only(block: Block, usable: NDArray[np.bool_], reason: str, failed: list[Failure]) -> Block:
    """The ``usable`` items of a block, numbered on from its first id; the others have ``failed``."""
    if usable.all():
        return block
    lost = [block.records[i] for i in np.flatnonzero(~usable)]
    failed += [Failure(record.path, reason, record.stamp) for record in lost]
    kept = np.flatnonzero(usable)
    return Block(
        block.ids[0] + np.arange(len(kept)),
        block.codes[kept],
        {name: values[kept] for name, values in block.columns.items()},
        [block.records[i] for i in kept],
    )


class Clock:
    """Seconds by phase, also where one phase runs inside another: each second counts once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("load", "extract", "fit", "encode", "store"), 0.0)
        self._began = time.perf_counter()

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)

    def total(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self._began}


class _Phase:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._began, self._before = time.perf_counter(), sum(self._clock.seconds.values())

    def __exit__(self, *_: object) -> None:
        seconds = self._clock.seconds
        inside = sum(seconds.values()) - self._before
        seconds[self._name] += time.perf_counter() - self._began - inside
