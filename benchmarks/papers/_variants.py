"""Variants of one training: the same config with some of it changed, each into a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cbir_faiss.training.config import parse_training
from cbir_faiss.training.loop import Result, train


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``document`` with ``changes``: mappings are merged key by key, anything else is replaced."""
    merged = dict(document)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # A section that names another plugin has options of its own.
        other = both and "name" in value and value["name"] != merged[key].get("name")
        merged[key] = changed(merged[key], value) if both and not other else value
    return merged


def train_variants(config: Path, out: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Result]:
    """Train each into ``out / name``; those that are finished are not trained again, a stopped one goes on."""
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    results = {}
    for name, changes in variants.items():
        training = parse_training(changed(document, changes), folder=str(config.parent))
        results[name] = train(training, out / name, report=lambda epoch, name=name: _say(name, epoch))  # type: ignore[misc]
        best = results[name].best
        print(f"{name}: best after epoch {best.epoch}: {best.score:.4f}", flush=True)
    return results


def _say(name: str, epoch: Any) -> None:
    print(
        f"{name} epoch {epoch.epoch}: loss {epoch.loss:.4f} {epoch.score} {epoch.seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )
