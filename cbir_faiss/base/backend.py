"""What stores vectors or codes, and finds the nearest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_codes, check_floats, check_ids, check_payload, normalise, within
from cbir_faiss.base.filters import Where, parse_where
from cbir_faiss.base.item_bytes import ROW_BYTES, ItemBytes, graph_bytes
from cbir_faiss.base.options import Options, parse_options
from cbir_faiss.base.plugin import Plugin
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits

Support = Literal["native", "emulated", "refused"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do: by itself (``native``), through ours on top (``emulated``), or not (``refused``)."""

    delete: Support = "native"
    filter: Support = "native"
    range: Support = "native"
    persist: Support = "native"
    vectors: Support = "native"
    shared: Support = "native"
    """An engine's own storage, open in several places at once, each of which finds what the others have flushed."""


class Backend(Plugin):
    """Stores vectors or codes under int64 ids with a JSON payload, and finds the nearest.

    It begins without a width; ``create`` (or the first ``upsert``) gives it one, ``restore`` and engines that already
    hold a collection bring their own.
    """

    accepts: ClassVar[frozenset[Kind]]
    metrics: ClassVar[tuple[Metric, ...]]
    capabilities: ClassVar[Capabilities] = Capabilities()
    exact: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    filters_ids: ClassVar[bool] = False
    own_storage: ClassVar[bool] = False
    """True where the engine keeps the data itself, at the address in the options; False where ``save`` writes files."""

    SearchOptions: ClassVar[type[Options]] = Options

    def __init__(self, **options: Any) -> None:
        self.dim: int | None = None
        self.kind: Kind | None = None
        self.metric: Metric | None = None
        super().__init__(**options)
        self._default_search = self.SearchOptions() if self._search_options_have_defaults() else None

    # -- life

    @classmethod
    def scoped(cls, options: Mapping[str, Any], scope: str) -> dict[str, Any]:
        """``options`` moved to a place of their own, so that combinations of one config do not share one."""
        moved = dict(options)
        if moved.get("path") is not None:
            moved["path"] = str(Path(moved["path"], scope))
        elif moved.get("collection") is not None:
            moved["collection"] = f"{moved['collection']}-{scope}"
        return moved

    @classmethod
    def named(cls, options: Mapping[str, Any], name: str) -> dict[str, Any]:
        """``options`` with the table called after the collection ``name``, where they call it nothing."""
        return dict(options)

    @classmethod
    def lists(cls, options: Mapping[str, Any], items: int) -> int:
        """Inverted lists that an index of ``items`` would have with these options; 0: none, or not known."""
        return 0

    @classmethod
    def with_lists(cls, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        """``options`` with so many inverted lists, where there are such: a small index in the structure of another."""
        return dict(options)

    @classmethod
    def item_bytes(cls, options: Mapping[str, Any], dim: int, kind: Kind) -> ItemBytes:
        """What an engine elsewhere would keep of each item with these options, by arithmetic: nothing is asked.

        dim: floats, or bits of a code. This is for one that says nothing: the vector, and links of a graph as most
        make it by default.
        """
        whole = (dim * 4 if kind == "float" else dim / 8) + graph_bytes(16) + ROW_BYTES
        return ItemBytes.of(whole, whole)

    @classmethod
    def kinds(cls, options: Mapping[str, Any]) -> frozenset[Kind]:
        """What a backend of these options takes: a comparison pairs it with the codecs of these kinds."""
        metric = options.get("metric")
        return cls.accepts if metric is None else cls.accepts & {"binary" if metric == "hamming" else "float"}

    def create(self, dim: int, kind: Kind) -> None:
        """Make an empty index for vectors of ``dim`` floats, or codes of ``dim`` bits.

        Raises:
            Unsupported: the backend does not take this kind, or not with the metric in its options.
            ConfigError: ``dim`` and the options do not fit together.
        """
        self._accept(kind)
        if dim < 1 or (kind == "binary" and dim % 8):
            raise InputError(f"backend '{self.name}': {dim} {'bits' if kind == 'binary' else 'dimensions'}")
        metric = self._metric_for(kind)
        if metric not in self.metrics:
            raise Unsupported(
                f"backend '{self.name}' has no metric '{metric}' for {kind} vectors; it has {', '.join(self.metrics)}"
            )
        self.dim, self.kind, self.metric = dim, kind, metric
        self._create()

    def claim(self, owner: str | None, *, adopt: bool = False) -> None:
        """Write for the collection whose id is ``owner`` (None: for none) from here on.

        Where the engine keeps to whom a table belongs, only its owner may write. One that belongs to nobody becomes the
        collection's with its first write, if it is to ``adopt`` it. Elsewhere this does nothing.

        Raises:
            ConfigError: what is there belongs to another collection, or to nobody and is not to be adopted.
        """

    def metric_for(self, kind: Kind) -> Metric:
        """The metric of an index of such vectors, with the options that this backend has.

        Raises:
            Unsupported: the backend does not take this kind, or not with the metric in its options.
        """
        self._accept(kind)
        return self._metric_for(kind)

    def train(self, sample: Codes) -> None:
        """Learn from a sample ``(n, width)`` of what will be stored; nothing to do for most."""
        if self.needs_training:
            self._begin(sample)
            self._train(self._check_vectors(sample))

    def save(self, folder: Path) -> None:
        """Write everything to files in ``folder`` (made here), durable when it returns."""
        self._require("persist")
        self._made()
        self._save(folder)

    def restore(self, folder: Path, *, mmap: bool = False) -> None:
        """Take what ``save`` wrote. With ``mmap`` the codes stay in the file and the backend is read-only."""
        self._require("persist")
        self._restore(folder, mmap)

    def remove(self) -> None:
        """Remove the table that an engine keeps for this backend, if it is there; where there is none, do nothing."""

    def close(self) -> None:
        """Give back connections and files. Closing twice is no error."""

    # -- content

    def upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None = None) -> None:
        """Store ``vectors`` ``(n, width)`` under ``ids`` ``(n,)``; an id that exists is replaced, payload included.

        Acknowledged when it returns; durable and searchable after ``flush``.

        Raises:
            InputError: lengths differ, an id is negative or occurs twice, NaN, wrong dtype, a zero vector under cosine.
            DimensionMismatch: another width than the index.
        """
        ids = check_ids(ids, unique=True)
        if len(ids) != len(vectors) or (payload is not None and len(payload) != len(ids)):
            n = len(payload) if payload is not None else "no"
            raise InputError(f"{len(ids)} ids, {len(vectors)} vectors and {n} payloads do not go together")
        if len(ids) == 0:
            return
        self._begin(vectors)
        check_payload(payload)
        self._upsert(ids, self._check_vectors(vectors, ids), payload)

    def flush(self) -> None:
        """Everything acknowledged is durable and searchable when it returns."""
        self._flush()

    def delete(self, ids: Ids) -> None:
        """Remove ``ids`` ``(n,)``; an id that is not there is no error."""
        self._require("delete")
        ids = check_ids(ids)
        if len(ids) and self.dim is not None:
            self._delete(ids)

    def fetch(self, ids: Ids) -> Codes:
        """Stored vectors or codes ``(n, width)`` of ``ids``, in their order (for cosine: normalised).

        Raises:
            UnknownId: an id is not stored.
            Unsupported: the index keeps no vectors.
        """
        self._require("vectors")
        self._made()
        return self._fetch(check_ids(ids))

    def payload(self, ids: Ids) -> list[dict[str, Any]]:
        """Payload of ``ids``, in their order; ``{}`` where none was given."""
        self._made()
        return self._payload(check_ids(ids))

    def count(self) -> int:
        """Number of items that a search can find."""
        return self._count() if self.dim is not None else 0

    def scroll(self, batch_size: int = 1000, after: int | str | None = None) -> Iterator[Batch]:
        """Every stored item, in batches, in the order of ids; what lies behind ``after``, the cursor of a batch."""
        self._require("vectors")
        if self.dim is None:
            return iter(())
        return self._scroll(batch_size) if after is None else self._scroll_after(after, batch_size)

    # -- search

    def search(
        self,
        vectors: Codes,
        k: int = 10,
        where: Where | Mapping[str, Any] | str | Ids | None = None,
        options: Options | Mapping[str, Any] | None = None,
    ) -> Hits:
        """The ``k`` nearest of each query ``(n, width)``; ``options`` are this backend's ``SearchOptions``.

        ``where`` is a filter over payloads or, for backends that say ``filters_ids``, the ids that may be found.

        Raises:
            InputError: k < 1, NaN, wrong dtype, a zero vector under cosine, a filter that cannot be read.
            DimensionMismatch: queries of another width than the index.
            Unsupported: a filter on a backend that refuses them.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        self._made()
        queries = self._check_vectors(vectors)
        # Only a backend that says so is given ids, and it declares them in its own signature.
        allowed = None if where is None else cast("Where", self._filter(where))
        return self._search(queries, k, allowed, self._search_options(options))

    def range_search(
        self, vectors: Codes, radius: float, where: Where | Mapping[str, Any] | str | None = None
    ) -> RangeHits:
        """Every item at a distance of ``radius`` or less (in this backend's metric) from each query."""
        self._require("range")
        self._made()
        queries = self._check_vectors(vectors)
        tree = None
        if where is not None:
            self._require("filter")
            tree = parse_where(where)
        return self._range(queries, float(radius), tree)

    # -- what the evaluation asks

    @property
    def code_bits(self) -> int | None:
        """Bits an item takes in the index where it stores codes of its own (IndexLSH, PQ, SQ, …), else None."""
        return None

    @property
    def quantizes(self) -> bool:
        """Whether a search that is not exact ranks by codes that the index makes of what it was given, even if the
        vectors then rank the best of them."""
        return self.code_bits is not None

    def is_exact(self, options: Options | None = None) -> bool:
        """Whether a search with these options finds the true neighbours; a search option ``exact`` makes it so."""
        return self.exact or bool(getattr(options, "exact", False))

    def hamming_codes(self, vectors: Codes) -> NDArray[np.uint8] | None:
        """The packed codes by whose Hamming distance this backend ranks ``vectors``; None where it does not.

        The evaluator takes expectations over ties from them.
        """
        return cast("NDArray[np.uint8]", vectors) if self.kind == "binary" else None

    @property
    def in_process(self) -> bool:
        """Whether an engine with its own storage runs in this process, so that its memory can be measured."""
        return False

    def disk_bytes(self) -> int | None:
        """Bytes on disk of an engine that keeps its own storage; None where that cannot be known."""
        return None

    # -- for authors

    def _create(self) -> None:
        """Make the empty index; ``dim``, ``kind`` and ``metric`` are set."""

    def _train(self, sample: Codes) -> None: ...
    @abstractmethod
    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None: ...
    def _flush(self) -> None: ...
    @abstractmethod
    def _delete(self, ids: Ids) -> None: ...
    @abstractmethod
    def _search(self, vectors: Codes, k: int, where: Where | None, options: Any) -> Hits: ...
    @abstractmethod
    def _count(self) -> int: ...
    @abstractmethod
    def _fetch(self, ids: Ids) -> Codes: ...
    @abstractmethod
    def _payload(self, ids: Ids) -> list[dict[str, Any]]: ...
    @abstractmethod
    def _scroll(self, batch_size: int) -> Iterator[Batch]: ...
    def _scroll_after(self, after: Any, batch_size: int) -> Iterator[Batch]:
        """``_scroll`` from behind a cursor; an engine that can begin there does not have to read what is before."""
        for batch in self._scroll(batch_size):
            if behind := int(np.count_nonzero(batch.ids > int(after))):
                yield Batch(batch.ids[-behind:], batch.vectors[-behind:], batch.payload[-behind:], batch.left_out)

    def _save(self, folder: Path) -> None:
        raise Unsupported(f"backend '{self.name}' keeps its own storage; it has nothing to save")

    def _restore(self, folder: Path, mmap: bool) -> None:
        raise Unsupported(f"backend '{self.name}' keeps its own storage; it has nothing to restore")

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        """Emulated: search with a growing k until the farthest hit lies outside the radius or all items are seen."""
        k, total = min(64, max(1, self.count())), max(1, self.count())
        while True:
            hits = self._search(vectors, k, where, self._search_options(None))
            if k >= total or bool((hits.distances[:, -1] > radius).all()):
                return within(hits, radius)
            k = min(total, 4 * k)

    # -- checks

    def _accept(self, kind: Kind) -> None:
        if kind not in self.accepts:
            raise Unsupported(
                f"backend '{self.name}' takes {' or '.join(sorted(self.accepts))} vectors, not {kind} ones"
            )

    def _metric_for(self, kind: Kind) -> Metric:
        chosen: Metric | None = getattr(self.options, "metric", None)
        if chosen is None:
            return "hamming" if kind == "binary" else next(m for m in self.metrics if m != "hamming")
        if (chosen == "hamming") != (kind == "binary"):
            raise Unsupported(f"backend '{self.name}': metric '{chosen}' does not go with {kind} vectors")
        return chosen

    def _begin(self, vectors: Codes) -> None:
        if self.dim is None:
            binary = vectors.dtype == np.uint8
            width = vectors.shape[1] if vectors.ndim == 2 else 0
            self.create(width * 8 if binary else width, "binary" if binary else "float")

    def _made(self) -> None:
        if self.dim is None:
            raise InputError(f"backend '{self.name}' is empty: create, restore or upsert first")

    def _filter(self, where: Where | Mapping[str, Any] | str | Ids) -> Where | Ids:
        self._require("filter")
        if not isinstance(where, np.ndarray):
            return parse_where(where)
        if not self.filters_ids:
            raise Unsupported(f"backend '{self.name}' filters by payload, not by a list of ids")
        return check_ids(where)

    def _require(self, capability: str) -> None:
        if getattr(self.capabilities, capability) == "refused":
            raise Unsupported(f"backend '{self.name}' does not support {capability}")

    def _check_vectors(self, vectors: Codes, ids: Ids | None = None) -> Codes:
        # This runs before every search, so the common case is kept to a few attribute look-ups.
        dim = cast("int", self.dim)
        if self.kind == "binary":
            return check_codes(vectors, f"backend '{self.name}'", dim)
        checked = check_floats(vectors, f"backend '{self.name}'", dim)
        return normalise(checked, ids) if self.metric == "cosine" else checked

    def _search_options(self, options: Options | Mapping[str, Any] | None) -> Any:
        if options is None:
            return self._default_search
        return options if isinstance(options, self.SearchOptions) else parse_options(self.SearchOptions, dict(options))

    def _search_options_have_defaults(self) -> bool:
        return not any(field.is_required() for field in self.SearchOptions.model_fields.values())
