"""From one store of vectors to another, and the comparison of two that should hold the same.

Both sides are anything that scrolls and is searched like a ``Backend``. A transfer needs no journal: what the target
holds is read and compared, so that it is right whatever was built again, sent before, or killed in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.base import Backend
from cbir_faiss.base.checks import directions
from cbir_faiss.errors import BackendError, CbirError, ConfigError, InputError
from cbir_faiss.pipeline.fill import Part, fill
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric

Progress = Callable[[int, int], None]
"""Called with the items done and the items in all."""

ONE_SIGN = 0.95
"""Above this share of one sign, an engine's own binary quantization has little to tell vectors apart by."""

_NO_POINT = 1e16
"""From here on JSON writes a float as it writes an integer, without a point."""


class OutOfOrder(InputError):
    """A side that does not scroll in the order of its ids."""


class Stored(Protocol):
    """What is read: a ``Backend``, or a collection that is dressed as one. Scrolls in the order of ids."""

    dim: int | None
    kind: Kind | None
    metric: Metric | None

    def count(self) -> int: ...
    def scroll(self, batch_size: int = 1000) -> Iterator[Batch]: ...
    def search(self, vectors: Codes, k: int = 10) -> Hits: ...


class Source(Stored, Protocol):
    """What is sent from."""

    def fetch(self, ids: Ids) -> Codes: ...
    def payload(self, ids: Ids) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Transferred:
    """What ``transfer`` did, or would do.

    items: how many the source holds. new, changed: how many of them the target did not hold, or held differently.
    removed: how many only the target held. one_sign: share of the commoner sign among the floats that were sent (zeros
    count for both); None where none were.
    """

    items: int
    new: int
    changed: int
    removed: int
    one_sign: float | None = None


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
        return any(len(ids) for ids in self.ids.values())

    @property
    def ids(self) -> dict[str, Ids]:
        """The ids by what is different, in words."""
        return {
            "missing there": self.missing,
            "only there": self.extra,
            "other vector": self.vectors,
            "other payload": self.payload,
        }


def transfer(
    source: Source,
    target: Backend,
    *,
    keep_extra: bool = False,
    remove_most: bool = False,
    dry_run: bool = False,
    batch_size: int = 10_000,
    progress: Progress | None = None,
) -> Transferred:
    """Make ``target`` hold what ``source`` holds, under the same ids: send what is new or differs, remove the rest.

    Both are read in the order of their ids, a batch at a time; in memory are the ids of what differs. An empty target
    is filled without a look at it. Killed, it is run again and sends what is not there yet.

    keep_extra: items that only the target holds stay. remove_most: more than half of the target may be removed.
    dry_run: nothing is changed.

    Raises:
        InputError: the source has never held anything, or does not scroll in the order of its ids.
        ConfigError: the target holds, or was asked for, vectors of another dimension, kind or metric.
        CbirError: more than half of the target would be removed; nothing was changed.
        BackendError: the engine failed (what was acknowledged stays, and running again goes on), or it holds fewer
            items than it acknowledged.
    """
    if source.dim is None or source.kind is None:
        raise InputError("there is nothing to transfer: the source is empty")
    held = 0 if target.dim is None else target.count()
    plan = _planned(source, target, progress) if held else _Plan.of_everything(source)
    if keep_extra:
        plan.extra = plan.extra[:0]
    if not dry_run:
        check_removal(target, len(plan.extra), held, allowed=remove_most)
    done = Transferred(source.count(), plan.new, plan.changed, len(plan.extra))
    return done if dry_run else _carried_out(plan, done, source, target, batch_size, progress)


def check_removal(target: Backend, removed: int, held: int, *, allowed: bool) -> None:
    """Raises CbirError where most of what ``target`` holds would go: a folder that was not mounted looks like that."""
    if removed > held / 2 and not allowed:
        raise CbirError(
            f"{target!r}: {removed:,} of its {held:,} items would be removed: allow it with --yes if that is meant, "
            "or leave them there with --keep-extra"
        )


@dataclass
class _Plan:
    """What a transfer is to do. send: ids, ascending; None: everything. extra: ids to remove."""

    new: int
    changed: int
    send: Ids | None
    extra: Ids

    @classmethod
    def of_everything(cls, source: Source) -> _Plan:
        return cls(source.count(), 0, None, np.empty(0, np.int64))

    def parts(self, source: Source, batch_size: int) -> Iterator[Part]:
        if self.send is None:
            for batch in _ordered(source.scroll(batch_size)):
                yield batch.ids, batch.vectors, batch.payload
            return
        for start in range(0, len(self.send), batch_size):
            ids = self.send[start : start + batch_size]
            yield ids, source.fetch(ids), source.payload(ids)


def _planned(source: Source, target: Backend, progress: Progress | None) -> _Plan:
    found = compare(source, target, queries=0, progress=progress)
    changed = np.union1d(found.vectors, found.payload)
    return _Plan(len(found.missing), len(changed), np.union1d(found.missing, changed), found.extra)


def _carried_out(
    plan: _Plan, done: Transferred, source: Source, target: Backend, batch_size: int, progress: Progress | None
) -> Transferred:
    assert source.dim is not None
    assert source.kind is not None
    signs, sent, total = _Signs(), 0, plan.new + plan.changed

    def parts() -> Iterator[Part]:
        nonlocal sent
        for ids, vectors, payload in plan.parts(source, batch_size):
            yield ids, vectors, payload
            signs.see(vectors)  # from here on it is stored
            sent += len(ids)
            if progress is not None:
                progress(sent, max(total, sent))

    def first_rows() -> Codes:
        return next(iter(source.scroll(TRAINING_ROWS))).vectors

    fill(
        target,
        parts(),
        kind=source.kind,
        width=source.dim,
        sample=first_rows,
        prepared=lambda: _same_shape(source, target),
    )
    if len(plan.extra):  # what takes their place is there by now
        for start in range(0, len(plan.extra), batch_size):
            target.delete(plan.extra[start : start + batch_size])
        target.flush()
    if (held := target.count()) < done.items:
        raise BackendError(f"the target holds {held} items after {done.items} were stored: push again")
    return replace(done, one_sign=signs.share if source.kind == "float" and sent else None)


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
        OutOfOrder: one of them does not scroll in the order of its ids.
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
            said = [_same_json(mine.payload[a], theirs.payload[b]) for a, b in zip(left, right, strict=True)]
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
            raise OutOfOrder(
                "one side does not scroll in the order of its ids, as a table with keys of text does not, or one with "
                "an id twice: name a table of this package's own"
            )
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
        mine, theirs = directions(mine), directions(theirs)
    apart = np.linalg.norm(mine - theirs, axis=1)
    return np.asarray(apart <= tolerance * np.maximum(np.linalg.norm(mine, axis=1), np.finfo(np.float32).tiny))


def _same_json(mine: Any, theirs: Any) -> bool:
    """Whether two values are the same in JSON: ``true`` is not 1, and 1 is not 1.0."""
    return bool(mine == theirs) and (repr(mine) == repr(theirs) or _same_types(mine, theirs))


def _same_types(mine: Any, theirs: Any) -> bool:
    """Whether two equal values are made of the same types, as far as JSON can tell them apart."""
    if isinstance(mine, Mapping):
        return all(_same_types(value, theirs[key]) for key, value in mine.items())
    if isinstance(mine, list | tuple):
        return all(_same_types(a, b) for a, b in zip(mine, theirs, strict=True))
    if isinstance(mine, bool) or isinstance(theirs, bool):
        return mine is theirs
    return not isinstance(mine, int | float) or type(mine) is type(theirs) or abs(mine) >= _NO_POINT


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
