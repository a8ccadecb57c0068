"""What connectors to databases share: a public base class, one clear error, and rows turned into hits."""

from __future__ import annotations

import re
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np

from cbir_faiss.base import Backend
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import need
from cbir_faiss.errors import BackendError, CbirError, ConfigError, MissingDependency, UnknownId, Unsupported
from cbir_faiss.types import MISSING_ID, Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds before a call is tried again: at first, and at most unless the engine asks for more."""
_LONGEST_REASON = 300

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Shape:
    """What vectors a table is made for, and the id of the collection that it belongs to (None: nobody's)."""

    dim: int
    kind: Kind
    metric: Metric
    owner: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        what = f"{self.dim}-bit codes" if self.kind == "binary" else f"vectors of {self.dim} dimensions"
        return f"{what} ({self.metric})"


class Database(Backend):
    """A backend whose engine keeps the data. An author gives ``_connect``, ``_stored``, ``_make`` and ``_drop``.

    Constructing it opens what is stored at the address in the options, if anything is. Its ``Options`` have
    ``metric`` and ``overwrite``. With ``_adopt``, and ``owner`` in the ``Shape`` that is made and found, its tables
    belong to collections; without, anybody writes to them.
    """

    accepts = frozenset({"float", "binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("cosine", "l2", "ip", "hamming")
    own_storage: ClassVar[bool] = True
    name_option: ClassVar[str | None] = None
    """The option that names the table; None where an address holds one."""
    longest_name: ClassVar[int] = 63

    _owner: str | None = None
    """Of the table that is there."""
    _claimed: str | None = None
    """The owner for whom this instance writes."""
    _adopting = False

    @classmethod
    def scoped(cls, options: Mapping[str, Any], scope: str) -> dict[str, Any]:
        if cls.name_option is None:
            return super().scoped(options, scope)
        name = options.get(cls.name_option, cls.Options.model_fields[cls.name_option].default)
        return {**options, cls.name_option: scoped_name(name, scope, cls.longest_name), "overwrite": True}

    @classmethod
    def named(cls, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        if cls.name_option is None:
            return dict(options)
        return {cls.name_option: clean_name(name, cls.longest_name), **options}

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
        self.dim, self.kind, self.metric, self._owner = stored.dim, stored.kind, stored.metric, stored.owner
        self._declare(exact=self._exact_by_default())

    def create(self, dim: int, kind: Kind) -> None:
        before = self.dim, self.kind, self.metric, self._owner
        try:
            super().create(dim, kind)
        except BaseException:
            self.dim, self.kind, self.metric, self._owner = before
            raise
        self._declare(exact=self._exact_by_default())

    def _create(self) -> None:
        wanted, stored = self._shape(), self._stored()
        if stored is None:
            self._check_shape(wanted)
            self._make(wanted)
        else:
            self._owner = stored.owner
            self._check_owner()
            if not self.options.overwrite:
                self._reuse(stored, wanted)
                return
            self._check_shape(wanted)
            self._replace(wanted)
        self._owner = wanted.owner

    # -- whose it is

    def claim(self, owner: str | None, *, adopt: bool = False) -> None:
        self._claimed, self._adopting = owner, adopt
        self._look()
        self._check_owner()

    def upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None = None) -> None:
        self._take_over()
        super().upsert(ids, vectors, payload)

    def delete(self, ids: Ids) -> None:
        self._take_over()
        super().delete(ids)

    def remove(self) -> None:
        self._look()
        self._check_owner()
        if self.dim is not None:
            self._drop()
        self.dim = self.kind = self.metric = self._owner = None

    def _check_owner(self) -> None:
        """Raises ConfigError where what is there is not for this instance to write to."""
        keeps_owner = type(self)._adopt is not Database._adopt
        if self.dim is None or not keeps_owner or self._owner == self._claimed:
            return
        if self._owner is not None:
            whose = "another collection" if self._claimed else "a collection, which writes to it by 'push', 'add', …"
            raise ConfigError(f"{self._place()} belongs to {whose}: name another place, or remove it there first")
        if not self._adopting:
            raise ConfigError(
                f"{self._place()} is there and belongs to no collection: name another place, or take it over with "
                "--adopt (adopt=True)"
            )

    def _take_over(self) -> None:
        """Before a write: check, and make a table that is to be adopted the owner's."""
        self._look()
        self._check_owner()
        if self.dim is not None and self._claimed is not None and self._owner is None:
            self._adopt(self._claimed)
            self._owner = self._claimed

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

    # -- how

    def _look(self) -> None:
        """Open what somebody else has made since there was nothing to open."""
        if self.dim is None:
            self._open()

    def _made(self) -> None:
        self._look()
        super()._made()

    def count(self) -> int:
        self._look()
        return super().count()

    def scroll(self, batch_size: int = 1000, after: int | str | None = None) -> Iterator[Batch]:
        self._look()
        return super().scroll(batch_size, after)

    def _exact_by_default(self) -> bool:
        """Whether a search without options compares with everything."""
        return type(self).exact

    def _declare(self, **attributes: Any) -> None:
        """Set what only this instance knows of ``exact``, ``capabilities``, …, which the class declares for all."""
        for name, value in attributes.items():
            setattr(self, name, value)

    def _shape(self) -> Shape:
        return Shape(cast("int", self.dim), cast("Kind", self.kind), cast("Metric", self.metric), self._claimed)

    def _reuse(self, stored: Shape, wanted: Shape) -> None:
        """An empty collection of the right shape will do; anything else might be someone's data."""
        if stored != wanted:
            raise ConfigError(f"{self._place()} holds {stored}, not {wanted}: name another place, or 'overwrite: true'")
        if items := self._count():
            raise ConfigError(
                f"{self._place()} already holds {items} items: upsert into it, name another place, or 'overwrite: true'"
            )
        self._take_over()

    # -- for authors

    @abstractmethod
    def _connect(self) -> None:
        """Reach the engine; a BackendError where it cannot be reached."""

    @abstractmethod
    def _stored(self) -> Shape | None:
        """What the table in the options is made for, and whose it is; None where there is no such table."""

    @abstractmethod
    def _make(self, shape: Shape) -> None:
        """Make the table, which does not exist, and note ``shape.owner`` in it."""

    @abstractmethod
    def _drop(self) -> None:
        """Remove the table, which exists."""

    def _check_shape(self, shape: Shape) -> None:
        """Raise where it is known without trying that the engine cannot make such a table; nothing is touched yet."""

    def _replace(self, shape: Shape) -> None:
        """Make the table anew in place of the one that exists, which stays where that fails, if the engine can."""
        self._drop()
        self._make(shape)

    def _adopt(self, owner: str) -> None:
        """Note ``owner`` in the table, which exists. An engine that cannot keep it lets everybody write."""

    @abstractmethod
    def _place(self) -> str:
        """The table as messages name it, without secrets."""


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


def retried(
    call: Callable[[], Answer],
    *,
    retries: int,
    transient: Callable[[Exception], bool],
    asked: Callable[[Exception], float] = lambda _: 0.0,
    patience: float = 60.0,
) -> Answer:
    """``call()``, tried again up to ``retries`` times with growing pauses, while its errors are ``transient``.

    asked: seconds that an error's answer asks to wait (Retry-After). Where that is more than ``patience``, the error
    is raised at once.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return call()
        except Exception as error:
            wait = asked(error)
            if not retries or wait > patience or not transient(error):
                raise
        time.sleep(max(pause, wait))
        retries, pause = retries - 1, min(2 * pause, LONGEST_PAUSE)


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


def clean_name(name: str, longest: int) -> str:
    """``name`` in letters that every engine takes, with a digest at its end where it would be too long."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if len(cleaned) <= longest:
        return cleaned
    return f"{cleaned[: longest - 9]}-{zlib.crc32(cleaned.encode()):08x}"


def scoped_name(name: str, scope: str, longest: int) -> str:
    """``name-scope`` as ``clean_name`` cleans it."""
    return clean_name(f"{name}-{scope}", longest)


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
