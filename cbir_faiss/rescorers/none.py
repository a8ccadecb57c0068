"""No rescoring: the hits of the first stage as they are."""

from __future__ import annotations

from typing import ClassVar

from cbir_faiss import base
from cbir_faiss.types import Columns, Hits


class NoRescorer(base.Rescorer):
    """The identity, so that comparing with and without a second stage is a loop without branches."""

    name: ClassVar[str] = "none"

    def _rescore(self, queries: Columns, hits: Hits, fetch: base.Fetch) -> Hits:
        return hits
