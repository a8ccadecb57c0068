"""Keys of other people's collections (UUID, text) as the int64 ids of this package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cbir_faiss.errors import BackendError

KEY = "_key"
"""Payload entry under which the original key of an item is kept when a collection is read."""


class Keys:
    """Two-way translation. A key of 0 … 2^63 - 1 is its own id; any other gets 63 bits of its digest, always the same.

    A digest cannot be inverted, so only keys that were met here (by searching or scrolling) are found again by id.
    """

    def __init__(self) -> None:
        self._met: dict[int, Any] = {}

    def id(self, key: Any) -> int:
        """The id of ``key``.

        Raises:
            BackendError: two keys have the same digest.
        """
        own = self._own(key)
        if own is not None:
            return own
        number = int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "big") >> 1
        if self._met.setdefault(number, key) != key:
            raise BackendError(f"keys {key!r} and {self._met[number]!r} get the same id {number}")
        return number

    def key(self, number: int) -> Any:
        """The key of an id: the one that was met, else the one that is made of it."""
        return self._met[number] if number in self._met else self._made(number)

    def labelled(self, key: Any, payload: Mapping[str, Any] | None) -> dict[str, Any]:
        """``payload`` with the key added where it is not the id, so that it is not lost."""
        return dict(payload or {}) if self._own(key) is not None else {KEY: str(key), **(payload or {})}

    def _own(self, key: Any) -> int | None:
        """The id that ``key`` was made of, if it was."""
        return key if isinstance(key, int) and 0 <= key < 2**63 else None

    def _made(self, number: int) -> Any:
        """The key that is made of an id."""
        return number
