"""Learned state in one file: arrays and a JSON header, with a digest, without pickle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import CorruptCollection


def write_state(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Arrays and a JSON header in one ``.npz``-format file, with a digest over both."""
    header = json.dumps(dict(meta), sort_keys=True)
    stored = {"#meta": np.array(header), "#sha256": np.array(_digest(header, arrays)), **arrays}
    with path.open("wb") as file:
        np.savez(file, **stored)  # type: ignore[arg-type]


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What ``write_state`` wrote. Never unpickles.

    Raises:
        CorruptCollection: missing, cut short or altered.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header, digest = str(arrays.pop("#meta")), str(arrays.pop("#sha256"))
    except FileNotFoundError as error:
        raise CorruptCollection(f"{path}: missing") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptCollection(f"{path}: cut short or altered ({error})") from error
    if digest != _digest(header, arrays):
        raise CorruptCollection(f"{path}: altered: its content does not have the digest written with it")
    return json.loads(header), arrays


def _digest(header: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
