"""The pictures of a collection for a browser: thumbnails, made once, and originals."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cbir_faiss.errors import BadImage
from cbir_faiss.serve.decoding import Decoders
from cbir_faiss.serve.problems import Problem

_PLACEHOLDER = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="256" height="256">'
    b'<rect width="64" height="64" fill="#8883"/>'
    b'<path d="M16 44l10-12 8 9 5-6 9 9zM40 26a4 4 0 1 0 .1 0" fill="#8888"/>'
    b'<path d="M14 14l36 36" stroke="#8888" stroke-width="2"/></svg>'
)


@dataclass(frozen=True)
class Picture:
    """What is sent: a content, or a file as it is. tag: changes with it; empty: it is not to be kept."""

    media_type: str
    content: bytes
    tag: str = ""
    file: str | None = None


MISSING = Picture("image/svg+xml", _PLACEHOLDER)
"""Stands for an original that is gone or cannot be read."""


class Pictures:
    """``folder`` keeps the thumbnails; they go by path, size and time of change of the file that they were made of."""

    def __init__(self, decoders: Decoders, folder: Path) -> None:
        self._decoders, self._folder = decoders, folder
        self._making: dict[str, asyncio.Task[Picture]] = {}

    async def thumb(self, path: str | None, side: int) -> Picture:
        """A small picture of a file."""
        if path is None or not (tag := _tag(path, side)):
            return MISSING
        kept = self._folder / tag[:2] / f"{tag}.jpg"
        with suppress(OSError):
            return Picture("image/jpeg", await asyncio.to_thread(kept.read_bytes), tag)
        if tag not in self._making:  # who asks for the same meanwhile waits for it
            self._making[tag] = asyncio.create_task(self._make(path, side, tag, kept))
            self._making[tag].add_done_callback(lambda _: self._making.pop(tag, None))
        return await asyncio.shield(self._making[tag])

    async def original(self, path: str | None) -> Picture:
        """A file, as it is or as a browser can show it."""
        if path is None or not (tag := _tag(path, 0)):
            raise Problem(404, "the original of this item is not there any more")
        media_type, content = await self._decoders.shown(path)
        return Picture(media_type, content, tag, None if content else path)

    async def _make(self, path: str, side: int, tag: str, kept: Path) -> Picture:
        try:
            content = await self._decoders.thumb(path, side)
        except BadImage:
            return MISSING
        with suppress(OSError):  # a full disk is no reason not to show it
            await asyncio.to_thread(_keep, kept, content)
        return Picture("image/jpeg", content, tag)


def _tag(path: str, side: int) -> str:
    """Empty where there is no such file."""
    try:
        status = Path(path).stat()
    except OSError:
        return ""
    said = f"{Path(path).absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{side}"
    return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()[:40]


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}")
    aside.write_bytes(content)
    aside.replace(path)
