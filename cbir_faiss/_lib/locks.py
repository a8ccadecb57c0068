"""POSIX's advisory locks, which the system gives back when their holder dies."""

from __future__ import annotations

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "cbir_faiss runs on Linux and macOS; on Windows, install it in WSL: Windows has no fcntl", name="fcntl"
    ) from error


def try_lock(handle: int) -> None:
    """Lock the open file, for this holder alone. Raises BlockingIOError where another has it."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
