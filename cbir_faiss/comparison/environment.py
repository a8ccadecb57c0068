"""Where a result was measured: processor, threads and versions; nothing that names the machine or its user."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cbir_faiss._lib import threads

PACKAGES = (
    "cbir-faiss", "numpy", "faiss-cpu", "faiss-gpu", "torch", "torchvision", "onnxruntime", "pillow", "scikit-learn",
    "qdrant-client", "qdrant-edge-py", "psycopg", "lancedb", "usearch",
)  # fmt: skip


def environment(limit: int | None = None) -> dict[str, Any]:
    """Processor, cores, memory, threads used, Python and package versions, as results store them."""
    return {
        "cpu": _cpu(),
        "cores": threads.available(),
        "threads": limit or threads.available(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _memory() -> int | None:
    try:
        first = Path("/proc/meminfo").read_text().splitlines()[0]
    except OSError:
        return None
    return int(first.split()[1]) * 1024


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
