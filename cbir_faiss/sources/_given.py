"""Vectors that are in memory already, each with its document."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from cbir_faiss import base
from cbir_faiss.errors import InputError
from cbir_faiss.types import Floats


class Given(base.Source):
    """Rows of float32 ``(n, dim)``. A document's ``path`` and ``label`` are those of the item, the rest is payload."""

    name: ClassVar[str] = "given"
    yields: ClassVar[Literal["image", "vector"]] = "vector"

    def __init__(self, vectors: Floats, documents: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self._vectors = vectors
        self._all = [item_of(document) for document in documents]
        for row, item in enumerate(self._all):
            if not is_text(item):
                raise InputError(f"document {row} is not Unicode text: it holds a lone surrogate")

    def matrix(self) -> Floats:
        """All of them."""
        return self._vectors

    def _items(self) -> Sequence[base.Item]:
        return self._all

    def _read(self, index: int) -> Floats:
        vector: Floats = self._vectors[index]
        return vector

    def _content_key(self, index: int) -> bytes:
        return hashlib.sha256(self._vectors[index].tobytes()).digest()


def is_text(item: base.Item) -> bool:
    """Whether what is stored of an item can be: JSON may hold halves of characters, which are no text."""
    try:
        "".join((item.path, *item.labels)).encode()
        if item.payload:
            json.dumps(dict(item.payload), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def item_of(document: Mapping[str, Any], path: str = "") -> base.Item:
    """The item of a stored document; ``path`` is its path where the document has none."""
    path, label = document.get("path", path), document.get("label", ())
    labels = label if isinstance(label, (list, tuple)) else [label]
    # What a table has in place of a label that is not there is no class, which others without one would be of, too.
    labels = [one for one in labels if one not in (None, "") and one == one]
    if not isinstance(path, str) or not all(isinstance(one, (str, int, float)) for one in labels):
        raise InputError(f"a document's path is a text and its label a text or a list of them, not {path!r}, {label!r}")
    payload = {key: value for key, value in document.items() if key not in ("path", "label")}
    return base.Item(path, tuple(str(one) for one in labels), payload)


def named_item(path: str, label: Any, facts: Mapping[str, Any]) -> base.Item:
    """The item of a row that is called and labelled by other means than its own ``path`` and ``label``; these are
    payload like its other facts, under the names that an export gives them."""
    payload = {f"payload.{key}" if key in ("path", "label") else key: value for key, value in facts.items()}
    return item_of({**payload, "path": path, "label": label})


def plain_row(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table as JSON has it: dates and times as ISO text; null and NaN are values that are not there.

    Raises:
        InputError: a value that has no such form; ``where`` says in which row.
    """
    plain = {name: _plain(where, name, value) for name, value in row.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plain(where: str, name: str, value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(where, name, part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(where, name, part) for key, part in value.items()}
    raise InputError(f"{where}: column '{name}': {type(value).__name__} has no form in JSON")
