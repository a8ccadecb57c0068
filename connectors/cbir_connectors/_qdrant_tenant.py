"""One tenant's part of a Qdrant collection that many share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from cbir_connectors._keys import Keys
from cbir_connectors._qdrant_target import Point, Query, Scored, Target, Upload, Vectors
from cbir_faiss.errors import BackendError, ConfigError

_OWNER = "cbir:owner"  # in the payload of each point: in the collection's metadata there would be one for each tenant
_ID_BITS = 63


class TenantKeys(Keys):
    """Keys of one tenant are UUIDs of a digest of its name and the id, because the others have the same ids."""

    def __init__(self, tenant: str) -> None:
        super().__init__()
        digest = hashlib.blake2b(tenant.encode(), digest_size=8).hexdigest()
        self._prefix = f"{digest[:8]}-{digest[8:12]}-{digest[12:]}-"

    def _own(self, key: Any) -> int | None:
        text = str(key)
        number = int(text[len(self._prefix) :].replace("-", ""), 16) if text.startswith(self._prefix) else -1
        return number if 0 <= number < 2**_ID_BITS else None

    def _made(self, number: int) -> Any:
        digits = f"{number:016x}"
        return f"{self._prefix}{digits[:4]}-{digits[4:]}"


class TenantTarget:
    """The points of ``collection`` whose payload has ``value`` under ``key``; to its user there are no others.

    It is there when there are such points: the collection itself belongs to nobody, and is never dropped.
    """

    def __init__(self, collection: Target, key: str, value: str) -> None:
        self._whole, self._tenant = collection, {key: value}
        self.reserved = frozenset({key, _OWNER})
        self._owner: str | None = None
        self.dialect, models = collection.dialect, collection.dialect.models
        self.place = f"{collection.place} tenant '{value}'"
        self._mine = models.Filter(must=[self.dialect.match(key, models.MatchValue(value=value))])

    # -- the tenant's part

    def stored(self) -> Vectors | None:
        found = self._whole.stored()
        point = next((page[0] for page in self._whole.scroll(1, where=self._mine)), None) if found else None
        if found is None or point is None:
            return None
        self._owner = found.owner or (point[2] or {}).get(_OWNER)
        return replace(found, owner=self._owner)

    def make(self, vectors: Vectors, hnsw_m: int) -> None:
        """Make the collection, unless another tenant has."""
        self._owner = vectors.owner
        if not self._fits(vectors):
            try:
                self._whole.make(replace(vectors, owner=None), hnsw_m)
            except BackendError:
                if not self._fits(vectors):
                    raise

    def rehearse(self, vectors: Vectors, hnsw_m: int) -> None:
        self._fits(vectors)

    def _fits(self, vectors: Vectors) -> bool:
        """Whether the collection is there.

        Raises:
            ConfigError: it is of other vectors, or it is not shared.
        """
        found = self._whole.stored()
        if found is None:
            return False
        if found.owner is not None:
            raise ConfigError(f"{self._whole.place} belongs to one collection: name another for tenants to share")
        if (found.size, found.distance) != (vectors.size, vectors.distance):
            raise ConfigError(
                f"{self._whole.place} holds {found.size} values a vector under {found.distance} distance, not "
                f"{vectors.size} under {vectors.distance}, which its tenants share: name another"
            )
        return True

    def adopt(self, owner: str) -> None:
        self._owner = owner
        self._whole.mark({_OWNER: owner}, self._mine)

    def drop(self) -> None:
        self._whole.erase(self._mine)

    # -- content

    def upsert(self, items: int, uploads: Iterable[Upload]) -> None:
        mark = {**self._tenant, **({_OWNER: self._owner} if self._owner else {})}
        self._whole.upsert(items, ((k, v, [{**one, **mark} for one in payload]) for k, v, payload in uploads))

    def delete(self, keys: list[Any]) -> None:
        self._whole.delete(keys)

    def mark(self, payload: dict[str, Any], where: Any) -> None:
        self._whole.mark(payload, self._of_mine(where))

    def erase(self, where: Any) -> None:
        self._whole.erase(self._of_mine(where))

    def query(self, vectors: list[list[float]], query: Query, where: Any) -> list[list[Scored]]:
        return self._whole.query(vectors, query, self._of_mine(where))

    def retrieve(self, keys: list[Any], *, vectors: bool, payload: bool) -> list[Point]:
        return self._unmarked(self._whole.retrieve(keys, vectors=vectors, payload=payload))

    def scroll(self, batch_size: int, offset: Any = None, where: Any = None) -> Iterator[list[Point]]:
        return map(self._unmarked, self._whole.scroll(batch_size, offset, self._of_mine(where)))

    def count(self, where: Any = None) -> int:
        return self._whole.count(self._of_mine(where))

    def _of_mine(self, where: Any) -> Any:
        return self.dialect.models.Filter(must=[self._mine] if where is None else [self._mine, where])

    def _unmarked(self, points: list[Point]) -> list[Point]:
        return [
            (key, vector, payload and {name: value for name, value in payload.items() if name not in self.reserved})
            for key, vector, payload in points
        ]

    # -- life

    def settle(self) -> None:
        self._whole.settle()

    def disk_bytes(self) -> int | None:
        return self._whole.disk_bytes()

    def close(self) -> None:
        self._whole.close()
