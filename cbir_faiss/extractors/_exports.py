"""Exported networks in the cache folder, named by what was exported, by which releases, and by their own bytes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cbir_faiss.errors import ConfigError
from cbir_faiss.pipeline.cache import default_cache

_EXPORT = "2"  # part of the names: to be raised when what is exported changes
_EXPORTERS = ("torch", "torchvision", "onnx", "onnxscript")
_DIGITS = 24


def find(key: str) -> Path | None:
    """The export that is kept for ``key``. A damaged one is removed, to be made again."""
    for file in sorted(_folder().glob(f"{key[:_DIGITS]}-{_releases() or '*'}-*.onnx")):
        if file.stem.endswith(_digest(file.read_bytes())):
            return file
        file.unlink(missing_ok=True)
    return None


def keep(key: str, export: Callable[[Path], None]) -> Path:
    """What ``export`` writes, kept for ``key``; where it raises, nothing is.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, because several processes may do this at once.
        with tempfile.TemporaryDirectory(dir=_folder()) as aside:
            file = Path(aside, "model.onnx")
            export(file)
            name = f"{key[:_DIGITS]}-{_releases()}-{_digest(file.read_bytes())}.onnx"
            return file.replace(_folder() / name)
    except OSError as error:
        raise ConfigError(
            f"cannot keep an exported network in {_folder()}: {error.strerror}", path="runtime"
        ) from error


def _folder() -> Path:
    return default_cache() / "onnx"


def _releases() -> str:
    """A digest of the releases that export; nothing without torch, where the work of any release will do."""
    try:
        return _digest(" ".join([_EXPORT, *(version(name) for name in _EXPORTERS)]).encode())
    except PackageNotFoundError:
        return ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
