"""Whether a build can fit the disk and the memory at all, by what is certain to be needed, before it begins."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbir_faiss.base import Codec, Extractor, Rescorer, Source
from cbir_faiss.config import Choice, Config
from cbir_faiss.errors import CbirError

_DOCUMENT = 64  # bytes that the shortest document takes in its files


@dataclass(frozen=True)
class Least:
    """Bytes that a build of the items takes at least: of disk, and of memory."""

    disk: int
    memory: int


def check_room(out: Path, config: Config, source: Source, extractor: Extractor) -> None:
    """Raises CbirError where what a build at ``out`` is certain to write or hold is more than there is room for."""
    items, least = len(source.items()), least_of(config, source, extractor)
    check_disk(
        out,
        least.disk,
        f"{items:,} items take at least",
        "make room, choose another --out, or keep less (a code, 'store: int8'); cbir plan says what a build takes",
    )
    memory = available_memory()
    if memory is not None and least.memory > memory:
        raise CbirError(
            f"{out}: an index of {items:,} items takes at least {gigabytes(least.memory)} of memory, and "
            f"{gigabytes(memory)} are available: take a code or a smaller one; cbir plan says what a build takes"
        )


def check_disk(out: Path, least: int, what: str, advice: str) -> None:
    """Raises CbirError where ``out`` is certain to take more bytes than are free; ``what`` takes them."""
    free = shutil.disk_usage(next(folder for folder in out.absolute().parents if folder.exists())).free
    if least > free:
        raise CbirError(f"{out}: {what} {gigabytes(least)} on the disk, and {gigabytes(free)} are free: {advice}")


def least_of(config: Config, source: Source, extractor: Extractor) -> Least:
    """What is certain: the codes, the columns that are kept, and an index that holds what it is given."""
    items, backend = len(source.items()), config.backends[0].plugin()
    code = kept = 0
    with suppress(Exception):  # whatever a plugin says of what it has not seen yet: then less is certain
        widths = _widths(source, extractor)
        code = _code_bytes(config.codecs[0], next(iter(widths.values()))[0])
        kept = _kept_bytes(config.rescore[0], widths)
    index = code if backend.capabilities.vectors == "native" and not backend.own_storage else 0
    return Least(items * (code + kept + index + _DOCUMENT), items * index)


def _widths(source: Source, extractor: Extractor) -> dict[str, tuple[int, str]]:
    matrix = getattr(source, "matrix", None)
    if matrix is None:
        return dict(extractor.outputs)
    return {"embedding": (int(matrix().shape[1]), "float32")}


def _code_bytes(choice: Choice, dim: int) -> int:
    codec: Codec = choice.make()
    codec.dim = dim
    return codec.width // 8 if codec.kind == "binary" else 4 * codec.width


def _kept_bytes(choice: Choice, widths: dict[str, tuple[int, str]]) -> int:
    rescorer: Rescorer = choice.make()
    columns = {name: np.zeros((2, width), dtype) for name, (width, dtype) in widths.items()}
    columns.setdefault("embedding", next(iter(columns.values())))
    packed = rescorer.fit(columns).pack(columns)
    return sum(column[:1].nbytes for column in packed.values())


def available_memory() -> int | None:
    """Bytes of memory that this process could still get; None where the system does not say."""
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        return 1024 * (told["MemAvailable"] + told["SwapFree"])
    return None


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
