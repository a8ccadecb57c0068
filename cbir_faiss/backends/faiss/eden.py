"""EDEN: a few bits a dimension, rounded as is best for what a random rotation makes of any vector."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cbir_faiss.backends.faiss._lists import Quantized


class FaissEden(Quantized):
    """IndexIVFEDEN (Vargaftik et al. 2022), or IndexEDEN where ``nlist`` is 0.

    Codes take ``dim`` x ``bits`` bits and a scale an item.
    """

    name: ClassVar[str] = "faiss-eden"

    class Options(Quantized.Options):
        bits: int = Field(2, ge=1, le=8, description="bits a dimension")

    def _code(self) -> str:
        return f"EDEN{self.options.bits}"
