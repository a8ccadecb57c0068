"""What a trained folder says of its model. This module does without torch, so that a folder can be asked quickly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base.options import Options
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.images.preprocess import Preprocess

FORMAT = 1
CARD, WEIGHTS = "model.json", "best.pth"
READY = f"{CARD}.ready"
"""The card of weights that are about to be exchanged."""


class Head(Options):
    """What stands on a network's features, where its losses ask for a code or for classes.

    norm: batch normalisation of the code, without which losses over pairs begin at a saddle. temperature: classes are
    told apart by the cosine of the features to a weight of each, over this; where left out, by a linear map. calibrate:
    class probabilities are those of the logits over a number that is chosen on held-out pictures, so that they are as
    sure as they are right (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """

    norm: bool = False
    temperature: float | None = Field(default=None, gt=0)
    calibrate: bool = False


@dataclass(frozen=True)
class Card:
    """What a stored model is: all but its weights.

    classes: their names, in the order of ``probs``. supervised: whether any of its losses learned from labels.
    """

    network: str
    options: dict[str, Any]
    preprocess: Preprocess
    bits: int | None = None
    classes: tuple[str, ...] | None = None
    head: Head = field(default_factory=Head)
    supervised: bool = False


def write_card(card: Card, digest: str, folder: Path, name: str = CARD) -> None:
    """Write the card beside the weights, whose SHA-256 is ``digest``."""
    preprocess = card.preprocess.model_dump(mode="json")
    parts = {"preprocess": preprocess, "head": card.head.model_dump(mode="json")}
    content = {"format": FORMAT, **asdict(card), **parts, "sha256": digest}
    write_durably(folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_card(folder: Path, name: str = CARD) -> tuple[Card, str]:
    """The card of a trained folder and the digest of its weights.

    Raises:
        ConfigError: the folder holds no trained model, or one of another format.
    """
    file = folder / name
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        if content.pop("format") != FORMAT:
            raise ConfigError(f"{file}: not a model of format {FORMAT}: train it again", path="path")
        digest = content.pop("sha256")
        classes, options = content.pop("classes"), dict(content.pop("options"))
        preprocess = Preprocess.model_validate_json(json.dumps(content.pop("preprocess")))
        classes = tuple(classes) if classes else None
        # The first cards had neither a head nor a word on labels, which whatever tells classes apart has seen.
        content.setdefault("supervised", classes is not None)
        head = Head.model_validate_json(json.dumps(content.pop("head", {})))
        return Card(**content, options=options, preprocess=preprocess, classes=classes, head=head), digest
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no trained model here (it has no {CARD}): cbir train CONFIG --out {folder}", path="path"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not the description of a model: {one_line(error)}", path="path") from error
