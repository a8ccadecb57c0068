"""Say what is needed, get the index: the cheapest that reaches the targets on one's own data, and a config of it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base import Backend
from cbir_faiss.base.checks import check_floats
from cbir_faiss.collection.sync import Target as Engine
from cbir_faiss.comparison.combine import digest
from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.timing import Others, busier
from cbir_faiss.config import parse_choices
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.storage.catalogue import as_json
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import CURRENT
from cbir_faiss.storage.store import Store
from cbir_faiss.tuning.data import NEIGHBOURS, Data, Naming, naming_of_source, open_data, parse_naming, read_naming
from cbir_faiss.tuning.exact import DEFAULT_METRIC, copied, metric_of, replacing
from cbir_faiss.tuning.predict import ERROR, TIME_ERROR, off_by
from cbir_faiss.tuning.race import RUNGS, Entrant, Note, Race, also
from cbir_faiss.tuning.space import SECTIONS, Facts, Space, space_of
from cbir_faiss.tuning.target import Limits, Minimise, Target, parse_targets
from cbir_faiss.tuning.trials import Check, Trial, Trials
from cbir_faiss.tuning.ways import Way
from cbir_faiss.types import Metric

Section = str | Mapping[str, Any]
_TRIALS = "trials.jsonl"
_REPORTS = (b"<title>Tuned for ", b"<title>Not reached: ")
_BYTES_ERROR, _BUILD_ERROR = 0.005, 0.15


@dataclass(frozen=True)
class Tuned:
    """What was found.

    chosen: ``codec``, ``backend`` and ``rescore`` as a config has them, ``search`` and ``bits``; None where nothing
    could be looked at. measured: on queries that took no part in choosing; ``predicted`` at another size, None where
    none was asked for. front: what no other beats in bytes, time and the first target. met: whether ``chosen`` reaches
    the targets within the limits; if not it is what comes nearest. why: in words. config: the whole build config; of
    vectors in memory, or of an engine, without a source unless ``out`` was given: the copy is gone. checks: what was
    predicted from smaller sizes, and what was measured then. measure: the first target's. others: of every structure
    that is not chosen, why.
    """

    chosen: Mapping[str, Any] | None
    measured: Mapping[str, Any]
    predicted: Mapping[str, Any] | None
    front: Sequence[Mapping[str, Any]]
    met: bool
    why: str
    trials: int
    seconds: float
    config: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    checks: Sequence[Check] = ()
    others: Sequence[tuple[str, str]] = ()
    targets: Sequence[str] = ()
    measure: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As ``cbir tune --json`` prints it."""
        names = ("chosen", "measured", "predicted", "front", "met", "why", "trials", "seconds")
        return {name: getattr(self, name) for name in names}

    def write(self, out: Path) -> None:
        """Write the config that ``cbir build`` builds, with what it is worth above it."""
        head = "".join(f"# {line}\n" for line in [*self.targets, self.why])
        text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True, width=120)
        with writing_to(out):
            write_durably(out, (head + text).encode())


