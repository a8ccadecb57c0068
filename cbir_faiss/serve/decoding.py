"""Pictures decoded in processes of their own, so that a bomb or a crash takes nothing else with it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import BadImage
from cbir_faiss.serve.decoder import LENGTHS, frame
from cbir_faiss.serve.limits import Limits
from cbir_faiss.serve.problems import Problem
from cbir_faiss.storage.manifest import PluginEntry

COMMAND = (sys.executable, "-m", "cbir_faiss.serve.decoder")
_MOST_ANSWER = 1 << 30
# One picture is decoded where the last one lay: memory that is given back and taken anew, page by page, takes a quarter
# of the time (glibc's names; others do not know them).
_KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Line:
    """Places, and a limit to how many have one or wait for it."""

    def __init__(self, places: int, most: int) -> None:
        self._places, self._most, self._there = asyncio.Semaphore(places), most, 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place within the block. Raises Problem (429)."""
        if self._there >= self._most:
            raise Problem(429, "too many pictures at once: try again in a moment", {"Retry-After": "1"})
        self._there += 1
        try:
            async with self._places:
                yield
        finally:
            self._there -= 1


class Decoders:
    """``count`` processes, started when they are first needed. Used from one event loop.

    Thumbnails take all of them but one, so that who searches does not wait for who scrolls. Whatever is asked raises
    Problem: 429 where too many wait, 503 where it takes too long with waiting.
    """

    def __init__(self, count: int, limits: Limits, command: Sequence[str] = COMMAND) -> None:
        self._limits, self._command, self.count = limits, command, count
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()
        self._line = _Line(count, limits.waiting)
        self._patient = _Line(max(1, count - 1), limits.waiting)
        self._preparing = 0

    async def prepare(self, picture: bytes, entry: PluginEntry, folder: str) -> NDArray[Any]:
        """An uploaded picture, prepared for an extractor. Raises BadImage."""
        self._preparing += 1
        try:
            head, body = await self._run({"job": "prepare", "extractor": entry.model_dump(), "folder": folder}, picture)
        finally:
            self._preparing -= 1
        return np.frombuffer(body, np.dtype(head["dtype"])).reshape(head["shape"])

    async def check(self, picture: bytes) -> str:
        """The format of an uploaded picture. Raises BadImage."""
        head, _ = await self._run({"job": "check"}, picture)
        return str(head["format"])

    async def thumb(self, path: str, side: int) -> bytes:
        """A small JPEG of a file. Raises BadImage."""
        return (await self._run({"job": "thumb", "path": path, "side": side}, patient=True))[1]

    async def shown(self, path: str) -> tuple[str, bytes]:
        """Media type and bytes of a file as a browser can show it; no bytes: as it is. Raises BadImage."""
        head, body = await self._run({"job": "shown", "path": path}, patient=True)
        return str(head["type"]), body

    def preparing(self) -> bool:
        """Whether pictures are on their way to an extractor."""
        return self._preparing > 0

    def processes(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self._all]

    async def close(self) -> None:
        for process in list(self._all):
            await self._end(process)

    async def _run(self, job: dict[str, Any], body: bytes = b"", patient: bool = False) -> tuple[dict[str, Any], bytes]:
        message = frame({**job, "megapixels": self._limits.megapixels}, body)
        try:
            found = await asyncio.wait_for(self._in_line(message, patient), self._limits.seconds)
        except asyncio.TimeoutError:
            said = f"not decoded in {self._limits.seconds:g} s: ask for fewer pictures at once, or later"
            raise Problem(503, said, {"Retry-After": "5"}) from None
        head, answer = found or ({"error": "ends the process that decodes it"}, b"")
        if "error" in head:
            raise BadImage(str(head["error"]))
        return head, answer

    async def _in_line(self, message: bytes, patient: bool) -> tuple[dict[str, Any], bytes] | None:
        async with self._patient.place() if patient else nullcontext(), self._line.place():
            process = self._idle.pop() if self._idle else await self._start()
            found = await self._ask(process, message)
            if found is None:  # it died, which may have been for no fault of this picture
                found = await self._ask(await self._start(), message)
            return found

    async def _ask(self, process: asyncio.subprocess.Process, message: bytes) -> tuple[dict[str, Any], bytes] | None:
        """The answer of a process, which is idle afterwards; None where it died."""
        try:
            answer = await asyncio.wait_for(_exchange(process, message), self._limits.decoding)
        except asyncio.TimeoutError:
            await self._end(process)
            return {"error": f"takes more than {self._limits.decoding:g} s to decode"}, b""
        except (OSError, EOFError, ValueError):  # it died, or does not say what an answer is
            await self._end(process)
            return None
        except BaseException:  # nobody waits any more, and what it says belongs to nobody
            await self._end(process)
            raise
        self._idle.append(process)
        return answer

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**_KEEPING, **os.environ, **_ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the server, which lets it finish
        )
        self._all.add(process)
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipes are, when they are collected


async def _exchange(process: asyncio.subprocess.Process, message: bytes) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(message)
    await process.stdin.drain()
    head, body = LENGTHS.unpack(await process.stdout.readexactly(LENGTHS.size))
    if head + body > _MOST_ANSWER:
        raise ValueError("an answer without end")
    said = json.loads(await process.stdout.readexactly(head))
    return said, await process.stdout.readexactly(body)
