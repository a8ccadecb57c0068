"""What a killed build runs in a process of its own; it must be importable there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.pipeline import cache


def build(document: dict[str, Any], out: Path, cache_folder: Path) -> None:
    """A build whose shards are written at once, so that there is something to go on from."""
    os.environ["OMP_NUM_THREADS"] = "1"
    cache.SHARD_SECONDS = 0.02
    Collection.build(parse_config(document), out, cache=cache_folder).close()


def add(out: Path, pictures: Path, cache_folder: Path) -> None:
    """Add a folder of pictures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with Collection.open(out) as collection:
        collection.add([pictures], cache=cache_folder)


def delete(out: Path, where: str) -> None:
    """Delete what a filter matches."""
    with Collection.open(out) as collection:
        collection.delete(where=where)
