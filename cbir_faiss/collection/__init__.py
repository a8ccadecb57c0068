"""Collections: built, opened, searched, changed, and kept equal elsewhere."""

from __future__ import annotations

from cbir_faiss.collection.collection import Added, Collection, Match

__all__ = ["Added", "Collection", "Match"]
