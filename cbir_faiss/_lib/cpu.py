"""What this processor can do, and that what is imported makes use of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_CORE = "OPENBLAS_CORETYPE"
_SKYLAKE = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}


@cache
def instructions() -> frozenset[str]:
    """The instruction sets of this processor, and its vendor, in the words of Linux; none where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    said = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    words = {name.strip(): value.split() for name, value in said.items()}
    return frozenset(words.get("flags", []) + words.get("vendor_id", []))


def has_vnni() -> bool:
    """Whether it adds products of 8 bits up in 32; where that cannot be known, it counts as one that does not."""
    return bool(instructions() & {"avx512_vnni", "avx_vnni"})


@contextmanager
def known_to_openblas() -> Iterator[None]:
    """While a package is imported that brings an OpenBLAS: it takes the kernels for what this processor can do.

    One that is older than the processor does not know it by its number, and takes those for the oldest there are:
    FAISS's wheels (1.15) multiply matrices with SSE3 on Intel processors since Sapphire Rapids, at a quarter of the
    speed. A core that ``OPENBLAS_CORETYPE`` names already is left alone.
    """
    core = _core(instructions())
    if core is None or _CORE in os.environ:
        yield
        return
    os.environ[_CORE] = core
    try:
        yield
    finally:
        os.environ.pop(_CORE, None)


def _core(there: frozenset[str]) -> str | None:
    """OpenBLAS's name of the newest core that it has kernels for, and which can do no more than this processor."""
    if not {"avx2", "fma"} <= there:
        return None
    if "AuthenticAMD" in there:
        return "Zen"
    if "GenuineIntel" not in there:
        return None
    return "SkylakeX" if there >= _SKYLAKE else "Haswell"
