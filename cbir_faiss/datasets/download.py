"""One file from an address: what was there of it is gone on from, and what arrives is what was published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cbir_faiss.errors import CbirError
from cbir_faiss.storage.files import writing_to

_BLOCK = 1 << 18
_SILENCE = 60  # seconds after which a server that says nothing is given up
_NOTHING_LEFT = 416


def download(address: str, md5: str, file: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Have ``file`` hold what is published at ``address`` with the digest ``md5``; ``progress`` counts bytes.

    A file that is there whole is left alone; half of one is gone on from, where the server can.

    Raises:
        CbirError: the server cannot be reached, breaks off, or gives something else; the disk refuses.
    """
    if file.exists() and md5_of(file) == md5:
        return
    _fetch(address, file, progress)
    if (found := md5_of(file)) != md5:
        file.unlink()
        raise CbirError(f"{address}: not what was published (MD5 {found}, not {md5}); removed, so run this again")


def md5_of(file: Path) -> str:
    """Hex MD5 of a file, which is what the publishers of old data sets give."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fetch(address: str, file: Path, progress: Callable[[int, int], None] | None) -> None:
    have = file.stat().st_size if file.exists() else 0
    with _asking(address):
        answer = _ask(address, have)
    if answer is None:
        return
    with answer, writing_to(file), file.open("ab" if answer.status == 206 else "wb") as opened:
        done = opened.tell()
        total = done + int(answer.headers.get("Content-Length") or 0)
        while block := _block(address, answer):
            opened.write(block)
            done += len(block)
            if progress:
                progress(done, max(done, total))
    if done < total:
        raise CbirError(f"{address}: broke off after {done:,} of {total:,} bytes; run this again to go on from there")


def _ask(address: str, have: int) -> Any:
    """The open answer from byte ``have`` on, or from the first; None where the server has no more than that."""
    part = {"Range": f"bytes={have}-"} if have else {}
    try:
        return urlopen(Request(address, headers={"User-Agent": "cbir_faiss", **part}), timeout=_SILENCE)
    except HTTPError as error:
        error.close()
        if have and error.code == _NOTHING_LEFT:
            return None
        raise CbirError(f"{address}: the server answers {error.code} {error.reason}") from error


def _block(address: str, answer: Any) -> bytes:
    with _asking(address):
        block: bytes = answer.read(_BLOCK)
        return block


@contextmanager
def _asking(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise CbirError(f"{address}: {reason or type(error).__name__}; run this again to go on from there") from error