def tune(
    data: str | Path | NDArray[Any] | Mapping[str, Any] | Backend | Engine,
    targets: str | Sequence[str],
    *,
    labels: Sequence[Any] | None = None,
    max_bytes: float | None = None,
    max_disk_bytes: float | None = None,
    max_ms: float | None = None,
    items: int | None = None,
    minutes: float = 10.0,
    minimise: Minimise = "bytes",
    metric: Metric | None = None,
    codecs: Sequence[Section] | None = None,
    backends: Sequence[Section] | None = None,
    rescore: Sequence[Section] | None = None,
    out: str | Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
    rungs: Sequence[int] = RUNGS,
    space: Space | None = None,
) -> Tuned:
    """The cheapest index that reaches ``targets`` on ``data``.

    Args:
        data: a config that names a source (and, to narrow the choice, codecs, backends or rescorers), as a file or a
            mapping; a collection; an ``.npy`` file; vectors ``(n, dim)``, with ``labels``, one a row (a list where an
            item has several, None where it has none); or an engine, a backend or its name and options, which is read
            once and not changed.
        targets: such as ``"knn_recall@10 >= 0.95"`` and ``"map@5 >= raw - 0.01"``.
        max_bytes, max_disk_bytes: an item, in memory and on disk. max_ms: a query, on one thread.
        items: another size to predict to. minutes: when to stop looking.
        minimise: bytes of memory, or latency. metric: by what vectors are compared: cosine, l2 or ip; None: as
            ``metrics.truth.metric`` of a config says, or as an engine or a collection compares them, else cosine.
        codecs, backends, rescore: names, or mappings as in a config, to choose from instead of all there are.
        out: the config to write; beside it the report, and, while this runs, what a run that was stopped goes on from.
        progress, note: are told how far extraction is, and what is looked at. rungs: sizes of the looks, before all.
        space: what to choose from, in place of the package's and of what the config names.

    Raises:
        ConfigError: a target or config that cannot be read, or targets that contradict each other.
        InputError: too few items, or targets by labels where there are none.
    """
    began = time.monotonic()
    wanted = parse_targets([targets] if isinstance(targets, str) else targets)
    if minutes <= 0 or (items is not None and items < 1):
        raise ConfigError(f"minutes and items must be above 0, got {minutes} and {items}")
    _check_out(out, data)
    with _folder(out) as folder:
        given, metric = _given(data, labels, folder, metric, progress)
        naming = _narrowed(given, codecs=codecs, backends=backends, rescore=rescore)
        depth = max([NEIGHBOURS, *(target.k for target in wanted if target.by_labels)])
        cache = cache or default_cache()
        found = open_data(naming, metric, folder / "data", cache=cache, progress=progress, depth=depth)
        _check(wanted, found)
        facts = Facts(len(found.items), found.dim, metric, any(not target.by_labels for target in wanted))
        space = space or space_of(facts, naming.config, naming.sections)
        limits = Limits(max_bytes, max_disk_bytes, max_ms)
        run = digest(
            [found.digest, [str(t) for t in wanted], repr(limits), minimise, list(rungs)]
            + [{**environment(), "memory_bytes": None}]  # which varies a little each time a machine is started
            + [structure.key for structure in space.structures]
        )
        trials = Trials(folder / _TRIALS, run)
        until = began + 60 * minutes
        race = Race(
            found,
            space,
            wanted,
            limits,
            minimise,
            folder=folder / run,
            trials=trials,
            until=until,
            note=note,
            rungs=rungs,
        )
        others = Others()
        with others.watching():
            tuned = _Answer(race, wanted, limits, minimise, items).tuned(began, space.left_out)
        tuned = replace(tuned, environment={**environment(), **busier([others.cores()])})
        if out is None and isinstance(data, np.ndarray | Backend | Engine):
            tuned = replace(tuned, config={name: section for name, section in tuned.config.items() if name != "source"})
        if out is not None and tuned.met:
            tuned.write(Path(out))
        elif out is not None and Path(out).exists():
            _put_aside(Path(out))
        if tuned.met or not race.late:
            _clear(folder)
        if not race.late:
            trials.remove()
    if out is not None:
        from cbir_faiss.tuning.report import write_report

        write_report(tuned, Path(out).with_suffix(".html"))
    return tuned


def name_of(point: Mapping[str, Any]) -> str:
    """A point in words: ``itq bits=64 in faiss-binary-flat with float candidates=100``."""
    words = [_section(point[name]) for name in ("codec", "backend", "rescore")]
    search = "".join(f" {key}={value}" for key, value in point["search"].items())
    rescore = "" if point["rescore"]["name"] == "none" else f" with {words[2]}"
    return f"{words[0]} in {words[1]}{search}{rescore}"


def _section(section: Mapping[str, Any]) -> str:
    return " ".join([section["name"], *(f"{key}={value}" for key, value in section.items() if key != "name")])


