"""The server beside the library: what HTTP adds, what it bears, and what hostile requests do to it.

    python benchmarks/serve.py                   1,000,000 items; needs 4 GB in --scratch, and about half an hour
    python benchmarks/serve.py --only hostile    one section: start, ids, memory, uploads, hostile, page
    python benchmarks/serve.py --quick           10,000 items, few requests; stores nothing

`cbir serve` runs in a process of its own, and so do the clients. The collection holds random vectors of 256 dimensions
around 1,000 centres as codes of 256 bits (itq) in faiss-binary-flat, rescored by float; a search asks for the 10
nearest of an item. The library's own figures are `Collection.search_ids` of the same items, one after another.

    start      seconds from the command to the first answer that it is ready, median of 5
    ids        one client: milliseconds of a request, CPU milliseconds of the server, and the library's own;
               8 clients: requests a second; at half of that, requests being sent at random moments: p99 over the median
    memory     anonymous memory of the server after 2,000 requests and after 100,000
    uploads    photos of 640 x 480 as JPEG, extractor compact: photos a second of 16 clients against the pipeline's own
               rate over the same files, in turn, medians of 5; milliseconds of one client
    hostile    10,000 requests: broken forms, bombs, wrong hosts and origins, traversal, nonsense, slow clients, and
               writing that is not allowed, of a server that allows it; by status, with what items, memory and open
               files they leave, and whether an answer has a file that is nobody's, or says where the server's files are
    page       bytes of the page with all that it loads

Raw figures go to benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _report import camera_jpeg, show, store

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config

TOKEN = "benchmark"
DIM, CENTRES, K = 256, 1_000, 10
CLIENTS, UPLOADERS = 8, 16
ROUNDS = 5  # of the pipeline and the server in turn
CANARY = b"a file that is nobody's"
PATIENCE = 3.0  # seconds after which an attack ends what it has announced
Section = Callable[["Bench"], dict[str, Any]]


@dataclass
class Bench:
    """Where the collections are, and how much is asked of them."""

    place: Path
    items: int
    requests: int
    photos: int
    hostile: int
    lasting: int

    @property
    def vectors(self) -> Path:
        return self.place / "vectors.cbir"

    @property
    def pictures(self) -> Path:
        return self.place / "pictures.cbir"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of everything, nothing stored")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--scratch", type=Path, help="where to build them (the system's folder for such)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-", dir=chosen.scratch) as folder:
        place = Path(folder)
        bench = (
            Bench(place, 10_000, 300, 64, 300, 3_000)
            if chosen.quick
            else Bench(place, chosen.items, 3_000, 1_000, 10_000, 100_000)
        )
        _build(bench, chosen.only)
        results = {name: SECTIONS[name](bench) for name in chosen.only}
    for name, found in results.items():
        figures = {key: value for key, value in found.items() if not isinstance(value, list | dict)}
        show(name, [{"figure": key, "value": value} for key, value in figures.items()], ("figure", "value"))
    if not chosen.quick:
        print(store("serve", results))


# -- what is served


def _build(bench: Bench, sections: list[str]) -> None:
    os.environ["CBIR_CACHE"] = str(bench.place / "cache")
    if {"start", "ids", "memory"} & set(sections):
        rng = np.random.default_rng(0)
        file = np.lib.format.open_memmap(bench.place / "x.npy", "w+", np.float32, (bench.items, DIM))
        centres = rng.standard_normal((CENTRES, DIM), np.float32)
        for start in range(0, bench.items, 50_000):
            rows = file[start : start + 50_000]
            rows[:] = centres[rng.integers(0, CENTRES, len(rows))] + rng.standard_normal(rows.shape, np.float32)
        file.flush()
        _collection(bench.vectors, {"name": "vectors", "file": str(bench.place / "x.npy")}, "vectors")
    if {"uploads", "hostile"} & set(sections):
        (bench.place / "photos").mkdir()
        for number in range(bench.photos):
            (bench.place / "photos" / f"{number:05}.jpg").write_bytes(camera_jpeg(number))
        (bench.place / "secret.txt").write_bytes(CANARY)
        _collection(bench.pictures, {"name": "folder", "root": str(bench.place / "photos")}, "compact")


def _collection(out: Path, source: dict[str, Any], extractor: str) -> None:
    document = {
        "source": source,
        "extractors": [{"name": extractor}],
        "codecs": [{"name": "itq", "bits": 256 if extractor == "vectors" else 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float", "candidates": 100}],
    }
    Collection.build(parse_config(document), out).close()


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def cpu_seconds(self) -> float:
        """Of the server and of the decoders that it has not ended."""
        total = 0.0
        for number in (self.process.pid, *_children(self.process.pid)):
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def anonymous(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def _children(parent: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@contextlib.contextmanager
def _serving(folder: Path, *options: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "cbir_faiss.cli", "serve", str(folder), "--port", "0", "--token", TOKEN, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        link = process.stdout.readline()
        port = int(link.split("/?")[0].rpartition(":")[2])
        while _status(port, "GET", "/readyz") != 200:
            time.sleep(0.005)
        yield Running(process, port)
    finally:
        process.terminate()
        process.wait()


def _status(port: int, method: str, path: str) -> int:
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request(method, path)
            return connection.getresponse().status
    except OSError:
        return 0


# -- clients


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, content: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        self._connection.request("POST", f"/api/v1/collections/{path}/search", content, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def by_id(self, item: int) -> None:
        status, _ = self.post("vectors", json.dumps({"ids": [item], "k": K}).encode())
        assert status == 200, status

    def upload(self, photo: bytes) -> None:
        status, content = self.post("pictures", _form(photo), "multipart/form-data; boundary=b")
        assert status == 200, content


def _form(photo: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n'
    return head + photo + b"\r\n--b--\r\n"


def _timed(work: Callable[[Any], Any], questions: Any) -> list[float]:
    seconds = []
    for question in questions:
        began = time.perf_counter()
        work(question)
        seconds.append(time.perf_counter() - began)
    return seconds


def _ids(items: int, count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(items) for _ in range(count)]


def _load(port: int, items: int, seconds: float, seed: int) -> int:
    """One client that asks as fast as it is answered; how often."""
    client, rng, count, end = Client(port), random.Random(seed), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        client.by_id(rng.randrange(items))
        count += 1
    return count


def _open_load(port: int, items: int, rate: float, seconds: float, seed: int) -> list[float]:
    """Requests at random moments whether or not the last was answered in time: waiting for it counts."""
    client, rng, due, took = Client(port), random.Random(seed), time.perf_counter(), []
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        client.by_id(rng.randrange(items))
        took.append(time.perf_counter() - due)
        due += rng.expovariate(rate)
    return took


def _uploads(port: int, photos: list[Path]) -> None:
    client = Client(port)
    for photo in photos:
        client.upload(photo.read_bytes())


def _spread(work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Each of the arguments in a process of its own, at once."""
    context = multiprocessing.get_context("spawn")
    all_there = context.Barrier(len(arguments))  # none begins while another still imports
    with context.Pool(len(arguments), initializer=all_there.wait) as pool:
        return pool.starmap(work, arguments, chunksize=1)


