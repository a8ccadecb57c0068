"""The mechanism that all FAISS backends share: ids, deletion, filters, distances and files on top of any index type.

Rows are numbered 0…n-1 as FAISS does; ``Rows`` knows their ids, which are alive, and their payload. Storing an id again
appends a row and kills the old one, deleting clears a bit. What a search may return becomes a row selector where the
index takes one, else more is fetched until k allowed rows or all rows are seen. That is the same for every type of
index, is safe with memory-mapped files, and never returns an id twice, as FAISS's IDMap can. Dead rows keep their place
until their content is copied into a new index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss._lib import threads
from cbir_faiss._lib.cpu import known_to_openblas
from cbir_faiss.backends.faiss._lock import SharedLock
from cbir_faiss.backends.faiss._payloads import Payloads
from cbir_faiss.backends.faiss._rows import Mask, Rows
from cbir_faiss.backends.faiss._saved import publish, read_head, write_head
from cbir_faiss.backends.faiss._stored import stored
from cbir_faiss.base.filters import Where
from cbir_faiss.base.options import need, parse_options
from cbir_faiss.errors import (
    BackendError,
    ConfigError,
    CorruptCollection,
    InputError,
    MissingDependency,
    Unsupported,
)
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric, Payload, RangeHits, missing_hits

Raw = tuple[NDArray[Any], Ids]
"""Distances as FAISS gives them, and rows, both ``(n, k)``; row -1 where there is none."""

SEEN_EACH = 16
"""Rows that a walk in a graph compares for each candidate that it keeps."""
_WIDEST = 1 << 22  # distances held at once while more is fetched than is asked for
_COPIED_BYTES = 1 << 24  # of codes that a filter allows, scanned in a copy of them
_COPIED_SHARE = 1 / 4  # of the rows
_COPIED_FROM_LISTS = 1 / 32  # of the rows in lists
_GPU_WIDEST = 2048  # neighbours that FAISS's GPU kernels can return
_PAYLOAD = "payload.jsonl"


class DeviceOptions(base.Options):
    """Options of an index that FAISS also has for a GPU."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="where the index lives; cuda needs the 'gpu' extra")


