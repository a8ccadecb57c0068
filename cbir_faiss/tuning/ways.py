"""The ways to search one index: what each finds, and the least that reaches the targets."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Backend, Rescorer
from cbir_faiss.base.filters import Where
from cbir_faiss.comparison.index import RowIndex
from cbir_faiss.comparison.timing import LATENCY_K, QUERIES, ROUNDS, Timed
from cbir_faiss.config import Choice
from cbir_faiss.errors import ConfigError
from cbir_faiss.measures.neighbours import knn_recall, true_distances
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.fit import Fitted, Sample
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.tuning.data import NEIGHBOURS, Data, Queries, worth
from cbir_faiss.tuning.grown import Grown
from cbir_faiss.tuning.predict import Interval, Seen
from cbir_faiss.tuning.space import Space, Structure
from cbir_faiss.tuning.target import KNN, Target
from cbir_faiss.types import Codes, Columns, Hits

_TOLD = 1.96
_T = TypeVar("_T")
SURE = 3.0
"""Errors of a mean by which the tuning queries have to exceed a target, so that others are likely to confirm it."""
_WALKS = "ef"
HOPE, LABEL_HOPE = 0.03, 0.1
"""What a prediction may be short of a target before an index is given up; of one by labels, of which there are fewer in
a sample, more."""
_REMEMBERED = 8
_WIDE = 256  # candidates of a walk that is taken to find what there is to find
_FARTHER, _FARTHER_95 = 0.5, (0.75, 0.25)  # exponents of the items in how wide a walk has to be to find as much
_DEEP = 150  # hits that are looked at to predict from, where nothing is put in order again


@dataclass(frozen=True)
class Setting:
    """How an index is searched: search options, which of the structure's rescorers, how many candidates for it."""

    rescore: int
    search: Mapping[str, Any] = field(default_factory=dict)
    candidates: int | None = None


@dataclass(frozen=True)
class Way:
    """A setting and what it is worth.

    values: of each target, the mean, and its error, at the size that the targets are meant for. margin: the least that
    a target is exceeded by, less what chance may have given. may_meet: whether it meets the targets as far as chance,
    or a prediction, may be off. p50_ms, p95_ms, p99_ms: of one query alone on one thread;
    batch_ms: of each of many.
    """

    setting: Setting
    values: Mapping[str, tuple[float, float]]
    margin: float
    may_meet: bool = False
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    batch_ms: float | None = None

    @property
    def meets(self) -> bool:
        return self.margin >= 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Way:
        values = {name: (float(v[0]), float(v[1])) for name, v in stored["values"].items()}
        return cls(**{**stored, "setting": Setting(**stored["setting"]), "values": values})


class Stores:
    """What rescorers learnt and keep of all items, once for each."""

    def __init__(self, data: Data, learnt: int) -> None:
        self._data, self._learnt = data, learnt
        self._known: dict[str, tuple[Rescorer, Columns]] = {}

    def of(self, choice: Choice, candidates: int | None = None) -> tuple[Rescorer, Columns]:
        """The rescorer that looks at so many candidates, and its columns."""
        options = {name: value for name, value in choice.options.items() if name != "candidates"}
        key = repr((choice.name, sorted(options.items())))
        if key not in self._known:
            data = self._data
            sample = Sample({"embedding": data.items[: self._learnt]}, data.labels[: self._learnt])
            fitted = sample.fit_rescorer(choice.make())
            self._known[key] = fitted, fitted.pack({"embedding": data.items})
        fitted, stored = self._known[key]
        if candidates is None:
            return fitted, stored
        made: Rescorer = choice.make(candidates=candidates)
        made.state = fitted.state
        return made, stored


@dataclass
class _Asked(RowIndex):
    """An index that remembers what it found for ``many`` queries, all there are: settings go on from the same hits."""

    found: dict[tuple[str, int], Hits]
    many: int

    def search(self, codes: Codes, k: int, where: Where | None) -> Hits:
        if len(codes) != self.many:
            return super().search(codes, k, where)
        options = repr(sorted(self.search_options.items()))
        for (asked, depth), hits in self.found.items():
            # A walk that is asked for more goes farther: its first hits are not those of a shorter one.
            if asked == options and (depth == k or (depth > k and _WALKS not in self.search_options)):
                return hits if depth == k else Hits(hits.ids[:, :k], hits.distances[:, :k])
        if len(self.found) > _REMEMBERED:
            self.found.pop(next(iter(self.found)))
        self.found[options, k] = super().search(codes, k, where)
        return self.found[options, k]


