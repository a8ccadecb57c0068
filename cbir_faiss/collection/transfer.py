"""From one store of vectors to another, and the comparison of two that should hold the same.

Both sides are anything that scrolls and is searched like a ``Backend``. Items keep their ids, and an upsert replaces,
so a transfer can be repeated at any time; a journal only saves doing again what was done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import write_durably
from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.base import Backend
from cbir_faiss.base.checks import normalise
from cbir_faiss.errors import BackendError, ConfigError, InputError
from cbir_faiss.pipeline.fill import Part, fill
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric

Progress = Callable[[int, int], None]
"""Called with the items done and the items in all."""

ONE_SIGN = 0.95
"""Above this share of one sign, an engine's own binary quantization has little to tell vectors apart by."""


class Stored(Protocol):
    """What is read from: a ``Backend``, or a collection that is dressed as one. Scrolls in the order of ids."""

    dim: int | None
    kind: Kind | None
    metric: Metric | None

    def count(self) -> int: ...
    def scroll(self, batch_size: int = 1000) -> Iterator[Batch]: ...
    def search(self, vectors: Codes, k: int = 10) -> Hits: ...


@dataclass(frozen=True, slots=True)
class Transferred:
    """What ``transfer`` did.

    items: how many the source holds, all of which are in the target now. resumed: how many of them an earlier,
    interrupted run had sent. one_sign: share of the commoner sign among the floats sent by this run (zeros count for
    both); None for codes.
    """

    items: int
    resumed: int
    one_sign: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What ``compare`` found.

    missing: ids that only the first holds. extra: ids that only the second holds. vectors, payload: ids under which
    the two hold different ones. agreement: share of the second's nearest neighbours that are as near as the first's,
    over the sampled queries; None where there was nothing to ask for.
    """

    items: int
    missing: Ids
    extra: Ids
    vectors: Ids
    payload: Ids
    agreement: float | None

    def __bool__(self) -> bool:
        """Whether anything differs; approximate neighbours are no difference."""
        return any(len(ids) for ids in (self.missing, self.extra, self.vectors, self.payload))


def transfer(
    source: Stored,
    target: Backend,
    *,
    journal: Path | None = None,
    batch_size: int = 10_000,
    progress: Progress | None = None,
) -> Transferred:
    """Store everything that ``source`` holds in ``target`` too, under the same ids, and check the count.

    ``journal`` is a small file that remembers how far it came. It is removed at the end; given again after an
    interruption, the transfer goes on from there.

    Raises:
        InputError: the source is empty, or does not scroll in the order of its ids.
        ConfigError: the target holds, or was asked for, vectors of another dimension, kind or metric.
        BackendError: the engine failed (what was acknowledged stays, and running again goes on), or it holds fewer
            items than it acknowledged.
    """
    total = source.count()
    if source.dim is None or source.kind is None or not total:
        raise InputError("there is nothing to transfer: the source is empty")
    log, signs = _Journal(journal, f"{target!r} {source.dim} {source.kind}"), _Signs()

    def begin() -> None:
        _same_shape(source, target)
        log.begin(target.count())

    def parts() -> Iterator[Part]:
        for batch in source.scroll(batch_size):
            ids, vectors, payload = _after(batch, log.last)
            if not len(ids):
                continue
            yield ids, vectors, payload
            signs.see(vectors)  # from here on it is stored
            log.advance(int(ids[-1]), log.sent + len(ids))
            if progress is not None:
                progress(log.sent, max(total, log.sent))

    def first_rows() -> Codes:
        return next(iter(source.scroll(TRAINING_ROWS))).vectors

    fill(target, parts(), kind=source.kind, width=source.dim, sample=first_rows, prepared=begin)
    held, sent = target.count(), log.sent
    if held < sent or (log.before == 0 and held != sent):
        raise BackendError(f"the target holds {held} items after {sent} were stored: run it again without the journal")
    log.finish()
    return Transferred(sent, log.resumed, signs.share if source.kind == "float" else None)


def compare(
    first: Stored,
    second: Stored,
    *,
    queries: int = 100,
    k: int = 10,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Difference:
    """Where ``second``, a deployed copy say, differs from ``first``. Neither is held in memory.

    Floats are the same when they differ by at most ``tolerance`` of their length (an engine may keep half precision),
    and under cosine when their directions do. ``queries`` vectors of the first are searched in both.

    Raises:
        ConfigError: they hold vectors of different dimension, kind or metric.
        InputError: one of them does not scroll in the order of its ids.
    """
    if first.dim is not None and second.dim is not None:
        _same_shape(first, second)
    total, done = max(first.count(), second.count()), 0
    found: dict[str, list[Ids]] = {"missing": [], "extra": [], "vectors": [], "payload": []}
    sample = _Sample(queries, seed)
    for mine, theirs in _joined(_ordered(first.scroll(batch_size)), _ordered(second.scroll(batch_size))):
        ids, left, right = np.intersect1d(mine.ids, theirs.ids, assume_unique=True, return_indices=True)
        found["missing"].append(np.setdiff1d(mine.ids, ids, assume_unique=True))
        found["extra"].append(np.setdiff1d(theirs.ids, ids, assume_unique=True))
        if len(ids):
            same = _same_vectors(mine.vectors[left], theirs.vectors[right], first.metric, tolerance)
            found["vectors"].append(ids[~same])
            said = [mine.payload[a] == theirs.payload[b] for a, b in zip(left, right, strict=True)]
            found["payload"].append(ids[~np.array(said, np.bool_)])
        sample.see(mine.vectors)
        done += max(len(mine.ids), len(theirs.ids))
        if progress is not None:
            progress(min(done, total), total)
    ids_of = {name: np.concatenate([np.empty(0, np.int64), *parts]) for name, parts in found.items()}
    return Difference(items=first.count(), agreement=_agreement(first, second, sample.vectors, k), **ids_of)


def _same_shape(first: Stored, second: Stored) -> None:
    for name in ("kind", "dim", "metric"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ConfigError(f"one side has {name} {ours}, the other {theirs}")


def _after(batch: Batch, last: int) -> tuple[Ids, Codes, list[dict[str, Any]]]:
    """The items of ``batch`` behind the id ``last``."""
    if len(batch.ids) > 1 and not bool((np.diff(batch.ids) > 0).all()):
        raise InputError("the source does not scroll in the order of its ids")
    start = int(np.searchsorted(batch.ids, last, side="right"))
    return batch.ids[start:], batch.vectors[start:], batch.payload[start:]


# -- the journal


@dataclass
class _State:
    """What the journal's file holds: whose it is, items the target held before, the last id sent, and how many."""

    key: str
    before: int = 0
    last: int = -1
    sent: int = 0


