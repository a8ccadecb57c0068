"""Vectors as they come: the extractor of sources that hold no images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.errors import DimensionMismatch, InputError
from cbir_faiss.types import Columns


class Vectors(base.Extractor):
    """float32 in, the same float32 out. The width is that of the first vector, unless ``dim`` says it."""

    name: ClassVar[str] = "vectors"
    reads: ClassVar[Literal["image", "vector"]] = "vector"
    free_options: ClassVar[frozenset[str]] = frozenset({"dim"})

    class Options(base.Options):
        """dim: the width, where it is to be known (and checked) before the first vector."""

        dim: int | None = Field(None, ge=1)

    options: Options

    def _setup(self) -> None:
        self._dim = self.options.dim

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        if self._dim is None:
            raise InputError("extractor 'vectors': the width is not known before the first vector; option dim gives it")
        return {"embedding": (self._dim, "float32")}

    @property
    def embeddings(self) -> tuple[str, ...]:
        return ("embedding",)

    def _prepare(self, item: Any) -> NDArray[Any]:
        vector = np.asarray(item)
        if vector.ndim != 1 or vector.dtype.kind not in "fiu":
            raise InputError(f"extractor 'vectors' takes one vector (dim,), got {vector.dtype} {vector.shape}")
        if self._dim is None:
            self._dim = len(vector)
        if len(vector) != self._dim:
            raise DimensionMismatch(f"extractor 'vectors' takes vectors of {self._dim} dimensions, got {len(vector)}")
        return vector.astype(np.float32, copy=False)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        if self._dim is None and batch.ndim == 2:
            self._dim = batch.shape[1]
        return {"embedding": batch.astype(np.float32, copy=False)}
