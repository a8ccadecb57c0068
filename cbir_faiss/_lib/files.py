"""What every room that writes files needs: their digest, and that the disk has them, whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_durably(file: IO[Any]) -> None:
    """Have the disk hold what was written to an open file: a power cut could leave a whole-looking one of zeros."""
    file.flush()
    os.fsync(file.fileno())


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once: a reader sees the old bytes or the new ones, also after a crash."""
    aside = path.with_name(path.name + ".writing")
    with aside.open("wb") as file:
        file.write(content)
        flush_durably(file)
    aside.replace(path)
    sync(path.parent)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; where one may not look, ``Path.is_dir`` raises, and this says no."""
    try:
        return path.is_dir()
    except OSError:
        return False
