"""The embeddings as they are: the codec that everything else is compared with."""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.types import Floats, Kind


class Raw(base.Codec):
    """float32 in, the same float32 out."""

    name: ClassVar[str] = "raw"
    kind: ClassVar[Kind] = "float"

    def _fit(self, x: Floats, labels: NDArray[Any] | None) -> None:
        """Nothing to learn."""

    def _project(self, x: Floats) -> Floats:
        return x
