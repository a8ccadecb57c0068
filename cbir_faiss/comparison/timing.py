"""How long the rows of a split take: rounds over all rows in turn, so that a noisy moment is not one row's alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.types import Columns, Hits

ROUNDS = 3
LATENCY_K = 10
QUERIES, SECONDS = 200, 0.4  # of one row in one round
WARM_UP = 5
BATCH, BATCH_SECONDS = 1000, 1.5
BUSY_CORES = 0.2
"""Cores that others keep busy meanwhile, above which latencies say more about them than about the rows."""

Search = Callable[[Columns, int], Hits]


@dataclass
class Timed:
    """One row's times. one: its search by one thread. batch: by all that are allowed.

    k: hits of a query. singles: seconds of single queries, a line a round. rates: queries a second of a batch, one a
    round.
    """

    one: Search
    batch: Search
    queries: Columns
    k: int = LATENCY_K
    singles: list[NDArray[np.float64]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def round(self) -> None:
        """One round: single queries, then a batch. Later rounds take other queries first."""
        n = len(self.queries["embedding"])
        start = len(self.singles) * QUERIES
        for i in range(WARM_UP):
            self.one(self._rows(slice((start + i) % n, (start + i) % n + 1)), self.k)
        times: list[float] = []
        while len(times) < min(QUERIES, n) and (len(times) < 20 or sum(times) < SECONDS):
            at = (start + len(times)) % n
            query = self._rows(slice(at, at + 1))
            began = time.perf_counter()
            self.one(query, self.k)
            times.append(time.perf_counter() - began)
        self.singles.append(np.array(times))
        self._batch(n, float(np.median(times)))

    def _batch(self, n: int, single: float) -> None:
        some = self._rows(slice(0, min(n, BATCH, max(20, int(BATCH_SECONDS / max(single, 1e-7))))))
        began = time.perf_counter()
        self.batch(some, self.k)
        self.rates.append(len(some["embedding"]) / (time.perf_counter() - began))

    def _rows(self, rows: slice) -> dict[str, NDArray[Any]]:
        return {name: values[rows] for name, values in self.queries.items()}

    @property
    def latency_ms(self) -> dict[str, Any]:
        """Percentiles of the best round (the one of the smallest median), and the median of each."""
        medians = [float(np.median(times)) * 1000 for times in self.singles]
        best = self.singles[int(np.argmin(medians))]
        return {
            **{f"p{p}": float(np.percentile(best, p)) * 1000 for p in (50, 95, 99)},
            "k": self.k,
            "threads": 1,
            "rounds": medians,
        }

    @property
    def qps(self) -> float:
        """Of the best round."""
        return max(self.rates)


class Others:
    """How many cores other processes (and a machine's other guests) keep busy while ``watching``."""

    def __init__(self) -> None:
        self._worked, self._elapsed = 0.0, 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what happens within the block."""
        began, before = time.perf_counter(), self._busy()
        yield
        now = self._busy()
        if now is not None and before is not None:
            self._worked += now - before
            self._elapsed += time.perf_counter() - began

    def cores(self) -> float | None:
        """None where the system does not say, or nothing was watched."""
        return max(0.0, self._worked / self._elapsed) if self._elapsed else None

    @staticmethod
    def _busy() -> float | None:
        """Seconds that all cores have worked, or were held back, less what this process and its children took."""
        with suppress(OSError, ValueError):
            ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
            user, nice, system, _, _, irq, softirq, steal = ticks[:8]
            total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
            own = os.times()
            return total - own.user - own.system - own.children_user - own.children_system
        return None


def busier(loads: Sequence[float | None]) -> dict[str, Any]:
    """What the environment of a run says of other work: the most cores that were busy, and whether that is too many."""
    known = [load for load in loads if load is not None]
    if not known:
        return {"busy_cores": None, "busy": None}
    most = max(known)
    return {"busy_cores": round(most, 2), "busy": most > BUSY_CORES}