# -- sections


def start(bench: Bench) -> dict[str, Any]:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        with _serving(bench.vectors):
            seconds.append(time.perf_counter() - began)
    return {"items": bench.items, "median_s": statistics.median(seconds), "seconds": seconds}


def ids(bench: Bench) -> dict[str, Any]:
    asked = _ids(bench.items, bench.requests, 1)
    library = _spread(_library, [(bench.vectors, asked)])[0]
    with _serving(bench.vectors) as server:
        client = Client(server.port)
        _timed(client.by_id, asked[:200])
        cpu = server.cpu_seconds()
        through_http = _timed(client.by_id, asked)
        cpu = (server.cpu_seconds() - cpu) / len(asked)
        seconds = 3.0 if bench.requests < 1000 else 10.0
        counts = _spread(_load, [(server.port, bench.items, seconds, number) for number in range(CLIENTS)])
        most = sum(counts) / seconds
        half = [(server.port, bench.items, most / 2 / CLIENTS, seconds, number) for number in range(CLIENTS)]
        latencies = [one for some in _spread(_open_load, half) for one in some]
    own, http_ms = (1000 * statistics.median(some) for some in (library["seconds"], through_http))
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "items": bench.items,
        "library_ms": own,
        "http_ms": http_ms,
        "http_adds_ms": http_ms - own,
        "library_cpu_ms": 1000 * library["cpu"],
        "server_cpu_ms": 1000 * cpu,
        "cpu_of_allowed": cpu / (1.25 * library["cpu"] + 0.001),
        "requests_per_second": most,
        "half_load_p50_ms": 1000 * p50,
        "half_load_p99_ms": 1000 * p99,
        "p99_over_median": p99 / p50,
        "library_seconds": library["seconds"],
        "http_seconds": through_http,
        "half_load_seconds": latencies,
    }


def _library(folder: Path, asked: list[int]) -> dict[str, Any]:
    with Collection.open(folder) as collection:
        search = partial(_search_one, collection)
        _timed(search, asked[:200])
        cpu = time.process_time()
        seconds = _timed(search, asked)
        return {"seconds": seconds, "cpu": (time.process_time() - cpu) / len(asked)}


def _search_one(collection: Collection, item: int) -> None:
    collection.search_ids([item], K)


