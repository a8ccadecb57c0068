"""What the benchmarks share: medians of repeated runs, tables, raw results with their environment, photos."""

from __future__ import annotations

import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cbir_faiss.comparison.environment import environment
from cbir_faiss.errors import CbirError

RESULTS = Path(__file__).parent / "results"


def run(main: Callable[[], None]) -> None:
    """Call a script's ``main``; what is wrong with what it was given is one line and exit status 1, as of ``cbir``."""
    try:
        main()
    except CbirError as error:
        sys.exit(str(error))


def seconds(work: Callable[[], Any], repeats: int, warm: bool = True) -> list[float]:
    """Wall-clock seconds of each of ``repeats`` runs, after one that does not count."""
    if warm:
        work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster than the baseline: the quotient of medians."""
    return statistics.median(baseline) / statistics.median(ours)


def show(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print ``rows`` as a table of ``columns``; numbers with four significant digits."""
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    print(f"\n{title}")
    for line in [list(columns), *cells]:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def store(name: str, sections: dict[str, Any], threads: int | None = None, folder: Path = RESULTS) -> Path:
    """Write ``folder/name.json``: the environment, and the raw figures section by section.

    A section that was not run keeps what an earlier run stored, with the environment of that run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    where = environment(threads)
    stored |= {section: {"environment": where, **content} for section, content in sections.items()}
    path.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    return path


def camera_jpeg(number: int) -> bytes:
    """Smooth shapes with some grain, as a camera's JPEG has: about 60 kB."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 4, (480, 640, 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


class Anonymous:
    """Bytes of anonymous memory (RssAnon) of this process: ``first``, as the block begins, and its ``peak``."""

    def __enter__(self) -> Anonymous:
        self.peak = self.first = _anonymous()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
