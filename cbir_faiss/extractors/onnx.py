"""Any ONNX model file: CLIP, DINO, a network of one's own, or an extractor that was frozen into a collection."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.extractors._onnx import Model
from cbir_faiss.extractors._text import TEXT, TextModel
from cbir_faiss.images.preprocess import Preprocess, spatial_pool
from cbir_faiss.types import Columns


class OnnxPreprocess(Preprocess):
    """As ``Preprocess``, and: scale: what pixels are multiplied by before mean and std. layout: of the model's input.

    A model whose input is uint8 is fed the pixels as they are, without scale, mean and std.
    """

    scale: float = Field(default=1 / 255, gt=0)
    layout: Literal["nchw", "nhwc"] = "nchw"


class Onnx(base.Extractor):
    """Runs a model on prepared images; each named output is pooled to a vector.

    One output is the column ``embedding``; several are columns by their own names, each an embedding. ``side`` outputs
    are columns by their own names for whoever asks for them, such as a rescorer.
    """

    name: ClassVar[str] = "onnx"
    free_options: ClassVar[frozenset[str]] = frozenset({"model", "text", "batch_size", "made_by"})

    class Options(base.Options):
        """model: the file. input: its image input, the first where left out. outputs: one or several, the first where
        left out. side: outputs that are not embeddings. pool: how maps ``(n, c, h, w)`` and sequences ``(n, t, c)``
        become vectors. batch_size: images run at once; a model with a fixed batch keeps its own. made_by:
        for whoever asks, the extractor that this one was frozen from, and the runtime that it had. text: the text tower
        that was frozen beside it, which carries its tokenizer."""

        model: RelativePath
        input: str | None = None
        outputs: tuple[str, ...] = ()
        side: tuple[str, ...] = ()
        preprocess: OnnxPreprocess = OnnxPreprocess()
        pool: Literal["avg", "max", "gem", "flatten"] = "avg"
        device: Literal["cpu", "cuda"] = "cpu"
        batch_size: int = Field(32, ge=1)
        made_by: str | None = None
        text: RelativePath | None = None

        @model_validator(mode="after")
        def _side_beside(self) -> Onnx.Options:
            if self.side and not self.outputs:
                raise ValueError("side needs outputs, too: which output is the embedding")
            return self

    options: Options

    @cached_property
    def _loaded(self) -> tuple[Model, dict[str, int]]:
        """The model, and the width of each column, found by running it once."""
        o = self.options
        model = Model(o.model, feed=o.input, outputs=(*o.outputs, *o.side), device=o.device)
        try:
            columns = self._columns(model, np.zeros((1, *o.preprocess.size, 3), np.uint8))
        except InputError as error:
            raise ConfigError(f"the model does not take images prepared like this: {error}") from error
        return model, {name: column.shape[1] for name, column in columns.items()}

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {name: (width, "float32") for name, width in self._loaded[1].items()}

    @property
    def embeddings(self) -> tuple[str, ...]:
        return tuple(name for name in self.outputs if name not in self.options.side)

    @property
    def min_side(self) -> int | None:
        return self.options.preprocess.min_side

    @property
    def reads_text(self) -> bool:
        return self.options.text is not None

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        for file in _files(self.options.model):
            shutil.copyfile(file, folder / file.name)
        options = {**self.options.model_dump(mode="json"), "model": self.options.model.name}
        if self.options.text is not None:
            shutil.copyfile(self.options.text, folder / TEXT)
            options["text"] = TEXT
        return self.name, options

    def _load(self) -> None:
        _ = self._loaded

    def _weights_digest(self) -> str:
        digest = hashlib.sha256()
        text = [] if self.options.text is None else [self.options.text]
        for file in [*_files(self.options.model), *text]:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        return self.options.preprocess.pixels(item)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return self._columns(self._loaded[0], batch)

    @cached_property
    def _text(self) -> TextModel | None:
        return None if self.options.text is None else TextModel(self.options.text, self.options.device)

    def _embed_text(self, texts: Sequence[str]) -> Columns:
        if self._text is None:
            return super()._embed_text(texts)
        name = self.options.outputs[0] if len(self.options.outputs) > 1 else "embedding"
        return {name: self._text(texts)}

    def _columns(self, model: Model, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        how = self.options.preprocess
        x = batch if model.dtype == np.uint8 else how.normalise(batch, how.scale)
        x = x.transpose(0, 3, 1, 2) if how.layout == "nchw" else x
        embeddings = model.outputs[: len(model.outputs) - len(self.options.side)]
        names = [*(embeddings if len(embeddings) > 1 else ["embedding"]), *self.options.side]
        results = model.run(x, self.options.batch_size)
        for name, result in zip(model.outputs, results, strict=True):
            if result.ndim not in (2, 3, 4):
                raise ConfigError(
                    f"'{name}' is {result.dtype} {result.shape}, not vectors, tokens or maps", path="outputs"
                )
        return {name: spatial_pool(x, self.options.pool) for name, x in zip(names, results, strict=True)}


def _files(model: Path) -> list[Path]:
    """The model and what is stored beside it: large weights lie in ``<model>.data`` or ``<model>_data``."""
    if not model.is_file():
        raise ConfigError(f"no such file: {model}", path="model")
    return [model, *(p for p in (model.with_name(model.name + end) for end in (".data", "_data")) if p.is_file())]