def memory(bench: Bench) -> dict[str, Any]:
    with _serving(bench.vectors) as server:
        client = Client(server.port)
        _timed(client.by_id, _ids(bench.items, 2_000, 2))
        first = server.anonymous()
        _timed(client.by_id, _ids(bench.items, bench.lasting, 3))
        last = server.anonymous()
    return {"requests": bench.lasting, "first_bytes": first, "last_bytes": last, "last_over_first": last / first}


def uploads(bench: Bench) -> dict[str, Any]:
    photos = sorted((bench.place / "photos").iterdir())
    pipeline, served = [], []
    with _serving(bench.pictures) as server:
        warm = Client(server.port)
        _timed(warm.upload, [photo.read_bytes() for photo in photos[:8]])
        alone = _timed(warm.upload, [photo.read_bytes() for photo in photos[:64]])
        parts = [(server.port, photos[number::UPLOADERS]) for number in range(UPLOADERS)]
        for _ in range(ROUNDS):
            pipeline += _spread(_pipeline, [(bench.place / "photos",)])
            seconds = _spread(_uploads_timed, parts)
            served.append(len(photos) / (max(end for _, end in seconds) - min(begin for begin, _ in seconds)))
    ratios = [ours / own for ours, own in zip(served, pipeline, strict=True)]
    return {
        "photos": len(photos),
        "pipeline_per_second": statistics.median(pipeline),
        "served_per_second": statistics.median(served),
        "served_over_pipeline": statistics.median(ratios),
        "least_over_pipeline": min(ratios),
        "most_over_pipeline": max(ratios),
        "one_client_p50_ms": 1000 * statistics.median(alone),
        "one_client_seconds": alone,
    }


def _uploads_timed(port: int, photos: list[Path]) -> tuple[float, float]:
    began = time.time()
    _uploads(port, photos)
    return began, time.time()


def _pipeline(folder: Path) -> float:
    """Photos a second, read, decoded, prepared and extracted as a build does it, the first 32 not counted."""
    from cbir_faiss.base.registry import make
    from cbir_faiss.pipeline.extraction import extract

    source, extractor = make("sources", "folder", root=str(folder)), make("extractors", "compact")
    extract(source, extractor, cache=None, rows=np.arange(32))
    found = extract(source, extractor, cache=None)
    return found.computed / found.seconds


def page(bench: Bench) -> dict[str, Any]:
    from importlib.resources import files

    folder = Path(str(files("cbir_faiss.serve") / "page"))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {"bytes": sum(sizes.values()), "files": sizes}


# -- hostile


def hostile(bench: Bench) -> dict[str, Any]:
    with _serving(bench.pictures, "--write") as server:
        Client(server.port).upload(camera_jpeg(0))
        items = _items(server.port)
        rng = random.Random(0)
        for _ in range(min(500, bench.hostile // 2)):
            _attack(server.port, rng)
        memory, files = server.anonymous(), server.files()
        statuses: Counter[str] = Counter()
        leaked = told = 0
        slow = [_slow(server.port) for _ in range(50)]
        for _ in range(bench.hostile):
            kind, answer = _attack(server.port, rng)
            statuses[f"{kind} {answer[9:12].decode() or 'closed'}"] += 1
            leaked += CANARY in answer or b"root:x:" in answer
            told += str(bench.place).encode() in answer
        for one in slow:
            one.close()
        time.sleep(1)
        Client(server.port).upload(camera_jpeg(0))
        return {
            "requests": bench.hostile,
            "faults": sum(count for name, count in statuses.items() if name.endswith(" 500")),
            # A form of a photo with other bytes may still be a form of a photo.
            "accepted": sum(
                count for name, count in statuses.items() if name.split()[-1][0] == "2" and name != "form 200"
            ),
            "items_changed": _items(server.port) - items,
            "files_of_nobody": leaked,
            "paths_told": told,
            "memory_over_before": server.anonymous() / memory,
            "open_files_more": server.files() - files,
            "alive": int(server.process.poll() is None),
            "statuses": dict(sorted(statuses.items())),
        }


def _items(port: int) -> int:
    answer = _sent(port, _request(path="/api/v1/collections/pictures"))
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["items"])


def _slow(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port))
    opened.sendall(b"POST / HTTP/1.1\r\nHost: local")
    return opened


