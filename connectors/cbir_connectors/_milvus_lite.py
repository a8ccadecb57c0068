"""Milvus Lite: an engine in a process of its own for one file; the first who opens it starts it, the last ends it."""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from cbir_faiss._lib.locks import try_lock
from cbir_faiss.backends.database import need_version
from cbir_faiss.base.options import need
from cbir_faiss.errors import BackendError, ConfigError, MissingDependency

_PATIENCE = 5.0  # seconds that the engine of a process that was killed takes to end
_LOOKS = 0.05
_NAME = re.compile(r"[A-Za-z0-9._-]{1,36}")

_lock = threading.Lock()
_open: dict[Path, tuple[int, int]] = {}
"""Of each file: how many have it open in this process, and the handle that keeps others out."""


def started(path: Path) -> tuple[str, Path]:
    """The address of the engine of the file ``path``, which is made where there is none, and what ``ended`` takes.

    Raises:
        BackendError: another process has it open, or the engine does not start.
        ConfigError: the engine takes no file of this name.
        MissingDependency: there is no engine.
    """
    manager, file = _manager(), path.resolve()
    if not _NAME.fullmatch(file.name):
        raise ConfigError(f"milvus: a file's name has at most 36 letters, digits, '.', '_' or '-': {path}", path="path")
    with _lock:
        users, handle = _open.get(file, (0, -1))
        if not users:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = _taken(file)
        try:
            address: str | None = manager.start_and_get_uri(str(file))
            if address is None:
                raise BackendError(f"milvus {path}: its engine does not start: is it a file of Milvus Lite?")
        except BaseException:
            if not users:
                os.close(handle)
            raise
        _open[file] = users + 1, handle
        return address, file


def ended(file: Path) -> None:
    """Undo one ``started``; with the last, the engine ends and another process may open the file."""
    with _lock:
        users, handle = _open.pop(file)
        if users > 1:
            _open[file] = users - 1, handle
            return
        try:
            _manager().release_server(str(file))
        finally:
            os.close(handle)


def _manager() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources
        try:
            need_version("milvus_lite", "milvus-lite", "milvus-lite", (2, 5))
        except ModuleNotFoundError as error:
            raise MissingDependency(f"milvus-lite needs {error.name}: pip install 'setuptools<81'") from error
        return need("milvus_lite.server_manager", "milvus-lite").server_manager_instance


def _taken(file: Path) -> int:
    """A handle that holds ``file`` for this process.

    The engine's own lock does not do: whoever fails to get it removes it, and the next one gets in.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try_lock(handle)
        until = time.monotonic() + _PATIENCE
        while not _free(file):
            if time.monotonic() > until:
                raise BlockingIOError
            time.sleep(_LOOKS)
    except BlockingIOError:
        os.close(handle)
        raise BackendError(
            f"milvus {file}: another process has it open: close it there, or run a server and give its 'uri'"
        ) from None
    return handle


def _free(file: Path) -> bool:
    """Whether no engine holds the lock beside ``file``; one whose process was killed does until it notices."""
    try:
        handle = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
