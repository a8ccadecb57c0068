"""A text tower that was exported here: from texts to embeddings by ONNX Runtime and ``tokenizers``, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cbir_faiss._lib import threads
from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.extractors._onnx import session
from cbir_faiss.types import Floats

TEXT = "text.onnx"


class TextModel:
    """Embeddings of length 1, float32 ``(n, width)``, of n texts; safe to use from several threads.

    file: takes ``ids`` and, if it needs it, ``mask``, int64 ``(1, length)``; its metadata has the tokenizer.

    Raises:
        ConfigError: the file is absent or no such model.
    """

    def __init__(self, file: Path, device: Literal["cpu", "cuda"] = "cpu") -> None:
        self._session = session(file, device, threads.available())
        self._feed = [value.name for value in self._session.get_inputs()]
        try:
            told = self._session.get_modelmeta().custom_metadata_map.get("tokenizer")
        except UnicodeDecodeError:  # damaged just there
            told = None
        if told is None:
            raise ConfigError(f"{file} is no text tower that was exported here", path="text")
        self._tokenizer = tokenizer_of(told)

    def __call__(self, texts: Sequence[str]) -> Floats:
        # One by one, because most models are given as many tokens as a text has, and a query is one text.
        embeddings: Floats = np.concatenate([self._one(*tokens) for tokens in tokens_of(self._tokenizer, texts)])
        return embeddings

    def _one(self, ids: list[int], mask: list[int]) -> Floats:
        given = {"ids": np.array([ids], np.int64), "mask": np.array([mask], np.int64)}
        embedding: Floats = self._session.run(None, {name: given[name] for name in self._feed})[0]
        return embedding


def tokenizer_of(text: str) -> Any:
    """The ``tokenizers.Tokenizer`` of its JSON. ConfigError where it is none."""
    library = need("tokenizers", "text")
    try:
        return library.Tokenizer.from_str(text)
    except Exception as error:  # its errors have no common base but this
        raise ConfigError(f"its tokenizer cannot be read: {one_line(error)}", path="embed") from error


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Ids and mask of each text."""
    return [(found.ids, found.attention_mask) for found in map(tokenizer.encode, texts)]