def _attack(port: int, rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(sorted(ATTACKS))
    return kind, _sent(port, ATTACKS[kind](rng))


def _sent(port: int, content: bytes) -> bytes:
    parts = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as opened:
            opened.sendall(content)
            opened.settimeout(PATIENCE)
            try:
                parts += iter(lambda: opened.recv(1 << 16), b"")
            except TimeoutError:  # it waits for what was announced and never comes
                opened.shutdown(socket.SHUT_WR)
                opened.settimeout(60)
                parts += iter(lambda: opened.recv(1 << 16), b"")
    except OSError:  # it was let go while it still sent
        pass
    return b"".join(parts)


def _request(
    body: bytes = b"",
    kind: str = "application/json",
    path: str = "/api/v1/collections/pictures/search",
    method: str = "",
    **headers: str,
) -> bytes:
    all_headers = {"Host": "localhost", "Authorization": f"Bearer {TOKEN}", "Content-Type": kind, **headers}
    all_headers |= {"Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in all_headers.items())
    return f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _broken_form(rng: random.Random) -> bytes:
    """A right form, some bytes of which are others, or left out."""
    content = bytearray(_form(camera_jpeg(rng.randrange(4))))
    for _ in range(rng.randrange(1, 6)):
        place = rng.choice([rng.randrange(80), rng.randrange(len(content))])
        content[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return _request(bytes(content), rng.choice(["multipart/form-data; boundary=b", "multipart/form-data", "x/y"]))


def _bomb(rng: random.Random) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = rng.choice([9_000, 60_000, 2**31 - 1])
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 22), 9)) * rng.randrange(20)
    data = chunk(b"IDAT", zlib.compress(bytes(3 * 9_000 * 900), 9))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return _request(_form(b"\x89PNG\r\n\x1a\n" + head + text + data), "multipart/form-data; boundary=b")


def _wrong_host(rng: random.Random) -> bytes:
    host = rng.choice(["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::1", "localhost:x", "a@localhost"])
    return _request(path="/api/v1/collections", Host=host)


def _wrong_origin(rng: random.Random) -> bytes:
    return _request(b'{"ids": [0]}', Origin=rng.choice(["null", "https://evil.example", "http://localhost:1"]))


def _traversal(rng: random.Random) -> bytes:
    up = rng.choice(["../", "..%2f", "%2e%2e/", "....//", "..\\", "%c0%ae%c0%ae/"]) * rng.randrange(1, 9)
    name = rng.choice(["etc/passwd", "secret.txt", "CURRENT", "items.sqlite"])
    under = ("/", "/api/v1/collections/", "/api/v1/collections/pictures/items/0/", "/api/v1/runs/", "/page/")
    return _request(path=rng.choice(under) + up + name)


def _nonsense(rng: random.Random) -> bytes:
    bodies = (b"[" * 50_000, b'{"ids": [1e999]}', b'{"k": {}}', rng.randbytes(200), b'{"vectors": [[]]}', b"\xff" * 50)
    deep = b'{"ids": [0], "where": ' + b'{"not": ' * 500 + b"{}" + b"}" * 501
    return _request(rng.choice([*bodies, deep]))


def _no_http(rng: random.Random) -> bytes:
    return rng.choice([rng.randbytes(300), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"\x16\x03\x01" * 9])


def _unknown(rng: random.Random) -> bytes:
    wrong = rng.choice(["1 ", "0", "x" * 500, TOKEN + "x"])
    return _request(b'{"ids": [0]}', Authorization=f"Bearer {wrong}")


def _write(rng: random.Random) -> bytes:
    """Asks for a change of the collection, from another's page, or one that makes no sense."""
    items, origin = "/api/v1/collections/pictures/items", rng.choice(["null", "https://evil.example"])
    form = _form(rng.choice([camera_jpeg(rng.randrange(4)), rng.randbytes(500), b""]))
    name = rng.choice([b"../../secret.txt", b"/etc/passwd", b"a\0b", b"x" * 5000, b"CURRENT"])
    which = rng.choice([-1, 10**6, 2**63, "0/", "..", "0%00", "%2e%2e"])
    return rng.choice(
        [
            _request(form, "multipart/form-data; boundary=b", items, Origin=origin),
            _request(form, "multipart/form-data; boundary=b", items, Sec_Fetch_Site="cross-site"),
            _request(
                _form(rng.randbytes(500)).replace(b'"p"', b'"' + name + b'"'), "multipart/form-data; boundary=b", items
            ),
            _request(path=f"{items}/{rng.randrange(64)}", method="DELETE", Origin=origin),
            _request(path=f"{items}/{which}", method="DELETE"),
            _request(path=f"{items}/0", method=rng.choice(["PUT", "PATCH", "POST", "TRACE"])),
        ]
    )


ATTACKS: dict[str, Callable[[random.Random], bytes]] = {
    "form": _broken_form,
    "bomb": _bomb,
    "host": _wrong_host,
    "origin": _wrong_origin,
    "traversal": _traversal,
    "nonsense": _nonsense,
    "no http": _no_http,
    "token": _unknown,
    "write": _write,
}
SECTIONS: dict[str, Section] = {
    "start": start,
    "ids": ids,
    "memory": memory,
    "uploads": uploads,
    "hostile": hostile,
    "page": page,
}

if __name__ == "__main__":
    main()
