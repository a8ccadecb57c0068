"""How much of what is nearest a search finds: of a collection, or of an engine that runs, by questions put to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Backend
from cbir_faiss.collection.sync import Target
from cbir_faiss.errors import InputError
from cbir_faiss.measures.intervals import mean_interval
from cbir_faiss.measures.neighbours import exact_thresholds, of_others, true_distances
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.tuning.subject import Asked, Effort, Setting, Subject, opened
from cbir_faiss.types import MISSING_ID, Hits, Ids

QUERIES = 1000
_TIMED, _WARM = 60, 3  # single queries
_NOTHING = 0.0005  # of recall: what is gained by more of an effort that has no more to give
_LONGEST = 60.0  # seconds of a setting beyond which no slower one is tried
_ROUNDING = 1e-6
_CLOSE = 1.15  # times the effort at which a search for the least one ends

Interval = tuple[float, float]


@dataclass(frozen=True)
class SettingRecall:
    """What one setting of the search options finds, and the milliseconds of half of its single queries."""

    search: dict[str, Any]
    recall: float
    ci95: Interval
    p50_ms: float
    seconds: float


@dataclass(frozen=True)
class Loss:
    """Of the nearest neighbours, which share is lost by what: by the code (None: not known, for nobody has the exact
    vectors), and by the graph or lists, which do not look at everything."""

    code: float | None
    graph: float


@dataclass(frozen=True)
class Recall:
    """The mean share of the k nearest that is found, with its 95 % interval, as the index is set.

    settings: what other search options give, this one first. chosen: the fastest that surely meets the target; None
    where there is no target, or it is not met. notes: what else has to be known of it. generation: of the collection.
    """

    recall: float
    ci95: Interval
    k: int
    queries: int
    loss: Loss
    settings: tuple[SettingRecall, ...]
    target: float | None = None
    chosen: SettingRecall | None = None
    notes: tuple[str, ...] = ()
    generation: int | None = None

    @property
    def met(self) -> bool:
        """Whether a setting meets the target, if there is one."""
        return self.target is None or self.chosen is not None

    @property
    def best(self) -> SettingRecall:
        """The setting that finds most."""
        return max(self.settings, key=lambda one: one.recall)

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir recall --json`` prints it."""
        told = {
            "recall": self.recall,
            "ci95": list(self.ci95),
            "k": self.k,
            "queries": self.queries,
            "loss": {"code": self.loss.code, "graph": self.loss.graph},
            "settings": [_plain(one) for one in self.settings],
        }
        if self.target is not None:
            told["chosen"] = None if self.chosen is None else _plain(self.chosen)
        return told


def _plain(one: SettingRecall) -> dict[str, Any]:
    return {**one.search, "recall": one.recall, "p50_ms": one.p50_ms}


