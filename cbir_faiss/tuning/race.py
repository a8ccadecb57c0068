"""Successive halving: every index begins small, and the cheapest that may reach the targets is let grow.

An index is looked at when it holds 10,000 items, 50,000, and all, and its recall is predicted to the whole each time
(``predict``). What cannot reach a target even where it looks at most is given up; of the others the cheapest as far as
is known, by bytes or by time, grows to the next size, so that those that are dearer than the answer are never filled,
and where bytes count not even learnt. The first that holds all items, and exceeds the targets on queries that took no
part in choosing how it is searched, has won.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from cbir_faiss.base import registry
from cbir_faiss.collection.room import available_memory, gigabytes
from cbir_faiss.comparison.combine import digest
from cbir_faiss.comparison.index import Weighed, document_bytes, weigh
from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.comparison.timing import ROUNDS
from cbir_faiss.errors import BackendError, ConfigError, InputError, MissingDependency, Unsupported
from cbir_faiss.pipeline.fit import repeats
from cbir_faiss.tuning.data import Data, rungs_of
from cbir_faiss.tuning.grown import Encoded, First, Foretold, Grown
from cbir_faiss.tuning.predict import Bytes, Interval
from cbir_faiss.tuning.sizes import TAUGHT, index_bytes, learnt_from
from cbir_faiss.tuning.space import Space, Structure
from cbir_faiss.tuning.target import KNN, Limits, Minimise, Target
from cbir_faiss.tuning.trials import Check, Trial, Trials
from cbir_faiss.tuning.ways import Judge, Stores, Way

RUNGS = (10_000, 50_000)
FEW = 300
"""Queries that are asked of an index that does not hold all items yet."""
LEARNT = 100_000
_MISJUDGED = 0.1  # the share of a target that a prediction is never short of by mistake
_AS_QUICK = 1.5  # times as long as the quickest, which a noisy moment may make of the same
_RAISED = 4  # how often more is looked at where the other queries do not confirm
_DOCUMENTS = 5_000
_CANNOT = (InputError, ConfigError, Unsupported, MissingDependency, BackendError)
Note = Callable[[str], None]


@dataclass
class Entrant:
    """A structure on its way: every look at it, the best of its ways, and why it is out, while it is.

    confirmed: by each target's name, what the queries that took no part say, once they were asked. in_turn: whether
    it was timed in turn with those that are as quick.
    """

    structure: Structure
    looks: list[Trial] = field(default_factory=list)
    way: Way | None = None
    out: str = ""
    confirmed: Mapping[str, Interval] = field(default_factory=dict)
    in_turn: bool = False

    @property
    def trial(self) -> Trial | None:
        """The last look."""
        return self.looks[-1] if self.looks else None

    @property
    def items(self) -> int:
        """How many it held when it was searched last."""
        return self.looks[-1].items if self.looks and self.looks[-1].ways else 0


class Race:
    """The entrants over some data; ``until`` is the ``time.monotonic()`` at which to stop."""

    def __init__(
        self,
        data: Data,
        space: Space,
        targets: Sequence[Target],
        limits: Limits,
        minimise: Minimise,
        *,
        folder: Path,
        trials: Trials,
        until: float,
        note: Note | None = None,
        rungs: Sequence[int] = RUNGS,
    ) -> None:
        self.data, self.targets, self.trials = data, targets, trials
        self._space, self._limits, self._minimise = space, limits, minimise
        self._folder, self._until, self._note = folder, until, note
        self.total = len(data.items)
        self.rungs = rungs_of(self.total, rungs)
        self.entrants = [Entrant(structure) for structure in space.structures]
        self.late: list[Entrant] = []
        """Those for which there was no time."""
        self._stores = Stores(data, min(self.total, LEARNT))
        self._encoded: dict[str, Encoded] = {}

    def run(self) -> Entrant | None:
        """The winner; None where none was confirmed."""
        if self._minimise == "bytes" or self._limits.bytes is not None or self._limits.disk_bytes is not None:
            for contender in self.entrants:
                few = learnt_from(contender.structure.backend, self.total)
                if self.over:
                    self._leave(contender)
                elif few < self.rungs[0]:
                    self._look(contender, few, self._weigh)
        while (entrant := self._next()) is not None:
            if entrant.items < self.total:
                self._promote(entrant)
            elif (rivals := self._rivals(entrant)) and not self.over:
                self._time_in_turn(rivals)
            elif self._confirm(entrant):
                return entrant
        # A prediction may have given up too early: of equal items it cannot tell which were found.
        nearest = self.nearest()
        if nearest is not None and self._holds(nearest):
            return nearest
        return next((entrant for entrant in self._misjudged() if self._holds(entrant)), None)

    def nearest(self) -> Entrant | None:
        """The entrant that comes nearest to the targets and limits, looked at among all items where there is time."""
        tried = [entrant for entrant in self.entrants if entrant.trial is not None and entrant.trial.memory is not None]
        while tried:
            best = min(tried, key=lambda entrant: (self._violation(entrant), -entrant.items))
            if best.items == self.total or (best.items and not self._has_time_for(best)):
                return best
            if not self._regrow(best):
                tried.remove(best)
        return None

    def _misjudged(self) -> list[Entrant]:
        """Those that a prediction gave up, of hardly less than is wanted, the cheapest first; some hold all items since
        the nearest was looked for."""
        given_up = [e for e in self.entrants if e.items > 0 and (not e.out or e.items < self.total)]
        return sorted((e for e in given_up if self._violation(e) <= _MISJUDGED), key=self._cost)

    def _holds(self, entrant: Entrant) -> bool:
        """Whether one that was out is a winner after all, once it holds all items."""
        while entrant.items < self.total:
            if not self._has_time_for(entrant) or not self._regrow(entrant):
                return False
        entrant.way = self._best_way(entrant)
        if entrant.way is None or not self._confirm(entrant):
            return False
        entrant.out = ""
        return True

    def _regrow(self, entrant: Entrant) -> bool:
        """Let one that was out grow to the next size; False where it cannot."""
        before, entrant.out = entrant.items, ""
        self._promote(entrant)
        return entrant.items > before

    def _violation(self, entrant: Entrant) -> float:
        """The largest share by which the best of its ways misses a target or a limit, as far as it was looked at."""
        trial = entrant.trial
        assert trial is not None
        return min((self._missing(entrant, way) for way in trial.ways), default=self._over_limits(entrant, None))

    def _missing(self, entrant: Entrant, way: Way) -> float:
        short = [target.short(way.values[target.key][0]) for target in self.targets]
        return max(*short, self._over_limits(entrant, way))

    def _over_limits(self, entrant: Entrant, way: Way | None) -> float:
        trial, limits = entrant.trial, self._limits
        assert trial is not None
        memory, disk = (weight.per_item(self.total) for weight in self.weight(entrant, way))
        ms = trial.pace(way).at(self.total) if way is not None and way.p50_ms is not None else 0.0
        costs = ((memory, limits.bytes), (disk, limits.disk_bytes), (ms, limits.ms))
        return max((cost / limit - 1 for cost, limit in costs if limit is not None), default=-1.0)

    def nearest_way(self, entrant: Entrant) -> Way:
        """The one that misses targets and limits least."""
        assert entrant.trial is not None
        return min(entrant.trial.ways, key=lambda way: self._missing(entrant, way))

    # -- who is next

    def _next(self) -> Entrant | None:
        return min((entrant for entrant in self.entrants if not entrant.out), key=self._cost, default=None)

    def _rivals(self, leader: Entrant) -> list[Entrant]:
        """Where time counts, those that may be as quick as ``leader``, with it, while one of them was not timed in turn
        with the others: each was timed at a moment of its own."""
        if self._minimise != "latency":
            return []
        longest = _AS_QUICK * self._cost(leader)[0]
        near = [e for e in self.entrants if not e.out and e.items == self.total and self._cost(e)[0] <= longest]
        return near if len(near) > 1 and not all(entrant.in_turn for entrant in near) else []

    def _time_in_turn(self, rivals: Sequence[Entrant]) -> None:
        """Time their ways again, a round of each after the other: the best round of each counts."""
        rounds = [[self._timed_once(entrant) for entrant in rivals] for _ in range(ROUNDS)]
        for entrant, taken in zip(rivals, zip(*rounds, strict=True), strict=True):
            ways = [min(same, key=lambda way: way.p50_ms or 0.0) for same in zip(*taken, strict=True)]
            entrant.looks[-1] = replace(entrant.looks[-1], ways=ways)
            entrant.in_turn, entrant.way = True, self._best_way(entrant)
            if entrant.way is None:
                entrant.out = self._short_of(entrant)

    def _timed_once(self, entrant: Entrant) -> Sequence[Way]:
        """Its ways, those that reach the targets timed again by one round, while there is time."""
        ways = entrant.looks[-1].ways
        if self.over:
            return ways
        grown = self.opened(entrant)
        try:
            judge = self.judge(entrant, grown)
            return [judge.timed(way, rounds=1) if way.meets and way.p50_ms is not None else way for way in ways]
        finally:
            grown.rest()

    def _cost(self, entrant: Entrant) -> tuple[float, float]:
        """What an entrant costs among all items, as far as is known; before the first look, nothing."""
        if entrant.trial is None:
            return (0.0, 0.0)
        memory, way = self.weight(entrant)[0].per_item(self.total), entrant.way
        ms = entrant.trial.pace(way).at(self.total) if way is not None and way.p50_ms is not None else 0.0
        return (memory, ms) if self._minimise == "bytes" else (ms, memory)

    def weight(self, entrant: Entrant, way: Way | None = None) -> tuple[Bytes, Bytes]:
        """Memory and disk, with what the way's rescorer has learnt, and on the disk its columns."""
        trial, way = entrant.trial, way or entrant.way
        assert trial is not None
        assert trial.memory is not None
        assert trial.disk is not None
        if way is None:
            return trial.memory, trial.disk
        rescorer, stored = self._stores.of(entrant.structure.rescore[way.setting.rescore])
        state = sum(array.nbytes for array in rescorer.state.values())
        raw = entrant.structure.codec.name == "raw"  # which a collection has in one file with what is equal
        kept = [values for values in stored.values() if not (raw and repeats(values, self.data.items))]
        columns = sum(values.nbytes for values in kept) / self.total
        return (
            replace(trial.memory, fixed=trial.memory.fixed + state),
            Bytes(trial.disk.growing + columns, trial.disk.fixed + state),
        )

    # -- a look

    def _promote(self, entrant: Entrant) -> None:
        """Let it grow to the next size, if there is time, and judge it."""
        if not self._has_time_for(entrant):
            self._leave(entrant)
            return
        size = next(size for size in self.rungs if size > entrant.items)
        if (lacking := self._lacks_memory(entrant, size)) is not None:
            entrant.out = lacking
            return
        if self._look(entrant, size, self._grow):
            entrant.way = self._best_way(entrant)
            if entrant.way is None:
                entrant.out = self._short_of(entrant)

    def _leave(self, entrant: Entrant) -> None:
        entrant.out = "there was no time left"
        if entrant not in self.late:
            self.late.append(entrant)

    def _lacks_memory(self, entrant: Entrant, size: int) -> str | None:
        """Why an index of so many items does not fit, as far as is known what one takes."""
        trial, there = entrant.trial, available_memory()
        if trial is None or trial.memory is None or there is None:
            return None
        takes = round(trial.memory.per_item(size) * size)
        return f"takes {gigabytes(takes)} of memory, there are {gigabytes(there)}" if takes > there else None

    def _look(self, entrant: Entrant, size: int, look: Callable[[Entrant, int], Trial]) -> bool:
        """Take a look from the file of trials, or a new one; False where the structure cannot be."""
        key = entrant.structure.key
        trial = self.trials.found.get((key, size))
        if trial is None:
            if self._note is not None:
                self._note(f"{entrant.structure.title}: {size:,} items")
            began = time.monotonic()
            lasting = True
            try:
                trial = look(entrant, size)
            except _CANNOT as error:
                trial = Trial(key, size, reason=str(error))
                lasting = not isinstance(error, BackendError)  # a disk or a memory that is full may be less so later
            trial = replace(trial, seconds=time.monotonic() - began)
            if lasting:
                self.trials.add(trial)
        entrant.looks.append(trial)
        if trial.reason:
            entrant.out = trial.reason
        elif self._limits.bytes is not None and self._cost_in_memory(entrant) > self._limits.bytes:
            entrant.out = f"takes {self._cost_in_memory(entrant):,.1f} bytes an item"
        return not entrant.out

    def _cost_in_memory(self, entrant: Entrant) -> float:
        return self.weight(entrant)[0].per_item(self.total)

    def _weigh(self, entrant: Entrant, size: int) -> Trial:
        """How large an index will be, from small ones; what they learn from is small too."""
        structure, folder = entrant.structure, self._folder / entrant.structure.key
        encoded = self._codes(structure, size)
        told = index_bytes(structure.backend, encoded[0:size], encoded.codec.kind, self.total, folder / "small")
        whole = Foretold(First(encoded, self.total), told)
        return self._weighed(Trial(structure.key, size), whole, self.total, folder)

    def _grow(self, entrant: Entrant, size: int) -> Trial:
        structure, trial = entrant.structure, entrant.trial
        grown, began, filled = self._opened(entrant), 0, 0.0
        try:
            if grown.n == 0:
                grown.grow(max(1, size // 2))
                grown.keep_aside()
            began, filled = grown.n, grown.seconds
            grown.grow(size)
            judge, judged = self.judge(entrant, grown), time.monotonic()
            ways = judge.ways()
            judged = time.monotonic() - judged
            per_item = (grown.seconds - filled) / max(1, size - began)
            codes = grown.encoded
            checks = self._checks(entrant, judge) if size == self.total else []
            looked = Trial(
                structure.key,
                size,
                ways,
                bits=codes.codec.bits or grown.code_bits,
                checks=checks,
                slope_ms=self._slope_ms(judge, grown, ways, 0.0 if trial is None else trial.slope_ms),
                fill_seconds=grown.seconds,
                build_seconds=grown.seconds + codes.seconds_for(size),
                judge_seconds=judged,
                item_seconds=per_item + (codes.seconds_for(size) - codes.seconds_for(0)) / size,
                walks=judge.walks,
            )
            foretold = next((look for look in entrant.looks if not look.ways), None)
            if foretold is not None and size < self.total:  # lists that are not full yet take more of an item
                return replace(looked, memory=foretold.memory, disk=foretold.disk, state_bytes=grown.state_bytes)
            weighed = self._weighed(looked, grown, size, grown.folder)
            if foretold is None or foretold.memory is None or weighed.memory is None:
                return weighed
            sizes = (foretold.memory.per_item(size), weighed.memory.per_item(size))
            return replace(weighed, checks=[*checks, Check("bytes", foretold.items, size, *sizes)])
        finally:
            grown.rest()

    def _checks(self, entrant: Entrant, judge: Judge) -> list[Check]:
        """How well the last look predicted what this one, at all items, measures of the same setting."""
        trial, way = entrant.trial, entrant.way
        if trial is None or way is None or way.p50_ms is None:
            return []
        now = judge.judged(way.setting)
        counted = [target.key for target in self.targets if not target.by_labels]
        pairs = [(name, way.values[name][0], now.values[name][0]) for name in counted]
        pairs.append(("ms", trial.pace(way).at(self.total), now.p50_ms or 0.0))
        sizes = trial.items, self.total
        return [Check(what, *sizes, foretold, measured, trial.walks) for what, foretold, measured in pairs]

    def judge(self, entrant: Entrant, grown: Grown, confirming: bool = False) -> Judge:
        """Of an index that is open, by the queries for tuning, or by the others."""
        return Judge(
            self.data,
            self.data.confirming if confirming else self.data.tuning,
            entrant.structure,
            grown,
            self._stores,
            self.targets,
            self._space,
            most=None if grown.n == self.total else FEW,
        )

    def _asked(self, size: int) -> int:
        """Queries that an index of so many items is asked."""
        return len(self.data.tuning) if size == self.total else min(FEW, len(self.data.tuning))

    def opened(self, entrant: Entrant) -> Grown:
        """Its index with all that it held when it was looked at last."""
        grown = self._opened(entrant)
        if grown.n < entrant.items:
            grown.grow(entrant.items)
        return grown

    def _opened(self, entrant: Entrant) -> Grown:
        structure, trial = entrant.structure, entrant.trial
        grown = Grown(structure.backend, self._codes(structure), self._folder / structure.key, min(self.total, LEARNT))
        if trial is not None and trial.ways:
            grown.resume(trial.items, trial.fill_seconds, trial.state_bytes)
        return grown

    def _codes(self, structure: Structure, some: int | None = None) -> Encoded:
        """The codec of a structure, fitted; of ``some`` items, where only their size is asked for."""
        key = digest([structure.codec.name, structure.codec.options, some])
        if key not in self._encoded:
            learnt = min(self.total, LEARNT) if some is None else min(some, TAUGHT)
            self._encoded[key] = Encoded(structure.codec, self.data.items[:some], self.data.labels[:learnt], learnt)
        return self._encoded[key]

    def _weighed(self, trial: Trial, index: Weighed, items: int, folder: Path) -> Trial:
        none = registry.make("rescorers", "none")
        folder.mkdir(parents=True, exist_ok=True)
        weight = weigh(index, none, round(self._document_bytes * items), None, folder)
        assert weight.memory is not None
        assert weight.growing_memory is not None
        assert weight.disk is not None
        assert weight.growing_disk is not None
        return replace(
            trial,
            memory=_bytes(weight.memory, weight.growing_memory, items),
            disk=_bytes(weight.disk, weight.growing_disk, items),
            state_bytes=index.state_bytes,
        )

    @cached_property
    def _document_bytes(self) -> float:
        """Of an item, beside its code and vector."""
        data = self.data
        some = slice(0, _DOCUMENTS)
        places = [(data.source, int(row)) for row in data.order[some]]
        side = Side(data.items[some], data.labels[some], places=places)
        return document_bytes(Split(side, side)) / len(side)

    def _slope_ms(self, judge: Judge, grown: Grown, ways: Sequence[Way], known: float) -> float:
        """What each item adds to the time of the index itself, from what was kept aside of it and the whole; ``known``
        where nothing can tell."""
        timed = [way for way in ways if way.p50_ms is not None]
        half = grown.aside() if timed else None
        if half is None:
            return known
        try:
            setting = min(timed, key=lambda way: way.p50_ms or 0.0).setting
            whole_ms, half_ms = judge.index_ms(setting, [grown.backend, half])
            return max(0.0, whole_ms - half_ms) / max(1, grown.n - half.count())
        finally:
            half.close()

    # -- what is decided

    def _best_way(self, entrant: Entrant) -> Way | None:
        """The quickest of those that reach the targets within the limits; of an index that is not whole yet, also of
        those that may."""
        trial = entrant.trial
        assert trial is not None
        timed = [way for way in trial.ways if way.p50_ms is not None]
        left = [way for way in timed if way.meets]
        if not left:
            left = [way for way in timed if way.may_meet]
        limits = self._limits
        if limits.bytes is not None and self._cost_in_memory(entrant) > limits.bytes:
            return None
        if limits.ms is not None:  # more items do not make it quicker
            left = [way for way in left if (way.p50_ms or 0.0) <= limits.ms]
        if limits.disk_bytes is not None:
            left = [way for way in left if self.weight(entrant, way)[1].per_item(self.total) <= limits.disk_bytes]
        return min(left, key=lambda way: trial.pace(way).at(self.total), default=None)

    def _short_of(self, entrant: Entrant) -> str:
        trial = entrant.trial
        assert trial is not None
        best = max(trial.ways, key=lambda way: way.margin)
        said = ", ".join(f"{name} {mean:.3f}" for name, (mean, _) in best.values.items())
        among = "" if trial.items == self.total else f" (predicted from {trial.items:,})"
        return f"reaches {said} at most{among}" if best.margin < 0 else f"reaches {said}, but not within the limits"

    def _confirm(self, entrant: Entrant) -> bool:
        """Whether the queries that took no part say so too; where they do not, more is looked at, a few times, as long
        as it is the cheapest."""
        if self.over:
            self._leave(entrant)
            return False
        grown = self.opened(entrant)
        try:
            tuning, confirming = self.judge(entrant, grown), self.judge(entrant, grown, confirming=True)
            for _ in range(_RAISED):
                assert entrant.way is not None
                entrant.confirmed = self._confirmed(confirming, entrant.way)
                if all(entrant.confirmed[target.key].low >= target.bound for target in self.targets):
                    return True
                setting = tuning.more(entrant.way.setting)
                if setting is None or self.over:
                    break
                way = tuning.judged(setting)
                if self._limits.ms is not None and (way.p50_ms or 0.0) > self._limits.ms:
                    break
                entrant.way = way
                if any(self._cost(other) < self._cost(entrant) for other in self.entrants if not other.out):
                    return False  # by what it takes now another has its turn
            said = ", ".join(f"{name} {found.value:.3f}" for name, found in entrant.confirmed.items())
            entrant.out = f"other queries do not confirm it: {said}"
            return False
        finally:
            grown.rest()

    def judge_lost(self, entrant: Entrant) -> None:
        """What the queries that took no part say of an entrant that did not win, where it holds all items."""
        if entrant.items < self.total or self.over:
            return
        entrant.way = entrant.way or self.nearest_way(entrant)
        grown = self.opened(entrant)
        try:
            if entrant.way.p50_ms is None:
                entrant.way = self.judge(entrant, grown).judged(entrant.way.setting)
            entrant.confirmed = self._confirmed(self.judge(entrant, grown, confirming=True), entrant.way)
        finally:
            grown.rest()

    def _confirmed(self, judge: Judge, way: Way) -> dict[str, Interval]:
        """By the name of each measure, and of each difference from raw floats that is a target."""
        plain = (replace(target, of_raw=False) for target in (also(self.total), *self.targets))
        wanted = {target.key: target for target in (*plain, *self.targets)}
        found = {}
        for name, target in wanted.items():
            found[name] = target.interval(judge.values(way.setting, target))
        return found

    # -- time

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() >= self._until

    def _has_time_for(self, entrant: Entrant) -> bool:
        """Whether the next look at it can be expected to end in time."""
        size = next(size for size in self.rungs if size > entrant.items)
        known = (entrant.structure.key, size) in self.trials.found
        return known or time.monotonic() + self._expected(entrant, size) < self._until

    def _expected(self, entrant: Entrant, size: int) -> float:
        """Seconds that a look will take: a first one as the slowest that was, another as the last, by the items that
        are added, and by the queries that are asked, each of which a scan compares with all items."""
        if not entrant.items:
            first = [look.seconds for e in self.entrants for look in e.looks if look.items == size and look.ways]
            return max(first, default=0.0)
        last = entrant.looks[-1]
        filled = last.items if (self._folder / entrant.structure.key / "full").exists() else 0
        asked = self._asked(size) / self._asked(last.items) * (1.0 if last.walks else size / last.items)
        return last.item_seconds * (size - filled) + last.judge_seconds * asked


def also(items: int) -> Target:
    """What is measured whatever the targets are."""
    return Target(KNN, min(10, items), 0.0)


def _bytes(total: float, growing: float, items: int) -> Bytes:
    return Bytes(growing / items, total - growing)
