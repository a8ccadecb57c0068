"""The same training with several seeds: what came of it, and how much of that was luck."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbir_faiss._lib.files import write_durably
from cbir_faiss.errors import ConfigError
from cbir_faiss.measures.seeds import OverSeeds, over_seeds
from cbir_faiss.training.checkpoint import RUN
from cbir_faiss.training.config import TrainingConfig
from cbir_faiss.training.loop import Result, train

SEEDS = "seeds.json"


@dataclass(frozen=True)
class SeedsResult:
    """What each seed came to, and the best scores over seeds."""

    results: Mapping[int, Result]
    score: OverSeeds

    @property
    def measure(self) -> str:
        return next(iter(self.results.values())).measure

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir train --json`` prints it, and ``seeds.json`` has it."""
        return {
            "score": {"measure": self.measure, **self.score._asdict()},
            "seeds": {str(seed): result.as_dict() for seed, result in self.results.items()},
        }


def folder_of(out: Path, seed: int) -> Path:
    """Where one of several seeds is trained, or was before ``out`` was renamed: tables name it so."""
    there = sorted(folder for folder in out.glob(f"*-{seed}") if (folder / RUN).is_file())
    return there[0] if there else out / f"{out.resolve().name}-{seed}"


def train_seeds(config: TrainingConfig, out: Path, **how: Any) -> SeedsResult:
    """Train with each of ``config.seeds`` into a folder of its own below ``out``, as ``train`` does, whose arguments
    ``how`` are; finished ones are left as they are. ``out`` gets ``seeds.json``.

    Raises:
        ConfigError: the config has no seeds, or ``out`` holds a single training. What ``train`` raises.
    """
    if not config.seeds:
        raise ConfigError("the config names no seeds: train", path="seeds")
    if (out / RUN).exists():
        raise ConfigError(f"{out} holds a training of one seed: choose another --out")
    results = {seed: train(config.with_seed(seed), folder_of(out, seed), **how) for seed in config.seeds}
    score = over_seeds([result.best.score or 0.0 for result in results.values()])
    found = SeedsResult(results, score)
    write_durably(out / SEEDS, json.dumps(found.as_dict(), indent=1).encode())
    return found
