"""A plugin of a stranger's, installed for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cbir_faiss.base import registry


@contextmanager
def installed(place: Path, name: str, code: str, entry_points: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, distribution ``name`` in ``place`` has the module ``<name>_plugin`` and those entry points."""
    metadata = place / f"{name}-1.dist-info"
    metadata.mkdir()
    (place / f"{name}_plugin.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(str(place))
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()
