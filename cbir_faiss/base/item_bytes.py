"""What an engine keeps of an item, by arithmetic: for a plan, before anything is stored there."""

from __future__ import annotations

from dataclasses import dataclass

ROW_BYTES = 64
"""About what an engine keeps of an item beside its vector and document."""


@dataclass(frozen=True, slots=True)
class ItemBytes:
    """Bytes of an item in an engine, its document aside, all copies together: in memory while it is searched, and on
    the disk. copies: how often it is kept there, document and all."""

    memory: float
    disk: float
    copies: int = 1

    @classmethod
    def of(cls, memory: float, disk: float, copies: int = 1) -> ItemBytes:
        """From the bytes of one copy."""
        return cls(memory * copies, disk * copies, copies)


def graph_bytes(m: int) -> float:
    """Bytes of an item's links in an HNSW graph whose nodes keep ``m``: twice as many in the lowest layer, 4 bytes
    each, and a few in those above."""
    return 2.2 * m * 4
