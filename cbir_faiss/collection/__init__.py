"""Collections: built, opened, searched, changed, and kept equal elsewhere.

Names are loaded when they are first used: the modules of this room do not need each other to be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbir_faiss.collection.collection import Collection, Match
    from cbir_faiss.collection.writing import Added

__all__ = ["Added", "Collection", "Match"]

_HOMES = {"Added": "writing", "Collection": "collection", "Match": "collection"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cbir_faiss.collection' has no attribute '{name}'")
    return getattr(importlib.import_module(f"cbir_faiss.collection.{_HOMES[name]}"), name)
