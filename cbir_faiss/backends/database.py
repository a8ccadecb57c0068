"""What connectors to databases share: a public base class, one clear error, and rows turned into hits."""

from __future__ import annotations

import re
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from cbir_faiss.base import Backend
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import need
from cbir_faiss.errors import BackendError, CbirError, ConfigError, MissingDependency, UnknownId, Unsupported
from cbir_faiss.types import MISSING_ID, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Shape:
    """What vectors a collection is made for."""

    dim: int
    kind: Kind
    metric: Metric

    def __str__(self) -> str:
        what = f"{self.dim}-bit codes" if self.kind == "binary" else f"vectors of {self.dim} dimensions"
        return f"{what} ({self.metric})"


class Database(Backend):
    """A backend whose engine keeps the data. An author gives ``_connect``, ``_stored``, ``_make`` and ``_drop``.

    Constructing it opens what is stored at the address in the options, if anything is. Its ``Options`` have
    ``metric`` and ``overwrite``.
    """

    accepts = frozenset({"float", "binary"})
    metrics = ("cosine", "l2", "ip", "hamming")
    own_storage: ClassVar[bool] = True

    def _setup(self) -> None:
        self._connect()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Take over dimension, kind and metric of the collection that is already there."""
        stored = self._stored()
        if stored is None:
            return
        if self.options.metric not in (None, stored.metric):
            raise ConfigError(
                f"{self._place()} holds {stored}; leave 'metric' out or name another place",
                path="metric",
            )
        self.dim, self.kind, self.metric = stored.dim, stored.kind, stored.metric
        self._declare(exact=self._exact_by_default())

    def create(self, dim: int, kind: Kind) -> None:
        before = self.dim, self.kind, self.metric
        try:
            super().create(dim, kind)
        except BaseException:
            self.dim, self.kind, self.metric = before
            raise
        self._declare(exact=self._exact_by_default())

    def _create(self) -> None:
        wanted, stored = self._shape(), self._stored()
        if stored is not None and not self.options.overwrite:
            self._reuse(stored, wanted)
            return
        if stored is not None:
            self._drop()
        self._make(wanted)

    # -- exchanged for another

    def standby(self) -> dict[str, Any]:
        """Options of the place beside this one that ``swap`` brings here. Nobody else reads or writes there.

        Raises:
            Unsupported: the engine cannot exchange two names in one step.
        """
        raise Unsupported(f"{self._place()}: backend '{self.name}' cannot switch names in one step: leave --swap out")

    def swap(self) -> None:
        """In one step, what is at ``standby`` is found here, and what was here is at ``standby``."""
        raise Unsupported(f"{self._place()}: backend '{self.name}' cannot switch names in one step: leave --swap out")

    def _exact_by_default(self) -> bool:
        """Whether a search without options compares with everything."""
        return type(self).exact

    def _declare(self, **attributes: Any) -> None:
        """Set what only this instance knows of ``exact``, ``capabilities``, …, which the class declares for all."""
        for name, value in attributes.items():
            setattr(self, name, value)

    def _shape(self) -> Shape:
        return Shape(cast("int", self.dim), cast("Kind", self.kind), cast("Metric", self.metric))

    def _reuse(self, stored: Shape, wanted: Shape) -> None:
        """An empty collection of the right shape will do; anything else might be someone's data."""
        if stored != wanted:
            raise ConfigError(f"{self._place()} holds {stored}, not {wanted}: name another place, or 'overwrite: true'")
        if items := self._count():
            raise ConfigError(
                f"{self._place()} already holds {items} items: upsert into it, name another place, or 'overwrite: true'"
            )

    @abstractmethod
    def _connect(self) -> None:
        """Reach the engine; a BackendError where it cannot be reached."""

    @abstractmethod
    def _stored(self) -> Shape | None:
        """What the collection in the options is made for; None where there is no such collection."""

    @abstractmethod
    def _make(self, shape: Shape) -> None:
        """Make the collection, which does not exist."""

    @abstractmethod
    def _drop(self) -> None:
        """Remove the collection, which exists."""

    @abstractmethod
    def _place(self) -> str:
        """The collection as messages name it, without secrets."""


