"""The plugin contracts. Public methods check and call the author's underscore method; an author writes only those.

    images ──Extractor──▶ columns ──Codec──▶ codes ──Backend──▶ Hits ──Rescorer──▶ Hits

A plugin is a class with a ``name``, a nested ``Options`` and one or two underscore methods. It is constructed from
plain keyword options, checked against ``Options`` (unknown, missing and wrongly typed ones are a ConfigError).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.checks import check_codes, check_floats, check_ids, check_payload, normalise, within
from cbir_faiss.errors import CorruptCollection, InputError, Unsupported
from cbir_faiss.filters import Where, parse_where
from cbir_faiss.options import Options, parse_options
from cbir_faiss.state import read_state, write_state
from cbir_faiss.types import Batch, Codes, Columns, Floats, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

__all__ = [
    "Backend",
    "Capabilities",
    "Codec",
    "Extractor",
    "Fetch",
    "FirstStage",
    "Item",
    "Options",
    "Plugin",
    "Rescorer",
    "Source",
    "Stamp",
]

Support = Literal["native", "emulated", "refused"]
Stamp = tuple[int, int]
"""Bytes of a file, and when it was changed, in nanoseconds."""
Fetch = Callable[[Ids, str], NDArray[Any]]
"""``fetch(ids, column)``: stored rows ``(len(ids), width)`` of a column, in the order of ``ids``."""
FirstStage = Callable[[Codes, int], Hits]
"""``first(codes, depth)``: the ``depth`` nearest in the index of each of ``codes``."""
_HITS_AT_ONCE = 1 << 24


# -------------------------------------------------------------------------------------------------------------- plugins


class Plugin(ABC):
    """What all plugins share: a name, checked options, and an optional ``_setup`` once they are known."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options

    def __init__(self, **options: Any) -> None:
        self.options: Any = parse_options(self.Options, options)
        self._setup()

    def _setup(self) -> None:
        """Runs once, after the options are checked."""

    def __repr__(self) -> str:
        chosen = self.options.model_dump(mode="json", exclude_defaults=True)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in chosen.items())})"


# -------------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to index: ``path`` names it uniquely in its source; ``labels``: no class, one or several.

    ignored: labels to whose queries the item is neither right nor wrong: a comparison takes it out of their rankings.
    """

    path: str
    labels: tuple[str, ...] = ()
    payload: Payload = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


class Source(Plugin):
    """Where images (or ready vectors), labels and payload come from."""

    yields: ClassVar[Literal["image", "vector"]] = "image"

    def items(self) -> Sequence[Item]:
        """Every item, sorted by ``path``, without reading its content.

        Raises:
            InputError: the place does not exist or holds nothing usable; the message says what was looked for.
        """
        items = self._items()
        if not items:
            raise InputError(f"source '{self.name}' is empty: {self._place()}")
        return items

    @property
    def root(self) -> Path | None:
        """The folder that the items' paths are relative to; None where the items are not files."""
        return None

    def read(self, index: int, enough: int | None = None) -> Any:
        """Item ``index`` of ``items()``: an RGB ``PIL.Image`` or a float32 vector. Thread-safe.

        ``enough`` allows a picture to be read smaller than it is, with no fewer pixels than that on its shorter side.

        Raises:
            BadImage: this one item cannot be used; a large job records it and goes on.
        """
        return self._read(index) if enough is None else self._read_reduced(index, enough)

    def content_key(self, index: int) -> bytes:
        """SHA-256 of the item's content (of a vector: of its float32 values): equal bytes, equal keys, any path."""
        return self._content_key(index)

    def stamp(self, index: int) -> Stamp | None:
        """Size and time of change of the file that holds the item: while it is the same, so is the content.

        None where there is no such file: it is gone, or the item is part of a data set that does not change.
        """
        return self._stamp(index)

    def survey(self) -> str:
        """A digest of what ``items`` and their stamps say: while it is the same, nothing has changed."""
        return self._survey()

    @abstractmethod
    def _items(self) -> Sequence[Item]: ...
    @abstractmethod
    def _read(self, index: int) -> Any: ...
    @abstractmethod
    def _content_key(self, index: int) -> bytes: ...
    def _read_reduced(self, index: int, enough: int) -> Any:
        return self._read(index)

    def _stamp(self, index: int) -> Stamp | None:
        return None

    def _survey(self) -> str:
        digest = hashlib.sha256()
        for index, item in enumerate(self.items()):
            said = item.path, item.labels, dict(item.payload), self.stamp(index)
            digest.update(json.dumps(said, default=str).encode())
        return digest.hexdigest()

    def _place(self) -> str:
        return repr(self)