def recall(
    place: str | Path | Backend | Target,
    *,
    k: int = 10,
    queries: int = QUERIES,
    vectors: NDArray[Any] | None = None,
    truth: NDArray[Any] | None = None,
    target: float | None = None,
    sweep: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Recall:
    """How much of what is nearest a search of ``place`` finds. Nothing is changed there.

    Args:
        place: the folder of a collection, a backend (``load_backend``, ``wrap``), or an engine's name and options.
        k: how many neighbours count; what ties with the k-th counts too.
        queries: how many of the items are drawn as queries, each left out of its own answer.
        vectors: queries ``(n, dim)`` to ask instead.
        truth: the exact vectors ``(n, dim)`` of all items in the order of their ids, where they are not stored.
        target: the recall that a setting is looked for that meets it: the lower end of its interval does.
        sweep: whether other settings are tried.
        seed: of the draw.

    Raises:
        InputError: nothing is stored, or less than can be asked for; vectors that hold NaN or do not fit.
        CorruptCollection, ConfigError, BackendError: it cannot be opened or searched.
    """
    if k < 1 or queries < 1:
        raise InputError(f"k and queries must be at least 1, got {k} and {queries}")
    if target is not None and not 0 < target <= 1:
        raise InputError(f"a recall lies above 0 and is at most 1; the target is {target}")
    with opened(place, truth, progress) as subject, threads.phase("search"):
        asked = subject.drawn(queries, seed) if vectors is None else subject.brought(vectors)
        bench = _Bench(subject, asked, Yardstick.of(subject, asked, k), k)
        now = bench.measure({})
        if sweep:
            _sweep(bench, target)
        chosen = None if target is None else bench.chosen(target)
        loss, tried = bench.loss(now), tuple(bench.tried.values())
        notes = tuple(_notes(subject, loss))
        return Recall(now.recall, now.ci95, k, len(asked), loss, tried, target, chosen, notes, subject.generation)


def _notes(subject: Subject, loss: Loss) -> Iterator[str]:
    centred = getattr(subject.fitted.rescorer.options, "center", False)
    if loss.code is None:
        yield (
            "what the code loses is not known, for no exact vectors are stored or found again (--truth X.npy gives "
            "them); recall is that against a search of every code"
        )
    elif centred and subject.exact is not None and subject.exact.metric == "cosine":
        yield (
            "the rescorer compares vectors less their mean, whose nearest are not those of the cosine: that counts as "
            "lost by the code ('center: false' ranks by the cosine)"
        )


# ---------------------------------------------------------------------------------------------------- what counts


@dataclass(frozen=True)
class Yardstick:
    """Per query, the distance up to which a hit is one of the nearest, and how many these are.

    exhaustive: the answer of a search of every code; None: it finds all.
    """

    subject: Subject
    asked: Asked
    exhaustive: Hits | None
    bounds: NDArray[np.float64]
    counts: NDArray[np.int64]
    exact: bool

    @classmethod
    def of(cls, subject: Subject, asked: Asked, k: int) -> Yardstick:
        found = subject.exhaustive(asked, k)
        if subject.exact is not None and asked.vectors is not None:
            nearest = _thresholds(subject, asked, k)
            counts = np.full(len(asked), nearest.shape[1])
            return cls(subject, asked, found, nearest[:, -1], counts, True)
        assert found is not None  # only who has the exact vectors need not look
        counts = (found.ids != MISSING_ID).sum(axis=1)
        last = np.take_along_axis(found.distances, np.maximum(counts - 1, 0)[:, None], 1)[:, 0].astype(np.float64)
        return cls(subject, asked, found, last + _ROUNDING * np.maximum(1, np.abs(last)), counts, False)

    def shares(self, hits: Hits) -> NDArray[np.float64]:
        """Which share of the nearest is among the hits, by query; 1 where there are none."""
        distances = self._true(hits) if self.exact else hits.distances
        found = ((distances <= self.bounds[:, None]) & (hits.ids != MISSING_ID)).sum(axis=1)
        return np.where(self.counts, np.minimum(found, self.counts) / np.maximum(1, self.counts), 1.0)

    def _true(self, hits: Hits) -> NDArray[np.float64]:
        exact = self.subject.exact
        assert exact is not None
        assert self.asked.vectors is not None
        return true_distances(exact.vectors, self.asked.vectors, _rows(self.subject.ids, hits.ids), exact.metric)


def _thresholds(subject: Subject, asked: Asked, k: int) -> NDArray[np.float64]:
    exact = subject.exact
    assert exact is not None
    assert asked.vectors is not None
    if asked.own is None:
        return exact_thresholds(exact.vectors, asked.vectors, k, exact.metric)
    own = true_distances(exact.vectors, asked.vectors, _rows(subject.ids, asked.own)[:, None], exact.metric)
    return of_others(exact_thresholds(exact.vectors, asked.vectors, k + 1, exact.metric), own[:, 0])


def _rows(ids: Ids, wanted: Ids) -> Ids:
    """The place of each id, -1 where it is none of ``ids`` (ascending)."""
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[rows] == wanted, rows, MISSING_ID)


# ------------------------------------------------------------------------------------------------ setting by setting


