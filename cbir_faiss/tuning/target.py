"""What an index has to reach and may cost: ``knn_recall@10 >= 0.95``, ``map@5 >= raw - 0.01``, so many bytes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import ConfigError
from cbir_faiss.measures.intervals import mean_interval
from cbir_faiss.measures.metrics import MEASURES
from cbir_faiss.tuning.predict import Interval

KNN = "knn_recall"
GRAMMAR = "a target is MEASURE@K >= NUMBER, or >= raw - NUMBER, such as 'knn_recall@10 >= 0.95'"
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_TARGET = re.compile(rf"\s*([a-z_]+)@(\d+)\s*>=\s*(?:(raw)\s*(?:([+-])\s*{_NUMBER})?|{_NUMBER})\s*")


@dataclass(frozen=True)
class Target:
    """The mean of a measure is to be at least ``bound``; of_raw: at least that much above what raw floats have."""

    measure: str
    k: int
    bound: float
    of_raw: bool = False

    @property
    def name(self) -> str:
        """``knn_recall@10``."""
        return f"{self.measure}@{self.k}"

    @property
    def key(self) -> str:
        """The name of what is to be at least ``bound``: the measure, or its difference from raw floats."""
        return f"{self.name} - raw" if self.of_raw else self.name

    @property
    def by_labels(self) -> bool:
        return self.measure != KNN

    def interval(self, values: NDArray[np.float64]) -> Interval:
        """The mean of ``values`` ``(n,)``, or differences from raw floats, at queries, and its 95 % interval."""
        least, most = (-1.0 if self.of_raw else 0.0), (0.0 if self.of_raw and not self.by_labels else 1.0)
        low, high = mean_interval((values - least) / (most - least))
        return Interval(float(values.mean()), least + low * (most - least), least + high * (most - least))

    def shown_by(self, queries: int) -> bool:
        """Whether the interval of so many queries could be above it: of those that all find everything, or what is
        compared with raw floats as much as these."""
        best = np.full(queries, 0.0 if self.of_raw else 1.0)
        return (self.of_raw and self.by_labels and self.bound >= 0) or self.interval(best).low >= self.bound

    def short(self, mean: float) -> float:
        """Which share of it is missing where this is the mean; below 0 where it is exceeded."""
        whole = self.bound + 1 if self.of_raw else self.bound
        return (self.bound - mean) / whole if whole > 0 else self.bound - mean

    def __str__(self) -> str:
        if not self.of_raw:
            return f"{self.name} >= {self.bound:g}"
        return f"{self.name} >= raw" + (f" {'+' if self.bound > 0 else '-'} {abs(self.bound):g}" if self.bound else "")


@dataclass(frozen=True)
class Limits:
    """Bytes an item in memory and on disk, milliseconds a query; None is no limit."""

    bytes: float | None = None
    disk_bytes: float | None = None
    ms: float | None = None


Minimise = Literal["bytes", "latency"]


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """The targets that ``texts`` state, of each measure one bound at most, and one against raw floats.

    Raises:
        ConfigError: none, one that cannot be read, a measure that is not known, what nothing can reach, or two that
            say something different of one measure.
    """
    found: dict[str, Target] = {}
    for text in texts:
        target = _parse(text)
        other = found.setdefault(target.key, target)
        if other != target:
            raise ConfigError(f"'{other}' and '{target}' contradict each other: give one of them", path="target")
    if not found:
        raise ConfigError(f"there is no target: {GRAMMAR}", path="target")
    return tuple(found.values())


def _parse(text: str) -> Target:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ConfigError(f"'{text}' cannot be read: {GRAMMAR}", path="target")
    measure, k, raw, sign, difference, number = match.groups()
    known = (KNN, *MEASURES)
    if measure not in known:
        near = difflib.get_close_matches(measure, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"no measure '{measure}'; {hint}there are: {', '.join(known)}", path="target")
    bound = float((sign or "") + (difference or "0") if raw else number)
    target = Target(measure, int(k), bound, raw is not None)
    if target.k < 1:
        raise ConfigError(f"'{target}': k must be at least 1", path="target")
    most = 0.0 if raw and measure == KNN else 1.0
    if bound > most:
        reached = "raw floats have all of it" if raw and measure == KNN else "no measure is above 1"
        raise ConfigError(f"'{target}' contradicts itself: {reached}", path="target")
    return target
