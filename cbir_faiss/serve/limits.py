"""What one request, and all of them together, may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The status that says so stands behind each.

    body: bytes of one request (413). held: of all that are being received (429). parts: of a form (422). queries: of a
    search (422). k, depth: results, and levels of a filter (422). page: items of a listing (422). megapixels: of a
    picture (422). seconds: of work (503). receiving: seconds for a body to arrive (408), or for a part of an answer to
    be read (the connection is closed). head: for a request's head (the same). decoding: for one picture (422).
    waiting: questions in one queue (429). heavy: pieces of work that may take minutes, one of which runs (429).
    compared: pairs of codes, to find duplicates (422). connections: open ones (503).
    """

    body: int = 32 << 20
    held: int = 256 << 20
    parts: int = 64
    queries: int = 100
    k: int = 1000
    depth: int = 20
    page: int = 1000
    megapixels: float = 100.0
    seconds: float = 30.0
    receiving: float = 30.0
    head: float = 10.0
    decoding: float = 15.0
    waiting: int = 256
    heavy: int = 8
    compared: float = 4e9
    connections: int = 1000