class _Answer:
    """From a race to what is said of it."""

    def __init__(
        self,
        race: Race,
        targets: Sequence[Target],
        limits: Limits,
        minimise: Minimise,
        items: int | None,
    ) -> None:
        self._race, self._targets, self._limits, self._minimise = race, targets, limits, minimise
        self._items = items

    def tuned(self, began: float, left_out: Sequence[tuple[str, str]]) -> Tuned:
        race = self._race
        winner = race.run()
        entrant = winner or race.nearest()
        if entrant is not None and winner is None:
            race.judge_lost(entrant)
        if entrant is None and not race.late:
            reasons = [f"{e.structure.title}: {e.out}" for e in race.entrants if e.out]
            raise InputError(f"no index could be built; {reasons[0] if reasons else 'nothing to choose from'}")
        checks = [check for e in race.entrants for trial in e.looks for check in trial.checks]
        points = [self._point(e, way) for e in race.entrants for way in _shown(e)]
        said = [(e.structure.title, e.out or "dearer than the answer") for e in race.entrants if e is not entrant]
        predicted = None if entrant is None or self._items is None else self._predicted(entrant, checks, self._items)
        recalls = predicted is None or any("@" in name for name in predicted) or not race.over
        unpredicted = "" if recalls else " There was no time left to predict its recall."
        return Tuned(
            chosen=None if entrant is None else self._chosen(entrant, entrant.way),
            measured={} if entrant is None else self._measured(entrant),
            predicted=predicted,
            front=_front(points, self._targets[0].key),
            met=winner is not None,
            why=self._why(entrant, winner is not None) + unpredicted,
            trials=sum(len(e.looks) for e in race.entrants),
            seconds=time.monotonic() - began,
            config={} if entrant is None else self._config(entrant),
            points=points,
            checks=checks,
            others=[*said, *left_out],
            targets=[str(target) for target in self._targets],
            measure=self._targets[0].key,
        )

    # -- what it is

    def _chosen(self, entrant: Entrant, way: Way | None) -> dict[str, Any]:
        structure = entrant.structure
        rescore = structure.rescore[way.setting.rescore if way else 0]
        candidates = {"candidates": way.setting.candidates} if way and way.setting.candidates is not None else {}
        return {
            "codec": {"name": structure.codec.name, **structure.codec.options},
            "backend": {"name": structure.backend.name, **structure.backend.options},
            "rescore": {"name": rescore.name, **rescore.options, **candidates},
            "search": dict(way.setting.search) if way else {},
            "bits": entrant.trial.bits if entrant.trial else None,
        }

    def _config(self, entrant: Entrant) -> dict[str, Any]:
        chosen = self._chosen(entrant, entrant.way)
        search = {"search": chosen["search"]} if chosen["search"] else {}
        return {
            **self._race.data.sections,
            "codecs": [chosen["codec"]],
            "backends": [{**chosen["backend"], **search}],
            "rescore": [chosen["rescore"]],
        }

    def _measured(self, entrant: Entrant) -> dict[str, Any]:
        trial, way = entrant.trial, entrant.way
        assert trial is not None
        if entrant.confirmed:
            values = {name: found.as_json() for name, found in entrant.confirmed.items()}
        else:  # there was no time to ask the queries that took no part
            best = way or self._race.nearest_way(entrant)
            values = {name: {"value": mean, "ci95": None} for name, (mean, _) in best.values.items()}
        memory, disk = self._race.weight(entrant)
        return {
            **values,
            "bytes_per_item": memory.per_item(trial.items),
            "disk_bytes_per_item": disk.per_item(trial.items),
            **{name: getattr(way, name) if way else None for name in ("p50_ms", "p95_ms", "p99_ms")},
            "build_seconds": trial.build_seconds,
            "items": trial.items,
            "queries": len(self._race.data.confirming),
        }

    def _predicted(self, entrant: Entrant, checks: Sequence[Check], items: int) -> dict[str, Any]:
        trial, way, race = entrant.trial, entrant.way, self._race
        assert trial is not None
        growth = items / trial.items
        memory, disk = race.weight(entrant)
        size = memory.per_item(items)
        out: dict[str, Any] = {"items": items, **self._recall_at(entrant, checks, growth), "bytes_per_item": size}
        out["disk_bytes_per_item"] = disk.per_item(items)
        out["bytes_per_item_ci95"] = _around(size, _off(checks, "bytes", _BYTES_ERROR, growth))
        seconds = trial.build_seconds + trial.item_seconds * (items - trial.items) * _slower(trial, items)
        seconds = max(0.0, seconds)
        ms = None if way is None or way.p50_ms is None else trial.pace(way).at(items)
        out |= {"p50_ms": ms, "build_seconds": seconds}
        out["p50_ms_ci95"] = None if ms is None else _around(ms, _off(checks, "ms", TIME_ERROR, growth))
        out["build_seconds_ci95"] = _around(seconds, 2 * _BUILD_ERROR)
        return out

    def _recall_at(self, entrant: Entrant, checks: Sequence[Check], growth: float) -> dict[str, Any]:
        trial, way, race = entrant.trial, entrant.way, self._race
        if trial is None or way is None or race.over:
            return {}
        grown = race.opened(entrant)
        try:
            judge = race.judge(entrant, grown, confirming=trial.items == race.total)
            targets = {t.name: t for t in (also(race.total), *self._targets) if not t.by_labels}
            found: dict[str, Any] = {}
            for name, target in targets.items():
                off = _off(checks, name, ERROR * (2 if trial.walks else 1), growth)
                found[name] = judge.predicted(way.setting, target.k, growth, off).as_json()
            return found
        finally:
            grown.rest()

    # -- what it is compared with

    def _point(self, entrant: Entrant, way: Way) -> dict[str, Any]:
        trial, race = entrant.trial, self._race
        assert trial is not None
        memory, disk = race.weight(entrant, way)
        return {
            **self._chosen(entrant, way),
            "items": trial.items,
            **{name: mean for name, (mean, _) in way.values.items()},
            "meets": way.meets,
            "bytes_per_item": memory.per_item(race.total),
            "disk_bytes_per_item": disk.per_item(race.total),
            "p50_ms": trial.pace(way).at(race.total),
        }

    # -- in words

    def _why(self, entrant: Entrant | None, met: bool) -> str:
        race = self._race
        late = f" There was no time to look at {len(race.late)} more." if race.late else ""
        if entrant is None:
            return f"Nothing could be looked at in the time given.{late}"
        title = name_of(self._chosen(entrant, entrant.way))
        worth = self._worth(entrant)
        if not met:
            return f"{self._missed(entrant)}; nearest comes {title}: {worth}.{late}"
        cheaper = [e for e in race.entrants if e.out and e.trial is not None and e is not entrant]
        said = "; ".join(f"{e.structure.title} {e.out}" for e in self._closest(cheaper, entrant))
        least = "fewest bytes" if self._minimise == "bytes" else "least time"
        beaten = f" What would be cheaper: {said}." if said else ""
        return f"Use {title}: {worth}, with the {least} of all that reach the targets.{beaten}{late}"

    def _missed(self, entrant: Entrant) -> str:
        """What is not met, and whether it can be."""
        missed, queries = [t for t in self._targets if not _reached(entrant, t)], len(self._race.data.confirming)
        few = [str(target) for target in missed if not target.shown_by(queries)]
        if few:
            said = f"{queries:,} queries that took no part in choosing are too few to show {' and '.join(few)}"
            return f"{said}, whatever they find: bring more, or ask for less"
        if self._race.late:
            return "Not met in the time given"
        return f"{' and '.join(map(str, missed)) or 'The limits'} cannot be met"

    def _worth(self, entrant: Entrant) -> str:
        measured = self._measured(entrant)
        parts = []
        for name in dict.fromkeys(target.name for target in self._targets):
            found = measured.get(name)
            if found is not None:
                low_high = f" ({found['ci95'][0]:.3f}–{found['ci95'][1]:.3f})" if found["ci95"] else ""
                parts.append(f"{name} {found['value']:.3f}{low_high}")
        ms = measured["p50_ms"]
        took = "" if ms is None else f", {ms:.2f} ms a query"
        return f"{', '.join(parts)}, {measured['bytes_per_item']:,.1f} bytes an item{took}"

    def _closest(self, cheaper: Sequence[Entrant], entrant: Entrant) -> list[Entrant]:
        """The few that come nearest to the answer, of those that cost less."""
        if self._minimise == "latency":
            return []
        mine = self._race.weight(entrant)[0].per_item(self._race.total)
        known = [
            (self._race.weight(e)[0].per_item(self._race.total), e)
            for e in cheaper
            if e.trial is not None and e.trial.memory is not None and e.items
        ]
        return [e for size, e in sorted(known, key=lambda pair: -pair[0]) if size < mine][:3]


