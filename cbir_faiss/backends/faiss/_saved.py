"""Files that belong together in one folder: written durably, with a size and a digest of each in the last one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cbir_faiss._lib.files import sha256_of, sync
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import CorruptCollection

FORMAT = 1
_HEAD = "rows.npz"


def publish(part: Path, path: Path) -> dict[str, Any]:
    """Make ``part`` durable and rename it to ``path``, so that a file that is mapped there stays whole."""
    sync(part)
    described = {"size": part.stat().st_size, "sha256": sha256_of(part)}
    part.replace(path)
    return described


def write_head(folder: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """The file that vouches for the others, written last; then the folder itself is made durable."""
    part = folder / f"{_HEAD}.part"
    write_state(part, {"format": FORMAT, **meta}, arrays)
    publish(part, folder / _HEAD)
    sync(folder)


def read_head(folder: Path, *, whole: bool) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What ``write_head`` wrote, the other files checked by size and, where ``whole``, by digest.

    Raises:
        CorruptCollection: a file is missing, cut short, altered or of another format.
    """
    meta, arrays = read_state(folder / _HEAD)
    if meta.get("format") != FORMAT:
        raise CorruptCollection(f"{folder}: format {meta.get('format')}, this version reads {FORMAT}")
    for name, expected in meta["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != expected["size"]:
            raise CorruptCollection(f"{path}: {'missing' if size is None else f'{size} bytes'}, not {expected['size']}")
        if whole and sha256_of(path) != expected["sha256"]:
            raise CorruptCollection(f"{path}: altered: its content does not have the digest written with it")
    return meta, arrays
