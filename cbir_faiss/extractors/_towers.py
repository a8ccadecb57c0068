"""An extractor of a model with two towers, one for pictures and one for texts, into the same space."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError
from cbir_faiss.extractors import _exports
from cbir_faiss.extractors._models import ModelExtractor, ModelOptions
from cbir_faiss.extractors._text import TEXT, TextModel, tokenizer_of, tokens_of
from cbir_faiss.types import Columns

if TYPE_CHECKING:
    from cbir_faiss.extractors._torch import TextTower

_AGREES = 1e-3  # largest difference between embeddings of length 1
SAMPLES = (
    "a red bus",
    "Zwei Katzen, ein Hund und 3 Vögel (am See)!",
    "it's the dog's life: 100 % fun, isn't it?",
    "東京の夜景",
    "one after the other " * 30,
)
"""Texts by which a tokenizer or a tower is compared with what it was made from."""


class TwoTowerOptions(ModelOptions):
    """embed: ``image+text`` freezes the text tower as well; all embeddings then have length 1."""

    embed: Literal["image", "image+text"] = "image"

    @model_validator(mode="after")
    def _one_space(self) -> TwoTowerOptions:
        if self.embed == "image+text" and self.layer is not None:
            raise ValueError("embed image+text compares what the towers end in: leave layer out")
        return self


class TwoTowerExtractor(ModelExtractor):
    """With ``embed: image+text``, ``embed_text`` and a frozen copy that has it, too."""

    Options: ClassVar[type[TwoTowerOptions]] = TwoTowerOptions
    options: TwoTowerOptions
    free_options: ClassVar[frozenset[str]] = ModelExtractor.free_options | {"model"}

    @property
    def _has_text(self) -> bool:
        return self.options.embed == "image+text"

    @abstractmethod
    def _text_tower(self) -> tuple[TextTower, str]:
        """The tower, and the JSON of the ``tokenizers.Tokenizer`` that pads and cuts texts to its length.

        Raises:
            ConfigError: the model has no text tower, or a tokenizer that cannot be frozen.
        """

    def _space(self, run: Any, tower: Any) -> Any:
        """The columns of ``run``, the picture's ``tower`` up to the common space; with texts, directions in it."""
        from cbir_faiss.extractors._tapped import Directions, Tapped

        layers = dict(zip(self.embeddings, self._layers, strict=True)) if self._layers else {}
        columns = Tapped(run, tower, layers, self.options.pool)
        return Directions(columns) if self._has_text else columns

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """As every network; and the text tower as ``text.onnx``, which needs neither torch nor the library."""
        name, options = super().freeze(folder)
        if not self._has_text:
            return name, options
        if name == self.name:
            return name, {**options, "embed": self.options.embed}
        shutil.copyfile(self._text_file(), folder / TEXT)
        return name, {**options, "text": TEXT}

    def _load(self) -> None:
        super()._load()
        if self._has_text:  # what cannot be frozen is said now, not after hours
            _ = self._text

    @property
    def reads_text(self) -> bool:
        return self._has_text

    def _embed_text(self, texts: Sequence[str]) -> Columns:
        return {"embedding": self._text(texts)} if self._has_text else super()._embed_text(texts)

    @cached_property
    def _text(self) -> TextModel:
        return TextModel(self._text_file())

    def _text_file(self) -> Path:
        """The exported text tower, from the cache or made now."""
        for module, extra in (("onnxruntime", "onnx"), ("tokenizers", "text")):
            need(module, extra)
        key = self._digest_of(self._weights_digest(), runtime="onnx", device="any", part="text")
        return _exports.find(key) or _exports.keep(key, self._export_text)

    def _export_text(self, file: Path) -> None:
        """Short texts are not padded where the tower gives the same for them: that is several times as fast."""
        from cbir_faiss.extractors import _torch

        for module in ("torch", "torchvision"):
            need(module, "torch")
        tower, told = self._text_tower()
        padded, free = tokenizer_of(told), tokenizer_of(told)
        free.no_padding()
        tokens = tokens_of(padded, SAMPLES)
        expected = tower.run(tokens)
        try:
            if not np.allclose(tower.run(tokens_of(free, SAMPLES)), expected, rtol=0, atol=_AGREES / 10):
                raise ConfigError("it needs padding")
            _torch.export_text(tower, free.to_str(), None, file)
            self._check_text(file, expected)
        except Exception:  # towers that are not made for other lengths fail in their own ways
            _torch.export_text(tower, told, len(tokens[0][0]), file)
            self._check_text(file, expected)

    def _check_text(self, file: Path, expected: Any) -> None:
        if not np.allclose(TextModel(file)(SAMPLES), expected, rtol=0, atol=_AGREES):
            raise ConfigError("exported to ONNX, the text tower gives other embeddings", path="embed")