class _Bench:
    """Measures settings, each once."""

    def __init__(self, subject: Subject, asked: Asked, yardstick: Yardstick, k: int) -> None:
        self.subject, self._asked, self._yardstick, self._k = subject, asked, yardstick, k
        self._population = None if asked.own is None else len(subject.ids)
        self.tried: dict[tuple[tuple[str, Any], ...], SettingRecall] = {}

    def measure(self, changed: Setting) -> SettingRecall:
        """What the setting in use finds, with ``changed`` options."""
        setting = {**self.subject.current, **changed}
        key = tuple(sorted(setting.items()))
        if key not in self.tried:
            began = time.perf_counter()
            shares = self._yardstick.shares(self.subject.hits(self._asked, self._k, setting))
            took = time.perf_counter() - began
            interval = mean_interval(shares, self._population)
            self.tried[key] = SettingRecall(setting, float(shares.mean()), interval, self._p50(setting), took)
        return self.tried[key]

    def chosen(self, target: float) -> SettingRecall | None:
        """The fastest that surely meets ``target``."""
        meet = [one for one in self.tried.values() if one.ci95[0] >= target]
        return min(meet, key=lambda one: one.p50_ms, default=None)

    def loss(self, now: SettingRecall) -> Loss:
        """How what ``now`` does not find comes to be lost."""
        yardstick = self._yardstick
        if not yardstick.exact:
            return Loss(None, 1 - now.recall)
        everything = 1.0 if yardstick.exhaustive is None else float(yardstick.shares(yardstick.exhaustive).mean())
        graph = max(0.0, everything - now.recall)
        return Loss(max(0.0, 1 - now.recall - graph), graph)

    def _p50(self, setting: Setting) -> float:
        searcher, n, times = self.subject.searcher(setting, threads=1), len(self._asked), []
        with threads.phase("search", 1):
            for number in range(_WARM + min(_TIMED, n)):
                query = self._asked.row(number % n)
                began = time.perf_counter()
                searcher.nearest(query, self._k)
                times.append(time.perf_counter() - began)
        return 1000 * float(np.median(times[_WARM:]))


def _sweep(bench: _Bench, target: float | None) -> None:
    """One option after the other, the others as they are in use. To meet a target, these are as good as they can be,
    and each comes again as long as that helps."""
    efforts, base, best = bench.subject.efforts, dict(bench.subject.current), -1.0
    while efforts and best < (best := max(one.recall for one in bench.tried.values())):
        for effort in efforts:
            climbed = _climb(bench, base, effort)
            if target is not None and bench.chosen(target) is None:
                most = max(one.recall for one in climbed)
                base[effort.name] = next(one.search[effort.name] for one in climbed if one.recall >= most - _NOTHING)
        if target is None or bench.chosen(target) is not None:
            break
    if target is not None and (chosen := bench.chosen(target)) is not None:
        for effort in efforts:
            if effort.whole and effort.name in chosen.search:
                _descend(bench, chosen, effort, target)


def _climb(bench: _Bench, base: Setting, effort: Effort) -> Sequence[SettingRecall]:
    """More and more of ``effort``, until twice nothing is gained by it."""
    climbed: list[SettingRecall] = []
    idle = 0
    for value in effort.ladder():
        one = bench.measure({**base, effort.name: value})
        gained = one.recall - climbed[-1].recall if climbed else 1.0
        climbed.append(one)
        idle = idle + 1 if gained < _NOTHING and value > (effort.now or 0) else 0
        if idle == 2 or one.seconds > _LONGEST:
            break
    return climbed


def _descend(bench: _Bench, chosen: SettingRecall, effort: Effort, target: float) -> None:
    """Less of ``effort``, by bisection, as long as the target is met."""
    others = {name: value for name, value in chosen.search.items() if name != effort.name}
    alike = [one for one in bench.tried.values() if one.search == {**others, effort.name: one.search.get(effort.name)}]
    high = int(chosen.search[effort.name])
    low = max((int(one.search[effort.name]) for one in alike if one.ci95[0] < target), default=int(effort.least))
    while low < high and high > _CLOSE * low + 1:
        middle = (low + high) // 2
        if bench.measure({**others, effort.name: middle}).ci95[0] >= target:
            high = middle
        else:
            low = middle
