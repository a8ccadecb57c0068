"""Signs of the embedding's own dimensions: what vector databases call binary quantization."""

from __future__ import annotations

from typing import ClassVar

from cbir_faiss.codecs._training import OneBitEach
from cbir_faiss.types import Floats, Kind


class Sign(OneBitEach):
    """Bit i is 1 where dimension i is > 0, or above its mean with ``center``; as many bits as dimensions.

    Plain, as the databases do it, it fails on features that are never negative (those behind a ReLU).
    """

    name: ClassVar[str] = "sign"
    kind: ClassVar[Kind] = "binary"

    def _project(self, x: Floats) -> Floats:
        return self._prepared(x)
