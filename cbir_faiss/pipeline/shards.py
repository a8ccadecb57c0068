"""A shard of the embedding cache: columns by key, in a folder that is written once and checked before it is used.

shard-<name>/keys.npy       uint8 (rows, 32)
             0.npy, 1.npy   a column each
             shard.json     the names of the columns, and a digest of them and of the files; columns.json in 0.1, the
                            names alone
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import flush_durably, sha256_of
from cbir_faiss.errors import CbirError, one_line

KEY_BYTES = 32
_HEAD, _HEAD_0_1, _KEYS = "shard.json", "columns.json", "keys.npy"


class Gone(CbirError):
    """The shard is not there any more: another process has merged it into a larger one."""


class Damaged(CbirError):
    """The shard is not as it was written."""


@dataclass(eq=False)
class Shard:
    """One shard. sound: it has been found as it was written. Its files are open only while they are read."""

    folder: Path
    names: list[str]
    rows: int
    digest: str | None
    sound: bool = False

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """The shard in ``folder``. Raises Gone, Damaged; CbirError where it cannot be read."""
        with _reading(folder):
            if (folder / _HEAD).exists():
                head = json.loads((folder / _HEAD).read_bytes())
                names, digest = head["columns"], head["sha256"]
            else:
                names, digest = json.loads((folder / _HEAD_0_1).read_bytes()), None
            keys = np.load(folder / _KEYS, mmap_mode="r")
            if not names or keys.dtype != np.uint8 or keys.shape[1:] != (KEY_BYTES,):
                raise ValueError(f"keys {keys.dtype} {keys.shape} of columns {names}")
            return cls(folder, names, len(keys), digest)

    def keys(self) -> NDArray[np.uint8]:
        """uint8 ``(rows, 32)``."""
        with _reading(self.folder):
            keys: NDArray[np.uint8] = np.load(self.folder / _KEYS)
            return keys

    def columns(self, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Columns by name, all or some, mapped until they are let go."""
        with _reading(self.folder):
            return {
                name: np.load(self.folder / f"{i}.npy", mmap_mode="r")
                for i, name in enumerate(self.names)
                if names is None or name in names
            }

    def check(self) -> None:
        """Read every byte. Raises Damaged where they are not those that were written."""
        with _reading(self.folder):
            if self.digest is None:  # of 0.1: what can be seen without
                whole = all(len(c) == self.rows and _is_finite(c) for c in self.columns().values())
            else:
                whole = _digest(self.folder, self.names) == self.digest
        if not whole:
            raise Damaged(f"{self.folder}: not as it was written")
        self.sound = True


def discard(folder: Path) -> None:
    """Remove a shard, at once for whoever looks, as far as this process may."""
    aside = folder.with_name(folder.name.replace("shard-", "gone-"))
    with suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def write_shard(cache: Path, keys: NDArray[np.uint8], columns: Mapping[str, Iterable[NDArray[Any]]]) -> Shard:
    """A new shard in the folder ``cache``, of columns ``(len(keys), …)`` that come in parts; whole, or not there."""
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="writing-", dir=cache))
    names = list(columns)
    try:
        _save(aside / _KEYS, len(keys), [keys])
        for i, parts in enumerate(columns.values()):
            _save(aside / f"{i}.npy", len(keys), parts)
        digest = _digest(aside, names)
        with (aside / _HEAD).open("w") as file:
            json.dump({"columns": names, "sha256": digest}, file)
            flush_durably(file)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    folder = aside.rename(cache / aside.name.replace("writing-", "shard-"))
    return Shard(folder, names, len(keys), digest, sound=True)


def _save(path: Path, rows: int, parts: Iterable[NDArray[Any]]) -> None:
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            if number == 0:
                descr, shape = np.lib.format.dtype_to_descr(part.dtype), (rows, *part.shape[1:])
                head = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, head)
            file.write(np.ascontiguousarray(part).data)
        flush_durably(file)


def _digest(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for file in (_KEYS, *(f"{i}.npy" for i in range(len(names)))):
        digest.update(sha256_of(folder / file).encode())
    return digest.hexdigest()


def _is_finite(column: NDArray[Any]) -> bool:
    return column.dtype.kind != "f" or bool(np.isfinite(column).all())


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise (Damaged if folder.exists() else Gone)(f"{folder}: {error.strerror}") from error
    except OSError as error:
        raise CbirError(f"{folder}: the embedding cache cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, TypeError, OverflowError) as error:
        raise Damaged(f"{folder}: {one_line(error)}") from error
