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
from cbir_faiss.comparison.combine import digest
from cbir_faiss.comparison.index import Weighed, document_bytes, weigh
from cbir_faiss.comparison.split import Side, Split
from cbir_faiss.errors import BackendError, ConfigError, InputError, MissingDependency, Unsupported
from cbir_faiss.measures.bootstrap import bootstrap_ci
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
_RAISED = 4  # how often more is looked at where the other queries do not confirm
_DOCUMENTS = 5_000
_CANNOT = (InputError, ConfigError, Unsupported, MissingDependency, BackendError)
Note = Callable[[str], None]


@dataclass
class Entrant:
    """A structure on its way: every look at it, the best of its ways, and why it is out, while it is.

    confirmed: by each target's name, what the queries that took no part say, once they were asked.
    """

    structure: Structure
    looks: list[Trial] = field(default_factory=list)
    way: Way | None = None
    out: str = ""
    confirmed: Mapping[str, Interval] = field(default_factory=dict)

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
                if few < self.rungs[0]:
                    self._look(contender, few, self._weigh)
        while (entrant := self._next()) is not None:
            if entrant.items < self.total:
                self._promote(entrant)
            elif self._confirm(entrant):
                return entrant
        # A prediction may have given up too early: of equal items it cannot tell which were found.
        nearest = self.nearest()
        if nearest is not None and nearest.items == self.total:
            nearest.way = self._best_way(nearest)
            if nearest.way is not None and self._confirm(nearest):
                nearest.out = ""
                return nearest
        return None

    def nearest(self) -> Entrant | None:
        """The entrant that comes nearest to the targets, looked at among all items where there is time for it."""
        tried = [entrant for entrant in self.entrants if entrant.items] or self._smallest()
        while tried:
            best = max(tried, key=lambda entrant: (_margin(entrant), entrant.items))
            if best.items == self.total or not self._has_time_for(best):
                return best
            before, best.out = best.items, ""
            self._promote(best)
            if best.items == before:
                tried.remove(best)
        return None

    def _smallest(self) -> list[Entrant]:
        """Where every index exceeds the limits before it is searched, the one that does so least, looked at once."""
        weighed = [e for e in self.entrants if e.trial is not None and e.trial.memory is not None]
        best = min(weighed, key=self._cost_in_memory, default=None)
        if best is None:
            return []
        best.out = ""
        self._promote(best)
        return [best] if best.items else []

    # -- who is next

    def _next(self) -> Entrant | None:
        return min((entrant for entrant in self.entrants if not entrant.out), key=self._cost, default=None)

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
        columns = sum(values.nbytes for values in stored.values()) / self.total
        return (
            replace(trial.memory, fixed=trial.memory.fixed + state),
            Bytes(trial.disk.growing + columns, trial.disk.fixed + state),
        )

    # -- a look

    def _promote(self, entrant: Entrant) -> None:
        """Let it grow to the next size, if there is time, and judge it."""
        if not self._has_time_for(entrant):
            entrant.out = "there was no time left"
            self.late.append(entrant)
            return
        size = next(size for size in self.rungs if size > entrant.items)
        if self._look(entrant, size, self._grow):
            entrant.way = self._best_way(entrant)
            if entrant.way is None:
                entrant.out = self._short_of(entrant)

    def _look(self, entrant: Entrant, size: int, look: Callable[[Entrant, int], Trial]) -> bool:
        """Take a look from the file of trials, or a new one; False where the structure cannot be."""
        key = entrant.structure.key
        trial = self.trials.found.get((key, size))
        if trial is None:
            if self._note is not None:
                self._note(f"{entrant.structure.title}: {size:,} items")
            began = time.monotonic()
            try:
                trial = look(entrant, size)
            except _CANNOT as error:
                trial = Trial(key, size, reason=str(error))
            trial = replace(trial, seconds=time.monotonic() - began)
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
            first = grown.n == 0
            if first:
                grown.grow(max(1, size // 2))
                grown.keep_aside()
            began, filled = grown.n, grown.seconds
            grown.grow(size)
            judge = self.judge(entrant, grown)
            ways = judge.ways()
            slope = 0.0 if trial is None else trial.slope_ms
            if first:
                slope = self._slope_ms(judge, grown, ways)
            per_item = (grown.seconds - filled) / max(1, size - began)
            codes = grown.encoded
            checks = self._checks(entrant, judge) if size == self.total else []
            looked = Trial(
                structure.key,
                size,
                ways,
                bits=codes.codec.bits or grown.code_bits,
                checks=checks,
                slope_ms=slope,
                fill_seconds=grown.seconds,
                build_seconds=grown.seconds + codes.seconds_for(size),
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

    def _slope_ms(self, judge: Judge, grown: Grown, ways: Sequence[Way]) -> float:
        """What each item adds to the time of the index itself, from half of it and the whole."""
        timed = [way for way in ways if way.p50_ms is not None]
        if not timed:
            return 0.0
        setting = min(timed, key=lambda way: way.p50_ms or 0.0).setting
        half = grown.aside()
        try:
            apart = judge.index_ms(setting, grown.backend) - judge.index_ms(setting, half)
            return max(0.0, apart / max(1, grown.n - half.count()))
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
        """Whether the queries that took no part say so too; where they do not, more is looked at, a few times."""
        grown = self.opened(entrant)
        try:
            tuning, confirming = self.judge(entrant, grown), self.judge(entrant, grown, confirming=True)
            for _ in range(_RAISED):
                assert entrant.way is not None
                entrant.confirmed = self._confirmed(confirming, entrant.way)
                if all(entrant.confirmed[target.key].low >= target.bound for target in self.targets):
                    return True
                setting = tuning.more(entrant.way.setting)
                if setting is None:
                    break
                way = tuning.judged(setting)
                if self._limits.ms is not None and (way.p50_ms or 0.0) > self._limits.ms:
                    break
                entrant.way = way
            said = ", ".join(f"{name} {found.value:.3f}" for name, found in entrant.confirmed.items())
            entrant.out = f"other queries do not confirm it: {said}"
            return False
        finally:
            grown.rest()

    def judge_lost(self, entrant: Entrant) -> None:
        """What the queries that took no part say of an entrant that did not win, where it holds all items."""
        if entrant.items < self.total:
            return
        trial = entrant.trial
        assert trial is not None
        entrant.way = entrant.way or max(trial.ways, key=lambda way: way.margin)
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
            values = judge.values(way.setting, target)
            low, high = bootstrap_ci(values)
            found[name] = Interval(float(values.mean()), float(low), float(high))
        return found

    # -- time

    def _has_time_for(self, entrant: Entrant) -> bool:
        """Whether the next look at it can be expected to end in time: as the last one, by the items that are added."""
        size = next(size for size in self.rungs if size > entrant.items)
        if (entrant.structure.key, size) in self.trials.found:
            return True
        expected = 0.0
        if entrant.items:
            last = entrant.looks[-1]
            expected = last.item_seconds * (size - entrant.items) + (last.seconds - last.build_seconds)
        return time.monotonic() + max(0.0, expected) < self._until


def also(items: int) -> Target:
    """What is measured whatever the targets are."""
    return Target(KNN, min(10, items), 0.0)


def _margin(entrant: Entrant) -> float:
    assert entrant.trial is not None
    return max(way.margin for way in entrant.trial.ways)


def _bytes(total: float, growing: float, items: int) -> Bytes:
    return Bytes(growing / items, total - growing)