@contextmanager
def engine_errors(
    doing: str, *, secrets: Sequence[str] = (), explain: Callable[[BaseException], str] = lambda _: ""
) -> Iterator[None]:
    """Whatever a client raises becomes one BackendError, ``<doing>: <the client's reason>``, with the cause chained.

    A client's exceptions have no common base (Qdrant Edge raises plain ``Exception``), so every call into one stands
    alone inside this. ``explain`` says what to do about the usual errors, and '' about any other.
    """
    try:
        yield
    except CbirError:
        raise
    except Exception as error:
        raise BackendError(f"{doing}: {explain(error) or one_line(error, secrets)}") from error


def one_line(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """The message of ``error`` on one line of bounded length, without any of ``secrets``."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def need_version(module: str, package: str, extra: str, least: tuple[int, int]) -> Any:
    """The imported ``module``, which comes in ``package``, at least of version ``least``.

    Raises:
        MissingDependency: it is not installed, or it is too old.
    """
    imported = need(module, extra)
    installed = version(package)
    if tuple(int(part) for part in installed.split(".")[:2]) < least:
        raise MissingDependency(
            f"{package} {installed} is too old, at least {least[0]}.{least[1]} is needed: "
            f"pip install --upgrade 'cbir-faiss[{extra}]'"
        )
    return imported


def to_hits(rows: Sequence[Sequence[tuple[int, float]]], k: int) -> Hits:
    """Hits ``(n, k)`` of n lists of (id, distance), nearest first, padded where they are shorter."""
    if rows and all(len(row) == k for row in rows):  # the usual case, in the path of every query
        both = [list(zip(*row, strict=True)) for row in rows]
        return Hits(np.array([ids for ids, _ in both], np.int64), np.array([d for _, d in both], np.float32))
    hits = missing_hits(len(rows), k)
    for row, found in enumerate(rows):
        if found:
            ids, distances = zip(*found, strict=True)
            hits.ids[row, : len(ids)] = ids
            hits.distances[row, : len(ids)] = distances
    return hits


def to_range(rows: Sequence[Sequence[tuple[int, float]]]) -> RangeHits:
    """RangeHits of n lists of (id, distance), nearest first."""
    flat = [pair for row in rows for pair in row]
    limits = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return RangeHits(limits, np.array([i for i, _ in flat], np.int64), np.array([d for _, d in flat], np.float32))


def search_filtered(
    search: Callable[[Codes, int], Hits],
    payload: Callable[[Ids], Sequence[Mapping[str, Any]]],
    where: Where,
    vectors: Codes,
    k: int,
    items: int,
) -> Hits:
    """A filter on top of an engine that cannot express it: over-fetch until every query has k hits that match, or all
    ``items`` are seen.

    search: the k nearest, unfiltered. payload: payloads by id.
    """
    matching: dict[int, bool] = {MISSING_ID: False}
    wanted = min(items, max(4 * k, 64))
    while True:
        hits = search(vectors, wanted) if wanted else missing_hits(len(vectors), k)
        unseen = [int(i) for i in np.unique(hits.ids) if int(i) not in matching]
        if unseen:
            found = payload(np.array(unseen, np.int64))
            matching.update((i, where.matches(value)) for i, value in zip(unseen, found, strict=True))
        rows = [
            [(int(i), float(d)) for i, d in zip(ids, distances, strict=True) if matching[int(i)]][:k]
            for ids, distances in zip(hits.ids, hits.distances, strict=True)
        ]
        if wanted >= items or all(len(row) == k for row in rows):
            return to_hits(rows, k)
        wanted = min(items, 4 * wanted)


def present(ids: Ids, found: Mapping[int, Any]) -> list[int]:
    """``ids`` as a list.

    Raises:
        UnknownId: the first of them that is not among those that were ``found``.
    """
    wanted = cast("list[int]", ids.tolist())
    for i in wanted:
        if i not in found:
            raise UnknownId(f"id {i} is not stored")
    return wanted


def scoped_name(name: str, scope: str, longest: int) -> str:
    """``name-scope`` in letters that every engine takes, with a digest at its end where it would be too long."""
    joined = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}-{scope}")
    if len(joined) <= longest:
        return joined
    return f"{joined[: longest - 9]}-{zlib.crc32(joined.encode()):08x}"


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover n rows."""
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def payload_of(payload: Sequence[Payload] | None, rows: slice) -> list[dict[str, Any]]:
    """The payloads of some rows; ``{}`` where none were given."""
    if payload is None:
        return [{} for _ in range(rows.start, rows.stop)]
    return [dict(value) for value in payload[rows]]


def folder_bytes(folder: Path) -> int:
    """Bytes that a folder takes on disk: allocated blocks, because engines reserve sparse files."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
