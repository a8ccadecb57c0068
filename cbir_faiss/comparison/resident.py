"""What a saved index takes in memory, measured in a process of its own.

    python -m cbir_faiss.comparison.resident      reads one JSON job a line, answers one number a line

The figure is the growth of RssAnon + RssShmem over opening the index and answering one query. A first job on a tiny
index of the same backend pays for the libraries, so that they are not counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


def resident_bytes() -> int:
    """RssAnon + RssShmem of this process, after giving free memory back."""
    gc.collect()
    with contextlib.suppress(OSError):  # not glibc: the figure is then a little high
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


class ResidentMeter:
    """A worker process that opens saved indexes and says what they take."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> ResidentMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.communicate()

    def measure(self, name: str, options: Mapping[str, Any], folder: Path | None, query: Any) -> int | None:
        """Resident bytes of backend ``name`` after one ``query``; None where it cannot be told.

        ``folder`` is where it was saved; None where its engine keeps it at the place that the options name.
        """
        if not Path("/proc/self/status").exists():
            return None
        if self._worker is None:
            command = [sys.executable, "-m", "cbir_faiss.comparison.resident"]
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file, query)
            file.flush()
            place = None if folder is None else str(folder)
            job = {"name": name, "options": dict(options), "folder": place, "query": file.name}
            self._worker.stdin.write(json.dumps(job) + "\n")
            self._worker.stdin.flush()
            answer = self._worker.stdout.readline().strip()
        return int(answer) if answer.isdigit() else None


def _measure(job: Mapping[str, Any]) -> int:
    _opened(job).close()  # pays for the libraries
    before = resident_bytes()
    backend = _opened(job)
    grown = max(0, resident_bytes() - before)
    backend.close()
    return grown


def _opened(job: Mapping[str, Any]) -> Any:
    from cbir_faiss.base.registry import make

    backend = make("backends", job["name"], **job["options"])
    if job["folder"] is not None:
        backend.restore(Path(job["folder"]))
    backend.search(np.load(job["query"]), 1)
    return backend


def main() -> None:
    for line in sys.stdin:
        print(_measure(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
