"""Signs of the embedding's own dimensions: what vector databases call binary quantization."""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import NDArray

from cbir_faiss.codecs._training import Centred, TrainingOptions
from cbir_faiss.types import Floats, Kind


class Sign(Centred):
    """Bit i is 1 where dimension i is > 0, or above its mean with ``center``; as many bits as dimensions.

    Plain, as the databases do it, it fails on features that are never negative (those behind a ReLU).
    """

    name: ClassVar[str] = "sign"
    kind: ClassVar[Kind] = "binary"

    class Options(TrainingOptions):
        center: bool = False

    @property
    def bits(self) -> int | None:
        return self.dim

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        """The mean is all."""

    def _project(self, x: Floats) -> Floats:
        return self._prepared(x)
