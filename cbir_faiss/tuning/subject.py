"""What is examined: a collection, or an engine, as one thing that is searched with one setting or another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cbir_faiss.base import Backend, Codec, Options, Places, Rescorer
from cbir_faiss.base.checks import check_codes, check_floats
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import parse_options
from cbir_faiss.base.registry import make
from cbir_faiss.collection.sync import Target
from cbir_faiss.config import arms
from cbir_faiss.errors import CbirError, InputError, Unsupported
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.pipeline.fill import FILL_ROWS, fill
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.pipeline.search import Searcher, without
from cbir_faiss.storage.store import Store
from cbir_faiss.tuning.exact import DEFAULT_METRIC, Exact, given, metric_of, of_collection, stream
from cbir_faiss.types import Codes, Columns, Hits, Ids, Metric

Setting = Mapping[str, Any]
"""Search options by name; ``candidates`` are the rescorer's."""

CANDIDATES = "candidates"
BREADTH = {"nprobe", "probes", "ef", "hnsw_ef", "ef_search", "expansion"}
"""Search options that say how much of an index is looked at, not how many hits are then ranked by what."""
WIDEST = 1 << 14
"""Lists or candidates beyond which a search is as good as one of everything."""


@dataclass(frozen=True)
class Effort:
    """A search option by which time buys recall: its name, what it is now (None: the engine decides), its bounds."""

    name: str
    now: float | None
    least: float
    most: float
    whole: bool

    def ladder(self) -> list[float]:
        """Values that double, from a quarter of what it is now."""
        value = max(self.least, (8 if self.now is None and self.whole else self.now or 1) // 4, 1)
        steps = [] if self.least else [0.0]
        while value < self.most:
            steps.append(value)
            value *= 2
        return [int(step) if self.whole else float(step) for step in [*steps, self.most]]


def efforts_of(model: type[BaseModel], current: Setting, items: int) -> list[Effort]:
    """The options of ``model`` that are numbers, most of which say how much a search looks at."""
    found = []
    for name, info in model.model_fields.items():
        kinds = set(arms(info.annotation)) & {int, float}
        if kinds:
            bounds = {key: getattr(one, key) for one in info.metadata for key in ("ge", "le") if hasattr(one, key)}
            now, whole = current.get(name, info.get_default()), kinds == {int}
            most = min(bounds.get("le", WIDEST), max(items, 1)) if whole else bounds.get("le", 16.0)
            found.append(Effort(name, now if isinstance(now, int | float) else None, bounds.get("ge", 1), most, whole))
    return found


@dataclass(frozen=True)
class Asked:
    """Queries: what a search needs of them, and their vectors as ``Exact`` compares them (None: not known).

    own: the ids of the items that they are; None where they were brought.
    """

    columns: Columns
    vectors: NDArray[Any] | None
    own: Ids | None

    def __len__(self) -> int:
        return len(self.columns["code"])

    def row(self, number: int) -> dict[str, NDArray[Any]]:
        """The columns of one query."""
        return {name: column[number : number + 1] for name, column in self.columns.items()}


@dataclass
class _Engine:
    """A backend as the pipeline searches it."""

    backend: Backend

    def __len__(self) -> int:
        return self.backend.count()

    def search(self, codes: Codes, k: int, where: Where | None, options: Options | None = None) -> Hits:
        return self.backend.search(codes, k, where, options)

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        return self.backend.fetch(ids)

    def located(self, ids: Ids, column: str) -> Places:
        raise Unsupported("an engine has its vectors nowhere else")  # nobody rescores them here


@dataclass
class _With:
    """An index, searched with other options, or by another backend."""

    index: Any
    options: Options | None = None
    backend: Backend | None = None

    def __len__(self) -> int:
        return len(self.index)

    def search(self, codes: Codes, k: int, where: Where | None) -> Hits:
        if self.backend is not None:
            return self.backend.search(codes, k)
        found: Hits = self.index.search(codes, k, where, self.options)
        return found

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        found: NDArray[Any] = self.index.fetch(ids, column)
        return found

    def located(self, ids: Ids, column: str) -> Places:
        found: Places = self.index.located(ids, column)
        return found


@dataclass
class Subject:
    """What is examined. Nothing here changes it.

    ids: of all items, ascending. stored: what the index was given, in their order; None where it keeps less, or does
    not give it back. exact: see ``Exact``. search: the search options that are in use. generation: of a collection.
    """

    title: str
    fitted: Fitted
    index: Any
    backend: Backend
    ids: Ids
    stored: Codes | None
    exact: Exact | None
    search: Setting = field(default_factory=dict)
    generation: int | None = None

    @cached_property
    def efforts(self) -> list[Effort]:
        """What can be turned, the index's options first."""
        found = [] if self.is_exact else efforts_of(self.backend.SearchOptions, self.search, len(self.ids))
        now = self.fitted.rescorer.candidates
        if isinstance(now, int) and now and CANDIDATES not in {effort.name for effort in found}:
            found.append(Effort(CANDIDATES, now, 1, min(WIDEST, len(self.ids)), True))
        return [effort for effort in found if effort.now is not None or self._fits(effort)]

    def _fits(self, effort: Effort) -> bool:
        """Whether an index of any type has this option: one that has not says so when it is searched."""
        if self.stored is None:
            return False
        try:
            query = np.ascontiguousarray(self.stored[:1])
            self.backend.search(query, 1, None, {effort.name: effort.ladder()[-1]})
        except CbirError:
            return False
        return True

    @property
    def current(self) -> dict[str, Any]:
        """The setting in use, as far as it can be turned."""
        return {effort.name: effort.now for effort in self.efforts if effort.now is not None}

    @property
    def is_exact(self) -> bool:
        """Whether the index itself misses nothing."""
        return self.backend.is_exact(self._options({}))

    def searcher(self, setting: Setting, threads: int | None = None) -> Searcher:
        """Searches with ``setting``, and with what is in use otherwise."""
        return Searcher(self._fitted(setting), _With(self.index, self._options(setting)), threads)

    def hits(self, asked: Asked, k: int, setting: Setting) -> Hits:
        """The ``k`` nearest of the queries, themselves left out."""
        return _others(self.searcher(setting), asked, k)

    def exhaustive(self, asked: Asked, k: int) -> Hits | None:
        """What a search that looks at every code finds, with the same rescoring.

        None: the very nearest, for it compares by the exact vectors. Of an engine it is its own exact search; of an
        index that makes codes of its own, one that looks as widely as it can.
        """
        if self.is_exact:
            return self.hits(asked, k, {})
        if self.backend.quantizes:
            return self.hits(asked, k, self._widest)
        same = self.exact is not None and self.exact.as_searched and self.exact.metric == self.backend.metric
        if same and not self.fitted.rescorer.candidates:
            return None
        if self.stored is None or self.backend.own_storage:
            exactly = {"exact": True} if "exact" in self.backend.SearchOptions.model_fields else self._widest
            return self.hits(asked, k, exactly)
        with _everything(self.backend, self.ids, self.stored) as flat:
            return _others(Searcher(self.fitted, _With(self.index, backend=flat)), asked, k)

    @property
    def _widest(self) -> Setting:
        return {effort.name: int(effort.most) for effort in self.efforts if effort.name in BREADTH}

    # -- queries

    def drawn(self, count: int, seed: int) -> Asked:
        """``count`` of the items, all where there are no more.

        Raises:
            InputError: there are less than two, or the engine gives no vectors back.
        """
        if len(self.ids) < 2:
            raise InputError(f"{self.title}: {len(self.ids)} items, of which none has a neighbour")
        return self.asked(np.sort(np.random.default_rng(seed).choice(len(self.ids), min(count, len(self.ids)), False)))

    def asked(self, rows: Ids) -> Asked:
        """Some of the items as queries, by their rows."""
        own, exact = self.ids[rows], self.exact
        vectors = None if exact is None else np.ascontiguousarray(exact.vectors[rows], _dtype_of(exact.vectors))
        if exact is not None and exact.as_searched:
            columns = self._as_kept(own, np.asarray(vectors))
        elif vectors is not None and not isinstance(self.index, _Engine):
            columns = self.fitted.queries({**self._as_kept(own), "embedding": vectors})
        elif vectors is not None and self.backend.kind == "float":
            columns = {"code": vectors}
        elif self.stored is not None:
            columns = self._as_kept(own, np.asarray(self.stored[rows]))
        else:
            raise InputError(f"{self.title} gives no vectors back: bring queries of your own (--vectors)")
        return Asked(columns, vectors, own)

    def brought(self, vectors: NDArray[Any]) -> Asked:
        """Queries ``(n, dim)`` that are not of the items.

        Raises:
            InputError, DimensionMismatch: NaN, or another width.
        """
        if isinstance(self.index, _Engine):
            check = check_codes if self.backend.kind == "binary" else check_floats
            q = check(np.asarray(vectors), "the queries", self.backend.dim or 0)
            return Asked({"code": q}, q if self.exact is not None and self.backend.kind == "float" else None, None)
        x = check_floats(np.asarray(vectors), "the queries", self.fitted.codec.dim)
        columns = self.fitted.queries({"embedding": x})
        coded = self.exact is not None and self.exact.as_searched
        return Asked(columns, columns["code"] if coded else x, None)

    def _as_kept(self, own: Ids, codes: Codes | None = None) -> dict[str, NDArray[Any]]:
        if codes is None:
            codes = self.index.fetch(own, "code")
        packed = {name: self.index.fetch(own, name) for name in self.fitted.stored}
        return self.fitted.stored_queries(np.ascontiguousarray(codes), packed)

    # -- how

    def _options(self, setting: Setting) -> Options | None:
        chosen = {**self.search, **{key: value for key, value in setting.items() if key != self._candidates}}
        return parse_options(self.backend.SearchOptions, chosen) if chosen else None

    def _fitted(self, setting: Setting) -> Fitted:
        if self._candidates not in setting:
            return self.fitted
        old = self.fitted.rescorer
        new: Rescorer = type(old)(**{**old.options.model_dump(), CANDIDATES: setting[CANDIDATES]})
        new.state = old.state
        return Fitted(self.fitted.codec, new, self.fitted.embedding)

    @property
    def _candidates(self) -> str | None:
        return None if CANDIDATES in self.backend.SearchOptions.model_fields else CANDIDATES


def _others(searcher: Searcher, asked: Asked, k: int) -> Hits:
    if asked.own is None:
        return searcher.nearest(asked.columns, k)
    return without(searcher.nearest(asked.columns, k + 1), asked.own, k)


def _dtype_of(vectors: NDArray[Any]) -> Any:
    return np.float32 if vectors.dtype.kind == "f" else vectors.dtype


@contextmanager
def _everything(like: Backend, ids: Ids, stored: Codes) -> Iterator[Backend]:
    """A search of everything that is stored, by the metric of ``like``."""
    kind, width = like.kind or "float", like.dim or 0
    flat: Backend = (
        make("backends", "faiss-binary-flat")
        if kind == "binary"
        else make("backends", "faiss-flat", metric=like.metric)
    )
    try:
        parts = (
            (ids[start : start + FILL_ROWS], np.ascontiguousarray(stored[start : start + FILL_ROWS]), None)
            for start in range(0, len(ids), FILL_ROWS)
        )
        fill(flat, parts, kind=kind, width=width)
        yield flat
    finally:
        flat.close()


# ------------------------------------------------------------------------------------------------------ opening


@contextmanager
def opened(
    target: str | Path | Backend | Target, truth: NDArray[Any] | None = None, progress: Progress | None = None
) -> Iterator[Subject]:
    """A collection by its folder, or an engine: a backend, or its name and options.

    Raises:
        InputError: there is nothing in it, or ``truth`` does not fit. CorruptCollection, ConfigError, BackendError.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbir-")))
        if isinstance(target, str | Path):
            store = stack.enter_context(Store.open(Path(target)))
            yield _of_store(store, truth, scratch)
            return
        backend = stack.enter_context(target.opened()) if isinstance(target, Target) else target
        yield _of_engine(backend, truth, scratch, progress)


def _of_store(store: Store, truth: NDArray[Any] | None, scratch: Path) -> Subject:
    backend = store.engine or (store.segments[0].backend if store.segments else None)
    if backend is None or not len(store):
        raise InputError(f"{store.folder} holds no items")
    manifest = store.manifest
    exact = of_collection(store, scratch) if truth is None else given(truth, len(store), metric_of(store), manifest.dim)
    return Subject(
        str(store.folder),
        store.fitted,
        store,
        backend,
        store.ids,
        store.whole("code"),
        exact,
        manifest.search,
        manifest.generation,
    )


def _of_engine(backend: Backend, truth: NDArray[Any] | None, scratch: Path, progress: Progress | None) -> Subject:
    items = backend.count()
    if backend.dim is None or not items:
        raise InputError(f"{backend!r} is empty or does not exist")
    stored: Codes | None = None
    if backend.capabilities.vectors != "refused":
        ids, stored = stream(backend, scratch, progress)
    else:
        ids = np.arange(items)
    floats: Metric = DEFAULT_METRIC if backend.metric in (None, "hamming") else backend.metric
    exact = None
    if truth is not None:
        exact = given(truth, len(ids), floats, backend.dim if backend.kind == "float" else None)
    elif stored is not None and backend.kind == "float" and backend.code_bits is None:
        exact = Exact(stored, floats, as_searched=True)
    codec: Codec = make("codecs", "raw")
    rescorer: Rescorer = make("rescorers", "none")
    return Subject(repr(backend), Fitted(codec, rescorer, "embedding"), _Engine(backend), backend, ids, stored, exact)