# ----------------------------------------------------------------------------------------------------------- extractors


class Extractor(Plugin):
    """Turns images (or ready vectors) into named columns, one or more of which are embeddings."""

    reads: ClassVar[Literal["image", "vector"]] = "image"
    free_options: ClassVar[frozenset[str]] = frozenset()
    """Options that do not decide the output: a batch size, or a path whose bytes are in ``_weights_digest``."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        """Width and dtype of every column, by name; the first is the default embedding."""

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The columns that are embeddings, to be compared one by one; the others are side columns."""
        return (next(iter(self.outputs)),)

    @property
    def enough(self) -> int | None:
        """Pixels of a picture's shorter side beyond which it need not be decoded; None: all of them count."""
        return None

    def load(self) -> None:
        """Load the model and its libraries now; otherwise the first use does."""
        self._load()

    def prepare(self, item: Any) -> NDArray[Any]:
        """One image (RGB ``PIL.Image``) or vector, ready for the model. Thread-safe; equal shapes batch together."""
        return self._prepare(item)

    def extract(self, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Columns, each ``(n, width)``, of a stack of n prepared items.

        Raises:
            InputError: the batch is empty, or the plugin broke its own declaration.
        """
        if len(batch) == 0:
            raise InputError(f"extractor '{self.name}': an empty batch")
        columns = self._extract(batch)
        for name, (width, dtype) in self.outputs.items():
            got = columns.get(name)
            if got is None or got.shape != (len(batch), width) or got.dtype != np.dtype(dtype):
                met = "nothing" if got is None else f"{got.dtype} {got.shape}"
                raise InputError(
                    f"extractor '{self.name}': column '{name}' should be {dtype} ({len(batch)}, {width}), got {met}"
                )
        return {name: np.ascontiguousarray(columns[name]) for name in self.outputs}

    def __call__(self, items: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Columns of a few images or vectors: ``prepare`` each, then ``extract``."""
        return self.extract(np.stack([self.prepare(item) for item in items]))

    def fingerprint(self) -> str:
        """A digest of all that decides the output: plugin, options, weights. Keys the embedding cache."""
        options = self.options.model_dump(mode="json", exclude=set(self.free_options))
        text = json.dumps([self.name, options, self._weights_digest()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Write what is needed to extract without the original weights; returns plugin name and options that
        reproduce this extractor, with file options relative to ``folder``."""
        return self.name, self.options.model_dump(mode="json")

    def _load(self) -> None:
        """Nothing to load."""

    def _weights_digest(self) -> str:
        return ""

    @abstractmethod
    def _prepare(self, item: Any) -> NDArray[Any]: ...
    @abstractmethod
    def _extract(self, batch: NDArray[Any]) -> Columns: ...


# --------------------------------------------------------------------------------------------------------------- codecs


class Codec(Plugin):
    """Turns float embeddings into what is stored: packed bits (``binary``) or other floats (``float``).

    A binary codec gives ``_project``; a bit is 1 where the projection is > 0, packed here and nowhere else.
    What ``_fit`` learns is kept in ``self.state``, a flat dict of arrays, and that is all that is saved.
    """

    kind: ClassVar[Kind]
    needs_labels: ClassVar[bool] = False
    min_train: ClassVar[int] = 1

    def __init__(self, **options: Any) -> None:
        self.dim: int | None = None
        self.state: dict[str, NDArray[Any]] = {}
        super().__init__(**options)

    @property
    def bits(self) -> int | None:
        """True length of the code in bits; None for a float codec."""
        return cast("int", self.options.bits) if self.kind == "binary" else None

    @property
    def width(self) -> int:
        """What an index of these codes is made for: bits rounded up to whole bytes, or floats."""
        return -(-self.bits // 8) * 8 if self.bits is not None else self._float_width()

    def fit(self, x: Floats, labels: NDArray[Any] | None = None) -> Codec:
        """Learn from database embeddings float32 ``(n, dim)`` (never from queries); ``labels`` int64 ``(n,)``.

        Raises:
            InputError: NaN or infinity, too few rows, labels missing where they are needed.
            ConfigError: more bits than this codec can give for this dimension.
        """
        x = check_floats(x, f"codec '{self.name}'")
        if len(x) < self.min_train:
            raise InputError(f"codec '{self.name}' needs at least {self.min_train} training vectors, got {len(x)}")
        if self.needs_labels and labels is None:
            raise InputError(f"codec '{self.name}' learns from labels, and this source has none")
        if labels is not None and len(labels) != len(x):
            raise InputError(f"codec '{self.name}': {len(labels)} labels for {len(x)} vectors")
        self.dim = x.shape[1]
        self._fit(x, labels)
        self._ready()
        return self

    def project(self, x: Floats) -> Floats:
        """float32 ``(n, bits)`` (binary) or ``(n, width)`` (float): what the bits are the signs of."""
        return self._project(self._checked(x))

    def encode(self, x: Floats) -> Codes:
        """Packed uint8 ``(n, width / 8)``, or float32 ``(n, width)``, of embeddings float32 ``(n, dim)``.

        Raises:
            InputError: the codec is not fitted, or x holds NaN or infinity.
            DimensionMismatch: x is of another width than the codec was fitted on.
        """
        x = self._checked(x)
        if self.kind == "float":
            return np.ascontiguousarray(self._project(x), dtype=np.float32)
        return self._encode_bits(x)

    def save(self, path: Path) -> None:
        """Write name, options and state to one file; no pickle."""
        write_state(
            path,
            {"plugin": self.name, "options": self.options.model_dump(mode="json"), "dim": self.dim},
            self.state,
        )

    def restore(self, path: Path) -> Codec:
        """Take the state that ``save`` wrote for a codec of the same name and options.

        Raises:
            CorruptCollection: the file is missing, cut short, altered, or of another codec.
        """
        meta, state = read_state(path)
        mine = {"plugin": self.name, "options": self.options.model_dump(mode="json")}
        theirs = {key: meta.get(key) for key in mine}
        if theirs != mine:
            raise CorruptCollection(f"{path}: state of {theirs}, but the codec here is {mine}")
        self.dim, self.state = int(meta["dim"]), state
        self._ready()
        return self

    def _checked(self, x: Floats) -> Floats:
        if self.dim is None:
            raise InputError(f"codec '{self.name}' is not fitted: call fit(x) with database embeddings first")
        return check_floats(x, f"codec '{self.name}'", self.dim)

    def _encode_bits(self, x: Floats) -> NDArray[np.uint8]:
        """Signs of the projection, packed. A codec with a faster way to the same bits may override it."""
        return np.packbits(self._project(x) > 0, axis=1)

    def _float_width(self) -> int:
        if self.dim is None:
            raise InputError(f"codec '{self.name}' is not fitted, so its width is not known")
        return self.dim

    def _ready(self) -> None:
        """Runs when ``dim`` and ``state`` are there, fitted or restored: derive what is not worth storing."""

    @abstractmethod
    def _fit(self, x: Floats, labels: NDArray[Any] | None) -> None: ...
    @abstractmethod
    def _project(self, x: Floats) -> Floats: ...


# ------------------------------------------------------------------------------------------------------------- backends


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do: by itself (``native``), through ours on top (``emulated``), or not (``refused``)."""

    delete: Support = "native"
    filter: Support = "native"
    range: Support = "native"
    persist: Support = "native"
    vectors: Support = "native"


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

    def scroll(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Every stored item, in batches, in the order of ids."""
        self._require("vectors")
        return self._scroll(batch_size) if self.dim is not None else iter(())

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


# ------------------------------------------------------------------------------------------------------------ rescorers


class Rescorer(Plugin):
    """Re-ranks the first ``candidates`` of a search with more than the index had.

    Columns it may ask for: the extractor's (``embedding``, …), ``code`` (packed codes of the index, queries and items)
    and, of queries only, ``projection`` (the codec's float projection).
    """

    needs_items: ClassVar[tuple[str, ...]] = ()
    needs_queries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.state: dict[str, NDArray[Any]] = {}
        super().__init__(**options)

    @property
    def candidates(self) -> int | Literal["all"]:
        """How many hits of the first stage it looks at."""
        return cast("int", getattr(self.options, "candidates", 0))

    @property
    def reach(self) -> float | None:
        """How far beyond the last candidate's distance every hit is a candidate too: 0 takes all that tie with it.

        None: as many candidates as were asked for, whichever of those that tie the engine names first.
        """
        return None

    def search(self, queries: Columns, k: int, items: int, first: FirstStage, fetch: Fetch) -> Hits:
        """The best ``k`` of a database of ``items`` for each query, by both stages.

        ``queries`` have a column ``code``, which ``first`` searches with. Raises what ``rescore`` does.
        """
        depth = max(k, items if self.candidates == "all" else min(items, self.candidates))
        if self.reach is None:
            return self.rescore(queries, first(queries["code"], depth), fetch, k)
        self._require_of_queries(queries, len(queries["code"]))
        step = max(1, _HITS_AT_ONCE // max(1, items))  # in the worst case every item is a candidate of every query
        parts = []
        for start in range(0, len(queries["code"]), step):
            some = {name: column[start : start + step] for name, column in queries.items()}
            parts.append(self._search_reaching(some, k, depth, items, self.reach, first, fetch))
        return Hits(np.concatenate([part.ids for part in parts]), np.concatenate([part.distances for part in parts]))

    def fit(self, columns: Columns, labels: NDArray[Any] | None = None) -> Rescorer:
        """Learn from the database's columns (a mean, say).

        Raises:
            InputError: a column of ``needs_items`` is not there.
        """
        self._require(columns)
        self._fit(columns, labels)
        return self

    def rescore(self, queries: Columns, hits: Hits, fetch: Fetch, k: int) -> Hits:
        """The best ``k`` of ``hits`` ``(n, candidates)``, re-ranked (it may drop some), with its own distances.

        Raises:
            InputError: a column of ``needs_queries`` is not there, or has not one row a query.
        """
        self._require_of_queries(queries, len(hits))
        again = self._rescore(queries, hits, fetch)
        return Hits(np.ascontiguousarray(again.ids[:, :k]), np.ascontiguousarray(again.distances[:, :k]))

    def pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """What is to be stored of the extractor's columns: one row an item, which ``fetch`` gives back unchanged.

        Rows of a 2-d array of any dtype, so that a store can append, map and gather them. ``code`` is not among them:
        the index has it.

        Raises:
            InputError: a column of ``needs_items`` is not there.
        """
        self._require(columns)
        return self._pack(columns)

    def unpack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """Stored columns as the extractor gave them, as nearly as they were kept: a stored item becomes a query."""
        return self._unpack(columns)

    def resident_bytes(self, items: int, widths: Mapping[str, int]) -> int:
        """Bytes of packed columns that rescoring ``items`` items reads; ``widths`` are their bytes an item."""
        return items * sum(widths[column] for column in self.needs_items)

    def save(self, path: Path) -> None:
        """Write name, options and state to one file; no pickle."""
        write_state(path, {"plugin": self.name, "options": self.options.model_dump(mode="json")}, self.state)

    def restore(self, path: Path) -> Rescorer:
        """Take the state that ``save`` wrote for a rescorer of the same name and options, ``candidates`` aside.

        Raises:
            CorruptCollection: the file is missing, cut short, altered, or of another rescorer.
        """
        meta, state = read_state(path)
        mine, theirs = self._identity(self.options.model_dump(mode="json")), self._identity(meta.get("options", {}))
        if meta.get("plugin") != self.name or theirs != mine:
            raise CorruptCollection(
                f"{path}: state of '{meta.get('plugin')}' {theirs}, but here is '{self.name}' {mine}"
            )
        self.state = state
        return self

    @staticmethod
    def _identity(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key != "candidates"}

    def _search_reaching(
        self, queries: Columns, k: int, depth: int, items: int, reach: float, first: FirstStage, fetch: Fetch
    ) -> Hits:
        """As ``search``, deeper and deeper for the queries whose candidates do not yet end where ``reach`` says."""
        best = missing_hits(len(queries["code"]), k)
        waiting, ends = np.arange(len(best)), None
        while len(waiting):
            hits = first(queries["code"][waiting], depth)
            last = hits.distances[:, -1]
            if ends is None:
                ends = last + reach
            done = (last > ends) | np.isinf(last) | (depth >= items)
            rows = waiting[done]
            some = {name: column[rows] for name, column in queries.items()}
            found = self.rescore(some, Hits(hits.ids[done], hits.distances[done]), fetch, k)
            best.ids[rows], best.distances[rows] = found.ids, found.distances
            waiting, ends, depth = waiting[~done], ends[~done], min(items, 4 * depth)
        return best

    def _fit(self, columns: Columns, labels: NDArray[Any] | None) -> None: ...
    def _pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return {column: columns[column] for column in self.needs_items if column != "code"}

    def _unpack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return dict(columns)

    def _require_of_queries(self, queries: Columns, n: int) -> None:
        for column in self.needs_queries:
            if column not in queries or len(queries[column]) != n:
                got = f"{len(queries[column])} rows" if column in queries else "none"
                raise InputError(f"rescorer '{self.name}' needs '{column}' of {n} queries, got {got}")

    def _require(self, columns: Columns) -> None:
        for column in self.needs_items:
            if column != "code" and column not in columns:
                given = ", ".join(sorted(columns)) or "nothing"
                raise InputError(f"rescorer '{self.name}' needs '{column}' of the items, the extractor gives {given}")

    @abstractmethod
    def _rescore(self, queries: Columns, hits: Hits, fetch: Fetch) -> Hits: ...
