"""What the Qdrant connector asks of the place where the collection lives, be it a server or this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from cbir_connectors._qdrant_filter import Dialect
from cbir_faiss.errors import ConfigError

Point = tuple[Any, Any, dict[str, Any] | None]
"""Key (int or UUID), vector and payload."""
Scored = tuple[Any, float, Any]
"""Key, score, and the vector where it was asked for."""
Upload = tuple[list[Any], list[list[float]], list[dict[str, Any]]]
"""Keys, vectors and payloads of one request."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of a collection, in Qdrant's words, the id of the collection of ours that it belongs to, and whether
    a search ranks by codes that Qdrant makes of them."""

    size: int
    distance: str
    datatype: str
    owner: str | None = None
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """How to search; None leaves the choice to the engine."""

    limit: int
    exact: bool
    hnsw_ef: int | None = None
    oversampling: float | None = None
    rescore: bool = True
    threshold: float | None = None
    with_vectors: bool = False


class Target(Protocol):
    """Every method raises BackendError with the client's error chained.

    Where points hold vectors of other names too (``stored`` finds out), an upsert leaves those alone, and the payload
    keys that it is not given.
    """

    place: str
    dialect: Dialect
    reserved: frozenset[str]
    """Keys of the payload that are not the user's."""

    def stored(self) -> Vectors | None: ...
    def make(self, vectors: Vectors, hnsw_m: int) -> None: ...
    def rehearse(self, vectors: Vectors, hnsw_m: int) -> None:
        """Make such a collection elsewhere and remove it again, to see whether it can be made."""

    def adopt(self, owner: str) -> None: ...
    def drop(self) -> None: ...
    def upsert(self, items: int, uploads: Iterable[Upload]) -> None: ...
    def delete(self, keys: list[Any]) -> None: ...
    def mark(self, payload: dict[str, Any], where: Any) -> None:
        """Set keys of the payload of all points that ``where`` matches."""

    def erase(self, where: Any) -> None:
        """Delete all points that ``where`` matches."""

    def query(self, vectors: list[list[float]], query: Query, where: Any) -> list[list[Scored]]: ...
    def retrieve(self, keys: list[Any], *, vectors: bool, payload: bool) -> list[Point]: ...
    def scroll(self, batch_size: int, offset: Any = None, where: Any = None) -> Iterator[list[Point]]: ...
    def count(self, where: Any = None) -> int: ...
    def settle(self) -> None: ...
    def disk_bytes(self) -> int | None: ...
    def close(self) -> None: ...


def named(vector: Any, name: str) -> Any:
    """The vector called ``name`` of a point, None where it has none; the unnamed one stands by itself."""
    return vector.get(name) if isinstance(vector, dict) else vector


def pick(vectors: dict[str, Any], name: str, place: str) -> Any:
    """The configuration of the vector called ``name`` ('' is the unnamed one).

    Raises:
        ConfigError: the collection has no vector of that name; the message lists those it has.
    """
    if name in vectors:
        return vectors[name]
    there = ", ".join(repr(known) for known in sorted(vectors) if known) or "only the unnamed one"
    raise ConfigError(f"{place} has no vector '{name}'; it has {there}", path="vector")
