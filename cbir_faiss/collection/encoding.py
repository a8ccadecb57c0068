"""From extracted columns to the blocks that a segment is written from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cbir_faiss.base import Codec, Rescorer, Source
from cbir_faiss.pipeline.extraction import Extraction, Failure
from cbir_faiss.storage.catalogue import Record, document
from cbir_faiss.storage.segment import BLOCK_ROWS, Block
from cbir_faiss.storage.store import Store


@dataclass(frozen=True)
class Encoder:
    """A fitted codec and rescorer: from the extractor's columns to what a segment stores."""

    codec: Codec
    rescorer: Rescorer
    embedding: str
    needs_direction: bool
    """Whether the index compares directions, so that a vector of zeros has no place in it."""

    @classmethod
    def of(cls, store: Store) -> Encoder:
        """That of a collection."""
        manifest, folder = store.manifest, store.folder
        codec: Codec = manifest.codec.load("codecs", folder)
        rescorer: Rescorer = manifest.rescore.load("rescorers", folder)
        return cls(
            codec.restore(folder / "codec.npz"),
            rescorer.restore(folder / "rescore.npz"),
            manifest.embedding,
            _compares_directions(store, codec),
        )

    def blocks(
        self, source: Source, found: Extraction, first_id: int, failed: list[Failure], clock: Clock, added: bool = False
    ) -> Iterator[Block]:
        """The extracted items, ids from ``first_id``. What cannot be indexed is appended to ``failed`` instead."""
        items = source.items()
        for start in range(0, len(found), BLOCK_ROWS):
            place = slice(start, start + BLOCK_ROWS)
            columns, origins = found.block(place), found.origin(place)
            columns = {**columns, "embedding": columns[self.embedding]}
            with clock.phase("encode"):
                codes = self.codec.encode(columns["embedding"])
                packed = self.rescorer.pack(columns)
            records = [
                Record(document(items[row]), origin.stamp, origin.digest, added)
                for row, origin in zip(found.rows[place].tolist(), origins, strict=True)
            ]
            block = Block(np.arange(first_id, first_id + len(codes)), codes, packed, records)
            if self.needs_direction and not codes.any(axis=1).all():
                block = _without_zeros(block, failed)
            first_id += len(block.ids)
            if len(block.ids):
                yield block


def _compares_directions(store: Store, codec: Codec) -> bool:
    if store.engine is not None:
        return store.engine.metric_for(codec.kind) == "cosine"
    return store.make_backend().metric_for(codec.kind) == "cosine"


def _without_zeros(block: Block, failed: list[Failure]) -> Block:
    """The items of a block that have a direction, numbered on from its first id; the others have ``failed``."""
    usable = block.codes.any(axis=1)
    lost = [block.records[i] for i in np.flatnonzero(~usable)]
    failed += [Failure(record.path, "its vector is zero and has no direction", record.stamp) for record in lost]
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