def _reached(entrant: Entrant, target: Target) -> bool:
    found = entrant.confirmed.get(target.key)
    return found is not None and found.low >= target.bound


def _shown(entrant: Entrant) -> list[Way]:
    return [way for way in entrant.trial.ways if way.p50_ms is not None] if entrant.trial is not None else []


def _slower(trial: Trial, items: int) -> float:
    """An item takes longer to enter a graph that is larger."""
    return max(1.0, math.log(max(2, items)) / math.log(max(2, trial.items))) if trial.walks else 1.0


def _off(checks: Sequence[Check], what: str, least: float, growth: float) -> float:
    """How far a prediction of ``what`` may be off: of a recall so much, of the rest such a share."""
    own = [check for check in checks if check.what == what and check.predicted > 0 and check.measured > 0]
    recall = "@" in what
    errors = [
        check.predicted - check.measured if recall else math.log(check.predicted / check.measured) for check in own
    ]
    return off_by(errors, least, [check.growth for check in own], growth)


def _around(value: float, off: float) -> list[float]:
    return [value * math.exp(-off), value * math.exp(off)]


def _front(points: Sequence[Mapping[str, Any]], measure: str) -> list[Mapping[str, Any]]:
    """Those that no other beats or equals in bytes, time and the measure."""

    def costs(point: Mapping[str, Any]) -> tuple[float, float, float]:
        return point["bytes_per_item"], point["p50_ms"], -point.get(measure, 0.0)

    def beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        return costs(a) != costs(b) and all(x <= y for x, y in zip(costs(a), costs(b), strict=True))

    left = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(left, key=lambda point: point["bytes_per_item"])