class Judge:
    """One index, as large as it is now, and what its settings are worth among ``total`` items.

    queries: those that are asked, the first ``most`` of them.
    """

    def __init__(
        self,
        data: Data,
        queries: Queries,
        structure: Structure,
        grown: Grown,
        stores: Stores,
        targets: Sequence[Target],
        space: Space,
        *,
        most: int | None = None,
    ) -> None:
        self._data, self._structure, self._grown, self._stores = data, structure, grown, stores
        self._targets, self._space = targets, space
        self._count = min(len(queries), most or len(queries))
        self._queries = queries
        self._embedding = queries.embedding[: self._count]
        self._found: dict[tuple[str, int], Hits] = {}
        self._seen: dict[int, tuple[Hits, Seen]] = {}
        self._deepest = max(target.k for target in targets)
        self.growth = len(data.items) / grown.n

    # -- the least setting that will do

    def ways(self) -> list[Way]:
        """Of each rescorer, the settings to choose from; where none reaches the targets, the one that looks at most.

        Those that are far from the targets are not timed."""
        found = []
        for number in range(len(self._structure.rescore)):
            enough = [self.timed(self._judged(setting)) for setting in self._enough(number)]
            if not enough:
                best = self._judged(self._utmost(number))
                enough = [self.timed(best) if best.may_meet or best.margin >= -HOPE else best]
            found += enough
        return found

    def grid(self, number: int, every: int = 1) -> Iterator[Setting]:
        """Every setting with a rescorer; of the values of an option each so-manieth, and the last."""
        candidates = _each(self._candidates(number), every)
        if self._bound(candidates):
            yield from (Setting(number, {_WALKS: count}, count) for count in candidates)
            return
        for search, count in itertools.product(_each(self.searches, every), candidates):
            yield Setting(number, search, count)

    def more(self, setting: Setting) -> Setting | None:
        """The next setting that looks at more; None where there is none."""
        candidates = self._candidates(setting.rescore)
        among = candidates.index(setting.candidates) + 1
        if self._bound(candidates):
            return (
                Setting(setting.rescore, {_WALKS: candidates[among]}, candidates[among]) if candidates[among:] else None
            )
        if candidates[among:]:
            return replace(setting, candidates=candidates[among])
        wider = self.searches[self.searches.index(dict(setting.search)) + 1 :]
        return replace(setting, search=wider[0]) if wider else None

    def _enough(self, number: int) -> Iterator[Setting]:
        """The least setting that reaches the targets; where two options can be played off, up to three of them."""
        searches, candidates = self.searches, self._candidates(number)
        if self._bound(candidates):  # a walk keeps as many as go on
            pairs = [Setting(number, {_WALKS: count}, count) for count in candidates]
            least = _least(len(pairs), partial(self._reaches, pairs))
            yield from pairs[least : least + 1] if least is not None else []
            return
        widest = [Setting(number, search, candidates[-1]) for search in searches]
        first = _least(len(searches), partial(self._reaches, widest))
        if first is None:
            return
        seen: list[int | None] = []
        for search in searches[first : first + 5 : 2] if len(candidates) > 1 else searches[first : first + 1]:
            settings = [Setting(number, search, count) for count in candidates]
            least = _least(len(candidates), partial(self._reaches, settings))
            if least is not None and candidates[least] not in seen:
                seen.append(candidates[least])
                yield Setting(number, search, candidates[least])

    def _reaches(self, settings: Sequence[Setting], number: int) -> bool:
        return self.margin(settings[number]) >= 0

    def _utmost(self, number: int) -> Setting:
        candidates = self._candidates(number)
        if self._bound(candidates):
            return Setting(number, {_WALKS: candidates[-1]}, candidates[-1])
        return Setting(number, self.searches[-1], candidates[-1])

    @property
    def walks(self) -> bool:
        """Whether it is a graph that is searched, in which a query walks."""
        return list(self.searches[0]) == [_WALKS]

    @cached_property
    def searches(self) -> list[dict[str, Any]]:
        """Search options to try, from the quickest to the most exact."""
        given = self._structure.backend.searches
        if given != ({},):
            return [dict(options) for options in given]
        for name, values in self._space.search.items():
            if self._takes(name, values[0]):
                return [{name: value} for value in values]
        return [{}]

    def _takes(self, name: str, value: Any) -> bool:
        if name not in self._grown.backend.SearchOptions.model_fields:
            return False
        try:
            codes = self._grown.encoded[np.arange(1)]
            self._grown.backend.search(codes, 1, None, {name: value})
        except ConfigError:  # one plugin may serve indexes of several types
            return False
        return True

    def _candidates(self, number: int) -> list[int | None]:
        choice = self._structure.rescore[number]
        if "candidates" not in choice.plugin().Options.model_fields:
            return [None]
        if "candidates" in choice.options:
            return [choice.options["candidates"]]
        most = len(self._data.items)
        return [count for count in self._space.candidates if self._deepest <= count <= most] or [self._deepest]

    def _bound(self, candidates: Sequence[int | None]) -> bool:
        return len(candidates) > 1 and self.walks and self._structure.backend.searches == ({},)

    # -- what a setting is worth

    def margin(self, setting: Setting) -> float:
        """The least by which it exceeds a target, among all items."""
        return min(self._exceeds(target, *self.expected(setting, target)) for target in self._targets)

    def expected(self, setting: Setting, target: Target) -> tuple[float, float]:
        """Mean and error among all items. Where these are more than are here, the recall is predicted, without an
        error, and by labels it is what exact search has among all, less what is lost of that here."""
        if self.growth > 1 and not target.by_labels:
            stages = self._stages(setting, target.k, self.growth)
            least = min(seen.recall(depth, target.k, self.growth) for seen, depth in stages)
            return least * self._walked(setting, target.k, self.growth) - (1 if target.of_raw else 0), 0.0
        values = self.values(setting, target)
        if self.growth > 1 and not target.of_raw:
            whole = self._data.exact(self._queries, target.measure, target.k)[: self._count]
            return float(np.clip((values - self._raw(target) + whole).mean(), 0, 1)), 0.0
        known = self.growth == 1 and len(values) > 1
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if known else 0.0

    def values(self, setting: Setting, target: Target) -> NDArray[np.float64]:
        """At each query, among the items that are here; of a target that is compared with raw floats, the difference
        from them."""
        found = self._measured(self.hits(setting, target.k), target)
        if not target.of_raw:
            return found
        return found - (self._raw(target) if target.by_labels else 1)

    def _raw(self, target: Target) -> NDArray[np.float64]:
        """What raw floats are worth by labels, at each query, among the items that are here."""
        return worth(self._relevance, self._neighbours[0][:, : target.k], target.measure, target.k)

    def hits(self, setting: Setting, k: int) -> Hits:
        """What all queries find."""
        return self._searcher(setting, None)[0].hits({"embedding": self._embedding}, k)

    def predicted(self, setting: Setting, k: int, growth: float, off: float) -> Interval:
        """The recall of ``k`` among ``growth`` times as many items; ``off``: how far predictions of it may be off."""
        stages = self._stages(setting, k, growth)
        told = min((seen.predicted(depth, k, growth, off) for seen, depth in stages), key=lambda one: one.value)
        at, least, most = (self._walked(setting, k, growth, farther) for farther in (_FARTHER, *_FARTHER_95))
        return Interval(told.value * at, told.low * min(least, at), told.high * max(most, at))

    def _stages(self, setting: Setting, k: int, growth: float) -> list[tuple[Seen, int]]:
        """What there is to predict its recall from: what each stage found that an item has to pass, and how many hits
        of it will count among ``growth`` times as many items.

        Where hits are put in order by the vectors themselves, it is which are candidates that decides.
        """
        choice = self._structure.rescore[setting.rescore]
        if setting.candidates is None:
            return [(self._first(setting, k, k, growth), k)]
        stages = [(self._first(setting, k, setting.candidates, growth), setting.candidates)]
        if "embedding" not in choice.plugin().needs_items:
            fewer = max(k, round(setting.candidates / growth))
            hits = self.hits(replace(setting, candidates=fewer), min(self._grown.n, max(k, _DEEP), fewer))
            stages.append((self._seen_in(hits), k))
        return stages

    def _first(self, setting: Setting, k: int, depth: int, growth: float) -> Seen:
        """What the index itself finds, of which ``depth`` hits will count; one search serves all numbers of them."""
        deepest = max([depth, *(count or 0 for count in self._candidates(setting.rescore))])
        known = min(self._grown.n, max(k, _DEEP, math.ceil(1.5 * deepest / growth)))
        hits = self._hits_of_index(setting, known, max(known, _WIDE))
        if id(hits) not in self._seen:
            self._seen[id(hits)] = hits, self._seen_in(hits)
        return self._seen[id(hits)][1]

    def _walked(self, setting: Setting, k: int, growth: float, farther: float = _FARTHER) -> float:
        """Which share of what a wide walk in a graph finds this one does, among ``growth`` times as many items: as a
        shorter one does here. What is not a graph loses nothing by it."""
        if list(setting.search) != [_WALKS]:
            return 1.0
        width = setting.search[_WALKS] / growth**farther
        known, few = min(self._grown.n, max(k, _DEEP)), max(k, round(width))
        wide = self._hits_of_index(setting, known, _WIDE).ids[:, :k]
        found = self._hits_of_index(setting, min(self._grown.n, few), few).ids
        share = float((wide[:, :, None] == found[:, None, :]).any(axis=2).mean())
        # A walk keeps as many as it is to find; what a shorter one would find is not seen here.
        return share * min(1.0, width / k) if farther > _FARTHER else share

    def _hits_of_index(self, setting: Setting, count: int, walk: int) -> Hits:
        """What the index alone finds with these options, in a graph with a walk of another width."""
        search = {_WALKS: walk} if list(setting.search) == [_WALKS] else setting.search
        with threads.phase("search"):
            return self._searcher(replace(setting, search=search), None)[1].search(self._codes, count, None)

    def _seen_in(self, hits: Hits) -> Seen:
        ids, nearest, apart = hits.ids, *self._neighbours
        nearest, apart = nearest[:, :NEIGHBOURS], apart[:, :NEIGHBOURS]
        same = self._data.same
        if same is not None:
            ids, nearest = np.where(ids < 0, ids, same[ids]), same[nearest]
        return Seen.of(ids, hits.distances, nearest, apart)

    @cached_property
    def _codes(self) -> Codes:
        return self._grown.encoded.codec.encode(self._embedding)

    def judged(self, setting: Setting) -> Way:
        """It, timed."""
        return self.timed(self._judged(setting))

    def _judged(self, setting: Setting) -> Way:
        values = {target.key: self.expected(setting, target) for target in self._targets}
        margin = min(self._exceeds(target, *values[target.key]) for target in self._targets)
        may_meet = all(self._may(target, *values[target.key]) for target in self._targets)
        return Way(setting, values, margin, may_meet)

    def _may(self, target: Target, mean: float, error: float) -> bool:
        """Whether it may reach the target, as far as these queries, or fewer items than all, can tell."""
        if self.growth == 1:
            return mean >= target.bound + _TOLD * error
        return mean >= target.bound - (LABEL_HOPE if target.by_labels and not target.of_raw else HOPE)

    @staticmethod
    def _exceeds(target: Target, mean: float, error: float) -> float:
        if mean >= 1 and not target.of_raw:
            return 1 - target.bound
        return mean - SURE * error - target.bound

    def _measured(self, hits: Hits, target: Target) -> NDArray[np.float64]:
        if target.measure == KNN:
            items = self._data.items[: self._grown.n]
            distances = true_distances(items, self._embedding, hits.ids[:, : target.k], self._data.metric)
            return knn_recall(distances, self._neighbours[1], target.k)
        return worth(self._relevance, hits.ids, target.measure, target.k)

    @cached_property
    def _relevance(self) -> Relevance | None:
        return Relevance.from_labels(self._data.labels[: self._grown.n], self._queries.labels[: self._count])

    @cached_property
    def _neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows, limits = self._queries.neighbours(self._grown.n)
        return rows[: self._count], limits[: self._count]

    # -- times

    def timed(self, way: Way, rounds: int = ROUNDS) -> Way:
        """It with the times of the best of some rounds: a noisy moment is not an index's fault."""
        searcher, _ = self._searcher(way.setting, 1)
        queries = {"embedding": self._embedding[:QUERIES]}
        timed = Timed(searcher.hits, searcher.hits, queries, max(LATENCY_K, self._deepest))
        for _ in range(rounds):
            timed.round()
        ms = timed.latency_ms
        return replace(way, p50_ms=ms["p50"], p95_ms=ms["p95"], p99_ms=ms["p99"], batch_ms=1000 / timed.qps)

    def index_ms(self, setting: Setting, backends: Sequence[Backend]) -> list[float]:
        """Milliseconds of each of many queries on one thread, of indexes alone: the best of some rounds, in turn.

        Of few hits: to keep many of few items takes a time of its own, which more items hardly change.
        """
        codes, options = self._codes[:QUERIES], dict(setting.search) or None
        took: list[list[float]] = [[] for _ in backends]
        with threads.phase("search", 1):
            for _ in range(ROUNDS + 1):
                for backend, times in zip(backends, took, strict=True):
                    began = time.perf_counter()
                    backend.search(codes, min(backend.count(), self._deepest), None, options)
                    times.append(time.perf_counter() - began)
        return [1000 * min(times) / len(codes) for times in took]

    def _searcher(self, setting: Setting, threads: int | None) -> tuple[Searcher, _Asked]:
        choice = self._structure.rescore[setting.rescore]
        rescorer, stored = self._stores.of(choice, setting.candidates)
        index = _Asked(self._grown, setting.search, stored, self._found, self._count)
        return Searcher(Fitted(self._grown.encoded.codec, rescorer, "embedding"), index, threads), index


def _each(values: Sequence[_T], every: int) -> list[_T]:
    chosen = list(values[::every])
    return chosen if chosen[-1] == values[-1] else [*chosen, values[-1]]


def _least(count: int, enough: Callable[[int], bool]) -> int | None:
    """The first of ``count`` from which on it is enough, by bisection; None where not even the last is."""
    if not enough(count - 1):
        return None
    low, high = -1, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