class FaissBackend(base.Backend):
    """A FAISS index. A subclass makes it in ``_new_index`` and says in ``selects`` whether it takes row selectors."""

    filters_ids: ClassVar[bool] = True
    selects: ClassVar[bool] = False
    ranges: ClassVar[bool] = False
    """Whether ``range_search`` of the index can be trusted; where not, it is emulated."""
    index_file: ClassVar[str] = "index.faiss"

    def _setup(self) -> None:
        with known_to_openblas():
            self._faiss = need("faiss", "cpu")
        self._lock = SharedLock()
        self._read_only = False
        self._selector: tuple[Mask, Any] | None = None
        self._plain: tuple[Any, Any] | None = None
        if self._on_gpu():
            self._declare(selects=False, ranges=False)  # the GPU's binary index refuses parameters and has no range
        self._forget()

    # -- for subclasses

    def _new_index(self, sample: Codes | None) -> Any:
        """An empty index for ``self.dim``, ``self.kind``, ``self.metric``; trained, where there is a ``sample``."""
        raise NotImplementedError

    def _parameters(self, options: Any, selector: Any) -> Any:
        """FAISS's search parameters for our search options and a row selector, None where neither says anything."""
        return self._faiss.SearchParameters(sel=selector) if selector is not None else None

    def _vectors(self, rows: Ids) -> Codes:
        """The stored vectors of rows."""
        return stored(self._faiss, self._cpu_index(), rows)

    def _append(self, vectors: Codes, ids: Ids) -> None:
        self._index.add(vectors)

    def _wider(self, options: Any, share: float) -> Any:
        """Search options with which as many rows of a ``share`` of them are looked at as of all with ``options``.

        ``options`` themselves where every row is looked at anyway; a share of 0 stands for looking at everything.
        """
        return options

    def _flat(self) -> Any:
        """The index below a graph or hash tables that holds every row and takes selectors; None where there is none."""
        return None

    def _inside(self, vectors: Codes) -> Codes:
        """Queries as ``_flat`` takes them."""
        return vectors

    def _walks(self, allowed: int, options: Any) -> bool:
        """Whether the graph above ``_flat`` finds the nearest of so many rows sooner than a look at each of them."""
        return False

    def _metric_type(self) -> int:
        """FAISS's number for the metric: cosine is the inner product of normalised vectors."""
        ip = self.metric in ("ip", "cosine")
        return int(self._faiss.METRIC_INNER_PRODUCT if ip else self._faiss.METRIC_L2)

    def _declare(self, **attributes: Any) -> None:
        """Set what only this instance knows of ``metrics``, ``exact``, … and the class declares for all."""
        for name, value in attributes.items():
            setattr(self, name, value)

    # -- life

    def _forget(self) -> None:
        self._index: Any = None
        self._rows = Rows()
        self._copied: tuple[Mask, Ids, Any] | None = None

    def _create(self) -> None:
        self._forget()
        if not self.needs_training:
            self._index = self._to_device(self._new_index(None))

    def _train(self, sample: Codes) -> None:
        with self._lock.exclusive():
            self._writable()
            if self._rows.n:
                raise InputError(f"backend '{self.name}' holds items already: train it before the first upsert")
            with self._engine():
                self._index = self._to_device(self._new_index(sample))

    def close(self) -> None:
        self._forget()
        self.dim = None

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = {"index": self.index_file, "payload": _PAYLOAD}
        index, payload = (folder / f"{name}.part" for name in names.values())
        with self._lock.shared():
            self._trained()
            with self._engine():
                self._write_index(str(index))
            with payload.open("wb") as file:
                limits = self._rows.payloads.write(file, self._rows.n)
            arrays = self._rows.arrays() | self._extra_arrays() | ({"limits": limits} if limits[-1] else {})
            meta = {"n": self._rows.n, "dim": self.dim, "kind": self.kind, "metric": self.metric, **self._identity()}
        files = {name: publish(folder / f"{name}.part", folder / name) for name in names.values()}
        write_head(folder, {"files": files, **meta}, arrays)

    def _restore(self, folder: Path, mmap: bool) -> None:
        # Mapping is for files too large to read; their sizes are checked, and whoever stored them may verify digests.
        meta, arrays = read_head(folder, whole=not mmap)
        theirs = {"plugin": meta.get("plugin"), "options": self._completed(meta.get("options", {}))}
        if theirs != self._identity():
            raise CorruptCollection(f"{folder}: written by {theirs}, but the backend here is {self._identity()}")
        limits = arrays.get("limits", np.zeros(meta["n"] + 1, np.int64))
        payloads = Payloads.opened(folder / _PAYLOAD, limits)
        with self._lock.exclusive():
            try:
                self._index = self._read_index(str(folder / self.index_file), meta["kind"], mmap)
            except RuntimeError as error:
                raise CorruptCollection(f"{folder / self.index_file}: it cannot be read: {error}") from error
            self.dim, self.kind, self.metric = meta["dim"], meta["kind"], meta["metric"]
            self._rows = Rows.from_arrays(meta["n"], arrays, payloads)
            self._read_only, self._copied = mmap, None
            self._restored(arrays)
            self._index = self._to_device(self._index)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for saved files to be restored here: the plugin and its options, wherever it runs."""
        return {"plugin": self.name, "options": self._completed(self.options.model_dump(mode="json"))}

    def _completed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that were saved, by their names of today and with those that did not exist yet."""
        try:
            return parse_options(self.Options, options).model_dump(mode="json", exclude={"device"})
        except ConfigError:
            return dict(options)

    def _extra_arrays(self) -> dict[str, NDArray[Any]]:
        """What else a subclass has to save."""
        return {}

    def _restored(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Runs when index and rows are back, with all saved arrays."""

    def _write_index(self, path: str) -> None:
        write = self._faiss.write_index_binary if self.kind == "binary" else self._faiss.write_index
        write(self._cpu_index(), path)

    def _read_index(self, path: str, kind: Kind, mmap: bool) -> Any:
        faiss = self._faiss
        read = faiss.read_index_binary if kind == "binary" else faiss.read_index
        return read(path, faiss.IO_FLAG_MMAP_IFC) if mmap else read(path)

    # -- content

    def _upsert(self, ids: Ids, vectors: Codes, payload: Sequence[Payload] | None) -> None:
        with self._lock.exclusive():
            self._writable()
            self._trained()
            with self._engine():
                self._append(vectors, ids)
            self._rows.append(ids, payload)

    def _delete(self, ids: Ids) -> None:
        with self._lock.exclusive():  # of a mapped index too: only a bit in memory is cleared
            self._rows.delete(ids)

    def _count(self) -> int:
        return self._rows.n - self._rows.dead

    def _fetch(self, ids: Ids) -> Codes:
        with self._lock.shared():
            rows = self._rows.require(ids)
            with self._engine():
                return self._vectors(rows)

    def _payload(self, ids: Ids) -> list[dict[str, Any]]:
        with self._lock.shared():
            return [self._rows.payloads[row] for row in self._rows.require(ids).tolist()]

    def _scroll(self, batch_size: int) -> Iterator[Batch]:
        # A row never changes, so the list of rows taken here stays a consistent view whatever is written meanwhile.
        with self._lock.shared():
            rows = self._rows.in_order_of_ids()
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            with self._lock.shared(), self._engine():
                payload = [self._rows.payloads[row] for row in part.tolist()]
                batch = Batch(self._rows.ids_of(part), self._vectors(part), payload)
            yield batch

    # -- search

    def _search(self, vectors: Codes, k: int, where: Where | Ids | None, options: Any) -> Hits:
        with threads.openmp(self._faiss, self._scanned(len(vectors), options)):
            return self._search_rows(vectors, k, where, options)

    def _search_rows(self, vectors: Codes, k: int, where: Where | Ids | None, options: Any) -> Hits:
        self._lock.acquire()
        try:
            rows = self._rows
            if where is None and not rows.dead and k <= rows.n:
                return self._hits(*self._nearest(vectors, k, options), full=self.exact)
            return self._search_among(vectors, k, rows.select(where), options)
        except RuntimeError as error:
            raise BackendError(f"backend '{self.name}': {error}") from error
        finally:
            self._lock.release()

    def _scanned(self, queries: int, options: Any) -> float:
        """About how many bytes a search for so many queries looks at: every code for each of them."""
        width = self.dim or 0
        bits = width if self.kind == "binary" else 32 * width
        scanned = queries * self._rows.n * bits / 8
        if scanned > threads.ONE_THREAD_BYTES and self.code_bits:
            scanned *= self.code_bits / bits
        return scanned

    def _search_among(self, vectors: Codes, k: int, keep: Mask, options: Any) -> Hits:
        allowed = int(np.count_nonzero(keep))
        if not allowed or not len(vectors):
            return missing_hits(len(vectors), k)
        few = min(k, allowed)
        everything = allowed == len(keep)
        raw = self._nearest(vectors, few, options) if everything else self._nearest_of(vectors, few, keep, options)
        return _padded(self._hits(*raw), k)

    def _nearest_of(self, vectors: Codes, k: int, keep: Mask, options: Any) -> Raw:
        """The nearest of the rows in ``keep``, which are k at least, as surely as ``options`` find the nearest of all.

        The k nearest of a hundredth of the rows lie as far apart as 100 k of all: an index that looks only around the
        query has to look as much farther, and everywhere for a query around which there are none of them.
        """
        allowed = int(np.count_nonzero(keep))
        if self._copies(allowed):
            return self._scan_copies(vectors, k, keep)
        if self._flat() is not None and not self._walks(allowed, options):
            return self._scan(vectors, k, keep, options)
        wider = self._wider(options, allowed / len(keep))
        scans = self._flat() is not None and wider is not options
        most = allowed // SEEN_EACH if scans else len(keep)
        distances, rows = self._nearest_around(vectors, k, keep, wider, most)
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short) and wider is not options:
            some = vectors[short]
            everywhere = self._scan if scans else self._nearest_everywhere
            distances[short], rows[short] = everywhere(some, k, keep, options)
        return distances, rows

    def _nearest_around(self, vectors: Codes, k: int, keep: Mask, options: Any, most: int) -> Raw:
        """The nearest of the rows in ``keep`` among those that a search with ``options`` looks at."""
        if self.selects:
            return self._nearest(vectors, k, options, self._selector_of(keep))
        return self._fetch_more(vectors, k, keep, options, most)

    def _nearest_everywhere(self, vectors: Codes, k: int, keep: Mask, options: Any) -> Raw:
        return self._nearest_around(vectors, k, keep, self._wider(options, 0), len(keep))

    def _scan(self, vectors: Codes, k: int, keep: Mask, options: Any) -> Raw:
        """The nearest of the rows in ``keep``, each of them compared."""
        params = self._faiss.SearchParameters(sel=self._selector_of(keep))
        return cast("Raw", self._flat().search(self._inside(vectors), k, params=params))

    def _copies(self, allowed: int) -> bool:
        """Whether so few vectors or codes are scanned in a copy of them, which passes over nothing.

        A selector is asked about every row, and a graph is walked from one place in memory to another. Where there is
        none, as for codes in lists, to fetch more of them until enough are allowed takes a hundred times as long for
        few; but to copy many from lists takes long, too.
        """
        if self.capabilities.vectors != "native" or self._on_gpu():
            return False
        width = (self.dim or 0) // 8 if self.kind == "binary" else 4 * (self.dim or 0)
        in_a_row = self._flat() is not None or (self.kind == "binary" and self.selects)
        share = _COPIED_SHARE if in_a_row else _COPIED_FROM_LISTS
        return allowed * width <= _COPIED_BYTES and allowed <= share * self._rows.n

    def _scan_copies(self, vectors: Codes, k: int, keep: Mask) -> Raw:
        """The nearest of the rows in ``keep``, which are k at least; the last copy is kept, for filters come again."""
        known = self._copied
        if known is None or not np.array_equal(known[0], keep):
            rows, copy = np.flatnonzero(keep), self._flat_copy()
            copy.add(np.ascontiguousarray(self._vectors(rows)))
            known = self._copied = keep.copy(), rows, copy
        distances, places = known[2].search(vectors, k)
        return distances, known[1][places]

    def _flat_copy(self) -> Any:
        if self.kind == "binary":
            return self._faiss.IndexBinaryFlat(self.dim)
        return self._faiss.IndexFlat(self.dim, self._metric_type())

    def _nearest(self, vectors: Codes, k: int, options: Any, selector: Any = None) -> Raw:
        """The index's own answer.

        Raises:
            Unsupported: more neighbours than a GPU index can return.
        """
        if k > _GPU_WIDEST and self._on_gpu():
            raise Unsupported(f"on a GPU, FAISS returns at most {_GPU_WIDEST} neighbours; {k} are needed here")
        params = self._plain_parameters(options) if selector is None else self._parameters(options, selector)
        return cast("Raw", self._index.search(vectors, k, params=params))

    def _nearby(self, vectors: Codes, bound: float) -> tuple[Ids, NDArray[Any], Ids]:
        """The index's own answer to a range search: limits, distances, rows; ``bound`` itself is excluded."""
        return cast("tuple[Ids, NDArray[Any], Ids]", self._index.range_search(vectors, bound))

    def _plain_parameters(self, options: Any) -> Any:
        """``_parameters`` without a selector; those of the last options are kept, for making them takes a while."""
        known = self._plain
        if known is None or known[0] is not options:
            known = self._plain = options, self._parameters(options, None)
        return known[1]

    def _fetch_more(self, vectors: Codes, k: int, keep: Mask, options: Any, most: int) -> Raw:
        """The first k allowed rows of an index without selectors, a part of the queries at a time.

        Where ``most`` rows that are fetched do not hold so many, there are fewer.
        """
        n = len(keep)
        wide = min(n, int(1.2 * k * n / np.count_nonzero(keep)) + 16)
        parts, start = [], 0
        while start < len(vectors):
            part = vectors[start : start + max(1, _WIDEST // wide)]
            distances, found = self._nearest(part, wide, options)
            allowed = (found >= 0) & keep[found]
            enough = (np.count_nonzero(allowed, axis=1) >= k) | (found[:, -1] < 0)
            if wide < most and not enough.all():
                wide = min(most, 4 * wide)  # and the same queries again
                continue
            order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
            found[~allowed] = -1
            parts.append((np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)))
            start += len(part)
        return np.concatenate([d for d, _ in parts]), np.concatenate([f for _, f in parts])

    def _selector_of(self, keep: Mask) -> Any:
        """A FAISS selector of those rows; the last one is kept, for it is often asked for again."""
        known = self._selector
        if known is None or known[0].shape != keep.shape or not np.array_equal(known[0], keep):
            bitmap = np.packbits(keep, bitorder="little")
            known = self._selector = keep.copy(), self._faiss.IDSelectorBitmap(bitmap)
        return known[1]

    def _hits(self, distances: NDArray[Any], rows: Ids, *, full: bool = False) -> Hits:
        """FAISS's answer as ours; ``full``: nothing can be missing in it."""
        found = _as_distances(distances, self.metric)
        # For the padding FAISS has 3.4e38, 2147483647 or -2147483648, by type of index.
        if not full and len(rows) and (rows.item(-1) if len(rows) == 1 else rows.min()) < 0:  # it stands at the end
            found[rows < 0] = np.inf
        return Hits(self._rows.ids_of(rows), found)

    def _range(self, vectors: Codes, radius: float, where: Where | None) -> RangeHits:
        if not self.ranges or not len(vectors) or not self._rows.n:
            return super()._range(vectors, radius, where)
        with self._lock.shared(), self._engine():
            limits, distances, rows = self._nearby(vectors, _threshold(radius, self.metric, self.dim))
            query = np.searchsorted(limits, np.arange(len(rows)), side="right") - 1
            found, ids = _as_distances(distances, self.metric), self._rows.ids_of(rows)
            keep = (found <= radius) & self._rows.select(where)[rows]
        return _sorted_range(query[keep], ids[keep], found[keep], len(vectors))

    # -- small things

    def _on_gpu(self) -> bool:
        return getattr(self.options, "device", "cpu") == "cuda"

    def _to_device(self, index: Any) -> Any:
        """``index``, moved to the GPU where the options say so.

        Raises:
            MissingDependency: this FAISS was built without GPU support.
            Unsupported: there is no GPU.
        """
        if not self._on_gpu():
            return index
        faiss = self._faiss
        if not hasattr(faiss, "StandardGpuResources"):
            raise MissingDependency(
                "device: cuda needs FAISS for GPUs: pip install 'cbir-faiss[gpu]' without faiss-cpu"
            )
        if not faiss.get_num_gpus():
            raise Unsupported(f"backend '{self.name}': device: cuda, but FAISS sees no GPU; use device: cpu")
        self._gpu = faiss.StandardGpuResources()
        move = faiss.index_binary_cpu_to_gpu if self.kind == "binary" else faiss.index_cpu_to_gpu
        return move(self._gpu, 0, index)

    def _cpu_index(self) -> Any:
        if not self._on_gpu():
            return self._index
        copy = self._faiss.index_binary_gpu_to_cpu if self.kind == "binary" else self._faiss.index_gpu_to_cpu
        return copy(self._index)

    def _writable(self) -> None:
        if self._read_only:
            raise Unsupported(f"backend '{self.name}' is read-only: its files are mapped; restore it without mmap")

    def _trained(self) -> None:
        if self._index is None:
            raise InputError(f"backend '{self.name}' learns from a sample: call train(sample) first")

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """FAISS's exceptions, as one of ours."""
        try:
            yield
        except RuntimeError as error:
            raise BackendError(f"backend '{self.name}': {error}") from error


def widened(now: int, share: float, most: int) -> int:
    """How much is looked at for a ``share`` of the rows where ``now`` is for all: ``most``, or in proportion."""
    return max(now, most if now >= share * most else math.ceil(now / share))


def _as_distances(values: NDArray[Any], metric: Metric | None) -> NDArray[np.float32]:
    """FAISS's scores as float32 distances, smaller is nearer; changed in place where they are float32 already."""
    if metric == "ip":
        np.negative(values, out=values)
    elif metric == "cosine":
        np.subtract(1, values, out=values)
    return values.astype(np.float32, copy=False)


def _threshold(radius: float, metric: Metric | None, dim: int | None) -> float | int:
    """What FAISS's range search, which excludes its bound, must be given to include ``radius``."""
    if metric == "hamming":
        return math.floor(min(max(radius, -1.0), float(dim or 0))) + 1
    bound = {"l2": radius, "ip": -radius, "cosine": 1 - radius}[str(metric)]
    return float(np.nextafter(np.float32(bound), np.float32(np.inf if metric == "l2" else -np.inf)))


def _padded(hits: Hits, k: int) -> Hits:
    more = k - hits.ids.shape[1]
    if not more:
        return hits
    pad = missing_hits(len(hits), more)
    return Hits(np.hstack([hits.ids, pad.ids]), np.hstack([hits.distances, pad.distances]))


def _sorted_range(query: Ids, ids: Ids, distances: NDArray[np.float32], queries: int) -> RangeHits:
    order = np.lexsort((distances, query))
    limits = np.searchsorted(query[order], np.arange(queries + 1))
    return RangeHits(limits.astype(np.int64), ids[order], distances[order])
