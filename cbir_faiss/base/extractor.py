"""From images to named columns."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.plugin import Plugin
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.types import Columns


class Extractor(Plugin):
    """Turns images (or ready vectors) into named columns, one or more of which are embeddings."""

    reads: ClassVar[Literal["image", "vector"]] = "image"
    free_options: ClassVar[frozenset[str]] = frozenset()
    """Options that do not decide the output: a batch size, or a path whose bytes are in ``_weights_digest``."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        """Width and dtype of every column, by name; the first is the default embedding."""

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The columns that are embeddings, to be compared one by one; the others are side columns."""
        return (next(iter(self.outputs)),)

    @property
    def min_side(self) -> int | None:
        """Pixels of a picture's shorter side beyond which it need not be decoded; None: all of them count."""
        return getattr(self, "enough", None)  # its name in 0.1, which extractors of others may define

    @property
    def reads_text(self) -> bool:
        """Whether ``embed_text`` has a tower that texts go to; said without loading it."""
        return type(self)._embed_text is not Extractor._embed_text

    @property
    def supervised(self) -> bool:
        """Whether it learned from labels that items of a database may have, so that it has seen answers."""
        return False

    def load(self) -> None:
        """Load the model and its libraries now; otherwise the first use does."""
        self._load()

    def prepare(self, item: Any) -> NDArray[Any]:
        """One image (RGB ``PIL.Image``) or vector, ready for the model. Thread-safe; equal shapes batch together."""
        return self._prepare(item)

    def extract(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Columns, each ``(n, width)``, of a stack of n prepared items.

        Raises:
            InputError: the batch is empty, or the plugin broke its own declaration.
        """
        if len(batch) == 0:
            raise InputError(f"extractor '{self.name}': an empty batch")
        columns = self._extract(batch)
        for name, (width, dtype) in self.outputs.items():
            got = columns.get(name)
            if got is None or got.shape != (len(batch), width) or got.dtype != np.dtype(dtype):
                met = "nothing" if got is None else f"{got.dtype} {got.shape}"
                raise InputError(
                    f"extractor '{self.name}': column '{name}' should be {dtype} ({len(batch)}, {width}), got {met}"
                )
        return {name: np.ascontiguousarray(columns[name]) for name in self.outputs}

    def embed_text(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The embedding of each text, float32 ``(n, width)``, in the space of the pictures' first embedding, under
        that column's name.

        Raises:
            Unsupported: the model has no text tower. InputError: no texts, or one that says nothing.
        """
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts are a list of texts, with at least one")
        for text in texts:
            if not text.strip() or (not text.isascii() and text != text.encode(errors="ignore").decode()):
                raise InputError(f"{text!r} is no text to search by")
        return dict(self._embed_text(texts))

    def __call__(self, items: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Columns of a few images or vectors: ``prepare`` each, then ``extract``."""
        return self.extract(np.stack([self.prepare(item) for item in items]))

    def fingerprint(self) -> str:
        """A digest of all that decides the output: plugin, options, weights. A collection knows its extractor by it."""
        return self._digest_of(self._weights_digest())

    def cache_key(self) -> str:
        """What keys the embedding cache: the fingerprint, unless the last digits depend on what is installed."""
        return self.fingerprint()

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Write what is needed to extract without the original weights; returns plugin name and options that
        reproduce this extractor, with file options relative to ``folder``."""
        return self.name, self.options.model_dump(mode="json")

    def _digest_of(self, weights: str, **changed: Any) -> str:
        options = self.options.model_dump(mode="json", exclude=set(self.free_options)) | changed
        text = json.dumps([self.name, options, weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _load(self) -> None:
        """Nothing to load."""

    def _weights_digest(self) -> str:
        return ""

    def _embed_text(self, texts: Sequence[str]) -> Columns:
        raise Unsupported(
            f"extractor '{self.name}' has no text tower: a collection is searched by text where it was built with "
            "'embed: image+text', which open_clip and transformers have"
        )

    @abstractmethod
    def _prepare(self, item: Any) -> NDArray[Any]: ...
    @abstractmethod
    def _extract(self, batch: NDArray[Any]) -> Columns: ...
