"""The network that ships with the package: embeddings with no download, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.extractors._onnx import Model, frozen, stored_preprocess
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.types import Columns

FILE = Path(__file__).with_suffix(".onnx")
_DIM = 256


class Compact(base.Extractor):
    """256 dimensions, of length 1, from a small convolutional network of our own, run by ONNX Runtime.

    Trained from random weights by ``cbir train configs/train/compact.yaml`` to give embeddings like MobileNetV2's;
    docs/papers.md says on what, and how good it is.
    """

    name: ClassVar[str] = "compact"
    free_options: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})

    class Options(base.Options):
        """device: where it runs. batch_size: images run at once."""

        device: Literal["cpu", "cuda"] = "cpu"
        batch_size: int = Field(default=32, ge=1)

    options: Options

    @cached_property
    def _model(self) -> Model:
        return Model(FILE, device=self.options.device)

    @cached_property
    def _how(self) -> Preprocess:
        return stored_preprocess(self._model)

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {"embedding": (_DIM, "float32")}

    @property
    def min_side(self) -> int | None:
        return self._how.min_side

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Copies the network, because a later release may ship another."""
        return frozen(FILE, folder, ["embedding"], [], self.options.batch_size, self.name)

    def _load(self) -> None:
        _ = self._how

    def _weights_digest(self) -> str:
        return hashlib.sha256(FILE.read_bytes()).hexdigest()

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        return self._how.pixels(item)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return {"embedding": self._model.run(batch, self.options.batch_size)[0]}
