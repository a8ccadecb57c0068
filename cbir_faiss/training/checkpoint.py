"""The state of a training on disk: what a killed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cbir_faiss._lib.files import sync, write_durably
from cbir_faiss.errors import ConfigError, CorruptCollection, one_line
from cbir_faiss.nets.card import WEIGHTS
from cbir_faiss.training.config import EPOCHS

RUN, LAST, HISTORY = "config.json", "last.pth", "history.json"


@dataclass(frozen=True)
class Epoch:
    """What one epoch did. loss: mean over its steps. score: ``map`` of the held-out pictures (minus their loss, where
    they have no labels); None where it was not validated. seconds: training alone, without validation."""

    epoch: int
    loss: float
    lr: float
    seconds: float
    score: float | None = None
    held_out_loss: float | None = None


def claim(folder: Path, document: Mapping[str, Any]) -> None:
    """Make ``folder`` that of this training.

    A training of the same config with more ``fit.epochs`` is the same one, to be gone on with.

    Raises:
        ConfigError: it is that of another, whose best model is not to be overwritten, or holds other things.
        CorruptCollection: it cannot be told whose it is.
    """
    text = json.dumps(dict(document), indent=1, sort_keys=True, default=str)
    file = folder / RUN
    if file.is_file():
        different = _different(file, json.loads(text))
        # One that failed before anything was stored leaves nothing to lose: its config may be mended.
        if different and any((folder / name).exists() for name in (WEIGHTS, LAST)):
            raise ConfigError(
                f"{folder} holds a training with another {', '.join(different)}: choose another --out, or delete it"
            )
        if not different and text.encode() == file.read_bytes():
            return
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and holds no training: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(file, text.encode())


def _different(file: Path, document: Mapping[str, Any]) -> list[str]:
    """The sections that are not as in the stored config; more epochs are no difference."""
    try:
        before = dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CorruptCollection(f"{file}: altered ({one_line(error)}): choose another --out") from error
    both = [before, dict(document)]
    if _epochs(document) > _epochs(before):
        both = [{**some, "fit": {**(some.get("fit") or {}), "epochs": None}} for some in both]
    return sorted(key for key in {*before, *document} if both[0].get(key) != both[1].get(key))


def _epochs(document: Mapping[str, Any]) -> int:
    return int((document.get("fit") or {}).get("epochs", EPOCHS))


def save_state(folder: Path, state: Mapping[str, Any], history: list[Epoch]) -> None:
    """Replace the state to go on from, at once; the history beside it is for people."""
    aside = folder / f"{LAST}.writing"
    torch.save({**state, "history": [asdict(epoch) for epoch in history]}, aside)
    sync(aside)
    aside.replace(folder / LAST)
    rows = ",\n ".join(json.dumps(asdict(epoch)) for epoch in history)
    write_durably(folder / HISTORY, f"[{rows}]\n".encode())


def load_state(folder: Path) -> tuple[dict[str, Any], list[Epoch]] | None:
    """The last state, on the CPU, and the epochs up to it; None where there is none yet. Loads no pickled objects.

    Raises:
        CorruptCollection: the file is damaged.
    """
    file = folder / LAST
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        history = [Epoch(**epoch) for epoch in state.pop("history")]
    except Exception as error:  # a damaged pickle or archive raises nearly anything
        raise CorruptCollection(
            f"{file}: cut short or altered ({one_line(error)}); delete it to begin again"
        ) from error
    return state, history