# ------------------------------------------------------------------------------------------------------- what is given


def _check_out(out: str | Path | None, data: Any) -> None:
    """Raises ConfigError where it is no place for a config, or what is there is not an answer of before."""
    if out is None:
        return
    path = Path(out)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: this is the config to write, and ends in .yaml; its report is beside it", path="out")
    if isinstance(data, str | Path) and path.exists() and Path(data).exists() and path.samefile(data):
        raise ConfigError(f"{out}: this is what is tuned on, and would be written over: choose another", path="out")
    report = path.with_suffix(".html")
    if report.exists() and not any(title in report.read_bytes()[:1000] for title in _REPORTS):
        raise ConfigError(f"{report}: the report would be written over this, which is none", path="out")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """Where trials and indexes are kept: beside ``out``, or for this run alone."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="cbir-") as scratch:
            yield Path(scratch)
        return
    folder = Path(out).with_suffix(".tuning")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writer_lock(folder):
        yield folder


def _put_aside(answer: Path) -> None:
    """An answer of before is none to what was asked now."""
    with writing_to(answer):
        answer.replace(answer.with_name(f"{answer.name}.before"))


def _clear(folder: Path) -> None:
    """Leave the trials alone."""
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name not in (_TRIALS, "LOCK") and not left.name.startswith("given"):
            left.unlink()


def _given(
    data: Any, labels: Sequence[Any] | None, folder: Path, metric: Metric | None, progress: Progress | None
) -> tuple[Naming, Metric]:
    """What is tuned on, and by what it is compared."""
    if not isinstance(data, Backend | Engine):
        naming = _naming(data, labels, folder)
        return naming, metric or _metric_of(naming)
    _check_labels(labels)
    with nullcontext(data) if isinstance(data, Backend) else data.opened() as backend:
        source = copied(backend, folder, progress)
        return naming_of_source(source), metric or backend.metric or DEFAULT_METRIC


def _metric_of(naming: Naming) -> Metric:
    """By what a config says that neighbours are near, or else as the collection that it reads compares."""
    said: Metric | None = naming.config.metrics.truth.metric
    source = naming.config.source
    if said is None and source.name == "collection":
        with Store.open(Path(source.options["path"])) as store:
            return metric_of(store)
    return said or DEFAULT_METRIC


def _check_labels(labels: Sequence[Any] | None) -> None:
    if labels is not None:
        raise ConfigError("labels go with vectors in memory; those of a file stand in its config", path="labels")


def _naming(data: Any, labels: Sequence[Any] | None, folder: Path) -> Naming:
    if isinstance(data, np.ndarray):
        return _naming_of_array(data, labels, folder)
    _check_labels(labels)
    if isinstance(data, Mapping):
        return parse_naming(data)
    path = Path(data)
    if (path / CURRENT).exists():
        return naming_of_source({"name": "collection", "path": str(path)})
    if path.suffix in (".npy", ".fvecs", ".bvecs", ".h5", ".hdf5"):
        return naming_of_source({"name": "vectors", "file": str(path)})
    return read_naming(path)


def _narrowed(naming: Naming, **given: Sequence[Section] | None) -> Naming:
    named: dict[str, Any] = {
        name: parse_choices(SECTIONS[name], [{"name": s} if isinstance(s, str) else s for s in sections], name)
        for name, sections in given.items()
        if sections is not None
    }
    return replace(naming, config=replace(naming.config, **named), sections=(*naming.sections, *named))


def _naming_of_array(vectors: NDArray[Any], labels: Sequence[Any] | None, folder: Path) -> Naming:
    x = check_floats(vectors, "vectors")
    file = folder / "given.npy"
    with writing_to(folder), replacing(file) as part:  # what a run that was stopped goes on with stays as it is
        np.save(part, x)
    source: dict[str, Any] = {"name": "vectors", "file": str(file)}
    if labels is not None:
        if len(labels) != len(x):
            raise InputError(f"{len(labels)} labels for {len(x)} vectors")
        documents = folder / "given.jsonl"
        with writing_to(folder), replacing(documents) as lines:
            lines.write_text("".join(f"{as_json({'label': _classes(label)})}\n" for label in labels))
        source["documents"] = str(documents)
    return naming_of_source(source)


def _classes(label: Any) -> list[str]:
    """Of one item: none, one, or several."""
    if label is None:
        return []
    several = isinstance(label, list | tuple | set | frozenset | np.ndarray)
    return sorted(map(str, label)) if several else [str(label)]


def _check(targets: Sequence[Target], data: Data) -> None:
    for target in targets:
        if target.by_labels and not data.has_labels:
            raise InputError(
                f"'{target}' counts labels, and these items, or half of the queries, have none: use knn_recall"
            )
        if target.k > len(data.items):
            raise InputError(f"'{target}' needs at least {target.k} items beside the queries, got {len(data.items)}")
        if not target.by_labels and target.k > NEIGHBOURS:
            raise InputError(f"'{target}': recall is tuned of at most {NEIGHBOURS} neighbours")