class _Journal:
    """How far a transfer came, in a file that is replaced after each batch; without a path, in memory."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._state = path, _State(key)
        self.resumed = 0

    @property
    def before(self) -> int:
        return self._state.before

    @property
    def last(self) -> int:
        return self._state.last

    @property
    def sent(self) -> int:
        return self._state.sent

    def begin(self, held: int) -> None:
        """Go on where the file says, unless it is another transfer's or the target, of ``held`` items, lost some."""
        stored = self._read()
        usable = stored is not None and stored.key == self._state.key and held >= stored.sent
        self._state = stored if stored is not None and usable else _State(self._state.key, before=held)
        self.resumed = self._state.sent

    def advance(self, last: int, sent: int) -> None:
        self._state.last, self._state.sent = last, sent
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, json.dumps(asdict(self._state)).encode())

    def finish(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> _State | None:
        """The stored state; None where there is none, or it is not one that was written here."""
        if self._path is None:
            return None
        try:
            return _State(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


class _Signs:
    """Counts how many values are not negative, and not positive."""

    def __init__(self) -> None:
        self._counts = np.zeros(3, np.int64)

    def see(self, vectors: Codes) -> None:
        self._counts += [(vectors >= 0).sum(), (vectors <= 0).sum(), vectors.size]

    @property
    def share(self) -> float:
        return float(self._counts[:2].max() / max(1, self._counts[2]))


# -- comparing


def _ordered(batches: Iterator[Batch]) -> Iterator[Batch]:
    """``batches``, as long as their ids increase."""
    last = -1
    for batch in batches:
        if len(batch.ids) and (batch.ids[0] <= last or not bool((np.diff(batch.ids) > 0).all())):
            raise InputError("one side does not scroll in the order of its ids")
        if len(batch.ids):
            last = int(batch.ids[-1])
            yield batch


def _joined(first: Iterator[Batch], second: Iterator[Batch]) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of batches that cover the same stretch of ids, until both are used up."""
    mine, theirs = next(first, None), next(second, None)
    while mine is not None or theirs is not None:
        stop = min(int(batch.ids[-1]) for batch in (mine, theirs) if batch is not None)
        head, mine = _cut(mine, theirs, stop)
        other, theirs = _cut(theirs, head, stop)
        yield head, other
        mine = next(first, None) if mine is None else mine
        theirs = next(second, None) if theirs is None else theirs


def _cut(batch: Batch | None, like: Batch | None, stop: int) -> tuple[Batch, Batch | None]:
    """The part up to the id ``stop``, and the rest if any. Where there is no batch, an empty one ``like`` the other."""
    if batch is None:
        width = 0 if like is None else like.vectors.shape[1]
        dtype = np.float32 if like is None else like.vectors.dtype
        return Batch(np.empty(0, np.int64), np.empty((0, width), dtype), []), None
    at = int(np.searchsorted(batch.ids, stop, side="right"))
    head = Batch(batch.ids[:at], batch.vectors[:at], batch.payload[:at])
    rest = Batch(batch.ids[at:], batch.vectors[at:], batch.payload[at:])
    return head, rest if len(rest.ids) else None


def _same_vectors(mine: Codes, theirs: Codes, metric: Metric | None, tolerance: float) -> NDArray[np.bool_]:
    if mine.dtype == np.uint8:
        return np.asarray((mine == theirs).all(axis=1))
    if metric == "cosine":
        mine, theirs = normalise(mine), normalise(theirs)
    apart = np.linalg.norm(mine - theirs, axis=1)
    return np.asarray(apart <= tolerance * np.maximum(np.linalg.norm(mine, axis=1), np.finfo(np.float32).tiny))


class _Sample:
    """A uniform sample of the rows of a stream: each row gets a random number, and the smallest stay."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, np.random.default_rng(seed)
        self._numbers: NDArray[np.float64] = np.empty(0)
        self.vectors: Codes | None = None

    def see(self, vectors: Codes) -> None:
        if not len(vectors) or not self._size:
            return
        numbers = np.concatenate([self._numbers, self._random.random(len(vectors))])
        rows = vectors if self.vectors is None else np.concatenate([self.vectors, vectors])
        kept = np.sort(np.argsort(numbers, kind="stable")[: self._size])
        self._numbers, self.vectors = numbers[kept], rows[kept]


def _agreement(first: Stored, second: Stored, queries: Codes | None, k: int) -> float | None:
    """By distance, not by id: of several items at one distance either side may return any."""
    if queries is None or not second.count():
        return None
    ours, theirs = first.search(queries, k).distances, second.search(queries, k).distances
    wanted = np.isfinite(ours)
    slack = 1e-3 * (1 + np.abs(np.where(wanted, ours, 0)))
    return float((theirs <= ours + slack)[wanted].mean())
