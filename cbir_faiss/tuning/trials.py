"""What was tried, a line of JSON each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cbir_faiss._lib.files import flush_durably, write_durably
from cbir_faiss.storage.files import writing_to
from cbir_faiss.tuning.predict import Bytes, Pace
from cbir_faiss.tuning.ways import Way


@dataclass(frozen=True)
class Check:
    """A prediction from a smaller size of recall, ms or bytes, and what was measured at the size it was for."""

    what: str
    smaller: int
    items: int
    predicted: float
    measured: float
    walks: bool = False

    @property
    def growth(self) -> float:
        return self.items / self.smaller


@dataclass(frozen=True)
class Trial:
    """A structure, looked at when it held so many items.

    ways: what its settings are worth among all items; of a first look, which only weighs it, none. memory, disk:
    without what rescorers add. build_seconds: to fit, train and fill at this size, and
    ``item_seconds`` of them for each item more. judge_seconds: to find and time its ways. seconds: what the look has
    cost. checks: of what was predicted. reason: why it cannot be, else "".
    """

    structure: str
    items: int
    ways: Sequence[Way] = ()
    memory: Bytes | None = None
    disk: Bytes | None = None
    bits: int | None = None
    state_bytes: int = 0
    checks: Sequence[Check] = ()
    slope_ms: float = 0.0
    fill_seconds: float = 0.0
    build_seconds: float = 0.0
    item_seconds: float = 0.0
    judge_seconds: float = 0.0
    seconds: float = 0.0
    walks: bool = False
    reason: str = ""

    def pace(self, way: Way) -> Pace:
        assert way.p50_ms is not None
        return Pace(self.items, way.p50_ms, self.slope_ms, self.walks)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Trial:
        known = dict(stored)
        known["ways"] = [Way.from_json(way) for way in stored["ways"]]
        known["checks"] = [Check(**check) for check in stored["checks"]]
        for name in ("memory", "disk"):
            known[name] = None if stored[name] is None else Bytes(**stored[name])
        return cls(**known)


@dataclass
class Trials:
    """The trials of one run: of the same data, space, targets and limits, on the same machine by the same versions,
    whose digest is ``run``."""

    file: Path
    run: str
    found: dict[tuple[str, int], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = self.file.read_text("utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            try:
                stored = json.loads(line)
                if stored.pop("run") == self.run:
                    trial = Trial.from_json(stored)
                    self.found[trial.structure, trial.items] = trial
            except (ValueError, KeyError, TypeError):  # the last line of a run that was killed, or another version's
                continue

    def remove(self) -> None:
        """Those of this run, also from the disk."""
        lines = self.file.read_text("utf-8").splitlines(keepends=True) if self.file.exists() else []
        others = [line for line in lines if _run_of(line) not in (self.run, None)]
        with writing_to(self.file):
            if others:
                write_durably(self.file, "".join(others).encode())
            else:
                self.file.unlink(missing_ok=True)

    def add(self, trial: Trial) -> None:
        """Keep it, on the disk too."""
        self.found[trial.structure, trial.items] = trial
        line = json.dumps({"run": self.run, **asdict(trial)})
        with writing_to(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torn = self.file.exists() and not self.file.read_bytes().endswith(b"\n")
            with self.file.open("a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + line + "\n")
                flush_durably(file)


def _run_of(line: str) -> str | None:
    """Which run a line is of; None of one that is torn."""
    try:
        run: str = json.loads(line)["run"]
        return run
    except (ValueError, KeyError, TypeError):
        return None
