"""What runs in a process of its own, one picture after another: whatever a file does to it, the server goes on.

    python -m cbir_faiss.serve.decoder

Jobs come on stdin and answers go to stdout, each as a head of JSON and bytes, both with their length before them. An
answer is never unpickled: who has taken over this process has not taken over the other.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

from cbir_faiss.errors import CbirError

LENGTHS = struct.Struct(">II")
_MEMORY = 3 << 30
"""Bytes of memory beyond what it begins with: the largest picture allowed, several times over."""
_MEMORY_NOW = Path("/proc/self/statm")
_SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
Answer = tuple[dict[str, Any], bytes]


def main() -> None:
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what a library writes there is no answer
        os.dup2(nowhere, stream)
    limit_memory()
    while (job := read_frame(jobs)) is not None:
        try:
            head, body = _JOBS[job[0].pop("job")](job[1], **job[0])
        except CbirError as error:
            head, body = {"error": str(error)}, b""
        except MemoryError:
            head, body = {"error": "takes more memory than a picture may"}, b""
        write_frame(answers, head, body)


def read_frame(stream: IO[bytes]) -> Answer | None:
    """Head and body; None at the end."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    head, body = LENGTHS.unpack(lengths)
    return json.loads(stream.read(head)), stream.read(body)


def write_frame(stream: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    stream.write(frame(head, body))
    stream.flush()


def frame(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def limit_memory() -> None:
    """A picture that takes more is an error of its own, not of the machine. No limit where there is no /proc."""
    try:
        pages = int(_MEMORY_NOW.read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def prepare(body: bytes, *, extractor: dict[str, Any], folder: str, megapixels: float) -> Answer:
    """An uploaded picture, ready for the extractor; the head says shape and dtype."""
    from cbir_faiss.images.reading import open_image

    plugin = _extractor(json.dumps(extractor), folder)
    prepared = plugin.prepare(open_image(body, max_megapixels=megapixels, min_side=plugin.min_side))
    return {"shape": prepared.shape, "dtype": prepared.dtype.str}, prepared.tobytes()


def check(body: bytes, *, megapixels: float) -> Answer:
    """Whether an upload is a picture, all of it; the head says its format."""
    from PIL import Image

    from cbir_faiss.images.reading import open_image

    open_image(body, max_megapixels=megapixels)
    with Image.open(io.BytesIO(body)) as image:
        return {"format": image.format}, b""


def thumb(_: bytes, *, path: str, side: int, megapixels: float) -> Answer:
    """A small JPEG of a file."""
    from cbir_faiss.images.reading import jpeg_of, open_image

    image = open_image(path, max_megapixels=megapixels, min_side=2 * side)
    image.thumbnail((side, side))
    return {"type": "image/jpeg"}, jpeg_of(image)


def shown(_: bytes, *, path: str, megapixels: float) -> Answer:
    """A file as a browser can show it; empty where it can show it as it is."""
    from PIL import Image

    from cbir_faiss.images.reading import jpeg_of, open_image

    image = open_image(path, max_megapixels=megapixels)
    with Image.open(path) as raw:
        media_type = _SHOWN.get(raw.format or "")
    return ({"type": media_type}, b"") if media_type else ({"type": "image/jpeg"}, jpeg_of(image, 90))


@cache
def _extractor(entry: str, folder: str) -> Any:
    from cbir_faiss.storage.manifest import PluginEntry

    return PluginEntry.model_validate_json(entry).load("extractors", Path(folder))


_JOBS: dict[str, Callable[..., Answer]] = {"prepare": prepare, "check": check, "thumb": thumb, "shown": shown}

if __name__ == "__main__":
    main()
