"""What a trained folder says of its model. This module does without torch, so that a folder can be asked quickly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cbir_faiss._lib.files import write_durably
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.images.preprocess import Preprocess

FORMAT = 1
CARD, WEIGHTS = "model.json", "best.pth"


@dataclass(frozen=True)
class Card:
    """What a stored model is: all but its weights. ``classes``: their names, in the order of ``probs``."""

    network: str
    options: dict[str, Any]
    preprocess: Preprocess
    bits: int | None = None
    classes: tuple[str, ...] | None = None


def write_card(card: Card, digest: str, folder: Path) -> None:
    """Write the card beside the weights, whose SHA-256 is ``digest``."""
    preprocess = card.preprocess.model_dump(mode="json")
    content = {"format": FORMAT, **asdict(card), "preprocess": preprocess, "sha256": digest}
    write_durably(folder / CARD, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_card(folder: Path) -> tuple[Card, str]:
    """The card of a trained folder and the digest of its weights.

    Raises:
        ConfigError: the folder holds no trained model, or one of another format.
    """
    file = folder / CARD
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        if content.pop("format") != FORMAT:
            raise ConfigError(f"{file}: not a model of format {FORMAT}: train it again", path="path")
        digest = content.pop("sha256")
        classes, options = content.pop("classes"), dict(content.pop("options"))
        preprocess = Preprocess.model_validate_json(json.dumps(content.pop("preprocess")))
        classes = tuple(classes) if classes else None
        return Card(**content, options=options, preprocess=preprocess, classes=classes), digest
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no trained model here (it has no {CARD}): cbir train CONFIG --out {folder}", path="path"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not the description of a model: {one_line(error)}", path="path") from error
