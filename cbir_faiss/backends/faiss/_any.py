"""A FAISS index of any type: what it turns out to be decides what is native and what is emulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.backends.faiss._backend import SEEN_EACH, FaissBackend, Raw, widened
from cbir_faiss.backends.faiss._rows import Rows
from cbir_faiss.backends.faiss._stored import code_bits, stored
from cbir_faiss.base import Capabilities, Support
from cbir_faiss.errors import ConfigError, InputError, Unsupported
from cbir_faiss.types import Codes, Ids, Kind, Metric

_NEARLY_ALL = 0.8  # of the rows: the others are deleted, and soon gone
_EF_LISTS = 64  # candidates for the lists, where a graph finds them: at least so many, and twice as many as are wanted


@dataclass(frozen=True)
class _Traits:
    """What a type of index can do by itself. Whatever it cannot is emulated, which is slower and always right."""

    selects: bool = False
    ranges: bool = False
    exact: bool = False
    hamming: bool = False  # takes floats, ranks by the Hamming distance of codes that it makes itself
    vectors: Support = "emulated"


_FLAT = _Traits(selects=True, ranges=True, exact=True, vectors="native")
_TRAITS = {
    "IndexBinaryFlat": _FLAT,
    "IndexBinaryFromFloat": _Traits(vectors="refused"),
    "IndexBinaryHNSW": _Traits(vectors="native"),
    "IndexBinaryHash": _Traits(vectors="refused"),
    "IndexBinaryIVF": _Traits(ranges=True, vectors="native"),
    "IndexBinaryMultiHash": _Traits(vectors="native"),
    "IndexFlat": _FLAT,
    "IndexFlatIP": _FLAT,
    "IndexFlatL2": _FLAT,
    "IndexEDEN": _Traits(selects=True),
    "IndexHNSWFlat": _Traits(vectors="native"),
    "IndexIVFEDEN": _Traits(selects=True),
    "IndexIVFFlat": _Traits(selects=True, ranges=True, vectors="native"),
    "IndexIVFPQ": _Traits(selects=True),
    "IndexIVFPQFastScan": _Traits(selects=True),
    "IndexIVFRaBitQ": _Traits(selects=True),
    "IndexIVFScalarQuantizer": _Traits(selects=True),
    "IndexIVFSpectralHash": _Traits(hamming=True, vectors="refused"),
    "IndexLSH": _Traits(exact=True, hamming=True, vectors="refused"),
    "IndexRaBitQ": _Traits(selects=True),
    "IndexScalarQuantizer": _Traits(selects=True),
}
_QUANTIZE_QUERIES = ("IndexIVFRaBitQ", "IndexIVFRaBitQFastScan", "IndexRaBitQ")  # by as many bits as a search says


class AnySearchOptions(base.Options):
    """Search options of an index whose type is not known before; one that does not fit it is a ConfigError."""

    nprobe: int | None = Field(None, ge=1, description="lists an IVF index looks into; None: as the index is set")
    ef: int | None = Field(None, ge=1, description="candidates an HNSW index keeps; None: as the index is set")


class AnyIndex(FaissBackend):
    """Serves whatever index it is given: ``_take`` for one with rows 0…n-1, ``_adopt`` for one that others filled."""

    accepts: ClassVar[frozenset[Kind]] = frozenset({"float", "binary"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine", "hamming")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", vectors="emulated")

    SearchOptions: ClassVar[type[base.Options]] = AnySearchOptions

    def _forget(self) -> None:
        super()._forget()
        self._labels: Ids | None = None  # FAISS's label of each row, increasing; None: the row itself
        self._owner: Any = None  # an IDMap around the index
        self._given: Any = None

    # -- an index is made

    def _factory(self, n: int) -> str:
        """FAISS's factory string, once ``n`` training vectors are known (0: none are needed)."""
        raise NotImplementedError

    def _adjust(self, leaf: Any) -> None:
        """Set what a factory string cannot say on the innermost index, before it is trained."""

    def _create(self) -> None:
        super()._create()
        if self._index is not None:
            self._take(self._index)

    def _train(self, sample: Codes) -> None:
        super()._train(sample)
        self._take(self._index)

    def _new_index(self, sample: Codes | None) -> Any:
        n = 0 if sample is None else len(sample)
        index = self._made_by_factory(self._factory(n))
        leaf = _innermost(self._faiss, index)
        for clustering in (leaf, getattr(leaf, "pq", leaf)):
            if hasattr(clustering, "cp"):  # below 39 a centroid FAISS prints warnings; a small collection is no fault
                clustering.cp.min_points_per_centroid = 1
        if hasattr(leaf, "do_polysemous_training"):
            leaf.do_polysemous_training = False  # minutes for an order of centroids that no search here makes use of
        self._adjust(leaf)
        if sample is not None:
            try:
                index.train(sample)
            except RuntimeError as error:
                raise InputError(f"backend '{self.name}' cannot learn from {n} vectors: {reason(error)}") from error
        return index

    def _made_by_factory(self, factory: str) -> Any:
        faiss = self._faiss
        try:
            if self.kind == "binary":
                return faiss.index_binary_factory(self.dim, factory)
            return faiss.index_factory(self.dim, factory, self._metric_type())
        except RuntimeError as error:
            message = f"FAISS cannot make {factory!r} for width {self.dim}: {reason(error)}"
            raise ConfigError(message, path="factory") from error

    # -- an index becomes ours

    def _take(self, index: Any) -> None:
        """Make ``index`` ours, which is downcast and no IDMap, and declare what it can do."""
        faiss = self._faiss
        self._index, self._leaf, self._plain = index, _innermost(faiss, index), None
        below = getattr(self._leaf, "storage", None)
        self._below = None if below is None else _downcast(faiss, below)
        self._lists_found_by = _coarse(faiss, self._leaf)
        traits = _TRAITS.get(type(self._leaf).__name__, _Traits())
        whole = self._leaf is index  # else a transform comes first, and distances are those of transformed vectors
        selects = traits.selects and self._labels is None
        ranges = traits.ranges and whole
        vectors = "emulated" if traits.vectors == "native" and not whole else traits.vectors
        self._declare(
            exact=traits.exact and (whole or traits.hamming),
            selects=selects,
            ranges=ranges,
            capabilities=Capabilities(
                delete="emulated",
                filter="native" if selects else "emulated",
                range="native" if ranges else "emulated",
                vectors=vectors,
            ),
        )

    def _adopt(self, index: Any, metric: Metric | None) -> None:
        """Make a filled index ours, its ids kept and nothing copied.

        Raises:
            InputError: it is not a FAISS index, or holds negative ids.
            Unsupported: its metric is not one of ours, or not the one that was asked for.
        """
        faiss = self._faiss
        if not isinstance(index, (faiss.Index, faiss.IndexBinary)):
            raise InputError(f"wrap takes a FAISS index, not {type(index).__name__}")
        self._forget()
        self._given = index  # a downcast index does not own what it points to
        index, ids = self._unwrapped(_downcast(faiss, index))
        self._take(index)
        self.dim, self.kind = index.d, "binary" if isinstance(index, faiss.IndexBinary) else "float"
        self.metric = self._metric_of(index, metric)
        self._rows = Rows.adopted(np.arange(index.ntotal) if ids is None else ids)

    def _unwrapped(self, index: Any) -> tuple[Any, Ids | None]:
        """The index that is searched, and the ids of its rows where they are not 0…n-1."""
        faiss = self._faiss
        if hasattr(index, "id_map"):
            self._owner = index
            return _downcast(faiss, index.index), faiss.vector_to_array(index.id_map)
        ivf = index if isinstance(index, faiss.IndexBinaryIVF) else None
        if not isinstance(index, faiss.IndexBinary):
            ivf = faiss.try_extract_index_ivf(index)
        if ivf is None:
            return index, None
        labels = np.sort(_labels_of(faiss, ivf.invlists))
        if np.array_equal(labels, np.arange(index.ntotal)):
            return index, None
        if len(np.unique(labels)) != len(labels):
            raise InputError("this IVF index holds an id twice; it cannot be told which vector is meant")
        ivf.set_direct_map_type(faiss.DirectMap.Hashtable)
        self._labels = labels
        return index, labels

    def _metric_of(self, index: Any, wanted: Metric | None) -> Metric:
        if self.kind == "binary" or _TRAITS.get(type(self._leaf).__name__, _Traits()).hamming:
            own: tuple[Metric, ...] = ("hamming",)
        else:
            faiss = self._faiss
            known: dict[int, tuple[Metric, ...]] = {
                faiss.METRIC_L2: ("l2",),
                faiss.METRIC_INNER_PRODUCT: ("ip", "cosine"),
            }
            own = known.get(index.metric_type, ())
        if not own or (wanted and wanted not in own):
            raise Unsupported(
                f"the index has FAISS's metric {index.metric_type}, which is {' or '.join(own) or 'not supported'}"
                + (f", not {wanted}" if wanted else "")
            )
        return wanted or own[0]

    # -- labels

    def _nearest(self, vectors: Codes, k: int, options: Any, selector: Any = None) -> Raw:
        distances, labels = super()._nearest(vectors, k, options, selector)
        return distances, self._rows_of(labels)

    def _nearby(self, vectors: Codes, bound: float) -> tuple[Ids, NDArray[Any], Ids]:
        limits, distances, labels = super()._nearby(vectors, bound)
        return limits, distances, self._rows_of(labels)

    def _rows_of(self, labels: Ids) -> Ids:
        if self._labels is None:
            return labels
        return np.where(labels < 0, labels, np.searchsorted(self._labels, labels))

    def _append(self, vectors: Codes, ids: Ids) -> None:
        if self._owner is not None:
            self._owner.add_with_ids(vectors, ids)
        elif self._labels is None:
            self._index.add(vectors)
        else:
            labels = np.arange(len(ids)) + (int(self._labels[-1]) + 1 if len(self._labels) else 0)
            self._index.add_with_ids(vectors, labels)
            self._labels = np.concatenate([self._labels, labels])

    def _vectors(self, rows: Ids) -> Codes:
        return stored(self._faiss, self._index, rows if self._labels is None else self._labels[rows])

    # -- search parameters

    def _parameters(self, options: Any, selector: Any) -> Any:
        inner = self._leaf_parameters(options, selector)
        if inner is None or self._leaf is self._index:
            return inner
        return self._faiss.SearchParametersPreTransform(index_params=inner)

    def _leaf_parameters(self, options: Any, selector: Any) -> Any:
        faiss, leaf = self._faiss, self._leaf
        given: dict[str, Any] = {} if selector is None else {"sel": selector}
        nprobe, ef = getattr(options, "nprobe", None), getattr(options, "ef", None)
        for option, fits in (("nprobe", self._has_lists()), ("ef", self._has_graph())):
            if option in getattr(options, "model_fields_set", ()) and getattr(options, option) and not fits:
                raise ConfigError(f"{type(leaf).__name__} has no such search option", path=option)
        if type(leaf).__name__ in _QUANTIZE_QUERIES:
            given["qb"] = getattr(options, "qb", leaf.qb)
        elif "qb" in getattr(options, "model_fields_set", ()):
            raise ConfigError(f"{type(leaf).__name__} has no such search option", path="qb")
        if self._has_lists() and (nprobe or given):
            given["nprobe"] = nprobe or leaf.nprobe
            if self._lists_found_by is not None:
                given["quantizer_params"] = faiss.SearchParametersHNSW(efSearch=max(_EF_LISTS, 2 * given["nprobe"]))
        if self._has_graph() and ef:
            given["efSearch"] = ef
        return self._kind_of_parameters()(**given) if given else None

    def _kind_of_parameters(self) -> Any:
        faiss, quantized = self._faiss, type(self._leaf).__name__ in _QUANTIZE_QUERIES
        if self._has_graph():
            return faiss.SearchParametersHNSW
        if self._has_lists():
            return faiss.IVFRaBitQSearchParameters if quantized else faiss.SearchParametersIVF
        return faiss.RaBitQSearchParameters if quantized else faiss.SearchParameters

    def _has_lists(self) -> bool:
        return isinstance(self._leaf, (self._faiss.IndexIVF, self._faiss.IndexBinaryIVF))

    def _has_graph(self) -> bool:
        return isinstance(self._leaf, (self._faiss.IndexHNSW, self._faiss.IndexBinaryHNSW))

    # -- rows that a filter allows

    def _wider(self, options: Any, share: float) -> Any:
        if self._has_lists():
            option, now, most = "nprobe", options.nprobe or self._leaf.nprobe, self._leaf.nlist
        elif self._has_graph():
            option, now, most = "ef", options.ef or self._leaf.hnsw.efSearch, self._rows.n
        else:
            return options
        return options.model_copy(update={option: widened(now, share, most)})

    def _flat(self) -> Any:
        return self._below

    def _inside(self, vectors: Codes) -> Codes:
        faiss, index = self._faiss, self._index
        while isinstance(index, faiss.IndexPreTransform):
            for number in range(index.chain.size()):
                vectors = faiss.downcast_VectorTransform(index.chain.at(number)).apply(vectors)
            index = faiss.downcast_index(index.index)
        return vectors

    def _walks(self, allowed: int, options: Any) -> bool:
        n = self._rows.n
        if not self._has_graph():  # buckets cannot be widened
            return allowed > _NEARLY_ALL * n
        seen: float = SEEN_EACH * (options.ef or self._leaf.hnsw.efSearch) * n / allowed
        return seen < allowed

    # -- what is searched

    @property
    def code_bits(self) -> int | None:
        return None if self._index is None else code_bits(self._faiss, self._index)

    def hamming_codes(self, vectors: Codes) -> NDArray[np.uint8] | None:
        if not self.exact or self.metric != "hamming" or self._index is None:
            return None
        if self.kind == "binary":
            return vectors
        return cast("NDArray[np.uint8]", self._index.sa_encode(self._check_vectors(vectors)))

    def _extra_arrays(self) -> dict[str, NDArray[Any]]:
        return {} if self._labels is None else {"labels": self._labels}

    def _restored(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._owner, self._labels = None, arrays.get("labels")
        self._take(self._index)


def reason(error: RuntimeError) -> str:
    """FAISS's message without the C++ signature and source line before it."""
    return str(error).rsplit("Error: ", 1)[-1]


def _downcast(faiss: Any, index: Any) -> Any:
    return (faiss.downcast_IndexBinary if isinstance(index, faiss.IndexBinary) else faiss.downcast_index)(index)


def _coarse(faiss: Any, leaf: Any) -> Any:
    """The graph by which an index finds its lists; None where it compares with every centroid."""
    if not isinstance(leaf, faiss.IndexIVF):
        return None
    quantizer = faiss.downcast_index(leaf.quantizer)
    return quantizer if isinstance(quantizer, faiss.IndexHNSW) else None


def _innermost(faiss: Any, index: Any) -> Any:
    while isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index


def _labels_of(faiss: Any, lists: Any) -> Ids:
    """Every id in the inverted lists, list by list."""
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(n), size).copy() for n, size in enumerate(sizes) if size]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
