"""A network with the heads that its losses asked for: making, storing and loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cbir_faiss.errors import CbirError, ConfigError, CorruptCollection
from cbir_faiss.files import sha256_of, write_durably
from cbir_faiss.nets.contract import Network
from cbir_faiss.nets.weights import fill, one_line, read_state_dict
from cbir_faiss.preprocess import Preprocess
from cbir_faiss.registry import make

FORMAT = 1
CARD, WEIGHTS = "model.json", "best.pth"


class Model(nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to ``features`` ``(n, dim)`` and, where there are such heads, ``code``
    ``(n, bits)`` and ``logits`` ``(n, classes)``."""

    def __init__(self, network: Any, size: tuple[int, int], bits: int | None, classes: int | None) -> None:
        super().__init__()
        self.network = network
        self.dim = _width(network, size)
        self.code = nn.Linear(self.dim, bits) if bits else None
        self.logits = nn.Linear(self.dim, classes) if classes else None

    def forward(self, x: Any) -> dict[str, Any]:
        features = self.network(x)
        outputs = {"features": features}
        if self.code is not None:
            outputs["code"] = self.code(features)
        if self.logits is not None:
            outputs["logits"] = self.logits(features)
        return outputs


class Columns(nn.Module):  # type: ignore[misc]
    """A model's outputs as an extractor's columns: ``embeddings``, outputs by column, and ``probs`` of its classes.

    Raises:
        ConfigError: the model has no such output.
    """

    def __init__(self, model: Model, embeddings: Mapping[str, str]) -> None:
        super().__init__()
        if "code" in embeddings.values() and model.code is None:
            raise ConfigError("this network was trained without a code: output features", path="output")
        self.model, self.embeddings = model, dict(embeddings)

    def forward(self, x: Any) -> dict[str, Any]:
        outputs = self.model(x)
        columns = {column: outputs[output] for column, output in self.embeddings.items()}
        if "logits" in outputs:
            columns["probs"] = torch.softmax(outputs["logits"], 1)
        return columns


@dataclass(frozen=True)
class Card:
    """What a stored model is: all but its weights. ``classes``: their names, in the order of ``probs``."""

    network: str
    options: dict[str, Any]
    preprocess: Preprocess
    bits: int | None = None
    classes: tuple[str, ...] | None = None

    def make(self, *, pretrained: bool = False) -> Model:
        """The model with random or pretrained weights, in training mode."""
        # Without the weights that brought it, the network does not know for what images it was made.
        options = {**self.options, "preprocess": self.preprocess.model_dump(mode="json")}
        module, _ = make("networks", self.network, **options).build(pretrained=pretrained)
        return Model(module, self.preprocess.size, self.bits, len(self.classes) if self.classes else None)


def new_card(network: Network, bits: int | None, classes: tuple[str, ...] | None) -> tuple[Card, Model]:
    """A model to be trained, its pretrained weights (if any) in it; what is random is drawn from torch's generator."""
    module, preprocess = network.build()
    card = Card(network.name, network.options.model_dump(mode="json"), preprocess, bits, classes)
    return card, Model(module, preprocess.size, bits, len(classes) if classes else None)


def save_model(card: Card, model: Model, folder: Path) -> None:
    """Write the weights, then the card with their digest; a folder in which the two do not fit is never loaded."""
    aside = folder / f"{WEIGHTS}.writing"
    torch.save(model.state_dict(), aside)
    digest = sha256_of(aside)
    aside.replace(folder / WEIGHTS)
    content = {
        "format": FORMAT,
        **asdict(card),
        "preprocess": card.preprocess.model_dump(mode="json"),
        "sha256": digest,
    }
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
        return (
            Card(**content, options=options, preprocess=preprocess, classes=tuple(classes) if classes else None),
            digest,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no trained model here (it has no {CARD}): cbir train CONFIG --out {folder}", path="path"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not the description of a model: {one_line(error)}", path="path") from error


def load_model(folder: Path) -> tuple[Card, Model]:
    """The model that ``save_model`` wrote, in evaluation mode. Loads tensors only, never pickled objects.

    Raises:
        ConfigError: nothing there, or weights of another network.
        CorruptCollection: the weights are not those that were written with the card.
    """
    card, digest = read_card(folder)
    state = read_state_dict(folder / WEIGHTS)
    model = card.make()
    fill(model, state, f"{folder / WEIGHTS}: a checkpoint of another network than '{card.network}'")
    if sha256_of(folder / WEIGHTS) != digest:
        raise CorruptCollection(f"{folder / WEIGHTS}: altered: its content does not have the digest written with it")
    return card, model.eval()


def _width(network: Any, size: tuple[int, int]) -> int:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            found = network(torch.zeros(1, 3, *size))
    except CbirError:
        raise
    except Exception as error:  # layers fail each in its own way
        raise ConfigError(
            f"images of {size[0]} x {size[1]} are too small for the network: {one_line(error)}", path="preprocess"
        ) from error
    finally:
        network.train(training)
    return int(found.shape[1])
