"""A process that stores what it is told, flushes, says so, and waits to be killed.

python -m cbir_faiss.testing._writer      reads one JSON job; everything else is up to whoever kills it
"""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np


def main() -> None:
    job = json.loads(sys.stdin.readline())
    content = np.load(job["content"])
    backend = getattr(importlib.import_module(job["module"]), job["plugin"])(**job["options"])
    backend.create(job["width"], job["kind"])
    backend.train(content["vectors"])
    backend.upsert(content["ids"], content["vectors"], job["payload"])
    backend.flush()
    print("flushed", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
