"""The vectors of a collection that was built or pulled here, so that every codec can be compared over them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import InputError
from cbir_faiss.sources._given import item_of
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Floats


class CollectionSource(base.Source):
    """Live items in the order of their ids. Vectors are those that its rescorer keeps, or the codes of a raw
    collection."""

    name: ClassVar[str] = "collection"
    yields: ClassVar[Literal["image", "vector"]] = "vector"

    class Options(base.Options):
        path: RelativePath

    options: Options

    def matrix(self) -> NDArray[Any]:
        """float ``(n, dim)``; memory-mapped where one segment holds them all.

        Raises:
            InputError: the collection keeps nothing but what a codec made of its embeddings.
        """
        store = self._store
        if store.embeddings is None:
            codec = store.manifest.codec.name
            raise InputError(
                f"source 'collection': {self.options.path} keeps what codec '{codec}' made of its embeddings, not these"
            )
        return store.whole(store.embeddings)

    @cached_property
    def _store(self) -> Store:
        return Store.open(self.options.path)

    def _items(self) -> Sequence[base.Item]:
        return self._all

    @cached_property
    def _all(self) -> list[base.Item]:
        # Whoever wants one asks for all: to read the catalogue each time would take minutes for a thousand.
        return [_item(number, record.document) for number, record in self._store.records()]

    def _survey(self) -> str:
        # Another embedding of the same pictures has the same documents.
        return hashlib.sha256(self._store.manifest.model_dump_json().encode()).hexdigest()

    def _place(self) -> str:
        return f"no items in {self.options.path}"

    def _read(self, index: int) -> Floats:
        return np.array(self.matrix()[index], np.float32)

    def _content_key(self, index: int) -> bytes:
        return hashlib.sha256(self._read(index).tobytes()).digest()


def _item(number: int, document: dict[str, Any]) -> base.Item:
    """The item of a document, which may be somebody else's: its path no text, its label no class."""
    try:
        return item_of(document, str(number))
    except InputError:
        return base.Item(str(number), (), document)
