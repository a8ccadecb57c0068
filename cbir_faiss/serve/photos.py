"""From a folder of photos to its collection: built with the defaults, or brought up to what the folder has become."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cbir_faiss.collection.build import BuildReport
from cbir_faiss.collection.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.storage.manifest import CURRENT, read_manifest


def collection_of(photos: Path) -> Path:
    """Where the collection of a folder is: beside it, or with the user's data where that cannot be written."""
    photos = photos.resolve()
    beside = photos.with_name(photos.name + ".cbir")
    if (beside / CURRENT).exists() or os.access(photos.parent, os.W_OK):
        return beside
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    digest = hashlib.sha256(os.fsencode(photos)).hexdigest()[:8]
    return Path(home, "cbir_faiss", f"{photos.name}-{digest}.cbir")


def follow(
    photos: Path, defaults: Callable[[Path], Mapping[str, Any]], progress: Progress | None = None
) -> tuple[Path, BuildReport]:
    """The collection of a folder of photos, with what has come added and what has gone dropped; where there is none, it
    is built as ``defaults(photos)`` says.

    Raises:
        CbirError: the folder has no photo that can be used, or its collection is of another folder.
    """
    photos, out = photos.resolve(), collection_of(photos)
    if (out / CURRENT).exists():
        manifest = read_manifest(out)
        if manifest.root != str(photos):
            raise CbirError(f"{out} is the collection of {manifest.root}: serve that, or move it away to build anew")
        config = parse_config(manifest.config)
    else:
        config = parse_config(defaults(photos))
    with Collection.build(config, out, progress=progress) as collection:
        assert collection.report is not None
        return out, collection.report
