"""The published data sets, tiny, on a server of this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.datasets.published import PUBLISHED

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass
class Server:
    """Files by name; ``breaks_after`` bytes it hangs up, and it may know nothing of ranges."""

    files: dict[str, bytes]
    ranges: bool = True
    breaks_after: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving() -> Iterator[Server]:
    """A server of files, on a port of its own."""
    state = Server({})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, part = self.path.lstrip("/"), self.headers.get("Range")
            state.asked.append((name, part))
            content = state.files.get(name)
            if content is None:
                self.send_error(404)
                return
            start = int(part.removeprefix("bytes=").rstrip("-")) if part and state.ranges else 0
            if part and state.ranges and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if state.breaks_after is None else state.breaks_after
            self.wfile.write(content[start : max(start, end)])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        state.address = f"http://127.0.0.1:{served.server_port}"
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        served.shutdown()
        thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the three data sets published at the server, under the names that their files have."""
    contents = {**_caltech101(), **_cifar10(), **_mnist()}
    for name, entry in list(PUBLISHED.items()):
        local = {}
        for address in entry.files:
            file = address.rsplit("/", 1)[1]
            server.files[file] = contents[file]
            local[f"{server.address}/{file}"] = hashlib.md5(contents[file], usedforsecurity=False).hexdigest()
        monkeypatch.setitem(PUBLISHED, name, replace(entry, files=local))


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def _caltech101() -> dict[str, bytes]:
    inner = _tar(
        {
            **{f"101_ObjectCategories/{c}/image_{i:04}.jpg": jpeg(i) for c in ("ant", "bass") for i in (1, 2, 3)},
            "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": jpeg(9),
            "101_ObjectCategories/ant/._image_0001.jpg": b"what a Mac leaves",
            "101_ObjectCategories/../../outside/image_0001.jpg": jpeg(1),
            "101_ObjectCategories/ant/../image_0001.jpg": jpeg(1),
        }
    )
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("__MACOSX/caltech-101/._101_ObjectCategories.tar.gz", b"what a Mac leaves")
        file.writestr("caltech-101/Annotations.tar", b"")
        file.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
    return {"caltech-101.zip": outer.getvalue()}


def pixels_of(label: int, number: int) -> np.ndarray:
    return np.full((3, 32, 32), [[[label * 20]], [[number]], [[7]]], np.uint8)


def _cifar10() -> dict[str, bytes]:
    files = {"batches.meta.txt": "\n".join([*CLASSES, ""]).encode()}
    for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        files[f"{batch}.bin"] = b"".join(bytes([label]) + pixels_of(label, i).tobytes() for label in range(10))
    # In the order of the archive, which is not that of the batches.
    return {"cifar-10-binary.tar.gz": _tar({f"cifar-10-batches-bin/{name}": files[name] for name in sorted(files)})}


def _mnist() -> dict[str, bytes]:
    files = {}
    for part, n in (("train", 5), ("t10k", 3)):
        head = np.array([2051, n, 28, 28], ">i4").tobytes()
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(head + bytes(n * 28 * 28))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(np.array([2049, n], ">i4").tobytes() + bytes(range(n)))
    return files
