"""RaBitQ: a few bits a dimension, with distances that are estimated without bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from cbir_faiss.backends.faiss._lists import ProbeOptions, Quantized


class FaissRaBitQ(Quantized):
    """IndexIVFRaBitQ (Gao and Long 2024; several bits: Gao et al. 2025), or IndexRaBitQ where ``nlist`` is 0.

    Codes take ``dim`` x ``bits`` bits and a few bytes of factors an item. Its error bound holds for randomly rotated
    vectors; features of a network need the rotation.
    """

    name: ClassVar[str] = "faiss-rabitq"

    class Options(Quantized.Options):
        former: ClassVar[Mapping[str, str]] = {"nb_bits": "bits"}
        bits: int = Field(1, ge=1, le=9, description="bits a dimension")
        fast_scan: bool | None = Field(
            None, description="codes in the layout that is scanned in registers; None: where there are no lists"
        )

    class SearchOptions(ProbeOptions):
        qb: int = Field(8, ge=0, le=8, description="bits a dimension of the query; 0: as floats, slower")

    def _code(self) -> str:
        chosen, bits = self.options.fast_scan, self.options.bits
        in_registers = self.options.nlist == 0 if chosen is None else chosen
        return f"RaBitQ{'fs' if in_registers else ''}{bits if bits > 1 else ''}"
